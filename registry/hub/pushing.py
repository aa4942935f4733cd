"""push: files become one commit on a branch, at once or not at all.

The .dcz files are verified and hashed first, then uploaded (which nobody sees), then committed with the parent that was the
branch's head when the push began. An answer that is lost says nothing about the commit: so before anything is tried again,
the branch is asked for, and if its files are those that were to be, the push is done. If they are not, and the head is
another than it was, somebody was quicker, and the push ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from dcz.errors import (
    Conflict,
    FormatError,
    InvalidReference,
    NotInRegistry,
    RegistryCorrupt,
    RegistryError,
    UsageError,
    VersionExists,
)
from dcz.registry.checks import Progress, steps, verify_with_progress
from dcz.registry.disk import os_errors
from dcz.registry.hub.connection import Attempts, Connection
from dcz.registry.hub.refs import Refs, list_refs
from dcz.registry.hub.settings import Hub
from dcz.registry.hub.snapshot import Snapshot, is_commit, open_snapshot
from dcz.registry.outcomes import Pushed
from dcz.registry.outgoing import is_dcz
from dcz.registry.refs import HubReference

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from huggingface_hub import CommitOperationAdd

__all__ = ["push"]

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.dcz", re.IGNORECASE)
_TOO_MANY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A file as it was when it was verified: what git and Git LFS call its content."""

    path: Path
    size: int
    sha256: str
    git: str

    @property
    def name(self) -> str:
        return self.path.name

    def is_in(self, snapshot: Snapshot) -> bool:
        known = snapshot.file(self.name)
        return known is not None and known.size == self.size and known.digest in (self.sha256, self.git)


class _Stream(io.BufferedIOBase):
    """An open file whose reading is told. For such an object huggingface_hub does not ask the server for Xet."""

    def __init__(self, path: Path, size: int, step: Any) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this
        self._size, self._step = size, step
        self._hashed = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(-1 if size is None else size)
        at = self._file.tell()
        if self._step is not None and self._hashed:
            self._step(at)
        if not data or at >= self._size:
            self._hashed = True  # the first time through, huggingface_hub computes the SHA-256
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        data = self.read(len(memoryview(buffer).cast("B")))
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def push(
    files: Mapping[Path, int],
    reference: HubReference,
    hub: Hub,
    progress: Progress | None,
    *,
    tags: Sequence[str],
    private: bool,
) -> Pushed:
    """``dcz.registry.push`` for the Hub. See there."""
    for tag in tags:
        HubReference(reference.org, reference.name, tag)
        if is_commit(tag):
            raise InvalidReference(f"{tag!r} cannot be a tag", hint="it reads as a commit")
    if reference.revision is not None and is_commit(reference.revision):
        raise InvalidReference(f"{reference}: a commit cannot be pushed to", hint="hf://org/name[@branch]")
    connection = Connection(hub)
    if connection.offline:
        raise connection.offline_error(str(reference))
    outgoing = [_prepare(path, size, progress) for path, size in sorted(files.items())]
    refs = _ready(connection, reference, private=private)
    branch = reference.revision or "main"
    before = open_snapshot(connection, HubReference(reference.org, reference.name, branch))
    if private and not before.private:
        raise UsageError(f"{reference} is there already, and public", hint="make it private on the Hub first")
    _check_tags(reference, refs, tags, before, outgoing)
    after, created = _commit(connection, before, branch, outgoing, progress)
    new = [tag for tag in tags if refs.tags.get(tag) != after.commit]
    for tag in new:
        _tag(connection, after, tag)
    return Pushed(after.reference, created, tags=tuple(new))


def _prepare(path: Path, size: int, progress: Progress | None) -> _Outgoing:
    """Verify a .dcz file, and hash every file. Raises FormatError, UsageError."""

    def hashed() -> tuple[str, str, int]:
        sha256, git, count = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), 0
        small = size <= _TOO_MANY * 16  # larger files are never git's
        step = steps(progress, f"hash {path.name}", size)
        buffer = memoryview(bytearray(1 << 20))
        with open(path, "rb", buffering=0) as file:
            while length := file.readinto(buffer):
                sha256.update(buffer[:length])
                if small:
                    git.update(buffer[:length])
                count += length
                if step is not None:
                    step(count)
        return sha256.hexdigest(), git.hexdigest(), count

    try:
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(hashed)
            if is_dcz(path):
                verify_with_progress(path, path.name, size, progress)
            sha256, git, count = work.result()
    except OSError as exc:
        raise UsageError(f"cannot push {str(path)!r}: {exc.strerror}") from exc
    except FormatError as exc:
        exc.file = str(path)
        raise
    if count != size:
        raise UsageError(f"cannot push {str(path)!r}: it changes while it is read")
    return _Outgoing(path, size, sha256, git)


# -- before


def _ready(connection: Connection, reference: HubReference, *, private: bool) -> Refs:
    """The branches and tags of the repository, which is made if need be, and so is the branch."""
    name = f"{reference.org}/{reference.name}"
    try:
        refs = list_refs(connection, reference)
    except NotInRegistry:
        if not connection.token:
            raise

        def create() -> None:
            with connection.api() as api:
                api.create_repo(name, private=private or None, exist_ok=True)

        connection.trying(f"making {name}", create)
        refs = list_refs(connection, reference)
    branch = reference.revision
    if branch in refs.tags:
        raise VersionExists(
            f"{reference} is a tag, and tags do not move", hint="push to a branch, or to none for main"
        )
    if branch is not None and branch not in refs.branches:

        def begin() -> None:
            with connection.api() as api:
                api.create_branch(name, branch=branch, exist_ok=True)

        connection.trying(f"making the branch {branch}", begin)
    return refs


def _check_tags(
    reference: HubReference, refs: Refs, tags: Sequence[str], before: Snapshot, outgoing: Sequence[_Outgoing]
) -> None:
    """A tag is a version: it may be there already only if nothing is to change."""
    changes = not all(item.is_in(before) for item in outgoing) or bool(_leftovers(before, outgoing))
    for tag in tags:
        if tag in refs.branches:
            raise VersionExists(
                f"hf://{reference.org}/{reference.name} has a branch {tag!r}, so no tag can be called so"
            )
        known = refs.tags.get(tag)
        if known is not None and (changes or known != before.commit):
            raise VersionExists(
                f"hf://{reference.org}/{reference.name}@{tag} exists with other content ({known}), and tags do not move",
                hint="choose another tag",
            )


def _leftovers(before: Snapshot, outgoing: Sequence[_Outgoing]) -> list[str]:
    """Shards in the repository that belong to a set of which another number is pushed now."""
    new = {item.name for item in outgoing}
    stems = {match["stem"].lower() for name in new if (match := _SHARD.fullmatch(name))}
    return [
        file.path
        for file in before.files
        if file.path not in new and (match := _SHARD.fullmatch(file.path)) and match["stem"].lower() in stems
    ]


# -- the commit


def _commit(
    connection: Connection,
    before: Snapshot,
    branch: str,
    outgoing: Sequence[_Outgoing],
    progress: Progress | None,
) -> tuple[Snapshot, bool]:
    """The commit that has the files, and whether it is new."""
    from huggingface_hub import CommitOperationDelete

    gone = _leftovers(before, outgoing)
    changed = [item for item in outgoing if not item.is_in(before)]
    if not changed and not gone:
        return before, False

    def is_done(snapshot: Snapshot) -> bool:
        paths = {file.path for file in snapshot.files}
        return all(item.is_in(snapshot) for item in outgoing) and not paths.intersection(gone)

    what = f"pushing to {before.asked}"
    message = f"Push {', '.join(item.name for item in changed[:3])}" + (
        " and more" if len(changed) > 3 else ""
    )
    attempts = Attempts(connection.patience)
    while True:
        try:
            with _additions(changed, progress) as additions, connection.api() as api:
                _compare(changed, additions)
                api.preupload_lfs_files(before.repository, additions, revision=branch, free_memory=False)
                api.create_commit(
                    before.repository,
                    [*additions, *(CommitOperationDelete(path, is_folder=False) for path in gone)],
                    commit_message=message or "Remove what is left of other shards",
                    revision=branch,
                    parent_commit=before.commit,
                )
            after = open_snapshot(connection, before.asked)
            if is_done(after):
                return after, True
            raise RegistryCorrupt(
                f"{what}: {connection.endpoint} took the commit, but its files are not those pushed"
            )
        except RegistryError:
            raise
        except Exception as exc:
            failure = connection.failure(exc, what)
            # Nobody knows whether it was carried out; the branch does.
            after = open_snapshot(connection, before.asked)
            if after.commit != before.commit:
                if is_done(after):
                    return after, True
                raise Conflict(
                    f"{what}: somebody else has pushed {after.commit} meanwhile",
                    hint="look at it, and push again",
                ) from exc
            if isinstance(
                failure.error, Conflict
            ):  # of nobody that could be seen: a server that is behind itself
                raise failure.error from exc
            attempts.wait(failure)


@contextlib.contextmanager
def _additions(
    changed: Sequence[_Outgoing], progress: Progress | None
) -> Generator[list[CommitOperationAdd]]:
    from huggingface_hub import CommitOperationAdd

    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        made: list[CommitOperationAdd] = []
        for item in changed:
            step = steps(progress, f"upload {item.name}", item.size)
            with os_errors("cannot read", item.path):
                stream = stack.enter_context(_Stream(item.path, item.size, step))
                made.append(CommitOperationAdd(item.name, cast("BinaryIO", stream)))
        yield made


def _compare(changed: Sequence[_Outgoing], additions: Sequence[CommitOperationAdd]) -> None:
    """Raise UsageError unless what is to be uploaded is what was verified."""
    for item, addition in zip(changed, additions, strict=True):
        if (addition.upload_info.size, addition.upload_info.sha256.hex()) != (item.size, item.sha256):
            raise UsageError(f"cannot push {str(item.path)!r}: it has changed since it was verified")


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without huggingface_hub's advice to use Xet, and without what it is told for calling its HTTP client in an old way."""
    logger = logging.getLogger("huggingface_hub")
    children = [
        logging.getLogger(f"huggingface_hub.{name}") for name in ("_commit_api", "hf_api", "utils._http")
    ]

    def is_news(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    for each in (logger, *children):
        each.addFilter(is_news)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Use 'content=", category=DeprecationWarning)
            yield
    finally:
        for each in (logger, *children):
            each.removeFilter(is_news)


def _tag(connection: Connection, snapshot: Snapshot, tag: str) -> None:
    def once() -> None:
        with connection.api() as api:
            api.create_tag(snapshot.repository, tag=tag, revision=snapshot.commit)

    what = f"tagging {snapshot.reference} as {tag}"
    try:
        connection.trying(what, once)
    except Conflict as exc:  # perhaps by ourselves, and only the answer was lost
        if list_refs(connection, snapshot.reference).tags.get(tag) != snapshot.commit:
            raise VersionExists(f"{what}: somebody else has made this tag meanwhile") from exc

"""push: files become one commit on a branch, at once or not at all.

The files are hashed and uploaded, which nobody sees, and the .dcz files verified meanwhile; when all that is done, they are
committed with the parent that was the branch's head when the push began. An answer that is lost says nothing about the commit: so before anything is tried again,
the branch is asked for, and if its files are those that were to be, the push is done. If they are not, and the head is
another than it was, somebody was quicker, and the push ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from dcz.errors import (
    Conflict,
    DczError,
    FormatError,
    InvalidReference,
    NotInRegistry,
    RegistryCorrupt,
    UsageError,
    VersionExists,
)
from dcz.registry.checks import Progress, steps, verify_with_progress
from dcz.registry.hub.connection import Attempts, Connection
from dcz.registry.hub.refs import Refs, check_tag, list_refs, make_tag
from dcz.registry.hub.settings import Hub
from dcz.registry.hub.snapshot import Snapshot, is_commit, open_snapshot
from dcz.registry.outcomes import Pushed
from dcz.registry.outgoing import is_dcz
from dcz.registry.refs import HubReference

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from huggingface_hub import CommitOperationAdd

__all__ = ["push"]

_SHARD: Final = re.compile(r"(?P<stem>.+?)(-[0-9]{5}-of-[0-9]{5})?\.dcz", re.IGNORECASE)
_GIT_MAX: Final = 16 << 20  # bytes of a file that git may hold itself; larger ones are always for Git LFS


class _Stream(io.BufferedIOBase):
    """An open file whose reading is told to ``step``. For such an object huggingface_hub does not ask the server for Xet."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this
        self.step: Callable[[int], None] | None = None

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
        if self.step is not None:
            self.step(self._file.tell())
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._file.readinto(buffer)
        if self.step is not None:
            self.step(self._file.tell())
        return count or 0

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A file as it was when it was verified: its path in the repository, what git (if it is small) and Git LFS call its
    content."""

    path: Path
    name: str
    size: int
    sha256: str
    git: str | None
    stream: _Stream
    addition: CommitOperationAdd
    checking: Future[None]

    def check(self) -> None:
        """Wait for its verification. Raises FormatError, UsageError."""
        try:
            self.checking.result()
        except FormatError as exc:
            exc.file = str(self.path)
            raise
        except OSError as exc:
            raise UsageError(f"cannot push {str(self.path)!r}: {exc.strerror}") from exc

    def is_in(self, snapshot: Snapshot) -> bool:
        known = snapshot.file(self.name)
        return known is not None and known.size == self.size and known.digest in (self.sha256, self.git)


def push(
    files: Mapping[Path, int],
    reference: HubReference,
    hub: Hub,
    progress: Progress | None,
    *,
    tags: Sequence[str],
    private: bool,
    names: Mapping[Path, str] | None = None,
) -> Pushed:
    """``dcz.registry.push`` for the Hub. See there. ``names``: paths in the repository, where they are not the files' own
    names."""
    named = {path: path.name for path in files} | dict(names or {})
    for tag in tags:
        check_tag(reference, tag)
    if reference.revision is not None and is_commit(reference.revision):
        raise InvalidReference(f"{reference}: a commit cannot be pushed to", hint="hf://org/name[@branch]")
    connection = Connection(hub)
    if connection.offline:
        raise connection.offline_error(str(reference))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        pool = stack.enter_context(ThreadPoolExecutor(1))
        outgoing = [
            _prepare(path, named[path], size, stack, pool, progress) for path, size in sorted(files.items())
        ]
        refs = _ready(connection, reference, outgoing, private=private)
        branch = reference.revision or "main"
        before = open_snapshot(connection, HubReference(reference.org, reference.name, branch))
        if private and not before.private:
            raise UsageError(
                f"{reference} is there already, and public", hint="make it private on the Hub first"
            )
        _check_tags(reference, refs, tags, before, outgoing)
        after, created = _commit(connection, before, branch, outgoing)
    new = [tag for tag in tags if refs.tags.get(tag) != after.commit]
    for tag in new:
        make_tag(connection, after.reference, tag)
    return Pushed(after.reference, created, tags=tuple(new))


def _prepare(
    path: Path,
    name: str,
    size: int,
    stack: contextlib.ExitStack,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> _Outgoing:
    """Let huggingface_hub hash a file, and begin to verify it if it is a .dcz. Raises UsageError."""
    from huggingface_hub import CommitOperationAdd

    try:
        stream = stack.enter_context(_Stream(path))
        before = _state(os.fstat(stream.fileno()))

        def check() -> None:
            if is_dcz(path):
                verify_with_progress(path, name, size, progress)
            if _state(os.stat(path)) != before:
                raise UsageError(f"cannot push {str(path)!r}: it changes while it is read")

        checking = pool.submit(check)
        stream.step = steps(progress, f"hash {name}", size)
        addition = CommitOperationAdd(name, cast("BinaryIO", stream))
        git = None
        if size <= _GIT_MAX:
            data = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest()
        changed = _state(os.stat(path)) != before or addition.upload_info.size != size
    except OSError as exc:
        raise UsageError(f"cannot push {str(path)!r}: {exc.strerror}") from exc
    if changed:
        raise UsageError(f"cannot push {str(path)!r}: it changes while it is read")
    stream.step = steps(progress, f"upload {name}", size)
    return _Outgoing(path, name, size, addition.upload_info.sha256.hex(), git, stream, addition, checking)


def _state(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


# -- before


def _ready(
    connection: Connection, reference: HubReference, outgoing: Sequence[_Outgoing], *, private: bool
) -> Refs:
    """The branches and tags of the repository, which is made if need be, and so is the branch: not for broken files."""
    name = f"{reference.org}/{reference.name}"
    try:
        refs = list_refs(connection, reference)
    except NotInRegistry:
        if not connection.token:
            raise
        for item in outgoing:
            item.check()

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
        for item in outgoing:
            item.check()

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
    """Shards in the repository that belong to a set of which another number is pushed now; one alone has no number."""
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
) -> tuple[Snapshot, bool]:
    """The commit that has the files, and whether it is new."""
    from huggingface_hub import CommitOperationDelete

    gone = _leftovers(before, outgoing)
    changed = [item for item in outgoing if not item.is_in(before)]
    if not changed and not gone:
        for item in outgoing:
            item.check()
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
            for item in changed:
                item.stream.seek(0)
            with connection.api() as api:
                additions = [item.addition for item in changed]
                api.preupload_lfs_files(before.repository, additions, revision=branch, free_memory=False)
                for item in outgoing:
                    item.check()
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
        except DczError:
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
def _quiet() -> Generator[None]:
    """Without huggingface_hub's bars and advice to use Xet, and what it is told for calling its HTTP client in an old way."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bars = not are_progress_bars_disabled()
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
            if bars:
                disable_progress_bars()
            yield
    finally:
        if bars:
            enable_progress_bars()
        for each in (logger, *children):
            each.removeFilter(is_news)

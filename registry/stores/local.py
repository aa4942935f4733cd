"""A registry in a folder: one OCI image layout for all names, so that oras and skopeo can read it.

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            the index; every tag is called "name:tag" in it
    blobs/sha256/<hex>    files and manifests, read-only
    .dcz/lock             held while index.json or blobs/ change
    .dcz/history.jsonl    one line for each change of a tag
    .dcz/staging/         pushes under way

How a push is atomic: the files are copied into a staging folder, hashed and synced, without a lock. Then, under the
lock, they are moved to blobs/, the folder is synced, the history is extended and synced, and one rename replaces
index.json. That rename is the moment. Before it, whatever was written is invisible: blobs that nothing refers to, and a
tail of the history beyond the length that index.json names, which the next change cuts off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from pydantic import TypeAdapter, ValidationError

from dcz.errors import RegistryCorrupt, RegistryError
from dcz.format import sync_folder
from dcz.registry.artifact import EMPTY, EMPTY_JSON, MANIFEST_TYPE, MAX_MANIFEST_BYTES
from dcz.registry.canonical import read_json, sha256_digest, to_json
from dcz.registry.disk import (
    Staging,
    copy_hashed,
    exclusive_lock,
    open_regular,
    os_errors,
    read_bounded,
    write_synced,
)
from dcz.registry.index import (
    INDEX_TYPE,
    MAX_INDEX_BYTES,
    Change,
    Index,
    Publication,
    Tag,
    decode_index,
    publish,
    set_alias,
)
from dcz.registry.refs import check_digest
from dcz.registry.stores.base import Garbage, OnBytes, StagedFile

__all__ = ["LocalStore"]

LAYOUT_VERSION: Final = "1.0.0"
MAX_HISTORY_LINE: Final = 1 << 16

# What refers to other blobs. A layer may be JSON, too, and as long as it likes: only these are looked into.
_REFERRING: Final = frozenset(
    {
        MANIFEST_TYPE,
        INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.artifact.manifest.v1+json",  # of a draft of OCI 1.1, in layouts that oras 0.x made
    }
)
_ANY_DIGEST: Final = re.compile(r"([a-z0-9][a-z0-9+._-]{0,63}):([a-zA-Z0-9=_-]{1,255})")

_CHANGE: Final = TypeAdapter(Change)
_Decision: TypeAlias = Callable[[Index], Publication]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _user() -> str:
    """The name of the effective user; the number if it has none, as in many containers."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


class LocalStore:
    """The store in the folder ``root``, which is made by the first push. Reading needs no lock and no right to write.

    ``~`` stands for the home folder. Raises RegistryError if there is none.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        folder = os.path.expanduser(root)
        if folder.startswith("~"):
            raise RegistryError(f"no place for a registry: {folder!r} names no home folder")
        self.root = Path(os.path.abspath(folder))
        self._blobs = self.root / "blobs" / "sha256"
        self._own = self.root / ".dcz"
        self._staging = self._own / "staging"
        self._history = self._own / "history.jsonl"

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def location(self) -> str:
        return str(self.root)

    # -- reading

    def tags(self, name: str | None = None) -> list[Tag]:
        return self._index().tags(name)

    def read_manifest(self, digest: str, size: int) -> bytes:
        if size > MAX_MANIFEST_BYTES:
            raise RegistryCorrupt(
                f"the manifest {digest} would have {size} bytes, at most {MAX_MANIFEST_BYTES}"
            )
        with os_errors("cannot read the manifest", self._path(digest)), self.open_blob(digest, size) as blob:
            data = blob.read(size + 1)
        if sha256_digest(data) != digest:
            raise RegistryCorrupt(f"the manifest {digest} in {self.location} is damaged")
        return data

    def open_blob(self, digest: str, size: int) -> BinaryIO:
        path = self._path(digest)
        with os_errors("cannot read the blob", path):
            try:
                blob = open_regular(path)
            except FileNotFoundError:
                raise RegistryCorrupt(f"the blob {digest} is missing in {self.location}") from None
            found = os.fstat(blob.fileno()).st_size
        if found != size:
            blob.close()
            raise RegistryCorrupt(f"the blob {digest} in {self.location} has {found} bytes, not {size}")
        return blob

    def blob_path(self, digest: str, size: int) -> Path:
        self.open_blob(digest, size).close()
        return self._path(digest)

    def history(self, name: str | None = None) -> list[Change]:
        limit = self._index().history_size
        changes: list[Change] = []
        end = 0
        with (
            os_errors("cannot read", self._history),
            contextlib.suppress(FileNotFoundError),
            open(self._history, "rb") as file,
        ):
            while limit is None or end < limit:
                line = file.readline(MAX_HISTORY_LINE)
                if not line.endswith(b"\n"):
                    break
                changes.append(self._change(line))
                end += len(line)
        if limit is not None and end != limit:
            raise RegistryCorrupt(
                f"{self._history} has lost changes: whole lines end at byte {end}, not {limit}",
                hint="restore it from a backup; otherwise the next change goes on behind a gap",
            )
        return [change for change in changes if name in (None, change.name) or change.kind == "gap"]

    def _change(self, line: bytes) -> Change:
        try:
            return _CHANGE.validate_json(line, strict=True, extra="ignore")
        except ValidationError as exc:
            raise RegistryCorrupt(f"{self._history} has a line that is not a change") from exc

    def _path(self, digest: str) -> Path:
        return self._blobs / check_digest(digest).removeprefix("sha256:")

    def _exists(self) -> bool:
        """Whether there is a registry. Raises RegistryError if there is something else in its place."""
        marker = self.root / "oci-layout"
        with os_errors("cannot read the registry", self.root):
            try:
                data = read_bounded(marker, 4096)
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    names = os.listdir(self.root)
                    # A first push that died left .dcz, at least.
                    if names and self._own.name not in names:
                        raise RegistryError(
                            f"{self.location} is not a registry, and not empty",
                            hint="choose a folder of its own",
                        ) from None
                return False
        found = read_json(data, limit=4096, what=str(marker)).get("imageLayoutVersion")
        if found != LAYOUT_VERSION:
            raise RegistryError(
                f"{self.location} is an OCI image layout of version {found!r}, not {LAYOUT_VERSION}"
            )
        return True

    def _index(self) -> Index:
        if not self._exists():
            return Index()
        path = self.root / "index.json"
        with os_errors("cannot read", path):
            try:
                data = read_bounded(path, MAX_INDEX_BYTES)
            except FileNotFoundError:
                raise RegistryCorrupt(
                    f"{path} is missing", hint="restore it from a backup, or start another registry"
                ) from None
        return decode_index(data, what=str(path))

    # -- writing

    @contextlib.contextmanager
    def upload(self) -> Generator[_LocalUpload, None, None]:
        with self._writing() as staging:
            yield _LocalUpload(self.root, staging, self._publish)

    def move_alias(self, name: str, alias: str, digest: str) -> Change | None:
        with self._writing() as staging, self._locked():
            known = self._index()
            index, change = set_alias(known, name, alias, digest=digest, time=_now(), user=_user())
            if change is not None:
                self._commit(staging, known, index, [change])
            return change

    def collect_garbage(self, *, grace: float) -> Garbage:
        if not self._exists():
            return Garbage(0, 0)
        with self._writing(), self._locked(), os_errors("cannot clean up", self.root):
            keep = self._reachable(self._index())
            removed = size = 0
            for entry in list(os.scandir(self._blobs)):
                info = entry.stat(follow_symlinks=False)
                # A rename sets ctime: this is how long the blob has been in its place.
                if f"sha256:{entry.name}" in keep or info.st_ctime > time.time() - grace:
                    continue
                os.unlink(entry.path)
                removed += 1
                size += info.st_size
            sync_folder(self._blobs)
        return Garbage(removed, size)

    def _reachable(self, index: Index) -> set[str]:
        """The digests that the index refers to, through manifests and indexes of any tool.

        Raises RegistryCorrupt if one of those cannot be read: what it needs is not known.
        """
        todo = [(entry.digest, entry.media_type) for entry in index.manifests]
        seen: set[tuple[str, str]] = set()
        while todo:
            digest, media_type = item = todo.pop()
            if item in seen:
                continue
            seen.add(item)
            if media_type.lower() in _REFERRING:
                try:
                    todo += self._references(digest)
                except RegistryCorrupt as exc:
                    raise RegistryCorrupt(f"{exc.message}; nothing is removed", hint=exc.hint) from exc
        return {digest for digest, _ in seen}

    def _references(self, digest: str) -> list[tuple[str, str]]:
        """Digest and media type of all that a manifest or an index refers to, by whatever tool it was made."""
        match = _ANY_DIGEST.fullmatch(digest)
        if match is None:  # no blob can have such a name
            return []
        algorithm, encoded = match.groups()
        try:
            data = read_bounded(self.root / "blobs" / algorithm / encoded, MAX_MANIFEST_BYTES)
        except FileNotFoundError:  # elsewhere
            return []
        what = f"the manifest {digest} in {self.location}"
        if algorithm not in ("sha256", "sha512"):
            raise RegistryCorrupt(f"{what} has a digest that cannot be checked")
        if len(data) <= MAX_MANIFEST_BYTES and hashlib.new(algorithm, data).hexdigest() != encoded:
            raise RegistryCorrupt(f"{what} is damaged", hint="pushing the same files again heals it")
        return _descriptors(read_json(data, limit=MAX_MANIFEST_BYTES, what=what))

    @contextlib.contextmanager
    def _writing(self) -> Generator[Path, None, None]:
        """A staging folder in a registry that exists from here on."""
        exists = self._exists()
        with os_errors("cannot write to the registry", self.root):
            for folder in (self._staging, self._blobs):
                folder.mkdir(parents=True, exist_ok=True)
        with Staging(self._staging, "") as staging:
            if not exists:
                with self._locked():
                    self._initialise(staging.path)
            yield staging.path

    def _initialise(self, staging: Path) -> None:
        with os_errors("cannot make a registry in", self.root):
            index = self.root / "index.json"
            if not index.exists():
                first = Index().with_history_size(self._whole_lines())
                os.replace(write_synced(staging / "index", first.to_bytes()), index)
                sync_folder(self.root)
            # The marker comes last: with it, the layout is complete.
            layout = write_synced(staging / "layout", to_json({"imageLayoutVersion": LAYOUT_VERSION}))
            os.replace(layout, self.root / "oci-layout")
            for folder in (self._blobs, self._blobs.parent, self._own, self.root):
                sync_folder(folder)
        with contextlib.suppress(OSError):  # a parent that may be entered but not read
            sync_folder(self.root.parent)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return exclusive_lock(self._own / "lock")

    def _commit(self, staging: Path, known: Index, index: Index, changes: Iterable[Change]) -> None:
        """Record the changes and replace the index ``known`` by ``index``; the lock is held since ``known`` was read."""
        with os_errors("cannot write to the registry", self.root):
            end = known.history_size
            if end is None or not self._is_line_end(end):
                # Another tool made this index, or lines were lost, which is recorded. What the history has then is
                # vouched for before it grows.
                lost = end is not None
                end = self._whole_lines()
                if lost:
                    end = self._append(end, [Change(_now(), _user(), "", "", "gap", None, "")])
                self._replace_index(staging, known.with_history_size(end))
            end = self._append(end, changes)
            self._replace_index(staging, index.with_history_size(end))

    def _replace_index(self, staging: Path, index: Index) -> None:
        os.replace(write_synced(staging / "index.json", index.to_bytes()), self.root / "index.json")
        sync_folder(self.root)

    def _whole_lines(self) -> int:
        """Bytes of the history up to the end of its last line."""
        try:
            with open(self._history, "rb") as file:
                return sum(len(line) for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return 0

    def _is_line_end(self, end: int) -> bool:
        """Whether a line of the history ends at byte ``end``."""
        if end == 0:
            return True
        try:
            with open(self._history, "rb") as file:
                file.seek(end - 1)
                return file.read(1) == b"\n"
        except FileNotFoundError:
            return False

    def _append(self, end: int, changes: Iterable[Change]) -> int:
        """Put lines behind the first ``end`` bytes of the history, in place of what is there; the length from then on."""
        lines = b"".join(to_json(asdict(change)) + b"\n" for change in changes)
        is_new = not self._history.exists()
        with open(os.open(self._history, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as file:
            file.truncate(end)
            file.seek(end)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self._own)
        return end + len(lines)

    def _publish(
        self, staging: Path, files: list[StagedFile], decide: _Decision, manifest: str
    ) -> Publication:
        """The last step of an upload: blobs into place, then the index that ``decide`` makes of the present one."""
        with self._locked():
            known = self._index()
            publication = decide(known)
            placed: list[Path] = []
            try:
                with os_errors("cannot write to the registry", self.root):
                    for file in files:
                        final = self._path(file.digest)
                        if not final.exists():
                            placed.append(final)
                        os.replace(file.path, final)
                    sync_folder(self._blobs)
                if publication.changes:
                    self._commit(staging, known, publication.index, publication.changes)
            except BaseException:
                # Whatever happened, the index on the disk decides whether the new blobs belong to something.
                with contextlib.suppress(RegistryError, OSError):
                    if all(entry.digest != manifest for entry in self._index().manifests):
                        for final in placed:
                            final.unlink(missing_ok=True)
                raise
        return publication


class _LocalUpload:
    """A push into a local store; ends with the block of ``LocalStore.upload``."""

    def __init__(
        self,
        root: Path,
        staging: Path,
        publish_staged: Callable[[Path, list[StagedFile], _Decision, str], Publication],
    ) -> None:
        self._root = root
        self._folder = staging
        self._publish_staged = publish_staged
        self._files: list[StagedFile] = []

    def add(self, source: Path, on_bytes: OnBytes | None = None) -> StagedFile:
        with open_regular(source) as file, os_errors(f"cannot copy {source} to", self._root):
            staged = self._folder / f"file-{len(self._files)}"
            encoded, size = copy_hashed(file, staged, on_bytes)
        return self._staged(staged, f"sha256:{encoded}", size)

    def _staged(self, path: Path, digest: str, size: int) -> StagedFile:
        with os_errors("cannot write to the registry", self._root):
            path.chmod(path.stat().st_mode & 0o555)
        self._files.append(StagedFile(path, digest, size))
        return self._files[-1]

    def publish(
        self, name: str, version: str | None, manifest: bytes, aliases: Iterable[str] = ()
    ) -> Publication:
        digest = sha256_digest(manifest)
        with os_errors("cannot write to the registry", self._root):
            config = write_synced(self._folder / "config", EMPTY_JSON)
            staged = write_synced(self._folder / "manifest", manifest)
        self._staged(config, EMPTY.digest, EMPTY.size)
        self._staged(staged, digest, len(manifest))
        aliases = list(aliases)

        def decide(index: Index) -> Publication:
            return publish(
                index,
                name,
                version,
                digest=digest,
                size=len(manifest),
                aliases=aliases,
                time=_now(),
                user=_user(),
            )

        return self._publish_staged(self._folder, self._files, decide, digest)


def _descriptors(tree: Any) -> list[tuple[str, str]]:
    """Digest and media type of every descriptor in a manifest or an index, wherever it stands."""
    found: list[tuple[str, str]] = []
    todo = [tree]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            digest, media_type = item.get("digest"), item.get("mediaType")
            if isinstance(digest, str):
                found.append((digest, media_type if isinstance(media_type, str) else ""))
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return found

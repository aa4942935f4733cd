"""What a reference stands for on the Hub: one commit, and the files in it. Nothing here is believed unread.

The revision is resolved first, and everything after that asks for the commit: what a branch points to may change between
two requests. Names and digests come from a stranger: a commit is 40 hexadecimal digits, a digest 64, a path that is to be
a file here is plain, relative and without ``..``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from dcz.errors import RegistryCorrupt, Unreachable, UsageError
from dcz.format.manifest import check_asset_paths
from dcz.registry.hub.connection import Connection, Garbled, joined
from dcz.registry.refs import HubReference

__all__ = ["DEFAULT_FILE", "HubFile", "Snapshot", "find_commit", "is_dcz", "open_snapshot", "pages"]

DEFAULT_FILE: Final = "model.dcz"
MAX_FILES: Final = 100_000
MAX_PAGES: Final = 5000
MAX_SIZE: Final = 1 << 50

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NEXT: Final = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')


def is_dcz(path: str) -> bool:
    return path.lower().endswith(".dcz")


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit: its path, its size in bytes, and what it is called by: the SHA-256 of an object of Git LFS (64
    hexadecimal digits), else the name of git's blob (40)."""

    path: str
    size: int
    digest: str

    @property
    def is_lfs(self) -> bool:
        return len(self.digest) == 64

    def hashing(self) -> Any:
        """A hash object whose result for the right content is ``digest``."""
        if self.is_lfs:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit. ``reference`` is pinned to it; ``asked`` is what was asked for; ``files`` are in order of their paths: all of
    them, unless it is from a cache and not ``whole``."""

    asked: HubReference
    reference: HubReference
    private: bool
    files: tuple[HubFile, ...]
    whole: bool = True

    @property
    def repository(self) -> str:
        return f"{self.reference.org}/{self.reference.name}"

    @property
    def commit(self) -> str:
        assert self.reference.revision is not None
        return self.reference.revision

    def file(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)

    def only_dcz(self, path: str | None = None) -> HubFile:
        """The .dcz file that is meant: ``path``; else the only one, or else ``model.dcz``. Raises UsageError."""
        names = [file.path for file in self.files if is_dcz(file.path)]
        wanted = path or (names[0] if len(names) == 1 else DEFAULT_FILE)
        if wanted not in names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            what = (
                f"no .dcz file {path!r}" if path else f"{len(names)} .dcz files" if names else "no .dcz file"
            )
            hint = (
                f"name one of {shown}, or pull them"
                if names
                else f"`dcz convert {self.asked}` makes one of its weights"
            )
            raise UsageError(f"{self.reference} has {what}", hint=hint)
        found = self.file(wanted)
        assert found is not None
        check_paths(self, [found])
        return found

    def wanted(self, only: Iterable[str] = ()) -> list[HubFile]:
        """The files that a pull brings: those named, else all but hidden ones. Raises UsageError, RegistryCorrupt; Unreachable
        if it is not known which there are."""
        names = list(only)
        if not names and not self.whole:
            raise Unreachable(
                f"{self.reference}: the cache does not know which files it has, and nobody is asked",
                hint="HF_HUB_OFFLINE is set; name the files, or pull it once without",
            )
        for name in names:
            if self.file(name) is None:
                raise UsageError(f"{self.reference} has no file {name!r}")
        files = [file for file in self.files if (file.path in names if names else not _is_hidden(file.path))]
        check_paths(self, files)
        return files


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def check_paths(snapshot: Snapshot, files: Iterable[HubFile]) -> None:
    """Raise RegistryCorrupt unless the files can be made here, all of them, and nowhere else than they should."""
    try:
        check_asset_paths([file.path for file in files])
    except (ValueError, UnicodeEncodeError) as exc:
        raise RegistryCorrupt(f"{snapshot.reference}: {exc}", hint="pull single files with --file") from exc


def find_commit(connection: Connection, reference: HubReference) -> tuple[str, bool]:
    """The commit that a reference stands for now, and whether the repository is private. Raises RegistryError."""
    revision = urllib.parse.quote(reference.revision or "main", safe="")
    url = connection.own_url(
        f"api/models/{reference.org}/{reference.name}/revision/{revision}?expand=sha&expand=private"
    )
    tree, _ = connection.get_json(url, str(reference))
    sha = tree.get("sha") if isinstance(tree, dict) else None
    if not isinstance(sha, str) or not is_commit(sha):
        raise RegistryCorrupt(f"{reference}: {connection.endpoint} names no commit")
    if reference.revision is not None and is_commit(reference.revision) and sha != reference.revision:
        raise RegistryCorrupt(f"{reference}: {connection.endpoint} has {sha} for it, another commit")
    return sha, tree.get("private") is True


def open_snapshot(connection: Connection, reference: HubReference) -> Snapshot:
    """The commit that a reference stands for, and its files. Raises NotInRegistry, AccessDenied, RegistryError."""
    commit, private = find_commit(connection, reference)
    pinned = HubReference(reference.org, reference.name, commit)
    return Snapshot(
        reference, pinned, private, tuple(sorted(_files(connection, pinned), key=lambda file: file.path))
    )


def _files(connection: Connection, pinned: HubReference) -> Iterator[HubFile]:
    url = connection.own_url(f"api/models/{pinned.org}/{pinned.name}/tree/{pinned.revision}?recursive=true")
    seen: set[str] = set()
    for item in pages(connection, url, pinned, "files"):
        if isinstance(item, dict) and item.get("type") == "directory":
            continue
        file = _file(pinned, item)
        if file.path in seen or len(seen) >= MAX_FILES:
            raise _wrong(
                pinned, f"{file.path[:80]!r} is there twice, or there are more than {MAX_FILES} files"
            )
        seen.add(file.path)
        yield file


def pages(connection: Connection, url: str, reference: HubReference, what: str) -> Iterator[Any]:
    """The items of a list of ``what`` that the Hub sends in pages. Raises RegistryError."""
    number = 0
    while url:
        number += 1
        items, headers = connection.get_json(url, str(reference))
        if not isinstance(items, list):
            raise _wrong(reference, f"no list of {what}", what)
        yield from items
        following = _NEXT.search(headers.get("link", ""))
        before, url = url, _next_page(connection, url, following[1]) if following else ""
        if url == before or number >= MAX_PAGES:
            raise _wrong(reference, f"it has no end, or more than {MAX_PAGES} pages", what)


def _next_page(connection: Connection, url: str, location: str) -> str:
    with contextlib.suppress(Garbled):
        following = joined(url, location)
        if connection.is_own(following):
            return following
    raise RegistryCorrupt(f"{url}: the next page of the list is somewhere else")


def _file(pinned: HubReference, item: Any) -> HubFile:
    entry: dict[str, Any] = item if isinstance(item, dict) else {}
    path: Any = entry.get("path")
    lfs: Any = entry.get("lfs")
    size, digest = (lfs if isinstance(lfs, dict) else entry).get("size"), entry.get("oid")
    is_right = is_commit
    if isinstance(lfs, dict):
        digest, is_right = lfs.get("oid"), is_sha256
    if (
        not isinstance(path, str)
        or not isinstance(digest, str)
        or not is_right(digest)
        or not isinstance(size, int)
        or isinstance(size, bool)
        or not 0 <= size <= MAX_SIZE
    ):
        raise _wrong(pinned, f"the entry {str(path)[:80]!r} has no path, size or digest that could be one")
    return HubFile(path, size, digest)


def _wrong(pinned: HubReference, problem: str, what: str = "files") -> RegistryCorrupt:
    return RegistryCorrupt(f"{pinned}: the list of {what} is wrong: {problem}")

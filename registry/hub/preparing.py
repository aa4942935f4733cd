"""Files that are about to be pushed: hashed and verified by threads of their own, while the Hub is asked.

Nothing is imported here at the top that takes long: hashing begins before that.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from dcz.errors import FormatError, UsageError
from dcz.registry.disk import hash_stream, open_regular
from dcz.registry.outgoing import is_dcz
from dcz.registry.progress import Progress, steps
from dcz.registry.together import Total

if TYPE_CHECKING:
    from dcz.registry.hub.snapshot import Snapshot

__all__ = ["GIT_MAX", "Content", "Outgoing", "Preparing"]

GIT_MAX: Final = 16 << 20  # bytes of a file that git may hold itself; larger ones are always for Git LFS
# Between two pieces the threads that hash wait for the one that imports.
_PIECE: Final = 8 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Content:
    """An object of Git LFS: the file that has it, its name in the repository, its length, its SHA-256 (64 hex digits)."""

    path: Path
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """A file as it was when the push began; ``name`` is its path in the repository. What is not known yet is waited for."""

    path: Path
    name: str
    size: int
    state: tuple[int, ...]
    hashing: Future[tuple[str, str | None]]
    checking: Future[str | None]

    @property
    def sha256(self) -> str:
        """What Git LFS calls its content (64 hex digits). Raises UsageError."""
        return self._digests()[0]

    def _digests(self) -> tuple[str, str | None]:
        try:
            return self.hashing.result()
        except OSError as exc:
            raise UsageError(f"cannot push {str(self.path)!r}: {exc.strerror}") from exc

    def content(self) -> Content:
        return Content(self.path, self.name, self.size, self.sha256)

    def check(self) -> None:
        """That it is right, if it is a .dcz, and has not changed. Raises FormatError, UsageError."""
        try:
            self.checking.result()
        except FormatError as exc:
            exc.file = str(self.path)
            raise
        except OSError as exc:
            raise UsageError(f"cannot push {str(self.path)!r}: {exc.strerror}") from exc
        self._digests()
        self.check_unchanged()

    @property
    def identity(self) -> str | None:
        """That of a .dcz that was found to be right. Raises what ``check`` does."""
        return self.checking.result()

    def check_unchanged(self) -> None:
        """Raises UsageError if the file is another one now."""
        try:
            same = _state(self.path) == self.state
        except OSError as exc:
            raise UsageError(f"cannot push {str(self.path)!r}: {exc.strerror}") from exc
        if not same:
            raise UsageError(f"cannot push {str(self.path)!r}: it changes while it is read")

    def is_in(self, snapshot: Snapshot) -> bool:
        known = snapshot.file(self.name)
        return known is not None and known.size == self.size and known.digest in self._digests()

    def small_content(self) -> bytes:
        """All of it, which is what was hashed. For what git may hold. Raises UsageError."""
        try:
            data = self.path.read_bytes()
        except OSError as exc:
            raise UsageError(f"cannot push {str(self.path)!r}: {exc.strerror}") from exc
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UsageError(f"cannot push {str(self.path)!r}: it changes while it is read")
        return data


_SIZE: Final = 0


def _state(path: Path) -> tuple[int, ...]:
    info = os.stat(path)
    return info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns


class Preparing:
    """The threads that hash and verify. They stop with the push, however it ends."""

    def __init__(self, names: Mapping[Path, str], progress: Progress | None) -> None:
        """``names``: the files, and their paths in the repository. Raises UsageError."""
        states: dict[Path, tuple[int, ...]] = {}
        for path in sorted(names):
            try:
                states[path] = _state(path)
            except OSError as exc:
                raise UsageError(f"cannot push {str(path)!r}: {exc.strerror}") from exc
        self._over = threading.Event()
        self._hashers, self._checkers = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        titles = {names[path]: state[_SIZE] for path, state in states.items()}
        containers = {name: size for name, size in titles.items() if is_dcz(Path(name))}
        hashed = Total(progress, "hash", titles, self._over)
        checked = Total(progress, "verify", containers, self._over)
        self.files = [
            self._begin(path, names[path], state, hashed, checked) for path, state in states.items()
        ]

    def _begin(
        self, path: Path, name: str, state: tuple[int, ...], hashed: Total, checked: Total
    ) -> Outgoing:
        size = state[_SIZE]

        def digests() -> tuple[str, str | None]:
            git = None
            if size <= GIT_MAX:
                data = path.read_bytes()
                git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            with open_regular(path) as file:
                step = steps(hashed.one(), "", size)
                digest, length = hash_stream(file, step, piece=_PIECE)
            if length != size:
                raise UsageError(f"cannot push {str(path)!r}: it changes while it is read")
            return digest, git

        def check() -> str | None:
            if not is_dcz(path):
                return None
            from dcz.registry.checks import verify_with_progress

            return verify_with_progress(path, name, size, checked.one()).digest

        hashing = self._hashers.submit(digests)
        return Outgoing(path, name, size, state, hashing, self._checkers.submit(check))

    def _stop(self) -> None:
        self._over.set()
        for pool in (self._hashers, self._checkers):
            pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

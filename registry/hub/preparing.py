"""Files that are about to be pushed: hashed and verified by threads of their own, while the Hub is asked."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dcz.errors import FormatError, UsageError
from dcz.registry.checks import Progress, steps, verify_with_progress
from dcz.registry.disk import hash_stream, open_regular
from dcz.registry.hub.snapshot import Snapshot
from dcz.registry.hub.uploading import GIT_MAX, Content
from dcz.registry.outgoing import is_dcz
from dcz.registry.together import Total

__all__ = ["Outgoing", "Preparing"]


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """A file as it was when the push began; ``name`` is its path in the repository. What is not known yet is waited for."""

    path: Path
    name: str
    size: int
    state: tuple[int, ...]
    hashing: Future[tuple[str, str | None]]
    checking: Future[None]

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


def _state(path: Path) -> tuple[int, ...]:
    info = os.stat(path)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


class Preparing:
    """The threads that hash and verify. They stop with the push, however it ends."""

    def __init__(
        self, files: Mapping[Path, int], names: Mapping[Path, str], progress: Progress | None
    ) -> None:
        """``files``: with their sizes; ``names``: their paths in the repository. Raises UsageError."""
        self._over = threading.Event()
        self._hashers, self._checkers = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        titles = {names[path]: size for path, size in files.items()}
        containers = {name: size for name, size in titles.items() if is_dcz(Path(name))}
        hashed = Total(progress, "hash", titles, self._over)
        checked = Total(progress, "verify", containers, self._over)
        self.files = [
            self._begin(path, names[path], size, hashed, checked) for path, size in sorted(files.items())
        ]

    def _begin(self, path: Path, name: str, size: int, hashed: Total, checked: Total) -> Outgoing:
        try:
            state = _state(path)
        except OSError as exc:
            self._stop()
            raise UsageError(f"cannot push {str(path)!r}: {exc.strerror}") from exc

        def digests() -> tuple[str, str | None]:
            git = None
            if size <= GIT_MAX:
                data = path.read_bytes()
                git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            with open_regular(path) as file:
                digest, length = hash_stream(file, steps(hashed.one(), "", size))
            if length != size:
                raise UsageError(f"cannot push {str(path)!r}: it changes while it is read")
            return digest, git

        def check() -> None:
            if is_dcz(path):
                verify_with_progress(path, name, size, checked.one())

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

"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
from collections.abc import Callable, Generator
from typing import BinaryIO, Final

__all__ = ["WriteBehind", "atomic_file", "sync_folder"]

_PIECE: Final = 8 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make sure that names that appeared in a folder are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_unnamed(folder: str) -> int | None:
    """A new file without a name, which goes away with the process; None where the file system has none."""
    if not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except (OSError, AttributeError):
        return None


def _give_name(fd: int, path: str) -> None:
    """A name is only given where there is none; to replace a file, one has to be renamed."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Python follows the link in /proc only if it is given a folder's descriptor (it calls link(2) otherwise).
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


class WriteBehind:
    """Lets the disk write a long file while the rest of it is made, so that little is left for the sync at its end.

    Only a request: where the system has no such call, or does not follow it, that sync does all the work.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = self._end = 0
        self._request: Callable[..., int] | None = getattr(ctypes.CDLL(None), "sync_file_range", None)

    def wrote(self, offset: int, length: int) -> None:
        """So many bytes were written at ``offset``."""
        if offset != self._end:
            self._start = offset
        self._end = offset + length
        if self._request is not None and self._end - self._start >= _PIECE:
            start, size = ctypes.c_int64(self._start), ctypes.c_int64(self._end - self._start)
            self._request(self._fd, start, size, _SYNC_FILE_RANGE_WRITE)
            self._start = self._end


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """A new file that appears under ``path`` when the block ends well: whole, and on the disk. Otherwise nothing does.

    It has no name until then, so a process that is killed leaves nothing behind. Where the file system cannot do that, it
    stands beside its place under a name that starts with a dot and ends in ``.tmp``.
    """
    final = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(final)
    start = os.fsdecode(os.fsencode(name)[:200])  # a name may have 255 bytes
    temporary = os.path.join(folder, f".{start}.{secrets.token_hex(6)}.tmp")
    unnamed = _open_unnamed(folder)
    try:
        with open(temporary, "xb") if unnamed is None else os.fdopen(unnamed, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if unnamed is not None:
                _give_name(unnamed, temporary)
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(folder)

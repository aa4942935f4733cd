"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator
from typing import BinaryIO, Final

__all__ = ["FULL", "WriteBehind", "atomic_file", "naming", "sync_folder", "temporary_prefix"]

_PIECE: Final = 8 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def _place_of(path: str | os.PathLike[str]) -> str:
    """The absolute path of the file that ``path`` means. Links are followed, so that they stay links.

    Raises OSError if it cannot be a file, or is something else that a new file must not take the place of.
    """
    given = os.fspath(path)
    if not os.path.basename(given):
        raise IsADirectoryError(errno.EISDIR, "the name of a file is needed, not of a folder", given)
    place = os.path.realpath(given)
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(place).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", given)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file, so it is not replaced by one", given)
    return place


def temporary_prefix(name: str) -> str:
    """How the names begin of what is not yet the file or folder ``name``, beside it."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}."  # a name may have 255 bytes


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Generator[None]:
    """Name ``path`` in an OSError inside that names only the temporary file beside it, or no file as the disk is full."""
    given = os.fspath(path)
    folder, name = os.path.split(os.path.realpath(given))
    temporary = os.path.join(folder, temporary_prefix(name))
    try:
        yield
    except OSError as exc:
        if exc.filename is None:
            exc.filename = given if exc.errno in FULL else None
        elif os.path.realpath(os.fsdecode(exc.filename)).startswith(temporary):
            exc.filename = given
            if exc.errno == errno.ENOENT:
                exc.strerror = "the folder for it does not exist"
        raise


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """A new file that appears under ``path`` when the block ends well: whole, and on the disk. Otherwise nothing does.

    If ``path`` is a link, the file that it leads to is replaced, or made. Raises OSError, also if there is something that is
    not a regular file.

    It has no name until then, so a process that is killed leaves nothing behind. Where the file system cannot do that, it
    stands beside its place under a name that starts with a dot and ends in ``.tmp``.
    """
    final = _place_of(path)
    folder, name = os.path.split(final)
    temporary = os.path.join(folder, f"{temporary_prefix(name)}{secrets.token_hex(6)}.tmp")
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

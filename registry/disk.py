"""Files as the registry handles them: hashed while copied, durable before visible, locked between processes.

Three rules hold for everything that is written here.

1. New content is written into a *staging folder* on the same file system, synced, and moved to its place by one rename;
   the folder that received it is synced after that.
2. A staging folder belongs to a living process as long as that process holds the lock of the file ``lock`` in it. The
   kernel drops the lock with the process, however it dies, so whoever can take the lock may remove the folder.
3. Every operating system error becomes a RegistryError that says what could not be done and why.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Final, Self

from dcz.errors import RegistryError

__all__ = [
    "Staging",
    "copy_hashed",
    "exclusive_lock",
    "hash_stream",
    "open_regular",
    "os_errors",
    "read_bounded",
    "write_synced",
]

OnBytes = Callable[[int], None]

BUFFER: Final = 1 << 20
LOCK_TIMEOUT: Final = (
    60.0  # seconds; the lock is held for a few syncs and renames, never while data is copied
)

_FICLONE: Final = 0x40049409  # linux/fs.h: share the extents of another file, copy on write
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def os_errors(action: str) -> Generator[None, None, None]:
    """Turn an OSError inside into a RegistryError that begins with ``action``, such as "cannot write /x"."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        hint = None
        if exc.errno in _FULL:
            hint = "free some space and try again; nothing was left half-written"
        elif exc.errno in _DENIED:
            hint = "the folder may be read-only, or belong to somebody else"
        raise RegistryError(f"{action}: {reason}", hint=hint) from exc


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Raises OSError; IsADirectoryError or EINVAL for anything that is not one."""
    # Without O_NONBLOCK the open of a pipe would wait for a writer for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file, of which at most ``limit`` + 1 bytes are read. Raises OSError."""
    with open_regular(path) as file:
        parts: list[bytes] = []
        left = limit + 1
        while left > 0 and (part := file.read(min(left, BUFFER))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def hash_stream(
    source: BinaryIO, on_bytes: OnBytes | None = None, target: BinaryIO | None = None
) -> tuple[str, int]:
    """The SHA-256 (64 hex digits) and the length of all that ``source`` still gives, written to ``target`` on the way.

    Raises OSError.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    total = 0
    while count := source.readinto(buffer):  # type: ignore[attr-defined]  # every raw and buffered file has it
        part = buffer[:count]
        digest.update(part)
        written = 0
        while target is not None and written < count:
            written += target.write(part[written:])
        total += count
        if on_bytes is not None:
            on_bytes(total)
    if on_bytes is not None and total == 0:
        on_bytes(0)
    return digest.hexdigest(), total


def copy_hashed(source: BinaryIO, path: Path, on_bytes: OnBytes | None = None) -> tuple[str, int]:
    """Write what ``source`` holds to the new file ``path``, synced; its SHA-256 (64 hex digits) and its length.

    Where the file system can share extents between files, nothing is copied, and what is hashed is the clone. A hard
    link would be as fast, but then a later change of the source in place would change the copy too. Raises OSError.
    """
    with open(path, "x+b", buffering=0) as target:
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except (OSError, ValueError):
            result = hash_stream(source, on_bytes, target)
        else:
            result = hash_stream(target, on_bytes)
        os.fsync(target.fileno())
    return result


def write_synced(path: Path, data: bytes) -> Path:
    """Write the new file ``path`` and sync it; ``path`` itself, for a rename to follow. Raises OSError."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextlib.contextmanager
def exclusive_lock(path: Path, *, timeout: float = LOCK_TIMEOUT) -> Generator[None, None, None]:
    """Hold the lock file ``path``, against other processes and other threads. Not reentrant.

    Raises RegistryError if it cannot be opened, or is held by somebody else for ``timeout`` seconds.
    """
    with os_errors(f"cannot lock {path}"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + timeout
        pause = 0.001
        while not _try_lock(handle, path):
            if time.monotonic() > deadline:
                raise RegistryError(f"{path} is locked by another process for more than {timeout:g} seconds")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise RegistryError(
            f"cannot lock {path}: {exc.strerror}", hint="its file system may have no locks"
        ) from exc
    return True


class Staging:
    """A folder for files that are not yet what they will be. A context manager; removed at the end, with what is left.

    ``parent`` must exist; the folder is called ``prefix`` and random digits. Those that dead processes left in
    ``parent`` are removed first. Raises RegistryError.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        self._parent = parent
        self._prefix = prefix
        self._handle = -1
        self.path = parent

    def __enter__(self) -> Self:
        with os_errors(f"cannot write to {self._parent}"):
            self.remove_dead(self._parent, self._prefix)
            while not self._claim():
                continue
        return self

    def __exit__(self, *_: object) -> None:
        # An error here would hide the one that brought us here, and the next push or pull tries again.
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._handle)

    def _claim(self) -> bool:
        """Make a folder and lock it; False if somebody took it for a dead one in between."""
        path = self._parent / f"{self._prefix}{secrets.token_hex(8)}"
        os.mkdir(path)
        try:
            handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                self.path, self._handle = path, handle
                return True
        except BlockingIOError:
            pass
        except BaseException:
            os.close(handle)
            shutil.rmtree(path, ignore_errors=True)
            raise
        os.close(handle)
        return False

    @staticmethod
    def remove_dead(parent: Path, prefix: str) -> None:
        """Remove the staging folders in ``parent`` whose processes are gone. Raises OSError if it cannot be listed."""
        for entry in os.scandir(parent):
            if not entry.name.startswith(prefix) or not entry.is_dir(follow_symlinks=False):
                continue
            try:
                handle = os.open(Path(entry.path, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                # Its owner died, or is, between making the folder and making the lock. The latter tries again.
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)
                continue
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            os.close(handle)

"""Files as the registry handles them: hashed while copied, durable before visible, locked between processes.

Three rules hold for everything that is written here.

1. New content is written into a *staging folder* on the same file system, synced, and moved to its place by one rename;
   the folder that received it is synced after that.
2. A staging folder belongs to a living process as long as that process holds the lock of the file ``lock`` in it. The
   kernel drops the lock with the process, however it dies, so whoever can take the lock may take or remove the folder.
3. Every operating system error becomes a RegistryError that says what could not be done and why, and is its cause.
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
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, Protocol, Self

from dcz.errors import RegistryError

__all__ = [
    "Staging",
    "copy_hashed",
    "exclusive_lock",
    "finish_copy",
    "hash_stream",
    "open_regular",
    "os_errors",
    "os_hint",
    "read_bounded",
    "write_synced",
]

OnBytes = Callable[[int], None]

BUFFER: Final = 1 << 20
LOCK_TIMEOUT: Final = (
    60.0  # seconds; the lock is held for a few syncs and renames, never while data is copied
)

_FICLONE: Final = 0x40049409  # linux/fs.h: share the extents of another file, copy on write
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def os_hint(exc: OSError) -> str | None:
    """What to do when the operating system refuses, if there is anything."""
    from dcz.format.atomic import FULL  # which takes long to import, and hashing does not need it

    if exc.errno in FULL:
        return "free some space and try again; nothing was left half-written"
    if exc.errno in _DENIED:
        return "the folder may be read-only, or belong to somebody else"
    return None


@contextlib.contextmanager
def os_errors(action: str, path: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Turn an OSError inside into a RegistryError: "cannot write to", "/x", and why.

    The OSError is its cause and names ``path``, for those who want to know errno and file.
    """
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        exc.filename, exc.filename2 = os.fspath(path), None  # not the staged file, which nobody knows
        raise RegistryError(f"{action} {os.fspath(path)}: {reason}", hint=os_hint(exc)) from exc


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


class _Hash(Protocol):
    """As those of hashlib."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


NewHash = Callable[[], _Hash]


class _Hashing:
    """Digest and length of all that it is fed."""

    def __init__(self, on_bytes: OnBytes | None, new: NewHash, piece: int = BUFFER) -> None:
        self._digest = new()
        self._piece = piece
        self._total = 0
        self._on_bytes = on_bytes

    def feed(self, source: BinaryIO, target: BinaryIO | None = None) -> None:
        """All that ``source`` still gives, written to ``target`` on the way.

        What is long is hashed by another thread, while this one reads and writes.
        """
        buffers = [memoryview(bytearray(self._piece)) for _ in range(2)]
        with contextlib.ExitStack() as stack:
            pool: ThreadPoolExecutor | None = None
            hashed: list[Future[None]] = []
            while count := source.readinto(buffers[0]):  # type: ignore[attr-defined]  # every raw and buffered file has it
                part = buffers[0][:count]
                if pool is None and count == self._piece:
                    pool = stack.enter_context(ThreadPoolExecutor(1))
                if pool is None:
                    self._digest.update(part)
                else:
                    hashed.append(pool.submit(self._digest.update, part))
                written = 0
                while target is not None and written < count:
                    written += target.write(part[written:])
                self._total += count
                if self._on_bytes is not None:
                    self._on_bytes(self._total)
                if len(hashed) == 2:
                    hashed.pop(0).result()  # of the other buffer, which is filled next
                buffers.reverse()
            for each in hashed:
                each.result()

    def result(self) -> tuple[str, int]:
        if self._on_bytes is not None and self._total == 0:
            self._on_bytes(0)
        return self._digest.hexdigest(), self._total


def hash_stream(
    source: BinaryIO,
    on_bytes: OnBytes | None = None,
    new: NewHash = hashlib.sha256,
    *,
    piece: int = BUFFER,
) -> tuple[str, int]:
    """The digest (SHA-256 in hex, or what ``new`` makes) and the length of all that ``source`` still gives.

    ``piece``: bytes that are read at once. Raises OSError.
    """
    hashing = _Hashing(on_bytes, new, piece)
    hashing.feed(source)
    return hashing.result()


def copy_hashed(source: BinaryIO, path: Path, on_bytes: OnBytes | None = None) -> tuple[str, int]:
    """Write what ``source`` holds to the new file ``path``, synced; its SHA-256 (64 hex digits) and its length.

    Where the file system can share extents between files, nothing is copied, and what is hashed is the clone. A hard
    link would be as fast, but then a later change of the source in place would change the copy too. Raises OSError.
    """
    with open(path, "x+b", buffering=0) as target:
        return _copy(source, target, on_bytes, hashlib.sha256)


def _copy(source: BinaryIO, target: BinaryIO, on_bytes: OnBytes | None, new: NewHash) -> tuple[str, int]:
    hashing = _Hashing(on_bytes, new)
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except (OSError, ValueError):  # a stream from elsewhere has no number, and says so by an OSError
        hashing.feed(source, target)
    else:
        hashing.feed(target)
    os.fsync(target.fileno())
    return hashing.result()


def finish_copy(
    source: BinaryIO,
    path: Path,
    encoded: str,
    on_bytes: OnBytes | None = None,
    new: NewHash = hashlib.sha256,
) -> tuple[str, int]:
    """As copy_hashed, but an earlier try may have left the beginning of the copy, or all of it, in ``path``.

    What is there is hashed, and the rest copied. If the whole has not the digest ``encoded`` (SHA-256, or what ``new``
    makes), it is copied again from the beginning, once: what was damaged on the way may come whole. Raises OSError.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "r+b", buffering=0) as target:
        if there := os.fstat(handle).st_size:
            hashing = _Hashing(on_bytes, new)
            hashing.feed(target)
            source.seek(there)
            hashing.feed(source, target)
            result = hashing.result()
            os.fsync(handle)
        else:
            result = _copy(source, target, on_bytes, new)
        if result[0] != encoded:
            source.seek(0)
            target.seek(0)
            target.truncate()
            result = _copy(source, target, on_bytes, new)
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
    with os_errors("cannot lock", path):
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
        _unlock(handle)


def _unlock(handle: int) -> None:
    """Give up a lock and close its file. Closing alone would leave it to children that were forked meanwhile."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _try_lock(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        exc.filename = os.fspath(path)
        raise RegistryError(
            f"cannot lock {path}: {exc.strerror}", hint="its file system may have no locks"
        ) from exc
    return True


class Staging:
    """A folder for files that are not yet what they will be. A context manager; removed at the end, with what is left.

    ``parent`` must exist; the folder is called ``prefix`` and random digits. Those that dead processes left in
    ``parent`` are removed first, but for one that holds some of the ``wanted`` files: it is taken over, with those.
    Whether they are whole, or right, is not known. Raises RegistryError.
    """

    def __init__(self, parent: Path, prefix: str, *, wanted: Collection[str] = ()) -> None:
        self._parent = parent
        self._prefix = prefix
        self._wanted = wanted
        self._handle = -1
        self._kept = False
        self.path = parent

    def keep(self) -> None:
        """Leave what is in it to a later one that wants it, as if the process had been killed."""
        self._kept = True

    def __enter__(self) -> Self:
        with os_errors("cannot write to", self._parent):
            self._take_dead()
            while self._handle < 0 and not self._claim():
                continue
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept:
            _unlock(self._handle)
        else:
            _remove(self.path, self._handle)

    @staticmethod
    def remove_dead(parent: Path, prefix: str) -> None:
        """Remove the staging folders in ``parent`` whose processes are gone. Raises OSError if it cannot be listed."""
        Staging(parent, prefix)._take_dead()

    def _take_dead(self) -> None:
        for entry in list(os.scandir(self._parent)):
            if not entry.name.startswith(self._prefix) or not entry.is_dir(follow_symlinks=False):
                continue
            folder = Path(entry.path)
            handle = _lock_of_dead(folder)
            if handle is None:
                continue
            if self._handle < 0 and self._is_of_use(folder):
                self.path, self._handle = folder, handle
            else:
                _remove(folder, handle)

    def _is_of_use(self, folder: Path) -> bool:
        """Whether a folder of the dead holds a wanted file. If so, nothing else is left in it."""
        found: set[str] = set()
        if self._wanted:
            with contextlib.suppress(OSError):
                if os.lstat(folder).st_uid == os.geteuid():
                    found = {entry.name for entry in os.scandir(folder) if _is_ours(entry)} & set(
                        self._wanted
                    )
        if found:
            _clear(folder, keep=found)
        return bool(found)

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


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file that nobody else has put there, and that is no file of anybody's elsewhere."""
    info = entry.stat(follow_symlinks=False)
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid == os.geteuid()


def _remove(folder: Path, handle: int) -> None:
    """Remove a staging folder whose lock is ``handle``, and give that up.

    The lock goes last: without it, nobody could tell that the rest is not of somebody who has just begun. An error here
    would hide the one that brought us here, and the next push or pull tries again.
    """
    _clear(folder)
    shutil.rmtree(folder, ignore_errors=True)
    _unlock(handle)


def _clear(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove all that can be removed from a staging folder, but for its lock and what is to be kept."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name == "lock" or entry.name in keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _lock_of_dead(folder: Path) -> int | None:
    """The lock of a staging folder, now ours; None if its owner lives, or if there is nothing left of the folder."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        # Its owner died, or is, between making the folder and making the lock. The latter tries again.
        with contextlib.suppress(OSError):
            os.rmdir(folder)
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:
            return handle
    except OSError:
        pass
    os.close(handle)
    return None

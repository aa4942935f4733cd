"""Where bytes come from: the one thin layer of reading. Every source gives any range of its bytes, or fails clearly."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, cast

from dcz.errors import FormatError, TruncatedFile, UsageError
from dcz.format.dtypes import view_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from dcz.format.dtypes import Buffer

__all__ = ["ByteSource", "SourceLike", "open_source"]

SourceLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"


class ByteSource(Protocol):
    """Random access to a fixed sequence of bytes, from any thread."""

    name: str
    size: int

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from ``offset`` on. Raises TruncatedFile if the bytes are not there."""
        ...

    def close(self) -> None: ...


class _FileSource:
    """A file on this machine. It is read, not mapped: a mapped file that somebody cuts off kills the process."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = os.fstat(self._fd)
            if os.path.isdir(path):
                raise UsageError(f"{path} is a directory", hint="give the .dcz file in it")
            self.size = info.st_size
        except BaseException:
            self.close()
            raise

    def read_into(self, offset: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(self._fd, [out[done:]], offset + done)
            if count == 0:
                raise TruncatedFile(f"the file ends at {offset + done}", offset=offset + done)
            done += count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class _BytesSource:
    """Bytes in memory."""

    def __init__(self, data: Buffer) -> None:
        self.name = "<bytes>"
        self._view = view_of(data).cast("B")
        self.size = len(self._view)

    def read_into(self, offset: int, out: memoryview) -> None:
        piece = self._view[offset : offset + len(out)]
        if len(piece) != len(out):
            raise TruncatedFile(f"the data end at {self.size}", offset=self.size)
        out[:] = piece

    def close(self) -> None:
        self._view = memoryview(b"")


class _StreamSource:
    """A seekable binary file object; the caller's if ``owned`` is False. One reader at a time moves its position."""

    def __init__(self, file: BinaryIO, name: str, *, owned: bool) -> None:
        self.name = name
        self._file = file
        self._owned = owned
        self._lock = threading.Lock()
        self.size = file.seek(0, io.SEEK_END)

    def read_into(self, offset: int, out: memoryview) -> None:
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(out):
                piece = self._file.read(len(out) - done)
                if not piece:
                    raise TruncatedFile(f"the file ends at {offset + done}", offset=offset + done)
                out[done : done + len(piece)] = piece
                done += len(piece)

    def close(self) -> None:
        if self._owned:
            self._file.close()


def _open_url(url: str) -> ByteSource:
    import fsspec

    try:
        # Each read asks for just the range it needs; a cache of fsspec's would fetch more, or keep what was fetched.
        file = cast("Any", fsspec.open(url, "rb", cache_type="none")).open()
    except (ValueError, ImportError) as exc:
        raise UsageError(f"cannot open {url}: {exc}") from exc
    return _StreamSource(cast("BinaryIO", file), url, owned=True)


def open_source(source: SourceLike) -> ByteSource:
    """A path, an fsspec URL (``scheme://...``), bytes or a seekable binary file object as a ByteSource.

    Raises OSError as ``open`` does, and UsageError for what cannot be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _BytesSource(source)
    if isinstance(source, str) and "://" in source:
        return _open_url(source)
    if isinstance(source, str | os.PathLike):
        return _FileSource(os.fspath(source))
    if not (hasattr(source, "read") and hasattr(source, "seek")):
        raise UsageError(
            f"cannot read from {type(source).__name__}", hint="give a path, a URL, bytes or a binary file"
        )
    return _StreamSource(source, str(getattr(source, "name", "<file object>")), owned=False)


@contextlib.contextmanager
def located(source: ByteSource, tensor: str | None = None, offset: int | None = None) -> Generator[None]:
    """Format errors from inside say which file, tensor and offset they are about."""
    try:
        yield
    except FormatError as exc:
        exc.locate(file=source.name, tensor=tensor, offset=offset)
        raise

"""Where bytes come from: the one thin layer of reading. Every source gives any range of its bytes, or fails clearly."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, TypeAlias, cast, runtime_checkable

from dcz.errors import DczError, FormatError, MissingDependency, TruncatedFile, UsageError
from dcz.format.dtypes import view_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from dcz.format.dtypes import Buffer

__all__ = ["ByteSource", "SourceLike", "open_source", "url_scheme"]

SourceLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | ByteSource"


_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FETCH: Final = "fetch the whole file, and open that"


@runtime_checkable
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
        # Without O_NONBLOCK the opening of a pipe would wait for a writer.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(self._fd)
            if stat.S_ISDIR(info.st_mode):
                raise UsageError(f"{path} is a directory", hint="give the .dcz file in it")
            if not stat.S_ISREG(info.st_mode):
                raise UsageError(f"{path} is not a regular file, and cannot be read at random")
            self.size = info.st_size
        except BaseException:
            self.close()
            raise

    def read_into(self, offset: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(self._fd, [out[done:]], offset + done)
            if count == 0:
                raise TruncatedFile(f"the file ends before {offset + len(out)}", offset=offset + done)
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
        try:
            self.size = file.seek(0, io.SEEK_END)
        except (ValueError, OSError) as exc:
            self.close()
            raise UsageError(f"{name} cannot be read at random: {exc}", hint=_FETCH) from exc

    def read_into(self, offset: int, out: memoryview) -> None:
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(out):
                piece = self._file.read(len(out) - done)
                if not piece:
                    raise TruncatedFile(f"the file ends before {offset + len(out)}", offset=offset + done)
                out[done : done + len(piece)] = piece
                done += len(piece)

    def close(self) -> None:
        if self._owned:
            self._file.close()


@contextlib.contextmanager
def _remote(url: str) -> Generator[None]:
    """What goes wrong with a URL is an OSError that names it; each protocol of fsspec has exceptions of its own."""
    try:
        yield
    except DczError:
        raise
    except Exception as exc:
        # fsspec calls a page that it is not given, for whatever reason, a file that is not found; the cause knows more.
        cause = exc.__cause__ if isinstance(exc, FileNotFoundError) and exc.__cause__ is not None else exc
        missing = isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404
        code, reason = (errno.ENOENT, None) if missing else (errno.EIO, str(cause))
        raise OSError(code, reason or os.strerror(code), url) from exc


class _UrlSource:
    """A file that fsspec opens: whatever ``scheme://`` it knows."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.name = url
        try:
            with _remote(url):
                # Each read asks for just the range it needs; a cache of fsspec's would fetch more, or keep what was fetched.
                file = cast("Any", fsspec.open(url, "rb", cache_type="none")).open()
        except OSError as exc:
            scheme = url.partition("://")[0]
            if isinstance(exc.__cause__, ImportError) and scheme in ("http", "https"):
                raise MissingDependency("aiohttp", needed_for=f"reading {scheme} URLs", extra="http") from exc
            if isinstance(exc.__cause__, ValueError | ImportError):
                raise UsageError(f"cannot open {url}: {exc.__cause__}") from exc
            raise
        self._file = _StreamSource(cast("BinaryIO", file), url, owned=True)
        self.size = self._file.size

    def read_into(self, offset: int, out: memoryview) -> None:
        with _remote(self.name):
            try:
                self._file.read_into(offset, out)
            except ValueError as exc:  # what fsspec raises for a server that sends nothing but the whole
                raise UsageError(
                    f"{self.name} cannot be read at random: its server gives no ranges", hint=_FETCH
                ) from exc

    def close(self) -> None:
        self._file.close()


def check_local(target: str | os.PathLike[str]) -> None:
    """Raises UsageError for what is no folder of this machine, such as ``hf://org/name``."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", os.fspath(target))
    if match is not None:
        hint = "push it there: `dcz push FOLDER REF`, or dcz.push_to_hub" if match[1] == "hf" else None
        raise UsageError(f"{os.fspath(target)!r} is no folder on this machine", hint=hint)


def url_scheme(text: str) -> str | None:
    """The scheme of a URL, such as ``https``; None for what is a path or a name."""
    found = _URL.match(text)
    return found[1].lower() if found else None


def open_source(source: SourceLike) -> ByteSource:
    """A path, an fsspec URL (``scheme://...``), bytes or a seekable binary file object as a ByteSource; one is taken as it is.

    Raises OSError as ``open`` does, UsageError for what cannot be read, MissingDependency for a protocol that needs more.
    """
    if isinstance(source, ByteSource):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return _BytesSource(source)
    if isinstance(source, str) and url_scheme(source) is not None:
        return _UrlSource(source)
    if isinstance(source, str | os.PathLike):
        return _FileSource(os.fspath(source))
    text = isinstance(cast("object", source), io.TextIOBase)
    if text or not (hasattr(source, "read") and hasattr(source, "seek")):
        raise UsageError(
            f"cannot read from {type(source).__name__}", hint="give a path, a URL, bytes or a binary file"
        )
    return _StreamSource(source, str(getattr(source, "name", "<file object>")), owned=False)


class located:  # used as a function, and too often for a generator
    """Format errors from inside say which file, tensor and offset they are about."""

    __slots__ = ("_offset", "_source", "_tensor")

    def __init__(self, source: ByteSource, tensor: str | None = None, offset: int | None = None) -> None:
        self._source, self._tensor, self._offset = source, tensor, offset

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(value, FormatError):
            value.locate(file=self._source.name, tensor=self._tensor, offset=self._offset)

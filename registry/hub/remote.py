"""Files of a commit, read over the wire: as a stream that goes on where it broke off, and as ranges at random."""

from __future__ import annotations

import io
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from dcz.errors import TruncatedFile
from dcz.registry.hub.connection import Connection, Garbled, Refused
from dcz.registry.hub.snapshot import HubFile, Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import WriteableBuffer

__all__ = ["RangeSource", "RemoteFile", "resolve_url"]

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_PROGRESS: Final = 256 << 10  # bytes of one answer that count as getting further
_FILE_HEADERS: Final = {"Accept-Encoding": "identity", "X-HF-Download-Counter": "1"}


def resolve_url(connection: Connection, snapshot: Snapshot, file: HubFile) -> str:
    """Where the Hub hands a file out, or says who does."""
    return connection.own_url(
        f"{snapshot.repository}/resolve/{snapshot.commit}/{urllib.parse.quote(file.path)}"
    )


def _start(status: int, headers: Mapping[str, str], start: int, end: int, size: int) -> int:
    """The place in the file where an answer to a request for ``start`` to ``end`` begins. Raises Garbled."""
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if match is None or (int(match[1]), int(match[2]) + 1, int(match[3])) != (start, end, size):
            raise Garbled(f"the range is not bytes {start}-{end - 1} of {size}")
        return start
    length = headers.get("content-length")
    if length is not None and length != str(size):
        raise Garbled(f"the file has {length[:20]} bytes, not {size}")
    return 0


class RemoteFile(io.RawIOBase):
    """A file of a commit as a binary stream. Where a connection breaks, the next goes on.

    The content is not compared with anything. Raises RegistryError.
    """

    def __init__(self, connection: Connection, snapshot: Snapshot, file: HubFile) -> None:
        self._connection = connection
        self._file = file
        self._what = f"{snapshot.reference}, {file.path}"
        self._url = resolve_url(connection, snapshot, file)
        self._at = 0
        self._stack = ExitStack()
        self._pieces: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._attempts = connection.attempts()
        self._since = 0  # bytes since something went wrong

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if at != self._at:
            self._hang_up()
        self._at = at
        return at

    def close(self) -> None:
        if not self.closed:
            self._hang_up()
        super().close()

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer, but for the end of the file."""
        out = memoryview(buffer).cast("B")
        done, left = 0, max(0, self._file.size - self._at)
        while done < min(len(out), left):
            if not self._rest:
                self._rest = memoryview(self._next())
            count = min(len(self._rest), len(out) - done, left - done)
            out[done : done + count] = self._rest[:count]
            self._rest = self._rest[count:]
            done += count
            self._at += count
        return done

    def _next(self) -> bytes | memoryview:
        while True:
            try:
                if self._pieces is None:
                    self._dial()
                    if self._rest:
                        return self._rest
                assert self._pieces is not None
                piece = next(self._pieces, b"")
                if not piece:
                    raise ConnectionError("the answer ends before the file does")
                self._since += len(piece)
                if self._since >= _PROGRESS:
                    self._attempts.progress()
                return piece
            except Exception as exc:  # noqa: BLE001 - what `failure` does not know, it raises again
                self._hang_up()
                self._since = 0
                self._attempts.wait(self._connection.failure(exc, self._what))
            except BaseException:
                self._hang_up()
                raise

    def _dial(self) -> None:
        start, size = self._at, self._file.size
        headers = dict(_FILE_HEADERS)
        if start:
            headers["Range"] = f"bytes={start}-"
        response, _ = self._stack.enter_context(self._connection.answer(self._url, headers=headers))
        skip = start - _start(response.status_code, response.headers, start, size, size)
        self._pieces = self._connection.pieces(response)
        while skip > 0:  # the server knows no ranges
            piece = next(self._pieces, b"")
            if not piece:
                raise ConnectionError("the answer ends before the file does")
            self._rest = memoryview(piece)[skip:]
            skip -= len(piece)

    def _hang_up(self) -> None:
        self._pieces, self._rest = None, memoryview(b"")
        stack, self._stack = self._stack, ExitStack()
        stack.close()


class RangeSource:
    """A file of a commit as a ``dcz.format.source.ByteSource``: each read is a request for just its range.

    The URL that the Hub signs is used again until it is refused. The content is not compared with anything: a Reader does
    that. Raises RegistryError.
    """

    def __init__(self, connection: Connection, snapshot: Snapshot, file: HubFile) -> None:
        self.name = f"{snapshot.reference}/{file.path}"
        self.size = file.size
        self._connection = connection
        self._url = resolve_url(connection, snapshot, file)
        self._signed: str | None = None
        self._lock = threading.Lock()

    def read_into(self, offset: int, out: memoryview) -> None:
        if offset + len(out) > self.size:
            raise TruncatedFile(f"the file ends at {self.size}", offset=self.size)
        if len(out):
            self._connection.trying(self.name, lambda: self._once(offset, out))

    def _once(self, offset: int, out: memoryview) -> None:
        with self._lock:
            signed = self._signed
        end = offset + len(out)
        headers = {**_FILE_HEADERS, "Range": f"bytes={offset}-{end - 1}"}
        try:
            with self._connection.answer(signed or self._url, headers=headers) as (response, url):
                self._fill(response, offset, out)
        except Refused:
            with self._lock:
                self._signed = None
            if signed is None:
                raise
            self._once(offset, out)  # it has expired
            return
        if not self._connection.is_own(url):
            with self._lock:
                self._signed = url

    def _fill(self, response: object, offset: int, out: memoryview) -> None:
        status, headers = response.status_code, response.headers  # type: ignore[attr-defined]
        skip = offset - _start(status, headers, offset, offset + len(out), self.size)
        done = 0
        for piece in self._connection.pieces(response):
            part = memoryview(piece)[skip:] if skip > 0 else memoryview(piece)
            skip -= len(piece) - len(part)
            part = part[: len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            if done == len(out):
                return
        raise ConnectionError("the answer ends before the range does")

    def close(self) -> None:
        return

"""HTTP/1.1 on the loopback interface: requests read, answers written, faults put in between. Standard library only."""

from __future__ import annotations

import contextlib
import email.message
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Final

from tests.hub.faults import Fault, Faults, Log, Record
from tests.hub.state import Refusal

__all__ = ["Answer", "Link", "Origin", "Part", "Request"]

_PIECE: Final = 1 << 20
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file, to be sent from where they lie."""

    path: Path
    start: int
    length: int


@dataclass(slots=True)
class Answer:
    status: int = 200
    body: bytes | Part = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, tree: object, status: int = 200, **headers: str) -> Answer:
        return cls(status, json.dumps(tree).encode(), {"Content-Type": "application/json", **headers})


class _Body:
    """The body of a request, whose length is given or which comes in chunks."""

    def __init__(self, file: BinaryIO, headers: email.message.Message) -> None:
        self._file = file
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = int(headers.get("Content-Length") or 0)
        self.received = 0

    def pieces(self) -> Iterator[memoryview]:
        """What is still to come, one piece after the other; each is gone with the next."""
        buffer = memoryview(bytearray(_PIECE))
        while True:
            if self._chunked and self._left == 0:
                self._left = int(self._file.readline(100).split(b";")[0] or b"0", 16)
                if self._left == 0:
                    while self._file.readline(1000).strip():
                        continue
                    self._chunked = False
            if self._left == 0:
                return
            count = self._file.readinto(buffer[: min(self._left, _PIECE)])  # type: ignore[attr-defined]
            if not count:
                raise ConnectionError("the client has gone")
            self._left -= count
            self.received += count
            yield buffer[:count]
            if self._chunked and self._left == 0:
                self._file.readline(100)

    def read(self) -> bytes:
        return b"".join(bytes(piece) for piece in self.pieces())

    def save(self, path: Path) -> str:
        """Write it to a file; the SHA-256."""
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            for piece in self.pieces():
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()


@dataclass(slots=True)
class Request:
    """``parts`` are those of the path, unquoted; ``query`` has the last value of each key."""

    method: str
    target: str
    parts: tuple[str, ...]
    query: Mapping[str, str]
    headers: email.message.Message
    body: _Body

    def json(self) -> Any:
        return json.loads(self.body.read() or b"{}")

    def range_of(self, size: int) -> tuple[int, int] | None:
        """First byte and length that the header Range asks for; None for all of it. Raises Refusal (416)."""
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            return None
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= size or end <= start:
            raise Refusal(416, "Range Not Satisfiable")
        return start, end - start


class Link:
    """The line that all connections share: ``rate`` bytes a second, None for all that the machine can."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._lock = threading.Lock()
        self._free = 0.0

    def pass_on(self, count: int) -> None:
        """Wait as long as so many bytes take."""
        if (rate := self.rate) is None:
            return
        with self._lock:
            now = time.monotonic()
            # What was idle for a moment may catch up: sleeping is not exact.
            self._free = max(self._free, now - 0.02) + count / rate
            pause = self._free - now
        if pause > 0:
            time.sleep(pause)


class Origin(ThreadingHTTPServer):
    """A server of its own on a free port. ``route`` makes the answers."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        name: str,
        host: str,
        route: Callable[[Request], Answer],
        faults: Faults,
        log: Log,
        link: Link,
    ) -> None:
        super().__init__((host, 0), _Handler)
        self.name, self.route, self.faults, self.log = name, route, faults, log
        self.link = link
        self.stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        self.close_request(request)  # no shutdown before it, which would make a FIN of every reset

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


class _Cut(Exception):
    """The connection is to end here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin
    _record: Record
    _began: bool  # to answer

    def log_message(self, format: str, *args: object) -> None:
        return

    def _serve(self) -> None:
        target = urllib.parse.urlsplit(self.path)
        parts = tuple(urllib.parse.unquote(part) for part in target.path.split("/")[1:])
        query = dict(urllib.parse.parse_qsl(target.query, keep_blank_values=True))
        body = _Body(self.rfile, self.headers)  # type: ignore[arg-type]
        self._began = False
        names = {name.lower(): value for name, value in self.headers.items()}
        self._record = Record(self.server.name, self.command or "", self.path, names)
        self.server.log.add(self._record)  # at once: a client may be done before we are
        try:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            self._answer(Request(self.command or "", self.path, parts, query, self.headers, body))
        except (_Cut, OSError):
            self.close_connection = True
        finally:
            self._record.received = body.received

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _answer(self, request: Request) -> None:
        fault = self.server.faults.take(request.method, request.target)
        if fault is not None and fault.kind == "reset" and fault.after is None:
            self._reset()
        if fault is not None and fault.kind == "status":
            for _ in request.body.pieces():
                continue
            self._send(request, Answer(fault.status, b"told to fail", dict(fault.headers)), None)
            return
        if fault is not None and fault.kind == "no-ranges":
            del request.headers["Range"]
        try:
            answer = self.server.route(request)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            answer = Answer.json({"error": refusal.message, **refusal.body}, refusal.status, **headers)
        for _ in request.body.pieces():  # what the route had no use for
            continue
        if fault is not None and fault.kind == "lost":
            self._reset()
        self._send(request, answer, fault)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Cut

    def _send(self, request: Request, answer: Answer, fault: Fault | None) -> None:
        body = answer.body
        length = body.length if isinstance(body, Part) else len(body)
        if fault is not None and fault.kind == "short" and fault.after is not None:
            length = min(length, fault.after)
        self._record.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if request.method == "HEAD":
            # A redirect has no body, and the length of a file is that of the answer to a GET.
            self.send_header("Content-Length", str(0 if 300 <= answer.status < 400 else length))
            self.end_headers()
            return
        self.send_header("Content-Length", str(length))
        self.end_headers()
        stop = length
        if fault is not None and fault.kind in ("reset", "fin", "stall") and fault.after is not None:
            stop = min(length, fault.after)
        self._send_body(body, stop, fault)
        if stop < length and fault is not None:
            if fault.kind == "stall":
                self.server.stopped.wait(fault.seconds)
            elif fault.kind == "reset":
                self._reset()
            raise _Cut

    def _send_body(self, body: bytes | Part, stop: int, fault: Fault | None) -> None:
        """The first ``stop`` bytes, of which one may be wrong."""
        if isinstance(body, bytes):
            self.wfile.write(body[:stop])
            self._record.sent += stop
            self.server.link.pass_on(stop)
            return
        flip = fault.after if fault is not None and fault.kind == "flip" else None
        piece = _PIECE if self.server.link.rate is None else 1 << 14
        with open(body.path, "rb", buffering=0) as file:
            sent = 0
            while sent < stop:
                at, count = body.start + sent, min(piece, stop - sent)
                if flip is not None and at <= flip < at + count:
                    wrong = bytearray(os.pread(file.fileno(), count, at))
                    wrong[flip - at] ^= 1
                    self.wfile.write(wrong)
                else:
                    count = os.sendfile(self.connection.fileno(), file.fileno(), at, count)
                sent += count
                self._record.sent += count
                self.server.link.pass_on(count)

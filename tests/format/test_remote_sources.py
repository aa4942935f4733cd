"""Files behind URLs: a real server on the loopback interface, with ranges and without, and what it may answer."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dcz.errors import MissingDependency, UsageError
from dcz.format import Reader, Writer

SHAPE = (4096, 256)


class _Handler(http.server.BaseHTTPRequestHandler):
    content = b""
    sent: list[int]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        status = int(self.path[1:4])
        ranges = "no-ranges" not in self.path
        if status != 200:
            self.send_error(status)
            return
        start, stop = 0, len(self.content)
        wanted = self.headers.get("Range") if ranges else None
        if wanted is not None:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(stop, int(last) + 1)
        piece = self.content[start:stop]
        self.send_response(206 if wanted else 200)
        if wanted is not None:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.content)}")
        if ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if body:
            self.wfile.write(piece)
            self.sent.append(len(piece))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: np.ndarray) -> Iterator[tuple[str, list[int]]]:
    """Its address, and how many bytes each answer had."""
    path = tmp_path_factory.mktemp("served") / "m.dcz"
    with Writer(path) as writer:
        writer.add_tensor("w", weights)
        writer.add_tensor("small", np.arange(10, dtype=np.int16))
        writer.add_asset("notes.txt", b"some notes")
    _Handler.content, _Handler.sent = path.read_bytes(), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", _Handler.sent
        served.shutdown()
        thread.join()


def test_only_what_is_needed_is_fetched(server: tuple[str, list[int]], weights: np.ndarray) -> None:
    address, sent = server
    sent.clear()
    with Reader(f"{address}/200/m.dcz") as reader:
        assert reader.read("small").tolist() == list(range(10))
        assert reader.read_asset("notes.txt") == b"some notes"
        assert sum(sent) < 100_000
        assert np.array_equal(reader.tensor("w")[100:103], weights[100:103])
        assert sum(sent) < 2 << 20
        assert len(sent) <= 5
        assert np.array_equal(reader.read("w"), weights)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/404/m.dcz", FileNotFoundError, os.strerror(2)),
        ("/403/m.dcz", OSError, "403"),
        ("/500/m.dcz", OSError, "500"),
    ],
)
def test_what_a_server_refuses_is_said(
    server: tuple[str, list[int]], path: str, error: type[OSError], message: str
) -> None:
    with pytest.raises(error) as caught:
        Reader(server[0] + path)
    assert caught.value.filename == server[0] + path
    assert message in str(caught.value.strerror)


def test_a_server_without_ranges(server: tuple[str, list[int]]) -> None:
    with pytest.raises(UsageError, match="cannot be read at random") as caught:
        Reader(f"{server[0]}/200/no-ranges/m.dcz")
    assert caught.value.hint is not None


def test_nobody_answers() -> None:
    url = "http://127.0.0.1:9/m.dcz"
    with pytest.raises(OSError, match=r"Cannot connect|Connect call failed") as caught:
        Reader(url)
    assert caught.value.filename == url


def test_unknown_protocols_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot open nosuch://x/m"):
        Reader("nosuch://x/m.dcz")

    def without_aiohttp(*_: object, **__: object) -> None:
        raise ImportError("HTTPFileSystem requires something")

    monkeypatch.setattr("fsspec.open", without_aiohttp)
    with pytest.raises(MissingDependency, match=r"pip install 'dcz\[http\]'"):
        Reader("https://127.0.0.1/m.dcz")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcz")
    with pytest.raises(UsageError, match="is not a regular file"):
        Reader(tmp_path / "pipe.dcz")
    with pytest.raises(UsageError, match="is a directory"):
        Reader(tmp_path)
    with pytest.raises(UsageError, match="cannot be read at random"), os.fdopen(os.pipe()[0], "rb") as pipe:
        Reader(pipe)

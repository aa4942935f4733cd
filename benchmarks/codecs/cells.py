"""The parts of the measurement, each of which is run in a process of its own: what one peer breaks stays its own affair."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.codecs import corruption, speed
from benchmarks.codecs.dcz_peers import DCZ_PEERS
from benchmarks.codecs.peer import Peer
from benchmarks.codecs.peers import PEERS
from benchmarks.codecs.sparse import SPARSE_PEERS
from benchmarks.codecs.weights import Weights

__all__ = ["ALL_PEERS", "CELLS", "SEED"]

ALL_PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in (*DCZ_PEERS, *PEERS, *SPARSE_PEERS)}
SEED: Final = 20151001  # of the mutations; the month of the Deep Compression paper


def _one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _speed(peer: str, weights: Weights, *, quick: bool) -> dict[str, Any]:
    _one_core()
    return speed.measure(ALL_PEERS[peer], weights, once=quick)


def _loading(peer: str, weights: Weights, *, quick: bool) -> dict[str, Any]:
    from benchmarks.codecs.loading import measure_loading

    effort, threads = peer.split(",")
    return measure_loading(weights, effort, int(threads), once=quick)


def _encoded(peer: Peer, weights: Weights) -> bytes:
    """Made in another process: a library's threads would not survive the forks that follow."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream"
        pid = os.fork()
        if pid == 0:
            try:
                path.write_bytes(peer.stream(peer.encode(peer.prepare(weights), weights)))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        return path.read_bytes()


def _corruption(peer: str, weights: Weights, *, quick: bool) -> dict[str, Any]:
    codec = ALL_PEERS[peer]
    codec.load()
    stream = _encoded(codec, weights)
    expected = weights.data

    def decode(damaged: bytes) -> np.ndarray:
        return codec.decoded(codec.decoder(damaged, weights)(), weights)

    # The control: what is not damaged is decoded rightly, in the same surroundings.
    if corruption.classify(decode, [stream], expected)["same"] != 1:
        raise RuntimeError(f"{peer}: the undamaged stream is not decoded")
    inputs = list(corruption.mutations(stream, SEED))
    counts = corruption.classify(decode, inputs[::10] if quick else inputs, expected)
    return {**counts, "stream_bytes": len(stream)}


CELLS: Final[Mapping[str, Callable[..., dict[str, Any]]]] = {
    "speed": _speed,
    "loading": _loading,
    "corruption": _corruption,
}

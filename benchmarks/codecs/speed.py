"""One peer on one model: size, exactness, and speed beside memcpy.

Every repetition copies as many bytes as the tensors have, from warm memory to warm memory, and then runs the codec once;
a speed is the median of the ratios of the two times. The process is pinned to one core.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.codecs.peer import Peer
from benchmarks.codecs.weights import Weights

__all__ = ["beside_memcpy", "measure"]

BUDGET: Final = 0.5  # seconds for the repetitions of one figure
LEAST: Final = 3
MOST: Final = 15
SLOW: Final = 1.0  # seconds: what takes longer is run once more after warming up
SLOWEST: Final = 5.0  # seconds: what takes longer is run once


class Memcpy:
    """The ceiling: a copy between two buffers that are in memory already."""

    def __init__(self, size: int) -> None:
        self._source = np.ones(size, np.uint8)
        self._target = np.zeros(size, np.uint8)

    def seconds(self) -> float:
        start = time.perf_counter()
        np.copyto(self._target, self._source)
        return time.perf_counter() - start


def beside_memcpy(
    memcpy: Memcpy, action: Callable[[Any], Any], prepare: Callable[[], Any], *, once: bool
) -> tuple[dict[str, float], Any]:
    """Speed of `action` as a multiple of memcpy's, its seconds and those of memcpy; and its last result.

    `prepare` makes its argument before each run and is not timed. The first run warms up, unless it is very slow.
    """
    ratios: list[float] = []
    seconds: list[float] = []
    copies: list[float] = []

    def one() -> Any:
        argument = prepare()
        copies.append(memcpy.seconds())
        start = time.perf_counter()
        result = action(argument)
        seconds.append(time.perf_counter() - start)
        ratios.append(copies[-1] / seconds[-1])
        return result

    memcpy.seconds()
    result = one()
    if not once and seconds[0] < SLOWEST:
        del ratios[:], seconds[:], copies[:]
        result = None  # two results at a time would be other memory than users have
        result = one()
        if seconds[0] < SLOW:
            for _ in range(min(MOST, max(LEAST, round(BUDGET / seconds[0]))) - 1):
                result = None
                result = one()
    figures = {
        "x_memcpy": statistics.median(ratios),
        "seconds": statistics.median(seconds),
        "memcpy_seconds": statistics.median(copies),
        "repetitions": len(ratios),
    }
    return figures, result


def measure(peer: Peer, weights: Weights, *, once: bool = False) -> dict[str, Any]:
    """All figures of one peer on one model. `once`: a single repetition, for a first look."""
    peer.load()
    memcpy = Memcpy(weights.data.size)
    expected = weights.data.copy()
    out: dict[str, Any] = {"bytes": int(expected.size)}
    figures, encoded = beside_memcpy(
        memcpy, lambda data: peer.encode(data, weights), lambda: peer.prepare(weights), once=once
    )
    stream = peer.stream(encoded)
    del encoded
    if peer.compresses:
        out["encode"] = figures
    out["size"] = len(stream) / expected.size
    decode = peer.decoder(stream, weights)
    out["decode"], result = beside_memcpy(memcpy, lambda _: decode(), lambda: None, once=once)
    out["exact"] = bool(np.array_equal(peer.decoded(result, weights), expected))
    return out

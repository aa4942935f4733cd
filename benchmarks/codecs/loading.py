"""`dcz.load` against safetensors, both ending in memory of their own, from the page cache.

safetensors maps the file, so that loading alone reads nothing; a copy of each tensor puts the weights where `dcz.load` puts
them, too. The two take turns, and each load gets new memory, as the first one in a process does; the figure is the median of
the ratios. Threads are those of both, and cores to run on.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.codecs.dcz_peers import encode_file
from benchmarks.codecs.weights import Weights
from benchmarks.common import fresh_loads, median_ratio

__all__ = ["measure_loading"]

ROUNDS = 9


def measure_loading(weights: Weights, effort: str, threads: int, *, once: bool = False) -> dict[str, Any]:
    """How many times as fast as safetensors, and the seconds of both."""
    import torch
    from safetensors.torch import load_file

    import dcz

    packed = Path(tempfile.mkdtemp()) / "file.dcz"
    encode_file(weights, packed, effort)

    expected, seen = load_file(weights.path), dcz.load(packed)
    exact = expected.keys() == seen.keys() and all(
        torch.equal(expected[k].view(torch.uint8), seen[k].view(torch.uint8)) for k in expected
    )
    del expected, seen
    theirs, mine = fresh_loads(weights.path, packed, threads, 1 if once else ROUNDS)
    return {
        "x_safetensors": median_ratio(theirs, mine),
        "seconds": statistics.median(mine),
        "safetensors_seconds": statistics.median(theirs),
        "bytes": int(weights.data.size),
        "exact": exact,
    }

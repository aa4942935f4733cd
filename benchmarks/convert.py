"""How fast is a lossless conversion on one core? From the page cache, with digests of source and result, synced."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import dcz
from benchmarks.common import Figure, minilm, one_core, seconds

ROUNDS = 7


def run() -> list[Figure]:
    one_core()
    source = minilm() / "model.safetensors"
    source.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        # New names, because replacing a file also pays for giving up the old one.
        outs = [Path(folder) / f"{i}.dcz" for i in range(ROUNDS)]
        times = [seconds(lambda out=out: dcz.convert(source, out, threads=1)) for out in outs]  # type: ignore[misc]
        dcz.verify(outs[0], deep=True)
    speed = source.stat().st_size / 1e9 / statistics.median(times)
    return [Figure("lossless convert, one core, GB/s of input", "0.4", f"{speed:.2f}", speed >= 0.4)]

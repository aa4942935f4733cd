"""How fast is a lossless conversion on one core? From the page cache, with digests of source and result, synced.

Seconds mean little without the machine, so what is measured beside it in the same run is a part of every conversion:
the SHA-256 of the source, which stands in the file's provenance.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from pathlib import Path

import dcz
from benchmarks.common import Figure, alternate, minilm, one_core

ROUNDS = 11


def run() -> list[Figure]:
    one_core()
    source = minilm() / "model.safetensors"
    content = source.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.dcz"

        def convert() -> None:
            dcz.convert(source, out, threads=1)

        def remove() -> None:
            """Apart, because replacing a file also pays for giving up the old one."""
            out.unlink()

        def digest() -> None:
            hashlib.sha256(content)

        times, _, digests = alternate((convert, remove, digest), ROUNDS)
        convert()
        dcz.verify(out, deep=True)
    size = len(content) / 1e9
    speed, limit = (size / statistics.median(seconds) for seconds in (times, digests))
    return [
        Figure(
            "lossless convert, one core, GB/s of input",
            "at least 0.4",
            f"{speed:.2f} (the SHA-256 of the input alone: {limit:.2f})",
            speed >= 0.4,
        )
    ]

"""How fast is `dcz.load` of a bf16 lossless file, against safetensors, on one core, from the page cache?

safetensors maps the file, so loading alone reads nothing; a copy of each tensor puts the weights into memory of their
own, where `dcz.load` puts them, too. Each load gets new memory, as the first one in a process does.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import dcz
from benchmarks.common import Figure, fresh_loads, median_ratio, minilm, one_core

ROUNDS = 11


def run() -> list[Figure]:
    one_core()
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "bf16.safetensors", Path(folder) / "bf16.dcz"
        tensors = load_file(minilm() / "model.safetensors")
        save_file(
            {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()}, plain
        )
        dcz.convert(plain, packed, threads=1)

        expected, seen = load_file(plain), dcz.load(packed, threads=1)
        assert expected.keys() == seen.keys()
        assert all(torch.equal(expected[k].view(torch.uint8), seen[k].view(torch.uint8)) for k in expected)
        peer_times, our_times = fresh_loads(plain, packed, 1, ROUNDS)
        size = plain.stat().st_size / 1e9
        ratio = median_ratio(peer_times, our_times)
        speeds = [size / statistics.median(times) for times in (peer_times, our_times)]
    return [
        Figure(
            "speed of `dcz.load`, bf16 lossless / safetensors load and copy, one core",
            "at least 0.35",
            f"{ratio:.2f} ({speeds[1]:.2f} against {speeds[0]:.2f} GB/s)",
            ratio >= 0.35,
        )
    ]

"""How much memory do convert and decode take, beyond the imports? A synthetic model of 2 GB in 64 tensors."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import Figure, run_python

TENSORS, ELEMENTS = 64, 8 << 20  # float32: 32 MiB each
_MEASURED = """
import resource, sys
import numpy, torch, dcz, dcz.converters, dcz.format, dcz.runtime
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
getattr(dcz, sys.argv[1])(sys.argv[2], sys.argv[3])
print(peak() - before)
"""


def write_model(path: Path) -> None:
    """A safetensors file of normal weights, written tensor by tensor."""
    header, size = {}, ELEMENTS * 4
    for i in range(TENSORS):
        header[f"layer.{i}.weight"] = {
            "dtype": "F32",
            "shape": [ELEMENTS >> 11, 1 << 11],
            "data_offsets": [i * size, (i + 1) * size],
        }
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(TENSORS):
            file.write((rng.standard_normal(ELEMENTS, dtype=np.float32) * np.float32(0.02)).tobytes())


def run() -> list[Figure]:
    allowed = 3 * ELEMENTS * 4 + 100_000_000
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        source, packed, back = (
            Path(folder) / name for name in ("m.safetensors", "m.dcz", "back.safetensors")
        )
        write_model(source)
        for verb, arguments in (("convert", (source, packed)), ("decode", (packed, back))):
            used = int(run_python(_MEASURED, verb, *map(str, arguments)))
            figures.append(
                Figure(
                    f"peak memory of {verb} beyond the imports, 2 GB model, MB",
                    f"at most {allowed / 1e6:.0f}",
                    f"{used / 1e6:.0f}",
                    used <= allowed,
                )
            )
        with source.open("rb") as a, back.open("rb") as b:
            while piece := a.read(1 << 24):
                assert piece == b.read(1 << 24)
            assert not b.read(1)
    return figures

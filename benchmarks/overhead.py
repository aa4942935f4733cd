"""What do manifest and tables cost in a very small file? LeNet-300-100 at 8 % density, 32 shared weights a layer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import dcz
from benchmarks.common import Figure
from dcz.format import Reader
from dcz.format.report import account

RECIPE = """
name = "lenet"
[[rules]]
min_rank = 2
pruning = { kind = "magnitude", density = 0.08 }
values = { kind = "codebook", size = 32 }
layout = "relative-index"
"""


def run() -> list[Figure]:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(784, 300), torch.nn.Linear(300, 100), torch.nn.Linear(100, 10)
    )
    with tempfile.TemporaryDirectory() as folder:
        recipe, out = Path(folder) / "recipe.toml", Path(folder) / "lenet.dcz"
        recipe.write_text(RECIPE)
        dcz.convert(layers, out, recipe=recipe)
        dcz.verify(out, deep=True)
        with Reader(out) as reader:
            report = account(reader)
            assert report.bytes.tables is not None
            overhead = report.bytes.manifest + report.bytes.tables
    return [
        Figure(
            "LeNet-300-100 at 8 % density, bytes of manifest and tables",
            "below 1024",
            f"{overhead} of {report.size}",
            overhead < 1024,
        )
    ]

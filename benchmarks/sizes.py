"""How small is a lossless file? all-MiniLM-L6-v2 as it is (fp32), and the same cast to bf16."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import dcz
from benchmarks.common import Figure, minilm


def run() -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        original = minilm() / "model.safetensors"
        tensors = load_file(original)
        cast = Path(folder) / "bf16.safetensors"
        save_file({k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()}, cast)
        for name, source, most in (("fp32", original, 0.83), ("bf16", cast, 0.67)):
            out = Path(folder) / f"{name}.dcz"
            dcz.convert(source, out)
            expected, seen = load_file(source), dcz.load(out)
            assert expected.keys() == seen.keys()
            assert all(
                torch.equal(expected[k].view(torch.uint8), seen[k].view(torch.uint8)) for k in expected
            )
            ratio = out.stat().st_size / source.stat().st_size
            figures.append(
                Figure(
                    f"lossless, file bytes / original, MiniLM {name}",
                    f"at most {most}",
                    f"{ratio:.4f}",
                    ratio <= most,
                )
            )
    return figures

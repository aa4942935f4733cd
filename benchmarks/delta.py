"""How small is a file against a base? all-MiniLM-L6-v2 cast to bf16, and changes to it as training makes them.

Sizes are of the complete file, against the bytes of the raw bf16 tensors. Noise is Gaussian, of a share of each tensor's
standard deviation (sigma), added to the float32 weights before the cast. The entropy is that of the differences in numeric
order, each tensor for itself and no context: what a coder of single differences cannot pass.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import dcz
from benchmarks.common import Figure, alternate, median_ratio, minilm, one_core

State = dict[str, torch.Tensor]

_CHANGED = 0.05
_RANK = 8


def _cast(state: State) -> State:
    return {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in state.items()}


def _noisy(state: State, share: float) -> State:
    generator = torch.Generator().manual_seed(1)

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() < 2:
            return tensor
        return tensor + torch.randn(tensor.shape, generator=generator) * share * tensor.std()

    return _cast({name: one(tensor) for name, tensor in state.items()})


def _few_changed(state: State, other: State) -> State:
    """Of each tensor, so many elements are those of ``other``, and certainly different."""
    generator = torch.Generator().manual_seed(2)

    def one(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        chosen = torch.rand(old.shape, generator=generator) < _CHANGED
        moved = torch.where(new == old, (old.view(torch.int16) ^ 1).view(old.dtype), new)
        return torch.where(chosen, moved, old)

    base = _cast(state)
    return {k: one(v, other[k]) if v.is_floating_point() else v for k, v in base.items()}


def _low_rank(state: State) -> State:
    """An adapter of rank 8 on every attention matrix, merged: a thousandth to a hundredth of its deviation."""
    generator = torch.Generator().manual_seed(3)

    def one(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if "attention" not in name or tensor.dim() != 2:
            return tensor
        rows, columns = tensor.shape
        update = torch.randn(rows, _RANK, generator=generator) @ torch.randn(
            _RANK, columns, generator=generator
        )
        return tensor + update / update.std() * 5e-3 * tensor.std()

    return _cast({name: one(name, tensor) for name, tensor in state.items()})


def _ordered(tensor: torch.Tensor) -> np.ndarray:
    bits = tensor.contiguous().view(torch.int16).numpy().reshape(-1).astype(np.int32)
    return np.where(bits < 0, -1 - (bits & 0x7FFF), bits)


def _entropy(old: State, new: State) -> float:
    total = 0.0
    for name, tensor in new.items():
        if tensor.dtype == torch.bfloat16:
            counts = np.unique(_ordered(tensor) - _ordered(old[name]), return_counts=True)[1]
            total -= float((counts * np.log2(counts / tensor.numel())).sum()) / 8
    return total


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k].view(torch.uint8), other[k].view(torch.uint8)) for k in one
    )


def run() -> list[Figure]:
    one_core()
    state = load_file(minilm() / "model.safetensors")
    base = _cast(state)
    raw = sum(tensor.nbytes for tensor in base.values())
    shuffled = {
        k: v.reshape(-1)[torch.randperm(v.numel(), generator=torch.Generator().manual_seed(4))].reshape(
            v.shape
        )
        for k, v in base.items()
    }
    cases: list[tuple[str, State, float | None]] = [
        ("the same model", base, 0.001),
        (
            "5 % of the weights changed, by noise of 1e-2 sigma",
            _few_changed(state, _noisy(state, 1e-2)),
            1 / 25,
        ),
        ("5 % of the weights replaced by others", _few_changed(state, shuffled), None),
        ("noise of 1e-4 sigma on all weights", _noisy(state, 1e-4), None),
        ("noise of 1e-3 sigma on all weights", _noisy(state, 1e-3), 0.12),
        ("noise of 1e-2 sigma on all weights", _noisy(state, 1e-2), None),
        ("merged update of rank 8 on attention", _low_rank(state), None),
    ]
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        old, out = Path(folder) / "base.dcz", Path(folder) / "delta.dcz"
        dcz.save(base, old)
        for name, new, most in cases:
            size = dcz.save(new, out, base=old).file_bytes
            assert _equal(dcz.load(out), new)
            same = sum(
                int((_ordered(v) == _ordered(base[k])).sum())
                for k, v in new.items()
                if v.dtype == torch.bfloat16
            ) / sum(v.numel() for v in new.values() if v.dtype == torch.bfloat16)
            figures.append(
                Figure(
                    f"delta, file bytes / raw, MiniLM bf16: {name}",
                    "" if most is None else f"at most {100 * most:.3g} %",
                    f"{100 * size / raw:.3f} %, {raw / size:.1f}x ({100 * same:.1f} % unchanged; entropy "
                    f"{100 * _entropy(base, new) / raw:.3f} %)",
                    None if most is None else size <= most * raw,
                )
            )
        dcz.save(_noisy(state, 1e-3), out, base=old)
        times = alternate([lambda: dcz.load(old), lambda: dcz.load(out)], 7)
        figures.append(
            Figure(
                "delta, seconds to load: noise of 1e-3 sigma / the base alone, one core",
                "",
                f"{median_ratio(times[1], times[0]):.2f}",
            )
        )
    return figures

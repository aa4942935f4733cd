"""Quantized checkpoints, packed by plain arithmetic from the published layouts, and what they stand for.

A weight is (outputs, inputs); of group g and output o the scale is s[g, o] and the zero point z[g, o].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

__all__ = ["Checkpoint", "awq_checkpoint", "gptq_checkpoint", "pack_bits", "write_checkpoint"]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each nibble of a word is of


@dataclass
class Checkpoint:
    """Its ``quantization_config``, its tensors, and the weights that they stand for."""

    config: dict[str, Any]
    tensors: dict[str, Any]
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def pack_bits(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int32]:
    """Each row as one sequence of bits in words of 32, lowest first; (rows, ceil(codes x bits / 32))."""
    words = np.zeros((len(codes), -(-codes.shape[1] * bits // 32)), np.uint64)
    for i in range(codes.shape[1]):
        word, shift = divmod(i * bits, 32)
        value = codes[:, i].astype(np.uint64) << np.uint64(shift)
        words[:, word] |= value & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[:, word + 1] |= value >> np.uint64(32)
    return words.astype(np.uint32).view(np.int32)


def gptq_checkpoint(
    bits: int = 4,
    *,
    group: int = 32,
    act_order: bool = False,
    symmetric: bool = False,
    form: str = "gptq",
    indexed: bool = True,
) -> Checkpoint:
    """One layer of 96 inputs and 64 outputs, and its bias. ``group``: -1 for one a row; ``indexed``: with g_idx."""
    random = np.random.default_rng(bits)
    inputs, outputs = 96, 64
    size = inputs if group == -1 else group
    groups = inputs // size
    codes = random.integers(0, 1 << bits, (inputs, outputs))
    # In the first version of the format, 3 bits reach from 1 to 8: AutoGPTQ's kernels add 1 to what is stored.
    least = 1 if bits == 3 and form == "gptq" else 0
    zeros = random.integers(least, (1 << bits) + least, (groups, outputs))
    zeros = np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros
    scales = random.standard_normal((groups, outputs)).astype(np.float16)
    index = np.arange(inputs) // size
    index = random.permutation(index) if act_order else index
    stored = zeros - 1 if form == "gptq" else zeros
    tensors = {
        "layer.bias": np.zeros(outputs, np.float16),
        "layer.qweight": np.ascontiguousarray(pack_bits(codes.T, bits).T),
        "layer.qzeros": pack_bits(stored & ((1 << bits) - 1), bits),
        "layer.scales": scales,
    }
    if indexed:
        tensors["layer.g_idx"] = index.astype(np.int32)
    weight = scales[index].astype(np.float64) * (codes - zeros[index])  # exact, then rounded once
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": form,
    }
    return Checkpoint(config, tensors, {"layer.weight": weight.T.astype(np.float16)})


def awq_checkpoint(group: int = 32) -> Checkpoint:
    random = np.random.default_rng(7)
    inputs, outputs = 96, 64
    size = inputs if group == -1 else group
    codes = random.integers(0, 16, (inputs, outputs))
    zeros = random.integers(0, 16, (inputs // size, outputs))
    scales = random.standard_normal(zeros.shape).astype(np.float16)
    order = np.array(_AWQ_ORDER)

    def words(values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        return pack_bits(values.reshape(len(values), -1, 8)[:, :, order].reshape(len(values), -1), 4)

    index = np.arange(inputs) // size
    weight = scales[index].astype(np.float64) * (codes - zeros[index])
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    tensors = {"layer.qweight": words(codes), "layer.qzeros": words(zeros), "layer.scales": scales}
    return Checkpoint(config, tensors, {"layer.weight": weight.T.astype(np.float16)})


def write_checkpoint(folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Path:
    """As a folder of Hugging Face. ``config``: more of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"model_type": "toy", **(config or {}), "quantization_config": checkpoint.config}
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = {
        name: value.clone()
        if isinstance(value, torch.Tensor)
        else torch.from_numpy(np.ascontiguousarray(value))
        for name, value in checkpoint.tensors.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder

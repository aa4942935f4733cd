"""Weights in the block types of GGUF that the gguf package does not quantize to: a scale and a minimum for each group from its
extremes, codes to nearest, and the scales rounded to the codes that the type has for them.

ggml searches for better scales; what an entropy coder makes of the codes depends little on that.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dcz.converters.gguf_blocks import BLOCK_TYPES
from dcz.format import AffineParameters, AffineTensor, PerGroup, ScaledCodebookTensor

__all__ = ["QUANTIZERS", "quantize_blocks"]

Weights = npt.NDArray[np.float32]
Blocks = npt.NDArray[np.uint8]

QUANTIZERS: Final[dict[str, dict[str, Any]]] = {
    "Q2_K": {"bits": 2, "group": 16, "scale_bits": 4, "minimums": True},
    "Q3_K": {"bits": 3, "group": 16, "scale_bits": 6, "zero": 32},
    "Q4_K": {"bits": 4, "group": 32, "scale_bits": 6, "minimums": True},
    "Q5_K": {"bits": 5, "group": 32, "scale_bits": 6, "minimums": True},
    "Q6_K": {"bits": 6, "group": 16, "scale_bits": 8, "zero": 128},
    "IQ4_NL": {"bits": 4, "group": 32, "scale_bits": 0, "table": True},
    "IQ4_XS": {"bits": 4, "group": 32, "scale_bits": 6, "zero": 32, "table": True},
}
_TABLE: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
_SUPER: Final = 256


def _coded(values: Weights, bits: int, zero: int) -> tuple[AffineParameters, Weights]:
    """Parameters of groups, (groups,), as codes times the scale of 256 elements' groups; ``zero``: the zero point."""
    per = values.shape[1]
    most = np.abs(values).max(axis=1) if zero else values.max(axis=1)
    top = (1 << bits) - 1 - zero
    supers = (most / top).astype(np.float16)
    wide = supers.astype(np.float32)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(wide != 0, np.rint(values / wide), 0)
    stored = np.clip(codes + zero, 0, (1 << bits) - 1).astype(np.uint8).reshape(-1)
    parameters = AffineParameters(stored, bits, supers, per, zero)
    return parameters, wide * (stored.reshape(-1, per).astype(np.float32) - zero)


def quantize_blocks(name: str, weights: Weights) -> Blocks:
    """``weights``: (rows, columns), columns a multiple of 256. The blocks, (rows, bytes of a row)."""
    plan = QUANTIZERS[name]
    bits, group, scale_bits = plan["bits"], plan["group"], plan["scale_bits"]
    groups = weights.reshape(-1, _SUPER // group, group)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
    minimums, base = None, np.zeros(groups.shape[:2], np.float32)
    if plan.get("minimums"):
        base = np.minimum(groups.min(axis=2), 0)
        scales = (groups.max(axis=2) - base) / ((1 << bits) - 1)
        found, positive = _coded(-base, scale_bits, 0)
        base = -positive
        minimums = AffineParameters(found.codes, scale_bits, -found.scales, found.group)
    elif plan.get("table"):
        scales = largest / _TABLE[0]
    else:
        scales = largest / -(1 << (bits - 1))
    if scale_bits:
        coded, values = _coded(scales, scale_bits, plan.get("zero", 0))
    else:
        coded, values = scales.reshape(-1).astype(np.float16), scales.astype(np.float16).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(values[..., None] != 0, (groups - base[..., None]) / values[..., None], 0)
    granularity = PerGroup(size=group)
    if plan.get("table"):
        middles = (_TABLE[1:] + _TABLE[:-1]) / 2
        codes = np.searchsorted(middles, levels).astype(np.uint8).reshape(-1)
        tensor: Any = ScaledCodebookTensor("f32", weights.shape, bits, codes, _TABLE, coded, granularity)
    else:
        zero = 0 if minimums is not None else 1 << (bits - 1)
        codes = np.clip(np.rint(levels) + zero, 0, (1 << bits) - 1).astype(np.uint8).reshape(-1)
        tensor = AffineTensor(
            "f32", weights.shape, bits, codes, coded, granularity, None if zero else 0, minimums=minimums
        )
    kind = next(each for each in BLOCK_TYPES.values() if each.name == name)
    packed = kind.pack(tensor)
    assert packed is not None
    return packed.reshape(weights.shape[0], -1)

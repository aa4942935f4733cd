"""Uniform (affine) quantization: weights -> UniformTensor.

The value of a code is ``scale x (code - zero point)`` (docs/format.md, section 5.3). In the notation of Gholami et al.,
"A Survey of Quantization Methods for Efficient Neural Network Inference" (2021), section III, with b bits:

    scheme            scale S                        zero point Z        codes
    symmetric         max|w| / (2^(b-1) - 1)         2^(b-1)             1 .. 2^b - 1     the restricted range
    symmetric-full    max|w| / ((2^b - 1) / 2)       2^(b-1)             0 .. 2^b - 1
    asymmetric        (max w - min w) / (2^b - 1)    rne(-min w / S)     0 .. 2^b - 1     min and max extended to hold 0

    code = clamp(rne(w / S) + Z)

rne rounds to nearest, ties to even. S is rounded *up* to the type in which it is stored before anything is divided by
it, so that the codes cover the range whatever that type is. Hence |w - value| <= S / 2 (up to the rounding of the
product) for ``symmetric`` and ``asymmetric`` as long as the range is not clipped; at the positive end of
``symmetric-full`` up to S. The one exception are weights so large that the code above them would be infinite: the scale
is then as large as it can be. Zero is always represented exactly. A group whose weights are all equal comes back exactly
if the type of the scales can hold their magnitude, and a group of zeros has the scale 0.

Calibration chooses the range that is covered (dcz.compression.calibration).
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from dcz.compression.calibration import Calibration, full_ranges, ranges
from dcz.compression.groups import GroupedTensor, not_finite
from dcz.compression.scales import (
    AffineCoder,
    Rounding,
    ScaleDType,
    Scheme,
    affine_parameters,
    check_bits,
    check_not_too_small,
    coded_scales,
    kept_finite,
    stored_dtype,
    zero_points_of,
)
from dcz.compression.stochastic import check_seed
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import AffineTensor, UniformTensor, parameter_values

__all__ = [
    "Calibration",
    "Rounding",
    "ScaleDType",
    "Scheme",
    "affine_parameters",
    "double_quantize",
    "quantize_affine",
]


def quantize_affine(
    weights: np.ndarray,
    *,
    bits: int = 8,
    scheme: Scheme = "symmetric",
    granularity: Granularity | None = None,
    calibration: Calibration = "min-max",
    percentile: float = 99.9,
    rounding: Rounding = "nearest",
    seed: int = 0,
    scale_dtype: ScaleDType | None = None,
    mask: np.ndarray | None = None,
) -> UniformTensor:
    """Quantize weights uniformly.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``bits``: 1 to 8; the symmetric schemes need 2.
    ``granularity``: what shares a scale; None is the whole tensor. ``percentile``: for that calibration, above
    50, at most 100. ``rounding``: to the nearest code, or up and down at random with the weight as the mean
    (dcz.compression.stochastic); ``seed``: for that, 0 to 2**32 - 1. ``scale_dtype``: how scales are stored; None is f64
    for f64 weights, which have no other, and f32 for the rest. ``mask``: bool, True where a weight is kept; weights
    that are not kept, and kept ones that become zero, are not stored.

    Raises EncodingError if a weight is not finite, if a scale is too large or too small for ``scale_dtype``, or if the arguments do
    not fit together.
    """
    _check(bits, scheme, calibration, percentile, rounding, seed)
    grouped = GroupedTensor(weights, granularity or PerTensor(), mask)
    stored = stored_dtype(scale_dtype, grouped.dtype)
    low, high = _ranges(weights, grouped, mask, bits, scheme, stored, calibration, percentile)
    scales, zero_points = affine_parameters(low, high, bits=bits, scheme=scheme, scale_dtype=stored)
    scales = kept_finite(scales, zero_points, bits, scheme, grouped.dtype)
    chosen = seed if rounding == "stochastic" else None
    coder = AffineCoder(grouped, scales, zero_points, bits, scheme, chosen)
    codes, kept = _codes(grouped, coder, weights.shape, mask)
    return UniformTensor(
        dtype=grouped.dtype.name,
        shape=weights.shape,
        bits=bits,
        codes=codes,
        scales=scales,
        granularity=granularity or PerTensor(),
        zero_points=zero_points,
        mask=kept,
    )


def double_quantize(
    weights: np.ndarray,
    *,
    bits: int = 4,
    scheme: Scheme = "symmetric",
    granularity: Granularity | None = None,
    calibration: Calibration = "min-max",
    percentile: float = 99.9,
    rounding: Rounding = "nearest",
    seed: int = 0,
    scale_bits: int = 8,
    scale_group: int = 256,
    mask: np.ndarray | None = None,
) -> AffineTensor:
    """The same, with scales that are codes of ``scale_bits`` bits themselves, ``scale_group`` of which share a scale of f32
    (dcz.compression.scales.coded_scales). Weights are divided by what the codes of the scales stand for, which covers the range;
    equal weights of a group do not come back exactly.

    ``weights``: not f64, whose scales are stored as they are. Raises EncodingError as `quantize_affine`, and if there are no such codes
    of scales, or if a scale would be so large that a weight could become infinite.
    """
    _check(bits, scheme, calibration, percentile, rounding, seed)
    grouped = GroupedTensor(weights, granularity or PerTensor(), mask)
    stored = stored_dtype("f32", grouped.dtype)
    low, high = _ranges(weights, grouped, mask, bits, scheme, stored, calibration, percentile)
    exact, _ = affine_parameters(low, high, bits=bits, scheme=scheme, scale_dtype=stored)
    parameters = coded_scales(exact, bits=scale_bits, group=scale_group, up=True)
    scales = parameter_values(parameters)
    zero_points = None if scheme != "asymmetric" else zero_points_of(low, scales, bits)
    if (kept_finite(scales, zero_points, bits, scheme, grouped.dtype) != scales).any():
        raise EncodingError(
            f"the weights come too near to the largest number of {grouped.dtype.name} for scales of {scale_bits} bits"
        )
    chosen = seed if rounding == "stochastic" else None
    coder = AffineCoder(grouped, scales, zero_points, bits, scheme, chosen)
    codes, kept = _codes(grouped, coder, weights.shape, mask)
    return AffineTensor(
        dtype=grouped.dtype.name,
        shape=weights.shape,
        bits=bits,
        codes=codes,
        scales=parameters,
        granularity=granularity or PerTensor(),
        zero_points=zero_points,
        mask=kept,
    )


def _ranges(
    weights: np.ndarray,
    grouped: GroupedTensor,
    mask: np.ndarray | None,
    bits: int,
    scheme: Scheme,
    stored: np.dtype[np.generic],
    calibration: Calibration,
    percentile: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The range that is covered in each group, float64."""
    low, high = full_ranges(grouped)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(weights, mask)
    check_not_too_small(low, high, bits, scheme, stored)
    return ranges(
        grouped,
        low,
        high,
        bits=bits,
        scheme=scheme,
        scale_dtype=stored,
        calibration=calibration,
        percentile=percentile,
    )


def _codes(
    grouped: GroupedTensor, coder: AffineCoder, shape: tuple[int, ...], mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The code of each weight, and which are stored."""
    codes = np.empty(shape, dtype=np.uint8)
    kept = None if mask is None else np.empty(shape, dtype=np.bool_)
    for block in grouped.blocks():
        values = coder.codes(block, grouped.load(block))
        grouped.store(block, values, codes)
        if kept is not None:
            # Masked weights read as 0, so this drops them along with those that were rounded to it.
            grouped.store(block, values != coder.zeros(block), kept)
    return codes, kept


def _check(
    bits: int, scheme: Scheme, calibration: Calibration, percentile: float, rounding: Rounding, seed: int
) -> None:
    check_bits(bits, scheme)
    if calibration not in get_args(Calibration):
        raise EncodingError(
            f"unknown calibration {calibration!r}", hint=f"allowed: {', '.join(get_args(Calibration))}"
        )
    if not 50 < percentile <= 100:
        raise EncodingError(f"the percentile {percentile}: above 50 and at most 100 are possible")
    if rounding not in get_args(Rounding):
        raise EncodingError(
            f"unknown rounding {rounding!r}", hint=f"allowed: {', '.join(get_args(Rounding))}"
        )
    check_seed(seed)

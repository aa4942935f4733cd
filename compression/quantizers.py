"""Uniform (affine) quantization: weights -> AffineTensor.

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

Calibration chooses the range that is covered: ``min-max`` takes all of it; ``mse`` clips it where the mean squared error
of the group's weights is least (survey, section III-B).
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import Final, Literal, TypeAlias, get_args

import ml_dtypes
import numpy as np

from dcz.compression.groups import Block, GroupedTensor, not_finite
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import AffineTensor

__all__ = ["Calibration", "ScaleDType", "Scheme", "affine_parameters", "quantize_affine"]

Scheme: TypeAlias = Literal["symmetric", "symmetric-full", "asymmetric"]
Calibration: TypeAlias = Literal["min-max", "mse"]
ScaleDType: TypeAlias = Literal["f64", "f32", "f16", "bf16"]

# Fine steps where the optimum of 4 bits and more lies, coarse ones down to what 2 bits need on a large group. Products,
# because powers differ in their last bit between machines.
_CLIP_RATIOS: Final = tuple(accumulate([1.0, *[0.97] * 7, *[0.9] * 9], mul))

# A number of so many of the smallest steps of its type is rounded up by an eighth of itself at most.
_FEWEST_STEPS: Final = 8


def quantize_affine(
    weights: np.ndarray,
    *,
    bits: int = 8,
    scheme: Scheme = "symmetric",
    granularity: Granularity | None = None,
    calibration: Calibration = "min-max",
    scale_dtype: ScaleDType | None = None,
    mask: np.ndarray | None = None,
) -> AffineTensor:
    """Quantize weights uniformly.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``bits``: 1 to 8; the symmetric schemes need 2.
    ``granularity``: what shares a scale; None is the whole tensor. ``scale_dtype``: how scales are stored; None is f64
    for f64 weights, which have no other, and f32 for the rest. ``mask``: bool, True where a weight is kept; weights
    that are not kept, and kept ones that become zero, are not stored.

    Raises EncodingError if a weight is not finite, if a scale is too large or too small for ``scale_dtype``, or if the arguments do
    not fit together.
    """
    grouped = GroupedTensor(weights, granularity or PerTensor(), mask)
    _check(grouped, bits, scheme, calibration, scale_dtype)
    stored = DTYPES[scale_dtype or ("f64" if grouped.dtype.name == "f64" else "f32")].numpy
    low, high = _ranges(grouped)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(weights, mask)
    _check_not_too_small(low, high, bits, scheme, stored)
    if calibration == "mse":
        ratios = _least_squares_ratios(grouped, low, high, bits, scheme, stored)
        low, high = low * ratios, high * ratios
    scales, zero_points = affine_parameters(low, high, bits=bits, scheme=scheme, scale_dtype=stored)
    scales = _kept_finite(scales, zero_points, bits, scheme, grouped)
    coder = _Coder(grouped, scales, zero_points, bits, scheme)
    codes = np.empty(weights.shape, dtype=np.uint8)
    kept = None if mask is None else np.empty(weights.shape, dtype=np.bool_)
    for block in grouped.blocks():
        values = coder.codes(block, grouped.load(block))
        grouped.store(block, values, codes)
        if kept is not None:
            # Masked weights read as 0, so this drops them along with those that were rounded to it.
            grouped.store(block, values != coder.zeros(block), kept)
    return AffineTensor(
        dtype=grouped.dtype.name,
        shape=weights.shape,
        bits=bits,
        codes=codes,
        scales=scales,
        granularity=granularity or PerTensor(),
        zero_points=zero_points,
        mask=kept,
    )


def affine_parameters(
    low: np.ndarray, high: np.ndarray, *, bits: int, scheme: Scheme, scale_dtype: np.dtype[np.generic]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points that cover the ranges ``low`` to ``high``.

    ``low``, ``high``: float64 (groups,), finite, low <= high. Returns scales of ``scale_dtype`` (groups,), not negative,
    and uint8 (groups,) zero points, or None for the symmetric schemes.

    Raises EncodingError if a scale is too large for ``scale_dtype``.
    """
    top = (1 << bits) - 1
    below = np.minimum(low, 0.0)
    reach, wanted = _reach_and_step(low, high, bits, scheme)
    wanted = np.maximum(wanted, np.where(reach > 0, np.finfo(np.float64).smallest_subnormal, 0.0))
    reach, wanted = reach + 0.0, wanted + 0.0  # which zero is the larger one depends on the processor
    scales = _round_up(wanted, scale_dtype)
    # One step is all that equal weights need, and then they come back exactly.
    with np.errstate(over="ignore", under="ignore"):
        single = reach.astype(scale_dtype)
    equal = (low == high) & (single.astype(np.float64) == reach)  # _check_not_too_small counts on it
    scales = np.where(equal, single, scales)
    if not np.isfinite(scales.astype(np.float64)).all():
        raise EncodingError(
            f"a scale of {float(wanted.max()):.3g} is too large for {scale_dtype}",
            hint="store the scales as f32 or bf16",
        )
    if scheme != "asymmetric":
        return scales, None
    zero_points = np.rint(-below / _divisors(scales.astype(np.float64)))
    return scales, np.clip(zero_points, 0, top).astype(np.uint8)


def _reach_and_step(
    low: np.ndarray, high: np.ndarray, bits: int, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """The greatest magnitude of each range, and the scale that covers it, before it is rounded to any type."""
    top = (1 << bits) - 1
    below, above = np.minimum(low, 0.0), np.maximum(high, 0.0)
    reach = np.maximum(-below, above)
    if scheme == "asymmetric":
        return reach, above / top - below / top  # the difference first could overflow
    return reach, reach / (top / 2 if scheme == "symmetric-full" else (1 << (bits - 1)) - 1)


def _check_not_too_small(
    low: np.ndarray, high: np.ndarray, bits: int, scheme: Scheme, scale_dtype: np.dtype[np.generic]
) -> None:
    """Raises EncodingError if rounding up to ``scale_dtype`` makes a scale larger by more than an eighth.

    Only f16 ends before the weights do: where bf16 and f32 have few digits left, so have float32 weights.
    """
    limits = ml_dtypes.finfo(scale_dtype)  # type: ignore[no-untyped-call]
    if float(limits.smallest_normal) <= float(np.finfo(np.float32).smallest_normal):
        return
    reach, wanted = _reach_and_step(low, high, bits, scheme)
    small = (reach > 0) & (wanted < _FEWEST_STEPS * float(limits.smallest_subnormal))
    with np.errstate(over="ignore", under="ignore"):
        small &= (low != high) | (reach.astype(scale_dtype).astype(np.float64) != reach)
    if small.any():
        raise EncodingError(
            f"a scale of {float(wanted[small].min()):.3g} is too small for {scale_dtype}",
            hint="store the scales as f32 or bf16",
        )


class _Coder:
    """Codes of a block, given the parameters of all groups."""

    def __init__(
        self,
        grouped: GroupedTensor,
        scales: np.ndarray,
        zero_points: np.ndarray | None,
        bits: int,
        scheme: Scheme,
    ) -> None:
        compute = grouped.compute
        self._divisors = _divisors(scales.astype(compute))[:, None]
        self._zero_points = None if zero_points is None else zero_points.astype(compute)[:, None]
        self._middle = compute.type(1 << (bits - 1))
        self._least = compute.type(1 if scheme == "symmetric" else 0)
        self._most = compute.type((1 << bits) - 1)
        self._buffer = np.empty(0, dtype=compute)

    def zeros(self, block: Block) -> np.ndarray:
        """The codes of zero, in a shape that broadcasts to the block's."""
        return np.asarray(self._middle if self._zero_points is None else self._zero_points[block.groups])

    def codes(self, block: Block, values: np.ndarray) -> np.ndarray:
        """Codes as floats of the block's shape, in a buffer that the next call uses again."""
        codes = np.divide(values, self._divisors[block.groups], out=self._like(values))
        np.rint(codes, out=codes)
        np.add(codes, self.zeros(block), out=codes)
        np.clip(codes, self._least, self._most, out=codes)
        return np.asarray(codes)

    def squared_errors(self, block: Block, values: np.ndarray) -> np.ndarray:
        """Sum of squared differences to the decoded values, for each of the block's groups, as float64."""
        divisors = self._divisors[block.groups]
        zeros = self.zeros(block)
        steps = values / divisors
        codes = np.rint(steps, out=self._like(values))
        # Three times as fast as `clip` with a bound for each group.
        np.maximum(codes, self._least - zeros, out=codes)
        np.minimum(codes, self._most - zeros, out=codes)
        np.subtract(steps, codes, out=steps)
        np.square(steps, out=steps)
        # In units of the scale until here, where float32 neither overflows nor underflows.
        return np.asarray(_reduce(np.add, steps) * np.square(divisors[:, 0], dtype=np.float64))

    def _like(self, values: np.ndarray) -> np.ndarray:
        if self._buffer.size < values.size:
            self._buffer = np.empty(values.size, dtype=self._buffer.dtype)
        return np.asarray(self._buffer[: values.size].reshape(values.shape))


def _check(
    grouped: GroupedTensor,
    bits: int,
    scheme: Scheme,
    calibration: Calibration,
    scale_dtype: ScaleDType | None,
) -> None:
    if scheme not in get_args(Scheme):
        raise EncodingError(f"unknown scheme {scheme!r}", hint=f"allowed: {', '.join(get_args(Scheme))}")
    if calibration not in get_args(Calibration):
        raise EncodingError(
            f"unknown calibration {calibration!r}", hint=f"allowed: {', '.join(get_args(Calibration))}"
        )
    if not 1 <= bits <= 8:
        raise EncodingError(f"codes of {bits} bits: 1 to 8 are possible")
    if bits == 1 and scheme != "asymmetric":
        raise EncodingError(
            "one bit has no room for both signs and zero", hint="use a codebook of two values"
        )
    if scale_dtype is not None and (scale_dtype == "f64") != (grouped.dtype.name == "f64"):
        raise EncodingError(f"scales of {scale_dtype} for weights of {grouped.dtype.name}")


def _ranges(grouped: GroupedTensor) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest weight of each group as float64 (groups,); NaN where a weight is."""
    low = np.full(grouped.count, np.inf, dtype=grouped.compute)
    high = np.full(grouped.count, -np.inf, dtype=grouped.compute)
    for block in grouped.blocks():
        values = grouped.load(block)
        np.minimum(low[block.groups], _reduce(np.minimum, values), out=low[block.groups])
        np.maximum(high[block.groups], _reduce(np.maximum, values), out=high[block.groups])
    return low.astype(np.float64), high.astype(np.float64)


def _reduce(ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
    """One number for each group of a block: (outer, groups, inner) -> (groups,)."""
    outer, groups, inner = values.shape
    if outer == 1 and groups > 1:
        # Two to three times as fast as `reduce` when the rows are short. Both add in an order that depends on the
        # shape alone; einsum and matmul are faster, but their order depends on the processor.
        return np.asarray(ufunc.reduceat(values.reshape(-1), np.arange(0, groups * inner, inner)))
    return np.asarray(ufunc.reduce(values, axis=(0, 2)))


def _least_squares_ratios(
    grouped: GroupedTensor,
    low: np.ndarray,
    high: np.ndarray,
    bits: int,
    scheme: Scheme,
    scale_dtype: np.dtype[np.generic],
) -> np.ndarray:
    """For each group the part of its range whose quantization has the least squared error; 1 if none is better."""
    best = np.ones(grouped.count)
    least = np.full(grouped.count, np.inf)
    for ratio in _CLIP_RATIOS:
        scales, zero_points = affine_parameters(
            low * ratio, high * ratio, bits=bits, scheme=scheme, scale_dtype=scale_dtype
        )
        coder = _Coder(grouped, scales, zero_points, bits, scheme)
        errors = np.zeros(grouped.count)
        with np.errstate(over="ignore"):  # of float64 weights; then no ratio is better than 1
            for block in grouped.blocks():
                errors[block.groups] += coder.squared_errors(block, grouped.load(block))
        better = errors < least
        best[better], least[better] = ratio, errors[better]
    return best


def _divisors(scales: np.ndarray) -> np.ndarray:
    """The scales, with 1 in place of 0: a group of zeros has nothing to divide."""
    return np.where(scales == 0, scales.dtype.type(1), scales)


def _round_up(values: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    """The least numbers of ``dtype`` that are not below ``values`` (float64, not negative); inf if there is none."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(dtype)
        low = rounded.astype(np.float64) < values
        rounded[low] = np.nextafter(rounded[low], np.asarray(np.inf, dtype=dtype))
    return rounded


def _kept_finite(
    scales: np.ndarray, zero_points: np.ndarray | None, bits: int, scheme: Scheme, grouped: GroupedTensor
) -> np.ndarray:
    """The scales, smaller where a code would decode to more than the weights' type can hold."""
    zeros = np.full(scales.size, 1 << (bits - 1)) if zero_points is None else zero_points.astype(np.int64)
    farthest = np.maximum(zeros - (1 if scheme == "symmetric" else 0), (1 << bits) - 1 - zeros)
    with np.errstate(over="ignore"):
        products = scales.astype(grouped.compute) * farthest.astype(grouped.compute)
        overflow = ~np.isfinite(products.astype(grouped.dtype.numpy).astype(np.float64))
    if not overflow.any():
        return scales
    largest = float(ml_dtypes.finfo(grouped.dtype.numpy).max)  # type: ignore[no-untyped-call]
    possible = largest / farthest
    rounded = possible.astype(scales.dtype)
    above = rounded.astype(np.float64) >= possible
    rounded[above] = np.nextafter(rounded[above], np.asarray(0, dtype=scales.dtype))
    return np.where(overflow, rounded, scales)

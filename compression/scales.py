"""Ranges become scales and zero points, and with these, values become codes.

The formulas are those of dcz.compression.quantizers; what chooses the ranges is dcz.compression.calibration (of weights)
and dcz.compression.observers (of activations).
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

import ml_dtypes
import numpy as np

from dcz.compression.arguments import is_whole
from dcz.compression.groups import Block, GroupedTensor, reduce_groups
from dcz.compression.stochastic import round_stochastically
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES, DType
from dcz.format.layout import MAX_GROUP
from dcz.format.tensors import AffineParameters

__all__ = [
    "AffineCoder",
    "Rounding",
    "ScaleDType",
    "Scheme",
    "affine_parameters",
    "check_bits",
    "check_not_too_small",
    "coded_scales",
    "kept_finite",
    "least_code",
    "nearest_scales",
    "stored_dtype",
    "zero_points_of",
]

Rounding: TypeAlias = Literal["nearest", "stochastic"]
Scheme: TypeAlias = Literal["symmetric", "symmetric-full", "asymmetric"]
ScaleDType: TypeAlias = Literal["f64", "f32", "f16", "bf16"]

# A number of so many of the smallest steps of its type is rounded up by an eighth of itself at most.
_FEWEST_STEPS: Final = 8


def least_code(scheme: Scheme) -> int:
    """The smallest code that a scheme uses."""
    return 1 if scheme == "symmetric" else 0


def stored_dtype(scale_dtype: ScaleDType | None, weights: DType) -> np.dtype[np.generic]:
    """The type of the scales for weights of an element type; None is f64 for f64, which has no other, and f32 for the rest.

    Raises EncodingError if they do not fit together.
    """
    if scale_dtype is not None and (scale_dtype == "f64") != (weights.name == "f64"):
        raise EncodingError(f"scales of {scale_dtype} for weights of {weights.name}")
    return DTYPES[scale_dtype or ("f64" if weights.name == "f64" else "f32")].numpy


def nearest_scales(scales: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    """Scales, float64 and not negative, rounded to the type in which they are stored.

    Raises EncodingError if one is too large for it, or changes by more than an eighth.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = scales.astype(dtype)
    back = rounded.astype(np.float64)
    if not np.isfinite(back).all():
        raise _too_large(float(scales.max()), dtype)
    far = np.abs(back - scales) * _FEWEST_STEPS > scales
    if far.any() and _ends_before_weights(dtype):
        raise _too_small(float(scales[far].min()), dtype)
    return rounded


def check_bits(bits: int, scheme: Scheme) -> None:
    """Raises EncodingError if there is no such scheme, or if it does not have so many bits."""
    if scheme not in get_args(Scheme):
        raise EncodingError(f"unknown scheme {scheme!r}", hint=f"allowed: {', '.join(get_args(Scheme))}")
    if not is_whole(bits, 1, 8):
        raise EncodingError(f"codes of {bits!r} bits: 1 to 8 are possible")
    if bits == 1 and scheme != "asymmetric":
        raise EncodingError(
            "one bit has no room for both signs and zero", hint="use a codebook of two values"
        )


def affine_parameters(
    low: np.ndarray, high: np.ndarray, *, bits: int, scheme: Scheme, scale_dtype: np.dtype[np.generic]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points that cover the ranges ``low`` to ``high``.

    ``low``, ``high``: float64 (groups,), finite, low <= high. Returns scales of ``scale_dtype`` (groups,), not negative,
    and uint8 (groups,) zero points, or None for the symmetric schemes.

    Raises EncodingError if a scale is too large for ``scale_dtype``.
    """
    reach, wanted = _reach_and_step(low, high, bits, scheme)
    wanted = np.maximum(wanted, np.where(reach > 0, np.finfo(np.float64).smallest_subnormal, 0.0))
    reach, wanted = reach + 0.0, wanted + 0.0  # which zero is the larger one depends on the processor
    scales = _round_up(wanted, scale_dtype)
    # One step is all that equal weights need, and then they come back exactly.
    with np.errstate(over="ignore", under="ignore"):
        single = reach.astype(scale_dtype)
    equal = (low == high) & (single.astype(np.float64) == reach)  # check_not_too_small counts on it
    scales = np.where(equal, single, scales)
    if not np.isfinite(scales.astype(np.float64)).all():
        raise _too_large(float(wanted.max()), scale_dtype)
    if scheme != "asymmetric":
        return scales, None
    return scales, zero_points_of(low, scales, bits)


def zero_points_of(low: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The asymmetric zero points of ranges from ``low`` in units of their scales: uint8 (groups,)."""
    points = np.rint(-np.minimum(low, 0.0) / _divisors(scales.astype(np.float64)))
    return np.asarray(np.clip(points, 0, (1 << bits) - 1), np.uint8)


def coded_scales(scales: np.ndarray, *, bits: int, group: int, up: bool) -> AffineParameters:
    """Scales as codes of ``bits`` bits times a scale of f32 for each ``group`` of them ("double quantization": Dettmers et al.,
    "QLoRA", 2023, section 3; there, with another table and an offset).

    ``scales``: finite, not negative (groups,). ``bits``: 2 to 8. ``group``: 1 to 2**24. ``up``: the least code that is not below,
    instead of the nearest. A scale that is not 0 has no code 0, however small it is beside the largest of its group.

    Raises EncodingError if there are no such codes, or if a scale is too large for f32.
    """
    if not is_whole(bits, 2, 8):
        raise EncodingError(f"scales of {bits!r} bits: 2 to 8 are possible")
    if not is_whole(group, 1, MAX_GROUP):
        raise EncodingError(f"{group} scales that share a scale: 1 to {MAX_GROUP} are possible")
    top = (1 << bits) - 1
    exact = scales.astype(np.float64)
    largest = np.maximum.reduceat(exact, np.arange(0, exact.size, group))
    outer = _round_up(largest / top, np.dtype(np.float32))
    with np.errstate(over="ignore"):
        reach = outer * np.float32(top)
    if not np.isfinite(reach).all():
        raise _too_large(float(largest.max()), np.dtype(np.float32))
    units = _divisors(outer)[np.arange(exact.size) // group]
    codes = np.clip(np.rint(exact / units), np.where(exact > 0, 1, 0), top).astype(np.uint8)
    if up:
        # What a reader makes of a code is rounded to f32.
        below = (units * codes.astype(np.float32)).astype(np.float64) < exact
        codes += (below & (codes < top)).astype(np.uint8)
    return AffineParameters(codes, bits, outer, group)


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


def check_not_too_small(
    low: np.ndarray, high: np.ndarray, bits: int, scheme: Scheme, scale_dtype: np.dtype[np.generic]
) -> None:
    """Raises EncodingError if rounding up to ``scale_dtype`` makes a scale larger by more than an eighth."""
    if not _ends_before_weights(scale_dtype):
        return
    limits = ml_dtypes.finfo(scale_dtype)  # type: ignore[no-untyped-call]
    reach, wanted = _reach_and_step(low, high, bits, scheme)
    small = (reach > 0) & (wanted < _FEWEST_STEPS * float(limits.smallest_subnormal))
    with np.errstate(over="ignore", under="ignore"):
        small &= (low != high) | (reach.astype(scale_dtype).astype(np.float64) != reach)
    if small.any():
        raise _too_small(float(wanted[small].min()), scale_dtype)


def _ends_before_weights(scale_dtype: np.dtype[np.generic]) -> bool:
    """Only f16 does: where bf16 and f32 have few digits left, so have float32 weights."""
    limits = ml_dtypes.finfo(scale_dtype)  # type: ignore[no-untyped-call]
    return float(limits.smallest_normal) > float(np.finfo(np.float32).smallest_normal)


def _too_large(scale: float, dtype: np.dtype[np.generic]) -> EncodingError:
    return EncodingError(
        f"a scale of {scale:.3g} is too large for {dtype}",
        hint="store the scales as f32 or bf16" if dtype == np.float16 else None,
    )


def _too_small(scale: float, dtype: np.dtype[np.generic]) -> EncodingError:
    return EncodingError(
        f"a scale of {scale:.3g} is too small for {dtype}", hint="store the scales as f32 or bf16"
    )


class AffineCoder:
    """Codes of a block, given the parameters of all groups; rounded stochastically if there is a ``seed``."""

    def __init__(
        self,
        grouped: GroupedTensor,
        scales: np.ndarray,
        zero_points: np.ndarray | None,
        bits: int,
        scheme: Scheme,
        seed: int | None = None,
    ) -> None:
        compute = grouped.compute
        self._grouped = grouped
        self._seed = seed
        self._divisors = _divisors(scales.astype(compute))[:, None]
        self._zero_points = None if zero_points is None else zero_points.astype(compute)[:, None]
        self._middle = compute.type(1 << (bits - 1))
        self._least = compute.type(least_code(scheme))
        self._most = compute.type((1 << bits) - 1)
        self._buffer = np.empty(0, dtype=compute)

    def zeros(self, block: Block) -> np.ndarray:
        """The codes of zero, in a shape that broadcasts to the block's."""
        return np.asarray(self._middle if self._zero_points is None else self._zero_points[block.groups])

    def codes(self, block: Block, values: np.ndarray) -> np.ndarray:
        """Codes as floats of the block's shape, in a buffer that the next call uses again."""
        codes = np.divide(values, self._divisors[block.groups], out=self._like(values))
        if self._seed is None:
            np.rint(codes, out=codes)
        else:
            codes[...] = round_stochastically(codes, self._seed, self._grouped.positions(block))
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
        return np.asarray(reduce_groups(np.add, steps) * np.square(divisors[:, 0], dtype=np.float64))

    def _like(self, values: np.ndarray) -> np.ndarray:
        if self._buffer.size < values.size:
            self._buffer = np.empty(values.size, dtype=self._buffer.dtype)
        return np.asarray(self._buffer[: values.size].reshape(values.shape))


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


def kept_finite(
    scales: np.ndarray, zero_points: np.ndarray | None, bits: int, scheme: Scheme, dtype: DType
) -> np.ndarray:
    """The scales, smaller where a code would decode to more than ``dtype``, the weights' type, can hold."""
    compute = np.dtype(np.float64 if dtype.name == "f64" else np.float32)
    zeros = np.full(scales.size, 1 << (bits - 1)) if zero_points is None else zero_points.astype(np.int64)
    farthest = np.maximum(zeros - (1 if scheme == "symmetric" else 0), (1 << bits) - 1 - zeros)
    with np.errstate(over="ignore"):
        products = scales.astype(compute) * farthest.astype(compute)
        overflow = ~np.isfinite(products.astype(dtype.numpy).astype(np.float64))
    if not overflow.any():
        return scales
    largest = float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
    possible = largest / farthest
    rounded = possible.astype(scales.dtype)
    above = rounded.astype(np.float64) >= possible
    rounded[above] = np.nextafter(rounded[above], np.asarray(0, dtype=scales.dtype))
    return np.where(overflow, rounded, scales)

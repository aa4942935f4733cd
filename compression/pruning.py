"""Magnitude pruning: which weights are kept (Han, Pool, Tran and Dally 2015; Han, Mao and Dally 2016, section 2).

The bits of a floating-point number without its sign are an integer that grows with the magnitude, so the threshold is
found by counting: one histogram for each 16 bits, from the top, over blocks of the tensor. That is exact, and takes no
second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from dcz.compression.groups import float_dtype_of, not_finite
from dcz.errors import EncodingError

__all__ = ["magnitude_mask", "nonzero_mask"]

_BLOCK: Final = 1 << 17
_DIGIT: Final = 16
_EXPONENT_BITS: Final = {"f64": 11, "f32": 8, "f16": 5, "bf16": 8, "f8_e5m2": 5}


def magnitude_mask(weights: np.ndarray, density: float) -> np.ndarray:
    """Keep the weights of largest magnitude.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``density``: the part that is kept, 0 to 1. Returns a
    bool array of the same shape with exactly ``round(density * weights.size)`` True; of equal magnitudes, those that
    come first in C order are kept.

    Raises EncodingError if a weight is not finite, or ``density`` is not between 0 and 1.
    """
    dtype = float_dtype_of(weights)
    if not 0 <= density <= 1:
        raise EncodingError(f"a density of {density}: 0 to 1 are possible")
    bits = 8 * dtype.itemsize
    patterns = np.ascontiguousarray(weights, dtype=dtype.numpy).reshape(-1).view(f"<u{dtype.itemsize}")
    largest = _largest_finite(dtype.name, bits)
    for block in _magnitudes(patterns, bits):
        if (block > largest).any():
            raise not_finite(weights)  # and has no rank among magnitudes
    kept = round(density * patterns.size)
    mask = np.zeros(patterns.size, dtype=np.bool_)
    if kept == 0:
        return mask.reshape(weights.shape)
    threshold, ties = _kth_largest(patterns, bits, kept)
    start = 0
    for block in _magnitudes(patterns, bits):
        part = mask[start : start + block.size]
        np.greater(block, threshold, out=part)
        if ties:
            equal = np.flatnonzero(block == threshold)[:ties]
            part[equal] = True
            ties -= equal.size
        start += block.size
    return mask.reshape(weights.shape)


def nonzero_mask(weights: np.ndarray) -> np.ndarray:
    """Where weights are not zero, of either sign: what a tensor that was pruned before keeps.

    ``weights``: floating-point, any shape, not empty. Returns a bool array of the same shape.

    Raises EncodingError if they are not floating-point, or if there are none.
    """
    dtype = float_dtype_of(weights)
    patterns = np.ascontiguousarray(weights, dtype=dtype.numpy).reshape(-1).view(f"<u{dtype.itemsize}")
    mask = np.empty(patterns.size, dtype=np.bool_)
    start = 0
    for block in _magnitudes(patterns, 8 * dtype.itemsize):
        np.not_equal(block, 0, out=mask[start : start + block.size])
        start += block.size
    return mask.reshape(weights.shape)


def _largest_finite(name: str, bits: int) -> int:
    """The magnitude, as an integer, of the largest finite number of an element type."""
    if name == "f8_e4m3fn":
        return 0x7E  # no infinities: all patterns but the last are numbers
    return ((1 << _EXPONENT_BITS[name]) - 1 << bits - 1 - _EXPONENT_BITS[name]) - 1


def _magnitudes(patterns: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    """The patterns without their signs, block by block."""
    unsigned = patterns.dtype.type((1 << (bits - 1)) - 1)
    for start in range(0, patterns.size, _BLOCK):
        yield patterns[start : start + _BLOCK] & unsigned


def _kth_largest(patterns: np.ndarray, bits: int, k: int) -> tuple[int, int]:
    """The k-th largest magnitude as an integer, k from 1, and how many of those equal to it are among the k largest."""
    prefix = 0
    for shift in range(max(0, bits - _DIGIT), -1, -_DIGIT):
        width = min(_DIGIT, bits)
        counts = np.zeros(1 << width, dtype=np.int64)
        for block in _magnitudes(patterns, bits):
            digits = block >> shift if shift else block
            if shift + width < bits:
                digits = digits[digits >> width == prefix] & ((1 << width) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << width)
        # From the largest digit down: how many magnitudes have this digit or a larger one.
        reached = np.cumsum(counts[::-1])
        place = int(np.searchsorted(reached, k))
        k -= int(reached[place - 1]) if place else 0
        prefix = prefix << width | (counts.size - 1 - place)
    return prefix, k

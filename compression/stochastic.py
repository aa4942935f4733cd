"""Stochastic rounding: up with the probability of the fraction, so that the mean is the number itself (survey, section IV).

What decides about an element depends on the seed and on where the element is, and on nothing else: not on blocks, threads,
or the machine. Its random bits are the output number ``position`` of the generator splitmix64 (Steele, Lea and Flood,
"Fast Splittable Pseudorandom Number Generators", 2014), started from the seed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dcz.compression.arguments import is_whole
from dcz.errors import EncodingError

__all__ = ["check_seed", "round_stochastically", "uniforms"]

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_BITS: Final = 24  # of a float32's mantissa


def check_seed(seed: int) -> None:
    """Raises EncodingError if it is not 0 to 2**32 - 1."""
    if not is_whole(seed, 0, (1 << 32) - 1):
        raise EncodingError(f"{seed!r} is not a seed", hint="allowed: 0 to 2**32 - 1")


def uniforms(seed: int, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Independent numbers, one for each position: multiples of 2**-24, uniform in [0, 1), float32 of the same shape."""
    state = (positions + np.uint64(1)) * _GAMMA + np.uint64(seed)
    for shift, factor in _MIX:
        state ^= state >> shift
        state *= factor
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(64 - _BITS)).astype(np.float32) * np.float32(2.0**-_BITS)


def round_stochastically(
    values: npt.NDArray[Any], seed: int, positions: npt.NDArray[np.uint64] | None = None
) -> npt.NDArray[Any]:
    """floor(x) + 1 with the probability x - floor(x), otherwise floor(x); integers stay as they are.

    ``values``: float32 or float64, finite, any shape. ``seed``: 0 to 2**32 - 1; equal seeds give equal results.
    ``positions``: of the same shape; None numbers the values in C order. The mean is within 2**-24 of the value. Returns an
    array of the same type and shape. Raises EncodingError if there is no such seed.
    """
    check_seed(seed)
    if positions is None:
        positions = np.arange(values.size, dtype=np.uint64).reshape(values.shape)
    below = np.floor(values)
    # The fraction is exact, where the sum of a value and a random number would be rounded.
    return np.asarray(below + (uniforms(seed, positions) < values - below), dtype=values.dtype)

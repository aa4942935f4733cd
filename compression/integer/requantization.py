"""A real factor as a fixed-point number: int32 accumulators become int8 codes without floating point.

The factor M = S1 S2 / S3 of the steps of inputs, weights and outputs is written as m / 2^s, with an integer m below 2^bits:

    code = clamp(round(m a / 2^s) + Z)

round goes to nearest, **ties to even**, as everywhere in dcz. There is one rounding: m a is computed in int64, where it
fits, as |a| < 2^31 and m < 2^31. With 31 bits this is the int32 multiplier of Jacob et al. 2018 (section 2.2), and m is at least 2^30
unless the shift would pass 62. With fewer bits it is the dyadic number b / 2^c of HAWQ-V3 (Yao et al. 2021).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from dcz.errors import EncodingError

__all__ = ["MAX_SHIFT", "fixed_point", "requantize", "rounding_shift", "shared_fixed_point"]

MAX_SHIFT: Final = 62


def fixed_point(
    factors: npt.NDArray[np.float64], *, bits: int = 31
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """m and s with m / 2^s next to each factor: int32 and uint8 of the same shape, m >= 0, 1 <= s <= 62.

    ``factors``: not negative. ``bits``: 2 to 31; m has no more of them, unless a factor is above 2^(bits - 1). The
    relative error is at most 2^-bits, for factors above 2^(bits - 63). Raises EncodingError for factors that are not
    finite, negative, or 2^30 and more.
    """
    _check(factors, bits)
    shifts = np.clip(bits - np.frexp(factors)[1], 1, MAX_SHIFT)
    # What is rounded up to 2^bits is half of it with a smaller shift.
    full = (np.rint(np.ldexp(factors, shifts)) >= 2.0**bits) & (shifts > 1)
    shifts = np.where(full, shifts - 1, shifts)
    return _multipliers(factors, shifts), shifts.astype(np.uint8)


def shared_fixed_point(
    factors: npt.NDArray[np.float64], *, bits: int = 31
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The same with one shift for all, uint8 (1,), so that products can be added before they are shifted.

    ``factors``: (terms,). Raises EncodingError as `fixed_point` does.
    """
    shift = fixed_point(factors.max(keepdims=True), bits=bits)[1]
    _check(factors, bits)
    return _multipliers(factors, shift.astype(np.int32)), shift


def _check(factors: npt.NDArray[np.float64], bits: int) -> None:
    if not 2 <= bits <= 31:
        raise EncodingError(f"multipliers of {bits} bits: 2 to 31 are possible")
    if not np.isfinite(factors).all() or (factors < 0).any():
        raise EncodingError("a factor between two quantization steps is negative or not finite")
    if (factors >= 2.0**30).any():
        raise EncodingError(
            f"a factor of {float(factors.max()):.3g} between two quantization steps is too large"
        )


def _multipliers(factors: npt.NDArray[np.float64], shifts: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    return np.asarray(np.minimum(np.rint(np.ldexp(factors, shifts)), 2.0**31 - 1), dtype=np.int32)


def requantize(accumulated: torch.Tensor, multiplier: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """round(m a / 2^s), ties to even: int64.

    ``accumulated``: int32, or int64 below 2^31 in magnitude. ``multiplier``: int32, ``shift``: uint8, 1 to 62; of shapes
    that broadcast.
    """
    return rounding_shift(accumulated.long() * multiplier.long(), shift)


def rounding_shift(products: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """round(p / 2^s), ties to even: int64 from int64. The shift of a negative number rounds down."""
    places = shift.long()
    floor = products >> places
    rest = products - (floor << places)
    half = torch.ones_like(places) << (places - 1)
    up = (rest > half) | ((rest == half) & ((floor & 1) == 1))
    return floor + up.long()

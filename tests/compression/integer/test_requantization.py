"""Fixed-point factors against fractions, rounding against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcz.compression.integer.requantization import MAX_SHIFT, fixed_point, requantize, shared_fixed_point
from dcz.errors import EncodingError

INT32 = st.integers(-(2**31) + 1, 2**31 - 1)


def exact(accumulated: int, multiplier: int, shift: int) -> int:
    """round() of a Fraction is to nearest, ties to even."""
    return round(Fraction(accumulated * multiplier, 2**shift))


def ours(accumulated: int, multiplier: int, shift: int) -> int:
    return int(
        requantize(
            torch.tensor([accumulated], dtype=torch.int32),
            torch.tensor([multiplier], dtype=torch.int32),
            torch.tensor([shift], dtype=torch.uint8),
        )
    )


@given(INT32, st.integers(0, 2**31 - 1), st.integers(1, MAX_SHIFT))
def test_rounding_is_exact(accumulated: int, multiplier: int, shift: int) -> None:
    assert ours(accumulated, multiplier, shift) == exact(accumulated, multiplier, shift)


@given(st.integers(-1000, 1000), st.integers(1, 30))
def test_ties_go_to_even(half: int, shift: int) -> None:
    # (2 half + 1) / 2 is a tie.
    accumulated = 2 * half + 1
    assert ours(accumulated, 1 << (shift - 1), shift) == exact(accumulated, 1 << (shift - 1), shift)
    assert ours(accumulated, 1 << (shift - 1), shift) % 2 == 0


@given(st.floats(2.0**-31, 2.0**30, exclude_max=True), st.sampled_from([31, 16, 8, 2]))
def test_a_factor_is_met(factor: float, bits: int) -> None:
    multipliers, shifts = fixed_point(np.array([factor]), bits=bits)
    m, s = int(multipliers[0]), int(shifts[0])
    error = abs(Fraction(m, 2**s) - Fraction(factor)) / Fraction(factor)
    assert error <= Fraction(1, 2**bits)
    assert 1 <= s <= MAX_SHIFT
    if factor < 2.0 ** (bits - 1):
        assert 2 ** (bits - 1) <= m < 2**bits


def test_factors_at_the_ends() -> None:
    # Tiny ones lose bits until they are nothing; one just below a power of two is rounded up to it.
    multipliers, shifts = fixed_point(np.array([0.0, 2.0**-63, 2.0**-40, 1 - 2.0**-40, 2.0**30 - 2.0**-20]))
    assert multipliers.tolist() == [0, 0, 2**22, 2**30, 2**31 - 1]
    assert shifts[2:].tolist() == [62, 30, 1]
    multipliers, shifts = fixed_point(np.array([3.7, 0.126]), bits=3)
    assert (multipliers / 2.0**shifts).tolist() == [3.5, 0.125]


@given(st.lists(st.floats(2.0**-8, 2.0**8), min_size=1, max_size=5))
def test_one_shift_for_several_factors(factors: list[float]) -> None:
    multipliers, shift = shared_fixed_point(np.array(factors))
    assert shift.shape == (1,)
    for factor, multiplier in zip(factors, multipliers.tolist(), strict=True):
        assert (
            abs(Fraction(multiplier, 2 ** int(shift[0])) - Fraction(factor)) <= Fraction(max(factors)) / 2**31
        )


def test_factors_that_do_not_exist() -> None:
    for factor in (-1.0, np.inf, np.nan):
        with pytest.raises(EncodingError, match="negative or not finite"):
            fixed_point(np.array([factor]))
    with pytest.raises(EncodingError, match="too large"):
        fixed_point(np.array([2.0**30]))
    with pytest.raises(EncodingError, match="bits"):
        fixed_point(np.array([1.0]), bits=32)

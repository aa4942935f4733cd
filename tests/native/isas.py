"""Each test of a kernel runs once for each instruction set that dcz has kernels for. Those that the processor lacks are
skipped by name, so that a report says what was not tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from dcz import _native

__all__ = ["ALL", "HERE", "SIZES", "forced", "guarded", "on_each_isa"]

ALL = ("portable", "avx2", "avx512")
HERE = tuple(isa for isa in ALL if isa in _native.available_isas())

# Around the ends of a byte, of a group of 64 and of a block of 65,536.
SIZES = (0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 65_535, 65_536, 65_537, 200_003)

on_each_isa = pytest.mark.parametrize(
    "isa",
    [
        pytest.param(
            isa, marks=pytest.mark.skipif(isa not in HERE, reason=f"this processor has no {isa}"), id=isa
        )
        for isa in ALL
    ],
)


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Inside, all kernels are those of ``isa``."""
    before = _native.active_isa()
    assert _native.force_isa(isa)
    try:
        yield
    finally:
        _native.force_isa(before)


_GUARD = 128
_MARK = 0xA5


@contextmanager
def guarded(size: int) -> Iterator[np.ndarray]:
    """``size`` bytes to write to. Insists that what stands around them is the same afterwards."""
    whole = np.full(_GUARD + size + _GUARD, _MARK, np.uint8)
    yield whole[_GUARD : _GUARD + size]
    assert (whole[:_GUARD] == _MARK).all()
    assert (whole[_GUARD + size :] == _MARK).all()

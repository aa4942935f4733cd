"""Packed symbols and histograms, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import SIZES, forced, guarded, on_each_isa

from dcz import _native
from dcz.errors import CorruptStream


def packed(symbols: np.ndarray, width: int) -> bytes:
    """Section 6.1 of the format, by numpy."""
    bits = np.unpackbits(symbols.reshape(-1, 1), axis=1, bitorder="little")[:, :width]
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def unpacked(bits: bytes, width: int, count: int) -> bytes:
    with guarded(count) as out:
        _native.unpack(bits, width, out)
        return out.tobytes()


@on_each_isa
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("size", SIZES)
def test_symbols_are_packed_and_unpacked_as_numpy_does(isa: str, width: int, size: int) -> None:
    symbols = np.random.default_rng(size).integers(0, 1 << width, size).astype(np.uint8)
    with forced(isa):
        bits = _native.pack(symbols, width)
        assert bits == packed(symbols, width)
        assert unpacked(bits, width, size) == symbols.tobytes()


@on_each_isa
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_are_refused_or_unpacked_as_numpy_does(isa: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 8))
    count = data.draw(st.integers(0, 40))
    right = (count * width + 7) // 8
    bits = data.draw(st.binary(min_size=right, max_size=right) | st.binary(max_size=50))
    ones = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    with forced(isa):
        if len(bits) != right or ones[count * width :].any():
            with pytest.raises(CorruptStream):
                unpacked(bits, width, count)
        else:
            places = ones[: count * width].reshape(count, width)
            assert (
                unpacked(bits, width, count) == (places << np.arange(width)).sum(1).astype(np.uint8).tobytes()
            )


@on_each_isa
@pytest.mark.parametrize("size", SIZES)
def test_histogram_counts_as_numpy_does(isa: str, size: int) -> None:
    random = np.random.default_rng(size)
    for symbols in (
        random.integers(0, 256, size),
        np.minimum(random.geometric(0.3, size), 255),
        np.full(size, 255),
    ):
        data = symbols.astype(np.uint8)
        counts = np.full(256, 77, np.uint64)
        with forced(isa):
            _native.histogram(data, counts)
        assert counts.tolist() == np.bincount(data, minlength=256).tolist()

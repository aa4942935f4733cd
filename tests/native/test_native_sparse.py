"""Positions of stored entries, against the rules of docs/format.md, section 5.2, one symbol at a time, and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import SIZES, forced, on_each_isa
from tests.native.segments import bitmap_positions, gap_positions, scatter
from tests.reference.dcz_reference_writer import encode_gaps

from dcz import _native
from dcz.errors import CorruptStream

DENSITIES = (0.0, 0.002, 0.1, 0.5, 1.0)


def walk(gaps: bytes, bits: int, elements: int, entries: int) -> list[int] | None:
    """The positions that relative indices lead to; None if they break a rule."""
    filler = (1 << bits) - 1
    position, found = 0, []
    for gap in gaps:
        position += gap
        if gap == filler:
            continue
        if position >= elements:
            return None
        found.append(position)
        position += 1
    ends_badly = bool(gaps) and gaps[-1] == filler
    return None if ends_badly or len(found) != entries else found


@on_each_isa
@pytest.mark.parametrize("density", DENSITIES)
def test_gaps_and_bitmaps_lead_back_to_the_positions(isa: str, density: float) -> None:
    random = np.random.default_rng(int(1000 * density))
    for size in SIZES:
        mask = random.random(size) < density
        positions = np.flatnonzero(mask).tolist()
        bitmap = np.packbits(mask, bitorder="little").tobytes()
        with forced(isa):
            counts = [len(positions)]
            for bits in range(1, 9):
                gaps = _native.encode_gaps(mask.view(np.uint8), bits)
                assert gap_positions(gaps, bits, size, len(positions)) == positions
                if size < 1000 or (bits == 4 and size < 100_000):
                    assert gaps == bytes(encode_gaps(positions, bits))
                counts.append(len(gaps))
            assert _native.count_gaps(mask.view(np.uint8)) == counts
            assert bitmap_positions(bitmap, size, len(positions)) == positions


@on_each_isa
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 600), max_size=20), st.integers(0, 300))
def test_any_gap_between_entries_can_be_bridged(isa: str, bits: int, between: list[int], behind: int) -> None:
    positions = [sum(between[: i + 1]) + i for i in range(len(between))]
    elements = (positions[-1] + 1 if positions else 0) + behind
    mask = np.zeros(elements, np.uint8)
    mask[positions] = 1
    with forced(isa):
        gaps = _native.encode_gaps(mask, bits)
        assert gaps == bytes(encode_gaps(positions, bits))
        assert gap_positions(gaps, bits, elements, len(positions)) == positions


@on_each_isa
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_gaps_are_refused_or_walked(isa: str, data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 8))
    gaps = bytes(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=12)))
    elements = data.draw(st.integers(0, 20 << bits))
    entries = sum(gap != (1 << bits) - 1 for gap in gaps) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    entries = min(entries, elements)
    expected = walk(gaps, bits, elements, max(0, entries))
    with forced(isa):
        if expected is None:
            with pytest.raises(CorruptStream):
                gap_positions(gaps, bits, elements, max(0, entries))
        else:
            assert gap_positions(gaps, bits, elements, max(0, entries)) == expected


@on_each_isa
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30), st.integers(-9, 9), st.sampled_from([0, 0, 0, -1, 1]))
def test_any_bitmap_is_refused_or_read_as_numpy_does(isa: str, bitmap: bytes, more: int, wrong: int) -> None:
    elements = max(0, 8 * len(bitmap) + more)
    ones = np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")).tolist()
    entries = max(0, len(ones) + wrong)
    with forced(isa):
        if len(bitmap) != (elements + 7) // 8 or entries > elements:
            with pytest.raises(ValueError, match="the streams are not those of such a segment"):
                bitmap_positions(bitmap, elements, entries)
        elif entries != len(ones) or any(p >= elements for p in ones):
            with pytest.raises(CorruptStream):
                bitmap_positions(bitmap, elements, entries)
        else:
            assert bitmap_positions(bitmap, elements, entries) == ones


@on_each_isa
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("gap_bits", [None, 3, 8])
def test_values_are_scattered_as_numpy_does(isa: str, itemsize: int, gap_bits: int | None) -> None:
    random = np.random.default_rng(itemsize)
    for size in SIZES:
        for density in DENSITIES:
            positions = np.flatnonzero(random.random(size) < density).astype(np.uint32)
            values = np.frombuffer(random.bytes(positions.size * itemsize), f"<u{itemsize}")
            expected = np.zeros(size, f"<u{itemsize}")
            expected[positions] = values
            with forced(isa):
                for streaming in (False, True):
                    found = scatter(positions, values, size, streaming=streaming, gap_bits=gap_bits)
                    assert found == expected.tobytes()

"""Batches: what is in a chunk is found and decoded in one call, and nothing outside of it is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dcz import _native

native: Any = _native
TENSOR = ("tensor", 1, 1)
STREAMED = 1 << 10
Z = np.zeros(64, np.uint8)
whole = _native.SegmentDecoder.exact("dense", 8, 1, "whole", False)
planes = _native.SegmentDecoder.exact("dense", 8, 2, "bytes", False)
gaps = _native.SegmentDecoder.exact("relative-index", 8, 1, "whole", False)
bitmap = _native.SegmentDecoder.codebook("bitmap", 8, 2, 4, TENSOR, np.arange(4, dtype=np.uint16).tobytes())


def batch(*places: tuple[int, int]) -> _native.Batch:
    chunks, starts = np.array(places, np.int64).reshape(-1, 2).T.copy()
    return _native.Batch(chunks, starts, STREAMED)


def test_segments_of_several_tensors_in_several_chunks() -> None:
    data = [np.arange(300, dtype=np.uint8), np.arange(100, dtype=np.uint8)[::-1].copy()]
    first, second = np.zeros(250, np.uint8), np.zeros((10, 2), np.uint16)
    made = batch((0, 0), (0, 200), (1, 30), (0, 260), (1, 80))
    made.add(whole, 0, 8, 100, bytes(3), [100, 100, 50], [], [], first)
    # Two planes of 16 and of 4 elements.
    made.add(planes, 3, 8, 16, bytes(4), [16, 16, 4, 4], [], [], second)
    assert made.sizes() == {0: 200 + 32, 1: 50 + 8}
    assert made.decode(1, data[1]) is None
    assert made.decode(0, data[0]) is None
    assert first.tolist() == [*data[0][:100], *data[0][200:300], *data[1][30:80]]
    low = [*data[0][260:276], *data[1][80:84]]
    high = [*data[0][276:292], *data[1][84:88]]
    assert second.reshape(-1).tolist() == [int(a) + 256 * int(b) for a, b in zip(low, high, strict=True)]
    assert made.decode(2, Z) is None  # nothing is in it


def test_sparse_segments_and_parts_without_bytes() -> None:
    out, none = np.full(20, 9, np.uint8), np.full(8, 9, np.uint16)
    made = batch((0, 1), (-1, 0), (0, 6))
    made.add(gaps, 0, 8, 10, bytes(4), [2, 2, 0, 0], [2, 0], [2, 0], out)
    made.add(bitmap, 2, 2, 8, bytes(2), [1, 1], [2], [], none)
    assert made.sizes() == {-1: 10, 0: 10 + 16}
    # One zero before the first of two entries, three before the second; positions 1 and 3 with codes 1 and 2.
    assert made.decode(0, np.array([99, 1, 3, 7, 8, 99, 0b1010, 0b1001], np.uint8)) is None
    assert made.decode(-1, b"") is None
    assert out.tolist() == [0, 7, 0, 0, 0, 8, 0, 0, 0, 0] + [0] * 10
    assert none.tolist() == [0, 1, 0, 2, 0, 0, 0, 0]


def test_who_is_at_fault_and_why() -> None:
    made = batch((0, 0), (0, 8), (0, 16))
    made.add(whole, 0, 8, 8, bytes(1), [8], [], [], np.zeros(8, np.uint8))
    made.add(whole, 1, 8, 8, bytes([0, 1]), [8, 8], [], [], np.zeros(16, np.uint8))
    number, segment, reason = made.decode(0, Z) or (None, None, "")
    assert (number, segment) == (1, 1)
    assert reason


@pytest.mark.parametrize(
    "arguments",
    [
        (whole, 0, 0, 8, bytes(1), [8], [], []),  # bits
        (whole, 0, 8, 0, bytes(1), [8], [], []),  # segment
        (whole, 0, 8, 1 << 32, bytes(1), [8], [], []),
        (whole, 0, 8, 8, bytes(2), [8], [], []),  # codings
        (whole, 0, 8, 8, bytes([2]), [8], [], []),
        (whole, 0, 8, 8, bytes(1), [8, 8], [], []),  # lengths
        (whole, 0, 8, 8, bytes(1), [8], [8], []),  # entries
        (whole, 0, 8, 8, bytes(1), [8], [], [8]),  # gaps
        (gaps, 0, 8, 8, bytes(2), [8, 8], [8], []),
        (gaps, 0, 8, 8, bytes(2), [8, 8], [], [8]),
        (whole, 1, 8, 8, bytes(1), [8], [], []),  # place
        (whole, 1 << 40, 8, 8, bytes(1), [8], [], []),
        (planes, 0, 8, 4, bytes(1), [8], [], []),
    ],
)
def test_numbers_that_do_not_agree(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"."):
        native.Batch(np.zeros(1, np.int64), np.zeros(1, np.int64), STREAMED).add(
            *arguments, np.zeros(8, np.uint8)
        )


def test_places_that_do_not_fit() -> None:
    out = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="before its chunk"):
        batch((0, -1)).add(whole, 0, 8, 8, bytes(1), [8], [], [], out)
    with pytest.raises(ValueError, match="no place"):
        _native.Batch(np.zeros(1, np.int64), np.zeros(0, np.int64), 0).add(
            whole, 0, 8, 8, bytes(1), [8], [], [], out
        )
    with pytest.raises(ValueError, match="whole elements"):
        batch((0, 0)).add(planes, 0, 8, 8, bytes(2), [8, 8], [], [], out[:7])
    for start, data in ((0, Z[:7]), (57, Z), (1 << 62, Z)):
        made = batch((0, start))
        made.add(whole, 0, 8, 8, bytes(1), [8], [], [], out)
        with pytest.raises(ValueError, match="not in the chunk"):
            made.decode(0, data)


def test_memory_is_populated_and_keeps_its_content() -> None:
    memory = np.arange(3 << 20, dtype=np.uint8)
    _native.populate(memory[1:-1])
    assert np.array_equal(memory, np.arange(3 << 20, dtype=np.uint8))
    _native.populate(np.empty(0, np.uint8))
    with pytest.raises(BufferError):
        _native.populate(b"read-only")

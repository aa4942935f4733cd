"""Tensors of more than 2^32 elements, of which little is stored; and a real one, slowly."""

from __future__ import annotations

import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.format.crafted import BITMAP, RELATIVE, almost_empty, one_symbol
from tests.reference.dcz_reference_writer import draft

from dcz.errors import DigestMismatch
from dcz.format import Reader, Writer, verify

ELEMENTS = 1 << 33
# Around what 32 bits can count, at the ends of a segment and of the tensor.
PLACES = (0, 1, (1 << 24) - 1, 1 << 24, (1 << 32) - 1, 1 << 32, (1 << 32) + 5, ELEMENTS - 2)


def read(reader: Reader, start: int, stop: int) -> list[int]:
    numbers: list[int] = reader.tensor("t")[start:stop].tolist()
    return numbers


@pytest.mark.parametrize("layout", [RELATIVE, BITMAP], ids=lambda layout: str(layout["kind"]))
def test_slices_of_a_sparse_tensor(layout: dict[str, Any]) -> None:
    stored = {place: bytes([number + 1]) for number, place in enumerate(PLACES)}
    data = draft([almost_empty("t", "u8", [ELEMENTS], stored, layout=layout)]).build()
    assert len(data) < 1 << 20
    tracemalloc.start()
    with Reader(data) as reader:
        lazy = reader.tensor("t")
        assert (len(lazy), lazy.nbytes) == (ELEMENTS, ELEMENTS)
        for number, place in enumerate(PLACES):
            assert lazy[place] == lazy[place - ELEMENTS] == number + 1
        assert read(reader, (1 << 32) - 2, (1 << 32) + 7) == [0, 5, 6, 0, 0, 0, 0, 7, 0]
        assert read(reader, ELEMENTS - 3, ELEMENTS) == [0, 8, 0]
        assert lazy[: -ELEMENTS + 2].tolist() == [1, 2]
        assert lazy[(1 << 32) + 5 : (1 << 32) - 2 : -5].tolist() == [7, 6]
        assert lazy[1 << 30 : (1 << 30) + 100].any() == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 128 << 20


def test_slices_of_a_dense_tensor() -> None:
    data = draft([one_symbol("t", [ELEMENTS], 9)]).build()
    assert len(data) < 1 << 20
    with Reader(data) as reader:
        for place in PLACES:
            assert read(reader, place, place + 2) == [9] * 2


def test_rows_and_columns_of_a_tensor_with_many_elements() -> None:
    side = 1 << 17
    stored = {0: b"\1", (1 << 32) + 3: b"\2", side * side - 1: b"\3"}
    data = draft([almost_empty("t", "u8", [side, side], stored)]).build()
    with Reader(data) as reader:
        assert reader.tensor("t")[1 << 15, :5].tolist() == [0, 0, 0, 2, 0]
        tracemalloc.start()
        csr, csc = reader.tensor("t").csr(), reader.tensor("t").csc()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 32 << 20
    assert csr.indices.tolist() == [0, 3, side - 1]
    assert csr.data.tolist() == [1, 2, 3]
    assert np.flatnonzero(np.diff(csr.indptr)).tolist() == [0, 1 << 15, side - 1]
    assert csc.indices.tolist() == [0, 1 << 15, side - 1]
    assert csc.data.tolist() == [1, 2, 3]
    assert np.flatnonzero(np.diff(csc.indptr)).tolist() == [0, 3, side - 1]


def test_groups_and_channels_are_counted_beyond_32_bits() -> None:
    """The group of an element follows from its number in the whole tensor."""
    shape = [3, 1 << 16, 1 << 16]
    place = 2 * (1 << 32) + 70_000
    one = almost_empty("t", "f16", shape, {})
    segment = one.fields["segment"]
    # By hand: one stored entry, whose code is 5, and a scale for each channel of the first axis.
    number, inside = divmod(place, segment)
    gaps = bytes([255] * (inside // 255) + [inside % 255])
    segments = -(-prod(shape) // segment)
    fields = one.fields
    fields["values"] = {"kind": "affine", "bits": 8, "granularity": {"axis": 0, "kind": "channel"}}
    fields["entries"][number], fields["gaps"][number] = 1, len(gaps)
    fields["lengths"][2 * number : 2 * number + 2] = [len(gaps), 1]
    fields["codings"], fields["lengths"] = b"\0" + fields["codings"], [12, *fields["lengths"]]
    one.parts[number] = gaps + bytes([128 + 5])
    one.parts.insert(0, np.array([1, 2, 3], np.float32).tobytes())
    assert len(one.parts) == segments + 1
    with Reader(draft([one]).build()) as reader:
        row = reader.tensor("t")[2, 1]
        assert row[70_000 - (1 << 16)] == 15
        assert np.count_nonzero(row) == 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["auto", "bitmap"])
def test_a_tensor_of_8_GiB_is_written_and_verified(tmp_path: Path, layout: Any) -> None:
    """The system gives the zeros without memory, as long as nobody writes to them."""
    array = np.zeros(ELEMENTS, np.uint8)
    for number, place in enumerate(PLACES):
        array[place] = number + 1
    with Writer(tmp_path / "file.dcz") as writer:
        entry = writer.add_tensor("t", array, layout=layout)
    assert entry.layout.kind != "dense" or layout == "auto"
    verify(tmp_path / "file.dcz", deep=True)
    with Reader(tmp_path / "file.dcz") as reader:
        for number, place in enumerate(PLACES):
            assert reader.tensor("t")[place] == number + 1
        assert read(reader, (1 << 32) - 2, (1 << 32) + 7) == [0, 5, 6, 0, 0, 0, 0, 7, 0]


@pytest.mark.slow
def test_a_wrong_digest_of_a_large_tensor_is_found() -> None:
    data = draft(
        [almost_empty("t", "bf16", [ELEMENTS], {(1 << 32) + 1: ml_dtypes.bfloat16(1).tobytes()})]
    ).build()
    with pytest.raises(DigestMismatch):
        verify(data, deep=True)

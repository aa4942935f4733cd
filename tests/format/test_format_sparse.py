"""Compressed rows and columns, against scipy and against positions of bits, without making the tensor dense."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.format.crafted import BITMAP, DENSE, RELATIVE, almost_empty, one_symbol
from tests.reference.dcz_reference_coders import raw, zstd_library
from tests.reference.dcz_reference_writer import Codebook, Exact, draft
from tests.reference.dcz_reference_writer import tensor as reference_tensor

from dcz.errors import UsageError
from dcz.format import (
    DTYPES,
    AffineTensor,
    CodebookTensor,
    CompressedSparse,
    PerGroup,
    PerTensor,
    Reader,
    Writer,
)

LAYOUTS: list[Any] = ["dense", "relative-index", "bitmap"]


def both(reader: Reader, name: str = "t") -> tuple[CompressedSparse, CompressedSparse]:
    return reader.tensor(name).csr(), reader.tensor(name).csc()


def check(one: CompressedSparse, kind: Literal["csr", "csc"], bits: np.ndarray, stored: np.ndarray) -> None:
    """The entries are those at ``stored``, in order, with the bits of the elements."""
    assert (one.kind, one.shape) == (kind, bits.shape)
    mask, values = (stored, bits) if kind == "csr" else (stored.T, bits.T)
    major, minor = np.nonzero(mask)
    assert one.indices.dtype == one.indptr.dtype == np.int64
    np.testing.assert_array_equal(one.indices, minor)
    np.testing.assert_array_equal(np.diff(one.indptr), mask.sum(axis=1))
    assert one.indptr[0] == 0
    np.testing.assert_array_equal(np.ascontiguousarray(one.data).view(bits.dtype), values[major, minor])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_entries_are_those_with_a_bit_that_is_not_zero(data: st.DataObject) -> None:
    """In small segments; -0.0 and NaNs are entries."""
    shape = (data.draw(st.integers(0, 7)), data.draw(st.integers(0, 7)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    few = np.array([0, 0, 0, 0x8000, 0x7E01, 1, 0x3C00], np.uint16)
    bits = random.choice(few, shape)
    layout = data.draw(st.sampled_from([DENSE, BITMAP, RELATIVE, {**RELATIVE, "bits": 2}]))
    segment = data.draw(st.integers(1, 12))
    if bits.size == 0:
        layout, segment = DENSE, 1
    coder = data.draw(st.sampled_from([raw, zstd_library]))
    one = reference_tensor(
        "t", "f16", list(shape), Exact(bits.tobytes()), layout=layout, segment=segment, coders=coder
    )
    with Reader(draft([one]).build(), threads=1) as reader:
        csr, csc = both(reader)
    check(csr, "csr", bits, bits != 0)
    check(csc, "csc", bits, bits != 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_entries_of_a_sparse_layout_are_what_is_stored(data: st.DataObject) -> None:
    """Also where the stored value is zero."""
    shape = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    stored = random.random(shape) < data.draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    centroids = np.array([0, 7, 0], np.uint8)
    codes = random.integers(0, 3, shape).astype(np.uint8)
    one = reference_tensor(
        "t",
        "u8",
        list(shape),
        Codebook(2, 3, codes[stored].tolist(), centroids.tobytes()),
        layout=data.draw(st.sampled_from([BITMAP, RELATIVE])),
        stored=stored.reshape(-1).tolist(),
        segment=data.draw(st.integers(1, 12)),
    )
    with Reader(draft([one]).build(), threads=1) as reader:
        csr, csc = both(reader)
    check(csr, "csr", centroids[codes], stored)
    check(csc, "csc", centroids[codes], stored)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_scipy_gets_the_same_from_the_dense_tensor(tmp_path: Path, dtype: str, layout: Any) -> None:
    random = np.random.default_rng(5)
    numbers = random.integers(1, 2 if dtype == "bool" else 100, (37, 53))
    dense = np.where(random.random((37, 53)) < 0.2, numbers, 0).astype(DTYPES[dtype].numpy)
    with Writer(tmp_path / "file.dcz") as writer:
        assert writer.add_tensor("t", dense, layout=layout).layout.kind == layout
    for_scipy = dense.astype(np.float32) if DTYPES[dtype].is_float and DTYPES[dtype].itemsize < 4 else dense
    with Reader(tmp_path / "file.dcz") as reader:
        made = (one.scipy() for one in both(reader))
        for one, expected in zip(
            made, (scipy.sparse.csr_array(for_scipy), scipy.sparse.csc_array(for_scipy)), strict=True
        ):
            assert type(one) is type(expected)
            assert (one.dtype, one.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(one.indptr, expected.indptr)
            np.testing.assert_array_equal(one.indices, expected.indices)
            np.testing.assert_array_equal(one.data, expected.data)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", ["affine", "codebook"])
def test_computed_values_of_several_segments_are_entries(tmp_path: Path, values: str, layout: Any) -> None:
    random = np.random.default_rng(6)
    shape = (900, 1100)
    mask = random.random(shape) < 0.05
    codes = random.integers(1, 16, shape).astype(np.uint8)
    tensor: AffineTensor | CodebookTensor
    if values == "affine":
        scales = random.random(shape[0] * 11).astype(np.float32)
        points = np.zeros(scales.size, np.uint8)
        codes = np.where(mask, codes, np.uint8(0))
        kept = None if layout == "dense" else mask
        tensor = AffineTensor("f32", shape, 4, codes, scales, PerGroup(size=100), points, kept)
    else:
        centroids = np.arange(16, dtype=np.float32).reshape(1, 16)
        codes = np.where(mask, codes, np.uint8(0))
        tensor = CodebookTensor(
            "f32", shape, 4, codes, centroids, PerTensor(), None if layout == "dense" else mask
        )
    with Writer(tmp_path / "file.dcz") as writer:
        entry = writer.add_tensor("t", tensor, layout=layout)
    assert entry.segment < 900 * 1100
    with Reader(tmp_path / "file.dcz") as reader:
        dense = reader.read("t")
        for one in both(reader):
            assert one.data.size == np.count_nonzero(mask)
            np.testing.assert_array_equal(one.scipy().toarray(), dense)


def test_only_two_dimensions_have_rows_and_columns() -> None:
    shapes: list[list[int]] = [[], [4], [2, 2, 1]]
    for shape in shapes:
        one = reference_tensor("t", "u8", shape, Exact(bytes(range(int(np.prod(shape, dtype=int))))))
        with Reader(draft([one]).build()) as reader:
            for method in (reader.tensor("t").csr, reader.tensor("t").csc):
                with pytest.raises(UsageError, match="dimensions"):
                    method()


# Memory

SIDE = 16_384  # 1 GiB of f32


@pytest.mark.parametrize("layout", [RELATIVE, BITMAP], ids=lambda layout: str(layout["kind"]))
def test_a_large_sparse_tensor_is_never_dense(layout: dict[str, Any]) -> None:
    random = np.random.default_rng(7)
    places = np.unique([(segment << 22) + random.integers(0, 1 << 22, 50) for segment in (0, 31, 63)])
    numbers = random.normal(size=places.size).astype(np.float32)
    entries = {int(place): number.tobytes() for place, number in zip(places, numbers, strict=True)}
    data = draft([almost_empty("t", "f32", [SIDE, SIDE], entries, layout=layout)]).build()
    with Reader(data) as reader:
        tracemalloc.start()
        csr, csc = both(reader)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 32 << 20
    rows, columns = np.divmod(places, SIDE)
    for one in (csr, csc):
        expected = scipy.sparse.coo_array((numbers, (rows, columns)), shape=(SIDE, SIDE))
        assert one.data.size == places.size
        difference: Any = one.scipy() != expected.asformat(one.kind)
        assert difference.nnz == 0


def test_a_large_dense_tensor_is_taken_apart_by_segments() -> None:
    """64 MiB of zeros in 16 segments."""
    data = draft([one_symbol("t", [8192, 8192], 0, segment=1 << 22)]).build()
    with Reader(data) as reader:
        tracemalloc.start()
        csr, csc = both(reader)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert csr.data.size == csc.data.size == 0
    assert peak < 32 << 20

"""Codes to elements, against the formulas of docs/format.md, sections 5.3 and 5.4, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine, decode_codebook, group_numbers
from tests.native.isas import SIZES, forced, on_each_isa
from tests.native.segments import dequantize, look_up

from dcz.errors import CorruptStream
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity
from dcz.format.parameters import groups_of
from dcz.format.tensors import CodebookTensor, PerChannel, PerGroup, PerTensor, UniformTensor, group_count

FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def same_bits(actual: bytes, expected: np.ndarray) -> None:
    unsigned = UNSIGNED[expected.dtype.itemsize]
    np.testing.assert_array_equal(np.frombuffer(actual, unsigned), expected.reshape(-1).view(unsigned))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], Granularity]:
    shape = tuple(draw(st.lists(st.integers(1, 12), max_size=3)))
    kinds: list[st.SearchStrategy[Granularity]] = [
        st.just(PerTensor()),
        st.builds(PerGroup, size=st.integers(1, 15)),
    ]
    if shape:
        kinds.append(st.builds(PerChannel, axis=st.integers(0, len(shape) - 1)))
    return shape, draw(st.one_of(kinds))


@st.composite
def selections(draw: st.DrawFn, elements: int) -> tuple[int, np.ndarray | None, np.ndarray]:
    """A start, positions behind it or None for all, and the elements that these are."""
    start = draw(st.integers(0, elements - 1))
    stop = draw(st.integers(start, elements))
    if draw(st.booleans()):
        return start, None, np.arange(start, stop)
    kept = draw(st.lists(st.booleans(), min_size=stop - start, max_size=stop - start))
    positions = np.flatnonzero(kept).astype(np.uint32)
    return start, positions, start + positions.astype(np.int64)


@on_each_isa
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_centroids_are_looked_up_by_code_and_group(isa: str, data: st.DataObject) -> None:
    shape, granularity = data.draw(shapes())
    dtype = data.draw(st.sampled_from(["f64", "f32", "bf16", "u8"]))
    start, positions, chosen = data.draw(selections(int(np.prod(shape, dtype=int))))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    size = data.draw(st.sampled_from([1, 2, 3, 16, 256]))
    row = DTYPES[dtype]
    bits = max(1, (size - 1).bit_length())
    codes = random.integers(0, size, shape).astype(np.uint8)
    centroids = np.frombuffer(
        random.bytes(group_count(granularity, shape) * size * row.itemsize), row.numpy
    ).reshape(-1, size)
    expected = decode_codebook(CodebookTensor(dtype, shape, bits, codes, centroids, granularity))
    groups = groups_of(granularity, shape)
    with forced(isa):
        found = look_up(codes.reshape(-1)[chosen], centroids, size, row.itemsize, groups, start, positions)
        same_bits(found, expected.reshape(-1)[chosen])


@on_each_isa
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_codes_are_scaled_and_rounded(isa: str, data: st.DataObject) -> None:
    shape, granularity = data.draw(shapes())
    dtype = data.draw(st.sampled_from(FLOATS))
    start, positions, chosen = data.draw(selections(int(np.prod(shape, dtype=int))))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    bits = data.draw(st.integers(1, 8))
    groups = group_count(granularity, shape)
    wide = np.dtype(np.float64 if dtype == "f64" else np.float32)
    exponents = random.integers(-60, 40, groups).astype(wide)
    scales = (random.choice([-1, 1], groups) * random.random(groups) * 2.0**exponents).astype(wide)
    points = random.integers(0, 1 << bits, groups).astype(np.uint8) if data.draw(st.booleans()) else None
    codes = random.integers(0, 1 << bits, shape).astype(np.uint8)
    with np.errstate(over="ignore"):
        expected = decode_affine(UniformTensor(dtype, shape, bits, codes, scales, granularity, points))
    kinds = groups_of(granularity, shape)
    with forced(isa):
        found = dequantize(codes.reshape(-1)[chosen], scales, points, bits, dtype, kinds, start, positions)
        same_bits(found, expected.reshape(-1)[chosen])


@on_each_isa
@pytest.mark.parametrize("dtype", FLOATS)
def test_runs_of_every_length_are_decoded_alike(isa: str, dtype: str) -> None:
    row, bits = DTYPES[dtype], 8
    wide = np.float64 if dtype == "f64" else np.float32
    scales = np.array([0.37], wide)
    for size in SIZES[1:]:
        codes = np.random.default_rng(size).integers(0, 1 << bits, size).astype(np.uint8)
        tensor = UniformTensor(dtype, (size,), bits, codes, scales, PerTensor())
        with forced(isa):
            found = dequantize(codes, scales, None, bits, dtype, ("tensor", 1, 1), 0, None)
            same_bits(found, decode_affine(tensor))
        centroids = np.frombuffer(np.random.default_rng(size).bytes(256 * row.itemsize), row.numpy)
        with forced(isa):
            same_bits(
                look_up(codes, centroids, 256, row.itemsize, ("tensor", 1, 1), 0, None), centroids[codes]
            )
            for few in (2, 16, 17, 32, 33, 64):
                found = look_up(codes % few, centroids[:few], few, row.itemsize, ("tensor", 1, 1), 0, None)
                same_bits(found, centroids[codes % few])


def hard_to_round(dtype: str) -> np.ndarray:
    """float32 on, just below and just above every value of a small type and every middle between two; then extremes."""
    row = DTYPES[dtype]
    patterns = np.arange(1 << (8 * row.itemsize - 1), dtype=np.uint32).astype(UNSIGNED[row.itemsize])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = patterns.view(row.numpy).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    marks = np.concatenate([values, (values[1:] + values[:-1]) / 2, values[-1:] * 1.01, values[-1:] * 2])
    marks = np.concatenate([marks, [values[-1] + (values[-1] - values[-2]) / 2]])
    marks = marks[marks < np.finfo(np.float32).max].astype(np.float32)
    extremes = np.array([1e-45, 1.2e-38, 3.4028235e38, 1e30, 1e-30], np.float32)
    near = [marks, np.nextafter(marks, np.float32(0)), np.nextafter(marks, np.float32(np.inf)), extremes]
    positive = np.concatenate(near)
    positive = positive[np.isfinite(positive)]
    return np.concatenate([positive, -positive])


def scaled(dtype: str, scales: np.ndarray, difference: int) -> bytes:
    """scale x difference for each of the scales, which is a group of its own."""
    codes = np.full(scales.size, 128 + difference, np.uint8)
    return dequantize(codes, scales, None, 8, dtype, ("channel", 1, scales.size), 0, None)


@on_each_isa
@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype != "f64"])
def test_products_are_rounded_to_nearest_and_to_even(isa: str, dtype: str) -> None:
    scales = hard_to_round(dtype) if dtype != "f32" else hard_to_round("bf16")
    for difference in (1, -1, 0, 3, -128, 127):
        with np.errstate(over="ignore", under="ignore"):
            products = scales * np.float32(difference)
            expected = products.astype(DTYPES[dtype].numpy)
        with forced(isa):
            same_bits(scaled(dtype, scales, difference), expected)


@on_each_isa
def test_overflow_gives_infinity_or_the_one_nan_with_the_sign_of_the_product(isa: str) -> None:
    scales = np.array([3e38, -3e38], np.float32)
    with forced(isa):
        for dtype, pattern in {
            "f32": 0x7F800000,
            "f16": 0x7C00,
            "bf16": 0x7F80,
            "f8_e5m2": 0x7C,
            "f8_e4m3fn": 0x7F,
        }.items():
            unsigned = UNSIGNED[DTYPES[dtype].itemsize]
            sign = 1 << (8 * DTYPES[dtype].itemsize - 1)
            for difference, negative in ((100, 1), (-100, 0)):
                got = np.frombuffer(scaled(dtype, scales, difference), unsigned).tolist()
                assert got == [pattern | sign * (1 - negative), pattern | sign * negative]
        assert np.signbit(np.frombuffer(scaled("f32", scales, 0), np.float32)).tolist() == [False, True]
        wide = np.array([1.5e308, -1.5e308, 5e-324])
        got = np.frombuffer(scaled("f64", wide, 2), np.float64).tolist()
        assert got == [np.inf, -np.inf, 1e-323]


@on_each_isa
def test_codes_and_groups_without_parameters_are_refused(isa: str) -> None:
    codes = np.array([0, 1, 2, 3], np.uint8)
    with forced(isa):
        look_up(codes, bytes(4), 4, 1, ("tensor", 1, 1), 0, None)
        with pytest.raises(CorruptStream):
            look_up(codes, bytes(4), 3, 1, ("tensor", 1, 1), 0, None)
        for groups, start in ((("channel", 1, 4), 0), (("group", 8, 2), 0), (("group", 2, 2), 1 << 62)):
            with pytest.raises(CorruptStream):
                look_up(codes, bytes(4), 4, 1, groups, start, None)
            for points in (None, bytes(1)):
                with pytest.raises(CorruptStream):
                    dequantize(codes, np.ones(1, np.float32), points, 2, "f8_e5m2", groups, start, None)
        with pytest.raises(CorruptStream):  # a scale for each group, but not a zero point
            dequantize(codes, np.ones(4, np.float32), bytes(2), 2, "f8_e5m2", ("channel", 1, 4), 0, None)


def test_the_oracle_counts_groups_as_the_specification_does() -> None:
    """Section 5.4 by hand, for one tensor of each kind."""
    assert group_numbers((2, 2), PerTensor()).tolist() == [[0, 0], [0, 0]]
    assert group_numbers((2, 3), PerChannel(axis=1)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert group_numbers((2, 5), PerGroup(size=2)).tolist() == [[0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]

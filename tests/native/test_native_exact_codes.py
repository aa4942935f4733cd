"""Recognizing what a tensor holds, against numpy (csrc/exact_codes.cpp, csrc/planes.cpp, csrc/kernels_impl.h)."""

from __future__ import annotations

import heapq
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import forced, on_each_isa
from tests.native.segments import join_planes

from dcz import _native

TYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
NO_LIMIT = 1 << 20


def as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# -- counting


@on_each_isa
def test_counts_are_those_of_numpy(isa: str) -> None:
    random = np.random.default_rng(1)
    with forced(isa):
        for count in (0, 1, 63, 64, 4095, 4096, 4200, 16_400, 70_001, 300_000):
            for symbols in (
                random.integers(0, 256, count),
                np.clip(np.rint(random.normal(120, 2, count)), 0, 255),  # nearly all in one window
                np.clip(np.rint(random.normal(250, 2, count)), 0, 255),
                np.where(random.random(count) < 0.01, 255, np.minimum(random.geometric(0.3, count), 14)),
                np.full(count, 7),
            ):
                data = symbols.astype(np.uint8)
                counts = np.empty(256, np.uint64)
                _native.histogram(data, counts)
                assert (counts == np.bincount(data, minlength=256)).all()


# -- narrower floats


def widened(bits: np.ndarray, narrow: str) -> np.ndarray:
    """By the meaning of the bits, in binary64, NaNs apart."""
    if narrow == "bf16":
        return bits.astype(np.uint32) << 16
    exponents, mantissas = {"f16": (5, 10), "f32": (8, 23)}[narrow]
    wide_exponents, wide_mantissas = {"f16": (8, 23), "f32": (11, 52)}[narrow]
    wide: type[Any] = np.uint32 if narrow == "f16" else np.uint64
    wide_float = np.float32 if narrow == "f16" else np.float64
    sign = bits >> (exponents + mantissas)
    exponent = (bits >> mantissas & ((1 << exponents) - 1)).astype(int)
    mantissa = (bits & ((1 << mantissas) - 1)).astype(int)
    bias = (1 << (exponents - 1)) - 1
    value = np.where(
        exponent == 0,
        np.ldexp(mantissa.astype(float), 1 - bias - mantissas),
        np.ldexp((mantissa + (1 << mantissas)).astype(float), exponent - bias - mantissas),
    )
    top = exponent == (1 << exponents) - 1
    finite = np.where(top, 0, value).astype(wide_float).view(wide)
    special = wide((1 << wide_exponents) - 1) << wide(wide_mantissas) | mantissa.astype(wide) << wide(
        wide_mantissas - mantissas
    )
    out: np.ndarray = np.where(top, special, finite) | sign.astype(wide) << wide(
        wide_exponents + wide_mantissas
    )
    return out


@on_each_isa
@pytest.mark.parametrize(("narrow", "wide"), [("f16", "f32"), ("bf16", "f32"), ("f32", "f64")])
def test_widening_and_narrowing_keep_every_bit(isa: str, narrow: str, wide: str) -> None:
    if narrow == "f32":
        random = np.random.default_rng(2)
        bits = random.integers(0, 1 << 32, 200_001, dtype=np.uint32)
        edges = [e << 23 | m for e in (0, 1, 2, 127, 254, 255) for m in (0, 1, 0x400000, 0x7FFFFF)]
        bits[: len(edges)] = edges
        bits[len(edges) : 2 * len(edges)] = np.array(edges, np.uint32) | 1 << 31
    else:
        bits = np.arange(1 << 16, dtype=np.uint16)
    expected = widened(bits, narrow)
    with forced(isa):
        out = np.empty_like(expected)
        _native.widen(as_bytes(bits), narrow, wide, as_bytes(out))
        assert (out == expected).all()
        back = np.empty_like(bits)
        assert _native.narrow(as_bytes(expected), wide, narrow, as_bytes(back))
        assert (back == bits).all()


@on_each_isa
@settings(max_examples=300, deadline=None)
@given(st.integers(0, (1 << 64) - 1), st.sampled_from([("f16", "f32"), ("bf16", "f32"), ("f32", "f64")]))
def test_what_is_not_of_a_narrow_type_is_noticed(isa: str, bits: int, types: tuple[str, str]) -> None:
    narrow, wide = types
    unsigned = np.uint64 if wide == "f64" else np.uint32
    element = np.array([bits & ((1 << 64) - 1 if wide == "f64" else (1 << 32) - 1)], unsigned)
    back = np.empty(1, np.uint32 if narrow == "f32" else np.uint16)
    with forced(isa):
        exact = _native.narrow(as_bytes(element), wide, narrow, as_bytes(back))
    assert exact == (widened(back, narrow)[0] == element[0])
    if not exact and not np.isnan(element.view(f"f{element.itemsize}"))[0]:
        with np.errstate(over="ignore"):
            value = element.view(f"f{element.itemsize}")[0]
            assert value.astype(TYPES[narrow]).astype(value.dtype) != value


# -- shared values


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shared_values_are_the_distinct_elements_of_each_row(data: st.DataObject) -> None:
    itemsize = data.draw(st.sampled_from([1, 2, 4, 8]))
    rows, row = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 400))
    size = data.draw(st.sampled_from([1, 2, 100, 300]))
    skip = data.draw(st.booleans())
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    few = np.frombuffer(random.bytes(size * itemsize), f"<u{itemsize}")
    array = few[random.integers(0, size, (rows, row))]
    array = np.where(random.random(array.shape) < 0.5, array, 0).astype(few.dtype) if skip else array
    limit = data.draw(st.sampled_from([1, 50, 256, NO_LIMIT]))
    expected = [np.unique(line[line != 0] if skip else line) for line in array]
    codes = np.full(array.size, 0xEE, np.uint8)
    found = _native.shared_values(as_bytes(array), itemsize, row, skip, limit, codes)
    if max(map(len, expected)) > min(limit, 256):
        assert found is None
        return
    assert found is not None
    centroids, most = found
    assert most == max(1, *map(len, expected)) if len(expected) > 1 else max(1, len(expected[0]))
    table = np.frombuffer(centroids, array.dtype).reshape(rows, most)
    for line, values in zip(table, expected, strict=True):
        assert line.tolist() == [*values, *[values[-1] if values.size else 0] * (most - values.size)]
    back = np.take_along_axis(table, codes.reshape(rows, row).astype(int), axis=1)
    stored = array != 0 if skip else np.ones(array.shape, bool)
    assert (back == array)[stored].all()
    assert (codes.reshape(rows, row)[~stored] == 0).all()


# -- uniform codes


def product(scale: np.ndarray, difference: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    """docs/format.md, 5.3: rounded to binary32, then to the type."""
    single = (scale.astype(np.float64) * difference).astype(np.float32)
    rounded: np.ndarray = single.astype(dtype)
    return rounded


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("scale_dtype", TYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_codes_of_a_quantizer_are_found(name: str, scale_dtype: str, bits: int) -> None:
    random = np.random.default_rng(bits)
    dtype = TYPES[name]
    most = (1 << (bits - 1)) - 1
    for row in (32, 128, 500):
        for lowest, highest in ((-most, most), (-most - 1, most), (-3, (1 << bits) - 4)):
            scales = (np.exp(random.normal(size=(60, 1))) * 0.01).astype(TYPES[scale_dtype])
            spread = np.rint(random.normal(size=(60, row)) * most / 2.5)
            wanted = np.clip(spread, lowest, highest).astype(int)  # integers have no negative zero
            wanted[0] = 0
            weights = product(scales.astype(np.float32), wanted, dtype)
            codes = np.empty(weights.size, np.uint8)
            found = _native.uniform_codes(as_bytes(weights), name, row, False, codes)
            assert found is not None
            packed, kept, points, width = found
            assert width <= bits
            assert TYPES[kept].itemsize <= TYPES[scale_dtype].itemsize
            got = np.frombuffer(packed, np.float32)
            assert (got.astype(TYPES[kept]).astype(np.float32) == got).all()
            zero = np.frombuffer(points, np.uint8) if points else np.full(60, 1 << (width - 1))
            assert not codes.max() >> width
            assert not zero.max() >> width
            difference = codes.reshape(60, row).astype(int) - zero[:, None].astype(int)
            assert product(got[:, None], difference, dtype).tobytes() == weights.tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_weights_that_no_quantizer_made_have_no_codes(name: str) -> None:
    random = np.random.default_rng(3)
    dtype = TYPES[name]
    good = product(np.full((4, 1), 0.01, np.float32), random.integers(-100, 101, (4, 64)), dtype)
    codes = np.empty(good.size, np.uint8)
    assert _native.uniform_codes(as_bytes(good), name, 64, False, codes) is not None
    cases = [random.normal(size=(4, 64)).astype(dtype)]
    for odd in ("nan", "inf", "-inf", "-0.0"):
        changed = good.copy()
        changed[2, 5] = float(odd)
        cases.append(changed)
    for case in cases:
        assert _native.uniform_codes(as_bytes(case), name, 64, False, codes) is None


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", [*TYPES, "i64"])
def test_a_row_looks_quantized_if_codes_are_found_for_it(name: str, skip: bool) -> None:
    random = np.random.default_rng(6)
    dtype = TYPES.get(name, np.dtype(np.int64))
    seen = set()
    for count in (1, 16, 300, 4000):
        for row in (
            random.normal(size=count) * 1000,
            random.choice(random.normal(size=200) * 1000, count),
            random.choice([1, 2.5, 1000], count),
            product(
                np.full(count, 0.01, np.float32), random.integers(-127, 128, count), np.dtype(np.float64)
            ),
            np.where(random.random(count) < 0.9, 0, random.normal(size=count) * 1000),
        ):
            elements = row.astype(dtype)
            kept = elements.view(f"u{dtype.itemsize}")
            distinct = np.unique(kept[kept != 0] if skip else kept).size
            codes = np.empty(count, np.uint8)
            uniform = name in TYPES and _native.uniform_codes(as_bytes(elements), name, count, skip, codes)
            found = _native.looks_quantized(as_bytes(elements), dtype.itemsize, name, skip, count // 4)
            assert found == (
                distinct <= min(256, count // 4) or (uniform is not None and uniform is not False)
            )
            seen.add(found)
    assert seen == {False, True}


# -- splits


@on_each_isa
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_splits_are_weighed_by_what_their_planes_take(isa: str, itemsize: int) -> None:
    random = np.random.default_rng(itemsize)
    for count in (0, 1, 100, 5000):
        elements = np.frombuffer(random.normal(size=count).tobytes(), f"<u{itemsize}")
        one, top = elements.dtype.type(1), elements.dtype.type(8 * itemsize - 1)
        rotated = (elements << one) | (elements >> top)
        with forced(isa):
            plain, turned = (
                sum(
                    _native.huffman_estimate(plane.copy()) for plane in as_bytes(each).reshape(-1, itemsize).T
                )
                for each in (elements, rotated)
            )
            whole = _native.huffman_estimate(as_bytes(elements))
            assert _native.plane_costs(as_bytes(elements), itemsize, True) == (whole, plain, turned)
            assert _native.plane_costs(as_bytes(elements), itemsize, False)[:2] == (whole, plain)


def test_a_stream_that_is_bound_to_be_as_long_as_its_symbols_is_known_as_such() -> None:
    """What is left out because no code can pay, from entropy and least table, is what would not have paid."""
    random = np.random.default_rng(7)
    for count in (2, 9, 64, 300, 1000, 4096):
        for most in (2, 16, 100, 200, 256):
            symbols = random.integers(0, most, count).astype(np.uint8)
            counts = np.bincount(symbols, minlength=256)
            used = np.flatnonzero(counts)
            least = huffman_bits(counts) / 8 + 2 + (4 + used[-1] - used[0]) / 8 if used.size > 1 else 2
            coded = _native.huffman_encode(symbols, 8, count)
            if least + 16 < count and least < 0.9 * count:
                assert coded is not None
                assert len(coded) >= least
            assert _native.huffman_estimate(symbols) >= min(count, int(least))


# -- offsets


def huffman_bits(counts: np.ndarray) -> int:
    """The bits of an optimal prefix code, by the textbook's heap."""
    heap = [int(n) for n in counts if n]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_an_offset_saves_what_it_says(itemsize: int) -> None:
    random = np.random.default_rng(itemsize)
    uniform = random.uniform(-0.0447, 0.0447, 50_000)
    for values, worth in ((uniform, 0.1), (random.normal(size=50_000), 0.0)):
        if itemsize == 2:
            elements = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        else:
            elements = values.astype(f"f{itemsize}").view(f"u{itemsize}")
        offset, saved = _native.best_offset(as_bytes(elements), itemsize)
        one, top = elements.dtype.type(1), elements.dtype.type(8 * itemsize - 1)
        rotated = (elements << one) | (elements >> top)
        added = rotated + (elements.dtype.type(offset) << elements.dtype.type(8 * itemsize - 16))
        highest = [x >> elements.dtype.type(8 * itemsize - 8) for x in (rotated, added)]
        before, after = (huffman_bits(np.bincount(x.astype(int), minlength=256)) for x in highest)
        assert abs(before - after - saved) <= 4  # the code's lengths are limited to 15 bits
        assert saved >= worth * values.size
        planes = np.empty(elements.nbytes, np.uint8)
        _native.split_planes(as_bytes(elements), itemsize, True, planes, offset)
        assert (planes.reshape(itemsize, -1).T.reshape(-1) == as_bytes(added)).all()
        streams = [(False, plane.tobytes()) for plane in planes.reshape(itemsize, -1)]
        for streaming in (False, True):
            back = join_planes(streams, True, elements.nbytes, streaming=streaming, offset=offset)
            assert back == elements.tobytes()

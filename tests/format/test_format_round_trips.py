"""Layout x values x coding x type x shape, through the writer and the reader, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine, decode_codebook

from dcz.errors import EncodingError
from dcz.format import (
    DTYPES,
    Bitmap,
    CodebookTensor,
    Dense,
    PerChannel,
    PerGroup,
    PerTensor,
    Reader,
    RelativeIndex,
    TensorData,
    UniformTensor,
    Writer,
    verify,
)
from dcz.format.manifest import Granularity
from dcz.format.tensors import group_count

LAYOUTS: list[Any] = [
    "auto",
    "dense",
    "relative-index",
    "bitmap",
    Bitmap(),
    *(RelativeIndex(bits=bits) for bits in range(1, 9)),
]
CODINGS: list[Any] = ["auto", "raw", "huffman", "zstd", "range"]
SPLITS: list[Any] = ["auto", "whole", "bytes", "rotated"]
FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round-trips") / "file.dcz"


def bits_of(array: np.ndarray) -> np.ndarray:
    """The same elements as unsigned integers, so that NaNs are compared, too."""
    return np.ascontiguousarray(array).reshape(-1).view(f"<u{array.dtype.itemsize}").reshape(array.shape)


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    return bits.view(DTYPES[dtype].numpy)


# Contents: any bits, with what is not zero but compares equal to it, and what does not even compare equal to itself.


@st.composite
def contents(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The bits of elements: random ones, few different ones, or mostly zeros."""
    width = DTYPES[dtype].itemsize
    random = np.random.default_rng(draw(st.integers(0, 999)))
    top = 1 << (8 * width - 1)
    if dtype == "bool":
        few = [0, 1]
    else:
        # -0.0, smallest numbers, infinities and NaNs of all kinds, if these are floating-point numbers.
        few = [0, 1, top, top | 1, 2 * top - 1, top - 1, *(int(n) for n in random.integers(0, top, 9))]
        few += [draw(st.integers(0, 2 * top - 1))]
    kind = draw(st.sampled_from(["any", "few", "sparse", "zero", "same"]))
    unsigned = f"<u{width}"
    if kind == "any" and dtype != "bool":
        bits = np.frombuffer(random.bytes(int(np.prod(shape, dtype=int)) * width), unsigned).reshape(shape)
    elif kind == "zero":
        bits = np.zeros(shape, unsigned)
    elif kind == "same":
        bits = np.full(shape, random.choice(np.array(few, unsigned)), unsigned)
    else:
        bits = random.choice(np.array(few, unsigned), shape)
    if kind == "sparse":
        bits = np.where(random.random(shape) < 0.1, bits, np.zeros_like(bits))
    return np.asarray(bits).astype(unsigned)


def strided(bits: np.ndarray) -> np.ndarray:
    out = np.zeros((*bits.shape[:-1], 2 * bits.shape[-1]), bits.dtype)[..., ::2] if bits.ndim else bits
    out[...] = bits
    return out


# The same elements, arranged differently in memory.
ARRANGEMENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda bits: bits,
    "columns first": lambda bits: np.asfortranarray(bits) if bits.ndim else bits,
    "strided": strided,
    "backwards": lambda bits: bits[::-1].copy()[::-1] if bits.ndim else bits,
    "transposed": lambda bits: bits.T.copy().T,
    "read-only": lambda bits: np.frombuffer(bits.tobytes(), bits.dtype).reshape(bits.shape),
    "not aligned": lambda bits: (
        np.frombuffer(b"x" + bits.tobytes(), bits.dtype, offset=1).reshape(bits.shape) if bits.size else bits
    ),
}


def big_endian(bits: np.ndarray, dtype: str) -> np.ndarray:
    return bits.byteswap().view(DTYPES[dtype].numpy.newbyteorder(">"))


shapes = st.one_of(
    st.lists(st.integers(0, 5), max_size=4),
    st.lists(st.integers(1, 3), min_size=5, max_size=7),
    st.lists(st.just(1), min_size=8, max_size=32),
    st.integers(0, 3000).map(lambda n: [n]),
).map(tuple)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_exact_tensors_come_back_bit_for_bit(path: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    bits = data.draw(contents(dtype, data.draw(shapes)))
    arranged = ARRANGEMENTS[data.draw(st.sampled_from(sorted(ARRANGEMENTS)))](bits)
    array = from_bits(arranged, dtype)
    if DTYPES[dtype].numpy.newbyteorder(">") != DTYPES[dtype].numpy and data.draw(st.booleans()):
        array = big_endian(arranged, dtype)
    layout, coding = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(CODINGS))
    split = data.draw(st.sampled_from(SPLITS if dtype in FLOATS else SPLITS[:-1]))
    with Writer(path, threads=1) as writer:
        writer.add_tensor("t", array, layout=layout, split=split, coding=coding)
    check(path, dtype, bits, layout)


def check(path: Path, dtype: str, bits: np.ndarray, layout: Any) -> None:
    verify(path, deep=True, threads=1)
    with Reader(path, threads=1) as reader:
        assert (reader.dtype("t"), reader.shape("t")) == (dtype, bits.shape)
        stored = reader.manifest.tensors[0].layout
        if bits.size == 0:
            assert stored == Dense()
        elif layout != "auto":
            assert layout in (stored, stored.kind)
        got = reader.read("t")
        assert (got.dtype, got.shape) == (DTYPES[dtype].numpy, bits.shape)
        np.testing.assert_array_equal(bits_of(got), bits)
        out = np.ones(bits.shape, got.dtype)
        assert reader.read("t", out) is out
        np.testing.assert_array_equal(bits_of(out), bits)
        third = bits.size // 3
        np.testing.assert_array_equal(
            bits_of(reader.read_range("t", third, 2 * third)), bits.reshape(-1)[third : 2 * third]
        )


@pytest.mark.parametrize(
    "shape", [(0, 1 << 59), ((1 << 60) - 1, 0), (1 << 30, 0, 1 << 29), (1,) * 32, (0,) * 32], ids=str
)
def test_shapes_at_the_ends_of_what_is_possible(path: Path, shape: tuple[int, ...]) -> None:
    with Writer(path) as writer:
        writer.add_tensor("t", np.ones(shape, np.float64))
    with Reader(path) as reader:
        assert reader.read("t").shape == reader.tensor("t")[...].shape == shape
        assert np.array_equal(reader.read("t"), np.ones(shape))


# Values that are computed


@st.composite
def quantized(draw: st.DrawFn) -> TensorData:
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    kinds: list[st.SearchStrategy[Granularity]] = [
        st.just(PerTensor()),
        st.builds(PerGroup, size=st.integers(1, 10)),
    ]
    if shape:
        kinds.append(st.builds(PerChannel, axis=st.integers(0, len(shape) - 1)))
    granularity = draw(st.one_of(kinds))
    groups = group_count(granularity, shape)
    random = np.random.default_rng(draw(st.integers(0, 999)))
    bits = draw(st.integers(1, 8))
    mask = random.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.7, 1.0])) if draw(st.booleans()) else None
    if dtype in FLOATS and draw(st.booleans()):
        codes = random.integers(0, 1 << bits, shape).astype(np.uint8)
        scale = draw(st.sampled_from(["f64"] if dtype == "f64" else ["f32", "f16", "bf16"]))
        scales = random.normal(size=groups) * 2.0 ** random.integers(-30, 14, groups)
        scales[random.random(groups) < 0.2] = draw(st.sampled_from([0.0, -0.0, 1e-40, -1e-7]))
        points = random.integers(0, 1 << bits, groups).astype(np.uint8) if draw(st.booleans()) else None
        return UniformTensor(
            dtype, shape, bits, codes, scales.astype(DTYPES[scale].numpy), granularity, points, mask
        )
    size = draw(st.integers(1, 1 << bits))
    codes = random.integers(0, size, shape).astype(np.uint8)
    centroids = from_bits(draw(contents(dtype, (groups, size))), dtype)
    return CodebookTensor(dtype, shape, bits, codes, centroids, granularity, mask)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_quantized_tensors_come_back_as_the_formulas_say(path: Path, data: st.DataObject) -> None:
    tensor = data.draw(quantized())
    assert isinstance(tensor, UniformTensor | CodebookTensor)
    with np.errstate(all="ignore"):
        expected = decode_affine(tensor) if isinstance(tensor, UniformTensor) else decode_codebook(tensor)
    if tensor.mask is not None:
        np.copyto(tensor.codes, 255, where=~tensor.mask)  # a code that is not stored is ignored
    dense = tensor.mask is None or bool(tensor.mask.all())
    layout = data.draw(st.sampled_from(LAYOUTS if dense else [one for one in LAYOUTS if one != "dense"]))
    with Writer(path, threads=1) as writer:
        writer.add_tensor("t", tensor, layout=layout, coding=data.draw(st.sampled_from(CODINGS)))
    check(path, tensor.dtype, bits_of(expected), layout)


# More than a segment


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("layout", ["auto", "dense", "relative-index", "bitmap"])
@pytest.mark.parametrize("values", ["exact", "affine", "codebook"])
def test_tensors_of_several_segments_come_back(path: Path, values: str, layout: Any, coding: Any) -> None:
    dtype = {"exact": "bf16", "affine": "f16", "codebook": "f32"}[values]
    random = np.random.default_rng(len(layout) + len(coding))
    shape = (3, 400_001 if values == "codebook" else 600_001)
    mask = random.random(shape) < 0.2
    tensor: TensorData
    if values == "exact":
        numbers = random.normal(size=shape).astype(DTYPES[dtype].numpy)
        tensor = expected = np.where(mask, numbers, numbers.dtype.type(0)) if layout != "dense" else numbers
    else:
        codes = np.minimum(random.geometric(0.3, shape), 16).astype(np.uint8) - np.uint8(1)
        stored = None if layout == "dense" else mask
        granularity = PerGroup(size=100_000)
        groups = group_count(granularity, shape)
        if values == "affine":
            scales = random.normal(size=groups).astype(np.float32)
            tensor = UniformTensor(dtype, shape, 4, codes, scales, granularity, mask=stored)
            expected = decode_affine(tensor)
        else:
            centroids = random.normal(size=(groups, 16)).astype(np.float32)
            tensor = CodebookTensor(dtype, shape, 4, codes, centroids, granularity, mask=stored)
            expected = decode_codebook(tensor)
    with Writer(path) as writer:
        entry = writer.add_tensor("t", tensor, layout=layout, coding=coding)
    # The range coder learns anew in each segment, so codes get segments of 16 MiB.
    assert -(-expected.size // entry.segment) >= (1 if coding == "range" and values != "exact" else 3)
    with Reader(path) as reader:
        np.testing.assert_array_equal(bits_of(reader.read("t")), bits_of(expected))
    verify(path, deep=True)


# What cannot be stored


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, np.complex64),
        np.zeros(2, np.longdouble),
        np.array(["text"]),
        np.array([None]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        [1.0, 2.0],
        3.0,
        None,
    ],
    ids=lambda array: str(getattr(array, "dtype", array)),
)
def test_other_arrays_are_refused(path: Path, array: Any) -> None:
    with pytest.raises(EncodingError), Writer(path) as writer:
        writer.add_tensor("t", array)


@pytest.mark.parametrize("layout", ["dense", Dense()])
def test_a_mask_and_a_dense_layout_are_refused(path: Path, layout: Any) -> None:
    mask = np.array([True, False])
    tensor = UniformTensor(
        "f32", (2,), 4, np.zeros(2, np.uint8), np.ones(1, np.float32), PerTensor(), mask=mask
    )
    with pytest.raises(EncodingError, match="mask"), Writer(path) as writer:
        writer.add_tensor("t", tensor, layout=layout)


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(FLOATS)))
def test_only_floats_can_be_rotated(path: Path, dtype: str) -> None:
    with pytest.raises(EncodingError, match="rotated"), Writer(path) as writer:
        writer.add_tensor("t", np.zeros(100, DTYPES[dtype].numpy), split="rotated")


def test_codes_that_mean_nothing_are_refused(path: Path) -> None:
    codes = np.array([0, 4], np.uint8)
    for tensor in (
        UniformTensor("f32", (2,), 2, codes, np.ones(1, np.float32), PerTensor()),
        CodebookTensor("f32", (2,), 2, codes, np.ones((1, 4), np.float32), PerTensor()),
        CodebookTensor("f32", (2,), 3, codes, np.ones((1, 4), np.float32), PerTensor()),
    ):
        with pytest.raises(EncodingError, match="code"), Writer(path) as writer:
            writer.add_tensor("t", tensor)
        with pytest.raises(EncodingError, match="split"), Writer(path) as writer:
            writer.add_tensor("t", tensor, split="bytes")


def test_a_bool_that_is_neither_0_nor_1_is_refused(path: Path) -> None:
    with pytest.raises(EncodingError), Writer(path) as writer:
        writer.add_tensor("t", np.array([0, 1, 2], np.uint8).view(np.bool_))

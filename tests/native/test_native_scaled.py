"""Codes with scales, minimums, tables and vectors: every instruction set against dcz.format.decoded, which is plain numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.native.isas import HERE, forced

from dcz import _native
from dcz.format import (
    AffineTensor,
    CodebookTensor,
    CodedTensor,
    Indexed,
    PerChannel,
    PerFlat,
    PerGroup,
    PerTensor,
    ScaledCodebookTensor,
    VectorCodebookTensor,
    decoded,
)
from dcz.format.dtypes import DTYPES
from dcz.format.encoder import TensorEncoder
from dcz.format.tensors import GranularityLike, group_count

SHAPE = (5, 4, 37)  # more than a vector of elements, and no multiple of anything
FLOATS = [name for name, row in DTYPES.items() if row.is_float]
GRANULARITIES: list[GranularityLike] = [
    PerTensor(),
    *(PerChannel(axis=axis) for axis in range(3)),
    *(PerGroup(size=size) for size in (1, 5, 16, 32, 37, 64)),
    *(PerFlat(size=size) for size in (1, 16, 20, 32, 64, 1000)),
    Indexed((np.arange(37) * 5 % 6).astype(np.uint16), groups=7),
]


def numbers(random: np.random.Generator, count: int, dtype: str, spread: int = 30) -> np.ndarray:
    """Of all sizes, so that sums cancel, and products overflow and underflow."""
    powers = random.integers(-spread, spread + 1, count) * random.integers(0, 5, count)
    values = random.choice([-1.0, 1.0], count) * random.random(count) * 2.0**powers
    values[::7] = random.choice([0.0, -0.0, 1.0, -0.5], values[::7].size)
    return np.asarray(values.astype(DTYPES[dtype].numpy))


def scaled(dtype: str, granularity: GranularityLike) -> Iterator[CodedTensor]:
    random = np.random.default_rng(11)
    groups, wide = group_count(granularity, SHAPE), "f64" if dtype == "f64" else "f32"
    for bits, with_minimums, points in itertools.product((1, 4, 8), (False, True), (None, 0, "each")):
        codes = random.integers(0, 1 << bits, SHAPE, dtype=np.uint8)
        zero = random.integers(0, 256, groups).astype(np.uint8) if points == "each" else points
        mask = random.random(SHAPE) < 0.3 if bits == 4 and points == 0 else None
        minimums = numbers(random, groups, wide) if with_minimums else None
        assert not isinstance(zero, str)
        yield AffineTensor(
            dtype, SHAPE, bits, codes, numbers(random, groups, wide), granularity, zero, mask, minimums
        )
    for bits, size in ((1, 1), (4, 16), (5, 17), (8, 256)):
        codes = random.integers(0, size, SHAPE, dtype=np.uint8)
        mask = random.random(SHAPE) < 0.3 if bits == 5 else None
        table = numbers(random, size, wide)
        yield ScaledCodebookTensor(
            dtype, SHAPE, bits, codes, table, numbers(random, groups, wide), granularity, mask
        )
    codes = random.integers(0, 3, SHAPE, dtype=np.uint8)
    yield CodebookTensor(
        dtype,
        SHAPE,
        2,
        codes,
        numbers(random, groups * 3, "f32", 0).reshape(-1, 3).astype(DTYPES[dtype].numpy),
        granularity,
    )


def content(tensor: CodedTensor) -> bytes:
    """What the native decoder makes of it: the writer has it from there."""
    encoder = TensorEncoder(tensor, coding="raw")
    return b"".join(encoder.encode(segment).content.tobytes() for segment in range(encoder.segments))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "granularity", GRANULARITIES, ids=[f"{i}-{type(one).__name__}" for i, one in enumerate(GRANULARITIES)]
)
def test_every_instruction_set_gives_what_numpy_gives(dtype: str, granularity: GranularityLike) -> None:
    for tensor in scaled(dtype, granularity):
        expected = decoded(tensor).tobytes()
        for isa in HERE:
            with forced(isa):
                assert content(tensor) == expected, (isa, tensor)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 16, 48])
@pytest.mark.parametrize("per_place", [False, True])
def test_vectors(d: int, per_place: bool) -> None:
    random, shape = np.random.default_rng(12), (2, 3, 48)
    for dtype, row in DTYPES.items():
        words = random.integers(0, 2, (48 // d if per_place else 1, 21, d)).astype(row.numpy)
        codes = random.integers(0, 21, 288 // d, dtype=np.uint8)
        tensor = VectorCodebookTensor(dtype, shape, 5, codes, words, per_place)
        for isa in HERE:
            with forced(isa):
                assert content(tensor) == decoded(tensor).tobytes()


def test_every_binary16_is_rounded_to() -> None:
    """The two neighbours of each, what is between them and what is just beside that: through a scale of 1."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[-1] = 65536.0
    middle = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate(
        [halves, middle, np.nextafter(middle, 0), np.nextafter(middle, np.float32(np.inf))]
    )
    values = np.concatenate([values, -values, np.array([3e38, -3e38, 1e-45], np.float32)])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    minimums = np.asarray(values)
    codes = np.zeros(values.size, np.uint8)
    groups = PerGroup(size=1)
    tensor = AffineTensor(
        "f16", values.shape, 1, codes, np.zeros(values.size, np.float32), groups, 0, None, minimums
    )
    # 0 x 0 is added to each, which makes of the zero with a sign one without.
    for isa in HERE:
        with forced(isa):
            got = np.frombuffer(content(tensor), np.float16)
            assert (got.view(np.uint16) & 0x7FFF == expected.view(np.uint16) & 0x7FFF).all()
            assert (got == expected).all()


def test_bfloat16_ties() -> None:
    """A sum in binary32 that lies between two bfloat16 goes to the even one."""
    low = np.arange(0x3F80, 0x3F90, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    middle = (low.view(np.uint32) | 0x8000).view(np.float32)
    tensor = AffineTensor(
        "bf16", (16,), 1, np.zeros(16, np.uint8), np.zeros(16, np.float32), PerGroup(size=1), 0, None, middle
    )
    bits = np.frombuffer(content(tensor), np.uint16)
    assert bits.tolist() == [b + (b & 1) for b in range(0x3F80, 0x3F90)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"index": None, "groups": ("indexed", 4, 2)},
        {"index": np.zeros(3, np.uint16), "groups": ("indexed", 4, 2)},
        {"index": np.full(4, 2, np.uint16), "groups": ("indexed", 4, 2)},
        {"index": np.zeros(4, np.uint16), "groups": ("group", 4, 2)},
        {"minimums": np.zeros(2, np.float32)},
        {"zero_point": 256},
        {"zero_point": -1},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any]) -> None:
    given: dict[str, Any] = {"groups": ("tensor", 1, 1), "index": None} | arguments
    with pytest.raises(ValueError):  # noqa: PT011 - the messages differ
        _native.SegmentDecoder.affine(
            "dense", 8, "f32", 4, scales=np.ones(1, np.float32), zero_points=None, **given
        )

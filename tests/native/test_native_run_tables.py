"""Codes of at most 4 bits, of which each run has a table: every instruction set against dcz.format.decoded, which is plain numpy.

Packed or coded, written around the caches or not, to memory that begins with a line or does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from tests.native.isas import forced, on_each_isa

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format import (
    AffineTensor,
    CodebookTensor,
    PerChannel,
    PerFlat,
    PerGroup,
    PerTensor,
    ScaledCodebookTensor,
    decoded,
)
from dcz.format.dtypes import DTYPES
from dcz.format.memory import aligned_bytes
from dcz.format.parameters import groups_of
from dcz.format.tensors import group_count

SHAPE = (3, 5, 320)  # more than two strips; a row is 20 lines of f32, and 10 of bf16
RAW, HUFFMAN = 0, 1
Direct = PerTensor | PerChannel | PerGroup | PerFlat
GRANULARITIES: list[Direct] = [
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerGroup(size=32),
    PerGroup(size=64),
    PerGroup(size=96),  # and a last one of 32
    PerGroup(size=48),  # lines of f32, but not of bf16
    PerGroup(size=40),  # no lines
    PerFlat(size=128),
]


def coded(codes: np.ndarray, bits: int) -> Iterator[tuple[int, bytes]]:
    symbols = codes.reshape(-1)
    yield RAW, _native.pack(symbols, bits)
    huffman = _native.huffman_encode(symbols, bits, 1 << 30)
    assert huffman is not None
    yield HUFFMAN, huffman


def check(decoder: _native.SegmentDecoder, codes: np.ndarray, bits: int, expected: np.ndarray) -> None:
    """The whole, and all from an element on that begins a line, or does not."""
    memory = aligned_bytes(expected.nbytes + 192)
    flat, itemsize = expected.reshape(-1), expected.itemsize
    for first, offset, streaming in (
        (0, 64, True),
        (0, 64, False),
        (0, 64 + itemsize, True),
        (64, 64, True),
        (6, 64, True),
    ):
        wanted = flat[first:].view(np.uint8)
        for coding, stored in coded(codes.reshape(-1)[first:], bits):
            memory[:] = 0xA5
            out = memory[offset : offset + wanted.size]
            streams = [(coding, len(stored), flat.size - first, bits)]
            decoder.decode(stored, 0, streams, {}, first, flat.size - first, streaming, out)
            np.testing.assert_array_equal(out, wanted)
            assert (memory[:offset] == 0xA5).all()
            assert (memory[offset + wanted.size :] == 0xA5).all()


@on_each_isa
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_uniform_codes(isa: str, dtype: str, granularity: Direct) -> None:
    random, groups = np.random.default_rng(3), group_count(granularity, SHAPE)
    for bits, points, with_minimums in itertools.product((2, 4), (8, None), (False, True)):
        codes = random.integers(0, 1 << bits, SHAPE, dtype=np.uint8)
        scales = (random.standard_normal(groups) * 2.0 ** random.integers(-30, 30, groups)).astype(np.float32)
        zero = random.integers(0, 256, groups).astype(np.uint8) if points is None else points
        minimums = random.standard_normal(groups).astype(np.float32) if with_minimums else None
        tensor = AffineTensor(dtype, SHAPE, bits, codes, scales, granularity, zero, None, minimums)
        each = zero if isinstance(zero, np.ndarray) else None
        decoder = _native.SegmentDecoder.affine(
            "dense", 8, dtype, bits, groups_of(granularity, SHAPE), scales, each, minimums, points
        )
        with forced(isa):
            check(decoder, codes, bits, np.ascontiguousarray(decoded(tensor)))


@on_each_isa
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerGroup(size=64), PerChannel(axis=1)], ids=str)
def test_tables_and_codebooks(isa: str, dtype: str, granularity: Direct) -> None:
    random, groups = np.random.default_rng(4), group_count(granularity, SHAPE)
    form = groups_of(granularity, SHAPE)
    for bits, size in ((4, 16), (2, 4), (4, 11)):
        codes = random.integers(0, size, SHAPE, dtype=np.uint8)
        table, scales = (random.standard_normal(n).astype(np.float32) for n in (size, groups))
        with forced(isa):
            levels = ScaledCodebookTensor(dtype, SHAPE, bits, codes, table, scales, granularity)
            decoder = _native.SegmentDecoder.scaled_codebook("dense", 8, dtype, form, scales, table)
            check(decoder, codes, bits, np.ascontiguousarray(decoded(levels)))
            centroids = random.standard_normal((groups, size)).astype(DTYPES[dtype].numpy)
            shared = CodebookTensor(dtype, SHAPE, bits, codes, centroids, granularity)
            itemsize = centroids.itemsize
            decoder = _native.SegmentDecoder.codebook(
                "dense", 8, itemsize, size, form, centroids.view(np.uint8)
            )
            check(decoder, codes, bits, np.ascontiguousarray(decoded(shared)))


@on_each_isa
def test_codes_and_groups_that_are_not_there(isa: str) -> None:
    codes = np.full(256, 12, np.uint8)
    table, scales, groups = np.ones(12, np.float32), np.ones(4, np.float32), ("group", 256, 64)
    short = [
        _native.SegmentDecoder.scaled_codebook("dense", 8, "f32", groups, scales, table),
        _native.SegmentDecoder.codebook("dense", 8, 4, 12, groups, np.ones(48, np.float32)),
        _native.SegmentDecoder.affine("dense", 8, "f32", 4, groups, scales[:3], None),
        _native.SegmentDecoder.affine("dense", 8, "f32", 4, groups, scales, np.zeros(3, np.uint8)),
        _native.SegmentDecoder.codebook("dense", 8, 4, 16, groups, np.ones(48, np.float32)),
    ]
    with forced(isa):
        for decoder in short:
            for coding, stored in coded(codes, 4):
                with pytest.raises(CorruptStream):
                    decoder.decode(
                        stored, 0, [(coding, len(stored), 256, 4)], {}, 0, 256, True, aligned_bytes(1024)
                    )

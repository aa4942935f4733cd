"""Quantized tensors of more elements than are decoded at a time, against the oracles of the specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compression.oracles import decode_affine, decode_codebook, group_numbers
from tests.native.isas import forced, on_each_isa

from dcz.format import CodebookTensor, PerChannel, PerGroup, PerTensor, Reader, UniformTensor, Writer
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity
from dcz.format.memory import aligned_bytes

GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerChannel(axis=2),
    PerGroup(size=1),
    PerGroup(size=16),
    PerGroup(size=70),
    PerGroup(size=4096),
]
SHAPES = [(3, 50, 71), (2, 1, 9000), (5000, 3, 1)]


def arguments(shape: tuple[int, ...], bits: int, granularity: Granularity) -> dict[str, Any]:
    random = np.random.default_rng(bits)
    return {
        "shape": shape,
        "bits": bits,
        "codes": random.integers(0, 1 << bits, shape).astype(np.uint8),
        "granularity": granularity,
    }


def check(tensor: UniformTensor | CodebookTensor, expected: np.ndarray, isa: str, path: Path) -> None:
    with Writer(path) as writer:
        writer.add_tensor("w", tensor, coding="raw")
    memory = aligned_bytes(expected.nbytes + 64)
    with forced(isa), Reader(path) as reader:
        for offset in (0, expected.itemsize):  # aligned or not
            out = memory[offset : offset + expected.nbytes].view(expected.dtype).reshape(expected.shape)
            out[...] = 1
            reader.read("w", out)
            np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))
        for start, stop in ((0, 5), (2047, 2050), (4000, expected.size)):
            np.testing.assert_array_equal(
                reader.read_range("w", start, stop).view(np.uint8),
                expected.reshape(-1)[start:stop].view(np.uint8),
            )


@on_each_isa
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64", "f8_e5m2"])
def test_affine(
    isa: str, granularity: Granularity, shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    for bits in (3, 4, 8):
        given = arguments(shape, bits, granularity)
        groups = int(group_numbers(shape, granularity).max()) + 1
        scales = np.random.default_rng(0).random(groups) + 0.5
        tensor = UniformTensor(
            dtype=dtype,
            scales=scales.astype(np.float64 if dtype == "f64" else np.float32),
            zero_points=np.random.default_rng(1).integers(0, 1 << bits, groups).astype(np.uint8),
            **given,
        )
        check(tensor, np.ascontiguousarray(decode_affine(tensor)), isa, tmp_path / "m.dcz")


@on_each_isa
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codebook(isa: str, granularity: Granularity, shape: tuple[int, ...], tmp_path: Path) -> None:
    groups = int(group_numbers(shape, granularity).max()) + 1
    for dtype, bits in (("f32", 4), ("bf16", 1), ("f64", 3)):
        table = np.random.default_rng(2).standard_normal((groups, 1 << bits))
        tensor = CodebookTensor(
            dtype=dtype, centroids=table.astype(DTYPES[dtype].numpy), **arguments(shape, bits, granularity)
        )
        check(tensor, np.ascontiguousarray(decode_codebook(tensor)), isa, tmp_path / "m.dcz")

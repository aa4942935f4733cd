"""Levels against their definitions: scipy's normal quantiles, ml_dtypes' floats, powers; and codes against all levels tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import norm
from tests.compression.oracles import group_numbers

from dcz.compression.codebooks import quantize_codebook
from dcz.compression.tables import Table, levels, quantize_table, table_bits
from dcz.errors import EncodingError
from dcz.format import CodebookTensor, Reader, ScaledCodebookTensor, Writer, decoded
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor

Array = np.ndarray[Any, np.dtype[Any]]
FLOATS = [name for name, row in DTYPES.items() if row.is_float]
ALL = [(table, bits) for table in get_args(Table) for bits in table_bits(table)]

# What QLoRA's implementation has as constants, from the same formula in single precision.
NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 0.44070982933044434
0.5626170039176941 0.7229568362236023 1.0"""


def gaussian(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype].numpy))


@pytest.mark.parametrize(("table", "bits"), ALL)
def test_levels_ascend_to_one_and_hold_zero(table: Table, bits: int) -> None:
    found = levels(table, bits)
    assert (np.diff(found) > 0).all()
    assert np.abs(found).max() == 1
    assert 0.0 in found
    assert 1 << (bits - 1) < found.size <= 1 << bits or (bits == 2 and found.size == 3)


def test_normal_float_of_four_bits_is_nf4() -> None:
    np.testing.assert_allclose(levels("normal-float", 4), np.array(NF4.split(), dtype=float), atol=2e-7)


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_floats_are_quantiles(bits: int) -> None:
    half = 1 << (bits - 1)
    end = 1 - (1 / (2 << bits) + 1 / ((2 << bits) - 2)) / 2
    above = norm.ppf(np.linspace(end, 0.5, half + 1)[:-1])
    below = -norm.ppf(np.linspace(end, 0.5, half)[:-1])
    expected = np.sort(np.concatenate([above, [0.0], below])) / above.max()
    np.testing.assert_allclose(levels("normal-float", bits), expected, rtol=1e-12)


def test_floats_are_those_of_ml_dtypes() -> None:
    for bits, dtype in ((4, ml_dtypes.float4_e2m1fn), (6, ml_dtypes.float6_e3m2fn)):
        numbers = np.arange(1 << bits, dtype=np.uint8).view(dtype).astype(np.float64)
        np.testing.assert_array_equal(levels("float", bits), np.unique(numbers + 0.0) / numbers.max())


@pytest.mark.parametrize("bits", range(2, 7))
def test_powers(bits: int) -> None:
    for table, base in (("power-of-two", 0.5), ("logarithmic", np.sqrt(0.5))):
        magnitudes = base ** np.arange((1 << (bits - 1)) - 1)
        expected = np.sort(np.concatenate([magnitudes, -magnitudes, [0.0]]))
        np.testing.assert_allclose(levels(table, bits), expected, rtol=1e-14)  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=0), PerGroup(size=16)])
def test_powers_of_two_are_powers_of_two(granularity: Granularity) -> None:
    weights = gaussian((30, 40)) * np.linspace(0.01, 100, 30, dtype=np.float32)[:, None]
    tensor = quantize_table(weights, table="power-of-two", bits=4, granularity=granularity)
    mantissas, exponents = np.frexp(np.abs(decoded(tensor)))
    assert set(np.unique(mantissas)) == {0.0, 0.5}
    numbers = group_numbers(weights.shape, granularity)
    for group in range(int(numbers.max()) + 1):
        chosen = np.abs(weights[numbers == group]).astype(np.float64)
        # INQ: n1 = floor(log2(4 s / 3)), where s is the largest magnitude.
        assert exponents[numbers == group].max() - 1 == np.floor(np.log2(4 * chosen.max() / 3))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("table", "bits"), [("normal-float", 4), ("power-of-two", 6), ("float", 3), ("logarithmic", 5)]
)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=1), PerGroup(size=7)])
def test_every_weight_takes_the_nearest_level(
    dtype: str, table: Table, bits: int, granularity: Granularity
) -> None:
    weights = gaussian((12, 20), dtype=dtype)
    tensor = quantize_table(weights, table=table, bits=bits, granularity=granularity)
    numbers = group_numbers(weights.shape, granularity)
    found = decoded(tensor).astype(np.float64)
    exact = weights.astype(np.float64)
    for group in range(int(numbers.max()) + 1):
        chosen = exact[numbers == group]
        reach = np.abs(chosen).max()
        if table == "power-of-two":
            reach = 2.0 ** np.floor(np.log2(4 * reach / 3))
        products: Array = levels(table, bits) * reach
        if dtype != "f64" and isinstance(tensor, ScaledCodebookTensor):
            products = levels(table, bits).astype(np.float32) * np.float32(reach)
        scaled = products.astype(weights.dtype).astype(np.float64)
        distances = np.abs(chosen[:, None] - scaled)
        np.testing.assert_array_equal(np.abs(chosen - found[numbers == group]), distances.min(axis=1))
    assert tensor.bits <= bits


def test_normal_weights_are_better_in_normal_floats_than_in_powers_of_two() -> None:
    weights = gaussian((64, 64))
    errors = [
        float(
            np.square(
                decoded(quantize_table(weights, table=table, granularity=PerChannel(axis=0))) - weights
            ).mean()
        )
        for table in ("normal-float", "float", "logarithmic", "power-of-two")
    ]
    assert errors[0] == min(errors)
    assert errors[-1] == max(errors)


@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_quantiles(size: int) -> None:
    weights = gaussian((1, 4096))
    tensor = quantize_codebook(weights, size=size, method="quantile")
    expected = np.quantile(weights, (np.arange(size) + 0.5) / size, method="inverted_cdf")
    np.testing.assert_array_equal(tensor.centroids[0], expected)
    counts = np.bincount(tensor.codes.reshape(-1), minlength=size)
    if 2 < size < 64:  # all but the outermost, which take the tails, about equally often
        assert counts.min() > 0.5 * 4096 / size


def test_zeros_and_masks() -> None:
    zeros = np.zeros((3, 4), dtype=np.float32)
    assert decoded(quantize_table(zeros, table="normal-float")).tobytes() == bytes(48)
    weights = gaussian((10, 30))
    weights[0, 0] = 100
    mask = np.asarray(np.abs(weights) < 50)
    tensor = quantize_table(weights, table="normal-float", mask=mask)
    assert isinstance(tensor, CodebookTensor)
    assert np.abs(tensor.centroids).max() < 50


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_a_few_dozen_share_a_table(dtype: str, masked: bool, tmp_path: Path) -> None:
    """NF4 in groups of 64: 4 bits and a scale of 32 for each 64 weights. (QLoRA: 4.5 bits without double quantization.)"""
    weights = gaussian((64, 256), dtype=dtype)
    mask = np.asarray(np.random.default_rng(2).random(weights.shape) < 0.5) if masked else None
    tensor = quantize_table(weights, table="normal-float", granularity=PerGroup(size=64), mask=mask)
    assert isinstance(tensor, ScaledCodebookTensor)
    with Writer(tmp_path / "m.dcz") as writer:
        entry = writer.add_tensor("t", tensor, coding="raw")
    scale = 64 if dtype == "f64" else 32
    if not masked:
        assert 8 * sum(entry.lengths) == weights.size * (4 + scale / 64) + 16 * scale
    with Reader(tmp_path / "m.dcz") as reader:
        found = reader.read("t")
    assert found.tobytes() == decoded(tensor).tobytes()
    kept = weights if mask is None else np.where(mask, weights, weights.dtype.type(0))
    error = np.square(found.astype(np.float64) - kept.astype(np.float64)).mean()
    assert error < 0.02 * np.square(kept.astype(np.float64)).mean()


def test_one_scale_for_all_needs_nothing_new() -> None:
    for granularity in (None, PerChannel(axis=0)):
        weights = gaussian((1, 64))
        tensor = quantize_table(weights, table="normal-float", granularity=granularity)
        assert isinstance(tensor, CodebookTensor)


def test_what_is_refused() -> None:
    with pytest.raises(EncodingError, match="unknown table"):
        levels("nf4", 4)  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="2 bits"):
        quantize_table(gaussian((4, 4)), table="float", bits=2)

"""Magnitude pruning against torch and a stable sort."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import prune

from dcz.compression import pruning
from dcz.compression.pruning import magnitude_mask, nonzero_mask
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]
FLOATS = [name for name, row in DTYPES.items() if row.is_float]


def by_sorting(weights: Array, density: float) -> Array:
    order = np.argsort(-np.abs(weights.reshape(-1).astype(np.float64)), kind="stable")
    mask = np.zeros(weights.size, dtype=np.bool_)
    mask[order[: round(density * weights.size)]] = True
    return mask.reshape(weights.shape)


@given(
    shape=st.lists(st.integers(1, 12), max_size=3),
    dtype=st.sampled_from(FLOATS),
    distinct=st.sampled_from([1, 3, 1000]),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_largest_are_kept_and_of_equal_ones_the_first(
    shape: list[int], dtype: str, distinct: int, density: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-distinct, distinct + 1, shape) / distinct * 10.0 ** random.integers(-3, 3)
    weights = np.asarray(values, dtype=np.float64).astype(DTYPES[dtype].numpy)
    mask = magnitude_mask(weights, density)
    assert mask.shape == weights.shape
    np.testing.assert_array_equal(mask, by_sorting(weights, density))


@pytest.mark.parametrize("density", [0.0, 0.04, 0.1, 0.5, 0.93, 1.0])
def test_torch_prunes_the_same(density: float) -> None:
    weights = np.random.default_rng(0).standard_normal((123, 457)).astype(np.float32)
    layer = torch.nn.Linear(457, 123)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
    prune.l1_unstructured(layer, "weight", amount=weights.size - round(density * weights.size))
    expected = layer.get_buffer("weight_mask").numpy() != 0
    np.testing.assert_array_equal(magnitude_mask(weights, density), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_several_blocks(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(1).standard_normal(5000).astype(DTYPES[dtype].numpy)
    monkeypatch.setattr(pruning, "_BLOCK", 999)
    np.testing.assert_array_equal(magnitude_mask(weights, 0.3), by_sorting(weights, 0.3))
    np.testing.assert_array_equal(magnitude_mask(np.zeros_like(weights), 0.3), np.arange(5000) < 1500)
    weights[::3] = 0
    np.testing.assert_array_equal(nonzero_mask(weights), weights.astype(np.float64) != 0)


def test_the_largest_number_of_each_type_is_finite() -> None:
    largest = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0}
    largest |= {"bf16": 3.3895313892515355e38, "f8_e4m3fn": 448.0, "f8_e5m2": 57344.0}
    for dtype in FLOATS:
        weights = np.array([1, largest[dtype], -largest[dtype]]).astype(DTYPES[dtype].numpy)
        assert magnitude_mask(weights, 2 / 3).tolist() == [False, True, True]


def test_both_zeros_are_zero() -> None:
    weights = np.array([0.0, -0.0, 1e-45, -1e-45], dtype=np.float32)
    assert nonzero_mask(weights).tolist() == [False, False, True, True]


def test_order_in_memory_does_not_matter() -> None:
    weights = np.random.default_rng(2).standard_normal((30, 40)).astype(np.float32)
    expected = magnitude_mask(weights, 0.2)
    np.testing.assert_array_equal(magnitude_mask(np.asfortranarray(weights), 0.2), expected)
    np.testing.assert_array_equal(magnitude_mask(weights.astype(">f4"), 0.2), expected)


def test_memory_is_a_fraction_of_the_weights() -> None:
    weights = np.random.default_rng(3).standard_normal(1 << 23).astype(np.float32)
    tracemalloc.start()
    try:
        magnitude_mask(weights, 0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * weights.nbytes


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_are_not_finite_are_refused(dtype: str) -> None:
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        weights = np.ones(10).astype(DTYPES[dtype].numpy)
        weights[3] = bad
        with pytest.raises(EncodingError, match=r"1 of 10 weights are not finite, the first is .* at \[3\]"):
            magnitude_mask(weights, 0.5)


@pytest.mark.parametrize("density", [-0.1, 1.1, np.nan])
def test_densities_out_of_range_are_refused(density: float) -> None:
    with pytest.raises(EncodingError, match="a density of"):
        magnitude_mask(np.ones(4), density)


def test_integers_and_empty_tensors_are_refused() -> None:
    for prune_or_look in (lambda w: magnitude_mask(w, 0.5), nonzero_mask):
        with pytest.raises(EncodingError, match="only floating-point"):
            prune_or_look(np.ones(4, np.int64))
        with pytest.raises(EncodingError, match="without elements"):
            prune_or_look(np.ones((4, 0)))

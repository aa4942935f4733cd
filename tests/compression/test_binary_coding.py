"""Sums of scaled binaries against closed forms, all choices tried, numpy's least squares and the optimum of k-means."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import kmeans1d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_codebook

from dcz.compression.binary_coding import binary_scales, binary_sums, quantize_binary_coding
from dcz.compression.extreme import quantize_binary
from dcz.errors import EncodingError
from dcz.format.manifest import PerChannel

Array = np.ndarray[Any, np.dtype[Any]]


def gaussian(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(values: Array, scales: Array) -> float:
    sums = np.array([np.dot(signs, scales) for signs in product((-1, 1), repeat=len(scales))])
    return float(np.square(values[:, None] - sums).min(axis=1).sum())


def greedy(values: Array, bits: int) -> Array:
    rest, scales = values.astype(np.float64), []
    for _ in range(bits):
        scales.append(np.abs(rest).mean())
        rest = rest - scales[-1] * np.where(rest < 0, -1, 1)
    return np.array(scales)


def test_the_sums_are_all_choices_of_signs() -> None:
    scales = np.array([3.0, 0.5, 1.25])
    for index, total in enumerate(binary_sums(scales)):
        assert total == sum(s if index >> i & 1 else -s for i, s in enumerate(scales))


@pytest.mark.parametrize("bits", range(1, 7))
def test_without_iterations_it_is_the_greedy_solution(bits: int) -> None:
    values = gaussian((700,), bits)
    np.testing.assert_allclose(binary_scales(values, bits, 0), greedy(values, bits), rtol=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("tails", [3, 30])
def test_between_the_greedy_solution_and_the_optimum_of_free_levels(bits: int, tails: int) -> None:
    values = np.random.default_rng(bits).standard_t(tails, 3000)
    costs = [error(values, binary_scales(values, bits, iterations)) for iterations in range(12)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(costs))
    assert costs[0] == pytest.approx(error(values, greedy(values, bits)), rel=1e-9)
    clusters, centroids = kmeans1d.cluster(values, 1 << bits)
    assert costs[-1] >= float(np.square(np.array(centroids)[clusters] - values).sum()) * (1 - 1e-9)
    if bits > 1:
        assert costs[-1] < 0.95 * costs[0]


@pytest.mark.parametrize("bits", [2, 3])
def test_the_scales_are_least_squares_for_their_codes(bits: int) -> None:
    values = gaussian((2000,), seed=9).astype(np.float64)
    scales = binary_scales(values, bits, 500)
    signs = np.array(list(product((-1.0, 1.0), repeat=bits)))
    chosen = signs[np.abs(values[:, None] - signs @ scales).argmin(axis=1)]
    expected = np.linalg.lstsq(chosen, values, rcond=None)[0]
    np.testing.assert_allclose(scales, expected, rtol=1e-9)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6))
def test_one_binary_is_that_of_xnor(values: list[float]) -> None:
    weights = np.array(values, dtype=np.float32)
    ours, xnor = quantize_binary_coding(weights, bits=1), quantize_binary(weights)
    np.testing.assert_allclose(decode_codebook(ours), decode_codebook(xnor), rtol=2e-7)


def test_two_binaries_against_a_grid() -> None:
    values = gaussian((300,), seed=4).astype(np.float64)
    grid = np.linspace(0, 2.5, 120)
    best = min(error(values, np.array([a, b])) for a in grid for b in grid if b <= a)
    assert error(values, binary_scales(values, 2, 100)) <= best * 1.02


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_sums_come_back_exactly(bits: int) -> None:
    scales = np.array([5.0**-i for i in range(bits)])
    weights = binary_sums(scales)[np.random.default_rng(0).integers(0, 1 << bits, (4, 500))]
    weights[:, : 1 << bits] = binary_sums(scales)
    tensor = quantize_binary_coding(
        weights.astype(np.float32), bits=bits, granularity=PerChannel(axis=0), iterations=100
    )
    np.testing.assert_allclose(decode_codebook(tensor), weights, rtol=1e-4)
    assert tensor.centroids.shape == (4, 1 << bits)


@pytest.mark.parametrize("value", [0.0, 2.5, -1e-38, 3e38])
def test_equal_weights_come_back(value: float) -> None:
    weights = np.full((3, 9), value, dtype=np.float32)
    np.testing.assert_allclose(decode_codebook(quantize_binary_coding(weights, bits=3)), weights, rtol=1e-6)


def test_what_is_refused() -> None:
    for bits, iterations in ((0, 15), (7, 15), (2, -1)):
        with pytest.raises(EncodingError, match="possible"):
            quantize_binary_coding(gaussian((3, 3)), bits=bits, iterations=iterations)

"""Weight sharing against the exact one-dimensional k-means of kmeans1d and brute force."""

from __future__ import annotations

from typing import Any

import kmeans1d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_codebook, group_numbers

from dcz.compression.codebooks import quantize_codebook, with_zero
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor

Array = np.ndarray[Any, np.dtype[Any]]
FLOATS = [name for name, row in DTYPES.items() if row.is_float]
GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerGroup(size=8)]


def gaussian(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype].numpy)


def squared_error(tensor: Any, weights: Array) -> float:
    return float(np.square(decode_codebook(tensor).astype(np.float64) - weights.astype(np.float64)).sum())


@pytest.mark.parametrize("size", [1, 2, 5, 16, 32])
@pytest.mark.parametrize("method", ["optimal", "exact"])
def test_the_error_is_the_optimum(size: int, method: Any) -> None:
    weights = gaussian((60, 70), seed=size)
    tensor = quantize_codebook(weights, size=size, method=method)
    clusters, centroids = kmeans1d.cluster(weights.reshape(-1).astype(np.float64), size)
    best = float(np.square(np.array(centroids)[clusters] - weights.reshape(-1)).sum())
    assert squared_error(tensor, weights) <= best * (1 + 1e-4)
    assert tensor.centroids.shape == (1, size)


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    granularity=st.sampled_from([*GRANULARITIES, PerGroup(size=4), PerGroup(size=3)]),
    dtype=st.sampled_from(FLOATS),
    size=st.sampled_from([1, 2, 3, 7, 16, 200]),
    density=st.sampled_from([None, 0.0, 0.3, 1.0]),
    method=st.sampled_from(["optimal", "exact", "lloyd"]),
)
def test_every_weight_takes_the_nearest_stored_centroid(
    shape: list[int], granularity: Granularity, dtype: str, size: int, density: float | None, method: Any
) -> None:
    weights = gaussian(tuple(shape), seed=len(shape), dtype=dtype)
    mask = None if density is None else np.random.default_rng(1).random(shape) < density
    tensor = quantize_codebook(weights, size=size, granularity=granularity, mask=mask, method=method)
    assert tensor.centroids.dtype == weights.dtype
    assert tensor.codes.max() < tensor.centroids.shape[1] <= min(size, weights.size)
    assert tensor.centroids.shape[1] <= 1 << tensor.bits < 2 * max(2, tensor.centroids.shape[1])
    table = tensor.centroids.astype(np.float64)[group_numbers(weights.shape, granularity)]
    distances = np.abs(table - weights.astype(np.float64)[..., None])
    kept = np.ones(shape, dtype=np.bool_) if mask is None else mask
    chosen = np.take_along_axis(distances, tensor.codes.astype(np.int64)[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(chosen[kept], distances.min(axis=-1)[kept])
    assert (decode_codebook(tensor)[~kept] == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_few_different_weights_come_back_exactly(dtype: str, granularity: Granularity) -> None:
    values = np.array([-2.5, -0.75, 0.0, 0.125, 3.0])
    weights = values[np.random.default_rng(0).integers(0, 5, (200, 150))].astype(DTYPES[dtype].numpy)
    tensor = quantize_codebook(weights, size=32, granularity=granularity)
    np.testing.assert_array_equal(decode_codebook(tensor), weights)
    assert tensor.centroids.shape[1] == 5
    assert tensor.bits == 3


def test_groups_are_clustered_apart() -> None:
    weights = gaussian((4, 100))
    together = quantize_codebook(weights, size=8, granularity=PerChannel(axis=0))
    for row in range(4):
        alone = quantize_codebook(weights[row], size=8)
        np.testing.assert_array_equal(together.centroids[row], alone.centroids[0])
        np.testing.assert_array_equal(together.codes[row], alone.codes)


def test_a_group_that_needs_fewer_is_filled_up() -> None:
    weights = np.array([[1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    tensor = quantize_codebook(weights, size=4, granularity=PerChannel(axis=0))
    assert tensor.centroids.tolist() == [[1, 2, 2, 2], [1, 2, 3, 4], [0, 0, 0, 0]]
    np.testing.assert_array_equal(decode_codebook(tensor), weights)


def test_pruned_weights_take_no_part() -> None:
    weights = gaussian((50, 50))
    mask = np.abs(weights) > 1
    tensor = quantize_codebook(weights, size=4, mask=mask)
    clusters, centroids = kmeans1d.cluster(weights[mask].astype(np.float64), 4)
    np.testing.assert_allclose(tensor.centroids[0], centroids, rtol=1e-3)
    np.testing.assert_array_equal(tensor.codes[mask], clusters)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("size", [1, 3, 4, 255])
def test_with_zero_means_the_same(granularity: Granularity, size: int) -> None:
    weights = gaussian((24, 40))
    mask = np.abs(weights) > 0.7
    sparse = quantize_codebook(weights, size=size, granularity=granularity, mask=mask)
    dense = with_zero(sparse)
    assert dense.mask is None
    assert dense.centroids.shape[1] == sparse.centroids.shape[1] + 1 <= 1 << dense.bits
    np.testing.assert_array_equal(decode_codebook(dense), decode_codebook(sparse))
    assert with_zero(dense) is dense


def test_a_full_codebook_has_no_room_for_zero() -> None:
    weights = gaussian((100, 100))
    tensor = quantize_codebook(weights, size=256, mask=weights > 0)
    with pytest.raises(EncodingError, match="no room for zero"):
        with_zero(tensor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_are_not_finite_are_refused(dtype: str) -> None:
    weights = gaussian((8, 8), dtype=dtype)
    weights[3, 4] = np.nan
    with pytest.raises(EncodingError, match=r"1 of 64 weights are not finite, the first is nan at \[3, 4\]"):
        quantize_codebook(weights, size=4)
    kept = np.isfinite(weights)
    assert np.isfinite(decode_codebook(quantize_codebook(weights, size=4, mask=kept))).all()


@pytest.mark.parametrize("size", [0, 257])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(EncodingError, match=str(size)):
        quantize_codebook(np.ones(4), size=size)

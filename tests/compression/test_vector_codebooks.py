"""Codewords against brute force, scikit-learn's k-means, and the optimum in one dimension."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import kmeans1d
import numpy as np
import pytest
from sklearn.cluster import KMeans

from dcz.compression.vector_codebooks import nearest_codewords, quantize_vectors
from dcz.errors import EncodingError
from dcz.format import Reader, Writer
from dcz.format.dtypes import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]


def gaussian(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype].numpy))


def squared_error(weights: Array, **arguments: Any) -> float:
    found = quantize_vectors(weights, **arguments).decode()
    return float(np.square(found.astype(np.float64) - weights.astype(np.float64)).sum())


def test_the_nearest_codeword_is_that_of_brute_force() -> None:
    points, codewords = gaussian((3000, 5)).astype(np.float64), gaussian((300, 5), 1).astype(np.float64)
    found = nearest_codewords(points, codewords)
    distances = np.square(points[:, None] - codewords).sum(axis=2)
    np.testing.assert_allclose(distances[np.arange(3000), found], distances.min(axis=1), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("product", [False, True])
def test_every_piece_takes_the_nearest_stored_codeword(dtype: str, product: bool) -> None:
    weights = gaussian((40, 12), dtype=dtype)
    tensor = quantize_vectors(weights, dimension=4, size=9, product=product)
    assert tensor.codewords.shape == (3 if product else 1, 9, 4)
    assert tensor.codewords.dtype == weights.dtype
    decoded = tensor.decode()
    assert decoded.shape == weights.shape
    for row in range(40):
        for piece in range(3):
            part = weights[row, 4 * piece : 4 * piece + 4].astype(np.float64)
            words = tensor.codewords[piece if product else 0].astype(np.float64)
            np.testing.assert_array_equal(
                decoded[row, 4 * piece : 4 * piece + 4],
                tensor.codewords[piece if product else 0][tensor.codes[row, piece]],
            )
            distances = np.square(words - part).sum(axis=1)
            assert distances[tensor.codes[row, piece]] == pytest.approx(distances.min(), rel=1e-9)


@pytest.mark.parametrize("dimension", [2, 4])
def test_as_good_as_scikit_learn(dimension: int) -> None:
    weights = gaussian((200, 40))
    points = weights.reshape(-1, dimension).astype(np.float64)
    peer = KMeans(64, n_init=1, max_iter=25, random_state=0).fit(points)
    assert squared_error(weights, dimension=dimension, size=64) <= 1.05 * peer.inertia_


def test_one_dimension_is_ordinary_k_means() -> None:
    weights = gaussian((1, 2000))
    error = squared_error(weights, dimension=1, size=8, iterations=300)
    clusters, centroids = kmeans1d.cluster(weights[0].astype(np.float64), 8)
    best = float(np.square(np.array(centroids)[clusters] - weights[0]).sum())
    assert best * (1 - 1e-9) <= error <= 1.2 * best


def test_vectors_are_better_than_scalars_of_as_many_bits_where_neighbours_depend() -> None:
    random = np.random.default_rng(0)
    pairs = random.standard_normal((4000, 1)) * [1, 1] + 0.1 * random.standard_normal((4000, 2))
    weights = pairs.reshape(-1, 20).astype(np.float32)
    vectors = squared_error(weights, dimension=2, size=16)  # 2 bits a weight
    scalars = squared_error(weights, dimension=1, size=4)
    assert vectors < 0.6 * scalars
    errors = [squared_error(weights, dimension=2, size=16, iterations=i) for i in range(6)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))


def test_few_different_pieces_come_back_and_seeds_repeat() -> None:
    words = gaussian((6, 3))
    weights = words[np.random.default_rng(1).integers(0, 6, 200)].reshape(20, 30)
    tensor = quantize_vectors(weights, dimension=3, size=12)
    np.testing.assert_array_equal(tensor.decode(), weights)
    other = gaussian((50, 30))
    first, again, third = (quantize_vectors(other, dimension=3, size=8, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.codewords, again.codewords)
    assert (first.codewords != third.codewords).any()


def test_what_is_refused() -> None:
    weights = gaussian((4, 6))
    for arguments in ({"dimension": 4, "size": 2}, {"dimension": 0, "size": 2}, {"dimension": 2, "size": 0}):
        with pytest.raises(EncodingError, match=r"pieces|possible"):
            quantize_vectors(weights, **arguments)  # type: ignore[arg-type]
    weights[0, 0] = np.inf
    with pytest.raises(EncodingError, match="not finite"):
        quantize_vectors(weights, dimension=2, size=2)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_a_file_holds_them(product: bool, dtype: str, tmp_path: Path) -> None:
    """64 codewords of 4 weights: 1.5 bits a weight, and the codewords."""
    weights = gaussian((96, 32), dtype=dtype)
    found = quantize_vectors(weights, dimension=4, size=64, product=product)
    with Writer(tmp_path / "m.dcz") as writer:
        entry = writer.add_tensor("t", found.tensor(), coding="raw")
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.read("t").tobytes() == found.decode().tobytes()
    words = found.codewords.nbytes
    assert sum(entry.lengths) == words + weights.size * 6 // 4 // 8


def test_too_many_codewords_for_a_file() -> None:
    found = quantize_vectors(gaussian((300, 2)), dimension=2, size=257)
    with pytest.raises(EncodingError, match="256"):
        found.tensor()


@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1000])
@pytest.mark.parametrize("product", [False, True])
def test_powers_of_two_change_nothing(exponent: int, product: bool) -> None:
    """Neither overflow nor underflow of squares: float64 weights of any size have the codes of those near one."""
    weights = np.random.default_rng(0).standard_normal((64, 16))
    near = quantize_vectors(weights, dimension=4, size=16, product=product)
    far = quantize_vectors(np.ldexp(weights, exponent), dimension=4, size=16, product=product)
    np.testing.assert_array_equal(far.codes, near.codes)
    np.testing.assert_array_equal(far.codewords, np.ldexp(near.codewords, exponent))

"""One-dimensional k-means against exact rational arithmetic, quadratic dynamic programming, kmeans1d and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import kmeans1d
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from dcz import _native
from dcz.compression.clustering import (
    Clustering,
    Method,
    assign,
    density_init,
    forgy_init,
    kmeans,
    linear_init,
)
from dcz.errors import EncodingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

METHODS: tuple[Method, ...] = ("optimal", "exact")

any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Neighbours, equals and ties are rare among arbitrary floats.
lumpy_float32 = st.one_of(
    any_float32, st.integers(-4, 4).map(float), st.sampled_from([1e30, 1e-30, 1e-45, 1 + 2**-23])
)


def rational_cost(values: Doubles | Floats, centroids: Doubles) -> Fraction:
    exact = [Fraction(float(c)) for c in centroids]
    return sum((min((Fraction(float(v)) - c) ** 2 for c in exact) for v in values), Fraction(0))


def rational_optimum(values: Doubles | Floats, k: int) -> Fraction:
    """The least cost over all partitions of the sorted values into at most k runs, each around its exact mean."""
    points = sorted(Fraction(float(v)) for v in values)
    n = len(points)

    @cache
    def run(i: int, j: int) -> Fraction:
        mean = sum(points[i:j], Fraction(0)) / (j - i)
        return sum(((p - mean) ** 2 for p in points[i:j]), Fraction(0))

    best = None
    for cuts in combinations(range(1, n), min(k, n) - 1):
        bounds = (0, *cuts, n)
        cost = sum((run(i, j) for i, j in pairwise(bounds)), Fraction(0))
        best = cost if best is None else min(best, cost)
    assert best is not None
    return best


def quadratic_optimum(position: Doubles, weight: Doubles, k_max: int) -> list[float]:
    """The textbook dynamic programme, O(k n^2): the least cost for each number of cells from 1 to k_max."""
    n = position.size
    cost = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            x, w = position[i:j], weight[i:j]
            cost[i, j] = (w * (x - np.average(x, weights=w)) ** 2).sum()
    best, least = cost[0].copy(), []
    best[0] = 0.0
    for k in range(1, k_max + 1):
        if k > 1:
            best = np.min(best[:, None] + cost, axis=0)
        least.append(float(best[n]))
    return least


def sum_of_squares(values: npt.NDArray[Any], centroids: Doubles) -> float:
    x = np.sort(values.astype(np.float64).reshape(-1))
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, x)
    return float(((x - centroids[nearest]) ** 2).sum())


def weights_like(name: str, n: int) -> Floats:
    random = np.random.RandomState(7)
    normal = random.standard_normal(n)
    values: dict[str, Callable[[], npt.NDArray[Any]]] = {
        "normal": lambda: 0.02 * normal,
        "uniform": lambda: random.random_sample(n),
        "heavy tails": lambda: 0.02 * random.standard_t(3, n),
        "cauchy": lambda: 0.02 * random.standard_cauchy(n),
        "one outlier": lambda: np.append(0.02 * normal[1:], 1000.0),
        "far outliers": lambda: np.append(0.02 * normal[2:], [-3e8, 1e9]),
        "huge outlier": lambda: np.append(0.02 * normal[1:], 3e38),
        "near one": lambda: 1 + 1e-5 * normal,
        "two scales": lambda: np.where(random.random_sample(n) < 0.5, normal, 1e-4 * normal),
        "noisy lattice": lambda: random.randint(0, 200, n) + 1e-4 * normal,
        "lattice": lambda: random.randint(-7, 8, n) * 0.125,
        "pruned": lambda: np.where(np.abs(normal) < 1, 0.0, normal),
        "subnormal": lambda: 1e-41 * normal,
        "huge": lambda: 1e37 * normal,
    }
    return values[name]().astype(np.float32)


SHAPES = [
    "normal",
    "uniform",
    "heavy tails",
    "cauchy",
    "one outlier",
    "far outliers",
    "huge outlier",
    "near one",
    "two scales",
    "noisy lattice",
    "lattice",
    "pruned",
    "subnormal",
    "huge",
]


def check_form(result: Clustering, values: npt.NDArray[Any], k: int) -> None:
    assert result.centroids.dtype == np.float64
    assert (np.diff(result.centroids) > 0).all()
    assert 1 <= result.centroids.size <= k
    assert values.min() <= result.centroids[0]
    assert result.centroids[-1] <= values.max()


# The optimum


@given(st.lists(lumpy_float32, min_size=1, max_size=8), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_exact_is_optimal_in_rational_arithmetic(numbers: list[float], k: int) -> None:
    values = np.array(numbers, np.float32)
    optimum = rational_optimum(values, k)
    for method in METHODS:
        result = kmeans(values, k, method=method)
        check_form(result, values, k)
        assert rational_cost(values, result.centroids) <= optimum * (1 + Fraction(1, 10**9))
        assert result.cost == pytest.approx(float(optimum), rel=1e-9, abs=0)


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=40), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_exact_against_the_quadratic_programme_where_costs_tie(numbers: list[int], k: int) -> None:
    values = np.array(numbers, np.float32)
    position, counts = np.unique(values.astype(np.float64), return_counts=True)
    least = quadratic_optimum(position, counts.astype(np.float64), min(k, position.size))[-1]
    assert kmeans(values, k, method="exact").cost == pytest.approx(least, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_number_of_cells_of_equally_spaced_points(weighted: bool) -> None:
    # Costs are equal by the thousand here, and many numbers of cells have no price at which they alone are best.
    position = np.arange(60.0)
    weight = np.where(position % 7 == 0, 3.0, 1.0) if weighted else np.ones(60)
    for k, least in enumerate(quadratic_optimum(position, weight, 60), start=1):
        centroids, cost, _, gap, iterations = _native.optimal_partition(position, weight, k, 1e-9, 0.0)
        assert centroids.size == k
        assert cost == pytest.approx(least, rel=1e-12, abs=1e-12)
        assert gap <= 1e-12 * position.size**3
        assert iterations < 40


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [2, 16])
def test_exact_equals_kmeans1d(shape: str, k: int) -> None:
    values = weights_like(shape, 3000)
    result = kmeans(values, k, method="exact")
    check_form(result, values, k)
    assert result.cost == pytest.approx(sum_of_squares(values, result.centroids), rel=1e-9)
    # kmeans1d knows no values of very different magnitudes: there it can only be worse.
    other = sum_of_squares(values, np.unique(kmeans1d.cluster(values.astype(np.float64), k).centroids))
    assert result.cost <= other * (1 + 1e-9)
    if shape not in {"far outliers", "huge outlier"}:
        assert result.cost == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("k", "n"), [(3, 40_000), (32, 60_000), (256, 150_000)])
def test_bins_cost_little(shape: str, k: int, n: int) -> None:
    values = weights_like(shape, n)
    optimal, exact = kmeans(values, k), kmeans(values, k, method="exact")
    check_form(optimal, values, k)
    assert exact.cost * (1 - 1e-9) <= optimal.cost <= exact.cost * (1 + 1e-5)
    assert optimal.cost == pytest.approx(sum_of_squares(values, optimal.centroids), rel=1e-9)


def test_bins_against_kmeans1d() -> None:
    values = weights_like("heavy tails", 40_000)
    other = kmeans1d.cluster(values.astype(np.float64), 8).centroids
    assert kmeans(values, 8).cost <= sum_of_squares(values, np.array(other)) * (1 + 1e-5)


@pytest.mark.parametrize("shape", ["normal", "heavy tails", "two scales"])
def test_scikit_learn_is_not_better(shape: str) -> None:
    values = weights_like(shape, 5000)
    fitted = KMeans(16, n_init=3, random_state=0).fit(values.reshape(-1, 1).astype(np.float64))
    assert kmeans(values, 16).cost <= fitted.inertia_


@given(st.floats(allow_nan=True, allow_infinity=True))
@settings(max_examples=50, deadline=None)
def test_no_price_changes_the_optimum(price: float) -> None:
    position, weight, _ = _points(weights_like("heavy tails", 2000))
    told = _native.optimal_partition(position, weight, 16, 1e-9, price)
    found = _native.optimal_partition(position, weight, 16, 1e-9, 0.0)
    np.testing.assert_array_equal(told[0], found[0])
    assert told[1] == found[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_proof_of_optimality_holds(shape: str) -> None:
    position, weight, _ = _points(weights_like(shape, 20_000))
    for k in (2, 5, 16, 100, 256):
        _, cost, _, gap, iterations = _native.optimal_partition(position, weight, k, 1e-9, 0.0)
        assert gap <= 1e-9 * cost
        assert iterations < 100


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [2, 16, 200])
def test_the_evaluation_without_cancellation_agrees(shape: str, k: int) -> None:
    # A tolerance that no prefix sums can promise forces it.
    position, weight, _ = _points(weights_like(shape, 3000))
    _, cost, *_ = _native.optimal_partition(position, weight, k, 1e-9, 0.0)
    _, other, _, gap, _ = _native.optimal_partition(position, weight, k, 0.0, 0.0)
    assert cost == pytest.approx(other, rel=1e-9, abs=0)
    assert gap <= 1e-12 * other


def _points(values: Floats) -> tuple[Doubles, Doubles, float]:
    points = _native.distinct_points(values)
    assert points is not None
    return points


# Points


@given(st.lists(lumpy_float32, max_size=50))
@settings(max_examples=100, deadline=None)
def test_distinct_points(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    position, counts = np.unique(values, return_counts=True)
    found = _points(values)
    np.testing.assert_array_equal(found[0], position)
    np.testing.assert_array_equal(found[1], counts)
    assert not np.signbit(found[0][found[0] == 0]).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_distinct_points_of_many_values(shape: str) -> None:
    values = weights_like(shape, 50_000)
    position, counts = np.unique(values, return_counts=True)
    found = _points(values)
    np.testing.assert_array_equal(found[0], position)
    np.testing.assert_array_equal(found[1], counts)


@given(st.lists(lumpy_float32, max_size=50), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_bins_keep_counts_and_sums(numbers: list[float], bins: int) -> None:
    values = np.array(numbers, np.float32)
    found = _native.binned_points(values, bins)
    assert found is not None
    position, weight, scatter = found
    assert (np.diff(position) > 0).all()
    assert weight.sum() == values.size
    exact = values.astype(np.float64)
    assert position @ weight == pytest.approx(exact.sum(), rel=1e-9, abs=1e-12 * np.abs(exact).sum())
    # What the bins hide is no more than they say: total sum of squares = between bins + inside bins.
    if values.size:
        total = ((exact - exact.mean()) ** 2).sum()
        between = (weight * (position - exact.mean()) ** 2).sum()
        assert total - between <= scatter + 1e-9 * total


@pytest.mark.parametrize("bins", [1, 100, 1 << 14, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_bins_of_many_values(shape: str, bins: int) -> None:
    values = weights_like(shape, 50_000)
    found = _native.binned_points(values, bins)
    assert found is not None
    position, weight, _ = found
    assert (np.diff(position) > 0).all()
    assert weight.sum() == values.size
    assert position[0] >= values.min()
    assert position[-1] <= values.max()


# Lloyd


def plain_lloyd(values: Floats, centroids: Doubles, rounds: int) -> Doubles:
    x, centroids = np.sort(values.astype(np.float64)), centroids.copy()
    for _ in range(rounds):
        codes = np.abs(x[:, None] - centroids).argmin(axis=1)
        means = [x[codes == i].mean() if (codes == i).any() else c for i, c in enumerate(centroids)]
        if np.array_equal(means, centroids):
            break
        centroids = np.array(means)
    used = np.unique(np.abs(x[:, None] - centroids).argmin(axis=1))
    return np.array([x[np.abs(x[:, None] - centroids).argmin(axis=1) == i].mean() for i in used])


@pytest.mark.parametrize("init", ["linear", "density", "forgy"])
@pytest.mark.parametrize("rounds", [0, 1, 2, 1000])
def test_lloyd_step_by_step(init: Any, rounds: int) -> None:
    values = weights_like("heavy tails", 2000)
    start = {"linear": linear_init, "density": density_init, "forgy": forgy_init}[init](values, 12)
    result = kmeans(values, 12, method="lloyd", init=init, max_iterations=rounds)
    np.testing.assert_allclose(result.centroids, plain_lloyd(values, start, rounds), rtol=1e-12, atol=1e-15)
    assert result.iterations <= rounds
    assert result.cost >= kmeans(values, 12, method="exact").cost


def test_lloyd_equals_scikit_learn() -> None:
    values = weights_like("normal", 4000)
    start = linear_init(values, 8).reshape(-1, 1)
    fitted = KMeans(8, init=start, n_init=1, tol=0, max_iter=1000).fit(
        values.reshape(-1, 1).astype(np.float64)
    )
    result = kmeans(values, 8, method="lloyd", max_iterations=1000)
    np.testing.assert_allclose(result.centroids, np.sort(fitted.cluster_centers_[:, 0]), rtol=1e-9)
    assert result.cost == pytest.approx(fitted.inertia_, rel=1e-9)


@pytest.mark.parametrize("init", ["linear", "density", "forgy"])
def test_lloyd_never_gets_worse(init: Any) -> None:
    values = weights_like("two scales", 20_000)
    costs = [
        kmeans(values, 16, method="lloyd", init=init, max_iterations=n).cost for n in (0, 1, 3, 10, 50, 300)
    ]
    assert costs == sorted(costs, reverse=True)


def test_lloyd_keeps_its_digits_beside_an_outlier() -> None:
    values = weights_like("huge outlier", 2000)
    result = kmeans(values, 4, method="lloyd", init="density")
    assert result.cost <= sum_of_squares(values, result.centroids) * (1 + 1e-9)
    assert values.min() <= result.centroids[0] < result.centroids[-1] <= values.max()


# Initializations


def test_linear_init() -> None:
    values = np.array([3.0, -1.0, 0.5, 0.5], np.float32)
    np.testing.assert_array_equal(linear_init(values, 5), [-1, 0, 1, 2, 3])
    np.testing.assert_array_equal(linear_init(np.array([-1.7e308, 1.7e308]), 3), [-1.7e308, 0, 1.7e308])


def test_density_init_takes_equal_steps_of_the_distribution() -> None:
    values = weights_like("heavy tails", 1000)
    expected = np.quantile(values.astype(np.float64), (np.arange(10) + 0.5) / 10, method="inverted_cdf")
    np.testing.assert_array_equal(density_init(values, 10), expected)


def test_forgy_init_draws_observations() -> None:
    values = weights_like("pruned", 1000)
    drawn = forgy_init(values, 20, seed=3)
    assert drawn.size == 20
    assert np.isin(drawn, values).all()
    np.testing.assert_array_equal(forgy_init(values[::-1].copy(), 20, seed=3), drawn)
    assert not np.array_equal(forgy_init(values, 20, seed=4), drawn)


def test_forgy_init_follows_the_density() -> None:
    values = np.repeat(np.arange(100, dtype=np.float32), np.where(np.arange(100) < 10, 1000, 1))
    hits = np.concatenate([forgy_init(values, 1, seed=seed) for seed in range(300)])
    assert (hits < 10).mean() > 0.95


# Codes


def floor_halfway(a: float, b: float) -> float:
    exact = (Fraction(a) + Fraction(b)) / 2
    rounded = float(exact)
    return rounded if Fraction(rounded) <= exact else float(np.nextafter(rounded, -np.inf))


@given(
    st.lists(lumpy_float32, min_size=1, max_size=12),
    st.lists(
        st.one_of(lumpy_float32, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=12
    ),
)
@settings(max_examples=300, deadline=None)
def test_codes_are_nearest_in_rational_arithmetic(numbers: list[float], levels: list[float]) -> None:
    values, centroids = np.array(numbers, np.float32), np.sort(np.array(levels, np.float64))
    exact = [Fraction(float(c)) for c in centroids]
    expected = []
    for value in values:
        distances = [abs(Fraction(float(value)) - c) for c in exact]
        expected.append(distances.index(min(distances)))
    np.testing.assert_array_equal(assign(values, centroids), expected)
    np.testing.assert_array_equal(assign(values.astype(np.float64), centroids), expected)


@pytest.mark.parametrize("k", [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 255, 256])
@pytest.mark.parametrize(
    "shape", ["normal", "uniform", "huge outlier", "near one", "lattice", "subnormal", "huge"]
)
def test_codes_of_many_values(shape: str, k: int) -> None:
    # Enough values for the table; 37 more, so that blocks have an end; all neighbours of the thresholds.
    values = weights_like(shape, 70_000 + 37)
    centroids = np.unique(linear_init(values, k).astype(np.float32)).astype(np.float64)
    if shape in {"near one", "normal"}:
        centroids = kmeans(values, k).centroids
    halfway = np.array([floor_halfway(a, b) for a, b in pairwise(centroids)])
    around = np.concatenate([np.nextafter(halfway.astype(np.float32), np.float32(s)) for s in (-1e38, 1e38)])
    values = np.concatenate(
        [values, halfway.astype(np.float32), around, np.array([0.0, -0.0, 3.4e38, -3.4e38], np.float32)]
    )
    expected = np.searchsorted(halfway, values.astype(np.float64), side="left")
    np.testing.assert_array_equal(assign(values, centroids), expected)
    few = values[-2000:]
    np.testing.assert_array_equal(assign(few, centroids), expected[-2000:])


def test_codes_keep_the_shape_and_use_the_first_of_equal_centroids() -> None:
    values = np.array([[[-5.0, 0.25], [0.5, 9.0]]], np.float32)
    codes = assign(values, np.array([0, 0, 1, 1, 1], ml_dtypes.bfloat16))
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, [[[0, 0], [0, 2]]])
    assert assign(np.array(3, np.float32), np.array([1.0, 2.0])).shape == ()


@pytest.mark.parametrize("k", [4, 32, 256])
def test_squared_error(k: int) -> None:
    values = weights_like("heavy tails", 100_003)
    centroids = kmeans(values, k).centroids
    assert _native.squared_error(values, centroids) == pytest.approx(
        sum_of_squares(values, centroids), rel=1e-12
    )


# Types, forms and refusals


@pytest.mark.parametrize("dtype", ["f8_e4m3fn", "f8_e5m2", "f16", "bf16", "f64"])
@pytest.mark.parametrize("k", [5, 200])
def test_other_types_are_optimal_too(dtype: str, k: int) -> None:
    kinds: dict[str, Any] = {
        "f8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "f8_e5m2": ml_dtypes.float8_e5m2,
        "f16": np.float16,
        "bf16": ml_dtypes.bfloat16,
        "f64": np.float64,
    }
    values = weights_like("normal", 5000).astype(kinds[dtype])
    values[:2] = [0.0, -0.0]
    wide = values.astype(np.float64)
    # Up to 16 bits, all types fit in a float32.
    exact = kmeans(wide.astype(np.float32), k, method="exact")
    for method in METHODS:
        result = kmeans(values, k, method=method)
        assert result.cost == pytest.approx(exact.cost, rel=1e-5 if dtype == "f64" else 1e-9)
    np.testing.assert_array_equal(assign(values, result.centroids), assign(wide, result.centroids))
    lloyd = kmeans(values, k, method="lloyd")
    assert lloyd.cost == pytest.approx(sum_of_squares(values, lloyd.centroids), rel=1e-9)


def test_float64_keeps_its_digits() -> None:
    values = 1 + 1e-12 * weights_like("normal", 500).astype(np.float64)
    result = kmeans(values, 7)
    assert result.centroids.size == 7
    shifted = (values - 1) * 2.0**60
    assert result.cost * 2.0**120 == pytest.approx(kmeans(shifted, 7).cost, rel=1e-3)


def test_strides_and_byte_order_do_not_matter() -> None:
    values = weights_like("normal", 5000)
    expected = kmeans(values, 9)
    for same in (
        np.repeat(values, 2)[::2],
        values.astype(">f4"),
        values.reshape(50, 100).T.copy().T,
        values.reshape(5, -1),
    ):
        result = kmeans(same, 9)
        np.testing.assert_array_equal(result.centroids, expected.centroids)
        np.testing.assert_array_equal(
            assign(same, result.centroids).reshape(-1), assign(values, expected.centroids)
        )


@pytest.mark.parametrize("method", ["optimal", "exact", "lloyd"])
@pytest.mark.parametrize("init", ["linear", "density", "forgy"])
@pytest.mark.parametrize(
    "numbers",
    [
        [0.0],
        [-0.0, 0.0],
        [7.5] * 100,
        [1.0, 2.0, 3.0],
        [1e-45, 0.0, -1e-45],
        [3.4e38, -3.4e38],
        [1.0, 1.0 + 2**-23],
        [1e30, 1.0, 1e-30],
    ],
)
def test_no_more_centroids_than_values(numbers: list[float], method: Any, init: Any) -> None:
    values = np.array(numbers, np.float32)
    distinct = np.unique(values.astype(np.float64))
    for k in (distinct.size, distinct.size + 1, 256):
        result = kmeans(values, k, method=method, init=init)
        if method == "lloyd":  # a local optimum may leave centroids unused
            assert np.isin(result.centroids, distinct).all() or result.cost > 0
        else:
            np.testing.assert_array_equal(result.centroids, distinct)
            assert result.cost == 0


@pytest.mark.parametrize("method", ["optimal", "exact", "lloyd"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_no_values_no_centroids(method: Any, dtype: Any) -> None:
    result = kmeans(np.empty((0, 3), dtype), 16, method=method)
    assert (result.centroids.size, result.cost, result.iterations) == (0, 0.0, 0)
    assert assign(np.empty((0, 3), dtype), np.array([1.0])).shape == (0, 3)


@pytest.mark.parametrize("method", ["optimal", "exact", "lloyd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
def test_infinities_and_nans_are_refused(method: Any, bad: float, dtype: Any) -> None:
    for n in (1, 20, 20_000):
        values = np.zeros(n, dtype)
        values[n // 3] = bad
        with pytest.raises(EncodingError, match="infinite values and NaNs"):
            kmeans(values, 4, method=method)
        with pytest.raises(EncodingError, match="infinite values and NaNs"):
            assign(values, np.arange(40.0))


def test_wrong_arguments_are_refused() -> None:
    values = np.zeros(3, np.float32)
    for k in (0, -1, 257):
        for call in (kmeans, linear_init, density_init, forgy_init):
            with pytest.raises(EncodingError, match="centroids are not possible"):
                call(values, k)
    for array in (np.zeros(3, np.int32), np.zeros(3, np.complex64), np.array(["a"])):
        with pytest.raises(EncodingError):
            kmeans(array, 2)
    for centroids in ([], [1.0, 0.0], [np.nan], [0.0, np.inf], np.arange(257.0)):
        with pytest.raises(EncodingError, match="centroids must be"):
            assign(values, np.array(centroids, np.float64))
    with pytest.raises(EncodingError, match="method"):
        kmeans(values, 2, method="best")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="initialization"):
        kmeans(values, 2, method="lloyd", init="best")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="iterations"):
        kmeans(values, 2, method="lloyd", max_iterations=-1)
    with pytest.raises(EncodingError, match="seed"):
        forgy_init(values, 2, seed=-1)


def test_the_kernels_refuse_what_they_cannot_trust() -> None:
    one, two = np.ones(1), np.array([1.0, 2.0])
    for position, weight, k in [
        (two[::-1].copy(), two, 1),
        (np.array([1.0, 1.0]), two, 1),
        (np.array([np.nan, 1.0]), two, 1),
        (two, np.array([1.0, 0.0]), 1),
        (two, np.array([1.0, np.inf]), 1),
        (two, one, 1),
        (two, two, 0),
        (two, two, 257),
    ]:
        with pytest.raises(ValueError, match="points must be"):
            _native.optimal_partition(position, weight, k, 1e-9, 0.0)
    for initial in (np.empty(0), two[::-1].copy(), np.array([np.nan]), np.arange(257.0)):
        with pytest.raises(ValueError, match="points must be"):
            _native.lloyd_partition(two, two, initial, 10)
    values = np.zeros(4, np.float32)
    for bins in (0, (1 << 20) + 1):
        with pytest.raises(ValueError, match="bins"):
            _native.binned_points(values, bins)
    with pytest.raises(ValueError, match="one code"):
        _native.assign_nearest(values, one, np.zeros(3, np.uint8))
    assert not _native.assign_nearest(values, two[::-1].copy(), np.zeros(4, np.uint8))
    assert _native.squared_error(np.array([np.nan], np.float32), one) is None


def test_threads_do_not_change_a_bit() -> None:
    values = weights_like("heavy tails", 200_000)

    def work(_: int) -> tuple[bytes, float, bytes]:
        result = kmeans(values, 32)
        return result.centroids.tobytes(), result.cost, assign(values, result.centroids).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(8)))) == 1

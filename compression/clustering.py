"""Weight sharing: many weights, few centroids ("trained quantization" of Han, Mao and Dally 2016, section 3).

One-dimensional k-means is the one case of k-means whose optimum can be computed, so the optimum is what `kmeans` gives
unless it is asked for the paper's own procedure, Lloyd's iterations from one of three initializations.

The weights of a pruned tensor are clustered without its zeros: ``kmeans(tensor[mask], k)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dcz import _native
from dcz.compression.arguments import check_array, is_whole
from dcz.compression.stochastic import check_seed
from dcz.errors import EncodingError
from dcz.format.dtypes import DType, dtype_of

__all__ = ["Clustering", "Init", "Method", "assign", "density_init", "forgy_init", "kmeans", "linear_init"]

Method = Literal["optimal", "exact", "lloyd"]
Init = Literal["linear", "density", "forgy"]

_Doubles = npt.NDArray[np.float64]

MAX_CENTROIDS: Final = 256  # a code is one byte

# With b bins for each of k cells, a partition of bins costs about 1/b^2 more than one of values.
_BINS_PER_CELL: Final = 1024
_MIN_BINS: Final = 1 << 14
_MAX_BINS: Final = 1 << 17
# How far the values may scatter inside their bins, against the cost, before the bins are given up for the values.
# The excess over the optimum stays well below this.
_MAX_SCATTER: Final = 5e-5

# The part of the cost that rounding may decide.
_TOLERANCE: Final = 1e-7
_EXACT_TOLERANCE: Final = 1e-9

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class Clustering:
    """What k-means found.

    ``centroids``: float64, strictly ascending; fewer than k where fewer suffice. ``cost``: the sum of the squared
    distances between the values and their nearest centroids (within-cluster sum of squares). ``iterations``: passes of
    the search ("optimal", "exact"), Lloyd's iterations ("lloyd").
    """

    centroids: _Doubles
    cost: float
    iterations: int


class _Points(NamedTuple):
    position: _Doubles  # strictly ascending
    weight: _Doubles  # how many values each stands for


def kmeans(
    values: npt.NDArray[Any],
    k: int,
    *,
    method: Method = "optimal",
    init: Init = "linear",
    seed: int = 0,
    max_iterations: int = 300,
) -> Clustering:
    """At most k (1 to 256) centroids for floating-point values of any shape.

    - "optimal": the least cost, to within 1e-4 and mostly 1e-6 of it; float32 values are first gathered in bins.
    - "exact": the least cost up to rounding, on all distinct values.
    - "lloyd": Lloyd's iterations on all distinct values from ``init`` until nothing moves or for ``max_iterations``; a
      local optimum. ``seed`` is for "forgy". Clusters that stay empty are left out.

    Equal inputs give equal bits. No values give no centroids. Raises EncodingError if a value is infinite or NaN, the
    values are not floating-point numbers, or k is out of range.
    """
    _check_k(k)
    if method == "lloyd":
        return _lloyd(_distinct_points(values), k, init, seed, max_iterations)
    if method == "optimal":
        return _optimal(values, k)
    if method == "exact":
        return _exact(values, k)
    raise EncodingError(f"no clustering method {method!r}", hint="allowed: optimal, exact, lloyd")


def assign(values: npt.NDArray[Any], centroids: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The index of the centroid nearest to each value, in the shape of the values.

    Decided as in real arithmetic; of two centroids equally near, the lower one. ``centroids``: 1 to 256 finite
    floating-point numbers of any type, ascending; the type in which they are stored is the one to pass. Of equal ones,
    the first is used. Raises EncodingError if a value is infinite or NaN, or the centroids are not as said.
    """
    flat, dtype = _flat(values)
    table = _flat(centroids)[0].astype(np.float64)
    if not 1 <= table.size <= MAX_CENTROIDS or not np.isfinite(table).all() or (np.diff(table) < 0).any():
        raise EncodingError(f"centroids must be 1 to {MAX_CENTROIDS} finite numbers in ascending order")
    distinct, first = np.unique(table, return_index=True)
    codes = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, _CHUNK):
        chunk, out = flat[start : start + _CHUNK], codes[start : start + _CHUNK]
        if dtype.name == "f64":
            _check_finite(chunk)
            out[:] = np.searchsorted(_thresholds(distinct), chunk, side="left")
        elif not _native.assign_nearest(chunk.astype(np.float32, copy=False), distinct, out):
            raise _not_finite()
    if distinct.size < table.size:
        codes = first.astype(np.uint8)[codes]
    return codes.reshape(values.shape)


def linear_init(values: npt.NDArray[Any], k: int) -> _Doubles:
    """The paper's linear initialization: k equal steps from the least to the greatest value.

    float64, strictly ascending. The paper's choice: it leaves centroids for the few large weights, which matter most.
    Raises EncodingError as `kmeans` does.
    """
    _check_k(k)
    return _linear(_distinct_points(values), k)


def density_init(values: npt.NDArray[Any], k: int) -> _Doubles:
    """The paper's density-based initialization: k equal steps of the cumulative distribution.

    The i-th centroid is the value at the (i + 1/2) / k quantile. float64, strictly ascending; fewer than k where one
    value covers several steps. Raises EncodingError as `kmeans` does.
    """
    _check_k(k)
    return _density(_distinct_points(values), k)


def forgy_init(values: npt.NDArray[Any], k: int, seed: int = 0) -> _Doubles:
    """Forgy's initialization: k random observations.

    Equal observations are drawn again, so that there are k centroids where there are k distinct values and none of
    them is very rare. Depends on the values and the seed, not on the order of the values. float64, strictly ascending.
    Raises EncodingError as `kmeans` does.
    """
    _check_k(k)
    return _forgy(_distinct_points(values), k, seed)


def _linear(points: _Points, k: int) -> _Doubles:
    if points.position.size == 0:
        return points.position
    step = np.linspace(0.0, 1.0, k)
    # Not lowest + step * (highest - lowest): the difference may overflow.
    return np.unique(points.position[0] * (1 - step) + points.position[-1] * step)


def _density(points: _Points, k: int) -> _Doubles:
    if points.position.size == 0:
        return points.position
    cumulative = np.cumsum(points.weight)
    steps = (np.arange(k) + 0.5) / k * cumulative[-1]
    return np.unique(points.position[np.searchsorted(cumulative, steps, side="left")])


def _forgy(points: _Points, k: int, seed: int) -> _Doubles:
    check_seed(seed)
    if points.position.size <= k:
        return points.position
    cumulative = np.cumsum(points.weight)
    # Its stream, unlike that of numpy's newer generators, is frozen: a seed means the same in every version.
    random = np.random.RandomState(seed)
    drawn: dict[int, None] = {}
    for _ in range(64):
        # The product may round up to the total, where no observation is.
        draws = np.minimum(np.floor(random.random_sample(k) * cumulative[-1]), cumulative[-1] - 1)
        for index in np.searchsorted(cumulative, draws, side="right"):
            drawn.setdefault(int(index))
        if len(drawn) >= k:
            break
    return np.sort(points.position[list(drawn)[:k]])


def _optimal(values: npt.NDArray[Any], k: int) -> Clustering:
    flat, dtype = _flat(values)
    if dtype.name != "f32" or flat.size <= _bins(k):
        return _partition(_distinct_points(flat), k, _TOLERANCE)
    centroids, price, scatter, iterations = _binned(flat, k)
    cost = _native.squared_error(flat, centroids)
    if cost is None:
        raise _not_finite()
    if scatter <= _MAX_SCATTER * cost:
        return Clustering(centroids, cost, iterations)
    # The values crowd together in places too narrow for the bins.
    return _partition(_distinct_points(flat), k, _TOLERANCE, price)


def _exact(values: npt.NDArray[Any], k: int) -> Clustering:
    flat, dtype = _flat(values)
    # The bins' solution costs next to nothing and says where to search: mostly one pass over the values is enough.
    price = _binned(flat, k)[1] if dtype.name == "f32" and flat.size > _bins(k) else 0.0
    return _partition(_distinct_points(flat), k, _EXACT_TOLERANCE, price)


def _bins(k: int) -> int:
    return min(max(_MIN_BINS, _BINS_PER_CELL * k), _MAX_BINS)


def _binned(flat: npt.NDArray[np.float32], k: int) -> tuple[_Doubles, float, float, int]:
    """Centroids, price, scatter and iterations."""
    points = _native.binned_points(flat, _bins(k))
    if points is None:
        raise _not_finite()
    position, weight, scatter = points
    centroids, _, price, _, iterations = _native.optimal_partition(position, weight, k, _TOLERANCE, 0.0)
    return centroids, price, scatter, iterations


def _partition(points: _Points, k: int, tolerance: float, price: float = 0.0) -> Clustering:
    centroids, cost, _, _, iterations = _native.optimal_partition(*points, k, tolerance, price)
    return Clustering(centroids, cost, iterations)


def _lloyd(points: _Points, k: int, init: Init, seed: int, max_iterations: int) -> Clustering:
    if max_iterations < 0:
        raise EncodingError(f"{max_iterations} iterations are not possible")
    if init == "linear":
        initial = _linear(points, k)
    elif init == "density":
        initial = _density(points, k)
    elif init == "forgy":
        initial = _forgy(points, k, seed)
    else:
        raise EncodingError(f"no initialization {init!r}", hint="allowed: linear, density, forgy")
    if initial.size == 0:
        return Clustering(initial, 0.0, 0)
    centroids, cost, _, _, iterations = _native.lloyd_partition(
        *points, initial, min(max_iterations, 2**32 - 1)
    )
    return Clustering(centroids, cost, iterations)


def _distinct_points(values: npt.NDArray[Any]) -> _Points:
    flat, dtype = _flat(values)
    if dtype.name == "f32":
        points = _native.distinct_points(flat)
        if points is None:
            raise _not_finite()
        return _Points(points[0], points[1])
    if dtype.name == "f64":
        _check_finite(flat)
        position, counts = np.unique(flat, return_counts=True)
        return _Points(position + 0.0, counts.astype(np.float64))  # + 0.0: -0.0 becomes 0.0
    if dtype.itemsize == 1:
        flat = flat.astype(np.float16)  # holds every 8-bit float
    occurrences: npt.NDArray[np.uint64] = np.zeros(1 << 16, np.uint64)
    _native.count_words(flat.view(np.uint16), occurrences)
    words = np.flatnonzero(occurrences).astype(np.uint16)
    occurring = words.view(flat.dtype).astype(np.float64)
    _check_finite(occurring)
    # Two words may mean the same: 0.0 and -0.0.
    position, inverse = np.unique(occurring + 0.0, return_inverse=True)
    return _Points(position, np.bincount(inverse, weights=occurrences[words]).astype(np.float64))


def _thresholds(centroids: _Doubles) -> _Doubles:
    """The greatest doubles that are not nearer to the upper of two neighbours than to the lower one."""
    # Halves, so that no sum overflows; what rounding takes from a subnormal half decides nothing but the last bit.
    lower, upper = centroids[:-1], centroids[1:]
    scale = 0.5 if np.abs(centroids).max() > 2.0**1000 else 1.0
    a, b = lower * scale, upper * scale
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    halfway = total * (0.5 / scale)
    back = halfway * (2 * scale)
    above = (back > total) | ((back == total) & (error < 0))
    return np.where(above, np.nextafter(halfway, -np.inf), halfway)


def _flat(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], DType]:
    check_array(values, "values")
    dtype = dtype_of(values)
    if not dtype.is_float:
        raise EncodingError(f"only floating-point values can be clustered, not {dtype.name}")
    return np.ascontiguousarray(values, dtype.numpy).reshape(-1), dtype


def _check_k(k: int) -> None:
    if not is_whole(k, 1, MAX_CENTROIDS):
        raise EncodingError(f"{k!r} centroids are not possible", hint=f"allowed: 1 to {MAX_CENTROIDS}")


def _check_finite(values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise _not_finite()


def _not_finite() -> EncodingError:
    return EncodingError("infinite values and NaNs cannot be clustered", hint="store the tensor losslessly")

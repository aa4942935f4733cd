"""Vector and product codebooks: neighbours along a row share one code (survey, section III-F).

A row is cut into pieces of d neighbours, and each piece becomes the nearest of k codewords of d numbers, found by k-means in d
dimensions (Lloyd's iterations from k-means++; Stock et al., "And the Bit Goes Down", 2020). A vector codebook has the same
codewords for all pieces; a product codebook has its own for each place in the row (Jegou, Douze and Schmid 2011). That is
log2(k) / d bits a weight, and the codewords. Large tables are trained on a random part of the pieces, 1024 for each codeword;
then every piece takes the nearest.

With up to 256 codewords a table, a file holds it as it is (version 1.1 of the format, values of the kind `vectors`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dcz.compression.arguments import is_whole
from dcz.compression.groups import float_dtype_of, not_finite
from dcz.compression.stochastic import check_seed
from dcz.errors import EncodingError
from dcz.format.tensors import VectorCodebookTensor

__all__ = ["VectorCodebook", "nearest_codewords", "quantize_vectors"]

_Doubles = npt.NDArray[np.float64]

_MAX_SIZE: Final = 1 << 16
_MAX_STORED: Final = 1 << 8
_CHUNK: Final = 1 << 16  # distances at once: they stay near the core
_TRAINED_ON: Final = (
    1 << 10
)  # pieces for each codeword; 256 left up to 5 % more squared error in MiniLM's embeddings


@dataclass(frozen=True, eq=False)
class VectorCodebook:
    """A matrix of which neighbours share codes.

    ``codes``: uint16 (rows, pieces). ``codewords``: (places, k, d), of the weights' type; places is 1 or, of a product
    codebook, the pieces of a row; k is as many as are used. ``shape``: of the weights; ``shape[-1]`` is pieces x d.
    """

    codes: npt.NDArray[np.uint16]
    codewords: npt.NDArray[Any]
    shape: tuple[int, ...]

    def decode(self) -> npt.NDArray[Any]:
        """The codewords in place of the codes."""
        places = np.arange(self.codes.shape[1]) % self.codewords.shape[0]
        return np.asarray(self.codewords[places, self.codes].reshape(self.shape))

    def tensor(self) -> VectorCodebookTensor:
        """The same to be stored in a file. Raises EncodingError if there are more than 256 codewords."""
        size = self.codewords.shape[1]
        if size > _MAX_STORED:
            raise EncodingError(f"{size} codewords: a file holds up to {_MAX_STORED} in a table")
        return VectorCodebookTensor(
            dtype=float_dtype_of(self.codewords).name,
            shape=self.shape,
            bits=max(1, (size - 1).bit_length()),
            codes=self.codes.reshape(-1).astype(np.uint8),
            codewords=self.codewords,
            per_place=self.codewords.shape[0] > 1,
        )


def quantize_vectors(
    weights: npt.NDArray[Any],
    *,
    dimension: int,
    size: int,
    product: bool = False,
    iterations: int = 25,
    seed: int = 0,
) -> VectorCodebook:
    """Replace each piece of ``dimension`` neighbours along the last axis by one of ``size`` codewords.

    ``weights``: f64, f32, f16, bf16 or fp8, at least one dimension, not empty, the last a multiple of ``dimension``.
    ``size``: 1 to 65536; there are fewer if fewer are used. ``product``: codewords of its own for each place in a row.
    ``iterations``: of Lloyd at most. ``seed``: 0 to 2**32 - 1, of the first codewords and of what they are trained on.

    Raises EncodingError if a weight is not finite, or if the arguments do not fit together.
    """
    dtype = float_dtype_of(weights)
    check_seed(seed)
    if not np.isfinite(weights).all():
        raise not_finite(weights)
    length = weights.shape[-1] if weights.ndim else 1
    if not is_whole(dimension, 1, length) or length % dimension:
        raise EncodingError(f"rows of {length} weights cannot be cut into pieces of {dimension!r}")
    if not is_whole(size, 1, _MAX_SIZE):
        raise EncodingError(f"{size!r} codewords: 1 to {_MAX_SIZE} are possible")
    pieces = weights.reshape(-1, length // dimension, dimension)
    # Squares of float64 weights could overflow or vanish; powers of two change nothing else.
    exponent = math.frexp(float(np.abs(weights).max()))[1]
    rows, count = pieces.shape[:2]
    codes = np.empty((rows, count), np.uint16)
    codebooks: list[npt.NDArray[Any]] = []
    for place in range(count if product else 1):
        where = slice(place, place + 1) if product else slice(None)
        points = np.ldexp(pieces[:, where].reshape(-1, dimension).astype(np.float64), -exponent)
        random = np.random.RandomState((seed + place) % 2**32)
        trained = _some(points, size * _TRAINED_ON, random)
        codewords = _lloyd(trained, _spread(trained, size, random), iterations)
        # What is stored is what weights are compared with.
        stored = np.ldexp(codewords, exponent).astype(dtype.numpy)
        compared = np.ldexp(stored.astype(np.float64), -exponent)
        used, found = np.unique(nearest_codewords(points, compared), return_inverse=True)
        codes[:, where] = found.reshape(rows, -1)
        codebooks.append(stored[used])
    most = max(map(len, codebooks))
    filled = [
        np.concatenate([words, np.repeat(words[-1:], most - len(words), axis=0)]) for words in codebooks
    ]
    return VectorCodebook(codes, np.stack(filled), weights.shape)


def _some(points: _Doubles, most: int, random: np.random.RandomState) -> _Doubles:
    """At most so many of the points, in their order."""
    if len(points) <= most:
        return points
    return points[np.sort(random.permutation(len(points))[:most])]


def nearest_codewords(points: _Doubles, codewords: _Doubles) -> npt.NDArray[np.int64]:
    """The index of the codeword nearest to each point, (points, d) and (k, d); of equally near ones the first."""
    norms = np.square(codewords).sum(axis=1)
    nearest = np.empty(len(points), np.int64)
    step = max(1, _CHUNK // len(codewords))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        # |p - c|^2 without |p|^2, which is the same for all codewords.
        nearest[start : start + step] = (norms - 2 * (part @ codewords.T)).argmin(axis=1)
    return nearest


def _spread(points: _Doubles, size: int, random: np.random.RandomState) -> _Doubles:
    """k-means++ (Arthur and Vassilvitskii 2007): each further codeword is a point, drawn by its squared distance to those
    there are. As many as there are different points, repeated if that is fewer than ``size``."""
    columns = np.ascontiguousarray(points.T)
    chosen = np.empty((size, points.shape[1]))
    chosen[0] = points[random.randint(len(points))]
    distances = _distances(columns, chosen[0])
    for i in range(1, size):
        total = np.cumsum(distances)
        drawn = int(np.searchsorted(total, random.random_sample() * total[-1], side="right"))
        chosen[i] = points[min(drawn, len(points) - 1)]
        np.minimum(distances, _distances(columns, chosen[i]), out=distances)
    return chosen


def _distances(columns: _Doubles, point: _Doubles) -> _Doubles:
    """Of all points, (d, points), to one."""
    total = np.zeros(columns.shape[1])
    for column, coordinate in zip(columns, point, strict=True):
        difference = column - coordinate
        total += np.square(difference, out=difference)
    return total


def _lloyd(points: _Doubles, codewords: _Doubles, iterations: int) -> _Doubles:
    """Codewords become the means of the points nearest to them, until nothing moves; unused ones stay."""
    last = None
    for _ in range(iterations):
        nearest = nearest_codewords(points, codewords)
        if last is not None and np.array_equal(nearest, last):
            break
        last = nearest
        counts = np.bincount(nearest, minlength=len(codewords))
        used = counts > 0
        for axis in range(points.shape[1]):
            totals = np.bincount(nearest, weights=points[:, axis], minlength=len(codewords))
            codewords[used, axis] = totals[used] / counts[used]
    return codewords

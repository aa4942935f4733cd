"""Weight sharing: weights -> CodebookTensor (Han, Mao and Dally, "Deep Compression", 2016, section 3).

The k shared weights of a group are the centroids of a one-dimensional k-means over its weights, or their quantiles. They
are stored in the tensor's own type, so they are rounded to it first, and every weight then takes the nearest of the
rounded ones. Pruned weights take no part: zero needs no centroid and no symbol, its position is simply not stored.

`share_weights` does this for any way to choose the shared weights: those of dcz.compression.tables, extreme and
binary_coding go through it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np

from dcz.compression.clustering import Init, Method, assign, density_init, kmeans
from dcz.compression.groups import GroupedTensor, not_finite
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import CodebookTensor

__all__ = ["CodebookMethod", "quantize_codebook", "share_weights", "with_zero"]

CodebookMethod: TypeAlias = Method | Literal["quantile"]


def quantize_codebook(
    weights: np.ndarray,
    *,
    size: int,
    granularity: Granularity | None = None,
    method: CodebookMethod = "optimal",
    init: Init = "linear",
    seed: int = 0,
    mask: np.ndarray | None = None,
) -> CodebookTensor:
    """Replace weights by the nearest of a few shared ones.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``size``: shared weights of a group, 1 to 256; fewer
    are stored if no group needs that many. ``granularity``: what shares a codebook; None is the whole tensor.
    ``method``, ``init``, ``seed``: as in ``dcz.compression.clustering.kmeans``; "quantile" takes the (i + 1/2) / size
    quantiles, so that all are used about equally often. ``mask``: bool, True where a weight is
    kept; weights that are not kept become 0.

    Raises EncodingError if a weight is not finite, or if the arguments do not fit together.
    """

    def centroids(values: np.ndarray) -> np.ndarray:
        if method == "quantile":
            return density_init(values, size)
        return kmeans(values, size, method=method, init=init, seed=seed).centroids

    return share_weights(weights, centroids, granularity=granularity, mask=mask)


def share_weights(
    weights: np.ndarray,
    centroids_of: Callable[[np.ndarray], np.ndarray],
    *,
    granularity: Granularity | None = None,
    mask: np.ndarray | None = None,
) -> CodebookTensor:
    """Replace weights by the nearest of their group's centroids, of equally near ones the lower.

    ``centroids_of``: from the kept weights of a group, (kept,), of their own type, maybe none, to at most 256 numbers of any
    order. The rest as in `quantize_codebook`.
    """
    grouped = GroupedTensor(weights, granularity or PerTensor(), mask)
    codes = np.zeros(weights.shape, dtype=np.uint8)
    codebooks: list[np.ndarray] = []
    for number in range(grouped.count):
        values = grouped.gather(number)
        if not np.isfinite(values).all():
            raise not_finite(weights, mask)
        codebook = _rounded(centroids_of(values), grouped.dtype.numpy)
        grouped.scatter(number, assign(values, codebook), codes)
        codebooks.append(codebook)
    # All groups have as many entries as the largest; the repeated ones at the end have no code.
    largest = max(codebook.size for codebook in codebooks)
    centroids = np.empty((grouped.count, largest), dtype=grouped.dtype.numpy)
    for row, codebook in zip(centroids, codebooks, strict=True):
        row[: codebook.size], row[codebook.size :] = codebook, codebook[-1]
    return CodebookTensor(
        dtype=grouped.dtype.name,
        shape=weights.shape,
        bits=_bits_for(largest),
        codes=codes,
        centroids=centroids,
        granularity=granularity or PerTensor(),
        mask=None if mask is None else mask.reshape(weights.shape),
    )


def with_zero(tensor: CodebookTensor) -> CodebookTensor:
    """The same weights without a mask: zero becomes a shared weight of its own, the first of each group.

    Raises EncodingError if the tensor has 256 shared weights already.
    """
    if tensor.mask is None:
        return tensor
    groups, size = tensor.centroids.shape
    if size > 255:
        raise EncodingError("a codebook of 256 shared weights has no room for zero")
    zero = np.zeros((groups, 1), dtype=DTYPES[tensor.dtype].numpy)
    return replace(
        tensor,
        bits=_bits_for(size + 1),
        codes=np.where(tensor.mask.reshape(tensor.codes.shape), tensor.codes + np.uint8(1), np.uint8(0)),
        centroids=np.concatenate([zero, tensor.centroids], axis=1),
        mask=None,
    )


def _bits_for(size: int) -> int:
    return max(1, (size - 1).bit_length())


def _rounded(centroids: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    """Centroids of ``dtype``, finite, ascending, each once, at least one."""
    if centroids.size == 0:
        return np.zeros(1, dtype=dtype)
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    inside = np.clip(centroids.astype(np.float64), -largest, largest)
    # Sorted as float64, because not every type sorts; adding 0 turns -0 into 0.
    return np.unique(inside.astype(dtype).astype(np.float64) + 0.0).astype(dtype)

"""One and two bits a weight (survey, section IV-D).

    binary    sign(w) a,  a = mean|w|: the least squared error (XNOR-Net: Rastegari et al. 2016)
    ternary   -a, 0 or a, and 0 where |w| <= D; or -a and b (TTQ: Zhu et al. 2017)
        twn       D = 0.7 mean|w|, a = mean of |w| above D (Li, Zhang and Liu, "Ternary Weight Networks", 2016)
        optimal   the least squared error: for the k largest magnitudes, of sum s_k, it is sum w^2 - s_k^2 / k, so the
                  best k is found by one scan of the sorted magnitudes

Binary weights are a codebook of two, one bit each before any coding. Ternary weights with one scale are affine codes of two
bits, of which one never occurs. Where zero is the most frequent, a prefix code takes 1 + P(w != 0) bits for them: about 1.55 for
bell-shaped weights, 1.67 for a flat distribution, of whose weights a third becomes zero. The range coder comes near to the
entropy, which is at most log2(3) = 1.585.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

import numpy as np

from dcz.compression.codebooks import share_weights
from dcz.compression.groups import GroupedTensor, not_finite
from dcz.compression.scales import ScaleDType, nearest_scales, stored_dtype
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import CodebookTensor, UniformTensor

__all__ = ["TernaryMethod", "quantize_binary", "quantize_ternary"]

TernaryMethod: TypeAlias = Literal["twn", "optimal"]

_TWN_RATIO: Final = 0.7
_ZERO: Final = 2  # the code of zero among affine codes of two bits


def quantize_binary(
    weights: np.ndarray, *, granularity: Granularity | None = None, mask: np.ndarray | None = None
) -> CodebookTensor:
    """Replace weights by the mean magnitude of their group, with their signs; zero counts as negative.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``granularity``: what shares a scale; None is the whole
    tensor. ``mask``: bool, True where a weight is kept; weights that are not kept become 0.

    Raises EncodingError if a weight is not finite, or if the arguments do not fit together.
    """

    def centroids(values: np.ndarray) -> np.ndarray:
        if values.size == 0:
            return np.zeros(0)
        scale = _mean(np.abs(values.astype(np.float64)))
        return np.array([-scale, scale])

    return share_weights(weights, centroids, granularity=granularity, mask=mask)


def quantize_ternary(
    weights: np.ndarray,
    *,
    granularity: Granularity | None = None,
    method: TernaryMethod = "optimal",
    scales: Literal[1, 2] = 1,
    scale_dtype: ScaleDType | None = None,
    mask: np.ndarray | None = None,
) -> UniformTensor | CodebookTensor:
    """Replace weights by -a, 0 or a; with two ``scales`` by -a, 0 or b.

    ``weights``, ``granularity``: as in `quantize_binary`. ``scale_dtype``: how a single scale is stored, as in
    dcz.compression.quantizers; two are stored in the weights' type. ``mask``: bool, True where a weight is kept; weights
    that are not kept, and kept ones that become zero, are not stored.

    Raises EncodingError if a weight is not finite, or if the arguments do not fit together.
    """
    if method not in get_args(TernaryMethod):
        raise EncodingError(
            f"unknown ternary method {method!r}", hint=f"allowed: {', '.join(get_args(TernaryMethod))}"
        )
    if scales not in (1, 2):
        raise EncodingError(f"{scales} scales: 1 or 2 are possible")
    grouped = GroupedTensor(weights, granularity or PerTensor(), mask)
    stored = stored_dtype(scale_dtype, grouped.dtype)
    codes = np.full(weights.shape, _ZERO, dtype=np.uint8)
    found = np.zeros((grouped.count, 2))
    for number in range(grouped.count):
        values = grouped.gather(number).astype(grouped.compute)
        if not np.isfinite(values).all():
            raise not_finite(weights, mask)
        # Against overflow: of magnitudes in units of the largest.
        unit = float(np.abs(values).max(initial=0.0)) or 1.0
        parts = values.astype(np.float64) / unit
        both = np.abs(parts)
        if scales == 1 or method == "twn":
            below = above = _least_kept(both, method)
        else:
            below, above = _least_kept(both[parts < 0], method), _least_kept(both[parts > 0], method)
        negative, positive = parts <= -below, parts >= above
        if scales == 1:
            found[number] = _mean(both[negative | positive]) * unit
        else:
            found[number] = _mean(both[negative]) * unit, _mean(both[positive]) * unit
        signs = positive.astype(np.int8) - negative
        grouped.scatter(number, (_ZERO + signs).astype(np.uint8), codes)
    kept = None if mask is None else mask.reshape(weights.shape) & (codes != _ZERO)
    if scales == 1:
        return UniformTensor(
            dtype=grouped.dtype.name,
            shape=weights.shape,
            bits=2,
            codes=codes,
            scales=nearest_scales(found[:, 0], stored),
            granularity=granularity or PerTensor(),
            mask=kept,
        )
    centroids = np.stack([-found[:, 0], np.zeros(grouped.count), found[:, 1]], axis=1) + 0.0
    return CodebookTensor(
        dtype=grouped.dtype.name,
        shape=weights.shape,
        bits=2,
        codes=codes - np.uint8(1),
        centroids=centroids.astype(grouped.dtype.numpy),
        granularity=granularity or PerTensor(),
        mask=kept,
    )


def _least_kept(magnitudes: np.ndarray, method: TernaryMethod) -> float:
    """The least of those magnitudes, float64, that do not become zero; infinity if all do."""
    if method == "twn":
        kept = magnitudes[magnitudes > _TWN_RATIO * _mean(magnitudes)]
        return float(kept.min(initial=np.inf))
    ordered = np.sort(magnitudes[magnitudes > 0])[::-1]
    if not ordered.size:
        return np.inf
    explained = np.square(np.cumsum(ordered)) / np.arange(1, ordered.size + 1)
    return float(ordered[np.argmax(explained)])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0

"""Which range of a group's weights its codes cover (survey, section III-B: static calibration).

    min-max       all of it
    percentile    up to the p-th percentile of |w|; asymmetric: between the (100 - p)-th and the p-th of w
    mse           the part c of it for which the mean of (w - Q_c(w))^2 is least
    kl            the part c of it for which the Kullback-Leibler divergence of the histogram of Q_c(w) from that of w is
                  least ("entropy"; Migacz, "8-bit Inference with TensorRT", 2017)

Both searches run over a fixed grid of c from 1 down, and take the first of the best. The histograms of ``kl`` leave out
zeros, which every scheme represents exactly: after a ReLU they would outweigh everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Final, Literal, TypeAlias

import numpy as np

from dcz.compression.groups import BLOCK_ELEMENTS, GroupedTensor, Rows, reduce_groups
from dcz.compression.scales import AffineCoder, Scheme, affine_parameters, least_code

__all__ = [
    "HISTOGRAM_RATIOS",
    "Calibration",
    "Histograms",
    "best_ratios",
    "divergences",
    "full_ranges",
    "quantile_of_rows",
    "ranges",
    "squared_errors",
]

Calibration: TypeAlias = Literal["min-max", "percentile", "mse", "kl"]

# Fine steps where the optimum of 4 bits and more lies, coarse ones down to what 2 bits need on a large group. Products,
# because powers differ in their last bit between machines.
_CLIP_RATIOS: Final = tuple(accumulate([1.0, *[0.97] * 7, *[0.9] * 9], mul))

# On histograms a candidate costs little. TensorRT goes down to 128 of 2048 bins, too.
HISTOGRAM_RATIOS: Final = tuple(i / 64 for i in range(64, 3, -1))

_MAX_BINS: Final = 2048
_MIN_BINS: Final = 64
_ELEMENTS_PER_BIN: Final = 8


def ranges(
    grouped: GroupedTensor,
    low: np.ndarray,
    high: np.ndarray,
    *,
    bits: int,
    scheme: Scheme,
    scale_dtype: np.dtype[np.generic],
    calibration: Calibration,
    percentile: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The ranges to cover: float64 (groups,) each.

    ``low``, ``high``: float64 (groups,), finite: those of all weights (`full_ranges`). ``percentile``: above 50, at most 100.
    """
    if calibration == "percentile":
        return _percentiles(grouped, low, high, scheme, percentile / 100)
    if calibration == "mse":
        ratios = _least_squares_ratios(grouped, low, high, bits, scheme, scale_dtype)
        return low * ratios, high * ratios
    if calibration == "kl":
        ratios = np.ones(grouped.count)
        for rows in grouped.rows():
            histograms = _histograms(rows, low[rows.groups], high[rows.groups])
            ratios[rows.groups] = best_ratios(divergences, histograms, bits, scheme, scale_dtype)
        return low * ratios, high * ratios
    return low, high


def full_ranges(grouped: GroupedTensor) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest weight of each group as float64 (groups,); NaN where a weight is."""
    low = np.full(grouped.count, np.inf, dtype=grouped.compute)
    high = np.full(grouped.count, -np.inf, dtype=grouped.compute)
    for block in grouped.blocks():
        values = grouped.load(block)
        np.minimum(low[block.groups], reduce_groups(np.minimum, values), out=low[block.groups])
        np.maximum(high[block.groups], reduce_groups(np.maximum, values), out=high[block.groups])
    return low.astype(np.float64), high.astype(np.float64)


def quantile_of_rows(values: np.ndarray, kept: np.ndarray | None, q: float) -> np.ndarray:
    """The q-quantile, 0 to 1, of what is kept of each row, with numpy's linear interpolation; 0 where nothing is kept.

    ``values``: finite, (rows, elements). Returns float64 (rows,).
    """
    ordered = np.sort(values if kept is None else np.where(kept, values, np.inf), axis=1)
    counts = np.full(len(values), values.shape[1]) if kept is None else np.count_nonzero(kept, axis=1)
    place = q * np.maximum(counts - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(counts - 1, 0))
    chosen = np.take_along_axis(ordered, np.stack([below, above], axis=1), axis=1).astype(np.float64)
    chosen[counts == 0] = 0
    part = place - below
    # Not a + part * (b - a): the difference may overflow.
    return np.asarray(chosen[:, 0] * (1 - part) + chosen[:, 1] * part)


def _percentiles(
    grouped: GroupedTensor, low: np.ndarray, high: np.ndarray, scheme: Scheme, q: float
) -> tuple[np.ndarray, np.ndarray]:
    below, above = low.copy(), high.copy()
    for rows in grouped.rows():
        at = rows.groups
        if scheme == "asymmetric":
            below[at] = quantile_of_rows(rows.values, rows.kept, 1 - q)
            above[at] = quantile_of_rows(rows.values, rows.kept, q)
        else:
            reach = quantile_of_rows(np.abs(rows.values), rows.kept, q)
            below[at], above[at] = np.maximum(low[at], -reach), np.minimum(high[at], reach)
    return below, above


def _least_squares_ratios(
    grouped: GroupedTensor,
    low: np.ndarray,
    high: np.ndarray,
    bits: int,
    scheme: Scheme,
    scale_dtype: np.dtype[np.generic],
) -> np.ndarray:
    """For each group the part of its range whose quantization has the least squared error; 1 if none is better."""
    best = np.ones(grouped.count)
    least = np.full(grouped.count, np.inf)
    for ratio in _CLIP_RATIOS:
        scales, zero_points = affine_parameters(
            low * ratio, high * ratio, bits=bits, scheme=scheme, scale_dtype=scale_dtype
        )
        coder = AffineCoder(grouped, scales, zero_points, bits, scheme)
        errors = np.zeros(grouped.count)
        with np.errstate(over="ignore"):  # of float64 weights; then no ratio is better than 1
            for block in grouped.blocks():
                errors[block.groups] += coder.squared_errors(block, grouped.load(block))
        better = errors < least
        best[better], least[better] = ratio, errors[better]
    return best


@dataclass(frozen=True, eq=False)
class Histograms:
    """How often values other than zero are where: one histogram a row, all of as many bins.

    ``low``, ``high``: float64 (rows,), the ranges of the values. ``centres``: float64 (rows, bins), ascending.
    ``counts``: float64 of the same shape.
    """

    low: np.ndarray
    high: np.ndarray
    centres: np.ndarray
    counts: np.ndarray


def _histograms(rows: Rows, low: np.ndarray, high: np.ndarray) -> Histograms:
    number, elements = rows.values.shape
    bins = min(_MAX_BINS, max(_MIN_BINS, elements // _ELEMENTS_PER_BIN))
    # Halves, so that the widest ranges have a finite width.
    origin = low[:, None] / 2
    width = np.maximum((high[:, None] / 2 - origin) / bins, np.finfo(np.float64).smallest_subnormal)
    counts = np.zeros(number * bins, dtype=np.int64)
    for start in range(0, elements, BLOCK_ELEMENTS):
        values = rows.values[:, start : start + BLOCK_ELEMENTS]
        bin_of = ((values * 0.5 - origin) / width).astype(np.int64)
        np.clip(bin_of, 0, bins - 1, out=bin_of)
        bin_of += np.arange(number)[:, None] * bins
        counts += np.bincount(bin_of[values != 0], minlength=counts.size)
    centres = 2 * (origin + (np.arange(bins) + 0.5) * width)
    return Histograms(low, high, centres, counts.reshape(number, bins).astype(np.float64))


@dataclass(frozen=True, eq=False)
class Candidate:
    """What one choice of scales does with the bins of histograms.

    ``codes``: float64 (rows, bins), not clamped; ``least``, ``most``: to what they would be. ``decoded``: float64 of the
    same shape, the values of the clamped codes.
    """

    codes: np.ndarray
    least: int
    most: int
    decoded: np.ndarray


Cost: TypeAlias = Callable[[Histograms, Candidate], np.ndarray]  # -> float64 (rows,)


def _candidate(
    histograms: Histograms, ratio: float, bits: int, scheme: Scheme, scale_dtype: np.dtype[np.generic]
) -> Candidate:
    low, high = histograms.low * ratio, histograms.high * ratio
    scales, zero_points = affine_parameters(low, high, bits=bits, scheme=scheme, scale_dtype=scale_dtype)
    steps = np.where(scales == 0, 1, scales.astype(np.float64))[:, None]
    zeros = np.full(scales.size, 1 << (bits - 1)) if zero_points is None else zero_points.astype(np.int64)
    least, most = least_code(scheme), (1 << bits) - 1
    codes = np.rint(histograms.centres / steps) + zeros[:, None]
    return Candidate(codes, least, most, steps * (np.clip(codes, least, most) - zeros[:, None]))


def best_ratios(
    cost: Cost, histograms: Histograms, bits: int, scheme: Scheme, scale_dtype: np.dtype[np.generic]
) -> np.ndarray:
    """For each row the part of its range that costs least; 1 if none is better. float64 (rows,)."""
    best = np.ones(len(histograms.counts))
    least = np.full(best.size, np.inf)
    for ratio in HISTOGRAM_RATIOS:
        costs = cost(histograms, _candidate(histograms, ratio, bits, scheme, scale_dtype))
        better = costs < least
        best[better], least[better] = ratio, costs[better]
    return best


def squared_errors(histograms: Histograms, candidate: Candidate) -> np.ndarray:
    """Sum of the squared differences between the centres of the bins and their decoded values."""
    with np.errstate(over="ignore"):
        return np.asarray((histograms.counts * np.square(histograms.centres - candidate.decoded)).sum(axis=1))


def divergences(histograms: Histograms, candidate: Candidate) -> np.ndarray:
    """KL(P || Q) in nats.

    P is the histogram, with what is clipped added to the outermost bins that are not and that are not empty. Q is what is
    not clipped, spread evenly over those bins with the same code that are not empty.
    """
    counts, codes = histograms.counts, candidate.codes
    inside = (codes >= candidate.least) & (codes <= candidate.most)
    kept = np.where(inside, counts, 0.0)
    wanted = kept.copy()
    rows, bins = np.arange(len(counts)), counts.shape[1]
    held = kept > 0
    first, last = held.argmax(axis=1), bins - 1 - held[:, ::-1].argmax(axis=1)
    wanted[rows, first] += np.where(codes < candidate.least, counts, 0.0).sum(axis=1)
    wanted[rows, last] += np.where(codes > candidate.most, counts, 0.0).sum(axis=1)
    cells = rows[:, None] * 256 + np.where(inside, codes, 0).astype(np.int64)
    flat, size = cells.reshape(-1), 256 * len(counts)
    mass = np.bincount(flat, weights=kept.reshape(-1), minlength=size)
    shared_by = np.bincount(flat, weights=held.reshape(-1), minlength=size)
    spread = np.where(held, (mass / np.maximum(shared_by, 1))[cells], 0.0)
    p, q = (part / np.maximum(part.sum(axis=1, keepdims=True), 1) for part in (wanted, spread))
    terms = np.log(p / np.where(held, q, 1), out=np.zeros_like(p), where=held)
    # Where everything is clipped, nothing is compared.
    return np.asarray(np.where(held.any(axis=1), (p * terms).sum(axis=1), np.inf))

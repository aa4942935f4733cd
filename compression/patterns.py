"""Patterns of pruning: which weights are kept or removed together.

A pattern cuts a tensor into *units*, gives each a score, and says which units a density keeps:

    unstructured   a unit is one weight                          score: its magnitude
    n:m            a unit is one weight, n of m neighbours stay    score: its magnitude
    channel        a unit is a slice along an axis                 score: root of the mean square
    block          a unit is a rectangle of the matrix             score: root of the mean square

How many units of a tensor are kept is not a pattern's business; it is given, as the density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dcz.compression.groups import float_dtype_of, not_finite
from dcz.compression.pruning import magnitude_mask
from dcz.errors import EncodingError

__all__ = ["Block", "Channel", "NofM", "Pattern", "Unstructured"]


class Pattern(Protocol):
    """A way to cut a tensor into units."""

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """One floating-point number for each unit, (units,); its magnitude ranks the unit.

        ``weights``: floating-point, not empty, of a shape that the pattern allows. Raises EncodingError otherwise.
        """
        ...

    def keep(self, scores: np.ndarray, density: float) -> np.ndarray:
        """Which units stay, (units,) bool, at least one. ``density``: the part that stays, 0 to 1."""
        ...

    def mask(self, kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """From units to weights: bool of ``shape``. ``kept``: (units,) bool."""
        ...


def _top(scores: np.ndarray, density: float) -> np.ndarray:
    return magnitude_mask(scores, min(1.0, max(density, 1 / scores.size)))


@dataclass(frozen=True)
class Unstructured:
    """Each weight for itself."""

    def scores(self, weights: np.ndarray) -> np.ndarray:
        float_dtype_of(weights)
        return weights.reshape(-1)

    def keep(self, scores: np.ndarray, density: float) -> np.ndarray:
        return _top(scores, density)

    def mask(self, kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return kept.reshape(shape)


@dataclass(frozen=True)
class NofM:
    """Of ``m`` neighbours along ``axis`` the ``n`` of largest magnitude stay, as sparse tensor cores want it (2 of 4).

    Of a group that the end of the axis cuts short, as many stay as there are, at most ``n``. A density above n / m keeps
    more, the same number of each group, so that a schedule can come down to it step by step; one below keeps ``n``.

    The groups of a shape are made by scores(), and read by keep() with its last axis: scores are (groups x m,), -0.0
    standing where a group is filled up.
    """

    n: int
    m: int
    axis: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise EncodingError(f"{self.n} of {self.m} weights cannot be kept")

    def scores(self, weights: np.ndarray) -> np.ndarray:
        dtype = float_dtype_of(weights)
        moved = np.moveaxis(weights, _axis_of(self.axis, weights.shape), -1)
        short = -moved.shape[-1] % self.m
        filled = np.zeros((*moved.shape[:-1], moved.shape[-1] + short), dtype.numpy)
        filled[..., : moved.shape[-1]] = moved
        if not np.isfinite(filled).all():
            raise not_finite(weights)
        return filled.reshape(-1)

    def keep(self, scores: np.ndarray, density: float) -> np.ndarray:
        count = min(self.m, max(self.n, math.ceil(density * self.m - 1e-9)))
        groups = np.abs(scores.astype(np.float64)).reshape(-1, self.m)
        # Stable: of equal magnitudes the first stay.
        ranked = np.argsort(-groups, axis=1, kind="stable")[:, :count]
        kept = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(kept, ranked, True, axis=1)
        return kept.reshape(-1)

    def mask(self, kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        axis = _axis_of(self.axis, shape)
        moved = (*shape[:axis], *shape[axis + 1 :], shape[axis] + -shape[axis] % self.m)
        mask = kept.reshape(moved)[..., : shape[axis]]
        return np.ascontiguousarray(np.moveaxis(mask, -1, axis))


class _Numbered:
    """Units that are numbered: each weight belongs to one."""

    def _numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        raise NotImplementedError

    def scores(self, weights: np.ndarray) -> np.ndarray:
        float_dtype_of(weights)
        numbers = np.broadcast_to(self._numbers(weights.shape), weights.shape).reshape(-1)
        values = weights.reshape(-1).astype(np.float64)
        if not np.isfinite(values).all():
            raise not_finite(weights)
        largest = (
            float(np.abs(values).max()) or 1.0
        )  # squares of the least and the greatest weights stay in range
        squares = np.bincount(numbers, weights=(values / largest) ** 2)
        scores: np.ndarray = np.sqrt(squares / np.bincount(numbers)) * largest
        return scores

    def keep(self, scores: np.ndarray, density: float) -> np.ndarray:
        return _top(scores, density)

    def mask(self, kept: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(kept[self._numbers(shape)], shape))


@dataclass(frozen=True)
class Channel(_Numbered):
    """Whole slices along ``axis``: 0 are the outputs of a layer, 1 its inputs."""

    axis: int = 0

    def _numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        axis = _axis_of(self.axis, shape)
        return np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1))


@dataclass(frozen=True)
class Block(_Numbered):
    """Rectangles of the matrix (first dimension, all others); those at the end may be smaller."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise EncodingError(f"a block of {self.rows} x {self.columns} weights is not possible")

    def _numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        _axis_of(1, shape)
        width = math.prod(shape[1:])
        across = -(-width // self.columns)
        rows = np.arange(shape[0])[:, None] // self.rows
        columns = np.arange(width)[None, :] // self.columns
        return (rows * across + columns).reshape(shape)


def _axis_of(axis: int, shape: tuple[int, ...]) -> int:
    if not 0 <= axis < len(shape):
        raise EncodingError(f"axis {axis} of a tensor with {len(shape)} dimensions")
    return axis

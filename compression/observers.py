"""Observers: what range a stream of tensors has, batch by batch (survey, section III-B: activations).

    observer          static range
    MinMaxObserver    from the least to the greatest value seen
    MovingAverageObserver
                      exponential moving averages of the least and the greatest value of each batch (Jacob et al. 2018)
    HistogramObserver percentile, mse or kl (dcz.compression.calibration), on a histogram of all values seen

A range becomes scales and zero points by the formulas of dcz.compression.quantizers, and always reaches to zero
(`parameters_of_ranges`). Static quantization observes calibration batches once; dynamic quantization (`dynamic_parameters`)
observes each tensor when it comes.

    observer = HistogramObserver("kl")
    for batch in batches:
        observer.observe(batch)
    parameters = observer.parameters(bits=8, scheme="asymmetric")
    codes = parameters.quantize(batch)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from dcz.compression.calibration import Cost, Histograms, best_ratios, divergences, squared_errors
from dcz.compression.groups import float_dtype_of, not_finite
from dcz.compression.scales import Scheme, affine_parameters, check_bits, least_code
from dcz.errors import EncodingError

__all__ = [
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "Parameters",
    "dynamic_parameters",
    "parameters_of_ranges",
]

HistogramCalibration: TypeAlias = Literal["percentile", "mse", "kl"]

_COSTS: Final[dict[str, Cost]] = {"mse": squared_errors, "kl": divergences}


@dataclass(frozen=True, eq=False)
class Parameters:
    """Scales and zero points of activations.

    ``scales``: float32 (groups,). ``zero_points``: uint8 of the same shape. ``axis``: the axis of whose positions each
    has its own; None if there is one for all.
    """

    bits: int
    scheme: Scheme
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.uint8]
    axis: int | None = None

    def quantize(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """clamp(rne(x / S) + Z), in float32. ``values``: floating-point, any shape. Returns uint8 of the same shape."""
        scales, zeros = self._along(values.ndim)
        steps = values.astype(np.float32) / np.where(scales == 0, np.float32(1), scales)
        codes = np.rint(steps) + zeros.astype(np.float32)
        return np.asarray(np.clip(codes, least_code(self.scheme), (1 << self.bits) - 1), dtype=np.uint8)

    def dequantize(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """S (q - Z). Returns float32 of the shape of the codes."""
        scales, zeros = self._along(codes.ndim)
        return scales * (codes.astype(np.int32) - zeros.astype(np.int32)).astype(np.float32)

    def _along(self, rank: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        if self.axis is None:
            return self.scales, self.zero_points
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scales.reshape(shape), self.zero_points.reshape(shape)


class Observer(ABC):
    """Sees tensors, and says which range they have.

    ``axis``: None for one range of all values, or the axis for each of whose positions there is one; an axis counted from
    the end may be negative.
    """

    def __init__(self, *, axis: int | None = None) -> None:
        self.axis = axis

    def observe(self, values: npt.NDArray[Any]) -> None:
        """``values``: floating-point, not empty, finite, of any shape, with as many positions on ``axis`` as before.

        Raises EncodingError if they are not.
        """
        float_dtype_of(values)
        if not np.isfinite(values).all():
            raise not_finite(values, what="activations")
        if self.axis is None:
            self._add(values.astype(np.float64).reshape(1, -1))
            return
        if not -values.ndim <= self.axis < values.ndim:
            raise EncodingError(f"axis {self.axis} of a tensor with {values.ndim} dimensions")
        rows = np.moveaxis(values, self.axis, 0)
        self._add(rows.astype(np.float64).reshape(rows.shape[0], -1))

    @abstractmethod
    def _add(self, rows: npt.NDArray[np.float64]) -> None:
        """One row for each range."""

    @abstractmethod
    def ranges(self, *, bits: int, scheme: Scheme) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Least and greatest value that codes are to cover: (groups,) each. Raises EncodingError if nothing was observed."""

    def parameters(self, *, bits: int = 8, scheme: Scheme = "asymmetric") -> Parameters:
        """Scales and zero points for what was observed. Raises EncodingError if nothing was."""
        check_bits(bits, scheme)
        low, high = self.ranges(bits=bits, scheme=scheme)
        scales, zero_points = parameters_of_ranges(low, high, bits=bits, scheme=scheme)
        return Parameters(bits, scheme, scales, zero_points, self.axis)


class MinMaxObserver(Observer):
    """From the least to the greatest value of all batches."""

    def __init__(self, *, axis: int | None = None) -> None:
        super().__init__(axis=axis)
        self._range: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None

    def _add(self, rows: npt.NDArray[np.float64]) -> None:
        low, high = rows.min(axis=1), rows.max(axis=1)
        self._range = (
            (low, high) if self._range is None else self._joined(*_fitting(self._range, low), low, high)
        )

    def _joined(
        self,
        old_low: npt.NDArray[np.float64],
        old_high: npt.NDArray[np.float64],
        low: npt.NDArray[np.float64],
        high: npt.NDArray[np.float64],
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return np.minimum(old_low, low), np.maximum(old_high, high)

    def ranges(self, *, bits: int, scheme: Scheme) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        del bits, scheme
        if self._range is None:
            raise _nothing_observed()
        return self._range


class MovingAverageObserver(MinMaxObserver):
    """Moving averages of the batches' least and greatest values: old + momentum x (new - old).

    ``momentum``: above 0, at most 1.
    """

    def __init__(self, momentum: float = 0.01, *, axis: int | None = None) -> None:
        super().__init__(axis=axis)
        if not 0 < momentum <= 1:
            raise EncodingError(f"a momentum of {momentum}: above 0 and at most 1 are possible")
        self.momentum = momentum

    def _joined(
        self,
        old_low: npt.NDArray[np.float64],
        old_high: npt.NDArray[np.float64],
        low: npt.NDArray[np.float64],
        high: npt.NDArray[np.float64],
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        # In this form two finite numbers do not overflow.
        keep, take = 1 - self.momentum, self.momentum
        return keep * old_low + take * low, keep * old_high + take * high


class HistogramObserver(Observer):
    """One range for all values, from a histogram of them.

    The histogram's bins are [k w, (k + 1) w) for all integers k, where the width w is a power of two: when values come that
    lie outside, w is doubled and neighbours become one bin, until ``bins`` of them are enough. So nothing is ever
    split or interpolated, and the result does not depend on the order or the size of the batches.

    ``percentile``: for that calibration, above 50, at most 100. ``bins``: at least 2; between half of them and all are in use.
    """

    def __init__(
        self, calibration: HistogramCalibration = "mse", *, percentile: float = 99.9, bins: int = 4096
    ) -> None:
        super().__init__()
        if calibration not in get_args(HistogramCalibration):
            raise EncodingError(
                f"no histogram decides {calibration!r}",
                hint=f"allowed: {', '.join(get_args(HistogramCalibration))}",
            )
        if not 50 < percentile <= 100:
            raise EncodingError(f"the percentile {percentile}: above 50 and at most 100 are possible")
        if bins < 2:
            raise EncodingError(f"a histogram of {bins} bins: at least 2 are possible")
        self.calibration, self.percentile, self.bins = calibration, percentile, bins
        self._exponent: int | None = None  # the width is 2^exponent
        self._first = 0  # the number k of the first bin
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._zeros = 0
        self._low, self._high = math.inf, -math.inf

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many values other than zero each bin has seen."""
        return self._counts

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The edges of the bins: one more than there are bins; none if nothing but zeros was observed."""
        if self._exponent is None:
            return np.zeros(0)
        return np.ldexp(
            np.arange(self._first, self._first + self._counts.size + 1, dtype=np.float64), self._exponent
        )

    def _add(self, rows: npt.NDArray[np.float64]) -> None:
        values = rows[rows != 0]
        self._zeros += rows.size - values.size
        self._low, self._high = min(self._low, float(rows.min())), max(self._high, float(rows.max()))
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if self._exponent is None:
            self._exponent = self._enough(low, high, _narrowest(low, high))
            self._first = self._bin(low)
        else:
            edges = self.edges
            low, high = min(low, float(edges[0])), max(high, float(edges[-2]))
            exponent = self._enough(low, high, max(self._exponent, _narrowest(low, high)))
            while self._exponent < exponent:
                self._double()
        first = min(self._first, self._bin(low))
        end = max(self._first + self._counts.size, self._bin(high) + 1)
        counts = np.zeros(end - first, np.int64)
        counts[self._first - first : self._first - first + self._counts.size] = self._counts
        numbers = np.floor(np.ldexp(values, -self._exponent)).astype(np.int64) - first
        self._counts, self._first = counts + np.bincount(numbers, minlength=counts.size), first

    def _bin(self, value: float) -> int:
        assert self._exponent is not None
        return math.floor(math.ldexp(value, -self._exponent))

    def _enough(self, low: float, high: float, exponent: int) -> int:
        """The smallest exponent, not below the given one, with which ``bins`` bins reach from ``low`` to ``high``."""
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= self.bins:
            exponent += 1
        return exponent

    def _double(self) -> None:
        assert self._exponent is not None
        if self._first % 2:
            self._counts = np.concatenate([np.zeros(1, np.int64), self._counts])
        if self._counts.size % 2:
            self._counts = np.concatenate([self._counts, np.zeros(1, np.int64)])
        self._counts = self._counts[::2] + self._counts[1::2]
        self._first //= 2
        self._exponent += 1

    def ranges(self, *, bits: int, scheme: Scheme) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        check_bits(bits, scheme)
        if self._low > self._high:
            raise _nothing_observed()
        low, high = _with_zero(np.array([self._low]), np.array([self._high]))
        if self._exponent is None:
            return low, high
        if self.calibration == "percentile":
            return self._percentiles(scheme)
        edges = self.edges
        histograms = Histograms(
            low, high, (edges[:-1] / 2 + edges[1:] / 2)[None], self._counts[None].astype(np.float64)
        )
        ratio = best_ratios(_COSTS[self.calibration], histograms, bits, scheme, np.dtype(np.float32))
        return low * ratio, high * ratio

    def _percentiles(self, scheme: Scheme) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        q, edges = self.percentile / 100, self.edges
        if scheme == "asymmetric":
            below, above = self._quantile(edges, self._counts, 1 - q), self._quantile(edges, self._counts, q)
        else:
            # |x| on the bins of the positive side: bin k of the negative one is bin -k - 1.
            most = max(self._first + self._counts.size, -self._first)
            folded = np.zeros(most, np.int64)
            numbers = np.arange(self._first, self._first + self._counts.size)
            np.add.at(folded, np.where(numbers < 0, -numbers - 1, numbers), self._counts)
            assert self._exponent is not None
            edges = np.ldexp(np.arange(most + 1, dtype=np.float64), self._exponent)
            above = self._quantile(edges, folded, q)
            below = -above
        return np.array([max(below, self._low)]), np.array([min(above, self._high)])

    def _quantile(self, edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], q: float) -> float:
        """The q-quantile, as if the values of a bin were spread evenly over it."""
        reached = np.concatenate([[0], np.cumsum(counts)])
        if self._zeros:
            split = int(np.searchsorted(edges, 0.0))
            at = reached[min(split, counts.size)]
            reached = np.concatenate(
                [reached[: split + 1], [at, at + self._zeros], reached[split:] + self._zeros]
            )
            edges = np.concatenate([edges[: split + 1], [0.0, 0.0], edges[split:]])
        return float(np.interp(q * reached[-1], reached, edges))


def dynamic_parameters(
    values: npt.NDArray[Any], *, bits: int = 8, scheme: Scheme = "asymmetric", axis: int | None = None
) -> Parameters:
    """The parameters of one tensor by its own least and greatest values: dynamic quantization.

    ``values``: floating-point, not empty, finite, any shape. ``axis``: as in Observer; 0 of (tokens, features) is a range
    for each token. Raises EncodingError as `Observer.observe` does.
    """
    observer = MinMaxObserver(axis=axis)
    observer.observe(values)
    return observer.parameters(bits=bits, scheme=scheme)


def parameters_of_ranges(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], *, bits: int, scheme: Scheme
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Scales and zero points of activations that lie between ``low`` and ``high``: finite, (groups,) each, as are the results.

    All steps between zero and the ends are there, even if all values seen were equal: others come later. (Equal weights are
    all there is, and become a single step.)
    """
    scales, zero_points = affine_parameters(
        *_with_zero(low, high), bits=bits, scheme=scheme, scale_dtype=np.dtype(np.float32)
    )
    if zero_points is None:
        zero_points = np.full(scales.shape, 1 << (bits - 1), dtype=np.uint8)
    return scales, zero_points


def _with_zero(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.minimum(low, 0.0), np.maximum(high, 0.0)


def _narrowest(low: float, high: float) -> int:
    """The least exponent of the width of bins between two numbers: with it, the bins' numbers are exact as float64."""
    return max(math.frexp(max(abs(low), abs(high)))[1] - 40, -1000)


def _fitting(
    old: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], new: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if old[0].shape != new.shape:
        raise EncodingError(f"{new.size} positions on the axis, where there were {old[0].size} before")
    return old


def _nothing_observed() -> EncodingError:
    return EncodingError("nothing was observed", hint="call `observe` with at least one tensor first")

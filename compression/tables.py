"""Non-uniform quantization with levels that are known beforehand: a table x one scale for each group (survey, III-F).

    table          levels, besides 0                                                             scale
    normal-float   quantiles of the normal distribution (NF4: Dettmers et al., "QLoRA", 2023)    max|w|
    power-of-two   +-2^-i, i = 0 .. 2^(b-1) - 2; a product is a shift (INQ: Zhou et al. 2017)    2^floor(log2(4/3 max|w|))
    logarithmic    +-2^-(i/2), the same i (Miyashita et al., "Convolutional Neural Networks      max|w|
                   using Logarithmic Data Representation", 2016)
    float          the numbers of a float of b bits: e1m1, e2m1 (OCP MX, 4 bits), e2m2, e3m2     max|w|

Every weight takes the nearest level; rounding the logarithm instead would have the greater error. What is stored is the
smaller of two: one table and a scale for each group (NF4 in groups of 64: 4.5 bits a weight), or a codebook of each group in the
tensor's type, which needs no version 1.1 of the format. Scales may be codes themselves (4.127 bits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from dcz.compression.arguments import is_whole
from dcz.compression.calibration import full_ranges
from dcz.compression.codebooks import share_weights
from dcz.compression.groups import GroupedTensor, not_finite
from dcz.compression.scales import coded_scales
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import AffineParameters, CodebookTensor, ScaledCodebookTensor, parameter_values

__all__ = ["Table", "levels", "quantize_table", "table_bits"]

Table: TypeAlias = Literal["normal-float", "power-of-two", "logarithmic", "float"]

_MANTISSA_BITS: Final = {3: 1, 4: 1, 5: 2, 6: 2}  # of a float of so many bits


def table_bits(table: Table) -> range:
    """How many bits the codes of a table may have. Raises EncodingError if there is no such table."""
    if table not in get_args(Table):
        raise EncodingError(f"unknown table {table!r}", hint=f"allowed: {', '.join(get_args(Table))}")
    return {"normal-float": range(2, 9), "float": range(3, 7)}.get(table, range(2, 7))


def levels(table: Table, bits: int) -> npt.NDArray[np.float64]:
    """The levels of a table, ascending, with 0, the largest magnitude 1; at most 2**bits.

    Raises EncodingError if there is no such table of so many bits.
    """
    possible = table_bits(table)
    if not is_whole(bits, possible.start, possible.stop - 1):
        raise EncodingError(
            f"a {table} table of {bits} bits", hint=f"possible: {possible.start} to {possible.stop - 1}"
        )
    return np.array(_TABLES[table](bits))


def quantize_table(
    weights: np.ndarray,
    *,
    table: Table,
    bits: int = 4,
    granularity: Granularity | None = None,
    scale_bits: int | None = None,
    scale_group: int = 256,
    mask: np.ndarray | None = None,
) -> CodebookTensor | ScaledCodebookTensor:
    """Replace weights by the nearest level of a table, times their group's scale.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``granularity``: what shares a scale; None is the whole
    tensor. ``scale_bits``: 2 to 8, of codes that scales are themselves, ``scale_group`` of which share a scale of f32 ("double
    quantization", dcz.compression.scales.coded_scales; not for f64); None for scales as they are. ``mask``: bool, True where a weight is kept; weights that are not kept become 0.

    Raises EncodingError if a weight is not finite, or if the arguments do not fit together.
    """
    grouped = GroupedTensor(weights, granularity or PerTensor(), mask)
    unscaled = levels(table, bits)

    largest = 2.0 ** (1023 if weights.dtype == np.float64 else 127)  # a power of two with a reach below it

    def scale_of(reach: float) -> float:
        return min(_power_of_two_near(reach), largest) if table == "power-of-two" else reach

    def centroids(values: np.ndarray) -> np.ndarray:
        return unscaled * scale_of(float(np.abs(values.astype(np.float64)).max(initial=0.0)))

    wide, groups = grouped.compute.itemsize, grouped.count
    if (
        scale_bits is None
        and (groups + unscaled.size) * wide >= groups * unscaled.size * grouped.dtype.itemsize
    ):
        return share_weights(weights, centroids, granularity=granularity, mask=mask)
    low, high = full_ranges(grouped)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(weights, mask)
    reaches = np.maximum(np.abs(low), np.abs(high))
    scales = np.array([scale_of(float(reach)) for reach in reaches], grouped.compute)
    parameters: np.ndarray | AffineParameters = scales
    if scale_bits is not None:
        parameters = coded_scales(scales, bits=scale_bits, group=scale_group, up=False)
        scales = parameter_values(parameters)
    stored = unscaled.astype(grouped.compute)
    return ScaledCodebookTensor(
        dtype=grouped.dtype.name,
        shape=weights.shape,
        bits=max(1, (stored.size - 1).bit_length()),
        codes=_nearest(grouped, scales, stored).reshape(weights.shape),
        table=stored,
        scales=parameters,
        granularity=granularity or PerTensor(),
        mask=None if mask is None else mask.reshape(weights.shape),
    )


def _nearest(grouped: GroupedTensor, scales: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The codes of the elements that are nearest to the weights, of equally near ones the lower. An element is what a reader
    makes of scale and table: rounded to the type of the arithmetic, and to that of the weights."""
    codes = np.empty(grouped.view, np.uint8)
    for block in grouped.blocks():
        values = grouped.load(block).astype(np.float64)
        products = (scales[block.groups, None] * table).astype(grouped.dtype.numpy).astype(np.float64)
        between = (products[:, :-1] + products[:, 1:]) / 2
        found = np.zeros(values.shape, np.uint8)
        for bound in between.T:
            found += values > bound[:, None]
        grouped.store(block, found, codes)
    return codes


def _power_of_two_near(reach: float) -> float:
    """The power of two nearest to a number that is not negative, of two equally near the upper one; 0 for 0."""
    mantissa, exponent = math.frexp(reach)  # 0.5 <= mantissa < 1
    if reach == 0:
        return 0.0
    return math.ldexp(0.5 if mantissa < 0.75 else 1.0, min(exponent, 1023))


def _with_negatives(magnitudes: list[float]) -> list[float]:
    return [*(-m for m in reversed(magnitudes)), 0.0, *magnitudes]


def _normal_float(bits: int) -> list[float]:
    """As in the authors' code: 2^(b-1) positive quantiles and one less of the negative ones, between 1/2 and an outermost
    probability that is the mean of what either side would take."""
    half = 1 << (bits - 1)
    outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    quantile = NormalDist().inv_cdf

    def side(count: int) -> list[float]:
        return [
            quantile(0.5 + (outermost - 0.5) * i / count) / quantile(outermost) for i in range(1, count + 1)
        ]

    return [*(-level for level in reversed(side(half - 1))), 0.0, *side(half)]


def _power_of_two(bits: int) -> list[float]:
    return _with_negatives([2.0**-i for i in range((1 << (bits - 1)) - 2, -1, -1)])


def _logarithmic(bits: int) -> list[float]:
    steps = range((1 << (bits - 1)) - 2, -1, -1)
    return _with_negatives([2.0 ** -(i // 2) * (math.sqrt(0.5) if i % 2 else 1.0) for i in steps])


def _float(bits: int) -> list[float]:
    mantissa_bits = _MANTISSA_BITS[bits]
    numbers = []
    for code in range(1, 1 << (bits - 1)):
        exponent, mantissa = code >> mantissa_bits, (code & ((1 << mantissa_bits) - 1)) / 2**mantissa_bits
        numbers.append(mantissa * 2 if exponent == 0 else (1 + mantissa) * 2.0**exponent)
    return _with_negatives([number / numbers[-1] for number in numbers])


_TABLES: Final[dict[Table, Callable[[int], list[float]]]] = {
    "normal-float": _normal_float,
    "power-of-two": _power_of_two,
    "logarithmic": _logarithmic,
    "float": _float,
}

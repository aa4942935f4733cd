"""Exact tensors that are less than they look: few distinct values, the output of a quantizer, a narrower float's values.

What is found gives every bit again (docs/format.md, section 5.3): it is verified on all elements, by the arithmetic that a
reader uses. Whether it is worth it is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from dcz import _native
from dcz.format.dtypes import DTYPES, NARROWER, DType
from dcz.format.manifest import PerChannel, PerGroup, PerTensor
from dcz.format.tensors import CodebookTensor, UniformTensor

if TYPE_CHECKING:
    from dcz.format.manifest import Granularity

__all__ = [
    "RECOGNIZERS",
    "ROWS",
    "WHOLE",
    "Grouping",
    "Recognizer",
    "groupings",
    "is_narrow",
    "looks_quantized",
    "narrowed",
    "shared",
    "uniform",
]

Recognizer: TypeAlias = "Callable[[np.ndarray, DType, tuple[int, ...], Grouping, np.ndarray | None], UniformTensor | CodebookTensor | None]"

_UNIFORM: Final = ("f32", "f16", "bf16")
_GROUP_SIZES: Final = (128, 64, 32)  # of the quantizers that are in use
_LEAST_ROW: Final = 16  # elements; in fewer, anything looks quantized
_LEAST_SHARED: Final = 4  # elements for each centroid, which is stored in full
_PIECE: Final = 1 << 16


WHOLE: Final = PerTensor()
ROWS: Final = PerChannel(axis=0)
_GROUPS: Final = tuple(PerGroup(size=size) for size in _GROUP_SIZES)


@dataclass(frozen=True)
class Grouping:
    """Groups that lie one behind the other in memory, each of ``row`` elements."""

    granularity: Granularity
    row: int


def groupings(shape: tuple[int, ...]) -> Iterator[Grouping]:
    """The ways to group a tensor that are looked at, the fewest groups first."""
    elements = math.prod(shape)
    yield Grouping(WHOLE, elements)
    if len(shape) > 1:
        row = elements // shape[0]
        if row >= _LEAST_ROW and shape[0] > 1:
            yield Grouping(ROWS, row)
        for groups in _GROUPS:
            if groups.size < shape[-1] and shape[-1] % groups.size == 0:
                yield Grouping(groups, groups.size)


def _bits_for(size: int) -> int:
    return max(1, (size - 1).bit_length())


def shared(
    data: np.ndarray, dtype: DType, shape: tuple[int, ...], grouping: Grouping, mask: np.ndarray | None
) -> CodebookTensor | None:
    """A codebook whose centroids are the distinct elements of each group; None if a group has more than 256,
    or more than a quarter of its elements.

    ``data``: the elements as uint8, whole groups of them. ``mask``: bool, where the elements are not zero, if the others
    are not to be stored.
    """
    if isinstance(grouping.granularity, PerGroup):
        return None  # the centroids would take more than they save
    codes = np.empty(data.size // dtype.itemsize, np.uint8)
    limit = grouping.row // _LEAST_SHARED
    found = _native.shared_values(data, dtype.itemsize, grouping.row, mask is not None, limit, codes)
    if found is None:
        return None
    centroids, size = found
    return CodebookTensor(
        dtype=dtype.name,
        shape=shape,
        bits=_bits_for(size),
        codes=codes,
        centroids=np.frombuffer(centroids, dtype.numpy).reshape(-1, size),
        granularity=grouping.granularity,
        mask=mask,
    )


def uniform(
    data: np.ndarray, dtype: DType, shape: tuple[int, ...], grouping: Grouping, mask: np.ndarray | None
) -> UniformTensor | None:
    """Codes and scales whose products are the elements, as ``shared``; None if none are found, or for another type."""
    if dtype.name not in _UNIFORM:
        return None
    codes = np.empty(data.size // dtype.itemsize, np.uint8)
    found = _native.uniform_codes(data, dtype.name, grouping.row, mask is not None, codes)
    if found is None:
        return None
    scales, scale_dtype, points, bits = found
    return UniformTensor(
        dtype=dtype.name,
        shape=shape,
        bits=bits,
        codes=codes,
        scales=np.frombuffer(scales, np.float32).astype(DTYPES[scale_dtype].numpy),
        granularity=grouping.granularity,
        zero_points=np.frombuffer(points, np.uint8) if points else None,
        mask=mask,
    )


def looks_quantized(row: np.ndarray, dtype: DType, *, sparse: bool) -> bool:
    """Whether any of the recognizers finds something in ``row``, uint8, if it is a group of its own; ``sparse``: if zeros
    are not stored."""
    limit = row.size // dtype.itemsize // _LEAST_SHARED
    return _native.looks_quantized(row, dtype.itemsize, dtype.name, sparse, limit)


RECOGNIZERS: Final[tuple[Recognizer, ...]] = (shared, uniform)


def is_narrow(data: np.ndarray, dtype: DType) -> Iterator[DType]:
    """The narrower types that have all the values of ``data``, the elements as uint8."""
    scratch = np.empty(_PIECE // 2, np.uint8)
    for name in NARROWER.get(dtype.name, ()):
        if all(
            _native.narrow(piece, dtype.name, name, scratch[: piece.size // 2])
            for piece in (data[i : i + _PIECE] for i in range(0, data.size, _PIECE))
        ):
            yield DTYPES[name]


def narrowed(data: np.ndarray, dtype: DType, narrow: str) -> np.ndarray:
    """``data`` in a type for which ``is_narrow`` holds, as uint8."""
    out = np.empty(data.size // 2, np.uint8)
    exact = _native.narrow(data, dtype.name, narrow, out)
    assert exact
    return out

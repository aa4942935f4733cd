"""What a reader makes of codes and their parameters, in plain numpy (docs/format.md, sections 5.3, 5.4 and 5.6).

The native decoder is fast, and this says what is right: each step is one line of the specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import PerChannel, PerFlat, PerGroup, PerTensor
from dcz.format.tensors import (
    AffineTensor,
    CodebookTensor,
    Indexed,
    ScaledCodebookTensor,
    VectorCodebookTensor,
    parameter_values,
)

if TYPE_CHECKING:
    from dcz.format.tensors import GranularityLike, TensorData

__all__ = ["decoded", "groups_of_elements"]

_BLOCK: Final = 1 << 20  # elements at a time


def groups_of_elements(
    granularity: GranularityLike, shape: tuple[int, ...], start: int, stop: int
) -> np.ndarray:
    """The groups (int64) of the elements from ``start`` up to ``stop``, counted in C order."""
    element = np.arange(start, stop, dtype=np.int64)
    row, column = np.divmod(element, shape[-1] if shape else 1)
    match granularity:
        case PerTensor():
            return np.zeros_like(element)
        case PerChannel(axis=axis):
            inner = int(np.prod(shape[axis + 1 :], dtype=np.int64))
            return element // inner % shape[axis]
        case PerGroup(size=size):
            return np.asarray(row * -(-(shape[-1] if shape else 1) // size) + column // size)
        case PerFlat(size=size):
            return element // size
        case Indexed(index=index, groups=groups):
            return np.asarray(row * groups + index[column])


def decoded(tensor: TensorData) -> np.ndarray:
    """The elements that a reader gets, of the tensor's type and shape. Slow, and on purpose without the native decoder.

    Raises EncodingError if a code names nothing.
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    out = np.empty(tensor.shape, DTYPES[tensor.dtype].numpy).reshape(-1)
    codes = tensor.codes.reshape(-1)
    if isinstance(tensor, VectorCodebookTensor):
        tables, size, _ = tensor.codewords.shape
        _expect_below(codes, size)
        out[:] = tensor.codewords[np.arange(codes.size) % tables, codes].reshape(-1)
        return out.reshape(tensor.shape)
    elements = _Elements(tensor)
    mask = None if tensor.mask is None else tensor.mask.reshape(-1)
    for start in range(0, out.size, _BLOCK):
        stop = min(start + _BLOCK, out.size)
        groups = groups_of_elements(tensor.granularity, tensor.shape, start, stop)
        if mask is None:
            out[start:stop] = elements.of(codes[start:stop], groups)
        else:
            out[start:stop] = 0
            kept = np.flatnonzero(mask[start:stop])
            out[start + kept] = elements.of(codes[start + kept], groups[kept])
    return out.reshape(tensor.shape)


def _expect_below(codes: np.ndarray, size: int) -> None:
    if codes.size and int(codes.max()) >= size:
        raise EncodingError(f"a code has no value: there are {size}")


class _Elements:
    """What the codes of a tensor stand for."""

    def __init__(self, tensor: AffineTensor | CodebookTensor | ScaledCodebookTensor) -> None:
        self._tensor = tensor
        self._type = DTYPES[tensor.dtype].numpy
        self._wide = np.float64 if tensor.dtype == "f64" else np.float32
        if not isinstance(tensor, CodebookTensor):
            self._scales = parameter_values(tensor.scales)
        self._minimums: np.ndarray | None = None
        if isinstance(tensor, AffineTensor) and tensor.minimums is not None:
            self._minimums = parameter_values(tensor.minimums)

    def of(self, codes: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """One element for each code, of the tensor's type."""
        tensor = self._tensor
        if isinstance(tensor, CodebookTensor):
            _expect_below(codes, tensor.centroids.shape[1])
            return np.asarray(tensor.centroids[groups, codes])
        if isinstance(tensor, ScaledCodebookTensor):
            _expect_below(codes, tensor.table.size)
            levels = tensor.table[codes]
        else:
            _expect_below(codes, 1 << tensor.bits)
            points = tensor.zero_points
            if isinstance(points, np.ndarray):
                points = points.astype(np.int32)[groups]
            elif points is None:
                points = 1 << (tensor.bits - 1)
            levels = (codes.astype(np.int32) - points).astype(self._wide)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            elements = self._scales[groups] * levels
            if self._minimums is not None:
                elements = elements + self._minimums[groups]
            return np.asarray(elements.astype(self._type))

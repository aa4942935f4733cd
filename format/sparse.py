"""Sparse tensors as compressed rows or columns, from their stored entries alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dcz.errors import MissingDependency, UsageError
from dcz.format.dtypes import dtype_of

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["CompressedSparse", "SparseBuilder"]


@dataclass(frozen=True, eq=False)
class CompressedSparse:
    """Compressed sparse rows (``csr``) or columns (``csc``) of a 2-D tensor.

    ``indptr``: int64 (rows or columns + 1,); ``indices``: int64 (entries,), ascending in each row or column; ``data``:
    (entries,) of the tensor's type.
    """

    kind: Literal["csr", "csc"]
    shape: tuple[int, int]
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    def scipy(self) -> scipy.sparse.csr_array[Any] | scipy.sparse.csc_array[Any]:
        """As scipy.sparse.csr_array or csc_array. f16, bf16 and fp8, which scipy lacks, become float32."""
        try:
            import scipy.sparse
        except ImportError as exc:
            raise MissingDependency("scipy", needed_for="a scipy matrix", extra="scipy") from exc
        small_float = dtype_of(self.data).is_float and self.data.dtype.itemsize <= 2
        data = self.data.astype(np.float32) if small_float else self.data
        make = scipy.sparse.csr_array if self.kind == "csr" else scipy.sparse.csc_array
        return make((data, self.indices, self.indptr), shape=self.shape)


class SparseBuilder:
    """Collects the entries of consecutive segments. Raises UsageError unless the tensor has two dimensions."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        if len(shape) != 2:
            raise UsageError(f"rows and columns of a tensor with {len(shape)} dimensions")
        self._shape = (shape[0], shape[1])
        self._positions: list[np.ndarray] = [np.empty(0, np.int64)]
        self._values: list[np.ndarray] = [np.empty(0, dtype)]

    def add(self, start: int, positions: np.ndarray | None, values: np.ndarray) -> None:
        """The entries of a segment that begins with element ``start``; ``positions`` None: all its elements, of which
        those whose bits are all zero are dropped."""
        if positions is None:
            kept = values.view(f"<u{values.itemsize}") != 0
            positions, values = np.flatnonzero(kept), values[kept]
        self._positions.append(positions.astype(np.int64) + start)
        self._values.append(values)

    def index_bytes(self, axis: int) -> int:
        """What ``indptr`` takes, however few elements there are."""
        return 8 * (self._shape[axis] + 1)

    def build(self, axis: int) -> CompressedSparse:
        """Compressed by ``axis``: 0 for rows, 1 for columns."""
        rows, columns = np.divmod(np.concatenate(self._positions), max(1, self._shape[1]))
        data = np.concatenate(self._values)
        major, minor = (rows, columns) if axis == 0 else (columns, rows)
        if axis == 1:
            order = np.argsort(major, kind="stable")
            major, minor, data = major[order], minor[order], data[order]
        indptr = np.zeros(self._shape[axis] + 1, np.int64)
        np.cumsum(np.bincount(major, minlength=self._shape[axis]), out=indptr[1:])
        return CompressedSparse("csr" if axis == 0 else "csc", self._shape, indptr, minor, data)

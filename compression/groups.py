"""Walking through a tensor group by group, in blocks that fit the cache.

A granularity (docs/format.md, section 5.4) cuts a tensor into groups; every method that has parameters for each group
sees it through this module as blocks of three axes

    (outer, groups, inner)

in which the middle axis numbers groups, and all elements of one (outer, inner) plane belong to the same group:

    tensor          (1,            1,              n)
    channel, axis   (shape before, shape[axis],    shape behind)
    group, size     (1,            rows x ceil(L / size), size)     the last group of a row filled up if it is shorter

Blocks are floats of the type in which the arithmetic is done: float64 for f64 tensors, float32 for all others, which
holds every f32, f16, bf16 and fp8 value exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcz.compression.arguments import check_array
from dcz.errors import EncodingError, UsageError
from dcz.format.dtypes import DType, dtype_of
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import group_count

__all__ = ["Block", "GroupedTensor", "Rows", "float_dtype_of", "not_finite", "reduce_groups"]

BLOCK_ELEMENTS = 1 << 17  # a few float32 buffers of a block stay near the core


def float_dtype_of(weights: np.ndarray) -> DType:
    """The element type of weights that are to be changed.

    Raises EncodingError if they are not floating-point, or if there are none; UsageError if they are no array.
    """
    check_array(weights, "weights")
    dtype = dtype_of(weights)
    if not dtype.is_float:
        raise EncodingError(f"only floating-point weights can be quantized or pruned, not {dtype.name}")
    if weights.size == 0:
        raise EncodingError("a tensor without elements has nothing to quantize or prune")
    return dtype


def not_finite(
    weights: np.ndarray, mask: np.ndarray | None = None, *, what: str = "weights"
) -> EncodingError:
    """The error about the weights, of those that ``mask`` keeps, that are infinite or NaN. There has to be one."""
    bad = ~np.isfinite(weights)
    if mask is not None:
        bad &= mask.reshape(weights.shape)
    first = tuple(int(index) for index in np.unravel_index(int(np.argmax(bad)), weights.shape))
    return EncodingError(
        f"{int(bad.sum())} of {weights.size} {what} are not finite, the first is {weights[first]} at {list(first)}"
    )


@dataclass(frozen=True)
class Block:
    """A part of a grouped tensor: ``groups`` of the flat group numbers, ``where`` in its view."""

    groups: slice
    where: tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some whole groups of a grouped tensor.

    ``groups``: int64 (k,), their flat numbers. ``values``: (k, elements), of the type of the arithmetic, not to be written
    to; what is not kept reads as 0. ``kept``: bool of the same shape, or None if all are.
    """

    groups: np.ndarray
    values: np.ndarray
    kept: np.ndarray | None


def reduce_groups(ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
    """One number for each group of a block: (outer, groups, inner) -> (groups,)."""
    outer, groups, inner = values.shape
    if outer == 1 and groups > 1:
        # Two to three times as fast as `reduce` when the rows are short. Both add in an order that depends on the
        # shape alone; einsum and matmul are faster, but their order depends on the processor.
        return np.asarray(ufunc.reduceat(values.reshape(-1), np.arange(0, groups * inner, inner)))
    return np.asarray(ufunc.reduce(values, axis=(0, 2)))


class GroupedTensor:
    """Weights, and optionally a mask of the positions that count, cut into groups.

    ``weights``: floating-point, any shape, not empty. ``mask``: bool, as many elements, True where an element is kept;
    elements that are not kept read as 0.

    Raises EncodingError if the granularity does not fit the shape or the mask the weights; UsageError if they are none.
    """

    def __init__(self, weights: np.ndarray, granularity: Granularity, mask: np.ndarray | None = None) -> None:
        self.dtype = float_dtype_of(weights)
        self.compute: np.dtype[np.floating] = np.dtype(np.float64 if self.dtype.name == "f64" else np.float32)
        shape = weights.shape
        given: Any = granularity
        if not isinstance(given, PerTensor | PerChannel | PerGroup):
            raise UsageError(
                f"{given!r:.100} is not a granularity",
                hint="PerTensor(), PerChannel(axis=0) or PerGroup(size=64) of dcz.format",
            )
        if mask is not None:
            check_array(mask, "masks")
        if isinstance(granularity, PerChannel) and granularity.axis >= len(shape):
            raise EncodingError(f"axis {granularity.axis} of a tensor with {len(shape)} dimensions")
        if mask is not None and (mask.dtype != np.bool_ or mask.size != weights.size):
            raise EncodingError(f"the mask must be {weights.size} bool, not {mask.size} {mask.dtype}")
        self.count = group_count(granularity, shape)
        self._fill = 0  # the length of a group if rows have to be filled up to whole groups
        match granularity:
            case PerTensor():
                view = (1, 1, weights.size)
            case PerChannel(axis=axis):
                view = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
            case PerGroup(size=size):
                length = shape[-1] if shape else 1
                size = min(size, length)
                if length % size:
                    self._fill = size
                    view = (1, weights.size // length, length)
                else:
                    view = (1, weights.size // size, size)
        self.view: tuple[int, int, int] = view
        self._weights = np.ascontiguousarray(weights).reshape(view)
        self._mask = None if mask is None else np.ascontiguousarray(mask).reshape(view)

    def blocks(self) -> Iterator[Block]:
        """All blocks, in an order that does not depend on anything but the shape."""
        if self._fill:
            yield from self._filled_blocks()
            return
        outer, groups, inner = self.view
        inners = min(inner, BLOCK_ELEMENTS)
        middles = min(groups, max(1, BLOCK_ELEMENTS // inners))
        outers = max(1, BLOCK_ELEMENTS // (inners * middles))
        for o in range(0, outer, outers):
            for g in range(0, groups, middles):
                for i in range(0, inner, inners):
                    chosen = slice(g, min(g + middles, groups))
                    around = slice(o, min(o + outers, outer)), slice(i, min(i + inners, inner))
                    yield Block(chosen, (around[0], chosen, around[1]))

    def _filled_blocks(self) -> Iterator[Block]:
        """Blocks of whole rows, or of a part of one row that starts where a group does."""
        _, rows, length = self.view
        size = self._fill
        groups = -(-length // size)
        if length <= BLOCK_ELEMENTS:
            step = max(1, BLOCK_ELEMENTS // length)
            for r in range(0, rows, step):
                end = min(r + step, rows)
                yield Block(slice(r * groups, end * groups), (slice(0, 1), slice(r, end), slice(0, length)))
            return
        step = max(1, BLOCK_ELEMENTS // size)
        for r in range(rows):
            for g in range(0, groups, step):
                end = min(g + step, groups)
                columns = slice(g * size, min(end * size, length))
                yield Block(slice(r * groups + g, r * groups + end), (slice(0, 1), slice(r, r + 1), columns))

    def load(self, block: Block) -> np.ndarray:
        """The block's weights: (outer, groups, inner), of the type of the arithmetic; not to be written to.

        A row's last group is filled up with the row's last weight.
        """
        values = self._weights[block.where].astype(self.compute, copy=False)
        if self._mask is not None:
            values = np.where(self._mask[block.where], values, self.compute.type(0))
        if self._fill:
            _, rows, columns = values.shape
            filled = np.empty((rows, -(-columns // self._fill) * self._fill), dtype=self.compute)
            filled[:, :columns] = values[0]
            filled[:, columns:] = values[0, :, -1:]
            values = filled.reshape(1, -1, self._fill)
        return values

    def store(self, block: Block, values: np.ndarray, out: np.ndarray) -> None:
        """Write a result of the block's shape to its place in ``out``, which has as many elements as the tensor."""
        target = out.reshape(self.view)[block.where]
        if self._fill:
            values = values.reshape(1, target.shape[1], -1)[:, :, : target.shape[2]]
        np.copyto(target, values, casting="unsafe")

    def positions(self, block: Block) -> np.ndarray:
        """A number for each element of the block as `load` gives it, the same whatever the blocks are: uint64."""
        outer, inner = (np.arange(part.start, part.stop, dtype=np.uint64) for part in block.where[::2])
        groups = np.arange(block.groups.start, block.groups.stop, dtype=np.uint64)
        if self._fill:
            outer, inner = np.zeros(1, np.uint64), np.arange(self._fill, dtype=np.uint64)
        length = np.uint64(self._fill or self.view[2])
        rows = outer[:, None] * np.uint64(self.count) + groups
        return np.asarray(rows[:, :, None] * length + inner)

    def rows(self) -> Iterator[Rows]:
        """All groups, whole and in pieces that fit the cache where the groups do; in an order that depends on the shape alone."""
        outer, middle, inner = self.view
        step = max(1, BLOCK_ELEMENTS // (outer * inner))
        for start in range(0, middle, step):
            numbers = np.arange(start, min(start + step, middle))
            values = self._whole(self._weights, numbers).astype(self.compute, copy=False)
            kept = None if self._mask is None else self._whole(self._mask, numbers)
            if kept is not None:
                values = np.where(kept, values, self.compute.type(0))
            if not self._fill:
                yield Rows(numbers, values, kept)
                continue
            groups, size = -(-inner // self._fill), self._fill
            full = inner // size
            first = numbers[:, None] * groups
            for columns, length, those in (
                (slice(0, full * size), size, first + np.arange(full)),
                (slice(full * size, inner), inner - full * size, first + full),
            ):
                part = None if kept is None else kept[:, columns].reshape(-1, length)
                yield Rows(those.reshape(-1), values[:, columns].reshape(-1, length), part)

    def gather(self, number: int) -> np.ndarray:
        """The kept weights of one group, in C order, of their own type: (kept,)."""
        where = self._where(number)
        values = self._weights[where]
        return values.reshape(-1) if self._mask is None else values[self._mask[where]]

    def scatter(self, number: int, values: np.ndarray, out: np.ndarray) -> None:
        """Write what belongs to the weights that ``gather`` gave to their places in ``out``, as many elements."""
        where = self._where(number)
        target = out.reshape(self.view)[where]
        if self._mask is None:
            target[...] = values.reshape(target.shape)
        else:
            target[self._mask[where]] = values

    def _whole(self, array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """All elements of neighbours on the middle axis: (numbers, elements)."""
        part = array[:, numbers[0] : numbers[-1] + 1]
        return np.ascontiguousarray(part.swapaxes(0, 1)).reshape(numbers.size, -1)

    def _where(self, number: int) -> tuple[slice | int, slice | int, slice]:
        if self._fill:
            groups = -(-self.view[2] // self._fill)
            start = number % groups * self._fill
            return (0, number // groups, slice(start, start + self._fill))
        return (slice(None), number, slice(None))

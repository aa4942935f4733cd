"""A tensor as differences to the same tensor of a base (docs/format.md, section 5.5): whether that is smaller, and the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from dcz import _native
from dcz.errors import EncodingError
from dcz.format.bases import difference_kind
from dcz.format.choices import ExactChoice, cheapest_integers
from dcz.format.dtypes import DType, dtype_of
from dcz.format.manifest import Delta

if TYPE_CHECKING:
    from dcz.format.choices import LayoutChoice, SplitChoice
    from dcz.format.coding import CodingChoice
    from dcz.format.tensors import TensorBase

__all__ = ["Differences", "choose_differences"]

_PIECE: Final = 1 << 11  # elements of a piece of a sample
_PIECES: Final = 32
_CHANGED: Final = 8  # pieces that changed, at least, if there are so many
_SCAN: Final = 1 << 20  # bytes that are compared at a time
_COST: Final = 128.0  # bytes of the manifest: a little for each tensor, most of it once for the base
_WORTH: Final = 0.98  # what needs another file to be read must save two percent


@dataclass(frozen=True)
class Differences:
    """How the differences of a tensor are stored, and what they are taken to: the base tensor's content, as bytes."""

    choice: ExactChoice
    kind: str
    itemsize: int
    base: np.ndarray

    def encode(self, start: int, content: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The differences of the bytes from ``start`` on, in ``out``, which is as large as ``content``."""
        before = self.base[start : start + content.size]
        _native.encode_delta(self.kind, before, content, self.itemsize, out)
        return out


def choose_differences(
    data: np.ndarray,
    dtype: DType,
    shape: tuple[int, ...],
    base: TensorBase,
    exact: ExactChoice,
    *,
    layout: LayoutChoice,
    split: SplitChoice,
    coding: CodingChoice,
) -> Differences | None:
    """How to store the elements ``data`` (uint8, not empty) as differences to ``base``; None if what was chosen without
    it, ``exact``, is smaller. Raises EncodingError if the base does not fit, or there are no such differences."""
    if dtype_of(base.content).name != dtype.name or base.content.shape != shape:
        raise EncodingError(
            f"differences of {dtype.name} {list(shape)} to "
            f"{dtype_of(base.content).name} {list(base.content.shape)}"
        )
    forced = base.operation != "auto"
    operations: list[Literal["xor", "difference"]] = []
    if base.operation != "xor" and dtype.name != "bool":
        operations.append("difference")
    if base.operation != "difference":
        operations.append("xor")
    if split == "rotated" or not operations:
        if forced:
            raise EncodingError(f"no {base.operation} of {dtype.name} with the split {split!r}")
        return None
    before = np.ascontiguousarray(base.content, dtype.numpy).reshape(-1).view(np.uint8)
    sample, of_base = _samples(data, before, dtype.itemsize)
    differences = np.empty_like(sample)
    best, found = exact.cost * _WORTH - _COST, None
    for operation in operations:
        kind = difference_kind(dtype, operation)
        _native.encode_delta(kind, of_base, sample, dtype.itemsize, differences)
        cost, positions, values = cheapest_integers(
            differences, dtype, layout=layout, split=split, coding=coding
        )
        cost *= data.size / sample.size
        if cost < best or (forced and found is None):
            best = cost
            delta = Delta(base=base.index, tensor=base.name, operation=operation)
            choice = ExactChoice(positions, values.model_copy(update={"delta": delta}), cost=cost)
            found = Differences(choice, kind, dtype.itemsize, before)
    return found


def _samples(data: np.ndarray, base: np.ndarray, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the tensor and the same ones of the base (bytes): of those that changed and of the others as many as
    there are in all, in proportion. What changed may lie in few places, which pieces at random would not meet."""
    size = _PIECE * itemsize
    if data.size <= _PIECES * size:
        return data, base
    whole = data.size // size
    changed = np.empty(whole, np.bool_)
    step = _SCAN // size
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        ours, theirs = (part[start * size : stop * size].view(np.uint64) for part in (data, base))
        changed[start:stop] = (ours != theirs).reshape(stop - start, -1).any(axis=1)
    pieces = []
    count = int(np.count_nonzero(changed))
    of_changed = max(round(_PIECES * count / whole), min(count, _CHANGED))
    for which, wanted in ((changed, of_changed), (~changed, _PIECES - of_changed)):
        places = np.flatnonzero(which)
        wanted = min(wanted, places.size)
        pieces += places[np.arange(wanted) * places.size // max(1, wanted)].tolist()
    cut = [slice(piece * size, (piece + 1) * size) for piece in sorted(pieces)]
    return np.concatenate([data[c] for c in cut]), np.concatenate([base[c] for c in cut])

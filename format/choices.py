"""How an exact tensor is stored: which layout, which values, which split, by the bytes that each would take.

Choices are made from counts of symbols, on samples of a large tensor: deterministic, and the same for any number of
threads. A choice can be wrong by a little, never unsafe: each stream is still stored raw if coding does not make it
smaller, and what is said of all elements is verified on all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from dcz import _native
from dcz.errors import EncodingError
from dcz.format import recognition
from dcz.format.dtypes import DType
from dcz.format.geometry import packed_bytes
from dcz.format.manifest import Bitmap, Dense, Exact, Layout, PerTensor, RelativeIndex
from dcz.format.recognition import Grouping
from dcz.format.tensors import CodebookTensor, UniformTensor

if TYPE_CHECKING:
    from dcz.format.coding import CodingChoice
    from dcz.format.manifest import Values
    from dcz.format.recognition import Recognizer

__all__ = [
    "ExactChoice",
    "LayoutChoice",
    "Split",
    "SplitChoice",
    "cheapest_integers",
    "choose_exact",
    "choose_positions",
    "gaps_of",
]

LayoutChoice: TypeAlias = "Literal['auto', 'dense', 'relative-index', 'bitmap'] | Layout"
Split: TypeAlias = Literal["whole", "bytes", "rotated"]
SplitChoice: TypeAlias = Literal["auto"] | Split

_PIECES: Final = 8  # of a sample
_WHOLE: Final = 1 << 14  # elements that are looked at all
_LEAST: Final = 1 << 9  # elements of a piece,
_MOST: Final = 1 << 14  # if the tensor has so many that more do not show in the time to encode it
_EXACTLY: Final = 1 << 14  # symbols that are coded to learn their cost, because in so few the table counts
_STREAM_COST: Final = 4.0  # bytes that a stream costs in the manifest
_WORTH: Final = 0.995  # a choice that slows decoding down must save half a percent
_DENSE: Final = 0.95  # no positions pay where more than this part is stored
_OFFSET_FROM: Final = 1 << 12  # elements: in fewer, chance looks like structure
_OFFSET_WORTH: Final = (
    4000  # an offset must save one part in so many: it costs nothing, but samples are not exact
)


@dataclass(frozen=True)
class ExactChoice:
    """``codes``: what the tensor was recognized as, or None if ``values`` are Exact. ``cost``: the bytes that it is
    estimated to take."""

    layout: Layout
    values: Values | None
    codes: UniformTensor | CodebookTensor | None = None
    cost: float = 0.0


@dataclass(frozen=True)
class _Candidate:
    """A way to store a tensor: the bytes that it is estimated to take, and what makes the choice of it, or None if it turns
    out that it does not fit all elements."""

    cost: float
    make: Callable[[], ExactChoice | None]


def coded_bytes(symbols: np.ndarray) -> int:
    """The bytes of the stream that Huffman coding makes of ``symbols`` (uint8), never more than raw: known where there are
    so few that the table counts, otherwise estimated."""
    if symbols.size == 0 or symbols.size > _EXACTLY:
        return _native.huffman_estimate(symbols)
    coded = _native.huffman_encode(symbols, 8, symbols.size)
    return symbols.size if coded is None else len(coded)


def sample_of(source: np.ndarray, itemsize: int) -> np.ndarray:
    """All elements, or of many _PIECES pieces, spread evenly; ``source`` and result as bytes."""
    elements = source.size // itemsize
    if elements <= _WHOLE:
        return source
    step, piece = elements // _PIECES, min(_MOST, max(_LEAST, elements >> 8))
    pieces = [source[i * step * itemsize : (i * step + piece) * itemsize] for i in range(_PIECES)]
    return np.concatenate(pieces)


# -- positions


def gaps_of(mask: np.ndarray, bits: int) -> np.ndarray:
    return np.frombuffer(_native.encode_gaps(mask.view(np.uint8), bits), np.uint8)


def _relative_index(mask: np.ndarray, whole: bool, coding: CodingChoice) -> RelativeIndex:
    """The width of gaps that takes the least space. Under an entropy coder that is 8 bits, which need hardly any
    fillers, unless the tensor is so small that the table of a larger alphabet shows."""
    if coding == "raw":
        symbols = _native.count_gaps(mask.view(np.uint8))
        return RelativeIndex(bits=min(range(1, 9), key=lambda bits: packed_bytes(symbols[bits], bits)))
    if not whole or np.count_nonzero(mask) > _EXACTLY:
        return RelativeIndex(bits=8)
    return RelativeIndex(bits=min(range(8, 2, -1), key=lambda bits: coded_bytes(gaps_of(mask, bits))))


def _positions(mask: np.ndarray, whole: bool, coding: CodingChoice) -> tuple[float, Layout]:
    """The layout that takes the least space for the positions, and its bytes."""
    if coding == "range":
        # It sees rows and columns in a bitmap, but only lengths in gaps.
        return coded_bytes(np.packbits(mask, bitorder="little")) + _STREAM_COST, Bitmap()
    relative = _relative_index(mask, whole, coding)
    gaps = gaps_of(mask, relative.bits)
    bitmap = np.packbits(mask, bitorder="little")
    if coding == "raw":
        costs = float(packed_bytes(gaps.size, relative.bits)), float(bitmap.size)
    else:
        costs = coded_bytes(gaps) + _STREAM_COST, coded_bytes(bitmap) + _STREAM_COST
    return (costs[0], relative) if costs[0] <= costs[1] else (costs[1], Bitmap())


def _fixed(layout: LayoutChoice, mask: np.ndarray, whole: bool, coding: CodingChoice) -> Layout | None:
    match layout:
        case "auto":
            return None
        case "dense":
            return Dense()
        case "bitmap":
            return Bitmap()
        case "relative-index":
            return _relative_index(mask, whole, coding)
        case _:
            return layout


def choose_positions(mask: np.ndarray, layout: LayoutChoice, coding: CodingChoice) -> Layout:
    """The layout of a tensor that is not dense; ``mask``: bool, which elements are stored."""
    sample = sample_of(mask.view(np.uint8), 1).view(np.bool_)
    whole = sample.size == mask.size
    return _fixed(layout, sample, whole, coding) or _positions(sample, whole, coding)[1]


# -- exact values


def _plane_costs(data: np.ndarray, dtype: DType, *, rotated: bool) -> dict[Split, float]:
    """Estimated bytes of exact entries (uint8) under each split, also the rotated one if it is allowed."""
    itemsize = dtype.itemsize
    if data.size == 0:
        return {"whole": 0.0}
    whole, split, turned = _native.plane_costs(data, itemsize, rotated)
    costs: dict[Split, float] = {"whole": whole + _STREAM_COST}
    if itemsize > 1:
        costs["bytes"] = split + itemsize * _STREAM_COST
    if rotated:
        costs["rotated"] = turned + itemsize * _STREAM_COST
    return costs


def _split(data: np.ndarray, dtype: DType, coding: CodingChoice) -> tuple[float, Exact]:
    """The split that takes the least space for the entries ``data``, and its bytes."""
    if coding == "raw":
        return float(data.size), Exact(split="whole")
    costs = _plane_costs(data, dtype, rotated=dtype.is_float)
    best = min(costs, key=lambda name: costs[name])
    if costs[best] > data.size * _WORTH:
        best = "whole"
    cost, offset = costs[best], 0
    if best == "rotated" and dtype.itemsize > 1 and data.size // dtype.itemsize >= _OFFSET_FROM:
        found, bits = _native.best_offset(data, dtype.itemsize)
        if bits * _OFFSET_WORTH > 8 * data.size:
            offset, cost = found, cost - bits / 8
    return cost, Exact(split=best, offset=offset)


def _nonzero(data: np.ndarray, itemsize: int) -> np.ndarray:
    nonzero: np.ndarray = data.view(f"<u{itemsize}") != 0
    return nonzero


def _kept(data: np.ndarray, itemsize: int, mask: np.ndarray | None) -> np.ndarray:
    return data if mask is None else data.reshape(-1, itemsize)[mask].reshape(-1)


class _Chooser:
    def __init__(
        self,
        data: np.ndarray,
        dtype: DType,
        shape: tuple[int, ...],
        coding: CodingChoice,
        sample: np.ndarray | None = None,
    ) -> None:
        self.data, self.dtype, self.shape = data, dtype, shape
        self.coding: CodingChoice = coding
        self.elements = data.size // dtype.itemsize
        self.sample = sample_of(data, dtype.itemsize) if sample is None else sample
        self.share = data.size / self.sample.size
        self.nonzero = _nonzero(self.sample, dtype.itemsize)

    def layouts(self, layout: LayoutChoice) -> Iterator[tuple[float, Layout, np.ndarray | None]]:
        """What is to be compared: bytes of the positions of the sample, the layout, and what is stored of the sample."""
        whole = self.share == 1
        fixed = _fixed(layout, self.nonzero, whole, self.coding)
        if fixed is not None:
            yield 0.0, fixed, None if isinstance(fixed, Dense) else self.nonzero
            return
        yield 0.0, Dense(), None
        if np.count_nonzero(self.nonzero) < _DENSE * self.nonzero.size:
            cost, sparse = _positions(self.nonzero, whole, self.coding)
            yield cost, sparse, self.nonzero

    def planes(self, positions: float, layout: Layout, mask: np.ndarray | None) -> Iterator[_Candidate]:
        entries = _kept(self.sample, self.dtype.itemsize, mask)
        cost, values = _split(entries, self.dtype, self.coding)
        yield _Candidate(
            _weighed((positions + cost) * self.share, mask), functools.partial(ExactChoice, layout, values)
        )
        if self.coding == "raw":
            return
        for narrow in recognition.is_narrow(entries, self.dtype):
            cost, values = _split(recognition.narrowed(entries, self.dtype, narrow.name), narrow, self.coding)
            yield _Candidate(
                _weighed((positions + cost) * self.share, mask), self._as_narrow(layout, values, narrow)
            )

    def _as_narrow(self, layout: Layout, values: Exact, narrow: DType) -> Callable[[], ExactChoice | None]:
        def make() -> ExactChoice | None:
            if narrow not in recognition.is_narrow(self.data, self.dtype):
                return None
            return ExactChoice(layout, values.model_copy(update={"stored_dtype": narrow.name}))

        return make

    def codes(self, positions: float, layout: Layout, mask: np.ndarray | None) -> Iterator[_Candidate]:
        if self.dtype.itemsize == 1 or self.coding == "raw":
            return
        for grouping in recognition.groupings(self.shape):
            single = isinstance(grouping.granularity, PerTensor)
            first = self.sample if single else self.data[: grouping.row * self.dtype.itemsize]
            if not recognition.looks_quantized(first, self.dtype, sparse=mask is not None):
                continue  # as hardly ever
            part, rows = (self.sample, 1) if single else self._rows(grouping.row)
            row = part.size // self.dtype.itemsize // rows
            sampled = Grouping(recognition.WHOLE if single else recognition.ROWS, row)
            few = None if mask is None else _nonzero(part, self.dtype.itemsize)
            share = self.data.size / part.size
            for recognize in recognition.RECOGNIZERS:
                codes = recognize(part, self.dtype, (rows, row), sampled, few)
                if codes is None:
                    continue
                kept = codes.codes if few is None else codes.codes[few]
                cost = min(float(coded_bytes(kept)), packed_bytes(kept.size, codes.bits)) + _STREAM_COST
                parameters = _parameter_bytes(codes) * (1 if single else share)
                total = cost * share + parameters + positions * self.share
                yield _Candidate(
                    _weighed(total, mask),
                    self._as_codes(layout, recognize, grouping, sparse=mask is not None),
                )

    def _rows(self, row: int) -> tuple[np.ndarray, int]:
        """A sample of whole rows of so many elements, as bytes, and their number."""
        rows, size = self.elements // row, row * self.dtype.itemsize
        taken = max(1, min(rows, _WHOLE // row))
        if taken == 1:
            return self.data[:size], 1
        starts = [i * rows // taken * size for i in range(taken)]
        return np.concatenate([self.data[start : start + size] for start in starts]), taken

    def _as_codes(
        self,
        layout: Layout,
        recognize: Recognizer,
        grouping: Grouping,
        *,
        sparse: bool,
    ) -> Callable[[], ExactChoice | None]:
        def make() -> ExactChoice | None:
            mask = _nonzero(self.data, self.dtype.itemsize) if sparse else None
            codes = recognize(self.data, self.dtype, self.shape, grouping, mask)
            return None if codes is None else ExactChoice(layout, None, codes)

        return make


def _weighed(cost: float, mask: np.ndarray | None) -> float:
    """A layout with positions is slower to decode."""
    return cost if mask is None else cost / _WORTH


def _parameter_bytes(codes: UniformTensor | CodebookTensor) -> float:
    if isinstance(codes, CodebookTensor):
        return codes.centroids.nbytes + _STREAM_COST
    points = 0 if codes.zero_points is None else packed_bytes(codes.zero_points.size, codes.bits)
    return codes.scales.nbytes + points + _STREAM_COST


def choose_exact(
    data: np.ndarray,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    layout: LayoutChoice,
    split: SplitChoice,
    coding: CodingChoice,
) -> ExactChoice:
    """Of all ways to store the elements ``data`` (uint8, not empty), the one that is estimated to take the least space.

    Raises EncodingError if the split is not for this type.
    """
    chooser = _Chooser(data, dtype, shape, coding)
    if split == "rotated" and not dtype.is_float:
        raise EncodingError(f"the split 'rotated' is for floating-point types, not for {dtype.name}")
    candidates: list[_Candidate] = []
    for positions, kind, mask in chooser.layouts(layout):
        candidates += chooser.planes(positions, kind, mask)
        if split == "auto":
            candidates += chooser.codes(positions, kind, mask)
    for candidate in sorted(candidates, key=lambda one: one.cost):
        choice = candidate.make()
        if choice is None:
            continue
        if split != "auto":
            return ExactChoice(choice.layout, Exact(split=split), cost=candidate.cost)
        return replace(choice, cost=candidate.cost)
    raise AssertionError("exact entries fit every tensor")


def cheapest_integers(
    sample: np.ndarray, dtype: DType, *, layout: LayoutChoice, split: SplitChoice, coding: CodingChoice
) -> tuple[float, Layout, Exact]:
    """The layout and the split that take the least space for unsigned integers of the type's size, such as differences, of
    which ``sample`` (uint8) holds some; and the bytes of those."""
    chooser = _Chooser(sample, dtype, (sample.size // dtype.itemsize,), coding, sample=sample)
    found: list[tuple[float, Layout, Exact]] = []
    for positions, kind, mask in chooser.layouts(layout):
        entries = _kept(sample, dtype.itemsize, mask)
        cost, best = float(entries.size), Exact(split="whole")
        if coding != "raw":
            costs = _plane_costs(entries, dtype, rotated=False)
            name = min(costs, key=lambda one: costs[one])
            if costs[name] <= entries.size * _WORTH:
                cost, best = costs[name], Exact(split=name)
        found.append(
            (_weighed(positions + cost, mask), kind, best if split == "auto" else Exact(split=split))
        )
    return min(found, key=lambda one: one[0])

"""From a tensor to the streams of its segments. How it is stored is chosen in dcz.format.choices."""

from __future__ import annotations

import math
import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz import _native
from dcz.errors import EncodingError
from dcz.format import layout as spec
from dcz.format.choices import LayoutChoice, SplitChoice, choose_exact, choose_positions, gaps_of
from dcz.format.coding import BALANCED, Coded, CodingChoice, encode_stream, tries_range
from dcz.format.differences import Differences, choose_differences
from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.encodings import segment_decoder
from dcz.format.geometry import Stream
from dcz.format.layout import MAX_SEGMENT_ELEMENTS
from dcz.format.manifest import Affine, Bitmap, Codebook, Dense, Exact, RelativeIndex
from dcz.format.range_models import NOTHING, Beside, RangeContext
from dcz.format.recognition import narrowed
from dcz.format.tensors import AffineTensor, CodebookTensor, TensorBase, TensorData

if TYPE_CHECKING:
    from dcz.format.effort import Effort
    from dcz.format.manifest import Layout, Values

__all__ = ["BufferPool", "EncodedSegment", "LayoutChoice", "SplitChoice", "TensorEncoder"]

SEGMENT_BYTES: Final = 1 << 20  # decoded
# The range coder learns anew in each segment, and what the codes of a sparse tensor have to teach is thinly spread.
_RANGE_SEGMENT_BYTES: Final = 1 << 24
_FEWEST_ROWS: Final = 4


@dataclass(frozen=True)
class EncodedSegment:
    """The streams of a segment, its counts, and its decoded content if that is not the input itself."""

    streams: list[Coded]
    entries: int | None
    gaps: int | None
    content: np.ndarray
    buffer: np.ndarray | None = None
    """What some of the streams live in; it goes back to the pool when they are written."""


class BufferPool:
    """Memory for the planes of segments, used again and again: filling new pages costs more than encoding does."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def take(self, size: int) -> np.ndarray:
        """A buffer of ``size`` bytes (uint8), at most SEGMENT_BYTES."""
        try:
            return self._free.get_nowait()[:size]
        except queue.Empty:
            return np.empty(SEGMENT_BYTES, np.uint8)[:size]

    def give(self, buffer: np.ndarray) -> None:
        """Take back what ``take`` gave, once nothing refers to it."""
        assert isinstance(buffer.base, np.ndarray)
        self._free.put(buffer.base)


def _expect_tensor(tensor: object) -> None:
    if not isinstance(tensor, np.ndarray | AffineTensor | CodebookTensor):
        raise EncodingError(
            f"a tensor is an array, an AffineTensor or a CodebookTensor, not {type(tensor).__name__}"
        )


def _describe(tensor: AffineTensor | CodebookTensor) -> Values:
    if isinstance(tensor, CodebookTensor):
        return Codebook(bits=tensor.bits, size=tensor.centroids.shape[1], granularity=tensor.granularity)
    scale = next(row.name for row in DTYPES.values() if row.numpy == tensor.scales.dtype)
    return Affine(
        bits=tensor.bits,
        granularity=tensor.granularity,
        zero_points=tensor.zero_points is not None,
        scale_dtype=None if scale in ("f32", "f64") else scale,  # type: ignore[arg-type]
    )


class TensorEncoder:
    """One tensor, and how it is going to be stored.

    ``tensor``: a numpy array (exact values), AffineTensor or CodebookTensor. ``layout``, ``split`` and ``coding``:
    ``auto`` lets the smallest be chosen, as the effort weighs it. ``base``: a tensor to which an array may be stored as
    differences, if that is smaller. Raises EncodingError if the tensor cannot be stored so.
    """

    def __init__(
        self,
        tensor: TensorData,
        *,
        layout: LayoutChoice = "auto",
        split: SplitChoice = "auto",
        coding: CodingChoice = "auto",
        effort: Effort = BALANCED,
        base: TensorBase | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        _expect_tensor(tensor)
        self._pool = pool or BufferPool()
        self._coding: CodingChoice = coding
        self._effort = effort
        self.shape: tuple[int, ...]
        self._bytes: np.ndarray | None = None
        if isinstance(tensor, np.ndarray):
            self.dtype: DType = dtype_of(tensor)
            self.shape = tensor.shape
            # C order and little-endian; a copy only where the array is neither.
            self._bytes = np.ascontiguousarray(tensor, self.dtype.numpy).reshape(-1).view(np.uint8)
            if self.dtype.name == "bool" and self._bytes.size and int(self._bytes.max()) > 1:
                raise EncodingError("a bool is neither 0 nor 1")
        else:
            self.dtype = DTYPES[tensor.dtype]
            self.shape = tensor.shape
            if split != "auto":
                raise EncodingError("only exact values can be split into planes")
        self.elements = math.prod(self.shape)
        self._ranged = tries_range(coding, effort)
        sized_as: CodingChoice = "range" if self._ranged else coding
        self.layout: Layout = Dense()
        self.values: Values = Exact(split="whole")
        self._tensor: AffineTensor | CodebookTensor | None = None
        self._codes: np.ndarray | None = None
        self._mask: np.ndarray | None = None
        self._differences: Differences | None = None
        self._cut(SEGMENT_BYTES)
        if self.elements == 0:
            return
        if self._bytes is not None:
            choice = choose_exact(
                self._bytes, self.dtype, self.shape, layout=layout, split=split, coding=sized_as
            )
            if base is not None:
                self._differences = choose_differences(
                    self._bytes,
                    self.dtype,
                    self.shape,
                    base,
                    choice,
                    layout=layout,
                    split=split,
                    coding=sized_as,
                )
            if self._differences is not None:
                choice = self._differences.choice
            self.layout, codes = choice.layout, choice.codes
            self.values = choice.values or self.values
        elif base is not None:
            raise EncodingError("only exact values can be stored as differences")
        else:
            assert not isinstance(tensor, np.ndarray)
            codes = tensor
        if codes is not None:
            self._take_codes(codes, layout if self._bytes is None else self.layout, sized_as)
            if self._ranged:
                self._cut(_RANGE_SEGMENT_BYTES)

    def _cut(self, segment_bytes: int) -> None:
        self.segment = max(1, min(self.elements, segment_bytes // self.dtype.itemsize, MAX_SEGMENT_ELEMENTS))
        self.segments = -(-self.elements // self.segment)

    def _take_codes(
        self, codes: AffineTensor | CodebookTensor, layout: LayoutChoice, sized_as: CodingChoice
    ) -> None:
        self._tensor = codes
        self._codes = np.ascontiguousarray(codes.codes).reshape(-1)
        if codes.mask is not None:
            self._mask = np.ascontiguousarray(codes.mask).reshape(-1)
        elif layout not in ("auto", "dense", Dense()):
            self._mask = np.ones(self.elements, np.bool_)
        self.values = _describe(codes)
        if self._mask is None:
            self.layout = Dense()
            return
        self.layout = choose_positions(self._mask, layout, sized_as)
        if isinstance(self.layout, Dense) and not bool(self._mask.all()):
            raise EncodingError("a tensor with a mask cannot be stored dense: the codes have no zero")

    def _columns(self) -> int:
        """How long a row is for the range coder: all dimensions but the first, as long as a segment has a few such rows,
        because a row or a column of a matrix is an output or an input; otherwise fewer of the last dimensions."""
        columns = 1
        for size in reversed(self.shape[1:]):
            if columns > 1 and columns * size > self.segment // _FEWEST_ROWS:
                break
            columns *= size
        return columns if len(self.shape) > 1 else self.elements

    def _encode(
        self,
        symbols: np.ndarray,
        width: int,
        beside: Beside = NOTHING,
        *,
        columns: int = 1,
        signs: bool = False,
    ) -> Coded:
        context = RangeContext(beside, columns, signs)
        return encode_stream(symbols, width, self._coding, self._effort, context)

    def parameter_streams(self) -> list[Coded]:
        """The streams of the parameter part."""
        tensor = self._tensor
        if isinstance(tensor, AffineTensor):
            scales = np.ascontiguousarray(tensor.scales)
            streams = [self._encode(scales.view(np.uint8), 8, columns=scales.itemsize)]
            if tensor.zero_points is not None:
                streams.append(self._encode(np.ascontiguousarray(tensor.zero_points), tensor.bits))
            return streams
        if isinstance(tensor, CodebookTensor):
            centroids = np.ascontiguousarray(tensor.centroids).reshape(-1).view(np.uint8)
            return [self._encode(centroids, 8, columns=self.dtype.itemsize)]
        return []

    def encode(self, segment: int) -> EncodedSegment:
        """The streams of one segment. Safe to call from several threads."""
        itemsize = self.dtype.itemsize
        first = segment * self.segment
        count = min(self.segment, self.elements - first)
        content = stored = None
        if self._bytes is not None:
            content = stored = self._bytes[first * itemsize : (first + count) * itemsize]
            if self._differences is not None:
                stored = self._differences.encode(first * itemsize, content, self._pool.take(content.size))
        mask, entries, streams, gaps, columns = None, None, [], None, self._columns()
        if not isinstance(self.layout, Dense):
            mask = self._segment_mask(first, count, stored)
            entries = int(np.count_nonzero(mask))
            if isinstance(self.layout, RelativeIndex):
                symbols = gaps_of(mask, self.layout.bits)
                gaps = symbols.size
                streams.append(self._encode(symbols, self.layout.bits))
            else:
                bitmap = np.packbits(mask, bitorder="little")
                streams.append(self._encode(bitmap, 8, Beside(first, bits=count), columns=columns))
        beside = Beside(first)
        if mask is not None and self._ranged:
            beside = Beside(first, np.flatnonzero(mask).astype(np.uint32))
        if self._codes is not None:
            codes = self._codes[first : first + count]
            if mask is not None:
                codes = codes[mask]
            bits = self.values.bits  # type: ignore[union-attr]
            if codes.size and int(codes.max()) >> bits:
                raise EncodingError(f"a code does not fit in {bits} bits")
            streams.append(self._encode(codes, bits, beside, columns=columns))
            if content is None:
                content = self._decoded(codes, first, count, mask)
            return EncodedSegment(streams, entries, gaps, content)
        assert content is not None
        assert stored is not None
        data = stored if mask is None else stored.reshape(-1, itemsize)[mask].reshape(-1)
        planes, buffer = self._encode_exact(data, beside, columns)
        if stored is not content:
            # What the streams do not live in is not needed any more.
            buffer, unused = (stored, None) if buffer is None else (buffer, stored)
            if unused is not None:
                self._pool.give(unused)
        return EncodedSegment(streams + planes, entries, gaps, content, buffer)

    def _encode_exact(
        self, data: np.ndarray, beside: Beside, columns: int
    ) -> tuple[list[Coded], np.ndarray | None]:
        """The value streams of exact entries, and the buffer in which they may live."""
        values = self.values
        assert isinstance(values, Exact)
        itemsize = self.dtype.itemsize
        if values.stored_dtype is not None:
            data = narrowed(data, self.dtype, values.stored_dtype)
            itemsize = DTYPES[values.stored_dtype].itemsize
        if values.split == "whole":
            beside = beside._replace(step=itemsize)
            return [self._encode(data, 8, beside, columns=columns * itemsize)], None
        buffer = self._pool.take(data.size)
        rotated = values.split == "rotated"
        _native.split_planes(data, itemsize, rotated, buffer, values.offset)
        planes = buffer.reshape(itemsize, -1)
        coded: list[Coded] = []
        for j in reversed(range(itemsize)):
            coded.insert(0, self._encode(planes[j], 8, beside, columns=columns, signs=rotated and j == 0))
            beside = beside._replace(next=planes[j], last=planes[-1])
        return coded, buffer

    def _segment_mask(self, first: int, count: int, content: np.ndarray | None) -> np.ndarray:
        if self._mask is not None:
            return self._mask[first : first + count]
        assert content is not None
        nonzero: np.ndarray = content.view(f"<u{self.dtype.itemsize}") != 0
        return nonzero

    def _decoded(self, codes: np.ndarray, first: int, count: int, mask: np.ndarray | None) -> np.ndarray:
        """What a reader will make of the codes of a segment, as bytes."""
        tensor = self._tensor
        if isinstance(tensor, CodebookTensor):
            if codes.size and int(codes.max()) >= tensor.centroids.shape[1]:
                raise EncodingError(f"a code has no centroid: there are {tensor.centroids.shape[1]}")
            parameters = [np.ascontiguousarray(tensor.centroids)]
        else:
            assert isinstance(tensor, AffineTensor)
            parameters = [tensor.scales.astype(np.float64 if self.dtype.name == "f64" else np.float32)]
            if tensor.zero_points is not None:
                parameters.append(np.ascontiguousarray(tensor.zero_points))
        layout = Dense() if mask is None else Bitmap()
        streams = [] if mask is None else [np.packbits(mask, bitorder="little")]
        streams.append(codes)
        out = np.empty(count * self.dtype.itemsize, np.uint8)
        segment_decoder(self.dtype.name, self.shape, layout, self.values, parameters).decode(
            b"",
            0,
            [Stream(spec.RAW, 0, stream.size, 8) for stream in streams],
            dict(enumerate(streams)),
            first,
            codes.size,
            False,
            out,
        )
        return out

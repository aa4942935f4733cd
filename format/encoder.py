"""From a tensor to the streams of its segments: how an exact tensor is split, which layout is the smallest.

Choices are made from counts of symbols, on samples of a large tensor: deterministic, and the same for any number of
threads. A choice can be wrong by a little, never unsafe: each stream is still stored raw if coding does not make it
smaller.
"""

from __future__ import annotations

import math
import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from dcz import _native
from dcz.errors import EncodingError
from dcz.format import layout as spec
from dcz.format.coding import Coded, CodingChoice, encode_stream
from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.encodings import segment_decoder
from dcz.format.geometry import Stream, packed_bytes
from dcz.format.layout import MAX_SEGMENT_ELEMENTS
from dcz.format.manifest import (
    Affine,
    Bitmap,
    Codebook,
    Dense,
    Exact,
    RelativeIndex,
)
from dcz.format.range_models import Beside
from dcz.format.tensors import AffineTensor, CodebookTensor, TensorData

if TYPE_CHECKING:
    from dcz.format.manifest import Layout, Values

__all__ = ["BufferPool", "EncodedSegment", "LayoutChoice", "SplitChoice", "TensorEncoder"]

LayoutChoice: TypeAlias = "Literal['auto', 'dense', 'relative-index', 'bitmap'] | Layout"
Split: TypeAlias = Literal["whole", "bytes", "rotated"]
SplitChoice: TypeAlias = Literal["auto"] | Split

SEGMENT_BYTES: Final = 1 << 20  # decoded
# The range coder learns anew in each segment, and what the codes of a sparse tensor have to teach is thinly spread.
_RANGE_SEGMENT_BYTES: Final = 1 << 24
_SAMPLE: Final = 1 << 11  # elements of a sample
_SAMPLES: Final = 8
_EXACTLY: Final = 1 << 14  # symbols that are coded to learn their cost, because in so few the table counts
_FEWEST_ROWS: Final = 4
_STREAM_COST: Final = 4.0  # bytes that a stream costs in the manifest
_WORTH: Final = 0.995  # a choice that slows decoding down must save half a percent


@dataclass(frozen=True)
class EncodedSegment:
    """The streams of a segment, its counts, and its decoded content if that is not the input itself."""

    streams: list[Coded]
    entries: int | None
    gaps: int | None
    content: np.ndarray
    buffer: np.ndarray | None = None
    """What some of the streams live in; it goes back to the pool when they are written."""


def _coded_bytes(symbols: np.ndarray) -> int:
    """The bytes of the stream that Huffman coding makes of ``symbols`` (uint8), never more than raw: known where there are
    so few that the table counts, otherwise estimated."""
    if symbols.size == 0 or symbols.size > _EXACTLY:
        return _native.huffman_estimate(symbols)
    coded = _native.huffman_encode(symbols, 8, symbols.size)
    return symbols.size if coded is None else len(coded)


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


class TensorEncoder:
    """One tensor, and how it is going to be stored.

    ``tensor``: a numpy array (exact values), AffineTensor or CodebookTensor. ``layout``, ``split`` and ``coding``:
    ``auto`` lets the smallest be chosen. Raises EncodingError if the tensor cannot be stored so.
    """

    def __init__(
        self,
        tensor: TensorData,
        *,
        layout: LayoutChoice = "auto",
        split: SplitChoice = "auto",
        coding: CodingChoice = "auto",
        pool: BufferPool | None = None,
    ) -> None:
        _expect_tensor(tensor)
        self._pool = pool or BufferPool()
        self._coding: CodingChoice = coding
        self.shape: tuple[int, ...]
        if isinstance(tensor, np.ndarray):
            self.dtype: DType = dtype_of(tensor)
            self.shape = tensor.shape
            # C order and little-endian; a copy only where the array is neither.
            flat = np.ascontiguousarray(tensor, self.dtype.numpy).reshape(-1)
            self._bytes = flat.view(np.uint8)
            if self.dtype.name == "bool" and self._bytes.size and int(self._bytes.max()) > 1:
                raise EncodingError("a bool is neither 0 nor 1")
            self._mask: np.ndarray | None = None
            self._codes: np.ndarray | None = None
        else:
            self.dtype = DTYPES[tensor.dtype]
            self.shape = tensor.shape
            self._codes = np.ascontiguousarray(tensor.codes).reshape(-1)
            self._mask = None if tensor.mask is None else np.ascontiguousarray(tensor.mask).reshape(-1)
            if split != "auto":
                raise EncodingError("only exact values can be split into planes")
        self._tensor = tensor
        self.elements = math.prod(self.shape)
        segment_bytes = SEGMENT_BYTES if coding != "range" or self._codes is None else _RANGE_SEGMENT_BYTES
        self.segment = max(1, min(self.elements, segment_bytes // self.dtype.itemsize, MAX_SEGMENT_ELEMENTS))
        self.segments = -(-self.elements // self.segment)
        if self.elements == 0:
            self.layout: Layout = Dense()
            self.values: Values = Exact(split="whole")
            return
        if self._codes is not None and self._mask is None and layout not in ("auto", "dense", Dense()):
            self._mask = np.ones(self.elements, np.bool_)
        self.values = self._describe_values()
        if self._codes is None:
            self.layout, self.values = self._choose_exact(layout, split)
        else:
            self.layout = self._choose_coded(layout)

    # -- choices

    def _describe_values(self) -> Values:
        tensor = self._tensor
        if isinstance(tensor, AffineTensor):
            scale = next(row.name for row in DTYPES.values() if row.numpy == tensor.scales.dtype)
            return Affine(
                bits=tensor.bits,
                granularity=tensor.granularity,
                zero_points=tensor.zero_points is not None,
                scale_dtype=None if scale in ("f32", "f64") else scale,  # type: ignore[arg-type]
            )
        if isinstance(tensor, CodebookTensor):
            return Codebook(bits=tensor.bits, size=tensor.centroids.shape[1], granularity=tensor.granularity)
        return Exact(split="whole")

    def _sample(self, source: np.ndarray, itemsize: int) -> np.ndarray:
        """Up to _SAMPLES pieces of _SAMPLE elements, spread evenly, as bytes."""
        if self.elements <= _SAMPLE * _SAMPLES:
            return source
        step = self.elements // _SAMPLES
        pieces = [source[i * step * itemsize : (i * step + _SAMPLE) * itemsize] for i in range(_SAMPLES)]
        return np.concatenate(pieces)

    def _plane_costs(self, data: np.ndarray) -> dict[Split, float]:
        """Estimated bytes of exact values under each split."""
        itemsize = self.dtype.itemsize
        if data.size == 0:
            return {"whole": 0.0}
        costs: dict[Split, float] = {"whole": _native.huffman_estimate(data) + _STREAM_COST}
        planes = np.empty_like(data)
        splits: list[tuple[Split, bool]] = []
        if itemsize > 1:
            splits.append(("bytes", False))
        if self.dtype.is_float:
            splits.append(("rotated", True))
        for name, rotated in splits:
            _native.split_planes(data, itemsize, rotated, planes)
            costs[name] = sum(
                _native.huffman_estimate(plane) + _STREAM_COST for plane in planes.reshape(itemsize, -1)
            )
        return costs

    def _choose_exact(self, layout: LayoutChoice, split: SplitChoice) -> tuple[Layout, Values]:
        itemsize = self.dtype.itemsize
        sample = self._sample(self._bytes, itemsize)
        nonzero: np.ndarray = sample.view(f"<u{itemsize}") != 0
        stored = int(np.count_nonzero(nonzero))
        chosen_layout = self._fixed_layout(layout, nonzero)
        if chosen_layout is None:
            chosen_layout = Dense()
            if stored < 0.95 * nonzero.size:
                dense = min(self._plane_costs(sample).values())
                sparse_values = min(
                    self._plane_costs(sample.reshape(-1, itemsize)[nonzero].reshape(-1)).values()
                )
                best = min(self._position_costs(nonzero), key=lambda item: item[0])
                if best[0] + sparse_values < dense * _WORTH:
                    chosen_layout = best[1]
        if split != "auto":
            if split == "rotated" and not self.dtype.is_float:
                raise EncodingError(
                    f"the split 'rotated' is for floating-point types, not for {self.dtype.name}"
                )
            return chosen_layout, Exact(split=split)
        if self._coding == "raw":
            return chosen_layout, Exact(split="whole")
        kept = (
            sample if isinstance(chosen_layout, Dense) else sample.reshape(-1, itemsize)[nonzero].reshape(-1)
        )
        costs = self._plane_costs(kept)
        best_split = min(costs, key=lambda name: costs[name])
        if costs[best_split] > kept.size * _WORTH:
            best_split = "whole"
        return chosen_layout, Exact(split=best_split)

    def _fixed_layout(self, layout: LayoutChoice, mask: np.ndarray) -> Layout | None:
        if layout == "auto":
            return None
        if layout == "dense":
            return Dense()
        if layout == "bitmap":
            return Bitmap()
        if layout == "relative-index":
            return self._relative_index(mask)
        return layout

    def _relative_index(self, mask: np.ndarray) -> RelativeIndex:
        """The width of gaps that takes the least space. Under an entropy coder that is 8 bits, which need hardly any
        fillers, unless the tensor is so small that the table of a larger alphabet shows."""
        gaps = mask.view(np.uint8)
        if self._coding == "raw":
            symbols = _native.count_gaps(gaps)
            return RelativeIndex(bits=min(range(1, 9), key=lambda bits: packed_bytes(symbols[bits], bits)))
        if mask.size < self.elements or np.count_nonzero(mask) > _EXACTLY:
            return RelativeIndex(bits=8)
        return RelativeIndex(bits=min(range(8, 2, -1), key=lambda bits: _coded_bytes(self._gaps(mask, bits))))

    def _columns(self) -> int:
        """How long a row is for the range coder: all dimensions but the first, as long as a segment has a few such rows,
        because a row or a column of a matrix is an output or an input; otherwise fewer of the last dimensions."""
        columns = 1
        for size in reversed(self.shape[1:]):
            if columns > 1 and columns * size > self.segment // _FEWEST_ROWS:
                break
            columns *= size
        return columns if len(self.shape) > 1 else self.elements

    @staticmethod
    def _gaps(mask: np.ndarray, bits: int) -> np.ndarray:
        return np.frombuffer(_native.encode_gaps(mask.view(np.uint8), bits), np.uint8)

    def _position_costs(self, mask: np.ndarray) -> list[tuple[float, Layout]]:
        bitmap = np.packbits(mask, bitorder="little")
        if self._coding == "range":
            # The range coder sees rows and columns in a bitmap, but only lengths in gaps.
            coded = encode_stream(bitmap, 8, "range", Beside(bits=mask.size), columns=self._columns())
            return [(len(coded[1]) + _STREAM_COST, Bitmap())]
        relative = self._relative_index(mask)
        gaps = self._gaps(mask, relative.bits)
        if self._coding == "raw":
            return [(float(packed_bytes(gaps.size, relative.bits)), relative), (float(bitmap.size), Bitmap())]
        return [
            (_coded_bytes(gaps) + _STREAM_COST, relative),
            (_coded_bytes(bitmap) + _STREAM_COST, Bitmap()),
        ]

    def _choose_coded(self, layout: LayoutChoice) -> Layout:
        if self._mask is None:
            return Dense()
        mask = self._sample(self._mask, 1)
        fixed = self._fixed_layout(layout, mask)
        if isinstance(fixed, Dense) and not bool(self._mask.all()):
            raise EncodingError("a tensor with a mask cannot be stored dense: the codes have no zero")
        if fixed is None and self._coding == "range":
            return Bitmap()
        return fixed or min(self._position_costs(mask), key=lambda item: item[0])[1]

    # -- the work

    def parameter_streams(self) -> list[Coded]:
        """The streams of the parameter part."""
        tensor = self._tensor
        if isinstance(tensor, AffineTensor):
            scales = np.ascontiguousarray(tensor.scales)
            streams = [encode_stream(scales.view(np.uint8), 8, self._coding, columns=scales.itemsize)]
            if tensor.zero_points is not None:
                streams.append(
                    encode_stream(np.ascontiguousarray(tensor.zero_points), tensor.bits, self._coding)
                )
            return streams
        if isinstance(tensor, CodebookTensor):
            return [
                encode_stream(
                    np.ascontiguousarray(tensor.centroids).reshape(-1).view(np.uint8),
                    8,
                    self._coding,
                    columns=self.dtype.itemsize,
                )
            ]
        return []

    def encode(self, segment: int) -> EncodedSegment:
        """The streams of one segment. Safe to call from several threads."""
        itemsize = self.dtype.itemsize
        first = segment * self.segment
        count = min(self.segment, self.elements - first)
        mask, entries, streams, gaps, columns = None, None, [], None, self._columns()
        if not isinstance(self.layout, Dense):
            mask = self._segment_mask(first, count)
            entries = int(np.count_nonzero(mask))
            if isinstance(self.layout, RelativeIndex):
                symbols = self._gaps(mask, self.layout.bits)
                gaps = symbols.size
                streams.append(encode_stream(symbols, self.layout.bits, self._coding))
            else:
                bitmap = np.packbits(mask, bitorder="little")
                streams.append(
                    encode_stream(bitmap, 8, self._coding, Beside(first, bits=count), columns=columns)
                )
        beside = Beside(first)
        if mask is not None and self._coding == "range":
            beside = Beside(first, np.flatnonzero(mask).astype(np.uint32))
        if self._codes is not None:
            codes = self._codes[first : first + count]
            if mask is not None:
                codes = codes[mask]
            bits = self.values.bits  # type: ignore[union-attr]
            if codes.size and int(codes.max()) >> bits:
                raise EncodingError(f"a code does not fit in {bits} bits")
            streams.append(encode_stream(codes, bits, self._coding, beside, columns=columns))
            return EncodedSegment(streams, entries, gaps, self._decoded(codes, first, count, mask))
        content = self._bytes[first * itemsize : (first + count) * itemsize]
        data = content if mask is None else content.reshape(-1, itemsize)[mask].reshape(-1)
        assert isinstance(self.values, Exact)
        if self.values.split == "whole":
            beside = beside._replace(step=itemsize)
            streams.append(encode_stream(data, 8, self._coding, beside, columns=columns * itemsize))
            return EncodedSegment(streams, entries, gaps, content)
        planes = self._pool.take(data.size)
        rotated = self.values.split == "rotated"
        _native.split_planes(data, itemsize, rotated, planes)
        rows = planes.reshape(itemsize, -1)
        coded: list[Coded] = []
        for j in reversed(range(itemsize)):
            signs = rotated and j == 0
            coded.insert(0, encode_stream(rows[j], 8, self._coding, beside, columns=columns, signs=signs))
            beside = beside._replace(next=rows[j], last=rows[-1])
        streams += coded
        return EncodedSegment(streams, entries, gaps, content, planes)

    def _segment_mask(self, first: int, count: int) -> np.ndarray:
        if self._mask is not None:
            return self._mask[first : first + count]
        itemsize = self.dtype.itemsize
        content = self._bytes[first * itemsize : (first + count) * itemsize]
        return (content.view(f"<u{itemsize}") != 0) if content.size else np.empty(0, np.bool_)

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

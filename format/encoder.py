"""From a tensor to the streams of its segments. How it is stored is chosen in dcz.format.choices."""

from __future__ import annotations

import math
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz import _native
from dcz.errors import EncodingError
from dcz.format.choices import LayoutChoice, SplitChoice, choose_exact, choose_positions, gaps_of
from dcz.format.coding import BALANCED, Coded, CodingChoice, encode_stream, tries_range
from dcz.format.differences import Differences, choose_differences
from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.encodings import segment_decoder
from dcz.format.layout import MAX_SEGMENT_ELEMENTS
from dcz.format.manifest import (
    Affine,
    AffineCoded,
    Bitmap,
    Codebook,
    CodebookCoded,
    Dense,
    Exact,
    ExactParameters,
    PerIndex,
    RelativeIndex,
    ScaledCodebook,
    Vectors,
)
from dcz.format.parameters import decode_codes
from dcz.format.range_models import NOTHING, Beside, RangeContext
from dcz.format.recognition import narrowed
from dcz.format.tensors import (
    AffineParameters,
    AffineTensor,
    CodebookParameters,
    CodebookTensor,
    CodedTensor,
    Indexed,
    ScaledCodebookTensor,
    TensorBase,
    TensorData,
    VectorCodebookTensor,
    parameter_values,
)

if TYPE_CHECKING:
    from dcz.format.effort import Effort
    from dcz.format.manifest import Layout, Parameters, StoredGranularity, Values
    from dcz.format.tensors import GranularityLike, ParameterValues

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
    if not isinstance(tensor, np.ndarray | CodedTensor):
        raise EncodingError(
            "a tensor is an array, an AffineTensor, a CodebookTensor, a ScaledCodebookTensor or a VectorCodebookTensor, "
            f"not {type(tensor).__name__}"
        )


def _granularity(granularity: GranularityLike) -> StoredGranularity:
    return PerIndex(groups=granularity.groups) if isinstance(granularity, Indexed) else granularity


def _name_of(array: np.ndarray) -> str:
    return next(row.name for row in DTYPES.values() if row.numpy == array.dtype)


def _how(parameters: ParameterValues | None) -> Parameters:
    """How scales or minimums are stored."""
    match parameters:
        case AffineParameters(bits=bits, group=group, zero_point=zero):
            dtype = _name_of(parameters.scales)
            return AffineCoded(bits=bits, group=group, zero_point=zero, dtype=dtype)  # type: ignore[arg-type]
        case CodebookParameters(bits=bits, group=group, table=table):
            return CodebookCoded(
                bits=bits,
                size=table.size,
                group=group,
                offset=parameters.offset is not None,
                dtype=_name_of(parameters.scales),  # type: ignore[arg-type]
            )
        case _:
            return ExactParameters()


def _describe(tensor: CodedTensor) -> Values:
    if isinstance(tensor, VectorCodebookTensor):
        _, size, d = tensor.codewords.shape
        return Vectors(bits=tensor.bits, size=size, dimension=d, per_place=tensor.per_place)
    granularity = _granularity(tensor.granularity)
    if isinstance(tensor, CodebookTensor):
        return Codebook(bits=tensor.bits, size=tensor.centroids.shape[1], granularity=granularity)
    minimums = tensor.minimums if isinstance(tensor, AffineTensor) else None
    exact = [each for each in (tensor.scales, minimums) if isinstance(each, np.ndarray)]
    scale = _name_of(exact[0]) if exact else "f32"
    scale_dtype = None if scale in ("f32", "f64") else scale
    if isinstance(tensor, ScaledCodebookTensor):
        return ScaledCodebook(
            bits=tensor.bits,
            size=tensor.table.size,
            granularity=granularity,
            scale_dtype=scale_dtype,  # type: ignore[arg-type]
            scale_values=_how(tensor.scales),
        )
    points = tensor.zero_points
    constant = int(points) if points is not None and not isinstance(points, np.ndarray) else None
    width = int(points.max(initial=0)).bit_length() if isinstance(points, np.ndarray) else 0
    return Affine(
        bits=tensor.bits,
        granularity=granularity,
        zero_points=isinstance(points, np.ndarray),
        zero_point=None if constant == 1 << (tensor.bits - 1) else constant,
        zero_point_bits=width if width > tensor.bits else None,
        minimums=minimums is not None,
        scale_dtype=scale_dtype,  # type: ignore[arg-type]
        scale_values=_how(tensor.scales),
        minimum_values=_how(minimums),
    )


class TensorEncoder:
    """One tensor, and how it is going to be stored.

    ``tensor``: a numpy array (exact values), or codes and their parameters. ``layout``, ``split`` and ``coding``:
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
        self._tensor: CodedTensor | None = None
        self._dimension = 1
        self._codes: np.ndarray | None = None
        self._mask: np.ndarray | None = None
        self._differences: Differences | None = None
        self._decoder: _native.SegmentDecoder | None = None
        self._lock = threading.Lock()
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
            self.layout = choice.layout
            codes: CodedTensor | None = choice.codes
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
        self.segment = max(1, self.segment // self._dimension) * self._dimension
        self.segments = -(-self.elements // self.segment)

    def _take_codes(self, codes: CodedTensor, layout: LayoutChoice, sized_as: CodingChoice) -> None:
        self._tensor = codes
        self._codes = np.ascontiguousarray(codes.codes).reshape(-1)
        if isinstance(codes, VectorCodebookTensor):
            self._dimension = codes.codewords.shape[2]
            if layout not in ("auto", "dense", Dense()):
                raise EncodingError("vectors are stored dense")
        elif codes.mask is not None:
            self._mask = np.ascontiguousarray(codes.mask).reshape(-1)
        elif layout not in ("auto", "dense", Dense()):
            self._mask = np.ones(self.elements, np.bool_)
        self.values = _describe(codes)
        self._cut(SEGMENT_BYTES)
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
        return (columns if len(self.shape) > 1 else self.elements) // self._dimension

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

    def _encode_numbers(self, numbers: np.ndarray) -> Coded:
        return self._encode(
            np.ascontiguousarray(numbers).reshape(-1).view(np.uint8), 8, columns=numbers.itemsize
        )

    def _encode_values(self, parameters: ParameterValues) -> list[Coded]:
        """The streams of scales or minimums."""
        if isinstance(parameters, np.ndarray):
            return [self._encode_numbers(parameters)]
        streams = [self._encode(np.ascontiguousarray(parameters.codes), parameters.bits)]
        if isinstance(parameters, CodebookParameters):
            streams.append(self._encode_numbers(parameters.table))
        streams.append(self._encode_numbers(parameters.scales))
        if isinstance(parameters, CodebookParameters) and parameters.offset is not None:
            streams.append(self._encode_numbers(np.array([parameters.offset], "<f4")))
        return streams

    def parameter_streams(self) -> list[Coded]:
        """The streams of the parameter part (dcz.format.parameters says which)."""
        tensor, values = self._tensor, self.values
        match tensor:
            case None:
                return []
            case VectorCodebookTensor():
                return [self._encode_numbers(tensor.codewords)]
            case CodebookTensor():
                streams = [self._encode_numbers(tensor.centroids)]
            case ScaledCodebookTensor():
                streams = [*self._encode_values(tensor.scales), self._encode_numbers(tensor.table)]
            case AffineTensor():
                assert isinstance(values, Affine)
                streams = self._encode_values(tensor.scales)
                if isinstance(tensor.zero_points, np.ndarray):
                    points = np.ascontiguousarray(tensor.zero_points)
                    streams.append(self._encode(points, values.zero_point_bits or values.bits))
                if tensor.minimums is not None:
                    streams += self._encode_values(tensor.minimums)
        if isinstance(tensor.granularity, Indexed):
            streams.append(self._encode_numbers(tensor.granularity.index))
        return streams

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
            d = self._dimension
            codes = self._codes[first // d : (first + count) // d]
            beside = beside._replace(start=first // d)
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

    def _parameters(self) -> dict[str, np.ndarray]:
        """As ``read_parameters`` will give them."""
        tensor = self._tensor
        assert tensor is not None
        if isinstance(tensor, VectorCodebookTensor):
            return {"codewords": np.ascontiguousarray(tensor.codewords).view(np.uint8)}
        found: dict[str, np.ndarray] = {}
        if isinstance(tensor.granularity, Indexed):
            found["index"] = np.ascontiguousarray(tensor.granularity.index)
        if isinstance(tensor, CodebookTensor):
            return found | {"centroids": np.ascontiguousarray(tensor.centroids).view(np.uint8)}
        found["scales"] = np.ascontiguousarray(parameter_values(tensor.scales))
        if isinstance(tensor, ScaledCodebookTensor):
            return found | {"table": np.ascontiguousarray(tensor.table)}
        if isinstance(tensor.zero_points, np.ndarray):
            found["zero points"] = np.ascontiguousarray(tensor.zero_points)
        if tensor.minimums is not None:
            found["minimums"] = np.ascontiguousarray(parameter_values(tensor.minimums))
        return found

    def _size(self) -> int:
        """Codes are below that."""
        values = self.values
        assert not isinstance(values, Exact)
        return 1 << values.bits if isinstance(values, Affine) else values.size

    def _decoded(self, codes: np.ndarray, first: int, count: int, mask: np.ndarray | None) -> np.ndarray:
        """What a reader will make of the codes of a segment, as bytes."""
        if codes.size and int(codes.max()) >= self._size():
            raise EncodingError(f"a code is above the last one, {self._size() - 1}")
        layout = Dense() if mask is None else Bitmap()
        streams = [] if mask is None else [np.packbits(mask, bitorder="little")]
        streams.append(codes)
        out = np.empty(count * self.dtype.itemsize, np.uint8)
        with self._lock:
            if self._decoder is None:
                self._decoder = segment_decoder(
                    self.dtype.name, self.shape, layout, self.values, self._parameters()
                )
        decode_codes(self._decoder, streams, first, codes.size * self._dimension, out)
        return out

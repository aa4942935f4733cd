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
from dcz.format.bases import difference_kind
from dcz.format.coding import Coded, CodingChoice, encode_stream
from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.encodings import segment_decoder
from dcz.format.geometry import Stream, packed_bytes
from dcz.format.layout import MAX_SEGMENT_ELEMENTS
from dcz.format.manifest import (
    Affine,
    Bitmap,
    Codebook,
    Delta,
    Dense,
    Exact,
    RelativeIndex,
)
from dcz.format.tensors import AffineTensor, CodebookTensor, TensorBase, TensorData

if TYPE_CHECKING:
    from dcz.format.manifest import Layout, Values

__all__ = ["BufferPool", "EncodedSegment", "LayoutChoice", "SplitChoice", "TensorEncoder"]

LayoutChoice: TypeAlias = "Literal['auto', 'dense', 'relative-index', 'bitmap'] | Layout"
Split: TypeAlias = Literal["whole", "bytes", "rotated"]
SplitChoice: TypeAlias = Literal["auto"] | Split

SEGMENT_BYTES: Final = 1 << 20  # decoded
_SAMPLE: Final = 1 << 11  # elements of a sample
_SAMPLES: Final = 8
_EXACTLY: Final = 1 << 14  # symbols that are coded to learn their cost, because in so few the table counts
_STREAM_COST: Final = 4.0  # bytes that a stream costs in the manifest
_WORTH: Final = 0.995  # a choice that slows decoding down must save half a percent
_DELTA_SAMPLES: Final = 32
_DELTA_COST: Final = 128.0  # bytes of the manifest: a little for each tensor, most of it once for the base
_DELTA_WORTH: Final = 0.98  # what needs another file to be read must save two percent


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
    ``auto`` lets the smallest be chosen. ``base``: a tensor to which an array may be stored as differences, if that is
    smaller. Raises EncodingError if the tensor cannot be stored so.
    """

    def __init__(
        self,
        tensor: TensorData,
        *,
        layout: LayoutChoice = "auto",
        split: SplitChoice = "auto",
        coding: CodingChoice = "auto",
        base: TensorBase | None = None,
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
        self.segment = max(1, min(self.elements, SEGMENT_BYTES // self.dtype.itemsize, MAX_SEGMENT_ELEMENTS))
        self.segments = -(-self.elements // self.segment)
        if self.elements == 0:
            self.layout: Layout = Dense()
            self.values: Values = Exact(split="whole")
            return
        if self._codes is not None and self._mask is None and layout not in ("auto", "dense", Dense()):
            self._mask = np.ones(self.elements, np.bool_)
        self.values = self._describe_values()
        self._base: np.ndarray | None = None
        self._kind = ""
        if self._codes is None:
            sample = self._sample(self._bytes, self.dtype.itemsize)
            self.layout, self.values, _ = self._choose_exact(layout, split, sample)
            if base is not None:
                self._choose_delta(base, layout, split)
        else:
            if base is not None:
                raise EncodingError("only exact values can be stored as differences")
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

    def _choose_exact(
        self, layout: LayoutChoice, split: SplitChoice, sample: np.ndarray
    ) -> tuple[Layout, Exact, float]:
        """Layout and split for values of which ``sample`` holds some, and the estimated bytes of those."""
        itemsize = self.dtype.itemsize
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
        if split == "rotated" and not self.dtype.is_float:
            raise EncodingError(f"the split 'rotated' is for floating-point types, not for {self.dtype.name}")
        sparse = not isinstance(chosen_layout, Dense)
        kept = sample.reshape(-1, itemsize)[nonzero].reshape(-1) if sparse else sample
        positions = min(cost for cost, _ in self._position_costs(nonzero)) if sparse else 0.0
        if self._coding == "raw":
            return chosen_layout, Exact(split="whole" if split == "auto" else split), positions + kept.size
        costs = self._plane_costs(kept)
        best_split = min(costs, key=lambda name: costs[name]) if split == "auto" else split
        if split == "auto" and costs[best_split] > kept.size * _WORTH:
            best_split = "whole"
        return chosen_layout, Exact(split=best_split), positions + min(costs.values())

    def _choose_delta(self, base: TensorBase, layout: LayoutChoice, split: SplitChoice) -> None:
        """Take the differences to ``base`` instead of the elements if they are smaller, or if that was asked for."""
        if dtype_of(base.content).name != self.dtype.name or base.content.shape != self.shape:
            raise EncodingError(
                f"differences of {self.dtype.name} {list(self.shape)} to "
                f"{dtype_of(base.content).name} {list(base.content.shape)}"
            )
        itemsize, forced = self.dtype.itemsize, base.operation != "auto"
        operations: list[Literal["xor", "difference"]] = []
        if base.operation != "xor" and self.dtype.name != "bool":
            operations.append("difference")
        if base.operation != "difference":
            operations.append("xor")
        if split == "rotated" or not operations:
            if forced:
                raise EncodingError(f"no {base.operation} of {self.dtype.name} with the split {split!r}")
            return
        before = np.ascontiguousarray(base.content, self.dtype.numpy).reshape(-1).view(np.uint8)
        sample, of_base = self._delta_samples(before)
        differences = np.empty_like(sample)
        best = self._choose_exact(layout, split, sample)[2] * _DELTA_WORTH
        best -= _DELTA_COST * sample.size / self._bytes.size
        for operation in operations:
            kind = difference_kind(self.dtype, operation)
            _native.encode_delta(kind, of_base, sample, itemsize, differences)
            chosen_layout, values, cost = self._choose_exact(layout, split, differences)
            if values.split == "rotated":  # which is not for differences, and hardly ever better
                values = Exact(split="bytes")
            if cost < best or forced:
                best = cost
                self._base, self._kind, self.layout = before, kind, chosen_layout
                delta = Delta(base=base.index, tensor=base.name, operation=operation)
                self.values = values.model_copy(update={"delta": delta})

    def _delta_samples(self, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of the tensor and the same ones of the base (bytes): of those that changed and of the others as many as
        there are in all, in proportion. What changed may lie in few places, which pieces at random would not meet."""
        size = _SAMPLE * self.dtype.itemsize
        if self._bytes.size <= _DELTA_SAMPLES * size:
            return self._bytes, base
        whole = self._bytes.size // size
        changed = np.empty(whole, np.bool_)
        step = SEGMENT_BYTES // size
        for start in range(0, whole, step):
            stop = min(start + step, whole)
            ours, theirs = (data[start * size : stop * size].view(np.uint64) for data in (self._bytes, base))
            changed[start:stop] = (ours != theirs).reshape(stop - start, -1).any(axis=1)
        pieces = []
        count = int(np.count_nonzero(changed))
        of_changed = max(round(_DELTA_SAMPLES * count / whole), min(count, _SAMPLES))
        for which, wanted in ((changed, of_changed), (~changed, _DELTA_SAMPLES - of_changed)):
            found = np.flatnonzero(which)
            wanted = min(wanted, found.size)
            pieces += found[np.arange(wanted) * found.size // max(1, wanted)].tolist()
        cut = [slice(piece * size, (piece + 1) * size) for piece in sorted(pieces)]
        return np.concatenate([self._bytes[c] for c in cut]), np.concatenate([base[c] for c in cut])

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

    @staticmethod
    def _gaps(mask: np.ndarray, bits: int) -> np.ndarray:
        return np.frombuffer(_native.encode_gaps(mask.view(np.uint8), bits), np.uint8)

    def _position_costs(self, mask: np.ndarray) -> list[tuple[float, Layout]]:
        relative = self._relative_index(mask)
        gaps = self._gaps(mask, relative.bits)
        bitmap = np.packbits(mask, bitorder="little")
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
        return fixed or min(self._position_costs(mask), key=lambda item: item[0])[1]

    # -- the work

    def parameter_streams(self) -> list[Coded]:
        """The streams of the parameter part."""
        tensor = self._tensor
        if isinstance(tensor, AffineTensor):
            streams = [encode_stream(np.ascontiguousarray(tensor.scales).view(np.uint8), 8, self._coding)]
            if tensor.zero_points is not None:
                streams.append(
                    encode_stream(np.ascontiguousarray(tensor.zero_points), tensor.bits, self._coding)
                )
            return streams
        if isinstance(tensor, CodebookTensor):
            return [
                encode_stream(
                    np.ascontiguousarray(tensor.centroids).reshape(-1).view(np.uint8), 8, self._coding
                )
            ]
        return []

    def encode(self, segment: int) -> EncodedSegment:
        """The streams of one segment. Safe to call from several threads."""
        itemsize = self.dtype.itemsize
        first = segment * self.segment
        count = min(self.segment, self.elements - first)
        content = stored = np.empty(0, np.uint8)
        differences: np.ndarray | None = None
        if self._codes is None:
            content = stored = self._bytes[first * itemsize : (first + count) * itemsize]
            if self._base is not None:
                stored = differences = self._pool.take(content.size)
                before = self._base[first * itemsize : (first + count) * itemsize]
                _native.encode_delta(self._kind, before, content, itemsize, differences)
        mask, entries, streams, gaps = None, None, [], None
        if not isinstance(self.layout, Dense):
            mask = (
                stored.view(f"<u{itemsize}") != 0 if self._mask is None else self._mask[first : first + count]
            )
            entries = int(np.count_nonzero(mask))
            if isinstance(self.layout, RelativeIndex):
                symbols = self._gaps(mask, self.layout.bits)
                gaps = symbols.size
                streams.append(encode_stream(symbols, self.layout.bits, self._coding))
            else:
                streams.append(encode_stream(np.packbits(mask, bitorder="little"), 8, self._coding))
        if self._codes is not None:
            codes = self._codes[first : first + count]
            if mask is not None:
                codes = codes[mask]
            bits = self.values.bits  # type: ignore[union-attr]
            if codes.size and int(codes.max()) >> bits:
                raise EncodingError(f"a code does not fit in {bits} bits")
            streams.append(encode_stream(codes, bits, self._coding))
            return EncodedSegment(streams, entries, gaps, self._decoded(codes, first, count, mask))
        data = stored if mask is None else stored.reshape(-1, itemsize)[mask].reshape(-1)
        assert isinstance(self.values, Exact)
        if self.values.split == "whole":
            streams.append(encode_stream(data, 8, self._coding))
            return EncodedSegment(streams, entries, gaps, content, differences)
        planes = self._pool.take(data.size)
        _native.split_planes(data, itemsize, self.values.split == "rotated", planes)
        if differences is not None:
            self._pool.give(differences)
        streams += [encode_stream(plane, 8, self._coding) for plane in planes.reshape(itemsize, -1)]
        return EncodedSegment(streams, entries, gaps, content, planes)

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

"""Where everything in a file is: step 5 of the verification (docs/format.md, sections 4, 5 and 8).

The manifest stores lengths only. From them follow, for every part, its chunk and its place in it, and for every stream
the number and the width of its symbols.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcz.errors import FormatError, LimitExceeded, ManifestError
from dcz.format import layout as spec
from dcz.format.dtypes import DTYPES, DType
from dcz.format.manifest import Bitmap, Dense, Exact, RelativeIndex, Vectors
from dcz.format.parameters import ParameterStream, expanded_bytes, parameter_streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dcz.format.layout import Limits
    from dcz.format.manifest import Asset, Delta, Manifest, Tensor

__all__ = ["AssetGeometry", "Geometry", "PartPlace", "Stream", "TensorGeometry"]


class Stream(NamedTuple):
    """One stream: how it is coded, its stored bytes, and the number and width of its symbols."""

    coding: int
    length: int
    symbols: int
    width: int


class PartPlace(NamedTuple):
    """Where a part is stored: which chunk, and from which byte of it. An empty part is in no chunk (-1)."""

    chunk: int
    start: int
    length: int


def packed_bytes(count: int, width: int) -> int:
    """The bytes of ``count`` symbols of ``width`` bits, packed (docs/format.md, section 6.1)."""
    return (count * width + 7) // 8


class TensorGeometry:
    """The arithmetic of one tensor. Raises ManifestError or LimitExceeded if its numbers do not agree."""

    def __init__(self, tensor: Tensor, limits: Limits) -> None:
        self.tensor = tensor
        self.dtype: DType = DTYPES[tensor.dtype]
        self.entry_size = DTYPES[tensor.stored_dtype].itemsize  # bytes of an exact entry in the streams
        self.elements = math.prod(tensor.shape)
        self.nbytes = self.elements * self.dtype.itemsize
        self.segments = -(-self.elements // tensor.segment)
        if self.nbytes > limits.tensor_bytes:
            raise LimitExceeded(f"{self.nbytes} bytes, at most {limits.tensor_bytes} are allowed")
        if tensor.segment * self.dtype.itemsize > spec.MAX_SEGMENT_BYTES and self.elements > tensor.segment:
            raise ManifestError(f"segments of {tensor.segment} elements are too large")
        if self.segments == 1 and self.nbytes > spec.MAX_SEGMENT_BYTES:
            raise ManifestError(f"a segment of {self.nbytes} bytes is too large")
        if self.elements == 0 and (tensor.layout != Dense() or tensor.values != Exact(split="whole")):
            raise ManifestError("a tensor without elements has a layout or values of its own")
        if self.segments > limits.streams:
            raise LimitExceeded(f"{self.segments} segments, at most {limits.streams} are allowed")
        self._check_entries()
        self.parameters: list[ParameterStream] = parameter_streams(tensor) if self.elements else []
        self.dimension = tensor.values.dimension if isinstance(tensor.values, Vectors) else 1
        if tensor.segment % self.dimension:
            raise ManifestError(f"segments of {tensor.segment} elements, and vectors of {self.dimension}")
        self.position_streams = 0 if isinstance(tensor.layout, Dense) else 1
        planes = isinstance(tensor.values, Exact) and tensor.values.split != "whole"
        self.segment_streams = self.position_streams + (self.entry_size if planes else 1)
        parameter_bytes = expanded_bytes(tensor)
        parameter_bytes += sum(packed_bytes(stream.symbols, stream.width) for stream in self.parameters)
        if parameter_bytes > limits.parameter_bytes:
            raise LimitExceeded(
                f"{parameter_bytes} bytes of parameters, at most {limits.parameter_bytes} are allowed"
            )
        streams = len(self.parameters) + self.segments * self.segment_streams
        if not len(tensor.codings) == len(tensor.lengths) == streams:
            raise ManifestError(
                f"{len(tensor.codings)} codings and {len(tensor.lengths)} lengths for {streams} streams"
            )
        _check_streams(tensor.codings, tensor.lengths, limits)

    def _check_entries(self) -> None:
        tensor, sparse = self.tensor, not isinstance(self.tensor.layout, Dense)
        relative = isinstance(tensor.layout, RelativeIndex)
        if len(tensor.entries) != (self.segments if sparse else 0):
            raise ManifestError(f"{len(tensor.entries)} counts of entries for {self.segments} segments")
        if len(tensor.gaps) != (self.segments if relative else 0):
            raise ManifestError(f"{len(tensor.gaps)} counts of gaps for {self.segments} segments")
        for segment, entries in enumerate(tensor.entries):
            if entries > self.segment_elements(segment):
                raise ManifestError(
                    f"{entries} entries in a segment of {self.segment_elements(segment)} elements"
                )
        for segment, gaps in enumerate(tensor.gaps):
            if not tensor.entries[segment] <= gaps <= self.segment_elements(segment):
                raise ManifestError(f"{gaps} gaps for {tensor.entries[segment]} entries")

    @property
    def delta(self) -> Delta | None:
        """Of what the stored entries are differences; None where they are elements."""
        return self.tensor.values.delta if isinstance(self.tensor.values, Exact) else None

    def segment_elements(self, segment: int) -> int:
        return min(self.tensor.segment, self.elements - segment * self.tensor.segment)

    def segment_entries(self, segment: int) -> int:
        return self.tensor.entries[segment] if self.tensor.entries else self.segment_elements(segment)

    def parameter_part(self) -> list[Stream]:
        return [
            Stream(self.tensor.codings[i], self.tensor.lengths[i], stream.symbols, stream.width)
            for i, stream in enumerate(self.parameters)
        ]

    def segment_part(self, segment: int) -> list[Stream]:
        tensor, first = self.tensor, len(self.parameters) + segment * self.segment_streams
        codings, lengths = tensor.codings, tensor.lengths
        return [
            Stream(codings[i], lengths[i], symbols, width)
            for i, (symbols, width) in enumerate(self._segment_symbols(segment), first)
        ]

    def _segment_symbols(self, segment: int) -> list[tuple[int, int]]:
        """Number and width of the symbols of each stream of a segment."""
        tensor, entries = self.tensor, self.segment_entries(segment)
        symbols: list[tuple[int, int]] = []
        match tensor.layout:
            case RelativeIndex(bits=bits):
                symbols.append((tensor.gaps[segment], bits))
            case Bitmap():
                symbols.append((-(-self.segment_elements(segment) // 8), 8))
            case Dense():
                pass
        match tensor.values:
            case Exact(split="whole"):
                symbols.append((entries * self.entry_size, 8))
            case Exact():
                symbols += [(entries, 8)] * self.entry_size
            case _:
                symbols.append((entries // self.dimension, tensor.values.bits))
        return symbols

    def part_lengths(self) -> list[int]:
        """Stored bytes of the parameter part, if there is one, and of each segment."""
        lengths, first = self.tensor.lengths, len(self.parameters)
        parts = [sum(lengths[:first])] if first else []
        step = self.segment_streams
        return parts + [sum(lengths[i : i + step]) for i in range(first, len(lengths), step)]


class AssetGeometry:
    """The arithmetic of one asset. Raises ManifestError or LimitExceeded if its numbers do not agree."""

    def __init__(self, asset: Asset, limits: Limits) -> None:
        self.asset = asset
        if asset.size > limits.asset_bytes:
            raise LimitExceeded(
                f"the asset {asset.path!r} has {asset.size} bytes, at most {limits.asset_bytes} are allowed"
            )
        self.segments = -(-asset.size // spec.ASSET_SEGMENT)
        if not len(asset.codings) == len(asset.lengths) == self.segments:
            raise ManifestError(
                f"{len(asset.codings)} codings and {len(asset.lengths)} lengths for {self.segments} segments"
            )
        _check_streams(asset.codings, asset.lengths, limits)

    def stream(self, segment: int) -> Stream:
        count = min(spec.ASSET_SEGMENT, self.asset.size - segment * spec.ASSET_SEGMENT)
        return Stream(self.asset.codings[segment], self.asset.lengths[segment], count, 8)


def _check_streams(codings: bytes, lengths: Sequence[int], limits: Limits) -> None:
    unknown = set(codings) - spec.READABLE_CODINGS
    if unknown:
        raise ManifestError(f"unknown coding {min(unknown)}")
    if max(lengths, default=0) > limits.chunk_bytes:
        raise LimitExceeded(f"a stream of {max(lengths)} bytes, at most {limits.chunk_bytes} are allowed")


class Geometry:
    """The places of all parts of a file whose data ends at ``data_end``.

    Raises ManifestError or LimitExceeded if chunks, parts and the file do not fit together exactly.
    """

    def __init__(self, manifest: Manifest, data_end: int, limits: Limits) -> None:
        lengths = manifest.chunks.lengths
        if len(lengths) > limits.chunks:
            raise LimitExceeded(f"{len(lengths)} chunks, at most {limits.chunks} are allowed")
        if max(lengths, default=0) > limits.chunk_bytes:
            raise LimitExceeded(f"a chunk of {max(lengths)} bytes, at most {limits.chunk_bytes} are allowed")
        self.chunk_offsets: list[int] = []
        at = spec.HEADER.size
        for length in lengths:
            at += spec.padding_before(at, length)
            self.chunk_offsets.append(at)
            at += length
        if at != data_end:
            raise ManifestError(f"the chunks end at offset {at}, the manifest starts at {data_end}")
        self.data_end = data_end
        self.chunk_lengths = lengths
        self.digests = manifest.chunks.digests

        parts: list[int] = []
        self.tensors: dict[str, TensorGeometry] = {}
        self.assets: list[AssetGeometry] = []
        self._first_part: dict[str, int] = {}
        self._first_asset_part: list[int] = []
        streams = 0
        for tensor in manifest.tensors:
            try:
                geometry = TensorGeometry(tensor, limits)
            except FormatError as exc:
                exc.locate(tensor=tensor.name)
                raise
            self.tensors[tensor.name] = geometry
            self._first_part[tensor.name] = len(parts)
            parts += geometry.part_lengths()
            streams += len(tensor.lengths)
        for asset in manifest.assets:
            self.assets.append(AssetGeometry(asset, limits))
            self._first_asset_part.append(len(parts))
            parts += asset.lengths
            streams += len(asset.lengths)
        if streams > limits.streams:
            raise LimitExceeded(f"{streams} streams, at most {limits.streams} are allowed")
        self._place(parts)

    def _place(self, parts: list[int]) -> None:
        """Finds the chunk of each part; none may cross a chunk's end."""
        # Every length is at most 2^31 and there are at most 2^24, so the sums fit.
        ends = np.cumsum(np.array(self.chunk_lengths, dtype=np.int64))
        sizes = np.array(parts, dtype=np.int64)
        part_ends = np.cumsum(sizes)
        total, stored = (int(part_ends[-1]) if parts else 0), (int(ends[-1]) if len(ends) else 0)
        if total != stored:
            raise ManifestError(f"the parts have {total} bytes, the chunks {stored}")
        starts = part_ends - sizes
        chunk = np.searchsorted(ends, starts, side="right")
        filled = sizes > 0
        chunk_starts = ends - np.array(self.chunk_lengths, dtype=np.int64)
        if bool(np.any(part_ends[filled] > ends[chunk[filled]])):
            raise ManifestError("a part crosses the end of a chunk")
        self.part_chunks = np.where(filled, chunk, -1)
        self.part_starts = np.zeros_like(starts)
        self.part_starts[filled] = starts[filled] - chunk_starts[chunk[filled]]
        self._part_lengths = sizes

    @cached_property
    def padding(self) -> list[tuple[int, int]]:
        """Offset and length of the zero bytes before each chunk that has some."""
        found, end = [], spec.HEADER.size
        for offset, length in zip(self.chunk_offsets, self.chunk_lengths, strict=True):
            if offset > end:
                found.append((end, offset - end))
            end = offset + length
        return found

    def held_by(self, chunk: int) -> tuple[list[str], list[str]]:
        """The tensors and the assets (their paths) of which parts are in a chunk."""
        parts = np.flatnonzero(self.part_chunks == chunk)
        owners = [*self._first_part, *(geometry.asset.path for geometry in self.assets)]
        firsts = [*self._first_part.values(), *self._first_asset_part]
        # The last of those that start with the same part is the one that has it: the others have none.
        found = np.unique(np.searchsorted(firsts, parts, side="right") - 1).tolist()
        tensors = len(self._first_part)
        return [owners[i] for i in found if i < tensors], [owners[i] for i in found if i >= tensors]

    def _place_of(self, part: int) -> PartPlace:
        return PartPlace(
            int(self.part_chunks[part]), int(self.part_starts[part]), int(self._part_lengths[part])
        )

    def offset_of(self, place: PartPlace) -> int:
        """Where a part starts in the file. What is wrong about one without bytes stands in the manifest."""
        return self.chunk_offsets[place.chunk] + place.start if place.chunk >= 0 else self.data_end

    def parameter_place(self, name: str) -> PartPlace:
        return self._place_of(self._first_part[name])

    def first_segment(self, name: str) -> int:
        """The number, among all parts, of the first segment of a tensor."""
        return self._first_part[name] + (1 if self.tensors[name].parameters else 0)

    def segment_place(self, name: str, segment: int) -> PartPlace:
        return self._place_of(self.first_segment(name) + segment)

    def asset_place(self, asset: int, segment: int) -> PartPlace:
        return self._place_of(self._first_asset_part[asset] + segment)

    def chunk_digest(self, chunk: int) -> bytes:
        return self.digests[chunk * spec.DIGEST_BYTES : (chunk + 1) * spec.DIGEST_BYTES]

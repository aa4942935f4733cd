"""Layout x values x coding: from a segment's streams to elements (docs/format.md, section 5).

The work is native. What is here says what a tensor's segments are, and decodes the streams that it does not read itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format import layout as spec
from dcz.format.coding import decode_stream
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Affine, Bitmap, Codebook, Exact, RelativeIndex, ScaledCodebook, Vectors
from dcz.format.parameters import groups_of, read_parameters
from dcz.format.range_models import NOTHING, Beside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dcz.format.geometry import Geometry, Stream, TensorGeometry
    from dcz.format.manifest import Layout, Values

__all__ = [
    "STREAMED",
    "TensorBatch",
    "decode_entries",
    "decode_segment",
    "parameter_symbols",
    "positions_of",
    "segment_decoder",
    "segment_symbols",
    "tensor_decoder",
]

_NATIVE: Final = frozenset((spec.RAW, spec.HUFFMAN, spec.CASCADE))
# A whole tensor is decoded long before it is used: segments from this many bytes on are written around the caches, which
# the rest needs.
STREAMED: Final = 256 << 10


def segment_decoder(
    dtype: str, shape: tuple[int, ...], layout: Layout, values: Values, parameters: Mapping[str, np.ndarray]
) -> _native.SegmentDecoder:
    """The decoder of all segments of a tensor. ``parameters``: as ``read_parameters`` gives them; it keeps scales, minimums,
    tables and zero points, and copies the others."""
    gap_bits = layout.bits if isinstance(layout, RelativeIndex) else 8
    itemsize = DTYPES[dtype].itemsize
    if isinstance(values, Exact):
        widening = None if values.stored_dtype is None else (values.stored_dtype, dtype)
        return _native.SegmentDecoder.exact(
            layout.kind, gap_bits, itemsize, values.split, dtype == "bool", values.offset, widening
        )
    if isinstance(values, Vectors):
        size, d = values.size, values.dimension
        places = (shape[-1] if shape else 1) // d if values.per_place else 1
        return _native.SegmentDecoder.vectors(itemsize, size, d, places, parameters["codewords"])
    groups, index = groups_of(values.granularity, shape), parameters.get("index")
    match values:
        case Codebook(size=size):
            return _native.SegmentDecoder.codebook(
                layout.kind, gap_bits, itemsize, size, groups, parameters["centroids"], index
            )
        case ScaledCodebook():
            return _native.SegmentDecoder.scaled_codebook(
                layout.kind, gap_bits, dtype, groups, parameters["scales"], parameters["table"], None, index
            )
        case Affine(bits=bits, zero_point=zero):
            return _native.SegmentDecoder.affine(
                layout.kind,
                gap_bits,
                dtype,
                bits,
                groups,
                parameters["scales"],
                parameters.get("zero points"),
                parameters.get("minimums"),
                zero,
                index,
            )


def parameter_symbols(
    geometry: TensorGeometry, part: memoryview, *, borrow: bool = False
) -> dict[str, np.ndarray]:
    """The symbols (uint8) of each stream of the parameter part, by its role. Raises CorruptStream.

    ``borrow``: scales and minimums that stand in ``part`` as they are, are left there, at whatever address.
    """
    symbols, at = dict[str, np.ndarray](), 0
    for named, stream in zip(geometry.parameters, geometry.parameter_part(), strict=True):
        stored = part[at : at + stream.length]
        raw = stream.coding == spec.RAW and stream.width == 8 and stream.length == stream.symbols
        if borrow and raw and named.role.startswith(("scales", "minimums")):
            symbols[named.role] = np.frombuffer(stored, np.uint8)
        else:
            symbols[named.role] = decode_stream(stored, stream)
        at += stream.length
    return symbols


def tensor_decoder(geometry: TensorGeometry, part: memoryview) -> _native.SegmentDecoder:
    """The decoder of a stored tensor, from its parameter part, which may be empty. Raises CorruptStream."""
    tensor = geometry.tensor
    # Scales and minimums are converted, and so in memory of their own before the part is gone.
    parameters = read_parameters(tensor, parameter_symbols(geometry, part, borrow=True))
    return segment_decoder(tensor.dtype, tensor.shape, tensor.layout, tensor.values, parameters)


def _decoded(
    geometry: TensorGeometry, segment: int, chunk: memoryview, start: int, streams: list[Stream]
) -> dict[int, np.ndarray]:
    """The symbols of the streams that the native decoder does not read itself, by their number."""
    found: dict[int, np.ndarray] = {}
    stored: list[memoryview] = []
    for i, stream in enumerate(streams):
        stored.append(chunk[start : start + stream.length])
        if stream.coding not in _NATIVE and stream.coding != spec.RANGE:
            found[i] = decode_stream(stored[i], stream)
        start += stream.length
    if any(stream.coding == spec.RANGE for stream in streams):
        _decode_ranged(geometry, segment, stored, streams, found)
    return found


def _decode_ranged(
    geometry: TensorGeometry,
    segment: int,
    stored: list[memoryview],
    streams: list[Stream],
    found: dict[int, np.ndarray],
) -> None:
    """Adds the symbols of the range coded streams to ``found``, and of those that their models look at: the positions,
    and the planes above, for which the planes are decoded from the last to the first."""
    first, elements = segment * geometry.tensor.segment, geometry.segment_elements(segment)
    first //= geometry.dimension
    values = geometry.position_streams
    ranged = [i for i, stream in enumerate(streams) if stream.coding == spec.RANGE]
    beside = Beside(first)
    if values:
        bitmap = isinstance(geometry.tensor.layout, Bitmap)
        if 0 not in found:
            found[0] = decode_stream(
                stored[0], streams[0], None, Beside(first, bits=elements) if bitmap else NOTHING
            )
        if ranged[-1] >= values:
            beside = Beside(first, positions_of(geometry, segment, found[0]))
    if len(streams) == values + 1 and isinstance(geometry.tensor.values, Exact):
        beside = beside._replace(step=geometry.entry_size)
    lowest = min((i for i in ranged if i >= values), default=len(streams))
    for i in reversed(range(lowest, len(streams))):
        if i not in found:
            found[i] = decode_stream(stored[i], streams[i], None, beside)
        beside = beside._replace(next=found[i], last=found[len(streams) - 1])


def positions_of(geometry: TensorGeometry, segment: int, symbols: np.ndarray) -> np.ndarray:
    """The positions that the symbols of a position stream stand for (uint32). Raises CorruptStream unless they are as many
    as the segment has entries, and inside of it."""
    elements = geometry.segment_elements(segment)
    layout = geometry.tensor.layout
    if isinstance(layout, RelativeIndex):
        stored = symbols != (1 << layout.bits) - 1
        positions: np.ndarray = (np.cumsum(symbols + stored, dtype=np.int64) - 1)[stored]
    else:
        positions = np.flatnonzero(np.unpackbits(symbols, bitorder="little"))
    if positions.size != geometry.segment_entries(segment) or positions.max(initial=0) >= elements:
        raise CorruptStream("the positions of a segment are not those of its entries")
    return positions.astype(np.uint32, copy=False)


def decode_segment(
    geometry: TensorGeometry,
    decoder: _native.SegmentDecoder,
    segment: int,
    chunk: memoryview,
    start: int,
    out: np.ndarray,
    *,
    streaming: bool = False,
) -> None:
    """All elements of a segment, whose part starts at ``start`` of ``chunk``, into ``out`` (uint8, contiguous, of their
    size), around the caches if ``streaming``. Raises CorruptStream."""
    streams = geometry.segment_part(segment)
    decoder.decode(
        chunk,
        start,
        streams,
        _decoded(geometry, segment, chunk, start, streams),
        segment * geometry.tensor.segment,
        geometry.segment_entries(segment),
        streaming,
        out,
    )


def decode_entries(
    geometry: TensorGeometry, decoder: _native.SegmentDecoder, segment: int, chunk: memoryview, start: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """The stored entries of a segment: positions (uint32, from the segment's start; None for all) and their elements
    (uint8, itemsize bytes each). Raises CorruptStream."""
    streams = geometry.segment_part(segment)
    entries = geometry.segment_entries(segment)
    positions = np.empty(entries, np.uint32) if geometry.position_streams else None
    out = np.empty(entries * geometry.dtype.itemsize, np.uint8)
    decoder.decode_entries(
        chunk,
        start,
        streams,
        _decoded(geometry, segment, chunk, start, streams),
        segment * geometry.tensor.segment,
        geometry.segment_elements(segment),
        positions,
        out,
    )
    return positions, out


def segment_symbols(
    geometry: TensorGeometry, segment: int, chunk: memoryview, start: int
) -> list[tuple[Stream, memoryview, np.ndarray]]:
    """Each stream of a segment, its stored bytes and its symbols (uint8), in the order of the file. Raises CorruptStream."""
    streams = geometry.segment_part(segment)
    decoded, out = _decoded(geometry, segment, chunk, start, streams), []
    for i, stream in enumerate(streams):
        stored = chunk[start : start + stream.length]
        out.append((stream, stored, decoded[i] if i in decoded else decode_stream(stored, stream)))
        start += stream.length
    return out


class TensorBatch:
    """Whole tensors that are decoded chunk by chunk, all that is in a chunk in one native call.

    That is for tensors whose streams the native decoder reads itself, and which are not differences: ``takes`` says so.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._native = _native.Batch(geometry.part_chunks, geometry.part_starts, STREAMED)
        self._names: list[str] = []

    @staticmethod
    def takes(geometry: TensorGeometry) -> bool:
        return geometry.delta is None and _NATIVE.issuperset(geometry.tensor.codings)

    def add(self, name: str, decoder: _native.SegmentDecoder, out: np.ndarray) -> None:
        """``out``: contiguous, of the tensor's size in bytes."""
        geometry = self._geometry.tensors[name]
        tensor, skip = geometry.tensor, len(geometry.parameters)
        bits = 8 if isinstance(tensor.values, Exact) else tensor.values.bits
        self._native.add(
            decoder,
            self._geometry.first_segment(name),
            bits,
            tensor.segment,
            tensor.codings[skip:],
            tensor.lengths[skip:],
            tensor.entries,
            tensor.gaps,
            out,
        )
        self._names.append(name)

    def sizes(self) -> dict[int, int]:
        """For each chunk that is needed (-1: the parts without bytes), the decoded bytes of what is in it."""
        return self._native.sizes()

    def decode(self, chunk: int, data: memoryview) -> None:
        """Decode what is in a chunk. Raises CorruptStream."""
        failure = self._native.decode(chunk, data)
        if failure is None:
            return
        number, segment, reason = failure
        name = self._names[number]
        place = self._geometry.segment_place(name, segment)
        raise CorruptStream(reason, tensor=name, offset=self._geometry.offset_of(place))

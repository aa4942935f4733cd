"""The native core (csrc/). All data passes as contiguous buffers; ``out`` is filled; the GIL is released.

Raises dcz.errors.CorruptStream where data breaks a rule of docs/format.md, and ValueError where sizes do not fit.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dcz.format.dtypes import Buffer

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def force_isa(name: str) -> bool: ...
def huffman_encode(symbols: Buffer, width: int, limit: int, price: int = 0) -> bytes | None: ...
def huffman_estimate(symbols: Buffer) -> int: ...
def huffman_decode(stream: Buffer, width: int, out: Buffer) -> None: ...
def cascade_encode(symbols: Buffer, width: int, limit: int, price: int = 0) -> tuple[bytes, int] | None: ...
def cascade_decode(stream: Buffer, width: int, out: Buffer) -> None: ...
def huffman_code_lengths(stream: Buffer, width: int, count: int) -> bytes:
    """The bits of each of 256 symbols (255: it has no code) in each block, one behind the other."""

def cascade_code_lengths(stream: Buffer, width: int, count: int) -> bytes:
    """As huffman_code_lengths."""

def range_encode(
    symbols: Buffer,
    width: int,
    model: tuple[int, int, int, int],
    start: int,
    positions: Buffer | None,
    step: int,
    bits: int,
    next: Buffer | None,
    last: Buffer | None,
) -> bytes: ...
def range_decode(
    stream: Buffer,
    width: int,
    start: int,
    positions: Buffer | None,
    step: int,
    bits: int,
    next: Buffer | None,
    last: Buffer | None,
    out: Buffer,
) -> None: ...
def check_messagepack(data: Buffer, max_depth: int) -> tuple[int, int]: ...
def table_bytes(stream: Buffer) -> int: ...
def pack(symbols: Buffer, width: int) -> bytes: ...
def unpack(bits: Buffer, width: int, out: Buffer) -> None: ...
def split_planes(data: Buffer, itemsize: int, rotated: bool, out: Buffer, offset: int = 0) -> None: ...
def best_offset(data: Buffer, itemsize: int) -> tuple[int, int]: ...
def widen(data: Buffer, narrow: str, wide: str, out: Buffer) -> None: ...
def narrow(data: Buffer, wide: str, narrow: str, out: Buffer) -> bool: ...
def encode_gaps(mask: Buffer, bits: int) -> bytes: ...
def count_gaps(mask: Buffer) -> list[int]: ...
def encode_delta(kind: str, base: Buffer, elements: Buffer, itemsize: int, out: Buffer) -> None: ...
def decode_delta(kind: str, base: Buffer, itemsize: int, data: Buffer) -> None: ...

_Groups: TypeAlias = tuple[str, int, int]
_Stream: TypeAlias = tuple[int, int, int, int]  # coding, stored bytes, symbols, width

class SegmentDecoder:
    """Decodes the segments of one tensor (format/encodings.py)."""

    @staticmethod
    def exact(
        layout: str,
        gap_bits: int,
        itemsize: int,
        split: str,
        boolean: bool,
        offset: int = 0,
        widening: tuple[str, str] | None = None,
    ) -> SegmentDecoder: ...
    @staticmethod
    def codebook(
        layout: str,
        gap_bits: int,
        itemsize: int,
        size: int,
        groups: _Groups,
        centroids: Buffer,
        index: Buffer | None = None,
    ) -> SegmentDecoder: ...
    @staticmethod
    def affine(
        layout: str,
        gap_bits: int,
        dtype: str,
        bits: int,
        groups: _Groups,
        scales: Buffer,
        zero_points: Buffer | None,
        minimums: Buffer | None = None,
        zero_point: int | None = None,
        index: Buffer | None = None,
    ) -> SegmentDecoder: ...
    @staticmethod
    def scaled_codebook(
        layout: str,
        gap_bits: int,
        dtype: str,
        groups: _Groups,
        scales: Buffer,
        table: Buffer,
        minimums: Buffer | None = None,
        index: Buffer | None = None,
    ) -> SegmentDecoder: ...
    @staticmethod
    def vectors(
        itemsize: int, size: int, dimension: int, places: int, codewords: Buffer
    ) -> SegmentDecoder: ...
    def decode(
        self,
        part: Buffer,
        start: int,
        streams: Sequence[_Stream],
        decoded: Mapping[int, Buffer],
        first: int,
        entries: int,
        streaming: bool,
        out: Buffer,
    ) -> None: ...
    def decode_entries(
        self,
        part: Buffer,
        start: int,
        streams: Sequence[_Stream],
        decoded: Mapping[int, Buffer],
        first: int,
        elements: int,
        positions: Buffer | None,
        out: Buffer,
    ) -> None: ...

class Batch:
    """Whole tensors to be decoded chunk by chunk. ``part_chunks`` and ``part_starts`` (int64): the place of each part of the
    file. Segments of ``streamed`` bytes and more are written around the caches."""

    def __init__(self, part_chunks: Buffer, part_starts: Buffer, streamed: int) -> None: ...
    def add(
        self,
        decoder: SegmentDecoder,
        first_part: int,
        bits: int,
        segment: int,
        codings: bytes,
        lengths: Sequence[int],
        entries: Sequence[int],
        gaps: Sequence[int],
        out: Buffer,
    ) -> None:
        """A tensor, all of whose streams have codings that SegmentDecoder knows. ``first_part``: of its segments. ``bits``:
        of a code. ``codings`` and ``lengths``: of the streams of its segments."""

    def sizes(self) -> dict[int, int]:
        """For each chunk that is needed (-1: the parts without bytes), the decoded bytes of what is in it."""

    def decode(self, chunk: int, data: Buffer) -> tuple[int, int, str] | None:
        """Decode what is in a chunk. Gives the number of a tensor and a segment that are corrupt, and the reason."""

def populate(memory: Buffer) -> None: ...
def shared_values(
    elements: Buffer, itemsize: int, row: int, skip_zeros: bool, limit: int, codes: Buffer
) -> tuple[bytes, int] | None: ...
def looks_quantized(elements: Buffer, itemsize: int, dtype: str, skip_zeros: bool, limit: int) -> bool: ...
def plane_costs(elements: Buffer, itemsize: int, rotated: bool) -> tuple[int, int, int]: ...
def uniform_codes(
    elements: Buffer, dtype: str, row: int, skip_zeros: bool, codes: Buffer
) -> tuple[bytes, str, bytes, int] | None: ...
def histogram(data: Buffer, out: Buffer) -> None: ...

_Points: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]
_Partition: TypeAlias = tuple[npt.NDArray[np.float64], float, float, float, int]

def distinct_points(values: npt.NDArray[np.float32]) -> _Points | None: ...
def binned_points(values: npt.NDArray[np.float32], bins: int) -> _Points | None: ...
def count_words(words: npt.NDArray[np.uint16], counts: npt.NDArray[np.uint64]) -> None: ...
def optimal_partition(
    position: npt.NDArray[np.float64], weight: npt.NDArray[np.float64], k: int, tolerance: float, price: float
) -> _Partition: ...
def lloyd_partition(
    position: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
    initial: npt.NDArray[np.float64],
    max_iterations: int,
) -> _Partition: ...
def assign_nearest(
    values: npt.NDArray[np.float32], centroids: npt.NDArray[np.float64], codes: npt.NDArray[np.uint8]
) -> bool: ...
def squared_error(values: npt.NDArray[np.float32], centroids: npt.NDArray[np.float64]) -> float | None: ...

"""Which symbols a stored tensor consists of, how often each, and the bits that it takes; and how far its entries are apart.

That is what an entropy coder sees. The streams are decoded, but no elements are made of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz import _native
from dcz.format import layout as spec
from dcz.format.encodings import positions_of
from dcz.format.manifest import Exact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dcz.format.geometry import Stream
    from dcz.format.reader import Reader

__all__ = ["LONGEST_RUN", "Runs", "StreamStatistics", "TensorStatistics", "tensor_statistics"]

SYMBOLS: Final = 256
LONGEST_RUN: Final = 255
WIDTHS: Final = range(1, 9)
_BLOCK: Final = 1 << 16  # symbols that share a table (docs/format.md, sections 6.2 and 6.5)
_NO_CODE: Final = 255


@dataclass(slots=True)
class StreamStatistics:
    """All streams of one kind of a tensor: its codes, its gaps, or one plane of it.

    ``counts``: how often each symbol occurs, int64 (256,). ``worded`` and ``word_bits``: how often where it has a code word
    of its own (raw, Huffman, cascade; not range or zstd), and the bits that it takes there. ``stored``: bytes on disk,
    tables included. ``codings``: names of the codings that occur.
    """

    kind: str
    width: int
    counts: np.ndarray = field(default_factory=lambda: np.zeros(SYMBOLS, np.int64))
    worded: np.ndarray = field(default_factory=lambda: np.zeros(SYMBOLS, np.int64))
    word_bits: np.ndarray = field(default_factory=lambda: np.zeros(SYMBOLS, np.int64))
    stored: int = 0
    codings: set[str] = field(default_factory=set)

    @property
    def symbols(self) -> int:
        return int(self.counts.sum())

    @property
    def bits(self) -> float | None:
        """Bits on disk for each symbol, tables included."""
        return 8 * self.stored / self.symbols if self.symbols else None

    @property
    def entropy(self) -> float:
        """Order-0 entropy, in bits for each symbol: what the best fixed code word lengths would come near to."""
        counts = self.counts[self.counts > 0]
        if not counts.size:
            return 0.0
        return float((counts / counts.sum() * np.log2(counts.sum() / counts)).sum())

    def word_length(self, symbol: int) -> float | None:
        """The mean length of a symbol's code word, in bits: tables may differ from block to block."""
        worded = int(self.worded[symbol])
        return float(self.word_bits[symbol]) / worded if worded else None

    def add(self, stream: Stream, stored: memoryview, symbols: np.ndarray) -> None:
        self.stored += stream.length
        if not symbols.size:
            return
        self.codings.add(spec.CODING_NAMES[stream.coding])
        blocks = [symbols[at : at + _BLOCK] for at in range(0, symbols.size, _BLOCK)]
        counts = np.stack([_histogram(block) for block in blocks])
        self.counts += counts.sum(axis=0)
        if stream.coding in (spec.HUFFMAN, spec.CASCADE):
            read = (
                _native.huffman_code_lengths
                if stream.coding == spec.HUFFMAN
                else _native.cascade_code_lengths
            )
            words = np.frombuffer(read(stored, stream.width, stream.symbols), np.uint8).reshape(-1, SYMBOLS)
            bits = np.where(words == _NO_CODE, 0, words).astype(np.int64)
        elif stream.coding == spec.RAW:
            bits = np.full((1, SYMBOLS), stream.width, np.int64)
        else:
            return
        self.worded += counts.sum(axis=0)
        self.word_bits += (counts * bits).sum(axis=0)


def _histogram(symbols: np.ndarray) -> np.ndarray:
    counts = np.zeros(SYMBOLS, np.uint64)
    _native.histogram(symbols, counts)
    return counts.astype(np.int64)


class Runs:
    """How many positions that are not stored stand before each entry, since the one before it in the same row (of ``columns``
    elements), whatever they are stored as.

    ``counts``: int64 (256,), the last one for all runs of LONGEST_RUN and more. ``fillers`` and ``indices`` are the relative
    index of Deep Compression (section 2 there) with ``bits`` bits, which begins anew in each compressed sparse row: an
    entry's index is its run, up to 2^bits - 1; where it is longer, filler zeros each take the place of 2^bits positions,
    as entries of their own with the largest index. What is behind the last entry of a row needs none.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.counts = np.zeros(LONGEST_RUN + 1, np.int64)
        self._indices = {bits: np.zeros(1 << bits, np.int64) for bits in WIDTHS}
        self._fillers = dict.fromkeys(WIDTHS, 0)
        self._next = 0  # position behind the last entry

    def add(self, positions: np.ndarray, start: int) -> None:
        """The entries of the segment that begins with element ``start``; their positions count from there. Segments come
        in order."""
        if not positions.size:
            return
        where = positions.astype(np.int64) + start
        after = np.concatenate([[self._next], where[:-1] + 1])
        runs = where - np.maximum(after, where // self._columns * self._columns)
        self._next = int(where[-1]) + 1
        self.counts += np.bincount(np.minimum(runs, LONGEST_RUN), minlength=LONGEST_RUN + 1)
        few = np.bincount(runs[runs <= LONGEST_RUN], minlength=LONGEST_RUN + 1)
        lengths = np.concatenate([np.arange(LONGEST_RUN + 1), runs[runs > LONGEST_RUN]])
        times = np.concatenate([few, np.ones(lengths.size - few.size, np.int64)])
        for bits in WIDTHS:
            last = (1 << bits) - 1
            self._fillers[bits] += int((times * (lengths >> bits)).sum())
            np.add.at(self._indices[bits], lengths & last, times)

    def begin(self, position: int) -> None:
        """Forget the last entry: the next run begins at ``position``."""
        self._next = position

    def fillers(self, bits: int) -> int:
        return self._fillers[bits]

    def indices(self, bits: int) -> np.ndarray:
        """How often each index occurs, fillers included: int64 (2^bits,)."""
        counts = self._indices[bits].copy()
        counts[-1] += self._fillers[bits]
        return counts


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """``positions``: of the position streams, None for a dense layout. ``values``: of the codes, or of each plane; the last
    one has the upper bits of the exponent. ``runs``: None for a dense layout. ``segments``: how many were looked at, of
    ``of_segments``."""

    name: str
    positions: StreamStatistics | None
    values: tuple[StreamStatistics, ...]
    runs: Runs | None
    segments: int
    of_segments: int


def tensor_statistics(reader: Reader, name: str, *, most_segments: int | None = None) -> TensorStatistics:
    """Decode the streams of a tensor and count. Of many segments, ``most_segments`` are looked at, spread evenly; then
    ``runs`` begin anew with each.

    Raises TensorNotFound or FormatError.
    """
    name = reader.stored_name(name)
    geometry = reader.geometry.tensors[name]
    sparse = geometry.position_streams > 0
    positions: StreamStatistics | None = None
    values: list[StreamStatistics] = []
    runs = (
        Runs(
            max(1, math.prod(geometry.tensor.shape[1:]))
            if len(geometry.tensor.shape) > 1
            else geometry.elements
        )
        if sparse
        else None
    )
    picked = _picked(geometry.segments, most_segments)
    for segment in picked:
        streams = reader.read_symbols(name, segment)
        if not values:
            kinds = _kinds(geometry.tensor.values, len(streams) - geometry.position_streams)
            widths = [stream.width for stream, _, _ in streams]
            values = [StreamStatistics(*each) for each in zip(kinds, widths[-len(kinds) :], strict=True)]
            positions = StreamStatistics(geometry.tensor.layout.kind, widths[0]) if sparse else None
        if positions is not None and runs is not None:
            positions.add(*streams[0])
            start = segment * geometry.tensor.segment
            if len(picked) < geometry.segments:
                runs.begin(start)
            runs.add(positions_of(geometry, segment, streams[0][2]), start)
        for statistics, stream in zip(values, streams[geometry.position_streams :], strict=True):
            statistics.add(*stream)
    return TensorStatistics(name, positions, tuple(values), runs, len(picked), geometry.segments)


def _picked(segments: int, most: int | None) -> Sequence[int]:
    if most is None or segments <= most:
        return range(segments)
    return [i * segments // most for i in range(most)]


def _kinds(values: object, streams: int) -> list[str]:
    if not isinstance(values, Exact):
        return ["codes"]
    return ["bytes"] if streams == 1 else [f"plane {j}" for j in range(streams)]

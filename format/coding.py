"""Streams: symbols to stored bytes and back, behind one signature (docs/format.md, section 6)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import zstandard

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format import layout as spec
from dcz.format.dtypes import view_of
from dcz.format.effort import EFFORTS, Effort
from dcz.format.geometry import Stream, packed_bytes
from dcz.format.range_models import NO_CONTEXT, NOTHING, Beside, RangeContext, encode_range

if TYPE_CHECKING:
    from dcz.format.dtypes import Buffer

__all__ = [
    "BALANCED",
    "Coded",
    "CodingChoice",
    "decode_stream",
    "encode_stream",
    "encode_zstd",
    "tries_range",
    "unzip",
]

CodingChoice: TypeAlias = Literal["auto", "raw", "huffman", "cascade", "zstd", "range"]
Coded: TypeAlias = tuple[int, bytes | np.ndarray]
"""The id of a coding, and the stored bytes: for a raw stream perhaps the symbols themselves, not a copy."""

BALANCED: Final = EFFORTS["balanced"]
_NO_LIMIT: Final = 1 << 62
# Entropy coding below this many bytes saves less than it costs to look at.
_TINY: Final = 8
# A few kilobytes from the middle of a stream tell whether it repeats itself, which no code of single symbols sees.
_ZSTD_SAMPLE: Final = 4 << 10
_ZSTD_PROBE_LEVEL: Final = 1
_ZSTD_PROBE_WORTH: Final = 0.9
# A cascade of a long tail is quick to decode, but percents larger than a Huffman code: whoever wants speed wants a small file,
# too, and to have no codec beside this one that makes smaller ones as quickly.
_CASCADE_AT_MOST: Final = 1.01
_PACKED_LEVEL: Final = 3  # if the caller insists on zstd


def _raw(symbols: np.ndarray, width: int) -> bytes | np.ndarray:
    return symbols if width == 8 else _native.pack(symbols, width)


class _Compressors(threading.local):
    """A compressor for each thread and level: making one costs more than compressing a few kilobytes does."""

    def __init__(self) -> None:
        self._made: dict[int, zstandard.ZstdCompressor] = {}

    def __getitem__(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._made:
            self._made[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return self._made[level]


_compressors: Final = _Compressors()


def encode_zstd(packed: Buffer, level: int) -> bytes:
    """One Zstandard frame as section 6.3 wants it."""
    return _compressors[level].compress(view_of(packed))


def encode_stream(
    symbols: np.ndarray,
    width: int,
    choice: CodingChoice = "auto",
    effort: Effort = BALANCED,
    context: RangeContext = NO_CONTEXT,
) -> Coded:
    """Code ``symbols`` (uint8, contiguous, each below 2**width).

    ``auto`` takes, of raw and the codings in ``_CANDIDATES``, the one whose bytes, with what its decoding is worth at this
    effort, are least; ``range`` the smallest of range, Huffman and raw. ``context``: what the models of ``range`` look at.
    """
    if symbols.size == 0:
        return spec.RAW, b""
    if choice == "zstd":
        return spec.ZSTD, encode_zstd(_raw(symbols, width), _PACKED_LEVEL)
    if choice == "huffman":
        coded = _native.huffman_encode(symbols, width, _NO_LIMIT)
        assert coded is not None
        return spec.HUFFMAN, coded
    if choice == "cascade":
        cascade = _native.cascade_encode(symbols, width, _NO_LIMIT)
        assert cascade is not None
        return spec.CASCADE, cascade[0]
    if choice == "range":
        stored = [
            (spec.RAW, _raw(symbols, width)),
            encode_stream(symbols, width, "huffman"),
            (spec.RANGE, encode_range(symbols, width, context)),
        ]
        return min(stored, key=lambda coded: len(coded[1]))
    size = packed_bytes(symbols.size, width)
    best: Coded | None = None
    if choice == "auto" and size > _TINY:
        cost = float(size)
        for candidate in _CANDIDATES[effort.name]:
            found = candidate(symbols, width, cost, effort, context)
            if found is not None:
                best, cost = found
    return best or (spec.RAW, _raw(symbols, width))


def _try_huffman(
    symbols: np.ndarray, width: int, cost: float, effort: Effort, _context: RangeContext
) -> tuple[Coded, float] | None:
    price = effort.huffman_price
    weight = 1 + price / 128
    # Against being stored, the blocks are weighed one by one; against another coding, all of them.
    limit = cost if cost >= packed_bytes(symbols.size, width) else cost / weight
    coded = _native.huffman_encode(symbols, width, math.ceil(limit), price)
    return None if coded is None else ((spec.HUFFMAN, coded), len(coded) * weight)


def _try_cascade(
    symbols: np.ndarray, width: int, cost: float, effort: Effort, _context: RangeContext
) -> tuple[Coded, float] | None:
    found = _native.cascade_encode(symbols, width, math.ceil(cost), effort.cascade_price)
    if found is None or len(found[0]) > _CASCADE_AT_MOST * _native.huffman_estimate(symbols):
        return None
    return (spec.CASCADE, found[0]), float(found[1])


def _try_zstd(
    symbols: np.ndarray, width: int, cost: float, effort: Effort, _context: RangeContext
) -> tuple[Coded, float] | None:
    piece = symbols[symbols.size // 2 :][:_ZSTD_SAMPLE]
    share = piece.size / symbols.size
    if len(encode_zstd(_raw(piece, width), _ZSTD_PROBE_LEVEL)) > _ZSTD_PROBE_WORTH * cost * share:
        return None
    coded = encode_zstd(_raw(symbols, width), effort.zstd_level)
    # What repeats itself is copied, in next to no time; what does not is decoded byte by byte.
    decoding = effort.zstd_price * len(coded)
    return ((spec.ZSTD, coded), len(coded) + decoding) if len(coded) + decoding < cost else None


def _try_range(
    symbols: np.ndarray, width: int, cost: float, _effort: Effort, context: RangeContext
) -> tuple[Coded, float] | None:
    coded = encode_range(symbols, width, context)
    return ((spec.RANGE, coded), len(coded)) if len(coded) < cost else None


_Candidate: TypeAlias = "Callable[[np.ndarray, int, float, Effort, RangeContext], tuple[Coded, float] | None]"
_CANDIDATES: Final[dict[str, tuple[_Candidate, ...]]] = {
    "fast": (_try_cascade, _try_huffman, _try_zstd),
    "balanced": (_try_huffman, _try_zstd),
    "small": (_try_huffman, _try_zstd, _try_range),
}
"""What each effort tries, in this order: the stream if it costs less than the cost given, and its cost."""


def tries_range(choice: CodingChoice, effort: Effort) -> bool:
    """Whether encode_stream tries the range coder for this choice and effort."""
    return choice == "range" or (choice == "auto" and _try_range in _CANDIDATES[effort.name])


def unzip(stored: Buffer, stream: Stream) -> bytes:
    """The packed symbols of a zstd stream. Raises CorruptStream."""
    size = packed_bytes(stream.symbols, stream.width)
    view = view_of(stored)
    try:
        if zstandard.frame_content_size(view) != size:
            raise CorruptStream("a zstd stream has another size than its symbols")
        data = zstandard.ZstdDecompressor().decompress(view, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise CorruptStream(f"not a Zstandard frame: {exc}") from exc
    if len(data) != size:
        raise CorruptStream("a zstd stream has another size than its symbols")
    return data


def _decode_raw(stored: Buffer, stream: Stream, out: np.ndarray) -> None:
    _native.unpack(stored, stream.width, out)


def _decode_huffman(stored: Buffer, stream: Stream, out: np.ndarray) -> None:
    _native.huffman_decode(stored, stream.width, out)


def _decode_cascade(stored: Buffer, stream: Stream, out: np.ndarray) -> None:
    _native.cascade_decode(stored, stream.width, out)


def _decode_zstd(stored: Buffer, stream: Stream, out: np.ndarray) -> None:
    _native.unpack(unzip(stored, stream), stream.width, out)


_DECODERS: Final[dict[int, Callable[[Buffer, Stream, np.ndarray], None]]] = {
    spec.RAW: _decode_raw,
    spec.HUFFMAN: _decode_huffman,
    spec.ZSTD: _decode_zstd,
    spec.CASCADE: _decode_cascade,
}


def decode_stream(
    stored: Buffer, stream: Stream, out: np.ndarray | None = None, beside: Beside = NOTHING
) -> np.ndarray:
    """The symbols of a stream as uint8, ``stream.symbols`` of them, in ``out`` if given. ``beside``: what is known when the
    stream is decoded. Raises CorruptStream."""
    if out is None:
        out = np.empty(stream.symbols, np.uint8)
    if stream.symbols == 0:
        if stream.coding != spec.RAW or stream.length != 0:
            raise CorruptStream("a stream without symbols is not empty")
        return out
    if stream.coding == spec.RANGE:
        _native.range_decode(stored, stream.width, *beside, out)
    else:
        _DECODERS[stream.coding](stored, stream, out)
    return out

"""Streams: symbols to stored bytes and back, behind one signature (docs/format.md, section 6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import zstandard

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format import layout as spec
from dcz.format.dtypes import view_of
from dcz.format.geometry import Stream, packed_bytes
from dcz.format.range_models import NOTHING, Beside, encode_range

if TYPE_CHECKING:
    from dcz.format.dtypes import Buffer

__all__ = ["Coded", "CodingChoice", "decode_stream", "encode_stream", "encode_zstd", "unzip"]

CodingChoice: TypeAlias = Literal["auto", "raw", "huffman", "zstd", "range"]
Coded: TypeAlias = tuple[int, bytes | np.ndarray]
"""The id of a coding, and the stored bytes: for a raw stream perhaps the symbols themselves, not a copy."""

_NO_LIMIT: Final = 1 << 62
_ZSTD_LEVEL: Final = 3
# Entropy coding below this many bytes saves less than it costs to look at.
_TINY: Final = 8
# A few kilobytes from the middle of a stream tell whether it repeats itself. zstd decodes several times slower than a
# wavelet tree, so it has to be better by a tenth.
_ZSTD_SAMPLE: Final = 8 << 10
_ZSTD_WORTH: Final = 0.9
_ZSTD_PROBE_LEVEL: Final = 1


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


def encode_zstd(packed: Buffer, level: int = _ZSTD_LEVEL) -> bytes:
    """One Zstandard frame as section 6.3 wants it."""
    return _compressors[level].compress(view_of(packed))


def encode_stream(
    symbols: np.ndarray,
    width: int,
    choice: CodingChoice = "auto",
    beside: Beside = NOTHING,
    *,
    columns: int = 1,
    signs: bool = False,
) -> Coded:
    """Code ``symbols`` (uint8, contiguous, each below 2**width).

    ``auto`` is Huffman where it pays and zstd where there is repetition, which no code of single symbols sees; otherwise
    raw. ``range`` is the smallest of range, Huffman and raw. For its models: what is known ``beside`` the stream, the
    symbols of a row, and whether the lowest bits are the signs of floats.
    """
    if symbols.size == 0:
        return spec.RAW, b""
    size = packed_bytes(symbols.size, width)
    if choice == "zstd":
        return spec.ZSTD, encode_zstd(_raw(symbols, width))
    if choice == "huffman":
        coded = _native.huffman_encode(symbols, width, _NO_LIMIT)
        assert coded is not None
        return spec.HUFFMAN, coded
    if choice == "range":
        stored = [(spec.RAW, _raw(symbols, width)), encode_stream(symbols, width, "huffman")]
        return min(
            [*stored, (spec.RANGE, encode_range(symbols, width, beside, columns, signs))],
            key=lambda coded: len(coded[1]),
        )
    best: Coded | None = None
    if choice == "auto" and size > _TINY:
        # A large stream must gain half a percent, or decoding it is time for nothing.
        coded = _native.huffman_encode(symbols, width, size - size // 200 if size > 4096 else size)
        best = None if coded is None else (spec.HUFFMAN, coded)
        piece = symbols[symbols.size // 2 :][:_ZSTD_SAMPLE]
        share = (size if best is None else len(best[1])) / symbols.size
        if len(encode_zstd(_raw(piece, width), _ZSTD_PROBE_LEVEL)) < _ZSTD_WORTH * share * piece.size:
            zipped = encode_zstd(_raw(symbols, width))
            if len(zipped) < _ZSTD_WORTH * share * symbols.size:
                best = spec.ZSTD, zipped
    return best or (spec.RAW, _raw(symbols, width))


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


def _decode_zstd(stored: Buffer, stream: Stream, out: np.ndarray) -> None:
    _native.unpack(unzip(stored, stream), stream.width, out)


_DECODERS: Final[dict[int, Callable[[Buffer, Stream, np.ndarray], None]]] = {
    spec.RAW: _decode_raw,
    spec.HUFFMAN: _decode_huffman,
    spec.ZSTD: _decode_zstd,
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

"""The native decoder of segments, in the pieces that the tests compare: planes, positions, values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tests.native.isas import guarded

from dcz import _native
from dcz.format.dtypes import DTYPES

__all__ = ["bitmap_positions", "dequantize", "gap_positions", "join_planes", "look_up", "scatter"]

Groups = tuple[str, int, int]
RAW, HUFFMAN = 0, 1


def _places(positions: np.ndarray | None, count: int) -> tuple[str, int, list[np.ndarray]]:
    """The layout that stores these positions, the elements that it spans, and its stream, if it has one."""
    if positions is None:
        return "dense", count, []
    elements = int(positions[-1]) + 1 if positions.size else 0
    mask = np.zeros(elements, np.bool_)
    mask[positions] = True
    return "bitmap", elements, [np.packbits(mask, bitorder="little")]


def _entries(
    decoder: _native.SegmentDecoder, streams: list[np.ndarray], start: int, elements: int, size: int
) -> bytes:
    """``size`` bytes of entries, from streams that are decoded already."""
    described = [(RAW, 0, stream.size, 8) for stream in streams]
    positions = np.empty(streams[-1].size, np.uint32) if len(streams) > 1 else None
    with guarded(size) as out:
        decoder.decode_entries(b"", 0, described, dict(enumerate(streams)), start, elements, positions, out)
        return out.tobytes()


def look_up(
    codes: np.ndarray,
    centroids: np.ndarray | bytes,
    size: int,
    itemsize: int,
    groups: Groups,
    start: int,
    positions: np.ndarray | None,
) -> bytes:
    """The centroids of codes that stand at ``positions`` behind ``start``."""
    layout, elements, streams = _places(positions, codes.size)
    decoder = _native.SegmentDecoder.codebook(layout, 8, itemsize, size, groups, centroids)
    return _entries(decoder, [*streams, codes], start, elements, codes.size * itemsize)


def dequantize(
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | bytes | None,
    bits: int,
    dtype: str,
    groups: Groups,
    start: int,
    positions: np.ndarray | None,
) -> bytes:
    """The elements of affine codes that stand at ``positions`` behind ``start``."""
    layout, elements, streams = _places(positions, codes.size)
    decoder = _native.SegmentDecoder.affine(layout, 8, dtype, bits, groups, scales, zero_points)
    return _entries(decoder, [*streams, codes], start, elements, codes.size * DTYPES[dtype].itemsize)


def _positions(layout: str, bits: int, symbols: bytes, elements: int, entries: int) -> list[int]:
    decoder = _native.SegmentDecoder.exact(layout, bits, 1, "whole", False)
    described = [(RAW, 0, len(symbols), 8), (RAW, 0, entries, 8)]
    decoded = {0: symbols, 1: bytes(entries)}
    with guarded(4 * entries) as out:
        decoder.decode_entries(
            b"", 0, described, decoded, 0, elements, out.view(np.uint32), bytearray(entries)
        )
        found: list[int] = out.view(np.uint32).tolist()
        return found


def gap_positions(gaps: bytes, bits: int, elements: int, entries: int) -> list[int]:
    return _positions("relative-index", bits, gaps, elements, entries)


def bitmap_positions(bitmap: bytes, elements: int, entries: int) -> list[int]:
    return _positions("bitmap", 8, bitmap, elements, entries)


def scatter(
    positions: np.ndarray, values: np.ndarray, elements: int, *, streaming: bool, gap_bits: int | None = None
) -> bytes:
    """``values`` at ``positions`` of ``elements`` zeros, by way of a bitmap or of a relative index."""
    mask = np.zeros(elements, np.bool_)
    mask[positions] = True
    if gap_bits is None:
        stored = np.packbits(mask, bitorder="little")
    else:
        stored = np.frombuffer(_native.encode_gaps(mask.view(np.uint8), gap_bits), np.uint8)
    streams = [stored, values.view(np.uint8)]
    layout = "bitmap" if gap_bits is None else "relative-index"
    decoder = _native.SegmentDecoder.exact(layout, gap_bits or 8, values.itemsize, "whole", False)
    described = [(RAW, 0, stream.size, 8) for stream in streams]
    with guarded(elements * values.itemsize) as out:
        decoder.decode(b"", 0, described, dict(enumerate(streams)), 0, values.size, streaming, out)
        return out.tobytes()


def join_planes(
    streams: Sequence[tuple[int, bytes]],
    rotated: bool,
    size: int,
    *,
    streaming: bool = False,
    offset: int = 0,
) -> bytes:
    """``size`` bytes of elements from their planes, each with its coding."""
    itemsize = len(streams)
    split = "rotated" if rotated else "bytes"
    decoder = _native.SegmentDecoder.exact("dense", 8, itemsize, split, False, offset)
    count = size // itemsize
    described = [
        (int(coding) if count else RAW, len(data) if count else 0, count, 8) for coding, data in streams
    ]
    with guarded(size) as out:
        part = b"".join(data for _, data in streams)
        decoder.decode(part, 0, described, {}, 0, count, streaming, out)
        return out.tobytes()

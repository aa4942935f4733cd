"""Files that claim much and hold little: tensors of which almost nothing is stored, made without being decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import zstandard
from tests.reference.dcz_reference_coders import varint
from tests.reference.dcz_reference_manifest import DTYPES
from tests.reference.dcz_reference_writer import Tensor, encode_gaps

__all__ = ["BITMAP", "DENSE", "RELATIVE", "almost_empty", "one_symbol"]

Layout = dict[str, Any]
DENSE: Layout = {"kind": "dense"}
RELATIVE: Layout = {"kind": "relative-index", "bits": 8}
BITMAP: Layout = {"kind": "bitmap"}
_LARGEST = 1 << 24  # bytes of a segment
_BLOCK = 65_536


@cache
def _zipped_zeros(count: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(count))


def almost_empty(
    name: str,
    dtype: str,
    shape: Sequence[int],
    entries: Mapping[int, bytes],
    *,
    layout: Mapping[str, Any] = RELATIVE,
    segment: int | None = None,
    digest: bytes = bytes(32),
) -> Tensor:
    """A tensor of which only ``entries`` (element number: its bytes) are stored, in the largest segments that there are.

    Its digest is wrong unless it is given, so it cannot be verified deeply; its content is not made at all.
    """
    width, count = DTYPES[dtype], prod(shape)
    segment = segment or min(_LARGEST // width, max(1, count))
    by_segment: dict[int, list[int]] = {}
    for position in sorted(entries):
        by_segment.setdefault(position // segment, []).append(position)
    counts, gaps, codings, parts = [], [], bytearray(), []
    lengths: list[int] = []
    for number in range(-(-count // segment)):
        first = number * segment
        inside = [position - first for position in by_segment.get(number, [])]
        if layout["kind"] == "relative-index":
            at = bytes(encode_gaps(inside, 8))
            gaps.append(len(at))
            codings.append(0)
        else:
            elements = min(segment, count - first)
            mask = np.zeros(elements, np.bool_)
            mask[inside] = True
            at = _zipped_zeros(-(-elements // 8))
            if inside:
                at = zstandard.ZstdCompressor().compress(np.packbits(mask, bitorder="little").tobytes())
            codings.append(2)
        values = b"".join(entries[first + position] for position in inside)
        codings.append(0)
        counts.append(len(inside))
        lengths += [len(at), len(values)]
        parts.append(at + values)
    fields: dict[str, Any] = {
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "digest": digest,
        "layout": dict(layout),
        "segment": segment,
        "entries": counts,
        "codings": bytes(codings),
        "lengths": lengths,
    }
    if gaps:
        fields["gaps"] = gaps
    return Tensor(fields, parts, b"")


def one_symbol(name: str, shape: Sequence[int], symbol: int, *, segment: int = _LARGEST) -> Tensor:
    """A dense u8 tensor whose elements are all the same: in a Huffman stream, a code of no bits."""
    count, lengths, parts = prod(shape), [], []
    for first in range(0, count, segment):
        blocks = -(-min(segment, count - first) // _BLOCK)
        tables = bytes([1, symbol, symbol]) + bytes([2]) * (blocks - 1)
        parts.append(varint(len(tables)) + tables)
        lengths.append(len(parts[-1]))
    fields: dict[str, Any] = {
        "name": name,
        "dtype": "u8",
        "shape": list(shape),
        "digest": bytes(32),
        "segment": segment,
        "codings": bytes([1]) * len(lengths),
        "lengths": lengths,
    }
    return Tensor(fields, parts, b"")

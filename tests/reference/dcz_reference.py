"""The reference reader of .dcz files, written from docs/format.md alone.

It reads the whole file and takes every step of section 8, so reading is verifying:

    file = read(data)
    file.tensors["weight"].data     # all elements in C order, little-endian

The bases of a file (section 3.2) are given by their identities; all that could be needed may be given at once:

    file = read(data, bases={identity: data_of_base})

It needs no numpy and shares nothing with the implementation, which is tested against it. ``Refused`` names the section
whose rule was broken.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

from blake3 import blake3
from tests.reference.dcz_reference_manifest import DTYPES, Limits, parse_manifest, unpack
from tests.reference.dcz_reference_range import Beside, decode_stream
from tests.reference.dcz_reference_streams import (
    Refused,
    decode_zstd_frame,
    element_of,
)
from tests.reference.dcz_reference_values import (
    check_values,
    coded_parameters,
    entry_size,
    parameter_sizes,
    read_parameters,
    stored_entries,
)

__all__ = ["Limits", "ReferenceFile", "ReferenceTensor", "Refused", "decode_stream", "read", "verify"]

MAGIC = bytes.fromhex("89 44 43 5A 00 0D 0A 1A")
END_MAGIC = bytes.fromhex("00 44 43 5A 45 4E 44 89")
NO_BASES: Mapping[str, bytes] = {}


@dataclass(frozen=True)
class ReferenceTensor:
    """All elements in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class ReferenceFile:
    """What a file holds; ``manifest`` is as stored, and ``tensors`` has the aliases too."""

    identity: str
    manifest: dict[str, Any]
    tensors: dict[str, ReferenceTensor]
    assets: dict[str, bytes]


@dataclass(frozen=True)
class Stream:
    """What the manifest says of a stream."""

    coding: int
    length: int
    count: int
    width: int


Part = list[Stream]


def verify(data: bytes, bases: Mapping[str, bytes] = NO_BASES) -> str:
    """The identity of a file in which everything is right."""
    return read(data, bases=bases).identity


def read(
    data: bytes, limits: type[Limits] = Limits, bases: Mapping[str, bytes] = NO_BASES, depth: int = 0
) -> ReferenceFile:
    """Take the steps of section 8, in order. ``depth`` counts the files that need this one. Raises: Refused."""
    if depth > limits.chain:
        raise Refused("9", f"there are more than {limits.chain} bases behind each other")
    version = read_header(data)  # step 1
    offset, length, decoded_length, digest = read_footer(data, version, limits)  # step 2
    stored = data[offset : offset + length]
    if blake3(stored).digest() != digest:  # step 3
        raise Refused("2.2", "the manifest does not have the digest that the footer names")
    content = decode_zstd_frame(stored, decoded_length, "3")  # step 4
    manifest = parse_manifest(content, version, limits)

    parts: list[Part] = []  # step 5
    for tensor in manifest["tensors"]:
        parts += tensor_parts(tensor, limits)
    for asset in manifest["assets"]:
        parts += asset_parts(asset, limits)
    if sum(len(part) for part in parts) > limits.streams:
        raise Refused("9", f"there are more than {limits.streams} streams")
    chunks = place_chunks(manifest["chunks"], parts, offset, limits)

    body = read_chunks(data, chunks, manifest["chunks"]["digests"])  # step 6

    streams = Streams(body)  # step 7
    tensors = {}
    for tensor in manifest["tensors"]:
        base = read_base_tensor(tensor, manifest["bases"], limits, bases, depth)
        tensors[tensor["name"]] = read_tensor(tensor, base, streams, limits)
    assets = {asset["path"]: read_asset(asset, streams, limits) for asset in manifest["assets"]}
    tensors |= {alias: tensors[target] for alias, target in manifest["aliases"].items()}
    return ReferenceFile("blake3:" + digest.hex(), unpack(content), tensors, assets)


# 2 File -----------------------------------------------------------------------------------------------------------


def read_header(data: bytes) -> tuple[int, int]:
    if len(data) < 80:
        raise Refused("8", "a file has at least 80 bytes")
    magic, major, minor, zero = struct.unpack("<8sHHI", data[:16])
    if magic != MAGIC:
        raise Refused("2.1", "this is not a .dcz file")
    if major != 1:
        raise Refused("10", f"major version {major} is not known")
    if zero != 0:
        raise Refused("2.1", "the last field of the header is not zero")
    return major, minor


def read_footer(data: bytes, version: tuple[int, int], limits: type[Limits]) -> tuple[int, int, int, bytes]:
    """Offset, stored length, decoded length and digest of the manifest."""
    offset, length, decoded, digest, major, minor, zero, magic = struct.unpack("<QII32sHHI8s", data[-64:])
    if magic != END_MAGIC:
        raise Refused("2.2", "the file does not end with the end magic")
    if (major, minor) != version:
        raise Refused("2.2", "header and footer name two versions")
    if zero != 0:
        raise Refused("2.2", "the field of the footer that must be zero is not")
    if offset < 16 or offset + length + 64 != len(data):
        raise Refused("2.2", "the manifest does not lie between chunks and footer")
    if max(length, decoded) > limits.manifest:
        raise Refused("9", f"the manifest is longer than {limits.manifest} bytes")
    return offset, length, decoded, digest


# 4 Parts and chunks -----------------------------------------------------------------------------------------------


def check_counts(section: str, codings: bytes, lengths: list[int], streams: int) -> None:
    if len(codings) != streams or len(lengths) != streams:
        raise Refused(section, f"{streams} streams, but {len(codings)} codings and {len(lengths)} lengths")


def make_streams(codings: bytes, lengths: list[int], sizes: list[list[tuple[int, int]]]) -> list[Part]:
    """Join what is stored of each stream with its number and width of symbols, part by part."""
    for coding in codings:
        if coding > 4:
            raise Refused("6", f"the coding {coding} is not allowed")
    stored = zip(codings, lengths, strict=True)
    return [[Stream(*next(stored), count, width) for count, width in part] for part in sizes]


def place_chunks(
    chunks: dict[str, Any], parts: list[Part], end: int, limits: type[Limits]
) -> list[tuple[int, int]]:
    """Offset and length of each chunk (section 4.2)."""
    lengths = chunks["lengths"]
    if len(lengths) > limits.chunks:
        raise Refused("9", f"there are more than {limits.chunks} chunks")
    if len(chunks["digests"]) != 32 * len(lengths):
        raise Refused("4.2", "there is not one digest for each chunk")

    ends_of_parts = {0, *accumulate(sum(stream.length for stream in part) for part in parts)}
    if sum(lengths) != max(ends_of_parts):
        raise Refused("4.2", "the chunks are not as long as the parts")
    if not ends_of_parts.issuperset(accumulate(lengths)):
        raise Refused("4.2", "a part crosses the end of a chunk")

    places = []
    at = 16
    for length in lengths:
        if length > limits.chunk_bytes:
            raise Refused("9", f"a chunk is longer than {limits.chunk_bytes} bytes")
        if length >= 4096:
            at = -(-at // 64) * 64
        places.append((at, length))
        at += length
    if at != end:
        raise Refused("4.2", "the manifest does not stand at the end of the last chunk")
    return places


def read_chunks(data: bytes, places: list[tuple[int, int]], digests: bytes) -> bytes:
    """The parts, one behind the other (section 4.2)."""
    body = b""
    before = 16
    for i, (offset, length) in enumerate(places):
        if any(data[before:offset]):
            raise Refused("4.2", f"the padding before chunk {i} is not zero")
        chunk = data[offset : offset + length]
        if blake3(chunk).digest() != digests[32 * i : 32 * i + 32]:
            raise Refused("4.2", f"chunk {i} does not have its digest")
        body += chunk
        before = offset + length
    return body


class Streams:
    """Decodes the streams in their order (section 4.1: the place of every stream follows from the manifest alone)."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def take(self, stream: Stream) -> bytes:
        self.at += stream.length
        return self.body[self.at - stream.length : self.at]

    def next(self, stream: Stream) -> list[int]:
        return decode(stream, self.take(stream), Beside())


def decode(stream: Stream, data: bytes, beside: Beside) -> list[int]:
    return decode_stream(stream.coding, data, stream.count, stream.width, beside)


# 5 Tensors --------------------------------------------------------------------------------------------------------


def tensor_parts(tensor: dict[str, Any], limits: type[Limits]) -> list[Part]:
    """The streams of a tensor, after all that can be checked before data is touched."""
    width, shape = DTYPES[tensor["dtype"]], tensor["shape"]
    layout, values = tensor["layout"], tensor["values"]
    if prod(size for size in shape if size > 0) * width >= 1 << 63:
        raise Refused("5", "the shape is too large")
    count = prod(shape)
    if count * width > limits.tensor_bytes:
        raise Refused("9", f"a tensor has more than {limits.tensor_bytes} bytes")
    segment = tensor["segment"]
    if min(segment, count) * width > 1 << 24:
        raise Refused("5", "a segment holds more than 2^24 bytes")
    if count == 0 and (
        layout != {"kind": "dense"} or values != {"kind": "exact", "split": "whole", "offset": 0}
    ):
        raise Refused("5", "a tensor without elements has the default layout and values")
    check_values(tensor)

    segments = -(-count // segment)
    if segments > limits.streams:
        raise Refused("9", f"there are more than {limits.streams} streams")
    if len(tensor["entries"]) != (0 if layout["kind"] == "dense" else segments):
        raise Refused("5", "the number of entries is not that of segments")
    if len(tensor["gaps"]) != (segments if layout["kind"] == "relative-index" else 0):
        raise Refused("5", "the number of gaps is not that of segments")

    parameters = parameter_sizes(tensor)
    each = (layout["kind"] != "dense") + (
        entry_size(tensor) if values.get("split") in ("bytes", "rotated") else 1
    )
    check_counts("5", tensor["codings"], tensor["lengths"], len(parameters) + segments * each)
    parameter_bytes = sum(-(-number * bits // 8) for number, bits in parameters)
    if parameter_bytes + 4 * coded_parameters(tensor) > limits.parameter_bytes:
        raise Refused("9", f"the parameters of a tensor have more than {limits.parameter_bytes} bytes")
    sizes = [parameters] if parameters else []
    for i in range(segments):
        elements = min(segment, count - i * segment)
        sizes.append(position_sizes(tensor, i, elements) + value_sizes(tensor, i, elements))
    return make_streams(tensor["codings"], tensor["lengths"], sizes)


def read_tensor(
    tensor: dict[str, Any], base: ReferenceTensor | None, streams: Streams, limits: type[Limits]
) -> ReferenceTensor:
    parts = iter(tensor_parts(tensor, limits))
    width, shape, segment = DTYPES[tensor["dtype"]], tensor["shape"], tensor["segment"]
    count = prod(shape)
    parameters = read_parameters(
        tensor, [streams.next(stream) for stream in next(parts)] if parameter_sizes(tensor) else []
    )

    data = b""
    for i, part in enumerate(parts):
        start, elements = i * segment, min(segment, count - i * segment)
        coded = [(stream, streams.take(stream)) for stream in part]
        positions = list(range(elements))
        if tensor["layout"]["kind"] != "dense":
            bits = elements if tensor["layout"]["kind"] == "bitmap" else 0
            symbols = [decode(*coded.pop(0), Beside(start=start, bits=bits))]
            positions = stored_positions(tensor, i, elements, symbols)
        symbols = value_symbols(tensor, start, positions, coded)
        entries = stored_entries(tensor, [start + position for position in positions], parameters, symbols)
        content = [bytes(width)] * elements
        for position, entry in zip(positions, entries, strict=True):
            content[position] = entry
        data += b"".join(content)

    if tensor["dtype"] == "bool" and any(byte > 1 for byte in data):
        raise Refused("5.1" if base is None else "5.5", "a bool is not 0 or 1")
    if base is not None:
        data = add_base(tensor, data, base.data)
    if blake3(data).digest() != tensor["digest"]:
        raise Refused("5", f"the tensor {tensor['name']!r} does not have its digest")
    return ReferenceTensor(tensor["dtype"], tuple(shape), data)


# 5.2 Layouts ------------------------------------------------------------------------------------------------------


def position_sizes(tensor: dict[str, Any], i: int, elements: int) -> list[tuple[int, int]]:
    """Number and width of symbols of the position streams of segment ``i``."""
    kind = tensor["layout"]["kind"]
    if kind == "dense":
        return []
    if tensor["entries"][i] > elements:
        raise Refused("5.2", "a segment has more stored entries than elements")
    if kind == "bitmap":
        return [(-(-elements // 8), 8)]
    if not tensor["entries"][i] <= tensor["gaps"][i] <= elements:
        raise Refused("5.2", "a segment has fewer gaps than stored entries, or more than elements")
    return [(tensor["gaps"][i], tensor["layout"]["bits"])]


def stored_positions(tensor: dict[str, Any], i: int, elements: int, symbols: list[list[int]]) -> list[int]:
    """The positions in segment ``i`` that are stored; takes the position streams off ``symbols``."""
    kind = tensor["layout"]["kind"]
    if kind == "dense":
        return list(range(elements))
    if kind == "bitmap":
        bits = [(symbol >> j) & 1 for symbol in symbols.pop(0) for j in range(8)]
        if any(bits[elements:]):
            raise Refused("5.2", "the bits behind the last element are not zero")
        positions = [position for position, bit in enumerate(bits) if bit]
    else:
        filler = (1 << tensor["layout"]["bits"]) - 1
        gaps = symbols.pop(0)
        positions = []
        p = 0
        for g in gaps:
            p += g
            if g < filler:
                if p >= elements:
                    raise Refused("5.2", "a position is behind the end of the segment")
                positions.append(p)
                p += 1
        if gaps and gaps[-1] == filler:
            raise Refused("5.2", "the last gap is a filler")
    if len(positions) != tensor["entries"][i]:
        raise Refused("5.2", "the number of stored entries is not that of positions")
    return positions


# 5.3 Values -------------------------------------------------------------------------------------------------------


def value_sizes(tensor: dict[str, Any], i: int, elements: int) -> list[tuple[int, int]]:
    """Number and width of symbols of the value streams of segment ``i``."""
    entries = elements if tensor["layout"]["kind"] == "dense" else tensor["entries"][i]
    values = tensor["values"]
    if values["kind"] != "exact":
        return [(entries // values.get("dimension", 1), values["bits"])]
    width = entry_size(tensor)
    return [(entries * width, 8)] if values["split"] == "whole" else [(entries, 8)] * width


def value_symbols(
    tensor: dict[str, Any], start: int, positions: list[int], coded: list[tuple[Stream, bytes]]
) -> list[list[int]]:
    """The symbols of the value streams of a segment: those of the last stream first, because others need them."""
    places = [start + position for position in positions]
    if tensor["values"].get("split") == "whole":
        width = entry_size(tensor)
        places = [place * width + byte for place in places for byte in range(width)]
    if tensor["values"]["kind"] == "vectors":
        d = tensor["values"]["dimension"]
        places = [place // d for place in places[::d]]
    above: list[list[int]] = []
    for stream, data in reversed(coded):
        beside = Beside(places, sparse=tensor["layout"]["kind"] != "dense")
        if above:
            beside = replace(beside, next=above[0], last=above[-1])
        above.insert(0, decode(stream, data, beside))
    return above


# 5.5 Delta --------------------------------------------------------------------------------------------------------


def read_base_tensor(
    tensor: dict[str, Any],
    named: list[dict[str, Any]],
    limits: type[Limits],
    bases: Mapping[str, bytes],
    depth: int,
) -> ReferenceTensor | None:
    """The tensor to which the elements are differences; nothing if they are none."""
    delta = tensor["values"].get("delta")
    if delta is None:
        return None
    identity = "blake3:" + named[delta["base"]]["digest"].hex()
    if identity not in bases:
        raise Refused("5.5", f"the base {identity} is not at hand")
    base = read(bases[identity], limits, bases, depth + 1)
    if base.identity != identity:
        raise Refused("3.2", f"what is given as the base {identity} is {base.identity}")
    name = delta.get("tensor", tensor["name"])
    if name not in base.tensors:
        raise Refused("5.5", f"the base has no tensor {name!r}")
    found = base.tensors[name]
    if (found.dtype, list(found.shape)) != (tensor["dtype"], tensor["shape"]):
        raise Refused("5.5", "the base tensor has another type or shape")
    return found


def add_base(tensor: dict[str, Any], differences: bytes, base: bytes) -> bytes:
    dtype, operation = tensor["dtype"], tensor["values"]["delta"]["operation"]
    width = DTYPES[dtype]
    data = b""
    for at in range(0, len(base), width):
        z, y = (int.from_bytes(each[at : at + width], "little") for each in (differences, base))
        data += element_of(dtype, operation, z, y, 8 * width).to_bytes(width, "little")
    return data


# 7 Assets ---------------------------------------------------------------------------------------------------------

ASSET_SEGMENT = 1 << 20


def asset_parts(asset: dict[str, Any], limits: type[Limits]) -> list[Part]:
    size = asset["size"]
    if size > limits.asset_bytes:
        raise Refused("9", f"an asset has more than {limits.asset_bytes} bytes")
    check_counts("7", asset["codings"], asset["lengths"], -(-size // ASSET_SEGMENT))
    sizes = [[(min(ASSET_SEGMENT, size - start), 8)] for start in range(0, size, ASSET_SEGMENT)]
    return make_streams(asset["codings"], asset["lengths"], sizes)


def read_asset(asset: dict[str, Any], streams: Streams, limits: type[Limits]) -> bytes:
    content = b"".join(bytes(streams.next(stream)) for part in asset_parts(asset, limits) for stream in part)
    if blake3(content).digest() != asset["digest"]:
        raise Refused("7", f"the asset {asset['path']!r} does not have its digest")
    return content

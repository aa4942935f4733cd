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
from tests.reference.dcz_reference_manifest import DTYPES, FLOAT_DTYPES, Limits, parse_manifest, unpack
from tests.reference.dcz_reference_range import Beside, decode_stream
from tests.reference.dcz_reference_streams import (
    FLOATS,
    Refused,
    affine_element,
    decode_zstd_frame,
    element_of,
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
    if sum(-(-number * bits // 8) for number, bits in parameters) > limits.parameter_bytes:
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
    parameters = [streams.next(stream) for stream in next(parts)] if parameter_sizes(tensor) else []
    if tensor["values"]["kind"] == "affine":
        check_scales(tensor, parameters)

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


def check_values(tensor: dict[str, Any]) -> None:
    """What section 5.3 and 5.4 demand of the element type and the shape."""
    values, dtype = tensor["values"], tensor["dtype"]
    kind = values["kind"]
    if kind == "exact":
        if values["split"] == "rotated" and dtype not in FLOAT_DTYPES:
            raise Refused("5.3", f"{dtype} elements cannot be rotated")
        narrower = {"f64": ["f32"], "f32": ["f16", "bf16"]}.get(dtype, [])
        if "stored_dtype" in values and values["stored_dtype"] not in narrower:
            raise Refused("5.3", f"{dtype} elements cannot be stored as {values['stored_dtype']}")
        if values["offset"] and (values["split"] != "rotated" or entry_size(tensor) == 1):
            raise Refused("5.3", "an offset is for rotated entries of several bytes")
        if "delta" in values:
            if "stored_dtype" in values:
                raise Refused("5.3", "differences are not of a narrower type")
            if values["split"] == "rotated":
                raise Refused("5.3", "differences cannot be rotated")
            if dtype == "bool" and values["delta"]["operation"] == "difference":
                raise Refused("5.5", "there is no difference of bool")
        return
    if kind == "affine":
        if dtype not in FLOAT_DTYPES:
            raise Refused("5.3", f"{dtype} elements cannot be affine")
        if (scale_dtype(tensor) == "f64") != (dtype == "f64"):
            raise Refused("5.3", "scales are f64 exactly where the elements are")
    if kind == "codebook" and values["size"] > 1 << values["bits"]:
        raise Refused("5.3", "a codebook is larger than its codes can say")
    granularity = values["granularity"]
    if granularity["kind"] == "channel" and granularity["axis"] >= len(tensor["shape"]):
        raise Refused("5.4", "there is no such axis")


def entry_size(tensor: dict[str, Any]) -> int:
    """The bytes of an exact entry."""
    return DTYPES[tensor["values"].get("stored_dtype", tensor["dtype"])]


def scale_dtype(tensor: dict[str, Any]) -> str:
    return str(tensor["values"].get("scale_dtype", "f64" if tensor["dtype"] == "f64" else "f32"))


def parameter_sizes(tensor: dict[str, Any]) -> list[tuple[int, int]]:
    """Number and width of symbols of the parameter streams."""
    values = tensor["values"]
    if values["kind"] == "exact":
        return []
    groups = group_count(tensor)
    if values["kind"] == "codebook":
        return [(groups * values["size"] * DTYPES[tensor["dtype"]], 8)]
    scales = (groups * DTYPES[scale_dtype(tensor)], 8)
    return [scales, (groups, values["bits"])] if values["zero_points"] else [scales]


def value_sizes(tensor: dict[str, Any], i: int, elements: int) -> list[tuple[int, int]]:
    """Number and width of symbols of the value streams of segment ``i``."""
    entries = elements if tensor["layout"]["kind"] == "dense" else tensor["entries"][i]
    values = tensor["values"]
    if values["kind"] != "exact":
        return [(entries, values["bits"])]
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
    above: list[list[int]] = []
    for stream, data in reversed(coded):
        beside = Beside(places, sparse=tensor["layout"]["kind"] != "dense")
        if above:
            beside = replace(beside, next=above[0], last=above[-1])
        above.insert(0, decode(stream, data, beside))
    return above


def check_scales(tensor: dict[str, Any], parameters: list[list[int]]) -> None:
    for scale in little_endian(parameters[0], DTYPES[scale_dtype(tensor)]):
        affine_element(tensor["dtype"], scale_dtype(tensor), scale, 0)


def stored_entries(
    tensor: dict[str, Any], indices: list[int], parameters: list[list[int]], symbols: list[list[int]]
) -> list[bytes]:
    """The elements at ``indices``, which number all elements of the tensor."""
    values, dtype, width = tensor["values"], tensor["dtype"], DTYPES[tensor["dtype"]]

    if values["kind"] == "exact":
        size = entry_size(tensor)
        if values["split"] == "whole":
            entries = [bytes(symbols[0][i * size : (i + 1) * size]) for i in range(len(indices))]
        else:
            entries = [bytes(planes) for planes in zip(*symbols, strict=True)]
        if values["split"] == "rotated":
            entries = [rotate_right(entry, values["offset"]) for entry in entries]
        if "stored_dtype" in values:
            entries = [widened(entry, values["stored_dtype"], dtype) for entry in entries]
        return entries

    codes = symbols[0]
    if values["kind"] == "codebook":
        size = values["size"]
        if any(code >= size for code in codes):
            raise Refused("5.3", f"a code is not below {size}")
        centroids = little_endian(parameters[0], width)
        numbers = [group_of(tensor, index) * size + code for index, code in zip(indices, codes, strict=True)]
        return [centroids[i].to_bytes(width, "little") for i in numbers]

    scales = little_endian(parameters[0], DTYPES[scale_dtype(tensor)])
    zero_points = parameters[1] if values["zero_points"] else [1 << (values["bits"] - 1)] * len(scales)
    entries = []
    for index, code in zip(indices, codes, strict=True):
        group = group_of(tensor, index)
        element = affine_element(dtype, scale_dtype(tensor), scales[group], code - zero_points[group])
        entries.append(element.to_bytes(width, "little"))
    return entries


def rotate_right(entry: bytes, offset: int) -> bytes:
    bits = 8 * len(entry)
    value = int.from_bytes(entry, "little")
    if offset:
        value = (value - offset * 2 ** (bits - 16)) % 2**bits
    return (value >> 1 | (value & 1) << (bits - 1)).to_bytes(len(entry), "little")


def widened(entry: bytes, narrow: str, wide: str) -> bytes:
    bits = int.from_bytes(entry, "little")
    source, target = FLOATS[narrow], FLOATS[wide]
    number = source.value(bits)
    if number is not None:
        result = target.round(*number)
    else:  # an infinity or a NaN
        sign = bits >> (source.exponent + source.mantissa)
        mantissa = bits % (1 << source.mantissa) << (target.mantissa - source.mantissa)
        result = sign << (target.exponent + target.mantissa) | target.overflow | mantissa
    return result.to_bytes(DTYPES[wide], "little")


def little_endian(data: list[int], width: int) -> list[int]:
    return [int.from_bytes(bytes(data[i : i + width]), "little") for i in range(0, len(data), width)]


# 5.4 Granularity --------------------------------------------------------------------------------------------------


def group_count(tensor: dict[str, Any]) -> int:
    granularity, shape = tensor["values"]["granularity"], tensor["shape"]
    if granularity["kind"] == "tensor":
        return 1
    if granularity["kind"] == "channel":
        return int(shape[granularity["axis"]])
    last = shape[-1] if shape else 1
    return int(prod(shape[:-1]) * -(-last // granularity["size"]))


def group_of(tensor: dict[str, Any], index: int) -> int:
    """The group of the element that is number ``index`` in C order."""
    granularity, shape = tensor["values"]["granularity"], tensor["shape"]
    if granularity["kind"] == "tensor":
        return 0
    if granularity["kind"] == "channel":
        axis = granularity["axis"]
        return int(index // prod(shape[axis + 1 :]) % shape[axis])
    last = shape[-1] if shape else 1
    row, column = divmod(index, last)
    return int(row * -(-last // granularity["size"]) + column // granularity["size"])


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

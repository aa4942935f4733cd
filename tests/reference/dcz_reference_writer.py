"""The reference writer: makes .dcz files from explicit choices, valid ones and, on purpose, invalid ones.

Nothing is chosen here: the caller says which layout, values, codings, tables and chunks there shall be. Wherever a stream
is asked for, a ``Coder`` makes it, so a wrong stream is a matter of a wrong coder (``fixed``). Everything else that a file
says can be changed in a ``Draft`` before ``build``:

    file = draft([tensor("t", "u8", [4], Exact(b"1234"))])
    file.manifest["tensors"][0]["shape"] = [5]
    file.footer["minor"] = 7
    data = file.build()

Section numbers are those of docs/format.md. No bytes depend on the release of a library, unless ``zstd_library`` is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import msgpack
from blake3 import blake3
from tests.reference.dcz_reference import END_MAGIC, MAGIC
from tests.reference.dcz_reference_coders import Coder, RangeCoder, Stream, pack_bits, raw, zstd_frame
from tests.reference.dcz_reference_manifest import DTYPES, Fields
from tests.reference.dcz_reference_range import Beside
from tests.reference.dcz_reference_streams import FLOATS, difference_of
from tests.reference.dcz_reference_values import read_parameters, stored_entries, widened

__all__ = [
    "Affine",
    "Asset",
    "Codebook",
    "Coded",
    "Draft",
    "Exact",
    "ScaledCodebook",
    "Tensor",
    "Values",
    "Vectors",
    "asset",
    "draft",
    "encode_gaps",
    "pack_manifest",
    "tensor",
]

# 5 Tensors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """The bytes of all elements, stored or not; also where the entries are of a narrower type; with ``delta``, the
    differences to ``base`` are what is stored."""

    data: bytes
    split: str = "whole"
    offset: int = 0
    stored_dtype: str | None = None
    delta: Mapping[str, Any] | None = None
    base: bytes = b""

    def differences(self, dtype: str) -> bytes:
        """What stands in the streams: the elements themselves without a delta."""
        if self.delta is None:
            return self.data
        width = DTYPES[dtype]
        out = b""
        for at in range(0, len(self.data), width):
            x, y = (int.from_bytes(each[at : at + width], "little") for each in (self.data, self.base))
            z = difference_of(dtype, self.delta["operation"], x, y, 8 * width)
            out += z.to_bytes(width, "little")
        return out


@dataclass(frozen=True)
class Coded:
    """Scales or minimums as codes (section 5.6), one for each group; outer scales, table and offset as bytes. With a table, the
    kind is codebook."""

    bits: int
    codes: Sequence[int]
    group: int
    outer: bytes
    dtype: str = "f32"
    zero_point: int = 0
    table: bytes | None = None
    offset: bytes | None = None


@dataclass(frozen=True)
class Affine:
    """Codes of the stored entries; scales, and minimums if there are some, as the bytes of their type, group after group, or as
    codes. ``index`` belongs to the granularity ``indexed``."""

    bits: int
    codes: Sequence[int]
    scales: bytes | Coded
    zero_points: Sequence[int] | None = None
    scale_dtype: str | None = None
    granularity: Mapping[str, Any] | None = None
    minimums: bytes | Coded | None = None
    zero_point: int | None = None
    zero_point_bits: int | None = None
    index: Sequence[int] | None = None


@dataclass(frozen=True)
class Codebook:
    """Codes of the stored entries; centroids as the bytes of elements, group after group."""

    bits: int
    size: int
    codes: Sequence[int]
    centroids: bytes
    granularity: Mapping[str, Any] | None = None
    index: Sequence[int] | None = None


@dataclass(frozen=True)
class ScaledCodebook:
    """Codes of the stored entries; the table as bytes; scales as in Affine."""

    bits: int
    size: int
    codes: Sequence[int]
    table: bytes
    scales: bytes | Coded
    scale_dtype: str | None = None
    granularity: Mapping[str, Any] | None = None
    index: Sequence[int] | None = None


@dataclass(frozen=True)
class Vectors:
    """Codes, one for each ``dimension`` elements; codewords as the bytes of elements, table after table."""

    bits: int
    size: int
    dimension: int
    codes: Sequence[int]
    codewords: bytes
    per_place: bool = False


Values = Exact | Affine | Codebook | ScaledCodebook | Vectors


@dataclass
class Tensor:
    """``fields`` is the entry of the manifest, ``parts`` the bytes, ``content`` what a reader shall get."""

    fields: dict[str, Any]
    parts: list[bytes]
    content: bytes


def tensor(
    name: str,
    dtype: str,
    shape: Sequence[int],
    values: Values,
    *,
    layout: Mapping[str, Any] | None = None,
    stored: Sequence[bool] | None = None,
    segment: int | None = None,
    coders: Coder | Sequence[Coder] = raw,
) -> Tensor:
    """Write a tensor, in one segment if ``segment`` does not say otherwise.

    ``stored`` marks the stored entries of a layout that is not dense; without it, those of an exact tensor are the
    elements, or the differences, that are not zero. ``coders`` is one for all streams, or one for each, in the order of section 5.
    """
    layout = dict(layout or {"kind": "dense"})
    dense = layout["kind"] == "dense"
    width, count = DTYPES[dtype], prod(shape)
    segment = segment or max(1, count)
    exact = values.differences(dtype) if isinstance(values, Exact) else b""
    if stored is None:
        if dense:
            stored = [True] * count
        elif isinstance(values, Exact):
            stored = [any(exact[i * width : (i + 1) * width]) for i in range(count)]
        else:
            raise TypeError("which entries are stored?")

    fields: dict[str, Any] = {"name": name, "dtype": dtype, "shape": list(shape)}
    described = describe_values(values)
    full = Fields(1, known_minor=True).values(described)
    step = values.dimension if isinstance(values, Vectors) else 1
    parts: list[list[tuple[Sequence[int], int, Beside]]] = []
    parameters = parameter_streams(values)
    if parameters:
        parts.append([(symbols, bits, Beside()) for symbols, bits in parameters])

    entries, gaps = [], []
    content = b""
    used = 0
    for start in range(0, count, segment):
        mask = stored[start : start + segment]
        positions = [i for i, kept in enumerate(mask) if kept]
        places = [start + position for position in positions]
        streams: list[tuple[Sequence[int], int, Beside]] = []
        values_beside = Beside(places, sparse=layout["kind"] != "dense")
        if layout["kind"] == "bitmap":
            beside = Beside(bits=len(mask), start=start)
            streams.append((list(pack_bits([int(kept) for kept in mask])), 8, beside))
        elif layout["kind"] == "relative-index":
            symbols = encode_gaps(positions, layout["bits"])
            gaps.append(len(symbols))
            streams.append((symbols, layout["bits"], Beside()))
        if isinstance(values, Exact):
            kept_entries = [exact[i * width : (i + 1) * width] for i in (start + p for p in positions)]
            streams += exact_streams(kept_entries, values, dtype, values_beside)
        else:
            codes = values.codes[used : used + len(positions) // step]
            values_beside = replace(values_beside, places=[place // step for place in places[::step]])
            streams.append((codes, values.bits, values_beside))
            whole = {"dtype": dtype, "shape": list(shape), "values": full}
            found = read_parameters(whole, [symbols for symbols, _ in parameters])
            kept_entries = stored_entries(whole, [start + p for p in positions], found, [list(codes)])
        used += len(positions) // step
        entries.append(len(positions))
        segment_content = [bytes(width)] * len(mask)
        for position, entry in zip(positions, kept_entries, strict=True):
            segment_content[position] = entry
        content += b"".join(segment_content)
        parts.append(streams)
    if isinstance(values, Exact) and values.delta is not None:
        content = values.data

    coder_of = iter([coders] * sum(map(len, parts)) if callable(coders) else coders)
    written = [[encode(next(coder_of), *stream) for stream in part] for part in parts]
    fields |= {
        "digest": blake3(content).digest(),
        "layout": layout,
        "values": described,
        "segment": segment,
        "entries": [] if dense else entries,
        "gaps": gaps,
        "codings": bytes(coding for part in written for coding, _ in part),
        "lengths": [len(data) for part in written for _, data in part],
    }
    defaults = {
        "layout": {"kind": "dense"},
        "values": {"kind": "exact", "split": "whole"},
        "segment": 1,
        "entries": [],
        "gaps": [],
        "codings": b"",
        "lengths": [],
    }
    fields = {key: value for key, value in fields.items() if key not in defaults or value != defaults[key]}
    return Tensor(fields, [b"".join(data for _, data in part) for part in written], content)


def encode(coder: Coder, symbols: Sequence[int], width: int, beside: Beside) -> Stream:
    if not symbols:
        return 0, b""
    return coder(symbols, width, beside) if isinstance(coder, RangeCoder) else coder(symbols, width)


def describe_values(values: Values) -> dict[str, Any]:
    described: dict[str, Any]
    if isinstance(values, Exact):
        described = {"kind": "exact", "split": values.split}
        if values.offset:
            described["offset"] = values.offset
        if values.stored_dtype is not None:
            described["stored_dtype"] = values.stored_dtype
        if values.delta is not None:
            described["delta"] = dict(values.delta)
        return described
    described = {"bits": values.bits}
    if not isinstance(values, Affine):
        described["size"] = values.size
    if isinstance(values, Vectors):
        described["dimension"] = values.dimension
        return {"kind": "vectors", **described, **({"per_place": True} if values.per_place else {})}
    if values.granularity is not None and values.granularity["kind"] != "tensor":
        described["granularity"] = dict(values.granularity)
    if isinstance(values, Codebook):
        return {"kind": "codebook", **described}
    if values.scale_dtype is not None:
        described["scale_dtype"] = values.scale_dtype
    if isinstance(values.scales, Coded):
        described["scale_values"] = describe_coded(values.scales)
    if isinstance(values, ScaledCodebook):
        return {"kind": "scaled-codebook", **described}
    if values.zero_points is not None:
        described["zero_points"] = True
    if values.zero_point is not None:
        described["zero_point"] = values.zero_point
    if values.zero_point_bits is not None:
        described["zero_point_bits"] = values.zero_point_bits
    if values.minimums is not None:
        described["minimums"] = True
    if isinstance(values.minimums, Coded):
        described["minimum_values"] = describe_coded(values.minimums)
    return {"kind": "affine", **described}


def describe_coded(how: Coded) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": "affine", "bits": how.bits, "group": how.group}
    if how.dtype != "f32":
        described["dtype"] = how.dtype
    if how.zero_point:
        described["zero_point"] = how.zero_point
    if how.table is not None:
        described |= {"kind": "codebook", "size": len(how.table) // 4}
    if how.offset is not None:
        described["offset"] = True
    return described


def parameter_streams(values: Values) -> list[tuple[Sequence[int], int]]:
    match values:
        case Exact():
            return []
        case Vectors():
            return [(list(values.codewords), 8)]
        case Codebook():
            streams = value_streams(values.centroids)
        case ScaledCodebook():
            streams = [*value_streams(values.scales), (list(values.table), 8)]
        case Affine():
            streams = value_streams(values.scales)
            if values.zero_points is not None:
                streams.append((values.zero_points, values.zero_point_bits or values.bits))
            if values.minimums is not None:
                streams += value_streams(values.minimums)
    if values.index is not None:
        streams.append((list(struct.pack(f"<{len(values.index)}H", *values.index)), 8))
    return streams


def value_streams(how: bytes | Coded) -> list[tuple[Sequence[int], int]]:
    if not isinstance(how, Coded):
        return [(list(how), 8)]
    streams: list[tuple[Sequence[int], int]] = [(how.codes, how.bits)]
    if how.table is not None:
        streams.append((list(how.table), 8))
    streams.append((list(how.outer), 8))
    return streams if how.offset is None else [*streams, (list(how.offset), 8)]


def exact_streams(
    entries: list[bytes], values: Exact, dtype: str, beside: Beside
) -> list[tuple[Sequence[int], int, Beside]]:
    if values.stored_dtype is not None:
        entries = [narrowed(entry, dtype, values.stored_dtype) for entry in entries]
    width = DTYPES[values.stored_dtype or dtype]
    if values.split == "whole":
        bytes_of = [place * width + byte for place in beside.places or () for byte in range(width)]
        return [(list(b"".join(entries)), 8, replace(beside, places=bytes_of))]
    if values.split == "rotated":
        numbers = [int.from_bytes(entry, "little") for entry in entries]
        added = values.offset << (8 * width - 16) if values.offset else 0
        mask = (1 << 8 * width) - 1
        entries = [
            (((n << 1 | n >> (8 * width - 1)) + added) & mask).to_bytes(width, "little") for n in numbers
        ]
    planes = [[entry[plane] for entry in entries] for plane in range(width)]
    above = [replace(beside, next=plane, last=planes[-1]) for plane in planes[1:]]
    return list(zip(planes, [8] * width, [*above, beside], strict=True))


def narrowed(element: bytes, wide: str, narrow: str) -> bytes:
    """The entry whose wide form is ``element``, found among those that could be it."""
    bits = int.from_bytes(element, "little")
    source, target = FLOATS[wide], FLOATS[narrow]
    number = source.value(bits)
    if number is not None:
        entry = target.round(*number)
    else:
        sign = bits >> (source.exponent + source.mantissa)
        mantissa = bits % (1 << source.mantissa) >> (source.mantissa - target.mantissa)
        entry = sign << (target.exponent + target.mantissa) | target.overflow | mantissa
    found = entry.to_bytes(DTYPES[narrow], "little")
    if widened(found, narrow, wide) != element:
        raise TypeError(f"{bits:#x} of {wide} is not a number of {narrow}")
    return found


def encode_gaps(positions: Iterable[int], bits: int) -> list[int]:
    filler = (1 << bits) - 1
    symbols = []
    p = 0
    for position in positions:
        distance = position - p
        symbols += [filler] * (distance // filler) + [distance % filler]
        p = position + 1
    return symbols


# 7 Assets ---------------------------------------------------------------------------------------------------------


@dataclass
class Asset:
    fields: dict[str, Any]
    parts: list[bytes]
    content: bytes


def asset(path: str, content: bytes, *, role: str = "file", coder: Coder = raw) -> Asset:
    written = [
        encode(coder, content[at : at + (1 << 20)], 8, Beside()) for at in range(0, len(content), 1 << 20)
    ]
    fields: dict[str, Any] = {"path": path, "size": len(content), "digest": blake3(content).digest()}
    if role != "file":
        fields["role"] = role
    if written:
        fields["codings"] = bytes(coding for coding, _ in written)
        fields["lengths"] = [len(data) for _, data in written]
    return Asset(fields, [data for _, data in written], content)


# 2, 3 and 4 File --------------------------------------------------------------------------------------------------


def pack_manifest(value: Any) -> bytes:
    """Canonical MessagePack: map keys in ascending order of their UTF-8 bytes, everything in its shortest form."""

    def ordered(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: ordered(value[key]) for key in sorted(value, key=str.encode)}
        return [ordered(item) for item in value] if isinstance(value, list) else value

    packed: bytes = msgpack.packb(ordered(value))
    return packed


@dataclass
class Draft:
    """A file that can still be changed. What is None follows from the rest."""

    tensors: list[Tensor]
    assets: list[Asset]
    manifest: dict[str, Any]
    chunks: list[bytes]
    version: tuple[int, int] = (1, 0)
    header: dict[str, Any] = field(default_factory=dict)
    footer: dict[str, Any] = field(default_factory=dict)
    padding: bytes = b"\0"
    align: bool = True
    lengths: list[int] | None = None
    digests: bytes | None = None
    content: bytes | None = None
    stored: bytes | None = None

    def digests_of_chunks(self) -> bytes:
        return b"".join(blake3(chunk).digest() for chunk in self.chunks)

    def pack(self) -> bytes:
        """The manifest, with its chunks, as MessagePack."""
        chunks = {
            "lengths": [len(chunk) for chunk in self.chunks] if self.lengths is None else self.lengths,
            "digests": self.digests_of_chunks() if self.digests is None else self.digests,
        }
        return pack_manifest(({"chunks": chunks} if self.chunks else {}) | self.manifest)

    def build(self) -> bytes:
        version = {"major": self.version[0], "minor": self.version[1]}
        header = {"magic": MAGIC, **version, "zero": 0} | self.header
        file = struct.pack("<8sHHI", *(header[name] for name in ("magic", "major", "minor", "zero")))
        for chunk in self.chunks:
            if self.align and len(chunk) >= 4096:
                file += self.padding * (-len(file) % 64)
            file += chunk

        content = self.pack() if self.content is None else self.content
        stored = zstd_frame(content) if self.stored is None else self.stored
        footer = {
            "offset": len(file),
            "length": len(stored),
            "decoded": len(content),
            "digest": blake3(stored).digest(),
            **version,
            "zero": 0,
            "magic": END_MAGIC,
        } | self.footer
        return file + stored + struct.pack("<QII32sHHI8s", *footer.values())


def draft(
    tensors: Sequence[Tensor] = (),
    assets: Sequence[Asset] = (),
    *,
    chunk_parts: Sequence[int] | None = None,
    version: tuple[int, int] | None = None,
    **fields: Any,
) -> Draft:
    """Join tensors and assets to a file; ``fields`` are further fields of the manifest. Without ``version``, it is the lowest
    that has what the tensors use, which is also what the file requires (section 10.2).

    ``chunk_parts`` says how many parts each chunk holds; without it, one chunk holds all.
    """
    owners: list[Tensor | Asset] = [*tensors, *assets]
    parts = [part for owner in owners for part in owner.parts]
    chunks = []
    for count in chunk_parts if chunk_parts is not None else [len(parts)]:
        chunks.append(b"".join(parts[:count]))
        parts = parts[count:]
    if parts and any(parts):
        raise TypeError("chunk_parts leaves parts over")
    seen = Fields(1, known_minor=False)
    for one in tensors:
        seen.values(one.fields.get("values", {"kind": "exact", "split": "whole"}))
    version = version or (1, 1 if seen.used else 0)
    manifest: dict[str, Any] = {"version": list(version), "producer": "reference"}
    if seen.used:
        manifest["requires"] = sorted(seen.used)
    if tensors:
        manifest["tensors"] = [tensor.fields for tensor in tensors]
    if assets:
        manifest["assets"] = [asset.fields for asset in assets]
    return Draft(
        list(tensors), list(assets), manifest | fields, [chunk for chunk in chunks if chunk], version
    )

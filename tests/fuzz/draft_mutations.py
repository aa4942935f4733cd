"""Mutations of a file that has been taken apart: afterwards it is built again, and its digests are right."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import prod
from random import Random
from typing import Any, Final, TypeAlias

import zstandard
from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.limits import ReferenceLimits
from tests.fuzz.tree_mutations import TREE_MUTATIONS, CannotApply, TreeMutation, Verbatim, mutated_int, pack
from tests.reference.dcz_reference import asset_parts, tensor_parts
from tests.reference.dcz_reference_coders import (
    Block,
    Coder,
    RangeCoder,
    cascade,
    huffman,
    optimal_lengths,
    raw,
    some_levels,
    zstd,
    zstd_library,
)
from tests.reference.dcz_reference_manifest import DTYPES, parse_manifest, unpack
from tests.reference.dcz_reference_streams import Refused, decode_stream
from tests.reference.dcz_reference_values import parameter_sizes
from tests.reference.dcz_reference_writer import Draft

__all__ = ["DRAFT_MUTATIONS", "CannotApply", "DraftMutation", "File", "take_apart"]


_LONG: Final = (
    10_000  # bytes of a manifest, or symbols of a stream, for which the reference writer takes its time
)


class File(Draft):
    """A draft whose manifest may hold what is not canonical."""

    def pack(self) -> bytes:
        return pack(({"chunks": self.chunk_fields()} if self.chunks else {}) | self.manifest)

    def build(self) -> bytes:
        content = self.pack() if self.content is None else self.content
        if self.stored is None and len(content) > _LONG:
            self.content, self.stored = content, zstandard.ZstdCompressor().compress(content)
        return super().build()

    def chunk_fields(self) -> dict[str, Any]:
        return {"lengths": [len(chunk) for chunk in self.chunks], "digests": self.digests_of_chunks()}


DraftMutation: TypeAlias = Callable[[Random, File, bytes], None]
"""Takes the source of chance, the file, and the bytes of another one."""


def take_apart(data: bytes) -> File:
    """A valid file, so that ``build`` gives one of the same meaning. Raises Refused."""
    offset, length, decoded = struct.unpack_from("<QII", data, len(data) - 64)
    plain = zstandard.ZstdDecompressor().decompress(data[offset : offset + length], max_output_size=decoded)
    tree = unpack(plain)
    major, minor = tree["version"]
    chunks, at = [], 16
    for size in tree.pop("chunks", {}).get("lengths", []):
        at += -at % 64 if size >= 4096 else 0
        chunks.append(data[at : at + size])
        at += size
    return File([], [], tree, chunks, (major, minor))


# Streams


@dataclass
class Stream:
    """One stream of a file: ``fields`` is the tensor or asset that it belongs to, ``index`` its number there."""

    fields: dict[str, Any]
    index: int
    part: int
    chunk: int
    count: int
    width: int
    coding: int
    data: bytes

    def symbols(self) -> list[int]:
        try:
            return decode_stream(self.coding, self.data, self.count, self.width)
        except Refused as exc:
            raise CannotApply from exc


def streams_of(file: File) -> list[Stream]:
    """All streams, in order. Raises CannotApply if an earlier mutation has left none that can be told apart."""
    try:
        manifest = parse_manifest(file.pack(), file.version, ReferenceLimits)
        owners = [
            *(
                (file.manifest["tensors"][i], tensor_parts(one, ReferenceLimits))
                for i, one in enumerate(manifest["tensors"])
            ),
            *(
                (file.manifest["assets"][i], asset_parts(one, ReferenceLimits))
                for i, one in enumerate(manifest["assets"])
            ),
        ]
    except (Refused, TypeError) as exc:
        raise CannotApply from exc
    chunk_of = list(chain.from_iterable([i] * len(chunk) for i, chunk in enumerate(file.chunks)))
    body, at, part = b"".join(file.chunks), 0, 0
    streams = []
    for fields, parts in owners:
        index = 0
        for one in parts:
            for stream in one:
                chunk = chunk_of[at] if at < len(body) else max(0, len(file.chunks) - 1)
                data = body[at : at + stream.length]
                if len(data) != stream.length:
                    raise CannotApply
                streams.append(
                    Stream(fields, index, part, chunk, stream.count, stream.width, stream.coding, data)
                )
                at += stream.length
                index += 1
            part += 1
    return streams


def put_streams(file: File, streams: Sequence[Stream]) -> None:
    """Write the streams, which may have been changed, back into the file."""
    for stream in streams:
        try:
            codings = bytearray(stream.fields["codings"])
            codings[stream.index] = stream.coding
            stream.fields["codings"] = bytes(codings)
            stream.fields["lengths"][stream.index] = len(stream.data)
        except (KeyError, TypeError) as exc:
            raise CannotApply from exc
    numbers = sorted({stream.chunk for stream in streams})
    chunks = [b"".join(one.data for one in streams if one.chunk == number) for number in numbers]
    file.chunks = [chunk for chunk in chunks if chunk]


def _pick(random: Random, file: File) -> tuple[list[Stream], Stream]:
    streams = streams_of(file)
    filled = [stream for stream in streams if stream.data]
    if not filled:
        raise CannotApply
    return streams, random.choice(filled)


def _stream(random: Random, file: File, donor: bytes) -> None:
    """The stored bytes of a stream."""
    streams, stream = _pick(random, file)
    other = random.choice(streams).data or donor
    stream.data = BYTE_MUTATIONS[random.choice(list(BYTE_MUTATIONS))](random, stream.data, other)
    put_streams(file, streams)


def _symbols(random: Random, file: File, donor: bytes) -> None:
    """What a stream says, so that it is coded by the rules but says something else."""
    streams, stream = _pick(random, file)
    stream.coding, stream.data = _encode(
        random, _changed(random, stream.symbols(), stream.width), stream.width
    )
    put_streams(file, streams)


# Numbers in which every float type has some of its own: infinities, NaNs, the largest, the smallest, negative zero.
_PATTERNS: Final = [
    bytes.fromhex(text)
    for text in [
        *("0000807f", "000080ff", "0100807f", "0000c07f", "ffff7f7f", "01000000", "00000080"),
        *(
            "007c",
            "00fc",
            "017c",
            "007e",
            "ff7b",
            "807f",
            "80ff",
            "c07f",
            "7f7f",
            "7f",
            "ff",
            "7e",
            "80",
            "7c",
        ),
        *("000000000000f07f", "000000000000f0ff", "010000000000f07f", "ffffffffffffef7f", "0000000000000080"),
    ]
]


def _changed(random: Random, symbols: list[int], width: int) -> list[int]:
    symbols = list(symbols)
    top = (1 << width) - 1
    at, other = random.randrange(len(symbols)), random.randrange(len(symbols))
    start, stop = min(at, other), max(at, other) + 1
    match random.randrange(9):
        case 0:
            symbols[at] = random.choice([0, 1, top, top - 1, symbols[at] ^ 1]) & top
        case 1:
            symbols[at] = random.randint(0, top)
        case 2:
            symbols[start:stop] = symbols[start:stop][::-1]
        case 3:
            symbols[start:stop] = [random.choice([0, top])] * (stop - start)
        case 4:
            del symbols[at]
        case 5:
            symbols.insert(at, random.choice([0, top, random.randint(0, top)]))
        case 6:
            symbols = [random.randint(0, top) for _ in symbols]
        case 7 if width == 8:
            pattern = random.choice(_PATTERNS)
            at -= at % len(pattern)
            symbols[at : at + len(pattern)] = pattern[: len(symbols) - at]
        case _:
            symbols[at], symbols[other] = symbols[other], symbols[at]
    return symbols


def _encode(random: Random, symbols: list[int], width: int) -> tuple[int, bytes]:
    if not symbols:
        return random.choice([(0, b""), (1, b"\0"), (2, b""), (4, b"\0")])
    coders: list[Coder] = [
        raw,
        zstd,
        zstd_library,
        huffman(),
        huffman(packed=True),
        huffman(Block("stored")),
        RangeCoder(random.choice([1, 3, 300])),
        cascade(),
        cascade(Block("stored")),
    ]
    return random.choice(coders)(symbols, width)


def _coding(random: Random, file: File, donor: bytes) -> None:
    """Another coding for the same symbols, a code that is not the best or not one at all, or just another id."""
    streams, stream = _pick(random, file)
    symbols = stream.symbols()
    match random.randrange(5):
        case 0:
            stream.coding = random.choice([0, 1, 2, 3, 4, 5, 255])
        case 1:
            stream.coding, stream.data = _encode(random, symbols, stream.width)
        case 2:
            more = random.choices(range(1 << stream.width), k=random.randint(1, 20))
            block = Block(packed=random.random() < 0.5, lengths=optimal_lengths([*symbols, *more]))
            stream.coding, stream.data = huffman(block)(symbols, stream.width)
        case 3:
            more = random.choices(range(1 << stream.width), k=random.randint(0, 20))
            levels = some_levels([*symbols, *more])
            if random.random() < 0.3:
                levels[random.choice(list(levels))] += random.choice([-1, 1])
            levels = {symbol: max(1, level) for symbol, level in levels.items()}
            stream.coding, stream.data = cascade(Block(lengths=levels))(symbols, stream.width)
        case _:
            lengths = dict(optimal_lengths(symbols))
            symbol = random.choice(list(lengths))
            lengths[symbol] = max(1, min(15, lengths[symbol] + random.choice([-1, 1, 1, 2])))
            block = Block(packed=random.random() < 0.5, lengths=lengths)
            stream.coding, stream.data = huffman(block)(symbols, stream.width)
    put_streams(file, streams)


def _blocks(random: Random, file: File, donor: bytes) -> None:
    """Descriptors and tables at the start of a Huffman stream or a cascade."""
    streams, stream = _pick(random, file)
    if stream.coding not in (1, 4):
        coder = random.choice([huffman(), huffman(packed=True), cascade()])
        stream.coding, stream.data = coder(stream.symbols(), stream.width)
    size = random.randint(1, 12)
    head, rest = stream.data[:size], stream.data[size:]
    head = BYTE_MUTATIONS[random.choice(["flip-bit", "set-byte", "insert", "delete", "repeat"])](
        random, head, rest
    )
    stream.data = head + rest
    put_streams(file, streams)


def _counts(random: Random, file: File, donor: bytes) -> None:
    """Numbers that have to agree with a stream: entries, gaps, lengths, or two of the lengths."""
    tensors = file.manifest.get("tensors")
    if not isinstance(tensors, list) or not tensors:
        raise CannotApply
    fields = random.choice(tensors)
    if not isinstance(fields, dict):
        raise CannotApply
    numbers = fields.get(random.choice(["entries", "gaps", "lengths", "shape"]))
    if not isinstance(numbers, list) or not numbers:
        raise CannotApply
    at, other = random.randrange(len(numbers)), random.randrange(len(numbers))
    if type(numbers[at]) is not int or type(numbers[other]) is not int:
        raise CannotApply
    by = random.choice([-8, -1, 1, 1, 8])
    numbers[at] = max(0, numbers[at] + by)
    if other != at:
        numbers[other] = max(0, numbers[other] - by)


# Another tensor around the same bytes


def _reshaped(random: Random, file: File, donor: bytes) -> None:
    """Another valid kind of tensor, with as many streams as that has, and often with streams of the right size."""
    tensors = file.manifest.get("tensors")
    if not isinstance(tensors, list) or not all(isinstance(one, dict) for one in tensors):
        raise CannotApply
    before = [dict(one) for one in tensors]
    TREE_MUTATIONS["kind"](random, file.manifest)
    for fields, old in zip(tensors, before, strict=True):
        if fields != old:
            _fit(fields)
    if random.random() < 0.7:
        _refill(random, file)


def _fit(fields: dict[str, Any]) -> None:
    """As many entries, gaps, codings and lengths as the tensor has to have."""
    try:
        width, count, segment = DTYPES[fields["dtype"]], prod(fields["shape"]), fields.get("segment", 1)
        layout = fields.get("layout", {"kind": "dense"})["kind"]
        segments = -(-count // segment)
        if segments > 100:
            raise CannotApply
        entries, gaps, lengths = ([*fields.get(name, [])] for name in ("entries", "gaps", "lengths"))
        codings = fields.get("codings", b"")
        values = {"granularity": {"kind": "tensor"}, "zero_points": False}
        values |= fields.get("values", {"kind": "exact", "split": "whole"})
        parameters = len(parameter_sizes({**fields, "values": values})) if count else 0
    except (KeyError, TypeError, IndexError, ZeroDivisionError) as exc:
        raise CannotApply from exc
    if count == 0:
        fields.pop("layout", None)
        fields.pop("values", None)
        layout, values = "dense", {"kind": "exact", "split": "whole"}
    sparse, relative = layout != "dense", layout == "relative-index"
    each = sparse + (width if values.get("split") in ("bytes", "rotated") else 1)
    streams = parameters + segments * each
    filled = (entries + [min(segment, count)] * segments)[:segments]
    fields["entries"] = filled if sparse else []
    fields["gaps"] = (gaps + filled)[:segments] if relative else []
    rest = sum(lengths[streams:]) if streams else 0
    lengths = (lengths + [0] * streams)[:streams]
    if lengths:
        lengths[-1] += rest
    fields["lengths"] = lengths
    fields["codings"] = (codings + bytes(streams))[:streams]


def _refill(random: Random, file: File) -> None:
    """Give a tensor new streams of the right size, with symbols by chance."""
    streams = streams_of(file)
    if not streams:
        raise CannotApply
    fields = random.choice(streams).fields
    few = random.randint(1, 256)
    if sum(stream.count for stream in streams if stream.fields is fields) > _LONG:
        raise CannotApply
    for stream in streams:
        if stream.fields is not fields:
            continue
        below = min(few, 1 << stream.width)
        symbols = [random.randrange(below) for _ in range(stream.count)]
        stream.coding, stream.data = _encode(random, symbols, stream.width) if symbols else (0, b"")
    put_streams(file, streams)


def _refilled(random: Random, file: File, donor: bytes) -> None:
    _refill(random, file)


# Chunks


def _chunk(random: Random, file: File, donor: bytes) -> None:
    """The bytes of a chunk."""
    if not file.chunks:
        raise CannotApply
    at = random.randrange(len(file.chunks))
    chunk = BYTE_MUTATIONS[random.choice(list(BYTE_MUTATIONS))](random, file.chunks[at], donor)
    file.chunks[at : at + 1] = [chunk] if chunk else []


def _cuts(random: Random, file: File, donor: bytes) -> None:
    """Other ends of the chunks, of which some cross a part."""
    if random.random() < 0.5:
        streams, chunk = streams_of(file), 0
        for before, stream in zip([None, *streams], streams, strict=False):
            chunk += before is not None and before.part != stream.part and random.random() < 0.3
            stream.chunk = chunk
        put_streams(file, streams)
        return
    body = b"".join(file.chunks)
    cuts = sorted({0, len(body), *(random.randint(0, len(body)) for _ in range(random.randint(0, 2)))})
    file.chunks = [body[a:b] for a, b in pairwise(cuts)]


def _chunk_fields(random: Random, file: File, donor: bytes) -> None:
    """What the manifest says of the chunks, or where they stand."""
    fields = file.chunk_fields()
    match random.randrange(4):
        case 0:
            file.manifest["chunks"] = fields
            TREE_MUTATIONS[random.choice(list(TREE_MUTATIONS))](random, fields)
        case 1:
            file.digests = BYTE_MUTATIONS[random.choice(list(BYTE_MUTATIONS))](
                random, fields["digests"], donor
            )
        case 2:
            file.align = False
        case _:
            file.padding = b"\x01"
    if file.digests is not None:
        file.manifest["chunks"] = fields | {"digests": file.digests}


# Manifest, footer and header


def _messagepack(random: Random, file: File, donor: bytes) -> None:
    """The bytes of the manifest behind its compression."""
    file.content = BYTE_MUTATIONS[random.choice(list(BYTE_MUTATIONS))](random, file.pack(), donor)


def _frame(random: Random, file: File, donor: bytes) -> None:
    """The frame that the manifest is stored in."""
    content = file.pack()
    whole = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(content)
    match random.randrange(6):
        case 0 | 1:
            mutation = BYTE_MUTATIONS[random.choice(list(BYTE_MUTATIONS))]
            file.stored = mutation(random, whole, donor)
        case 2:
            file.stored = zstandard.ZstdCompressor(write_content_size=False).compress(content)
        case 3:
            half = len(content) // 2
            file.stored = b"".join(
                zstandard.ZstdCompressor().compress(one) for one in (content[:half], content[half:])
            )
        case 4:
            skipped = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
            file.stored = random.choice([skipped + whole, whole + skipped, skipped])
        case _:
            file.stored = whole
    file.content = content
    if random.random() < 0.3:
        file.footer["decoded"] = min((1 << 32) - 1, max(0, mutated_int(random, len(content))))


def _footer(random: Random, file: File, donor: bytes) -> None:
    data = file.build()
    values = struct.unpack("<QII32sHHI8s", data[-64:])
    names = ("offset", "length", "decoded", "digest", "major", "minor", "zero", "magic")
    fields = dict(zip(names, values, strict=True))
    name = random.choice(names)
    top = {"offset": 64, "length": 32, "decoded": 32, "zero": 32}.get(name, 16)
    if isinstance(fields[name], bytes):
        file.footer[name] = BYTE_MUTATIONS["set-byte"](random, fields[name], donor)
    else:
        file.footer[name] = mutated_int(random, fields[name]) & ((1 << top) - 1)


def _header(random: Random, file: File, donor: bytes) -> None:
    name = random.choice(["magic", "major", "minor", "zero"])
    if name == "magic":
        magic = bytes.fromhex("89 44 43 5A 00 0D 0A 1A")
        file.header[name] = BYTE_MUTATIONS["set-byte"](random, magic, donor)
    else:
        file.header[name] = mutated_int(random, 1) & (0xFFFFFFFF if name == "zero" else 0xFFFF)


def _version(random: Random, file: File, donor: bytes) -> None:
    """Another version, said by header, footer and manifest alike, and fields that version 1.0 does not have."""
    file.version = (random.choice([1, 1, 1, 1, 0, 2, 65_535]), random.choice([0, 1, 7, 65_535]))
    file.manifest["version"] = list(file.version)
    if random.random() < 0.2:
        file.manifest["requires"] = random.choice([[], ["range"], ["b", "a"], [1], "range", ["\x1b[1m"]])
    if random.random() < 0.8:
        value: Any = {"a": [1, b"2", {"b": 1.5, "c": True}], "z": "text"}
        places = [file.manifest, *file.manifest.get("tensors", []), *file.manifest.get("assets", [])]
        place = random.choice([one for one in places if isinstance(one, dict)])
        place["zz"] = value
        if random.random() < 0.6:
            holder = {"zz": value}
            TREE_MUTATIONS[random.choice(["form", "type", "field"])](random, holder)
            place["zz"] = holder["zz"] if "zz" in holder else Verbatim(b"\xc0")


def _tree(mutation: TreeMutation) -> DraftMutation:
    def apply(random: Random, file: File, donor: bytes) -> None:
        if random.random() < 0.1 and file.chunks:
            file.manifest["chunks"] = file.chunk_fields()
        mutation(random, file.manifest)

    return apply


DRAFT_MUTATIONS: Final[Mapping[str, DraftMutation]] = {
    "stream": _stream,
    "symbols": _symbols,
    "coding": _coding,
    "blocks": _blocks,
    "counts": _counts,
    "reshaped": _reshaped,
    "refilled": _refilled,
    "chunk": _chunk,
    "cuts": _cuts,
    "chunk-fields": _chunk_fields,
    **{f"manifest-{name}": _tree(mutation) for name, mutation in TREE_MUTATIONS.items()},
    "manifest-bytes": _messagepack,
    "manifest-frame": _frame,
    "footer": _footer,
    "header": _header,
    "version": _version,
}

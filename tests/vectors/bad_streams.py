"""The bad conformance vectors, part 5: streams and what they hold (sections 5 to 7, step 7 of section 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from tests.reference.dcz_reference_coders import (
    Block,
    Coder,
    encode_table,
    fixed,
    huffman,
    pack_bits,
    raw,
    zstd_frame,
)
from tests.reference.dcz_reference_writer import Affine, Codebook, Draft, Exact, Tensor, asset, draft, tensor
from tests.vectors.bad_cases import CORRUPT, DIGEST, Case, simple

__all__ = ["stream_cases"]


def stream_cases() -> Iterator[Case]:
    yield from raw_cases()
    yield from huffman_table_cases()
    yield from huffman_data_cases()
    yield from zstd_cases()
    yield from layout_cases()
    yield from value_cases()
    yield from digest_cases()


def one(name: str, section: str, *tensors: Tensor, errors: tuple[str, ...] = (CORRUPT,)) -> Case:
    return Case(name, section, 7, errors, draft(tensors).build())


def stream(coding: int, data: bytes, symbols: Sequence[int] = (7, 7, 9, 7, 9), width: int = 8) -> Tensor:
    """A tensor whose one stream of codes, of ``width`` bits, is ``data``."""
    if width == 8:
        return tensor("t", "u8", [len(symbols)], Exact(bytes(symbols)), coders=fixed(coding, data))
    values = Codebook(width, 1 << width, symbols, bytes(range(1 << width)))
    return tensor("t", "u8", [len(symbols)], values, coders=[raw, fixed(coding, data)])


# 6.1 raw ----------------------------------------------------------------------------------------------------------


def raw_cases() -> Iterator[Case]:
    yield one("raw-too-short", "6.1", stream(0, b"\7\7\x09\7"))
    yield one("raw-too-long", "6.1", stream(0, b"\7\7\x09\7\x09\0"))
    yield one("raw-empty", "6.1", stream(0, b""), stream_after())
    yield one("raw-of-3-bits-too-short", "6.1", stream(0, b"\0", [0, 0, 0], 3))
    yield one("raw-of-3-bits-too-long", "6.1", stream(0, b"\0\0\0", [0, 0, 0], 3))
    yield one("raw-padding-bit", "6.1", stream(0, b"\0\x80", [0, 0, 0], 3))
    yield one("raw-first-padding-bit", "6.1", stream(0, b"\0\x02", [0, 0, 0], 3))
    nothing = tensor("t", "i8", [3], Exact(bytes(3)), layout={"kind": "relative-index", "bits": 1})
    for coding, data in (
        (1, b""),
        (2, b""),
        (4, b""),
        (0, b"\0"),
        (1, b"\0"),
        (2, zstd_frame(b"")),
        (4, b"\0"),
    ):
        written = Tensor(
            nothing.fields | {"codings": bytes([0, coding]), "lengths": [0, len(data)]}, [data], b""
        )
        yield one(f"no-symbols-of-coding-{coding}-and-{len(data)}-bytes", "6", written)


def stream_after() -> Tensor:
    return tensor("u", "u8", [1], Exact(b"x"))


# 6.2 huffman ------------------------------------------------------------------------------------------------------

# The symbols 7 7 9 7 9. Lengths: 7 has 1 bit, 8 no code, 9 the same as 7.
TABLE = bytes([7, 9]) + pack_bits([1, 0, 0, 0, 1, 1, 0, 0])
DATA = pack_bits([0, 0, 1, 0, 1])


def coded(tables: bytes, data: bytes = DATA) -> bytes:
    return bytes([len(tables)]) + tables + data


def huffman_table_cases() -> Iterator[Case]:
    def case(name: str, data: bytes, symbols: Sequence[int] = (7, 7, 9, 7, 9), width: int = 8) -> Case:
        return one(f"huffman-{name}", "6.2", stream(1, data, symbols, width))

    def table(name: str, first: int, last: int, bits: Sequence[int], width: int = 8) -> Case:
        """A table with these bits behind first and last; the symbols do not matter, for the table is refused before."""
        return case(
            f"table-{name}", coded(bytes([1, first, last]) + pack_bits(bits), bytes(9)), [7] * 9, width
        )

    good = b"\1" + TABLE
    yield case("empty", b"")
    yield case("only-varint", b"\0")
    yield case("varint-without-end", b"\x80")
    yield case("varint-not-shortest", bytes([len(good) | 0x80, 0]) + good + DATA)
    yield case("varint-of-6-bytes", bytes([len(good) | 0x80, 0x80, 0x80, 0x80, 0x80, 0]) + good + DATA)
    yield case("varint-of-2-to-the-32", b"\x80\x80\x80\x80\x10" + good + DATA)
    yield case("varint-of-35-bits", bytes([len(good) | 0x80]) + b"\x80\x80\x80\x70" + good + DATA)
    yield case("table-length-above-stream", bytes([len(good) + 2]) + good + DATA)
    yield case("table-length-largest", b"\xff\xff\xff\xff\x0f" + good + DATA)
    yield case("table-length-too-small", bytes([len(good) - 1]) + good + DATA)
    yield case("table-length-too-large", coded(good + b"\0"))

    yield case("mode-3", coded(b"\3" + TABLE))
    for bit in range(3, 8):
        yield case(f"reserved-bit-{bit}", coded(bytes([1 | 1 << bit]) + TABLE))
    yield case("stored-and-packed", coded(b"\4", bytes([7, 7, 9, 7, 9])))
    yield case("same-table-without-table", coded(b"\2"))
    yield case("descriptor-missing", coded(b"", bytes([7, 7, 9, 7, 9])))
    yield case("descriptor-twice", coded(good + b"\2"))
    yield case("table-missing", coded(b"\1"))
    yield case("table-without-last", coded(b"\1\7"))
    yield case("table-without-lengths", coded(b"\1\7\x09"))
    # 7 to 12, all given in full, but the table ends within the lengths.
    full = [1, 1, 1, 1, 1, 0, 0]
    yield table("ends-in-lengths", 7, 12, [1, 1, 0, 0, *full, *full][:16])

    yield table("last-below-first", 9, 7, [1, 0, 0, 0, 1, 1, 0, 0])
    yield table("last-above-width", 6, 8, [1, 0, 0, 0, 1, 1, 0, 0], 3)
    yield table("only-symbol-above-width", 8, 8, [], 3)
    yield table("first-without-code", 7, 9, [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
    yield table("first-without-code-then-one-more", 7, 9, [0, 0, 0, 0, 1, 0, 0, 0])
    yield table("last-without-code", 7, 9, [1, 0, 0, 0, 0, 1, 1, 0])
    yield table("length-0-in-full", 7, 9, [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0])
    yield table("length-0-by-one-less", 7, 9, [1, 0, 0, 0, 1, 0, 1, 0])
    yield table("length-16-by-one-more", 7, 9, [1, 1, 1, 1, 1, 0, 0, 0])
    yield table("over-filled", 7, 9, [1, 0, 0, 0, 0, 0])
    yield table("over-filled-by-2-to-the-minus-15", 0, 15, over_filled())
    yield table("under-filled", 7, 8, [1, 0, 0, 0, 1, 0, 0])
    yield table("under-filled-by-2-to-the-minus-15", 0, 14, under_filled())
    yield table("under-filled-two-of-two-bits", 7, 8, [0, 1, 0, 0, 0])
    yield case(
        "table-padding-bits", coded(b"\1\7\x08" + pack_bits([1, 0, 0, 0, 0, 0, 0, 1])), [7, 7, 8, 7, 8]
    )
    # Two blocks, but one descriptor.
    yield case("descriptor-of-second-block-missing", coded(b"\1\7\7", b""), [7] * 65_537)
    yield case("descriptor-of-block-that-is-not", coded(b"\1\7\7\2", b""), [7] * 65_536)
    yield case("same-table-after-stored", coded(b"\0\2", b""), [7] * 65_537)


def over_filled() -> list[int]:
    """Lengths 1 to 14, then 14 again and 15: too many by one code of 15 bits."""
    return [1, 0, 0, 0] + [1, 0, 0] * 13 + [0] + [1, 0, 0]


def under_filled() -> list[int]:
    """Lengths 1 to 15: one code of 15 bits is left."""
    return [1, 0, 0, 0] + [1, 0, 0] * 14


def huffman_data_cases() -> Iterator[Case]:
    def case(name: str, data: bytes, symbols: Sequence[int] = (7, 7, 9, 7, 9), width: int = 8) -> Case:
        return one(f"huffman-{name}", "6.2", stream(1, data, symbols, width))

    aligned, packed = b"\1" + TABLE, b"\5" + TABLE
    yield case("data-missing", coded(aligned, b""))
    yield case("data-too-long", coded(aligned, DATA + b"\0"))
    yield case("packed-data-missing", coded(packed, b""))
    yield case("packed-data-too-long", coded(packed, DATA + b"\0"))
    yield case("data-padding-bit", coded(aligned, bytes([DATA[0] | 0x20])))
    yield case("packed-data-padding-bit", coded(packed, bytes([DATA[0] | 0x80])))
    yield case("only-symbol-with-data", coded(b"\1\7\7", b"\0"), [7] * 5)

    # Codes 0, 10, 110, 111 for 1, 2, 3, 4: three nodes, of 6, 4 and 2 bits.
    lengths = {1: 1, 2: 2, 3: 3, 4: 3}
    symbols = [1, 2, 3, 1, 4, 2]
    nodes = [pack_bits(bits) for bits in ([0, 1, 1, 0, 1, 1], [0, 1, 1, 0], [0, 1])]
    tables = b"\1" + encode_table(lengths)
    for i in range(3):
        wrong = list(nodes)
        wrong[i] = bytes([wrong[i][0] | 0x80])
        yield case(f"padding-of-node-{i}", coded(tables, b"".join(wrong)), symbols)
    yield case("node-missing", coded(tables, b"".join(nodes[:2])), symbols)
    yield case("packed-though-aligned", coded(b"\5" + tables[1:], b"".join(nodes)), symbols)
    all_bits = pack_bits([0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1])
    yield case("aligned-though-packed", coded(tables, all_bits), symbols)

    yield case("stored-data-too-short", coded(b"\0", bytes([7, 7, 9, 7])))
    yield case("stored-data-too-long", coded(b"\0", bytes([7, 7, 9, 7, 9, 0])))
    yield one("huffman-stored-padding-bit", "6.1", stream(1, coded(b"\0", b"\0\x80"), [0, 0, 0], 3))
    yield case("second-block-missing", coded(b"\1\7\7\0", b""), [7] * 65_537)


# 6.3 zstd ---------------------------------------------------------------------------------------------------------


def zstd_cases() -> Iterator[Case]:
    symbols = bytes([7, 7, 9, 7, 9])
    frame = zstd_frame(symbols)

    def case(
        name: str, data: bytes, content: Sequence[int] = symbols, width: int = 8, section: str = "6.3"
    ) -> Case:
        return one(f"zstd-{name}", section, stream(2, data, content, width))

    def header(descriptor: int, fields: bytes) -> bytes:
        return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields + frame[6:]

    yield one("zstd-empty", "6.3", stream(2, b""), stream_after())
    yield case("not-a-frame", symbols)
    yield case("only-magic", frame[:4])
    yield case("truncated", frame[:-1])
    yield case("truncated-header", frame[:5])
    yield case("trailing-byte", frame + b"\0")
    yield case("twice", frame + frame)
    yield case("skippable-before", b"\x50\x2a\x4d\x18\x01\0\0\0x" + frame)
    yield case("skippable-behind", frame + b"\x50\x2a\x4d\x18\x01\0\0\0x")
    yield case("without-content-size", header(0x00, b"\x00"))
    yield case("with-dictionary", header(0x21, b"\7\5"))
    yield case("checksum", header(0x24, b"\5") + bytes(4))
    yield case("reserved-block", frame[:6] + bytes([frame[6] | 6]) + frame[7:])
    yield case("content-size-too-small", zstd_frame(symbols[:4]))
    yield case("content-size-too-large", zstd_frame(symbols + b"\0"))
    yield case("holds-less-than-it-says", header(0x20, b"\6"), [*symbols, 0])
    yield case("holds-more-than-it-says", header(0x20, b"\4"), symbols[:4])
    yield case("content-size-of-2-to-the-60", header(0xE0, struct.pack("<Q", 1 << 60)))
    bomb = b"".join((1 << 1 | 131_072 << 3).to_bytes(3, "little") + b"\7" for _ in range(512))
    yield case("bomb", frame[:6] + bomb + frame[6:])
    yield case("padding-bit", zstd_frame(b"\0\x80"), [0, 0, 0], 3, section="6.1")


# 5.2 Layouts ------------------------------------------------------------------------------------------------------


def layout_cases() -> Iterator[Case]:
    content = Exact(bytes([0, 1, 0, 0, 0, 2, 0, 0, 0]))

    def gaps(name: str, *symbols: int, entries: int = 2, bits: int = 2, elements: int = 9) -> Case:
        data = Exact(content.data[:elements])
        written = tensor(
            "t",
            "u8",
            [elements],
            data,
            layout={"kind": "relative-index", "bits": bits},
            coders=[fixed(*raw(symbols, bits)), raw],
        )
        values = written.parts[0][written.fields["lengths"][0] :].ljust(entries, b"\3")[:entries]
        stored = raw(symbols, bits)[1] + values
        fields = written.fields | {"gaps": [len(symbols)], "entries": [entries]}
        fields |= {"lengths": [len(stored) - entries, entries], "codings": bytes(2)}
        return one(f"relative-index-{name}", "5.2", Tensor(fields, [stored], data.data))

    yield gaps("position-at-end", 1, 3, 2, 3, 1, entries=3)
    yield gaps("position-behind-end", 1, 3, 3, 2)
    yield gaps("position-behind-end-after-fillers", 1, 3, 3, 3, 0)
    yield gaps("filler-last", 1, 3, 0, 3)
    yield gaps("only-fillers", 3, 3, entries=0)
    yield gaps("too-few-entries", 1, 3, 0, entries=1)
    yield gaps("too-many-entries", 1, 3, 0, entries=3)
    yield gaps("of-8-bits-behind-end", 1, 255, 0, bits=8)

    def bitmap(name: str, symbols: bytes, entries: int, size: int = 9) -> Case:
        written = tensor("t", "u8", [size], Exact(content.data[:size]), layout={"kind": "bitmap"})
        stored = symbols + b"\1\2\3\4"[:entries]
        fields = written.fields | {
            "entries": [entries],
            "codings": bytes(2),
            "lengths": [len(symbols), entries],
        }
        return one(f"bitmap-{name}", "5.2", Tensor(fields, [stored], content.data[:size]))

    yield bitmap("too-few-ones", b"\x02\0", 2)
    yield bitmap("too-many-ones", b"\x22\x01", 2)
    yield bitmap("no-ones", b"\0\0", 2)
    yield bitmap("ones-though-no-entries", b"\x22\0", 0)
    yield bitmap("bit-behind-end", b"\x22\x02", 2)
    yield bitmap("bit-behind-end-counted", b"\x02\x02", 2)
    yield bitmap("last-bit", b"\x22\x80", 2)


# 5.1 and 5.3 Values -----------------------------------------------------------------------------------------------


def value_cases() -> Iterator[Case]:
    yield one("bool-2", "5.1", tensor("t", "bool", [3], Exact(b"\1\0\2")))
    yield one("bool-255-in-planes", "5.1", tensor("t", "bool", [3], Exact(b"\1\0\xff", "bytes")))
    yield one("bool-2-sparse", "5.1", tensor("t", "bool", [3], Exact(b"\0\2\0"), layout={"kind": "bitmap"}))
    yield one("bool-2-by-codebook", "5.1", tensor("t", "bool", [2], Codebook(1, 2, [1, 0], b"\0\2")))

    for bits, size in ((1, 1), (2, 3), (8, 255)):
        centroids = bytes(range(size))
        good = tensor("t", "u8", [3], Codebook(bits, size, [0, size - 1, 0], centroids))
        stream = raw([0, size, 0], bits)[1]
        parts = [good.parts[0], stream]
        yield one(f"code-{size}-of-{size}-centroids", "5.3", Tensor(good.fields, parts, good.content))
    good = tensor("t", "u8", [2, 2], Codebook(2, 3, [0, 1, 2, 0], bytes(6), {"kind": "channel", "axis": 0}))
    yield one(
        "code-of-next-group",
        "5.3",
        Tensor(good.fields, [good.parts[0], raw([0, 3, 2, 0], 2)[1]], good.content),
    )

    scales = {
        "f64-infinite": ("f64", None, "000000000000f07f"),
        "f64-nan": ("f64", None, "010000000000f0ff"),
        "f32-infinite": ("f32", "f32", "0000807f"),
        "f32-minus-infinite": ("f32", "f32", "000080ff"),
        "f32-nan": ("bf16", None, "0000c07f"),
        "f32-signalling-nan": ("f32", None, "0100807f"),
        "f16-infinite": ("f32", "f16", "007c"),
        "f16-nan": ("f16", "f16", "01fe"),
        "bf16-infinite": ("f32", "bf16", "80ff"),
        "bf16-nan": ("bf16", "bf16", "c07f"),
    }
    for name, (dtype, scale_dtype, bits_of) in scales.items():
        scale = bytes.fromhex(bits_of)
        good = tensor("t", dtype, [2], Affine(1, [1, 1], bytes(len(scale)), None, scale_dtype))
        yield one(f"scale-{name}", "5.3", Tensor(good.fields, [scale, good.parts[1]], good.content))
    # Of two groups, the second is not used by any entry.
    good = tensor(
        "t",
        "f32",
        [2, 1],
        Affine(1, [1], bytes(8), None, None, {"kind": "channel", "axis": 0}),
        layout={"kind": "bitmap"},
        stored=[True, False],
    )
    yield one(
        "scale-of-unused-group-infinite",
        "5.3",
        Tensor(good.fields, [bytes(6) + b"\x80\x7f", good.parts[1]], b""),
    )


# 5 and 7 Digests --------------------------------------------------------------------------------------------------


def digest_cases() -> Iterator[Case]:
    def case(name: str, section: str, file: Draft) -> Case:
        return Case(name, section, 7, (DIGEST,), file.build())

    file = simple()
    file.manifest["tensors"][0]["digest"] = bytes(32)
    yield case("digest-of-tensor", "5", file)
    file = draft([tensor("t", "u8", [0], Exact(b""))])
    file.manifest["tensors"][0]["digest"] = bytes(32)
    yield case("digest-of-empty-tensor", "5", file)
    file = simple()
    file.chunks = [b"\1\2\3\5"]
    yield case("content-of-tensor", "5", file)
    coder: Coder = huffman(Block(packed=True))
    good = tensor("t", "u8", [5], Exact(b"\7\7\x09\7\x09"), coders=coder)
    changed = good.parts[0][:-1] + bytes([good.parts[0][-1] ^ 1])
    yield case("content-of-huffman-stream", "5", draft([Tensor(good.fields, [changed], good.content)]))
    good = tensor("t", "f32", [2], Affine(2, [1, 3], b"\0\0\x80\x3f"))
    yield case(
        "content-of-scale", "5", draft([Tensor(good.fields, [b"\0\0\x81\x3f", good.parts[1]], good.content)])
    )
    good = tensor("t", "u8", [4], Exact(b"\0\1\0\0"), layout={"kind": "relative-index", "bits": 4})
    yield case("content-of-position", "5", draft([Tensor(good.fields, [b"\2\1"], good.content)]))

    file = draft([], [asset("a", b"content")])
    file.manifest["assets"][0]["digest"] = bytes(32)
    yield case("digest-of-asset", "7", file)
    file = draft([], [asset("a", b"")])
    file.manifest["assets"][0]["digest"] = bytes(32)
    yield case("digest-of-empty-asset", "7", file)
    file = draft([], [asset("a", b"content")])
    file.chunks = [b"Content"]
    yield case("content-of-asset", "7", file)
    for name, size in {"small": 6, "large": 8}.items():
        file = draft([], [asset("a", b"content")])
        file.manifest["assets"][0]["size"] = size
        yield Case(f"asset-size-too-{name}", "6.1", 7, (CORRUPT,), file.build())

"""The conformance vectors of the range coding, good and bad (section 6.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from tests.reference.dcz_reference_coders import RangeCoder, encode_table, fixed, pack_bits, raw
from tests.reference.dcz_reference_writer import Affine, Codebook, Draft, Exact, Tensor, asset, draft, tensor
from tests.vectors.bad_cases import CORRUPT, Case
from tests.vectors.good_values import BITMAP, DENSE, MIXED_ELEMENTS, f32, numbers, relative

__all__ = ["range_files", "range_stream_cases"]


def range_files() -> Iterator[tuple[str, Draft]]:
    yield from every_layout_and_value()
    yield from models()


def every_layout_and_value() -> Iterator[tuple[str, Draft]]:
    stored = [number > 0 for number in MIXED_ELEMENTS]
    exact = b"".join(struct.pack("<e", number / 4) for number in MIXED_ELEMENTS)
    for layout in (DENSE, relative(3), BITMAP):
        codes = numbers(len(stored) if layout == DENSE else sum(stored), 5)
        kinds: dict[str, Exact | Affine | Codebook] = {
            "whole": Exact(exact, "whole"),
            "bytes": Exact(exact, "bytes"),
            "rotated": Exact(exact, "rotated"),
            "affine": Affine(3, codes, f32(0.5, 0.25), [4, 3], granularity={"kind": "channel", "axis": 0}),
            "codebook": Codebook(3, 5, codes, bytes(range(1, 11))),
        }
        yield (
            f"range-{layout['kind']}",
            draft(
                [
                    tensor(
                        f"{kind}-{segment}",
                        "f16",
                        [2, 15],
                        values,
                        layout=layout,
                        stored=stored if layout != DENSE else None,
                        segment=segment,
                        coders=RangeCoder(columns=15, raw=3),
                    )
                    for kind, values in kinds.items()
                    for segment in (30, 11)
                ]
            ),
        )


def models() -> Iterator[tuple[str, Draft]]:
    # Rows of 12 elements, of which some rows and some columns have next to none.
    mask = [
        (row * column) % 3 != 0 and number == 0
        for (row, column), number in zip(
            ((i // 12, i % 12) for i in range(240)), numbers(240, 3), strict=True
        )
    ]
    content = bytes(int(kept) * (1 + i % 9) for i, kept in enumerate(mask))
    yield (
        "range-bits",
        draft(
            [
                tensor(
                    f"columns-{columns}-{segment}",
                    "u8",
                    [20, 12],
                    Exact(content),
                    layout=BITMAP,
                    segment=segment,
                    coders=RangeCoder(columns),
                )
                for columns in (1, 2, 12, 239, 240, 241, 65_536, (1 << 32) - 1)
                for segment in (240, 101)
            ]
        ),
    )
    singles = b"".join(
        struct.pack("<f", (number - 40) / (1 + i % 7)) for i, number in enumerate(numbers(90, 80))
    )
    yield (
        "range-planes",
        draft(
            [
                tensor(
                    f"raw-{low}-signs-{int(signs)}",
                    "f32",
                    [90],
                    Exact(singles, "rotated"),
                    coders=RangeCoder(columns=9, raw=low, signs=signs),
                )
                for signs in (False, True)
                for low in range(int(signs), 8 + int(signs))
            ]
        ),
    )
    yield (
        "range-neighbours",
        draft(
            [
                tensor(
                    f"bits-{bits}-resolution-{resolution}",
                    "u8",
                    [10, 10],
                    Codebook(bits, 1 << bits, numbers(100, 1 << bits, seed=bits), bytes(range(1 << bits))),
                    coders=[raw, RangeCoder(10, resolution)],
                )
                for bits in range(1, 9)
                for resolution in range(4)
            ]
        ),
    )
    # 65,536 columns share a slot with those before them.
    wide = bytes(number == 0 for number in numbers(70_000, 5_000))
    yield (
        "range-many-columns",
        draft([tensor("t", "u8", [70_000], Exact(wide), layout=BITMAP, coders=RangeCoder(69_000))]),
    )
    same = [9] * 300
    yield (
        "range-without-decisions",
        draft([tensor("t", "u8", [300], Exact(bytes(same)), coders=RangeCoder(7))]),
    )
    yield (
        "range-of-asset",
        draft([], [asset("notes.txt", b"weights and weights and more weights\n" * 9, coder=RangeCoder(37))]),
    )


# What is refused --------------------------------------------------------------------------------------------------

SYMBOLS = (7, 7, 9, 7, 9)
# 7 has 1 bit, 8 no code, 9 the same as 7.
TABLE = encode_table({7: 1, 9: 1})
HEAD = bytes([1, 3])


def coded(symbols: Sequence[int] = SYMBOLS, lengths: dict[int, int] | None = None) -> bytes:
    """The decisions of kind 1 in 3 columns, without head and table."""
    lengths = lengths or {7: 1, 9: 1}
    return RangeCoder(3, lengths=lengths)(symbols, 8)[1][len(HEAD) + len(encode_table(lengths)) :]


def range_stream_cases() -> Iterator[Case]:
    def case(name: str, section: str, *tensors: Tensor) -> Case:
        return Case(f"range-{name}", section, 7, (CORRUPT,), draft(tensors).build())

    def stream(name: str, section: str, data: bytes, symbols: Sequence[int] = SYMBOLS) -> Case:
        return case(
            name, section, tensor("t", "u8", [len(symbols)], Exact(bytes(symbols)), coders=fixed(3, data))
        )

    good = coded()
    yield stream("empty", "6.4", b"")
    yield stream("only-head", "6.4", b"\1")
    yield stream("varint-without-end", "6.4", b"\1\x80")
    yield stream("varint-not-shortest", "6.4", b"\1\x83\0" + TABLE + good)
    yield stream("no-columns", "6.4", b"\1\0" + TABLE + good)
    yield stream("without-table", "6.2", HEAD)
    yield stream("table-ends-early", "6.2", HEAD + TABLE[:2])
    yield stream(
        "table-not-complete", "6.2", HEAD + bytes([7, 9]) + pack_bits([0, 1, 0, 0, 1, 1, 0, 0]) + good
    )
    yield stream("bits-for-values", "6.4", b"\0\3" + good)
    for kind in (2, 3):
        yield stream(f"kind-{kind}-without-planes", "6.4", bytes([kind | 0x10, 3]) + TABLE + good)
    for low in (8, 9, 15):
        yield stream(f"{low}-raw-bits", "6.4", bytes([1 | low << 4, 3]) + good)
    yield stream("raw-bits-missing", "6.4", bytes([1 | 7 << 4, 3, 0, 0, 1, 2, 3, 4]), (1, 2, 3, 4, 5))
    yield stream("raw-padding", "6.1", bytes([1 | 1 << 4, 3, 0, 0, 0x80]), (0, 0, 0))
    yield stream("bytes-left-over", "6.4.1", HEAD + TABLE + good + b"\1\1\1\1")
    yield stream("zero-byte-at-end", "6.4.1", HEAD + TABLE + good + b"\0")
    yield stream("decisions-for-none", "6.4.1", HEAD + bytes([7, 7]) + b"\1\1\1\1\1", [7] * 5)
    yield stream("outside-of-interval", "6.4.1", HEAD + TABLE + b"\xff\xff\xff\xff")

    bits = fixed(3, HEAD + TABLE + good)
    positions = tensor("t", "u8", [40], Exact(bytes(39) + b"\1"), layout=BITMAP, coders=[bits, raw])
    yield case("values-for-bits", "6.4", positions)
    for name, head in (("resolution-of-bits", 4), ("raw-bits-of-bits", 0x10)):
        coder = fixed(3, bytes([head, 3]))
        yield case(name, "6.4", tensor("t", "u8", [40], Exact(bytes(40)), layout=BITMAP, coders=[coder, raw]))
    planes = Exact(b"\0" * 8, "rotated")
    for name, head in (
        ("resolution-of-planes", 2 | 4),
        ("kind-2-without-upper-bits", 2 | 8 << 4),
        ("kind-3-without-signs", 3),
        ("9-raw-bits-of-planes", 3 | 9 << 4),
    ):
        coder = fixed(3, bytes([head, 3, 0, 0, 0, 0, 0, 0]))
        yield case(name, "6.4", tensor("t", "f16", [4], planes, coders=[coder, raw]))
    for kind in (2, 3):
        coder = fixed(3, bytes([kind | 0x10, 3, 0, 0]))
        yield case(f"kind-{kind}-of-last-plane", "6.4", tensor("t", "f16", [4], planes, coders=[raw, coder]))
    too_few = RangeCoder(5)
    yield case(
        "bits-of-fewer-entries",
        "5.2",
        miscounted(
            tensor("t", "u8", [20], Exact(bytes([0, 1, 2, 0] * 5)), layout=BITMAP, coders=[too_few, raw])
        ),
    )


def miscounted(one: Tensor) -> Tensor:
    """One entry less than the bitmap has, and its value gone."""
    entries = one.fields["entries"][0] - 1
    fields = one.fields | {"entries": [entries], "lengths": [one.fields["lengths"][0], entries]}
    return Tensor(fields, [one.parts[0][:-1]], one.content)

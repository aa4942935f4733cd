"""The conformance vectors of cascades, good and bad (section 6.5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tests.reference.dcz_reference_coders import (
    Block,
    cascade,
    encode_levels,
    encode_table,
    pack_bits,
    varint,
)
from tests.reference.dcz_reference_writer import Draft, Exact, asset, draft, tensor
from tests.vectors.bad_cases import CORRUPT, Case
from tests.vectors.bad_streams import stream
from tests.vectors.good_cases import bytes_tensor
from tests.vectors.good_values import f32, numbers

__all__ = ["cascade_files", "cascade_stream_cases"]

ONES = [1] * 65_536


def cascade_files() -> Iterator[tuple[str, Draft]]:
    few = numbers(40, 5)
    rare = [int(number == 0) for number in numbers(65_536, 300)]

    yield (
        "cascade-one-symbol",
        draft(
            [
                bytes_tensor([7] * 9, cascade()),
                bytes_tensor([0], cascade(), "u"),
                bytes_tensor(ONES, cascade(), "v"),
            ]
        ),
    )
    yield "cascade-two-symbols", draft([bytes_tensor([7, 7, 9, 7, 9], cascade())])
    yield from cascade_levels()
    yield (
        "cascade-group-sizes",
        draft([bytes_tensor(numbers(n, 5, seed=n), cascade(), f"{n}") for n in (1, 7, 8, 63, 64, 65, 129)]),
    )
    yield "cascade-blocks", draft([bytes_tensor([*ONES, *rare, *few], cascade())])
    same = [Block(lengths={0: 1, 1: 2, 2: 2, 3: 2, 4: 3, 5: 3}), Block("same")]
    yield "cascade-same-table", draft([bytes_tensor([*rare, *few], cascade(*same))])
    modes = [Block("new"), Block("stored"), Block("new"), Block("same"), Block("new")]
    yield (
        "cascade-block-modes",
        draft([bytes_tensor([*ONES, *rare, *rare, *ONES, 0, 1, 1, 1], cascade(*modes), bits=1)]),
    )
    yield "cascade-stored-block-of-3-bits", draft([bytes_tensor(few, cascade(Block("stored")), bits=3)])
    yield (
        "cascade-widths",
        draft(
            [
                bytes_tensor(numbers(133, 1 << bits, seed=bits), cascade(), f"{bits}", bits)
                for bits in range(1, 9)
            ]
        ),
    )
    yield (
        "cascade-of-asset",
        draft([], [asset("notes.txt", b"weights and weights and more weights\n" * 9, coder=cascade())]),
    )


def cascade_levels() -> Iterator[tuple[str, Draft]]:
    # Each level half as frequent as the one before, and all of one symbol but the last.
    skewed = [min(15, (number & -number).bit_length() - 1) for number in numbers(500, 1 << 16)]
    deepest = {symbol: min(symbol + 1, 15) for symbol in range(16)}
    yield (
        "cascade-fifteen-levels",
        draft([bytes_tensor([*skewed, *range(16)], cascade(Block(lengths=deepest)))]),
    )

    scattered = {3: 2, 4: 1, 9: 2, 10: 2, 77: 1, 99: 3, 101: 3, 200: 1, 254: 3, 255: 3}
    spread = [sorted(scattered)[number] for number in numbers(700, 10)]
    yield "cascade-scattered-symbols", draft([bytes_tensor(spread, cascade(Block(lengths=scattered)))])
    yield "cascade-unused-levels", draft([bytes_tensor([4, 200, 77], cascade(Block(lengths=scattered)))])
    yield (
        "cascade-only-last-level",
        draft([bytes_tensor([255] * 70 + [99], cascade(Block(lengths=scattered)))]),
    )

    # Level 1 to 7 have the width of their number, level 8 has the nine symbols that are left.
    levels = [level for level in range(1, 8) for _ in range((1 << level) - 1)] + [8] * 9
    every = dict(sorted((number * 37 % 256, level) for number, level in enumerate(levels)))
    yield "cascade-every-width", draft([bytes_tensor(numbers(3_000, 256), cascade(Block(lengths=every)))])
    yield (
        "cascade-of-one-level",
        draft(
            [
                bytes_tensor(
                    numbers(3 * size, size, seed=size),
                    cascade(Block(lengths=dict.fromkeys(range(size), 1))),
                    f"{size}",
                )
                for size in (2, 3, 4, 5, 17, 64, 100, 129, 256)
            ]
        ),
    )
    elements = f32(*(0.75**number for number in numbers(2_000, 40)))
    yield (
        "cascade-planes",
        draft(
            [
                tensor(
                    f"{split}-{offset}",
                    "f32",
                    [2_000],
                    Exact(elements, split, offset),
                    segment=1_500,
                    coders=cascade(),
                )
                for split, offset in (("bytes", 0), ("rotated", 0), ("rotated", 77))
            ]
        ),
    )


# The symbols 7 7 9 7 9, both on level 1: one bit each.
PAIR = encode_table({7: 1, 9: 1})
PAIR_DATA = pack_bits([0, 0, 1, 0, 1])
# The symbols 1 2 3 1 4 2: a bit each on level 1, and two for the four that pass level 2.
SYMBOLS, LEVELS = (1, 2, 3, 1, 4, 2), {1: 1, 2: 2, 3: 2, 4: 2}
TABLE = encode_table(LEVELS)
FIRST, SECOND = pack_bits([0, 1, 1, 0, 1, 1]), pack_bits([0, 1, 0, 0]) + pack_bits([0, 0, 1, 0])


def coded(tables: bytes, data: bytes) -> bytes:
    return varint(len(tables)) + tables + data


def case(
    name: str, data: bytes, symbols: Sequence[int] = SYMBOLS, width: int = 8, section: str = "6.5"
) -> Case:
    return Case(f"cascade-{name}", section, 7, (CORRUPT,), draft([stream(4, data, symbols, width)]).build())


def cascade_stream_cases() -> Iterator[Case]:
    yield from table_cases()
    yield from count_cases()
    yield from data_cases()
    yield from block_cases()


def table_cases() -> Iterator[Case]:
    five = (7, 7, 9, 7, 9)
    good = b"\1" + PAIR
    assert cascade()(five, 8) == (4, coded(good, PAIR_DATA))
    yield case("empty", b"", five)
    yield case("only-varint", b"\0", five)
    yield case("varint-without-end", b"\x80", five)
    yield case("varint-not-shortest", bytes([len(good) | 0x80, 0]) + good + PAIR_DATA, five)
    yield case("table-length-above-stream", bytes([len(good) + 2]) + good + PAIR_DATA, five)
    yield case("table-length-largest", b"\xff\xff\xff\xff\x0f" + good + PAIR_DATA, five)
    yield case("table-length-too-small", bytes([len(good) - 1]) + good + PAIR_DATA, five, section="6.2")
    yield case("table-length-too-large", coded(good + b"\0", PAIR_DATA), five)
    for descriptor in (3, 5, 0x81):
        yield case(f"descriptor-{descriptor}", coded(bytes([descriptor]) + PAIR, PAIR_DATA), five)
    yield case("same-table-without-table", coded(b"\2", PAIR_DATA), five)
    yield case("descriptor-missing", coded(b"", PAIR_DATA), five)
    yield case("table-missing", coded(b"\1", PAIR_DATA), five, section="6.2")
    yield case("table-above-width", coded(b"\1" + encode_table({6: 1, 8: 1}), b"\0"), [6] * 5, 3, "6.2")
    yield case("table-padding-bits", coded(b"\1\7\x08\x81", b"\x14"), [7, 7, 8, 7, 8], section="6.2")

    def table(name: str, levels: Mapping[int, int], counts: bytes = b"\0", size: int = 1) -> Case:
        """A table that is refused before its data matter: those of symbols that are all the first code of level 1."""
        return case(f"table-{name}", coded(b"\1" + encode_table(levels) + counts, bytes(size)), [1] * 8)

    yield table("without-level-1", {1: 2, 2: 2}, b"")
    yield table("without-level-2", {1: 1, 2: 3, 3: 3})
    yield table("of-two-symbols-on-level-1", {1: 1, 2: 1, 3: 2, 4: 2}, size=2)
    yield table("of-four-symbols-on-level-1", {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2}, size=3)
    yield table("of-two-symbols-on-level-2", {1: 1, 2: 2, 3: 2, 4: 3, 5: 3}, b"\0\0")
    yield table("of-one-symbol-on-the-last-level", {1: 1, 2: 2})
    yield table("of-255-symbols-on-level-1", dict.fromkeys(range(255), 1) | {255: 2}, size=8)


def count_cases() -> Iterator[Case]:
    head = b"\1" + TABLE
    assert cascade(Block(lengths=LEVELS))(SYMBOLS, 8) == (4, coded(head + b"\4", FIRST + SECOND))
    yield case("count-missing", coded(head, FIRST + SECOND))
    yield case("count-without-end", coded(head + b"\x84", FIRST + SECOND))
    yield case("count-not-shortest", coded(head + b"\x84\0", FIRST + SECOND))
    yield case("count-twice", coded(head + b"\4\4", FIRST + SECOND))
    yield case("count-above-the-block", coded(head + b"\7", FIRST + SECOND))
    # The data are as long as with the right one.
    for count in (3, 5):
        yield case(f"count-{count}-for-4", coded(head + bytes([count]), FIRST + SECOND))
    yield case("count-0-for-4", coded(head + b"\0", FIRST))
    levels = {1: 1, 2: 2, 3: 3, 4: 3}
    counts, data = encode_levels(SYMBOLS, levels)
    assert counts == [4, 2]
    yield case("count-above-that-before", coded(b"\1" + encode_table(levels) + b"\4\5", data))
    yield case("count-of-level-3-too-small", coded(b"\1" + encode_table(levels) + b"\4\1", data))
    yield case("only-symbol-with-count", coded(b"\1\7\7\0", b""), [7] * 5)


def data_cases() -> Iterator[Case]:
    head = b"\1" + TABLE + b"\4"
    yield case("data-missing", coded(head, b""))
    yield case("data-too-short", coded(head, (FIRST + SECOND)[:-1]))
    yield case("data-too-long", coded(head, FIRST + SECOND + b"\0"))
    for at in range(3):
        wrong = bytearray(FIRST + SECOND)
        wrong[at] |= 0x40
        yield case(f"padding-of-plane-{at}", coded(head, bytes(wrong)))
    # Behind 64 symbols, one more: all its planes are bytes of their own.
    longer = (2, 3) * 32 + (2,)
    counts, data = encode_levels(longer, LEVELS)
    yield case(
        "padding-of-second-group", coded(b"\1" + TABLE + bytes(counts), data[:8] + b"\3" + data[9:]), longer
    )
    yield case(
        "code-3-of-three-symbols", coded(head, FIRST + pack_bits([0, 1, 1, 0]) + pack_bits([0, 0, 1, 0]))
    )
    yield case(
        "code-3-of-three-symbols-on-one-level",
        coded(b"\1" + encode_table({1: 1, 2: 1, 3: 1}), b"\7\4"),
        (2, 2, 3),
    )
    # A symbol of level 1 more, and one of level 2 less; and the other way round.
    yield case("escape-missing", coded(head, pack_bits([0, 1, 0, 0, 1, 1]) + SECOND))
    yield case("escape-too-many", coded(head, pack_bits([0, 1, 1, 1, 1, 1]) + SECOND))
    yield case("only-symbol-with-data", coded(b"\1\7\7", b"\0"), [7] * 5)
    yield case("stored-data-too-short", coded(b"\0", bytes(SYMBOLS[:-1])))
    yield case("stored-data-too-long", coded(b"\0", bytes(SYMBOLS) + b"\0"))
    yield case("stored-padding-bit", coded(b"\0", b"\0\x80"), [0, 0, 0], 3, "6.1")


def block_cases() -> Iterator[Case]:
    head = b"\1" + TABLE
    yield case("descriptor-of-second-block-missing", coded(b"\1\1\1", b""), [*ONES, 1])
    yield case("descriptor-of-block-that-is-not", coded(b"\1\1\1\2", b""), ONES)
    yield case("same-table-after-stored", coded(b"\0\2", bytes(ONES)), [*ONES, 1])
    yield case("second-block-missing", coded(b"\1\1\1\0", b""), [*ONES, 1])
    # What one block has too many of, the next one has too few of.
    full, rest = bytes(8192), FIRST + SECOND
    yield case("escapes-of-the-next-block", coded(head + b"\1\2\4", full + b"\0\0" + rest), [*ONES, *SYMBOLS])
    yield case("count-of-the-next-block", coded(head + b"\4\2\0", full + SECOND + FIRST), [*ONES, *SYMBOLS])

"""Huffman streams: against the reference coder and decoder, and against the best code that a search finds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import SIZES, forced, guarded, on_each_isa
from tests.reference.dcz_reference_coders import Block, huffman, optimal_lengths
from tests.reference.dcz_reference_streams import Refused, decode_stream, read_table, read_varint

from dcz import _native
from dcz.errors import CorruptStream

NO_LIMIT = 1 << 62
BLOCK = 65_536
LONGEST = 15
KINDS = ("uniform", "skewed", "one symbol", "two symbols", "fibonacci", "changing")


def fibonacci(count: int) -> list[int]:
    """1, 1, 2, 3, 5 ...: the counts that make the deepest code."""
    counts = [1, 1]
    while len(counts) < count:
        counts.append(counts[-1] + counts[-2])
    return counts[:count]


def draw_symbols(kind: str, size: int, width: int) -> np.ndarray:
    random = np.random.default_rng(size * 8 + width)
    last = (1 << width) - 1
    match kind:
        case "uniform":
            symbols = random.integers(0, last + 1, size)
        case "skewed":
            symbols = np.minimum(random.geometric(0.3, size) - 1, last)
        case "one symbol":
            symbols = np.full(size, last)
        case "two symbols":
            symbols = np.where(random.random(size) < 0.02, 0, last)
        case "fibonacci":
            counts = fibonacci(min(22, last + 1))
            symbols = np.resize(random.permutation(np.repeat(np.arange(len(counts)), counts)), size)
        case _:  # another distribution in each block, so that tables change
            step = np.arange(size) // BLOCK
            symbols = (random.geometric(0.2 + 0.3 * (step % 3)) + step) % (last + 1)
    return symbols.astype(np.uint8)


def encode(symbols: np.ndarray | bytes, width: int) -> bytes:
    stream = _native.huffman_encode(symbols, width, NO_LIMIT)
    assert stream is not None
    return stream


def decode(stream: bytes, width: int, count: int) -> bytes:
    with guarded(count) as out:
        _native.huffman_decode(stream, width, out)
        return out.tobytes()


@cache
def portably_encoded(kind: str, size: int, width: int) -> bytes:
    with forced("portable"):
        return encode(draw_symbols(kind, size, width), width)


@on_each_isa
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_each_set_writes_the_same_stream_and_reads_it(isa: str, kind: str, width: int) -> None:
    for size in SIZES:
        symbols = draw_symbols(kind, size, width)
        with forced(isa):
            stream = encode(symbols, width)
            assert stream == portably_encoded(kind, size, width)
            assert decode(stream, width, size) == symbols.tobytes()
        blocks = -(-size // BLOCK)
        assert len(stream) <= (size * width + 7) // 8 + blocks * 2 + 3, "stored blocks bound the size"


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_reads_the_stream(kind: str, width: int) -> None:
    for size in (*(size for size in SIZES if 0 < size <= 128), 9001, *([65_537] if width in (3, 8) else [])):
        stream = portably_encoded(kind, size, width)
        assert bytes(decode_stream(1, stream, size, width)) == draw_symbols(kind, size, width).tobytes()


# The code


def least_bits(counts: Sequence[int], longest: int = LONGEST) -> int:
    """The bits of the best prefix code without a code word above ``longest``: a search over how many leaves each level of
    the tree has, the frequent symbols first."""
    ordered = sorted((count for count in counts if count), reverse=True)
    behind = [sum(ordered[i:]) for i in range(len(ordered) + 1)]

    @cache
    def search(placed: int, nodes: int, depth: int) -> float:
        """The least sum over all levels from ``depth`` on, which has ``nodes`` nodes, of the counts below the level."""
        left = len(ordered) - placed
        if left == 0:
            return 0 if nodes == 0 else float("inf")
        if nodes == 0 or nodes > left or depth > longest:
            return float("inf")
        return min(
            behind[placed + leaves] + search(placed + leaves, 2 * (nodes - leaves), depth + 1)
            for leaves in range(nodes + 1)
        )

    return int(behind[0] + search(0, 2, 1)) if len(ordered) > 1 else 0


def tables_of(stream: bytes, blocks: int, width: int) -> list[dict[int, int] | None]:
    """The code lengths of each block as the stream gives them; None for a stored one."""
    length, rest = read_varint(stream, "6.2")
    tables, found = rest[:length], list[dict[int, int] | None]()
    latest: dict[int, int] | None = None
    for _ in range(blocks):
        mode, tables = tables[0] & 3, tables[1:]
        if mode == 1:
            latest, tables = read_table(tables, width)
        found.append(None if mode == 0 else latest)
    assert tables == b""
    return found


def spread_to_a_block(counts: Sequence[int]) -> list[int]:
    """The counts scaled to a full block, none of them 0."""
    scaled = [max(1, count * BLOCK // sum(counts)) for count in counts]
    scaled[scaled.index(max(scaled))] += BLOCK - sum(scaled)
    return scaled


def check_code(counts: Sequence[int]) -> dict[int, int]:
    """The code of a full block with these counts is complete, no longer than allowed, and the best."""
    symbols = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.uint8)
    stream = encode(symbols, 8)
    (lengths,) = tables_of(stream, 1, 8)
    assert lengths is not None
    assert set(lengths) == {symbol for symbol, count in enumerate(counts) if count}
    assert sum(Fraction(1, 1 << length) for length in lengths.values()) == 1
    assert max(lengths.values()) <= LONGEST
    assert sum(counts[symbol] * length for symbol, length in lengths.items()) == least_bits(counts)
    assert decode(stream, 8, symbols.size) == symbols.tobytes()
    return lengths


@on_each_isa
def test_the_limit_on_the_length_bites_and_the_code_is_still_the_best(isa: str) -> None:
    with forced(isa):
        for count in (16, 17, 20, 22):
            counts = spread_to_a_block(fibonacci(count))
            lengths = check_code(counts)
            if count > 16:
                assert least_bits(counts, longest=40) < least_bits(counts), (
                    "without the limit it would be better"
                )
                assert max(lengths.values()) == LONGEST


@on_each_isa
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=9), st.lists(st.integers(-2, 3), min_size=8, max_size=20)
)
def test_near_the_limit_a_count_that_differs_by_one_matters(
    isa: str, few: list[int], steps: list[int]
) -> None:
    """Small counts, many of them the same, and then such as make a code deep."""
    counts = sorted(few)
    for step in steps:
        counts.append(max(1, sum(counts[-2:]) + step))
    while sum(counts) > BLOCK:
        counts.pop()
    counts[-1] += BLOCK - sum(counts)
    with forced(isa):
        check_code(counts)


@on_each_isa
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 1 << 14), min_size=2, max_size=24).filter(
        lambda counts: max(counts) > sum(counts) / 8
    )
)
def test_the_code_is_the_best(isa: str, counts: list[int]) -> None:
    with forced(isa):
        check_code(spread_to_a_block(counts))


def brute_force(counts: Sequence[int]) -> int:
    """Over all complete sets of code lengths: each comes from another one by making two of a code word."""
    level: set[tuple[int, ...]] = {(1, 1)}
    for _ in range(len(counts) - 2):
        level = {
            tuple(sorted((*one[:i], one[i] + 1, one[i] + 1, *one[i + 1 :])))
            for one in level
            for i in range(len(one))
        }
    ordered = sorted(counts, reverse=True)
    return min(sum(n * length for n, length in zip(ordered, one, strict=True)) for one in level)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8))
def test_the_search_is_an_oracle(counts: list[int]) -> None:
    assert least_bits(counts) == brute_force(counts)
    lengths = optimal_lengths([symbol for symbol, count in enumerate(counts) for _ in range(count)])
    assert least_bits(counts) == sum(counts[symbol] * length for symbol, length in lengths.items())


def test_the_search_knows_the_limit() -> None:
    counts = fibonacci(20)
    lengths = optimal_lengths([symbol for symbol, count in enumerate(counts) for _ in range(count)])
    assert least_bits(counts) == sum(counts[symbol] * length for symbol, length in lengths.items())


@on_each_isa
@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.integers(1, 8))
def test_the_estimate_is_about_what_a_block_takes(isa: str, data: bytes, width: int) -> None:
    """The data exactly; of several best codes, one may have a longer table than another."""
    symbols = bytes(byte & ((1 << width) - 1) for byte in data)
    bits = sum(symbols.count(symbol) * length for symbol, length in optimal_lengths(list(symbols)).items())
    without_table = 2 + (bits + 7) // 8
    longest_table = 2 + (4 + 7 * ((1 << width) - 1) + 7) // 8
    with forced(isa):
        estimate = _native.huffman_estimate(symbols)
    assert (
        min(len(symbols), without_table + 2) <= estimate <= min(len(symbols), without_table + longest_table)
    )


# Streams of other writers


def random_lengths(random: np.random.Generator, symbols: int) -> list[int]:
    """A complete code: two code words out of one, again and again, first to the greatest depth."""
    lengths = [1, 1]
    while len(lengths) < symbols:
        deep = [i for i, length in enumerate(lengths) if length < LONGEST]
        chosen = deep[-1] if len(lengths) < LONGEST + 1 else deep[int(random.integers(len(deep)))]
        lengths[chosen : chosen + 1] = [lengths[chosen] + 1] * 2
    return lengths


@on_each_isa
@pytest.mark.parametrize("packed", [False, True])
def test_any_complete_code_is_read(isa: str, packed: bool) -> None:
    """Also one that fits the symbols badly, and has some that do not occur."""
    random = np.random.default_rng(packed)
    for count in (2, 3, 16, 40, 256):
        lengths = random_lengths(random, count)
        names = np.sort(random.permutation(256)[:count]).tolist()
        code = dict(zip(names, random.permutation(lengths).tolist(), strict=True))
        assert max(lengths) == min(LONGEST, count - 1)
        for size in (1, 63, 64, 65, 3000):
            symbols = random.choice(names, size).tolist()
            _, stream = huffman(Block(packed=packed, lengths=code))(symbols, 8)
            with forced(isa):
                assert decode(stream, 8, size) == bytes(symbols)


@cache
def blocks_of_every_mode() -> tuple[bytes, bytes]:
    random = np.random.default_rng(7)
    size = 4 * BLOCK + 100
    symbols = np.minimum(random.geometric(0.3, size), 9).astype(np.uint8)
    modes = [Block(), Block("same", packed=True), Block("stored"), Block("same"), Block(packed=True)]
    return symbols.tobytes(), huffman(*modes)(symbols.tolist(), 4)[1]


@on_each_isa
def test_blocks_of_every_mode_are_read(isa: str) -> None:
    symbols, stream = blocks_of_every_mode()
    with forced(isa):
        assert decode(stream, 4, len(symbols)) == symbols


def by_reference(stream: bytes, width: int, count: int) -> bytes | None:
    try:
        return bytes(decode_stream(1, stream, count, width))
    except Refused:
        return None


@st.composite
def damaged_streams(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """A stream that was good, its width, and the number of symbols that is asked for."""
    width = draw(st.integers(1, 8))
    few = draw(st.lists(st.integers(0, (1 << width) - 1), min_size=1, max_size=20))
    symbols = draw(st.lists(st.sampled_from(few), min_size=1, max_size=100))
    coder = draw(st.sampled_from([huffman(), huffman(packed=True), huffman(Block("stored"))]))
    stream = bytearray(coder(symbols, width)[1])
    for _ in range(draw(st.integers(0, 2))):
        stream[draw(st.integers(0, len(stream) - 1))] ^= 1 << draw(st.integers(0, 7))
    cut = draw(st.sampled_from([0, 0, 0, 1, 2]))
    more = draw(st.sampled_from([b"", b"", b"", b"\0", b"\xff"]))
    count = len(symbols) + draw(st.sampled_from([0, 0, 0, -1, 1, 9]))
    return bytes(stream[: len(stream) - cut] + more), width, max(1, count)


@on_each_isa
@settings(max_examples=150, deadline=None)
@given(damaged_streams())
def test_damaged_streams_are_refused_or_read_as_the_reference_does(
    isa: str, damaged: tuple[bytes, int, int]
) -> None:
    stream, width, count = damaged
    expected = by_reference(stream, width, count)
    with forced(isa):
        if expected is None:
            with pytest.raises(CorruptStream):
                decode(stream, width, count)
        else:
            assert decode(stream, width, count) == expected


@on_each_isa
def test_a_stream_that_is_cut_off_anywhere_is_refused(isa: str) -> None:
    symbols = draw_symbols("skewed", 3 * BLOCK // 2, 8)
    with forced(isa):
        stream = encode(symbols, 8)
        for length in (*range(60), *range(60, len(stream), 997), len(stream) - 1):
            with pytest.raises(CorruptStream):
                decode(stream[:length], 8, symbols.size)
        with pytest.raises(CorruptStream):
            decode(stream + b"\0", 8, symbols.size)


# The rest


@on_each_isa
def test_the_encoder_gives_up_at_the_limit(isa: str) -> None:
    with forced(isa):
        for size, width in ((100, 3), (9000, 8), (BLOCK + 5, 8)):
            symbols = draw_symbols("skewed", size, width)
            stream = encode(symbols, width)
            for limit in (0, 1, len(stream) // 2, len(stream)):
                assert _native.huffman_encode(symbols, width, limit) is None
            padding = 128 * -(
                -size // BLOCK
            )  # what aligned nodes take is known only roughly before it is written
            for limit in (len(stream) + 1 + padding, NO_LIMIT):
                assert _native.huffman_encode(symbols, width, limit) == stream


@on_each_isa
def test_the_length_of_the_tables_is_found_without_decoding(isa: str) -> None:
    with forced(isa):
        for kind in KINDS:
            stream = encode(draw_symbols(kind, 200_003, 8), 8)
            length, rest = read_varint(stream, "6.2")
            assert _native.table_bytes(stream) == len(stream) - len(rest) + length
        for bad in (b"", b"\x80", b"\x05abcd", b"\xff" * 9, b"\x80\x00"):
            with pytest.raises(CorruptStream):
                _native.table_bytes(bad)

"""Cascades: against the reference coder and decoder, and against the best levels that a search finds (docs/format.md,
section 6.5)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import SIZES, forced, guarded, on_each_isa
from tests.native.segments import join_planes
from tests.native.test_native_huffman import BLOCK, KINDS, NO_LIMIT, draw_symbols
from tests.native.test_native_planes import planes_of
from tests.reference.dcz_reference_coders import Block, cascade, encode_levels, encode_table, varint
from tests.reference.dcz_reference_streams import Refused, decode_stream, read_numbers, read_varint

from dcz import _native
from dcz.errors import CorruptStream

CASCADE = 4
PRICES = (0, 205, 4000)


def encode(symbols: np.ndarray | bytes, width: int = 8, price: int = 0) -> bytes:
    found = _native.cascade_encode(symbols, width, NO_LIMIT, price)
    assert found is not None
    return found[0]


def decode(stream: bytes, width: int, count: int) -> bytes:
    with guarded(count) as out:
        _native.cascade_decode(stream, width, out)
        return out.tobytes()


@cache
def portably_encoded(kind: str, size: int, width: int, price: int) -> bytes:
    with forced("portable"):
        return encode(draw_symbols(kind, size, width), width, price)


@on_each_isa
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_each_set_writes_the_same_stream_and_reads_it(isa: str, kind: str, width: int) -> None:
    for size in SIZES[1:]:
        symbols = draw_symbols(kind, size, width)
        price = PRICES[(size + width) % 3]
        with forced(isa):
            stream = encode(symbols, width, price)
            assert stream == portably_encoded(kind, size, width, price)
            assert decode(stream, width, size) == symbols.tobytes()
        blocks = -(-size // BLOCK)
        assert len(stream) <= (size * width + 7) // 8 + blocks * 2 + 3, "stored blocks bound the size"


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_reads_the_stream(kind: str, width: int) -> None:
    for size in (*(size for size in SIZES if 0 < size <= 128), 9001, *([65_537] if width in (3, 8) else [])):
        stream = portably_encoded(kind, size, width, 0)
        assert bytes(decode_stream(CASCADE, stream, size, width)) == draw_symbols(kind, size, width).tobytes()


# The levels


def levels_of_first_block(stream: bytes, width: int) -> dict[int, int] | None:
    _, tables = read_varint(stream, "6.5")
    return None if tables[0] == 0 else read_numbers(tables[1:], width)[0]


def cost_of(counts: list[int], levels: list[int], price: int) -> int:
    """In 1/1024 bits: of the codes, of each symbol on each level, and three bytes for each level."""
    total = 0
    for level in range(1, max(levels) + 1):
        own = levels.count(level)
        width = own.bit_length() if level < max(levels) else (own - 1).bit_length()
        passing = sum(count for count, of in zip(counts, levels, strict=True) if of >= level)
        total += passing * (1024 * width + price) + 24 * 1024
    return total


def least_cost(counts: list[int], price: int) -> int:
    """Over all sequences of widths, the frequent symbols first."""
    ordered = sorted(counts, reverse=True)

    def level_cost(placed: int, width: int) -> int:
        return sum(ordered[placed:]) * (1024 * width + price) + 24 * 1024

    @cache
    def search(placed: int, level: int) -> int:
        left = len(ordered) - placed
        if left < 2 or level > 15:
            return 1 << 62
        best = level_cost(placed, (left - 1).bit_length())
        for width in range(1, 8):
            best = min(best, level_cost(placed, width) + search(placed + (1 << width) - 1, level + 1))
        return best

    return search(0, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=2, max_size=14), st.sampled_from(PRICES))
def test_the_levels_are_the_best(counts: list[int], price: int) -> None:
    symbols = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    levels = levels_of_first_block(encode(symbols, 8, price), 8)
    if levels is None:
        best = cost_of(counts, [1] * len(counts), 0) / 8192
        assert min(least_cost(counts, price) / 8192, best) > 0.9 * symbols.size - 16, (
            "stored, though a code pays"
        )
        return
    found = cost_of(counts, [levels[symbol] for symbol in range(len(counts))], price)
    assert found == least_cost(counts, price)


@pytest.mark.parametrize("share", [0.15, 0.25, 0.3, 0.33, 0.36, 0.4, 0.5])
def test_the_levels_of_many_symbols_are_the_best(share: float) -> None:
    """The more levels pay, the closer to the limit of what a table can say: 15."""
    counts = [max(1, int(BLOCK * share * (1 - share) ** i)) for i in range(60)]
    counts[0] += BLOCK - sum(counts)
    levels = levels_of_first_block(encode(np.repeat(np.arange(60, dtype=np.uint8), counts)), 8)
    assert levels is not None
    assert cost_of(counts, [levels[symbol] for symbol in range(60)], 0) == least_cost(counts, 0)


def test_the_limit_and_the_cost() -> None:
    symbols = draw_symbols("skewed", 70_000, 8)
    for price in PRICES:
        found = _native.cascade_encode(symbols, 8, NO_LIMIT, price)
        assert found is not None
        stream, cost = found
        assert (cost == len(stream)) == (price == 0)
        assert _native.cascade_encode(symbols, 8, cost + 1, price) == found
        assert _native.cascade_encode(symbols, 8, cost, price) is None
    same = _native.cascade_encode(np.full(70_000, 9, np.uint8), 8, NO_LIMIT, 8192)
    assert same is not None
    assert same[1] == len(same[0]) < 10, "there is nothing to decode"


# Streams of other writers

GROWING = {0: 1, **dict.fromkeys(range(1, 4), 2), **dict.fromkeys(range(4, 10), 3)}


@st.composite
def levels(draw: st.DrawFn, width: int) -> dict[int, int]:
    """Of any symbols, in any order, with any widths."""
    symbols = draw(st.permutations(range(1 << width)))
    found: dict[int, int] = {}
    level = 1
    while level < 15:
        size = (1 << draw(st.integers(1, min(7, width)))) - 1
        if size > len(symbols) - 2 or draw(st.integers(0, 3)) == 0:
            break
        found |= dict.fromkeys(symbols[:size], level)
        symbols = symbols[size:]
        level += 1
    last = draw(st.integers(2, len(symbols)))
    return dict(sorted((found | dict.fromkeys(symbols[:last], level)).items()))


@on_each_isa
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_levels_are_read(isa: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 8))
    chosen = data.draw(levels(width))
    symbols = data.draw(st.lists(st.sampled_from(sorted(chosen)), min_size=1, max_size=300))
    coding, stream = cascade(Block(lengths=chosen))(symbols, width)
    assert coding == CASCADE
    with forced(isa):
        assert decode(stream, width, len(symbols)) == bytes(symbols)


@on_each_isa
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_the_reference_refuses_is_refused(isa: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 8))
    chosen = data.draw(levels(width))
    symbols = data.draw(st.lists(st.sampled_from(sorted(chosen)), min_size=1, max_size=150))
    stream = bytearray(cascade(Block(lengths=chosen))(symbols, width)[1])
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        wanted = bytes(decode_stream(CASCADE, bytes(stream), len(symbols), width))
    except Refused:
        wanted = None
    with forced(isa):
        if wanted is None:
            with pytest.raises(CorruptStream):
                decode(bytes(stream), width, len(symbols))
        else:
            assert decode(bytes(stream), width, len(symbols)) == wanted


@on_each_isa
def test_symbols_that_pass_a_level_are_counted_in_every_block(isa: str) -> None:
    """Long streams, where levels are decoded piece by piece: what passes a level is one too few or too many."""
    random = np.random.default_rng(3)
    for count in (5_000, 65_536, 70_000):
        symbols = np.minimum(random.geometric(0.3, count) - 1, 9)
        heads, data = b"", b""
        for start in range(0, count, BLOCK):
            counts, coded = encode_levels(symbols[start : start + BLOCK].tolist(), GROWING)
            heads += b"\2" if start else b"\1" + encode_table(GROWING)
            heads += b"".join(varint(number) for number in counts)
            data += coded
        stream = varint(len(heads)) + heads + data
        first = len(stream) - len(data)
        with forced(isa):
            assert decode(stream, 8, count) == symbols.astype(np.uint8).tobytes()
            # Level 1 has one bit for each symbol: another one passes level 2, or one does not.
            for at in (first, first + count // 16, first + min(count, BLOCK) // 8 - 1):
                wrong = bytearray(stream)
                wrong[at] ^= 1
                with pytest.raises(CorruptStream, match="than pass it"):
                    decode(bytes(wrong), 8, count)


# Planes


@on_each_isa
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_planes_are_joined_as_numpy_does(isa: str, itemsize: int) -> None:
    """Also where the last plane becomes elements as it is decoded, with all that may prevent that."""
    random = np.random.default_rng(itemsize)
    for count in (*SIZES[1:], 1023, 1024, 1025, 5000):
        for rotated, offset in ((False, 0), (True, 0), (True, 200 if itemsize > 1 else 0)):
            elements = random.integers(0, 1 << 30, count).astype(f"<u{itemsize}")
            few = np.minimum(random.geometric(0.4, count), 255 >> (count % 3 * 3)).astype(np.uint8)
            planes = planes_of(elements.tobytes(), itemsize, rotated).copy()
            planes[-1] = few
            joined = np.ascontiguousarray(planes.T).view(elements.dtype).ravel()
            if rotated:
                one, top = joined.dtype.type(1), joined.dtype.type(8 * itemsize - 1)
                shift = (
                    joined.dtype.type(offset << (8 * itemsize - 16)) if itemsize > 1 else joined.dtype.type(0)
                )
                joined = joined - shift
                joined = (joined >> one) | (joined << top)
            for price in PRICES[:2]:
                streams = [(0, plane.tobytes()) for plane in planes[:-1]]
                streams.append((CASCADE, encode(few, 8, price)))
                with forced(isa):
                    for streaming in (False, True):
                        found = join_planes(
                            streams, rotated, joined.nbytes, streaming=streaming, offset=offset
                        )
                        assert found == joined.tobytes()


@on_each_isa
def test_a_damaged_plane_is_refused(isa: str) -> None:
    symbols = draw_symbols("skewed", 70_000, 8)
    stream = encode(symbols)
    low = bytes(70_000)
    with forced(isa):
        for at in range(len(stream) - 60_000 // 8, len(stream), 997):
            wrong = bytearray(stream)
            wrong[at] ^= 0x10
            try:
                wanted = decode(bytes(wrong), 8, 70_000)
            except CorruptStream:
                with pytest.raises(CorruptStream):
                    join_planes([(0, low), (CASCADE, bytes(wrong))], True, 140_000, streaming=True)
            else:
                joined = join_planes([(0, low), (CASCADE, bytes(wrong))], True, 140_000, streaming=True)
                rotated = np.frombuffer(wanted, np.uint8).astype("<u2") << 8
                assert joined == ((rotated >> 1) | (rotated << 15)).astype("<u2").tobytes()

"""Range coding: both ways against the reference coder, within its bounds, and never surprised by what it is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import guarded
from tests.reference.dcz_reference_range import Beside, Model, decode_range, encode_decisions, raw_bits
from tests.reference.dcz_reference_streams import Refused, read_table, read_varint

from dcz import _native
from dcz.errors import CorruptStream

BITS, NEIGHBOURS, PLANES, SIGNED = range(4)


@dataclass(frozen=True)
class Case:
    """A stream's symbols, its model, and what stands beside it for the native coder."""

    symbols: np.ndarray
    width: int
    model: Model
    start: int = 0
    positions: np.ndarray | None = None
    step: int = 1
    bits: int = 0
    next: np.ndarray | None = None
    last: np.ndarray | None = None

    @property
    def beside(self) -> tuple[int, np.ndarray | None, int, int, np.ndarray | None, np.ndarray | None]:
        return self.start, self.positions, self.step, self.bits, self.next, self.last

    def encode(self) -> bytes:
        model = (self.model.kind, self.model.resolution, self.model.raw, self.model.columns)
        return _native.range_encode(self.symbols, self.width, model, *self.beside)

    def decode(self, stream: bytes) -> bytes:
        with guarded(self.symbols.size) as out:
            _native.range_decode(stream, self.width, *self.beside, out)
            return out.tobytes()

    def reference(self) -> Beside:
        entries = range(self.symbols.size // self.step) if self.positions is None else self.positions.tolist()
        places = [(self.start + entry) * self.step + byte for entry in entries for byte in range(self.step)]
        above = [None if plane is None else plane.tolist() for plane in (self.next, self.last)]
        return Beside(places, self.bits, self.start, above[0], above[1], sparse=self.positions is not None)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from([BITS, NEIGHBOURS, PLANES, SIGNED]))
    columns = draw(st.sampled_from([1, 2, 3, 16, 100, 65_537, (1 << 32) - 1]))
    start = draw(st.sampled_from([0, 1, 65_530, (1 << 59) + 3]))
    count = draw(st.integers(1, 120))
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    if kind == BITS:
        bits = 8 * count - draw(st.integers(0, 7))
        ones = random.random(bits) < draw(st.sampled_from([0, 0.02, 0.3, 1]))
        packed = np.packbits(ones, bitorder="little")
        return Case(packed, 8, Model(kind, columns), start, bits=bits)
    width = draw(st.integers(1, 8))
    step = draw(st.sampled_from([1, 2, 4, 8])) if kind == NEIGHBOURS else 1
    count = -(-count // step) * step
    resolution = draw(st.integers(0, 3)) if kind == NEIGHBOURS else 0
    raw = draw(st.integers(1, width) if kind == SIGNED else st.integers(0, width - 1))
    positions = None
    if draw(st.booleans()):
        positions = np.sort(random.choice(5 * count, count // step, replace=False)).astype(np.uint32)
    symbols = random.integers(0, 1 << width, count, np.uint8)
    for _ in range(draw(st.integers(0, 3))):
        symbols &= random.integers(0, 1 << width, count, np.uint8)
    above = [random.integers(0, limit, count, np.uint8) if kind >= PLANES else None for limit in (256, 5)]
    return Case(symbols, width, Model(kind, columns, resolution, raw), start, positions, step, 0, *above)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_both_coders_write_and_read_the_same(case: Case) -> None:
    stream = case.encode()
    assert case.decode(stream) == case.symbols.tobytes()
    reference = case.reference()
    assert decode_range(stream, case.symbols.size, case.width, reference) == case.symbols.tolist()

    _, rest = read_varint(stream[1:], "6.4")
    lengths = {0: 0}
    if case.model.kind != BITS and case.model.raw < case.width:
        lengths, rest = read_table(rest, case.width - case.model.raw)
    raw_length = -(-case.symbols.size * raw_bits(case.model) // 8)
    symbols = case.symbols.tolist()
    if case.model.kind == BITS:
        symbols = np.unpackbits(case.symbols, bitorder="little")[: case.bits].tolist()
    assert rest[: len(rest) - raw_length] == encode_decisions(symbols, lengths, case.model, reference)


@settings(max_examples=300, deadline=None)
@given(cases(), st.data())
def test_both_readers_make_the_same_of_a_broken_stream(case: Case, data: st.DataObject) -> None:
    stream = bytearray(case.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stream) - 1))
        match data.draw(st.sampled_from(["bit", "byte", "cut", "more"])):
            case "bit":
                stream[at] ^= 1 << data.draw(st.integers(0, 7))
            case "byte":
                stream[at] = data.draw(st.integers(0, 255))
            case "cut":
                del stream[max(1, at) :]
            case _:
                stream += data.draw(st.binary(min_size=1, max_size=5))
    try:
        expected = bytes(decode_range(bytes(stream), case.symbols.size, case.width, case.reference()))
    except Refused:
        with pytest.raises(CorruptStream):
            case.decode(bytes(stream))
    else:
        assert case.decode(bytes(stream)) == expected


def matrix(rows: int, columns: int, seed: int) -> np.ndarray:
    """Which elements are stored when rows and columns have densities of their own."""
    random = np.random.default_rng(seed)
    density = random.gamma(0.5, 0.4, (rows, 1)) * random.gamma(0.5, 0.4, (1, columns))
    return random.random((rows, columns)) < density


def test_bitmaps_of_rows_and_columns_come_below_their_order_0_entropy() -> None:
    mask = matrix(300, 200, 0)
    share = mask.mean()
    entropy = -mask.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    case = Case(np.packbits(mask, bitorder="little"), 8, Model(BITS, 200), bits=mask.size)
    assert len(case.encode()) < 0.85 * entropy
    wrong_columns = Case(case.symbols, 8, Model(BITS, 199), bits=mask.size)
    assert len(wrong_columns.encode()) > 1.1 * len(case.encode())


@pytest.mark.parametrize("kind", [PLANES, SIGNED])
def test_planes_use_what_stands_above_them(kind: int) -> None:
    random = np.random.default_rng(2)
    last = random.integers(0, 8, 20_000, np.uint8)
    symbols = ((last << 2) | random.integers(0, 4, last.size, np.uint8)).astype(np.uint8)
    known = Case(symbols, 8, Model(kind, 100, 0, 2), next=last, last=last)
    blind = Case(symbols, 8, Model(NEIGHBOURS, 100))
    assert known.decode(known.encode()) == symbols.tobytes()
    assert len(known.encode()) < 0.52 * len(blind.encode())  # 2 bits of 5 are left, and they are random


def test_no_decisions_take_no_bytes() -> None:
    symbols = np.full(1000, 7, np.uint8)
    assert Case(symbols, 3, Model(NEIGHBOURS, 300)).encode() == bytes([1, 0xAC, 2, 7, 7])


def test_a_carry_runs_through_bytes_of_ones() -> None:
    # Decisions that are all but certain push the low end up to where one more bound carries over many bytes.
    random = np.random.default_rng(3)
    for seed in range(40):
        bits = (random.random(4000) < (0.001, 0.5, 0.999)[seed % 3]).astype(np.uint8)
        case = Case(np.packbits(bits, bitorder="little"), 8, Model(BITS, 50), bits=bits.size)
        assert case.decode(case.encode()) == case.symbols.tobytes()


@pytest.mark.parametrize(
    ("symbols", "width", "model", "beside"),
    [
        (b"", 8, (1, 0, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 9, (1, 0, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 1, (1, 0, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 0), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 1 << 32), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (1, 4, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (1, 0, 8, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (4, 0, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (0, 0, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 1), (0, None, 1, 16, None, None)),
        (b"\1\2", 8, (0, 0, 1, 1), (0, None, 1, 16, None, None)),
        (b"\1\2", 8, (0, 0, 0, 1), (0, None, 1, 17, None, None)),
        (b"\1\2", 8, (2, 0, 0, 1), (0, None, 1, 0, None, None)),
        (b"\1\2", 8, (3, 0, 0, 1), (0, None, 1, 0, b"\1\2", b"\1\2")),
        (b"\1\2", 8, (2, 0, 8, 1), (0, None, 1, 0, b"\1\2", b"\1\2")),
        (b"\1\2", 8, (2, 0, 0, 1), (0, None, 1, 0, b"\1\2", b"\1")),
        (b"\1\2", 8, (2, 0, 0, 1), (0, None, 1, 0, None, b"\1\2")),
        (b"\1\2", 8, (1, 0, 0, 1), (0, None, 3, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 1), (1 << 63, None, 1, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 1), (1 << 62, None, 2, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 1), (0, np.zeros(1, np.uint32), 1, 0, None, None)),
        (b"\1\2", 8, (1, 0, 0, 1), (0, b"\0\0\0", 1, 0, None, None)),
    ],
)
def test_sizes_and_models_that_do_not_fit_are_refused(
    symbols: bytes,
    width: int,
    model: tuple[int, int, int, int],
    beside: tuple[int, bytes | None, int, int, bytes | None, bytes | None],
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message says which of many sizes it is
        _native.range_encode(symbols, width, model, *beside)

"""The reference range coder, both ways (docs/format.md, section 6.4).

Written from the specification alone and to be read beside it. A model does not know whether it decodes: it asks a coder to
code each decision, and a decoder answers with what it has read where an encoder repeats what it was told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.reference import dcz_reference_streams as streams
from tests.reference.dcz_reference_streams import (
    Code,
    Refused,
    canonical_codes,
    decode_raw,
    read_table,
    read_varint,
)

__all__ = [
    "Beside",
    "Encoder",
    "Model",
    "decode_range",
    "decode_stream",
    "encode_decisions",
    "raw_bits",
    "split_symbol",
    "squash",
    "stretch",
]


@dataclass(frozen=True)
class Beside:
    """What is known when a stream is decoded. ``places``: of its symbols, none for their numbers. ``bits``: elements of a
    bitmap. ``start``: number of the segment's first element. ``last`` and ``next``: planes above. ``sparse``: whether
    it is a value stream of a layout that is not dense."""

    places: Sequence[int] | None = None
    bits: int = 0
    start: int = 0
    next: Sequence[int] | None = None
    last: Sequence[int] | None = None
    sparse: bool = False


@dataclass(frozen=True)
class Model:
    kind: int
    columns: int
    resolution: int = 0
    raw: int = 0


def clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


# 6.4.1 Decisions --------------------------------------------------------------------------------------------------


class Decoder:
    def __init__(self, data: bytes) -> None:
        if data and data[-1] == 0:
            raise Refused("6.4.1", "the decisions end with a zero byte")
        self.data = data
        self.taken = 4
        self.range = (1 << 32) - 1
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        if self.code >= self.range:
            raise Refused("6.4.1", "the number is not in the first interval")

    def decide(self, probability: int, decision: int) -> int:
        bound = (self.range * probability) >> 16
        if self.code < bound:
            decision, self.range = 1, bound
        else:
            decision, self.range, self.code = 0, self.range - bound, self.code - bound
        while self.range < 1 << 24:
            digit = self.data[self.taken] if self.taken < len(self.data) else 0
            self.taken += 1
            self.range, self.code = 256 * self.range, 256 * self.code + digit
        return decision

    def end(self) -> None:
        if self.taken < len(self.data):
            raise Refused("6.4.1", "bytes of the decisions are left over")


class Encoder:
    """The whole number in one integer, so that nothing has to be carried."""

    def __init__(self) -> None:
        self.low = 0
        self.range = (1 << 32) - 1
        self.digits = 4

    def decide(self, probability: int, decision: int) -> int:
        bound = (self.range * probability) >> 16
        if decision:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 1 << 24:
            self.low, self.range, self.digits = 256 * self.low, 256 * self.range, self.digits + 1
        return decision

    def end(self) -> bytes:
        for zeros in range(4, -1, -1):
            number = -(-self.low >> 8 * zeros) << 8 * zeros
            if number < self.low + self.range:
                return number.to_bytes(self.digits, "big").rstrip(b"\0")
        raise AssertionError("an interval holds its own low end")


Coder = Decoder | Encoder

# 6.4.2 Slots ------------------------------------------------------------------------------------------------------


@dataclass
class Slot:
    p: int = 1 << 21
    n: int = 0

    def learn(self, b: int) -> None:
        self.p += (((b << 22) - self.p) * (655360 // (10 * self.n + 16))) >> 16
        self.n = min(self.n + 1, 1023)

    def start_from(self, other: Slot, trust: int) -> None:
        if self.n == 0:
            self.p, self.n = other.p, trust


# 6.4.3 Mixing -----------------------------------------------------------------------------------------------------

LIMIT = 2175


@cache
def power(x: int) -> int:
    e = 1 << 24
    for _ in range(x):
        e = (e * 16842881) >> 24
    return e


@cache
def squash(x: int) -> int:
    if x < 0:
        return 65536 - squash(-x)
    return min(power(x) * 65536 // (power(x) + (1 << 24)), 65520)


@cache
def stretch(q: int) -> int:
    for x in range(-LIMIT, LIMIT + 1):
        if squash(x) >= 16 * q + 8:
            return x
    return LIMIT


@dataclass
class Mixer:
    weights: list[int]
    rate: int

    def decide(self, coder: Coder, slots: list[Slot], decision: int) -> int:
        xs = [stretch(slot.p >> 10) for slot in slots]
        total = sum(x * weight for x, weight in zip(xs, self.weights, strict=True))
        p = squash(clamp(total >> 16, -LIMIT, LIMIT))
        b = coder.decide(p, decision)
        for i, x in enumerate(xs):
            self.weights[i] += (x * (65536 * b - p) + (1 << (self.rate - 1))) >> self.rate
        for slot in slots:
            slot.learn(b)
        return b


# 6.4.4 Bits -------------------------------------------------------------------------------------------------------


def code_bits(coder: Coder, given: Sequence[int], model: Model, beside: Beside) -> list[int]:
    every, columns, patterns = Slot(), dict[int, Slot](), [Slot() for _ in range(128)]
    row = Slot()
    ages: dict[tuple[int, int, int], Slot] = {}
    latest: dict[int, int] = {}  # 1 in a column -> how many rows had begun
    rows_begun, run, bits_of_row = 0, 0, 0
    mixer = Mixer([26214, 19661, -6554, 13107, 13107], 17)
    bits: list[int] = []

    def b(j: int) -> int:
        return bits[j] if 0 <= j < len(bits) else 0

    for i in range(beside.bits):
        c = model.columns
        x = (beside.start + i) % c
        if i == 0 or x == 0:
            row = Slot()
            row.start_from(every, 12)
            rows_begun += int(i > 0)
            run = bits_of_row = 0
        column = columns.setdefault(x % 65536, Slot())
        column.start_from(every, 12)
        pattern = patterns[
            b(i - 1)
            + 2 * b(i - 2)
            + 4 * max(b(i - 3), b(i - 4))
            + 8 * b(i - c)
            + 16 * b(i - c - 1)
            + 32 * b(i - c + 1)
            + 64 * b(i - 2 * c)
        ]
        pattern.start_from(every, 4)
        seen = latest.get(x % 65536)
        y = 1 + rows_begun if seen is None else rows_begun - seen
        crowd = sum(b(i - k) for k in range(1, 33) if k <= bits_of_row)
        age = ages.setdefault((y.bit_length(), run.bit_length(), min(crowd.bit_length(), 3)), Slot())
        age.start_from(every, 4)
        bits.append(mixer.decide(coder, [column, row, every, pattern, age], given[i] if given else 0))
        run, bits_of_row = run + 1, bits_of_row + 1
        if bits[-1]:
            latest[x % 65536], run = rows_begun, 0
    return bits


# 6.4.5 and 6.4.6: symbols -----------------------------------------------------------------------------------------


@dataclass
class Line:
    """A row or a column: what is known of the symbols in it."""

    mean: int | None = None
    latest: int | None = None
    sign: int = 0

    def take_up(self, upper: int, speed: int) -> None:
        self.mean = 256 * upper if self.mean is None else self.mean + ((256 * upper - self.mean) >> speed)
        self.latest = upper


@dataclass
class Tree:
    """Codes a symbol as its path; ``inputs`` gives the slots that an inner node's mixer takes besides the node's own."""

    lengths: dict[int, int]
    weights: list[int]
    rate: int
    trust: int
    mixers: dict[Code, Mixer] = field(default_factory=dict)
    own: dict[Code, Slot] = field(default_factory=dict)
    slots: dict[tuple[int, Code, int], Slot] = field(default_factory=dict)

    def code(self, coder: Coder, contexts: list[int], symbol: int) -> int:
        codes = canonical_codes(self.lengths)
        leaves = {code: leaf for leaf, code in codes.items()}
        node = (0, 0)
        while node not in leaves:
            mixer = self.mixers.setdefault(node, Mixer(list(self.weights), self.rate))
            own = self.own.setdefault(node, Slot())
            inputs = [own]
            for k, value in enumerate(contexts):
                slot = self.slots.setdefault((k, node, value), Slot())
                slot.start_from(own, self.trust)
                inputs.append(slot)
            depth, prefix = node
            decision = 0
            if isinstance(coder, Encoder):
                length, code = codes[symbol]
                decision = code >> (length - depth - 1) & 1
            node = (depth + 1, 2 * prefix + mixer.decide(coder, inputs, decision))
        return leaves[node]


def rows_and_columns(count: int, model: Model, beside: Beside) -> list[tuple[int, int]]:
    places = range(count) if beside.places is None else beside.places
    return [(place // model.columns, place % model.columns % 65536) for place in places]


def code_neighbours(
    coder: Coder, count: int, given: Sequence[int], lengths: dict[int, int], model: Model, beside: Beside
) -> list[int]:
    tree = Tree(lengths, [20000, 8000, 10000, 8000, 16000, 8000], 14, 2)
    columns: dict[int, Line] = {}
    row, number = Line(), -1

    def value(context: int | None) -> int:
        return 0 if context is None else ((context >> (5 + model.resolution)) + 1) % 256

    def scaled(symbol: int | None) -> int | None:
        return None if symbol is None else 256 * symbol

    symbols = []
    places = rows_and_columns(count, model, beside)
    in_row, in_column = Counter(r for r, _ in places), Counter(c for _, c in places)
    before = 0
    for i, (r, c) in enumerate(places):
        place = i if beside.places is None else beside.places[i]
        if r != number:
            row, number = Line(), r
        column = columns.setdefault(c, Line())
        if row.mean is not None and column.mean is not None:
            both: int | None = (row.mean + column.mean) >> 1
        else:
            both = column.mean if row.mean is None else row.mean
        values = [value(context) for context in (both, None, column.mean, row.mean, scaled(column.latest))]
        if row.latest is not None:
            values[1] = 1 + 4 * row.latest + min((place - before - 1).bit_length(), 3)
        before = place
        if beside.sparse:
            values[3] = (in_row[r] * in_column[c]).bit_length()
        upper = tree.code(coder, values, given[i] if given else 0)
        row.take_up(upper, 4)
        column.take_up(upper, 3)
        symbols.append(upper)
    return symbols


def code_planes(
    coder: Coder,
    count: int,
    given: Sequence[int],
    given_signs: Sequence[int],
    lengths: dict[int, int],
    model: Model,
    beside: Beside,
) -> tuple[list[int], list[int]]:
    assert beside.last is not None
    assert beside.next is not None
    tree = Tree(lengths, [21845] * 3, 16, 4)
    mixer = Mixer([21845] * 3, 16)
    tops, around = [Slot() for _ in range(256)], [Slot() for _ in range(4)]
    column_slots: dict[int, Slot] = {}
    columns: dict[int, Line] = {}
    row, number = Line(), -1
    symbols, signs = [], []
    for i, (r, c) in enumerate(rows_and_columns(count, model, beside)):
        top = beside.last[i]
        symbols.append(tree.code(coder, [top, beside.next[i]], given[i] if given else 0))
        if model.kind != 3:
            continue
        if r != number:
            row, number = Line(), r
        column = columns.setdefault(c, Line())
        inputs = [tops[top], around[row.sign + 2 * column.sign], column_slots.setdefault(c, Slot())]
        sign = mixer.decide(coder, inputs, given_signs[i] if given_signs else 0)
        row.sign = column.sign = sign
        signs.append(sign)
    return symbols, signs


# 6.4 The stream ---------------------------------------------------------------------------------------------------


def split_symbol(symbol: int, model: Model) -> tuple[int, int, int]:
    """The upper symbol, the raw bits and the sign."""
    low = symbol % (1 << model.raw)
    return (symbol >> model.raw, low >> 1, low & 1) if model.kind == 3 else (symbol >> model.raw, low, 0)


def raw_bits(model: Model) -> int:
    return model.raw - 1 if model.kind == 3 else model.raw


def decode_stream(
    coding: int, data: bytes, count: int, width: int, beside: Beside | None = None
) -> list[int]:
    """The symbols of a stream of any coding (section 6)."""
    if coding == 3 and count > 0:
        return decode_range(data, count, width, beside or Beside())
    return streams.decode_stream(coding, data, count, width)


def decode_range(data: bytes, count: int, width: int, beside: Beside) -> list[int]:
    if not data:
        raise Refused("6.4", "the stream has no model")
    head, rest = data[0], data[1:]
    columns, rest = read_varint(rest, "6.4")
    model = Model(head & 3, columns, head >> 2 & 3, head >> 4)
    if columns == 0:
        raise Refused("6.4", "a row has no columns")
    if (model.kind == 0) != (beside.bits > 0):
        raise Refused("6.4", "kind 0 is for bitmaps, and no other kind is")
    if model.kind >= 2 and beside.last is None:
        raise Refused("6.4", f"kind {model.kind} is for planes that have one above them")
    if model.kind != 1 and model.resolution:
        raise Refused("6.4", "the resolution is not zero")
    allowed = {0: range(1), 1: range(width), 2: range(width), 3: range(1, width + 1)}[model.kind]
    if model.raw not in allowed:
        raise Refused("6.4", f"kind {model.kind} cannot have {model.raw} raw bits")

    if model.kind == 0:
        decoder = Decoder(rest)
        bits = code_bits(decoder, [], model, beside)
        decoder.end()
        bits += [0] * (8 * count - len(bits))
        return [sum(bits[8 * i + j] << j for j in range(8)) for i in range(count)]

    lengths = {0: 0}
    if model.raw < width:
        lengths, rest = read_table(rest, width - model.raw)
    each = raw_bits(model)
    raw_length = -(-count * each // 8)
    if raw_length > len(rest):
        raise Refused("6.4", "the stream ends inside the raw bits")
    cut = len(rest) - raw_length
    raw = decode_raw(rest[cut:], count, each) if each else [0] * count
    decoder = Decoder(rest[:cut])
    signs = [0] * count
    if model.kind == 1:
        uppers = code_neighbours(decoder, count, [], lengths, model, beside)
    else:
        uppers, signs = code_planes(decoder, count, [], [], lengths, model, beside)
        signs = signs or [0] * count
    decoder.end()
    if model.kind == 3:
        raw = [2 * bits + sign for bits, sign in zip(raw, signs, strict=True)]
    return [(upper << model.raw) + low for upper, low in zip(uppers, raw, strict=True)]


def encode_decisions(symbols: Sequence[int], lengths: dict[int, int], model: Model, beside: Beside) -> bytes:
    """The field ``decisions`` of a stream of these symbols; those of a bitmap are its bits."""
    encoder = Encoder()
    if model.kind == 0:
        code_bits(encoder, symbols, model, beside)
        return encoder.end()
    parts = [split_symbol(symbol, model) for symbol in symbols]
    uppers, signs = [upper for upper, _, _ in parts], [sign for _, _, sign in parts]
    if model.kind == 1:
        code_neighbours(encoder, len(symbols), uppers, lengths, model, beside)
    else:
        code_planes(encoder, len(symbols), uppers, signs, lengths, model, beside)
    return encoder.end()

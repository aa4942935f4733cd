"""The reference reader, part 1: bits, streams and numbers (docs/format.md, sections 1, 5.3 and 6).

Written from the specification alone and to be read beside it. Slow on purpose: wherever there is a choice, this is the
plainest way, not the fast one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import zstandard

__all__ = [
    "FLOATS",
    "FloatType",
    "Number",
    "Refused",
    "affine_element",
    "canonical_codes",
    "decode_stream",
    "decode_zstd_frame",
    "difference_of",
    "element_of",
    "finite",
    "inner_nodes",
    "integer",
    "plus",
    "read_bits",
    "read_varint",
    "rounded",
    "scaled_element",
    "times",
]


class Refused(ValueError):
    """The file breaks the rule of docs/format.md that stands in ``section``."""

    def __init__(self, section: str, reason: str) -> None:
        super().__init__(f"section {section}: {reason}")
        self.section = section


# 1 Conventions ----------------------------------------------------------------------------------------------------


def read_bits(data: bytes, count: int, section: str) -> list[int]:
    """The first ``count`` bits of ``data``, which has no bytes but those, and only zeros behind the last bit."""
    if len(data) != -(-count // 8):
        raise Refused(section, f"{count} bits do not fill {len(data)} bytes")
    bits = [(byte >> i) & 1 for byte in data for i in range(8)]
    if any(bits[count:]):
        raise Refused(section, "the bits that fill up the last byte are not zero")
    return bits[:count]


def read_varint(data: bytes, section: str) -> tuple[int, bytes]:
    """A varint, and what stands behind it."""
    value = 0
    for i, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if byte == 0 and i > 0:
                raise Refused(section, "a varint is not in its shortest form")
            if value >= 1 << 32:
                raise Refused(section, "a varint is not below 2^32")
            return value, data[i + 1 :]
    raise Refused(section, "a varint does not end")


def number(bits: list[int]) -> int:
    """The number whose bits these are, LSB first."""
    return sum(bit << i for i, bit in enumerate(bits))


# 5.3 Values: the arithmetic of affine -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FloatType:
    """Sign, then ``exponent`` bits, then ``mantissa`` bits; ``overflow`` is the pattern without sign of what is too large."""

    exponent: int
    mantissa: int
    overflow: int

    @property
    def smallest_exponent(self) -> int:
        return 2 - (1 << (self.exponent - 1))

    def value(self, bits: int) -> tuple[bool, Fraction] | None:
        """The sign and the magnitude; nothing for an infinity or a NaN."""
        negative = bool(bits >> (self.exponent + self.mantissa))
        bits &= (1 << (self.exponent + self.mantissa)) - 1
        if bits >= self.overflow:
            return None
        exponent, mantissa = divmod(bits, 1 << self.mantissa)
        if exponent > 0:
            mantissa += 1 << self.mantissa
            exponent -= 1
        return negative, mantissa * Fraction(2) ** (exponent + self.smallest_exponent - self.mantissa)

    def round(self, negative: bool, magnitude: Fraction | None) -> int:
        """To nearest, ties to even; no magnitude stands for an infinite one."""
        sign = negative << (self.exponent + self.mantissa)
        if magnitude is None:
            return sign | self.overflow
        if magnitude == 0:
            return sign
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        if magnitude < Fraction(2) ** exponent:
            exponent -= 1
        exponent = max(exponent, self.smallest_exponent)
        # round() of a Fraction takes ties to even. The leading bit of a normal number adds one to the exponent field.
        mantissa = round(magnitude / Fraction(2) ** (exponent - self.mantissa))
        bits = ((exponent - self.smallest_exponent) << self.mantissa) + mantissa
        return sign | min(bits, self.overflow)


FLOATS = {
    "f64": FloatType(11, 52, 0x7FF << 52),
    "f32": FloatType(8, 23, 0xFF << 23),
    "f16": FloatType(5, 10, 0x1F << 10),
    "bf16": FloatType(8, 7, 0xFF << 7),
    "f8_e4m3fn": FloatType(4, 3, 0x7F),
    "f8_e5m2": FloatType(5, 2, 0x1F << 2),
}


# Sign and magnitude; no magnitude stands for an infinite one.
Number = tuple[bool, Fraction | None]


def finite(dtype: str, bits: int, section: str, what: str) -> Number:
    """The number that the bits of a parameter are."""
    found = FLOATS[dtype].value(bits)
    if found is None:
        raise Refused(section, f"{what} is not finite")
    return found


def integer(value: int) -> Number:
    return value < 0, Fraction(abs(value))


def rounded(dtype: str, number: Number) -> Number:
    """The number of type ``dtype`` that is nearest."""
    value = FLOATS[dtype].value(FLOATS[dtype].round(*number))
    return (number[0], None) if value is None else value


def times(one: Number, other: Number) -> Number:
    """A product, which has the sign of both; its factors are finite."""
    if one[1] is None or other[1] is None:
        raise TypeError("only finite numbers are multiplied")
    return one[0] != other[0], one[1] * other[1]


def plus(one: Number, other: Number) -> Number:
    """A sum as in IEEE 754; ``other`` is finite."""
    if one[1] is None:
        return one
    if other[1] is None:
        raise TypeError("only a product may be infinite")
    total = (-one[1] if one[0] else one[1]) + (-other[1] if other[0] else other[1])
    if total == 0:
        return one[0] and other[0], total
    return total < 0, abs(total)


def scaled_element(dtype: str, scale: Number, level: Number, minimum: Number | None = None) -> int:
    """The bits of round_dtype(round(scale x level) + minimum)."""
    wide = "f64" if dtype == "f64" else "f32"
    result = rounded(wide, times(scale, level))
    if minimum is not None:
        result = rounded(wide, plus(result, minimum))
    return FLOATS[dtype].round(*result)


def affine_element(dtype: str, scale_dtype: str, scale: int, difference: int) -> int:
    """The bits of round(scale x difference), where ``scale`` is the scale's bits and difference is code - zero point."""
    return scaled_element(dtype, finite(scale_dtype, scale, "5.3", "a scale"), integer(difference))


# 5.5 Delta --------------------------------------------------------------------------------------------------------


def in_numeric_order(dtype: str, v: int, w: int) -> int:
    """The function o."""
    return v if dtype not in FLOATS or v < 1 << (w - 1) else (1 << (w - 1)) + (1 << w) - 1 - v


def difference_of(dtype: str, operation: str, x: int, y: int, w: int) -> int:
    """z: what stands in the streams for the element x, where y is that of the base."""
    if operation == "xor":
        return x ^ y
    d = (in_numeric_order(dtype, x, w) - in_numeric_order(dtype, y, w)) % (1 << w)
    return (2 * d if d < 1 << (w - 1) else -2 * d - 1) % (1 << w)


def element_of(dtype: str, operation: str, z: int, y: int, w: int) -> int:
    """x, from z and y."""
    if operation == "xor":
        return z ^ y
    # An even z is twice d. An odd one is -2d - 1, so that d is -(z + 1) / 2.
    d = z // 2 if z % 2 == 0 else -((z + 1) // 2)
    o = (in_numeric_order(dtype, y, w) + d) % (1 << w)
    return in_numeric_order(dtype, o, w)  # which is its own inverse


# 6 Codings --------------------------------------------------------------------------------------------------------


def decode_stream(coding: int, data: bytes, count: int, width: int) -> list[int]:
    """The ``count`` symbols of ``width`` bits that are stored in ``data``, which must be used up exactly."""
    if coding not in (0, 1, 2, 4):
        raise Refused("6", f"the coding {coding} is not allowed")
    if count == 0:
        if coding != 0 or len(data) != 0:
            raise Refused("6", "a stream of no symbols has coding 0 and length 0")
        return []
    if coding == 0:
        return decode_raw(data, count, width)
    if coding == 1:
        return decode_huffman(data, count, width)
    if coding == 4:
        return decode_cascade(data, count, width)
    return decode_zstd(data, count, width)


# 6.1 raw ----------------------------------------------------------------------------------------------------------


def decode_raw(data: bytes, count: int, width: int) -> list[int]:
    if width == 8:
        if len(data) != count:
            raise Refused("6.1", f"{count} bytes are not {len(data)} bytes")
        return list(data)  # what the line below gives, without a list of all bits of a large asset
    bits = read_bits(data, count * width, "6.1")
    return [number(bits[i * width : (i + 1) * width]) for i in range(count)]


# 6.2 huffman ------------------------------------------------------------------------------------------------------

BLOCK = 65_536

Code = tuple[int, int]
"""The length of a code, and the code as a number whose most significant bit is the code's first bit."""


def decode_huffman(data: bytes, count: int, width: int) -> list[int]:
    blocks = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]

    table_length, rest = read_varint(data, "6.2")
    if table_length > len(rest):
        raise Refused("6.2", "the tables are longer than the stream")
    tables, rest = rest[:table_length], rest[table_length:]

    descriptors: list[tuple[dict[int, Code] | None, bool]] = []
    latest: dict[int, Code] | None = None
    for _ in blocks:
        if not tables:
            raise Refused("6.2", "a block has no descriptor")
        descriptor, tables = tables[0], tables[1:]
        mode, packed = descriptor & 3, bool(descriptor & 4)
        if descriptor >> 3:
            raise Refused("6.2", "reserved bits of a descriptor are not zero")
        if mode == 0:
            if packed:
                raise Refused("6.2", "a stored block cannot be packed")
            descriptors.append((None, False))
            continue
        if mode == 1:
            lengths, tables = read_table(tables, width)
            latest = canonical_codes(lengths)
        elif mode == 3:
            raise Refused("6.2", "there is no mode 3")
        if latest is None:
            raise Refused("6.2", "no block before this one has a table")
        descriptors.append((latest, packed))
    if tables:
        raise Refused("6.2", "something stands behind the last table")

    symbols: list[int] = []
    for size, (codes, packed) in zip(blocks, descriptors, strict=True):
        if codes is None:
            length = -(-size * width // 8)
            if length > len(rest):
                raise Refused("6.2", "the data ends inside a stored block")
            symbols += decode_raw(rest[:length], size, width)
            rest = rest[length:]
        else:
            decoded, rest = decode_block(rest, size, codes, packed)
            symbols += decoded
    if rest:
        raise Refused("6.2", "something stands behind the last block")
    return symbols


def read_table(data: bytes, width: int) -> tuple[dict[int, int], bytes]:
    """The length of each symbol's code, and what stands behind the table."""
    lengths, rest = read_numbers(data, width)
    if len(lengths) > 1 and sum(Fraction(1, 2**length) for length in lengths.values()) != 1:
        raise Refused("6.2", "the code is not complete")
    return lengths, rest


def read_numbers(data: bytes, width: int) -> tuple[dict[int, int], bytes]:
    """The number that a table gives for each symbol, and what stands behind it."""
    if len(data) < 2:
        raise Refused("6.2", "a table ends early")
    first, last = data[0], data[1]
    if last < first or last >= 1 << width:
        raise Refused("6.2", f"a table cannot go from {first} to {last}")
    if first == last:
        return {first: 0}, data[2:]

    used = 0

    def take(count: int) -> int:
        nonlocal used
        if used + count > 8 * len(data[2:]):
            raise Refused("6.2", "a table ends early")
        bits = [(data[2 + (used + i) // 8] >> ((used + i) % 8)) & 1 for i in range(count)]
        used += count
        return number(bits)

    current = take(4)
    lengths = {first: current}
    for symbol in range(first + 1, last + 1):
        if take(1) == 0:
            lengths[symbol] = current
            continue
        if take(1) == 0:
            current += 1 if take(1) == 0 else -1
            lengths[symbol] = current
        elif take(1) == 0:
            continue
        else:
            current = take(4)
            lengths[symbol] = current
        if not 1 <= current <= 15:
            raise Refused("6.2", f"a code cannot have {current} bits")
    if lengths[first] == 0:
        raise Refused("6.2", "the first symbol has no code")
    if last not in lengths:
        raise Refused("6.2", "the last symbol has no code")

    end = 2 + -(-used // 8)
    read_bits(data[2:end], used, "6.2")
    return lengths, data[end:]


def canonical_codes(lengths: dict[int, int]) -> dict[int, Code]:
    codes: dict[int, Code] = {}
    code, previous = 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code <<= length - previous
        codes[symbol] = (length, code)
        code, previous = code + 1, length
    return codes


def inner_nodes(codes: dict[int, Code]) -> list[Code]:
    """The inner nodes in the order of their numbers, each as the prefix that leads to it."""
    return sorted(
        {(depth, code >> (length - depth)) for length, code in codes.values() for depth in range(length)}
    )


def decode_block(data: bytes, size: int, codes: dict[int, Code], packed: bool) -> tuple[list[int], bytes]:
    """The symbols of a block, and what stands behind it."""
    passing = {(0, 0): size}  # how many symbols of the block pass through a node
    sequences: dict[Code, list[int]] = {}
    all_bits = [(byte >> i) & 1 for byte in data for i in range(8)]
    position = 0
    for node in inner_nodes(codes):
        count = passing[node]
        bits = all_bits[position : position + count]
        if len(bits) < count:
            raise Refused("6.2", "the data ends inside a block")
        position += count
        if not packed:
            position = fill_up(all_bits, position)
        depth, prefix = node
        passing[depth + 1, 2 * prefix] = bits.count(0)
        passing[depth + 1, 2 * prefix + 1] = bits.count(1)
        sequences[node] = bits
    position = fill_up(all_bits, position)

    # From the root, every symbol takes the next unused bit of each node on its way to a leaf.
    unused: dict[Code, Iterator[int]] = {node: iter(bits) for node, bits in sequences.items()}
    leaves = {code: symbol for symbol, code in codes.items()}
    symbols = []
    for _ in range(size):
        depth, prefix = 0, 0
        while (depth, prefix) not in leaves:
            depth, prefix = depth + 1, 2 * prefix + next(unused[depth, prefix])
        symbols.append(leaves[depth, prefix])
    return symbols, data[position // 8 :]


def fill_up(bits: list[int], position: int) -> int:
    """The start of the next byte; the bits on the way there are zero."""
    end = -(-position // 8) * 8
    if any(bits[position:end]):
        raise Refused("6.2", "the bits that fill up a byte are not zero")
    return end


# 6.3 zstd ---------------------------------------------------------------------------------------------------------


def decode_zstd(data: bytes, count: int, width: int) -> list[int]:
    return decode_raw(decode_zstd_frame(data, -(-count * width // 8), "6.3"), count, width)


def decode_zstd_frame(data: bytes, size: int, section: str) -> bytes:
    """The content of a frame that must say that it has ``size`` bytes, and of which nothing is allocated before that."""
    if data[:4] != bytes.fromhex("28 b5 2f fd"):
        raise Refused(section, "this is not a Zstandard frame")
    try:
        header = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise Refused(section, "the header of the Zstandard frame is broken") from error
    if header.content_size != size or size == 0:
        raise Refused(section, f"the Zstandard frame does not say that it holds {size} bytes")
    if header.dict_id != 0:
        raise Refused(section, "the Zstandard frame needs a dictionary")
    try:
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused(section, "the Zstandard frame is broken") from error
    if len(content) != size:
        raise Refused(section, f"the Zstandard frame does not hold {size} bytes")
    return content


# 6.5 cascade ------------------------------------------------------------------------------------------------------

Level = tuple[int, list[int]]
"""The width of its codes, and its symbols in ascending order, of which each has its index as its code."""


def decode_cascade(data: bytes, count: int, width: int) -> list[int]:
    blocks = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]

    table_length, rest = read_varint(data, "6.5")
    if table_length > len(rest):
        raise Refused("6.5", "the tables are longer than the stream")
    tables, rest = rest[:table_length], rest[table_length:]

    heads: list[tuple[list[Level] | None, list[int]]] = []
    latest: list[Level] | None = None
    for size in blocks:
        if not tables:
            raise Refused("6.5", "a block has no descriptor")
        mode, tables = tables[0], tables[1:]
        if mode > 2:
            raise Refused("6.5", f"there is no descriptor {mode}")
        if mode == 0:
            heads.append((None, []))
            continue
        if mode == 1:
            numbers, tables = read_numbers(tables, width)
            latest = levels_of(numbers)
        if latest is None:
            raise Refused("6.5", "no block before this one has a table")
        passing = [size]
        for _ in latest[1:]:
            number, tables = read_varint(tables, "6.5")
            if number > passing[-1]:
                raise Refused("6.5", "more symbols pass a level than the one before")
            passing.append(number)
        heads.append((latest, passing))
    if tables:
        raise Refused("6.5", "something stands behind the last table")

    symbols: list[int] = []
    for size, (levels, passing) in zip(blocks, heads, strict=True):
        if levels is None:
            length = -(-size * width // 8)
            if length > len(rest):
                raise Refused("6.5", "the data ends inside a stored block")
            symbols += decode_raw(rest[:length], size, width)
            rest = rest[length:]
        else:
            decoded, rest = decode_levels(rest, levels, passing)
            symbols += decoded
    if rest:
        raise Refused("6.5", "something stands behind the last block")
    return symbols


def levels_of(numbers: dict[int, int]) -> list[Level]:
    """The levels that a table stands for. One without a width is that of a single symbol."""
    if len(numbers) == 1:
        return [(0, list(numbers))]
    highest = max(numbers.values())
    levels: list[Level] = []
    for level in range(1, highest + 1):
        symbols = sorted(symbol for symbol, number in numbers.items() if number == level)
        if level < highest:
            widths = [width for width in range(1, 8) if 2**width - 1 == len(symbols)]
        else:
            widths = [width for width in range(1, 9) if 2**width >= len(symbols) >= 2]
        if not widths:
            raise Refused("6.5", f"level {level} cannot have {len(symbols)} symbols")
        levels.append((widths[0], symbols))
    return levels


def decode_levels(data: bytes, levels: list[Level], passing: list[int]) -> tuple[list[int], bytes]:
    """The symbols of a block, and what stands behind it."""
    if levels[0][0] == 0:
        return levels[0][1] * passing[0], data
    codes_of: list[list[int]] = []
    for (width, _), count in zip(levels, passing, strict=True):
        codes: list[int] = []
        for start in range(0, count, 64):
            group = min(64, count - start)
            length = -(-group // 8)
            if width * length > len(data):
                raise Refused("6.5", "the data ends inside a block")
            planes = [read_bits(data[j * length : (j + 1) * length], group, "6.5") for j in range(width)]
            codes += [number([plane[i] for plane in planes]) for i in range(group)]
            data = data[width * length :]
        codes_of.append(codes)

    above: list[int] = []  # the symbols that pass the level above
    for level in reversed(range(len(levels))):
        width, symbols = levels[level]
        last = level == len(levels) - 1
        here: list[int] = []
        used = 0
        for code in codes_of[level]:
            if code < len(symbols):
                here.append(symbols[code])
                continue
            if last or used == len(above):
                raise Refused("6.5", "a code has no symbol")
            here.append(above[used])
            used += 1
        if used < len(above):
            raise Refused("6.5", "fewer symbols pass a level than its count says")
        above = here
    return above, data

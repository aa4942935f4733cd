"""The reference writer, part 1: streams (docs/format.md, sections 1 and 6)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import zstandard
from tests.reference.dcz_reference_range import Beside, Model, encode_decisions, raw_bits, split_symbol
from tests.reference.dcz_reference_streams import BLOCK, canonical_codes, inner_nodes

__all__ = [
    "Block",
    "Coder",
    "RangeCoder",
    "Stream",
    "cascade",
    "encode_table",
    "fixed",
    "huffman",
    "optimal_lengths",
    "pack_bits",
    "pack_symbols",
    "raw",
    "some_levels",
    "varint",
    "zstd",
    "zstd_frame",
    "zstd_library",
]

# 1 and 6 Streams --------------------------------------------------------------------------------------------------

Stream = tuple[int, bytes]
"""The id of the coding, and the stored bytes."""

Coder = Callable[[Sequence[int], int], Stream]
"""Takes symbols and their width in bits."""


def pack_bits(bits: Sequence[int]) -> bytes:
    return bytes(sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))


def pack_symbols(symbols: Sequence[int], width: int) -> bytes:
    return (
        pack_bits([(symbol >> i) & 1 for symbol in symbols for i in range(width)])
        if width < 8
        else bytes(symbols)
    )


def fixed(coding: int, data: bytes) -> Coder:
    """Writes what it was told, whatever the symbols are."""
    return lambda symbols, width: (coding, data)


def raw(symbols: Sequence[int], width: int) -> Stream:
    return 0, pack_symbols(symbols, width)


# 6.2 huffman


@dataclass(frozen=True)
class Block:
    """How a block of a Huffman stream is written; ``lengths`` None stands for the optimal ones of the block."""

    mode: str = "new"
    packed: bool = False
    lengths: Mapping[int, int] | None = None


def varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def huffman(*blocks: Block, packed: bool = False) -> Coder:
    """Without ``blocks``, every block has its own table. With fewer than there are, the last one is repeated."""

    def code(symbols: Sequence[int], width: int) -> Stream:
        tables = data = b""
        lengths: Mapping[int, int] = {}
        for i, at in enumerate(range(0, len(symbols), BLOCK)):
            block = blocks[min(i, len(blocks) - 1)] if blocks else Block(packed=packed)
            content = symbols[at : at + BLOCK]
            tables += bytes([("stored", "new", "same").index(block.mode) + 4 * block.packed])
            if block.mode == "stored":
                data += pack_symbols(content, width)
                continue
            if block.mode == "new":
                lengths = block.lengths or optimal_lengths(content)
                tables += encode_table(lengths)
            data += encode_block(content, lengths, block.packed)
        return 1, varint(len(tables)) + tables + data

    return code


def optimal_lengths(symbols: Sequence[int], limit: int = 15) -> dict[int, int]:
    """The best code of at most ``limit`` bits, by package-merge (Larmore and Hirschberg 1990)."""
    counts = Counter(symbols)
    if len(counts) == 1:
        return dict.fromkeys(counts, 0)
    coins = sorted((count, [symbol]) for symbol, count in counts.items())
    row = coins
    for _ in range(limit - 1):
        pairs = [(row[i][0] + row[i + 1][0], row[i][1] + row[i + 1][1]) for i in range(0, len(row) - 1, 2)]
        row = sorted(coins + pairs)
    lengths = Counter(symbol for _, package in row[: 2 * len(coins) - 2] for symbol in package)
    return dict(sorted(lengths.items()))


def encode_table(lengths: Mapping[int, int]) -> bytes:
    first, last = min(lengths), max(lengths)
    if first == last:
        return bytes([first, last])
    four = {length: [length >> i & 1 for i in range(4)] for length in range(16)}
    current = lengths[first]
    bits = list(four[current])
    for symbol in range(first + 1, last + 1):
        length = lengths.get(symbol)
        if length is None:
            bits += [1, 1, 0]
            continue
        bits += {0: [0], 1: [1, 0, 0], -1: [1, 0, 1]}.get(length - current, [1, 1, 1, *four[length]])
        current = length
    return bytes([first, last]) + pack_bits(bits)


def encode_block(symbols: Sequence[int], lengths: Mapping[int, int], packed: bool) -> bytes:
    codes = canonical_codes(dict(lengths))
    sequences: dict[tuple[int, int], list[int]] = {node: [] for node in inner_nodes(codes)}
    for symbol in symbols:
        length, code = codes[symbol]
        for depth in range(length):
            sequences[depth, code >> (length - depth)].append(code >> (length - depth - 1) & 1)
    if packed:
        return pack_bits([bit for bits in sequences.values() for bit in bits])
    return b"".join(pack_bits(bits) for bits in sequences.values())


# 6.3 zstd


def zstd_frame(content: bytes) -> bytes:
    """A frame (RFC 8878) of raw and run-length blocks only, the same for every release of every library."""
    size = len(content)
    if size < 256:
        header = bytes([0x20, size])
    elif size < 65_536 + 256:
        header = b"\x60" + struct.pack("<H", size - 256)
    else:
        header = b"\xa0" + struct.pack("<I", size)

    blocks: list[tuple[int, int, bytes]] = []
    literal = b""
    for byte, run in groupby(content):
        length = len(list(run))
        if length < 16:
            literal += bytes([byte]) * length
            continue
        blocks += raw_blocks(literal)
        literal = b""
        blocks += [(1, min(BLOCK, length - at), bytes([byte])) for at in range(0, length, BLOCK)]
    blocks += raw_blocks(literal)

    body = b""
    for i, (kind, length, data) in enumerate(blocks):
        body += ((i == len(blocks) - 1) | kind << 1 | length << 3).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd" + header + body


def raw_blocks(data: bytes) -> list[tuple[int, int, bytes]]:
    return [(0, len(data[at : at + BLOCK]), data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]


def zstd(symbols: Sequence[int], width: int) -> Stream:
    return 2, zstd_frame(pack_symbols(symbols, width))


def zstd_library(symbols: Sequence[int], width: int) -> Stream:
    return 2, zstandard.ZstdCompressor().compress(pack_symbols(symbols, width))


# 6.4 range


@dataclass(frozen=True)
class RangeCoder:
    """``raw`` and ``signs`` are for planes that have others above them. ``lengths`` None: the optimal ones."""

    columns: int = 3
    resolution: int = 0
    raw: int = 0
    signs: bool = False
    lengths: Mapping[int, int] | None = None

    def __call__(self, symbols: Sequence[int], width: int, beside: Beside | None = None) -> Stream:
        beside = beside or Beside()
        if beside.bits:
            bits = [symbols[i // 8] >> i % 8 & 1 for i in range(beside.bits)]
            model = Model(0, self.columns)
            return 3, self.head(model) + encode_decisions(bits, {}, model, beside)
        if beside.last is None:
            model = Model(1, self.columns, self.resolution)
        else:
            model = Model(3 if self.signs else 2, self.columns, 0, self.raw)
        parts = [split_symbol(symbol, model) for symbol in symbols]
        data, lengths = self.head(model), dict(self.lengths or {0: 0})
        if model.raw < width:
            lengths = dict(self.lengths or optimal_lengths([upper for upper, _, _ in parts]))
            data += encode_table(lengths)
        data += encode_decisions(symbols, lengths, model, beside)
        each = raw_bits(model)
        return 3, data + (pack_symbols([low for _, low, _ in parts], each) if each else b"")

    @staticmethod
    def head(model: Model) -> bytes:
        return bytes([model.kind | model.resolution << 2 | model.raw << 4]) + varint(model.columns)


# 6.5 cascade


def cascade(*blocks: Block) -> Coder:
    """As ``huffman``, but ``lengths`` are levels; None: some that fit the symbols of the block."""

    def code(symbols: Sequence[int], width: int) -> Stream:
        tables = data = b""
        levels: Mapping[int, int] = {}
        for i, at in enumerate(range(0, len(symbols), BLOCK)):
            block = blocks[min(i, len(blocks) - 1)] if blocks else Block()
            content = symbols[at : at + BLOCK]
            tables += bytes([("stored", "new", "same").index(block.mode)])
            if block.mode == "stored":
                data += pack_symbols(content, width)
                continue
            if block.mode == "new":
                levels = block.lengths or some_levels(content)
                tables += encode_table(levels)
            counts, coded = encode_levels(content, levels)
            tables += b"".join(varint(count) for count in counts)
            data += coded
        return 4, varint(len(tables)) + tables + data

    return code


def some_levels(symbols: Sequence[int]) -> dict[int, int]:
    """The most frequent symbol on level 1, three on level 2, seven on level 3 and so on."""
    left = [symbol for symbol, _ in Counter(symbols).most_common()]
    levels: dict[int, int] = {}
    level = 1
    while len(left) > 1 << level:
        levels |= dict.fromkeys(left[: (1 << level) - 1], level)
        left = left[(1 << level) - 1 :]
        level += 1
    return dict(sorted((levels | dict.fromkeys(left, level)).items()))


def encode_levels(symbols: Sequence[int], levels: Mapping[int, int]) -> tuple[list[int], bytes]:
    """The counts of all levels but the first, and the data of a block."""
    if len(levels) == 1:
        return [], b""
    counts, data, highest = list[int](), b"", max(levels.values())
    for level in range(1, highest + 1):
        own = sorted(symbol for symbol, number in levels.items() if number == level)
        width = len(own).bit_length() if level < highest else (len(own) - 1).bit_length()
        passing = [symbol for symbol in symbols if levels[symbol] >= level]
        codes = [own.index(symbol) if levels[symbol] == level else (1 << width) - 1 for symbol in passing]
        counts.append(len(passing))
        for start in range(0, len(codes), 64):
            group = codes[start : start + 64]
            data += b"".join(pack_bits([code >> j & 1 for code in group]) for j in range(width))
    return counts[1:], data

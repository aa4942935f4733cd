"""Every example of docs/format.md, executed with the reference implementation and with the native one.

An example is a fenced block with the info string ``example``: lines of ``key: value``, of which the first names its kind.
Each kind has a function here that computes every other line. A line that is not looked at fails the test, and so does a
block, or a kind, that nothing executes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.reference.dcz_reference import decode_stream, read, stored_positions
from tests.reference.dcz_reference_coders import (
    Block,
    RangeCoder,
    cascade,
    encode_table,
    fixed,
    huffman,
    raw,
)
from tests.reference.dcz_reference_manifest import DTYPES
from tests.reference.dcz_reference_range import Beside, Encoder, squash, stretch
from tests.reference.dcz_reference_streams import (
    canonical_codes,
    inner_nodes,
    levels_of,
    read_numbers,
    read_table,
)
from tests.reference.dcz_reference_writer import (
    Affine,
    Codebook,
    Coded,
    Exact,
    ScaledCodebook,
    Tensor,
    Vectors,
    draft,
    tensor,
)

from dcz.format import Reader, verify

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


class Example:
    """The lines of an example; ``unused`` are those that no one has looked at."""

    def __init__(self, text: str) -> None:
        self.lines = dict(line.split(": ", 1) for line in text.splitlines())
        if len(self.lines) != len(text.splitlines()):
            raise AssertionError("a key stands twice in an example")
        self.kind = self.lines.pop("example")
        self.unused = set(self.lines)

    def text(self, key: str) -> str:
        self.unused.discard(key)
        return self.lines[key]

    def bytes(self, key: str) -> bytes:
        text = self.text(key)
        assert re.fullmatch(r"[0-9A-F]{2}( [0-9A-F]{2})*", text), f"{key} is not written as bytes"
        return bytes.fromhex(text)

    def numbers(self, key: str) -> list[int]:
        return [int(word) for word in self.text(key).split()]

    def bits(self, key: str) -> list[int]:
        return [int(bit) for bit in self.text(key).replace(" ", "")]


EXAMPLES = [Example(text) for info, text in BLOCKS if info == "example"]


def content_by_both(one: Tensor) -> bytes:
    """What both readers give for a file with this tensor."""
    data = draft([one]).build()
    reference = read(data).tensors["t"].data
    verify(data, deep=True)
    with Reader(data) as reader:
        assert reader.read("t").tobytes() == reference
    return reference


def split(one: Tensor) -> list[bytes]:
    """The streams of a tensor."""
    stored, streams = b"".join(one.parts), []
    for length in one.fields["lengths"]:
        streams.append(stored[:length])
        stored = stored[length:]
    return streams


# 2.3


def run_file(example: Example) -> None:
    data = b"".join(example.bytes(key) for key in example.lines if not key.startswith("= "))
    assert f"Its {len(data)} bytes" in TEXT
    reference = read(data)
    assert reference.identity == example.text("= identity")
    assert (reference.tensors, reference.assets) == ({}, {})
    assert verify(data, deep=True).digest == reference.identity
    with Reader(data) as reader:
        assert (reader.digest, reader.keys(), reader.assets()) == (reference.identity, [], [])


# 5.2


def run_layout(example: Example) -> None:
    elements = example.bytes("elements")
    layout: dict[str, Any] = {"kind": example.kind}
    if example.kind == "relative-index":
        layout["bits"] = example.numbers("bits")[0]
    one = tensor("t", "u8", [len(elements)], Exact(elements), layout=layout)
    positions, values = split(one)
    assert one.fields["entries"] == example.numbers("= entries")
    assert positions == example.bytes("= position stream")
    assert values == example.bytes("= value stream")
    if example.kind == "relative-index":
        assert one.fields["gaps"] == example.numbers("= gaps")
        symbols = decode_stream(0, positions, one.fields["gaps"][0], layout["bits"])
        assert symbols == example.numbers("gap symbols")
        expected = example.numbers("= positions")
    else:
        symbols = decode_stream(0, positions, -(-len(elements) // 8), 8)
        expected = example.numbers("ones")
    assert stored_positions(one.fields, 0, len(elements), [symbols]) == expected
    assert content_by_both(one) == elements


# 5.3


def run_rotated(example: Example) -> None:
    elements, dtype = example.bytes("elements"), example.text("dtype")
    offset = example.numbers("offset")[0] if "offset" in example.lines else 0
    stored = example.text("stored_dtype") if "stored_dtype" in example.lines else None
    one = tensor("t", dtype, [len(elements) // DTYPES[dtype]], Exact(elements, "rotated", offset, stored))
    planes = split(one)
    assert planes == [example.bytes(f"= plane {i}") for i in range(len(planes))]
    assert content_by_both(one) == elements


def run_affine(example: Example) -> None:
    codes, zero_points = example.numbers("codes"), example.numbers("zero points")
    values = Affine(example.numbers("bits")[0], codes, example.bytes("scales"), zero_points)
    one = tensor("t", example.text("dtype"), [len(codes)], values)
    assert split(one)[1:] == [example.bytes("= zero point stream"), example.bytes("= value stream")]
    assert content_by_both(one) == example.bytes("= elements")


def run_codebook(example: Example) -> None:
    codes = example.numbers("codes")
    (bits,), (size,) = example.numbers("bits"), example.numbers("size")
    one = tensor(
        "t", example.text("dtype"), [len(codes)], Codebook(bits, size, codes, example.bytes("centroids"))
    )
    assert split(one) == [example.bytes("centroids"), example.bytes("= value stream")]
    assert content_by_both(one) == example.bytes("= elements")


def run_affine_minimums(example: Example) -> None:
    codes = example.numbers("codes")
    values = Affine(
        example.numbers("bits")[0],
        codes,
        example.bytes("scales"),
        minimums=example.bytes("minimums"),
        zero_point=example.numbers("zero point")[0],
    )
    one = tensor("t", example.text("dtype"), [len(codes)], values)
    assert split(one) == [
        example.bytes("scales"),
        example.bytes("minimums"),
        example.bytes("= value stream"),
    ]
    assert content_by_both(one) == example.bytes("= elements")


def run_scaled_codebook(example: Example) -> None:
    codes = example.numbers("codes")
    (bits,), (size,), (group,) = (example.numbers(key) for key in ("bits", "size", "group"))
    table, scales = example.bytes("table"), example.bytes("scales")
    granularity = {"kind": "group", "size": group}
    values = ScaledCodebook(bits, size, codes, table, scales, example.text("scale_dtype"), granularity)
    one = tensor("t", example.text("dtype"), [len(codes)], values)
    assert split(one) == [scales, table, example.bytes("= value stream")]
    assert content_by_both(one) == example.bytes("= elements")


def run_vectors(example: Example) -> None:
    codes = example.numbers("codes")
    (bits,), (size,), (d,), (rows,) = (example.numbers(key) for key in ("bits", "size", "dimension", "rows"))
    words = example.bytes("codewords")
    shape = [rows, len(codes) * d // rows]
    one = tensor("t", example.text("dtype"), shape, Vectors(bits, size, d, codes, words))
    assert split(one) == [words, example.bytes("= value stream")]
    assert content_by_both(one) == example.bytes("= elements")


# 5.4


def run_indexed(example: Example) -> None:
    codes, index = example.numbers("codes"), example.bytes("index")
    (bits,), (rows,), (groups,) = (example.numbers(key) for key in ("bits", "rows", "groups"))
    columns = [int.from_bytes(index[at : at + 2], "little") for at in range(0, len(index), 2)]
    values = Affine(
        bits,
        codes,
        example.bytes("scales"),
        granularity={"kind": "indexed", "groups": groups},
        index=columns,
    )
    one = tensor("t", example.text("dtype"), [rows, len(codes) // rows], values)
    assert split(one)[1] == index
    assert content_by_both(one) == example.bytes("= elements")


# 5.6


def run_coded_scales(example: Example) -> None:
    codes, scale_codes = example.numbers("codes"), example.numbers("scale codes")
    (bits,), (scale_bits,), (group,) = (example.numbers(key) for key in ("bits", "scale bits", "group"))
    dtype, outer = example.text("outer dtype"), example.bytes("outer scales")
    scales = Coded(scale_bits, scale_codes, group, outer, dtype)
    streams = [example.bytes("= scale stream"), outer]
    if example.text("values") == "codebook":
        table, offset = example.bytes("table"), example.bytes("offset")
        scales = Coded(scale_bits, scale_codes, group, outer, dtype, table=table, offset=offset)
        streams[1:] = [table, outer, offset]
    values = Affine(bits, codes, scales, granularity={"kind": "group", "size": 1})
    one = tensor("t", example.text("dtype"), [len(codes)], values)
    assert split(one)[:-1] == streams
    assert content_by_both(one) == example.bytes("= elements")


# 5.5


def run_delta(example: Example) -> None:
    before, elements, dtype = example.bytes("base"), example.bytes("elements"), example.text("dtype")
    shape = [len(elements) // DTYPES[dtype]]
    base = draft([tensor("t", dtype, shape, Exact(before))]).build()
    identity = read(base).identity
    delta = {"operation": example.text("operation")}
    one = tensor("t", dtype, shape, Exact(elements, delta=delta, base=before))
    assert split(one) == [example.bytes("= differences")]
    data = draft([one], bases=[{"digest": bytes.fromhex(identity.removeprefix("blake3:"))}]).build()
    assert read(data, bases={identity: base}).tensors["t"].data == elements
    verify(data, deep=True, base=base)
    with Reader(data, base=base) as reader:
        assert reader.read("t").tobytes() == elements


# 6


def check_stream(example: Example, coding: int, symbols: Sequence[int], width: int) -> None:
    """Both readers get the symbols from the stream: the native one as codes of a codebook that changes nothing."""
    stream = example.bytes("= stream")
    assert decode_stream(coding, stream, len(symbols), width) == symbols
    values = Codebook(width, 1 << width, symbols, bytes(range(1 << width)))
    one = tensor("t", "u8", [len(symbols)], values, coders=[raw, fixed(coding, stream)])
    assert content_by_both(one) == bytes(symbols)


def run_raw(example: Example) -> None:
    (width,), symbols = example.numbers("width"), example.numbers("symbols")
    assert example.bits("bits") == [symbol >> i & 1 for symbol in symbols for i in range(width)]
    assert raw(symbols, width) == (0, example.bytes("= stream"))
    check_stream(example, 0, symbols, width)


def run_huffman(example: Example) -> None:
    (width,), symbols = example.numbers("width"), example.numbers("symbols")
    lengths = {int(symbol): int(length) for symbol, length in pairs(example.text("lengths"))}
    codes = {int(symbol): code for symbol, code in pairs(example.text("codes"))}
    assert {
        symbol: f"{code:0{length}b}" for symbol, (length, code) in canonical_codes(lengths).items()
    } == codes

    nodes = example.text("nodes").split()
    prefixes = ["" if node == "root" else node for node in nodes]
    assert [(len(prefix), int(prefix or "0", 2)) for prefix in prefixes] == inner_nodes(
        canonical_codes(lengths)
    )
    bits_of = []
    for node, prefix in zip(nodes, prefixes, strict=True):
        passing = [codes[symbol] for symbol in symbols if codes[symbol].startswith(prefix)]
        bits_of.append([int(code[len(prefix)]) for code in passing])
        assert bits_of[-1] == example.bits(f"bits of {node}")

    table = example.bytes("first and last") + example.bytes("lengths, filled up")
    assert encode_table(lengths) == table
    assert read_table(table, width) == (lengths, b"")
    bits = example.bits("bits of lengths")
    assert bits == [byte >> i & 1 for byte in table[2:] for i in range(8)][: len(bits)]
    packed = "data" in example.lines
    data = [example.bytes(key) for key in (["data"] if packed else [f"data of {node}" for node in nodes])]
    parts = [example.bytes("table length"), example.bytes("descriptor"), table, *data]
    assert b"".join(parts) == example.bytes("= stream")
    assert huffman(Block("new", packed, lengths))(symbols, width) == (1, example.bytes("= stream"))
    check_stream(example, 1, symbols, width)


def run_cascade(example: Example) -> None:
    (width,), symbols = example.numbers("width"), example.numbers("symbols")
    levels = {int(symbol): int(level) for symbol, level in pairs(example.text("levels"))}
    passing, data = symbols, list[bytes]()
    for level, (wide, own) in enumerate(levels_of(levels), 1):
        codes = [own.index(symbol) if symbol in own else (1 << wide) - 1 for symbol in passing]
        assert codes == example.numbers(f"codes of level {level}")
        passing = [symbol for symbol in passing if symbol not in own]
        data.append(example.bytes(f"data of level {level}"))
    assert passing == []

    table = example.bytes("first and last") + example.bytes("levels, filled up")
    assert encode_table(levels) == table
    assert read_numbers(table, width) == (levels, b"")
    bits = example.bits("bits of table")
    assert bits == [byte >> i & 1 for byte in table[2:] for i in range(8)][: len(bits)]
    parts = [
        example.bytes("table length"),
        example.bytes("descriptor"),
        table,
        example.bytes("count of level 2"),
    ]
    assert b"".join([*parts, *data]) == example.bytes("= stream")
    assert cascade(Block(lengths=levels))(symbols, width) == (4, example.bytes("= stream"))
    check_stream(example, 4, symbols, width)


class RecordingEncoder(Encoder):
    """Keeps the probabilities and decisions, as an example writes them."""

    coded: list[str]

    def decide(self, probability: int, decision: int) -> int:
        self.coded.append(f"{probability}={decision}")
        return super().decide(probability, decision)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the reference range coder codes from now on."""
    coded: list[str] = []
    monkeypatch.setattr(RecordingEncoder, "coded", coded, raising=False)
    monkeypatch.setattr("tests.reference.dcz_reference_range.Encoder", RecordingEncoder)
    return coded


def run_range(example: Example, recorded: list[str]) -> None:
    (width,), (columns,), symbols = (example.numbers(key) for key in ("width", "columns", "symbols"))
    lengths = {int(symbol): int(length) for symbol, length in pairs(example.text("lengths"))}
    head, decisions = example.bytes("model and columns"), example.bytes("decisions")
    assert encode_table(lengths) == example.bytes("table")
    stream = example.bytes("= stream")
    assert head + encode_table(lengths) + decisions == stream
    assert RangeCoder(columns, lengths=lengths)(symbols, width) == (3, stream)
    assert recorded == example.text("coded").split()
    check_stream(example, 3, symbols, width)


def run_range_bits(example: Example, recorded: list[str]) -> None:
    (count,), (columns,), ones = (example.numbers(key) for key in ("elements", "columns", "ones"))
    elements = bytes(i in ones for i in range(count))
    stream = example.bytes("= stream")
    assert example.bytes("model and columns") + example.bytes("decisions") == stream
    one = tensor(
        "t", "u8", [count], Exact(elements), layout={"kind": "bitmap"}, coders=[RangeCoder(columns), raw]
    )
    assert split(one)[0] == stream
    assert recorded == example.text("coded").split()
    symbols = decode_stream(3, stream, -(-count // 8), 8, Beside(bits=count))
    assert stored_positions(one.fields, 0, count, [symbols]) == ones
    assert content_by_both(one) == elements


def test_values_of_squash_and_stretch() -> None:
    text = " ".join(TEXT.split())
    for function in (squash, stretch):
        values = re.findall(rf"{function.__name__}\((\d+)\) is (\u2212?)([\d,]*\d)", text)
        assert len(values) == 2
        for x, minus, value in values:
            assert function(int(x)) == int(value.replace(",", "")) * (-1 if minus else 1)


def pairs(text: str) -> list[list[str]]:
    return [word.split("=") for word in text.split()]


RUN: dict[str, Callable[..., None]] = {
    "file": run_file,
    "relative-index": run_layout,
    "bitmap": run_layout,
    "rotated": run_rotated,
    "affine": run_affine,
    "affine-minimums": run_affine_minimums,
    "codebook": run_codebook,
    "scaled-codebook": run_scaled_codebook,
    "vectors": run_vectors,
    "indexed": run_indexed,
    "coded-scales": run_coded_scales,
    "delta": run_delta,
    "raw": run_raw,
    "huffman": run_huffman,
    "cascade": run_cascade,
    "range": run_range,
    "range-bits": run_range_bits,
}


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=[f"{i}-{example.kind}" for i, example in enumerate(EXAMPLES, 1)]
)
def test_example(example: Example, recorded: list[str]) -> None:
    example.unused = set(example.lines)
    run = RUN[example.kind]
    if example.kind.startswith("range"):
        run(example, recorded)
    else:
        run(example)
    assert example.unused == set(), "lines of the example that nothing looked at"


def test_no_block_is_left_out() -> None:
    assert {info for info, _ in BLOCKS} == {"", "example"}
    assert sum(info == "" for info, _ in BLOCKS) == 1, "only the picture of the file is not an example"
    assert {example.kind for example in EXAMPLES} == set(RUN)
    assert TEXT.count("```") == 2 * len(BLOCKS)

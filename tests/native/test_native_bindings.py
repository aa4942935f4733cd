"""Whatever the kernels are called with: a result, or an exception that fits; never a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import forced, on_each_isa

from dcz import _native
from dcz.errors import CorruptStream

native: Any = _native
Call = tuple[Any, ...]
"""The name of a kernel, and its arguments."""

Z = np.zeros(8, np.uint8)
W = np.zeros(8, np.uint32)
ONE = np.ones(1, np.float32)
TENSOR = ("tensor", 1, 1)


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


VALUE_ERRORS: list[Call] = [
    *(("pack", Z, width) for width in (0, 9, 1 << 31)),
    *(("unpack", Z, width, zeros(8)) for width in (0, 9)),
    *(("huffman_encode", Z, width, 99) for width in (0, 9)),
    *(("huffman_decode", Z, width, zeros(8)) for width in (0, 9)),
    *(("encode_gaps", Z, bits) for bits in (0, 9)),
    *(("gap_positions", Z, bits, 8, zeros(32)) for bits in (0, 9)),
    ("pack", Z + 4, 2),
    ("huffman_encode", Z + 4, 2, 99),
    ("pack", np.zeros((4, 4), np.uint8)[:, ::2], 4),
    ("huffman_encode", np.zeros(16, np.uint8)[::2], 8, 99),
    *(("split_planes", Z, size, False, zeros(8)) for size in (0, 3, 16)),
    ("split_planes", zeros(7), 2, False, zeros(7)),
    ("split_planes", Z, 2, False, zeros(6)),
    *(("decode_planes", [(False, Z)] * count, False, zeros(8 * count)) for count in (0, 3, 5, 16)),
    ("decode_planes", [(False, Z)] * 2, False, zeros(15)),
    ("gap_positions", Z, 8, 1 << 32, zeros(32)),
    ("gap_positions", Z, 8, 8, zeros(31)),
    ("gap_positions", Z, 8, 8, zeros(33)[1:]),
    ("bitmap_positions", Z, 1 << 32, zeros(32)),
    ("bitmap_positions", Z, 64, zeros(31)),
    *(("scatter", W[:1], zeros(size), size, zeros(64)) for size in (0, 3, 16)),
    ("scatter", W[:2], zeros(4), 4, zeros(64)),
    ("scatter", W[:1], zeros(4), 4, zeros(63)),
    ("scatter", W[:1] + np.uint32(16), zeros(4), 4, zeros(64)),
    ("scatter", zeros(9)[1:], zeros(2), 1, zeros(64)),
    ("look_up", Z, bytes(4), 0, 1, TENSOR, 0, None, zeros(8)),
    ("look_up", Z, bytes(4), 257, 1, TENSOR, 0, None, zeros(8)),
    ("look_up", Z, bytes(4), 4, 3, TENSOR, 0, None, zeros(24)),
    ("look_up", Z, bytes(4), 4, 1, TENSOR, 0, None, zeros(7)),
    ("look_up", Z, bytes(4), 4, 1, TENSOR, 0, W[:7], zeros(8)),
    ("look_up", Z, bytes(4), 4, 1, TENSOR, 1 << 63, None, zeros(8)),
    ("look_up", Z, bytes(4), 4, 1, TENSOR, (1 << 64) - 1, None, zeros(8)),
    *(
        ("look_up", Z, bytes(4), 4, 1, groups, 0, None, zeros(8))
        for groups in [("tensor", 0, 1), ("channel", 1, 0), ("group", 1, 1 << 62), ("row", 1, 1), ("", 1, 1)]
    ),
    *(("dequantize", Z, ONE, None, 8, dtype, TENSOR, 0, None, zeros(64)) for dtype in ("i32", "float32", "")),
    ("dequantize", Z, ONE, None, 9, "f32", TENSOR, 0, None, zeros(32)),
    ("dequantize", Z, ONE, None, 8, "f32", TENSOR, 0, None, zeros(31)),
    ("dequantize", Z, zeros(3), None, 8, "f32", TENSOR, 0, None, zeros(32)),
    ("dequantize", Z, ONE, None, 8, "f64", TENSOR, 0, None, zeros(64)),
    ("histogram", Z, zeros(255 * 8)),
    ("histogram", Z, zeros(256 * 8 - 1)),
]

TYPE_ERRORS: list[Call] = [
    *(("pack", symbols, 4) for symbols in ("text", 3, None, [1, 2])),
    *(("pack", Z, width) for width in (-1, 1.5, "4", None, 1 << 40)),
    *(("huffman_encode", Z, 8, limit) for limit in (-1, 1 << 70, 1.5)),
    ("huffman_estimate", "text"),
    ("huffman_table_bytes", None),
    *(
        ("decode_planes", streams, False, zeros(8))
        for streams in (3, None, [1], [(True,)], [("x", Z)], [(True, "x")], [(True, Z, 3)], b"ab")
    ),
    *(
        ("look_up", Z, bytes(4), 4, 1, groups, 0, None, zeros(8))
        for groups in [(1, 2, 3), ("tensor", -1, 1), ("tensor", "1", 1), ("tensor", 1), (), None, 3]
    ),
    ("look_up", Z, bytes(4), 4, 1, TENSOR, -1, None, zeros(8)),
    ("look_up", Z, bytes(4), 4, 1, TENSOR, 0, 3, zeros(8)),
    ("dequantize", Z, ONE, None, 8, None, TENSOR, 0, None, zeros(32)),
    ("dequantize", Z, ONE, 3, 8, "f32", TENSOR, 0, None, zeros(32)),
    ("split_planes", Z, 2, "yes", zeros(8)),
    ("pack",),
    ("pack", Z, 4, 4),
    ("force_isa", 3),
]


def numbered(calls: list[Call]) -> list[Any]:
    return [pytest.param(call, id=f"{call[0]} {number}") for number, call in enumerate(calls)]


@pytest.mark.parametrize("call", numbered(VALUE_ERRORS))
def test_sizes_that_do_not_fit_are_value_errors(call: Call) -> None:
    with pytest.raises(ValueError, match=r"."):
        getattr(native, call[0])(*call[1:])


@pytest.mark.parametrize("call", numbered(TYPE_ERRORS))
def test_other_types_are_type_errors(call: Call) -> None:
    with pytest.raises(TypeError):
        getattr(native, call[0])(*call[1:])


@pytest.mark.parametrize("freeze", [bytes, lambda out: memoryview(out).toreadonly()], ids=["bytes", "view"])
def test_nothing_is_written_to_what_is_read_only(freeze: Callable[[np.ndarray], Any]) -> None:
    with pytest.raises(BufferError):
        native.unpack(zeros(4), 4, freeze(zeros(8)))
    out = zeros(8)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        native.unpack(zeros(4), 4, out)


def test_buffers_of_all_kinds_are_taken() -> None:
    symbols = np.arange(8, dtype=np.uint8)
    bits = _native.pack(symbols, 4)
    kinds = (bytes, bytearray, memoryview, lambda data: np.frombuffer(data, "<u4"))
    for bits_as in kinds:
        for out in (bytearray(8), zeros(8), np.zeros(1, np.uint64), memoryview(bytearray(8))):
            native.unpack(bits_as(bits), 4, out)
            assert bytes(out) == symbols.tobytes()


@on_each_isa
def test_nothing_at_all_is_fine(isa: str) -> None:
    with forced(isa):
        for width in range(1, 9):
            assert native.pack(b"", width) == native.encode_gaps(b"", width) == b""
            native.unpack(b"", width, bytearray())
            native.gap_positions(b"", width, 0, bytearray())
        native.bitmap_positions(b"", 0, bytearray())
        assert native.count_gaps(b"") == [0] * 9
        assert native.huffman_estimate(b"") == 0
        native.huffman_decode(b"", 8, bytearray())
        native.split_planes(b"", 4, True, bytearray())
        native.decode_planes([(False, b"")] * 4, True, bytearray())
        native.scatter(b"", b"", 2, bytearray())
        native.look_up(b"", b"", 1, 1, TENSOR, 0, None, bytearray())
        native.dequantize(b"", b"", None, 1, "f32", TENSOR, 0, None, bytearray())


buffers = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 24, 64, 129, 2048]).map(bytearray) | st.binary(
    max_size=40
).map(bytearray)
numbers = st.sampled_from(
    [0, 1, 2, 3, 4, 8, 9, 16, 256, 257, *(2**n + d for n in (31, 32, 63) for d in (-1, 0))]
)
groups = st.tuples(st.sampled_from(["tensor", "channel", "group"]), numbers, numbers | st.just(2**64 - 1))
positions = (
    st.none() | buffers | st.lists(st.integers(0, 99), max_size=4).map(lambda at: np.array(at, np.uint32))
)
dtypes = st.sampled_from(["f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"])
ARGUMENTS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "huffman_encode": (buffers, numbers, numbers),
    "huffman_decode": (buffers, numbers, buffers),
    "huffman_estimate": (buffers,),
    "huffman_table_bytes": (buffers,),
    "pack": (buffers, numbers),
    "unpack": (buffers, numbers, buffers),
    "split_planes": (buffers, numbers, st.booleans(), buffers),
    "decode_planes": (st.lists(st.tuples(st.booleans(), buffers), max_size=9), st.booleans(), buffers),
    "encode_gaps": (buffers, numbers),
    "count_gaps": (buffers,),
    "gap_positions": (buffers, numbers, numbers, buffers),
    "bitmap_positions": (buffers, numbers, buffers),
    "scatter": (positions, buffers, numbers, buffers),
    "look_up": (buffers, buffers, numbers, numbers, groups, numbers, positions, buffers),
    "dequantize": (
        buffers,
        buffers,
        st.none() | buffers,
        numbers,
        dtypes,
        groups,
        numbers,
        positions,
        buffers,
    ),
    "histogram": (buffers, buffers),
}


@on_each_isa
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_arguments_give_a_result_or_an_exception_that_fits(
    isa: str, name: str, data: st.DataObject
) -> None:
    arguments = data.draw(st.tuples(*ARGUMENTS[name]))
    with forced(isa), contextlib.suppress(ValueError, TypeError, CorruptStream):
        getattr(native, name)(*arguments)

"""Whatever the kernels are called with: a result, or an exception that fits; never a crash."""

from __future__ import annotations

import contextlib
import operator
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
"""A kernel or its name, and its arguments."""

Z = np.zeros(8, np.uint8)
W = np.zeros(8, np.uint32)
ONE = np.ones(1, np.float32)
TENSOR = ("tensor", 1, 1)

exact = _native.SegmentDecoder.exact("dense", 8, 2, "bytes", False)
whole = _native.SegmentDecoder.exact("dense", 8, 1, "whole", False)
gaps = _native.SegmentDecoder.exact("relative-index", 8, 1, "whole", False)
codebook = _native.SegmentDecoder.codebook("dense", 8, 1, 4, TENSOR, bytes(4))
RAW8 = (0, 8, 8, 8)


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


VALUE_ERRORS: list[Call] = [
    *(("pack", Z, width) for width in (0, 9, 1 << 31)),
    *(("unpack", Z, width, zeros(8)) for width in (0, 9)),
    *(("huffman_encode", Z, width, 99) for width in (0, 9)),
    *(("huffman_decode", Z, width, zeros(8)) for width in (0, 9)),
    *(("cascade_encode", Z, width, 99) for width in (0, 9)),
    *(("cascade_decode", Z, width, zeros(8)) for width in (0, 9)),
    ("cascade_encode", Z, 8, 99, 8193),
    ("cascade_encode", Z + 4, 2, 99),
    *(("encode_gaps", Z, bits) for bits in (0, 9)),
    ("pack", Z + 4, 2),
    ("huffman_encode", Z + 4, 2, 99),
    ("pack", np.zeros((4, 4), np.uint8)[:, ::2], 4),
    ("huffman_encode", np.zeros(16, np.uint8)[::2], 8, 99),
    *(("split_planes", Z, size, False, zeros(8)) for size in (0, 3, 16)),
    ("split_planes", zeros(7), 2, False, zeros(7)),
    ("split_planes", Z, 2, False, zeros(6)),
    *(("SegmentDecoder.exact", layout, 8, 1, "whole", False) for layout in ("", "row")),
    *(("SegmentDecoder.exact", "dense", bits, 1, "whole", False) for bits in (0, 9)),
    *(("SegmentDecoder.exact", "dense", 8, size, "whole", False) for size in (0, 3, 16)),
    *(("SegmentDecoder.exact", "dense", 8, 1, split, False) for split in ("", "planes")),
    *(("SegmentDecoder.codebook", "dense", 8, 1, size, TENSOR, bytes(4)) for size in (0, 257)),
    ("SegmentDecoder.codebook", "dense", 8, 3, 4, TENSOR, bytes(12)),
    *(
        ("SegmentDecoder.codebook", "dense", 8, 1, 4, groups, bytes(4))
        for groups in [("tensor", 0, 1), ("channel", 1, 0), ("group", 1, 1 << 62), ("row", 1, 1), ("", 1, 1)]
    ),
    *(("SegmentDecoder.affine", "dense", 8, dtype, 8, TENSOR, ONE, None) for dtype in ("i32", "float32", "")),
    ("SegmentDecoder.affine", "dense", 8, "f32", 9, TENSOR, ONE, None),
    ("SegmentDecoder.affine", "dense", 8, "f32", 8, TENSOR, zeros(3), None),
    ("SegmentDecoder.affine", "dense", 8, "f64", 8, TENSOR, ONE, None),
    *((exact.decode, Z, 0, [RAW8] * count, {}, 0, 8, False, zeros(16)) for count in (0, 1, 3)),
    (exact.decode, zeros(16), 0, [RAW8] * 2, {}, 0, 8, False, zeros(15)),
    (exact.decode, zeros(16), 0, [RAW8] * 2, {}, 0, 7, False, zeros(16)),
    (exact.decode, zeros(16), 1, [RAW8] * 2, {}, 0, 8, False, zeros(16)),
    (exact.decode, zeros(16), 0, [(2, 8, 8, 8)] * 2, {}, 0, 8, False, zeros(16)),
    (whole.decode, Z, 9, [RAW8], {}, 0, 8, False, zeros(8)),
    (whole.decode, Z, (1 << 64) - 1, [RAW8], {}, 0, 8, False, zeros(8)),
    (whole.decode, Z, 0, [(0, 8, 9, 8)], {}, 0, 8, False, zeros(8)),
    *((whole.decode, Z, 0, [(0, 8, 8, width)], {}, 0, 8, False, zeros(8)) for width in (0, 9)),
    (gaps.decode, Z, 0, [(0, 0, 0, 8), RAW8], {}, 0, 8, False, zeros(7)),
    (gaps.decode_entries, Z, 0, [(0, 0, 0, 8), RAW8], {}, 0, 8, None, zeros(8)),
    (gaps.decode_entries, Z, 0, [(0, 0, 0, 8), RAW8], {}, 0, 8, W[:7], zeros(8)),
    (gaps.decode_entries, Z, 0, [(0, 0, 0, 8), RAW8], {}, 0, 8, zeros(33)[1:], zeros(8)),
    (gaps.decode_entries, Z, 0, [(0, 0, 0, 8), RAW8], {}, 0, 1 << 32, W, zeros(8)),
    (whole.decode_entries, Z, 0, [RAW8], {}, 0, 8, W, zeros(8)),
    (codebook.decode, Z, 0, [(0, 8, 8, 8)], {}, 0, 7, False, zeros(8)),
    (codebook.decode, Z, 0, [(0, 8, 8, 8)], {}, 1 << 63, 8, False, zeros(8)),
    (codebook.decode, Z, 0, [(0, 8, 8, 8)], {}, (1 << 64) - 1, 8, False, zeros(8)),
    *(("plane_costs", zeros(size), itemsize, True) for size, itemsize in ((8, 3), (8, 0), (9, 2), (4, 8))),
    *(
        ("looks_quantized", zeros(size), itemsize, "u32", False, 9)
        for size, itemsize in ((8, 3), (9, 4), (0, 4))
    ),
    ("looks_quantized", zeros(8), 2, "f32", False, 9),
    ("looks_quantized", zeros(8), 4, "bf16", False, 9),
    ("histogram", Z, zeros(255 * 8)),
    ("histogram", Z, zeros(256 * 8 - 1)),
]

TYPE_ERRORS: list[Call] = [
    *(("pack", symbols, 4) for symbols in ("text", 3, None, [1, 2])),
    *(("pack", Z, width) for width in (-1, 1.5, "4", None, 1 << 40)),
    *(("huffman_encode", Z, 8, limit) for limit in (-1, 1 << 70, 1.5)),
    ("huffman_estimate", "text"),
    ("table_bytes", None),
    *(
        (whole.decode, Z, 0, streams, {}, 0, 8, False, zeros(8))
        for streams in (3, None, [1], [(0,)], [("x", 8, 8, 8)], [(*RAW8, 0)], [(0, -1, 8, 8)])
    ),
    *((whole.decode, Z, 0, [RAW8], decoded, 0, 8, False, zeros(8)) for decoded in (None, {"a": Z}, {0: 3})),
    (whole.decode, Z, -1, [RAW8], {}, 0, 8, False, zeros(8)),
    *(
        ("SegmentDecoder.codebook", "dense", 8, 1, 4, groups, bytes(4))
        for groups in [(1, 2, 3), ("tensor", -1, 1), ("tensor", "1", 1), ("tensor", 1), (), None, 3]
    ),
    (codebook.decode, Z, 0, [RAW8], {}, -1, 8, False, zeros(8)),
    ("SegmentDecoder.affine", "dense", 8, None, 8, TENSOR, ONE, None),
    ("SegmentDecoder.affine", "dense", 8, "f32", 8, TENSOR, ONE, 3),
    ("split_planes", Z, 2, "yes", zeros(8)),
    ("pack",),
    ("pack", Z, 4, 4),
    ("force_isa", 3),
]


def callee(call: Call) -> Any:
    return operator.attrgetter(call[0])(native) if isinstance(call[0], str) else call[0]


def numbered(calls: list[Call]) -> list[Any]:
    return [pytest.param(call, id=f"{callee(call).__name__} {number}") for number, call in enumerate(calls)]


@pytest.mark.parametrize("call", numbered(VALUE_ERRORS))
def test_sizes_that_do_not_fit_are_value_errors(call: Call) -> None:
    with pytest.raises(ValueError, match=r"."):
        callee(call)(*call[1:])


@pytest.mark.parametrize("call", numbered(TYPE_ERRORS))
def test_other_types_are_type_errors(call: Call) -> None:
    with pytest.raises(TypeError):
        callee(call)(*call[1:])


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
        assert native.count_gaps(b"") == [0] * 9
        assert native.huffman_estimate(b"") == 0
        native.huffman_decode(b"", 8, bytearray())
        native.cascade_decode(b"", 8, bytearray())
        native.split_planes(b"", 4, True, bytearray())
        nothing = (0, 0, 0, 8)
        for layout, positions in (("dense", 0), ("bitmap", 1), ("relative-index", 1)):
            for decoder, streams in (
                (native.SegmentDecoder.exact(layout, 8, 4, "rotated", False), 4),
                (native.SegmentDecoder.exact(layout, 8, 4, "whole", False), 1),
                (native.SegmentDecoder.codebook(layout, 8, 1, 1, TENSOR, b""), 1),
                (native.SegmentDecoder.affine(layout, 8, "f32", 1, TENSOR, b"", None), 1),
            ):
                described = [nothing] * (positions + streams)
                decoder.decode(b"", 0, described, {}, 0, 0, True, bytearray())
                where = bytearray() if positions else None
                decoder.decode_entries(b"", 0, described, {}, 0, 0, where, bytearray())


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
layouts = st.sampled_from(["dense", "relative-index", "bitmap"])
small = st.integers(0, 9)
DECODERS = st.one_of(
    st.tuples(
        st.just("exact"),
        st.tuples(layouts, small, small, st.sampled_from(["whole", "bytes", "rotated"]), st.booleans()),
    ),
    st.tuples(st.just("codebook"), st.tuples(layouts, small, small, numbers, groups, buffers)),
    st.tuples(
        st.just("affine"), st.tuples(layouts, small, dtypes, small, groups, buffers, st.none() | buffers)
    ),
)
STREAMS = st.lists(st.tuples(st.integers(0, 2), numbers, numbers | st.integers(0, 40), small), max_size=9)
ARGUMENTS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "huffman_encode": (buffers, numbers, numbers),
    "huffman_decode": (buffers, numbers, buffers),
    "huffman_estimate": (buffers,),
    "cascade_encode": (buffers, numbers, numbers),
    "cascade_decode": (buffers, numbers, buffers),
    "table_bytes": (buffers,),
    "pack": (buffers, numbers),
    "unpack": (buffers, numbers, buffers),
    "split_planes": (buffers, numbers, st.booleans(), buffers),
    "encode_gaps": (buffers, numbers),
    "count_gaps": (buffers,),
    "histogram": (buffers, buffers),
    "plane_costs": (buffers, numbers, st.booleans()),
    "looks_quantized": (buffers, numbers, dtypes, st.booleans(), numbers),
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


@on_each_isa
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_segment_gives_a_result_or_an_exception_that_fits(isa: str, data: st.DataObject) -> None:
    kind, arguments = data.draw(DECODERS)
    with forced(isa), contextlib.suppress(ValueError, TypeError, CorruptStream):
        decoder = getattr(native.SegmentDecoder, kind)(*arguments)
        decoded = data.draw(st.dictionaries(small, buffers, max_size=3))
        part, start, streams = data.draw(buffers), data.draw(small), data.draw(STREAMS)
        first, count, out = data.draw(numbers), data.draw(numbers | st.integers(0, 40)), data.draw(buffers)
        if data.draw(st.booleans()):
            decoder.decode(part, start, streams, decoded, first, count, data.draw(st.booleans()), out)
        else:
            decoder.decode_entries(part, start, streams, decoded, first, count, data.draw(positions), out)

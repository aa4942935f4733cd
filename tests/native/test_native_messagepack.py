"""Canonical MessagePack: the kernel and the reference reader say the same of any bytes."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference.dcz_reference_manifest import unpack
from tests.reference.dcz_reference_streams import Refused
from tests.reference.dcz_reference_writer import pack_manifest

from dcz import _native
from dcz.errors import CorruptStream

DEPTH = 32

values: st.SearchStrategy[Any] = st.recursive(
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from(
        [sign * (1 << bits) + step for bits in range(63) for sign in (1, -1) for step in (-1, 0)]
    )
    | st.text()
    | st.binary(max_size=300)
    | st.booleans()
    | st.floats(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=30,
)
maps = st.dictionaries(st.text(), values, max_size=20)


def counts(value: Any) -> tuple[int, int]:
    """Maps and arrays; everything else, keys too."""
    if isinstance(value, dict):
        inner = [counts(item) for item in value.values()]
        return 1 + sum(c for c, _ in inner), len(value) + sum(i for _, i in inner)
    if isinstance(value, list):
        inner = [counts(item) for item in value]
        return 1 + sum(c for c, _ in inner), sum(i for _, i in inner)
    return 0, 1


def accepted(data: bytes) -> bool:
    try:
        _native.check_messagepack(data, DEPTH)
    except CorruptStream:
        return False
    return True


def accepted_by_the_reference(data: bytes) -> bool:
    try:
        return isinstance(unpack(data), dict)
    except Refused:
        return False


@given(maps)
def test_canonical_maps_are_counted(value: dict[str, Any]) -> None:
    assert _native.check_messagepack(pack_manifest(value), DEPTH) == counts(value)


@settings(max_examples=1000)
@given(st.binary(max_size=30).map(lambda tail: b"\x81\xa1a" + tail) | st.binary(max_size=30))
@example(b"\x80")
@example(b"")
def test_any_bytes_are_judged_as_by_the_reference(data: bytes) -> None:
    assert accepted(data) == accepted_by_the_reference(data)


@settings(max_examples=300)
@given(maps, st.data())
def test_mutated_maps_are_judged_as_by_the_reference(value: dict[str, Any], data: st.DataObject) -> None:
    packed = bytearray(pack_manifest(value))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(packed) - 1))
        packed[at] = data.draw(st.integers(0, 255))
    assert accepted(bytes(packed)) == accepted_by_the_reference(bytes(packed))


@pytest.mark.parametrize("first", range(0xC0, 0x100))
def test_utf8_is_pythons(first: int) -> None:
    """Each lead byte, with continuation bytes at the edges of what may follow it."""
    edges = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    for size in range(1, 5):
        for second in edges:
            for third in (0x7F, 0x80, 0xBF, 0xC0):
                text = bytes([first, second, third, third])[:size]
                try:
                    text.decode()
                    valid = True
                except UnicodeDecodeError:
                    valid = False
                assert accepted(bytes([0x81, 0xA1, 0x61, 0xA0 | size]) + text) == valid


def test_depth_and_end() -> None:
    def nested(depth: int) -> bytes:
        return b"\x81\xa1a" + b"\x91" * (depth - 2) + b"\x90"

    assert _native.check_messagepack(nested(DEPTH), DEPTH) == (DEPTH, 1)
    with pytest.raises(CorruptStream, match="nested too deep"):
        _native.check_messagepack(nested(DEPTH + 1), DEPTH)
    with pytest.raises(CorruptStream, match="something behind it"):
        _native.check_messagepack(b"\x80\x80", DEPTH)
    with pytest.raises(CorruptStream, match="cut off"):
        _native.check_messagepack(b"\xdf\xff\xff\xff\xff", DEPTH)


def test_what_msgpack_writes_is_canonical_if_its_keys_are_in_order() -> None:
    value = {"a": [1, -1, 1.5, b"x", "y", True], "b": {"c": list(range(-70000, 70000, 997))}}
    assert _native.check_messagepack(msgpack.packb(value), DEPTH) == counts(value)
    with pytest.raises(CorruptStream, match="not in order"):
        _native.check_messagepack(msgpack.packb({"b": 1, "a": 1}), DEPTH)

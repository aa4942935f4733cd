"""Differences to a base, against Python's integers and against the order of numpy's floats (docs/format.md, section 5.5)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import SIZES, guarded

from dcz import _native

KINDS = ("bits", "integers", "floats")


def ordered(value: int, bits: int) -> int:
    return value if value < 1 << (bits - 1) else (1 << (bits - 1)) + (1 << bits) - 1 - value


def difference(kind: str, x: int, y: int, bits: int) -> int:
    if kind == "bits":
        return x ^ y
    d = ordered(x, bits) - ordered(y, bits) if kind == "floats" else x - y
    d = (d + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))  # signed
    return 2 * d if d >= 0 else -2 * d - 1


def encode(kind: str, base: bytes, elements: bytes, itemsize: int) -> bytes:
    with guarded(len(elements)) as out:
        _native.encode_delta(kind, base, elements, itemsize, out)
        return out.tobytes()


def decode(kind: str, base: bytes, stored: bytes, itemsize: int) -> bytes:
    with guarded(len(stored)) as data:
        data[:] = np.frombuffer(stored, np.uint8)
        _native.decode_delta(kind, base, itemsize, data)
        return data.tobytes()


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_all_pairs_of_strange_integers(kind: str, itemsize: int) -> None:
    bits = 8 * itemsize
    top = 1 << (bits - 1)
    ones = sorted({i % (1 << bits) for near in (0, top, top // 2, 100) for i in range(near - 9, near + 9)})
    x, y = [x for x in ones for _ in ones], ones * len(ones)
    elements, base = (b"".join(one.to_bytes(itemsize, "little") for one in many) for many in (x, y))
    stored = b"".join(
        difference(kind, one, other, bits).to_bytes(itemsize, "little")
        for one, other in zip(x, y, strict=True)
    )
    assert encode(kind, base, elements, itemsize) == stored
    assert decode(kind, base, stored, itemsize) == elements


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_was_encoded_is_decoded(data: st.DataObject) -> None:
    itemsize, kind = data.draw(st.sampled_from([1, 2, 4, 8])), data.draw(st.sampled_from(KINDS))
    count = data.draw(st.integers(0, 100))
    base, elements = (
        data.draw(st.binary(min_size=count * itemsize, max_size=count * itemsize)) for _ in range(2)
    )
    assert decode(kind, base, encode(kind, base, elements, itemsize), itemsize) == elements


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_and_in_place(kind: str, itemsize: int) -> None:
    random = np.random.default_rng(itemsize)
    for count in SIZES:
        base, elements = random.bytes(count * itemsize), random.bytes(count * itemsize)
        stored = encode(kind, base, elements, itemsize)
        assert decode(kind, base, stored, itemsize) == elements
        same = np.frombuffer(elements, np.uint8).copy()
        _native.encode_delta(kind, base, same, itemsize, same)
        assert same.tobytes() == stored


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_neighbours_among_the_floats_differ_by_one(dtype: type[np.floating]) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=1000).astype(dtype)
    values[:4] = [0, 1, 2, 4]
    info = np.dtype(dtype)
    for towards, stored in ((np.inf, 2), (-np.inf, 1)):
        neighbours = np.nextafter(values, dtype(towards))
        out = np.empty(values.size, f"<u{info.itemsize}")
        _native.encode_delta(
            "floats", values.view(np.uint8), neighbours.view(np.uint8), info.itemsize, out.view(np.uint8)
        )
        # Between the two zeros there is one step more.
        expected = np.where(values == 0, 2 * (stored % 2) + 1 if stored == 1 else stored, stored)
        assert out.tolist() == expected.tolist()


def test_wrong_arguments_are_refused() -> None:
    out = np.empty(4, np.uint8)
    for kind, base, elements, itemsize in (
        ("add", bytes(4), bytes(4), 2),
        ("bits", bytes(4), bytes(4), 3),
        ("bits", bytes(2), bytes(4), 2),
        ("bits", bytes(4), bytes(2), 2),
        ("bits", bytes(4), bytes(4), 8),
    ):
        with pytest.raises(ValueError, match=r"difference|element"):
            _native.encode_delta(kind, base, elements, itemsize, out)
    for kind, base, itemsize in (("add", bytes(4), 2), ("bits", bytes(4), 8), ("bits", bytes(2), 2)):
        with pytest.raises(ValueError, match=r"difference|element"):
            _native.decode_delta(kind, base, itemsize, out)

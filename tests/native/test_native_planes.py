"""Exact values as planes, against shifts of numpy's unsigned integers (docs/format.md, section 5.3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.isas import SIZES, forced, guarded, on_each_isa
from tests.native.segments import join_planes as join

from dcz import _native
from dcz.errors import CorruptStream

NO_LIMIT = 1 << 62


def planes_of(data: bytes, itemsize: int, rotated: bool) -> np.ndarray:
    elements = np.frombuffer(data, f"<u{itemsize}")
    if rotated:
        one, top = elements.dtype.type(1), elements.dtype.type(8 * itemsize - 1)
        elements = (elements << one) | (elements >> top)
    return np.ascontiguousarray(elements.view(np.uint8).reshape(-1, itemsize).T)


def split(data: bytes, itemsize: int, rotated: bool) -> bytes:
    with guarded(len(data)) as out:
        _native.split_planes(data, itemsize, rotated, out)
        return out.tobytes()


def coded(planes: np.ndarray, huffman: list[bool]) -> list[tuple[bool, bytes]]:
    streams = []
    for plane, wanted in zip(planes, huffman, strict=True):
        stream = _native.huffman_encode(plane, 8, NO_LIMIT) if wanted else plane.tobytes()
        assert stream is not None
        streams.append((wanted, stream))
    return streams


@on_each_isa
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_planes_are_split_and_joined_as_numpy_does(isa: str, itemsize: int, rotated: bool) -> None:
    random = np.random.default_rng(itemsize)
    for count in SIZES:
        data = random.bytes(count * itemsize)
        planes = planes_of(data, itemsize, rotated)
        with forced(isa):
            assert split(data, itemsize, rotated) == planes.tobytes()
            for huffman in ([False] * itemsize, [bool(i % 2) for i in range(itemsize)]):
                streams = coded(planes, huffman)
                assert join(streams, rotated, len(data)) == data
                assert join(streams, rotated, len(data), streaming=True) == data


@on_each_isa
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_plane_has_a_coding_of_its_own(isa: str, data: st.DataObject) -> None:
    itemsize = data.draw(st.sampled_from([1, 2, 4, 8]))
    rotated = data.draw(st.booleans())
    few = data.draw(st.lists(st.binary(min_size=itemsize, max_size=itemsize), min_size=1, max_size=5))
    content = b"".join(data.draw(st.lists(st.sampled_from(few), max_size=150)))
    planes = planes_of(content, itemsize, rotated)
    huffman = data.draw(st.lists(st.booleans(), min_size=itemsize, max_size=itemsize))
    with forced(isa):
        assert join(coded(planes, huffman), rotated, len(content)) == content


@on_each_isa
def test_planes_of_a_wrong_length_are_refused(isa: str) -> None:
    plane = np.arange(100, dtype=np.uint8) % 7
    stream = _native.huffman_encode(plane, 8, NO_LIMIT)
    assert stream is not None
    good = (True, stream)
    with forced(isa):
        assert join([good, good], False, 200) == plane.repeat(2).tobytes()
        for bad in (
            (False, bytes(99)),
            (False, bytes(101)),
            (True, stream[:-1]),
            (True, stream + b"\0"),
            (True, b""),
        ):
            for streams in ([good, bad], [bad, good]):
                with pytest.raises(CorruptStream):
                    join(streams, False, 200)
        for count in (50, 150, 65_600):
            with pytest.raises(CorruptStream):
                join([good, good], False, 2 * count)

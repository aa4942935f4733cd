"""The header parser against the safetensors library, and against headers that are wrong in every field."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save
from tests.converters.raw_safetensors import entry, raw_safetensors

from dcz.converters import safetensors_header
from dcz.converters.safetensors_header import METADATA_NAME, Header, build_header, parse_header
from dcz.errors import EncodingError, SourceError
from dcz.format import DTYPES, DType

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
TENSOR_NAMES = NAMES.filter(lambda name: name != METADATA_NAME)
SHAPES = st.lists(st.integers(0, 5), max_size=4)


def _deserialize(file: bytes) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    return found


def _parse(file: bytes) -> Header:
    length = struct.unpack("<Q", file[:8])[0]
    header = parse_header(file[: 8 + length], file="x.safetensors")
    if header.data_start + header.data_bytes != len(file):
        raise SourceError("size")
    return header


@given(
    st.dictionaries(TENSOR_NAMES, st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=8),
    st.dictionaries(NAMES, NAMES, max_size=1),
)
def test_built_headers_are_those_of_safetensors(
    tensors: dict[str, tuple[DType, list[int]]], metadata: dict[str, str]
) -> None:
    header = build_header([(name, dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()], metadata)
    zeros = {n: torch.zeros(s, dtype=getattr(torch, d.numpy.name)) for n, (d, s) in tensors.items()}
    expected = save(zeros, metadata or None)
    assert bytes(header.raw) + bytes(header.data_bytes) == expected


@given(st.dictionaries(TENSOR_NAMES, st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=8))
def test_written_headers_are_read_again(tensors: dict[str, tuple[DType, list[int]]]) -> None:
    built = build_header(
        [(name, dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()], {"a": "b"}
    )
    assert parse_header(built.raw, file="x") == built


VALID = raw_safetensors(
    {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], 0, 24),
        "empty": entry("BF16", [0, 4], 24, 24),
        "b": entry("U8", [], 24, 25),
    },
    bytes(25),
)


@given(st.data())
def test_a_mutated_file_is_refused_or_read_as_safetensors_reads_it(data: st.DataObject) -> None:
    file = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(file) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "digit"])):
            case "flip":
                file[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del file[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                file[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                file[at] = data.draw(st.sampled_from(b'0123456789{}[]",: -.eE'))
        if not file:
            return
    try:
        header = _parse(bytes(file))
    except (SourceError, struct.error):
        return
    expected = {name: (info["dtype"], info["shape"]) for name, info in _deserialize(bytes(file))}
    assert {t.name: (t.dtype.safetensors, list(t.shape)) for t in header.tensors} == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["F32", "dtype", ""]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "__metadata__", "dtype", "shape", "data_offsets"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
)
@example({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}})
@example({"a": {"dtype": [], "shape": [], "data_offsets": [0, 4]}})
def test_any_json_is_refused_or_valid(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        header = parse_header(raw_safetensors(text), file="x")
    except SourceError:
        return
    if isinstance(value, dict) and value.get("__metadata__") is None:
        value.pop(
            "__metadata__", None
        )  # safetensors takes null for nothing here, too, but says nothing of it
    _deserialize(raw_safetensors(json.dumps(value).encode(), bytes(header.data_bytes)))


LONG = 1 << 62
WRONG: dict[str, tuple[bytes, str]] = {
    "no file": (b"", "bytes are no safetensors file"),
    "array": (raw_safetensors(b"[1, 2]"), "not a JSON object"),
    "leading space": (raw_safetensors(b' {"a": 1}'), "not a JSON object"),
    "not JSON": (raw_safetensors(b'{"a": }'), "not valid JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not valid JSON"),
    "NaN": (raw_safetensors(b'{"a": NaN}'), "NaN is not JSON"),
    "nested deeply": (raw_safetensors(b'{"a":' + b"[" * 200_000), "not valid JSON"),
    "a number of many digits": (raw_safetensors(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "name twice": (
        raw_safetensors(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "given twice",
    ),
    "tensor not an object": (raw_safetensors({"a": 3}), "'a' is not an object"),
    "no dtype": (
        raw_safetensors({"a": {"shape": [], "data_offsets": [0, 1]}}),
        "is not an object with dtype",
    ),
    "three offsets": (
        raw_safetensors({"a": entry("U8", [1], 0, 1) | {"data_offsets": [0, 1, 2]}}),
        "data_offsets",
    ),
    "offsets backwards": (raw_safetensors({"a": entry("U8", [1], 1, 0)}), "data_offsets"),
    "negative size": (raw_safetensors({"a": entry("U8", [-1], 0, 1)}), "natural numbers"),
    "fractional size": (
        raw_safetensors({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}),
        "natural",
    ),
    "true as a size": (
        raw_safetensors({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}),
        "natural",
    ),
    "2^62 elements": (raw_safetensors({"a": entry("F32", [LONG], 0, 4)}), "beyond 2^63"),
    "2^62 times nothing": (raw_safetensors({"a": entry("F32", [LONG, 4, 0], 0, 0)}), "beyond 2^63"),
    "65 dimensions": (raw_safetensors({"a": entry("U8", [1] * 65, 0, 1)}), "65 dimensions"),
    "too few bytes": (raw_safetensors({"a": entry("F32", [2], 0, 4)}), "not those of"),
    "a hole": (
        raw_safetensors({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}),
        "starts at 2, not at 1",
    ),
    "an overlap": (
        raw_safetensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}),
        "starts at 1",
    ),
    "no start": (raw_safetensors({"a": entry("U8", [1], 1, 2)}), "starts at 1, not at 0"),
    "empty name": (raw_safetensors({"": entry("U8", [1], 0, 1)}), "name"),
    "NUL in a name": (raw_safetensors({"a\0": entry("U8", [1], 0, 1)}), "NUL"),
    "long name": (raw_safetensors({"a" * 4097: entry("U8", [1], 0, 1)}), "4096"),
    "half a surrogate pair": (
        raw_safetensors(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'),
        "'",
    ),
    "half a pair in the metadata": (raw_safetensors(b'{"__metadata__":{"a":"\\ud800"}}'), "surrogate"),
    "metadata not of strings": (raw_safetensors({"__metadata__": {"a": 1}}), "object of strings"),
    "metadata a string": (raw_safetensors({"__metadata__": "a"}), "object of strings"),
    "8-bit floats of another kind": (
        raw_safetensors({"w": entry("F8_E8M0", [1], 0, 1)}),
        "'w' has the type 'F8_E8M0'",
    ),
    "4-bit floats": (raw_safetensors({"w": entry("F4", [2], 0, 1)}), "'w' has the type 'F4'"),
    "complex": (raw_safetensors({"w": entry("C64", [1], 0, 8)}), "'w' has the type 'C64'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_is_refused_with_the_reason(name: str) -> None:
    header, reason = WRONG[name]
    with pytest.raises(SourceError, match=r"^x\.safetensors: ") as caught:
        parse_header(header, file="x.safetensors")
    assert reason in str(caught.value)


def test_what_a_header_cannot_say_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    row = DTYPES["f32"]
    with pytest.raises(EncodingError, match="cannot hold a tensor called '__metadata__'"):
        build_header([("a", row, (2,)), ("__metadata__", row, (2,))])
    tensors = [(f"a{i}", row, (2,)) for i in range(9)]
    assert len(build_header(tensors).raw) < 600
    monkeypatch.setattr(safetensors_header, "MAX_HEADER", 300)
    with pytest.raises(EncodingError, match="at most 300 are read"):
        build_header(tensors)

"""The reference reader and the reference writer against the vectors, against each other, and against other oracles."""

from __future__ import annotations

import hashlib
import json
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.strategies import NUMPY, any_tensors, coders, streams
from tests.reference.dcz_reference import Refused, decode_stream, read, verify
from tests.reference.dcz_reference_coders import (
    Coder,
    encode_table,
    huffman,
    optimal_lengths,
    zstd_frame,
)
from tests.reference.dcz_reference_manifest import DTYPES, FLOAT_DTYPES, unpack
from tests.reference.dcz_reference_streams import FLOATS, affine_element, decode_zstd_frame, read_table
from tests.reference.dcz_reference_writer import (
    Exact,
    asset,
    draft,
    pack_manifest,
    tensor,
)
from tests.vectors.generate import FOLDER, bases, generate

BASES = bases()
GOOD = sorted((FOLDER / "good").glob("*.dcz"))
BAD: dict[str, dict[str, Any]] = json.loads((FOLDER / "bad" / "index.json").read_text())

# Vectors


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_vector_is_read(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    file = read(path.read_bytes(), bases=BASES)
    assert file.identity == expected["identity"]
    assert {
        name: {"dtype": one.dtype, "shape": list(one.shape), "sha256": hashlib.sha256(one.data).hexdigest()}
        for name, one in file.tensors.items()
    } == expected["tensors"]
    assert {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in file.assets.items()
    } == expected["assets"]
    assert file.manifest.get("aliases", {}) == expected["aliases"]
    assert {
        key: hashlib.sha256(value.encode()).hexdigest()
        for key, value in file.manifest.get("metadata", {}).items()
    } == expected["metadata"]


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_vector_is_refused_for_its_reason(name: str) -> None:
    with pytest.raises(Refused) as refused:
        verify((FOLDER / "bad" / name).read_bytes(), BASES)
    assert refused.value.section == BAD[name]["section"]


def test_committed_vectors_are_those_of_the_generator() -> None:
    made = generate()
    committed = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in ("good", "bad")
        for path in (FOLDER / folder).iterdir()
    }
    assert sorted(committed) == sorted(made)
    assert [name for name in made if made[name] != committed[name]] == []


def test_every_step_and_section_has_a_bad_vector() -> None:
    assert {case["step"] for case in BAD.values()} == set(range(1, 8))
    sections = {
        "2.1",
        "2.2",
        "3",
        "3.1",
        "3.2",
        "4.2",
        "5",
        "5.1",
        "5.2",
        "5.3",
        "5.4",
        "5.5",
        "5.6",
        "6",
        "6.1",
        "6.2",
        "6.3",
        "6.4",
        "6.4.1",
        "6.5",
        "7",
        "8",
    }
    assert {case["section"] for case in BAD.values()} == sections | {"9", "10", "10.2"}


@pytest.mark.parametrize("name", ["dense-affine", "assets", "huffman-packed-two-symbols", "chunk-aligned"])
def test_every_flipped_bit_is_refused(name: str) -> None:
    data = (FOLDER / "good" / f"{name}.dcz").read_bytes()
    # All of header, padding and footer, and every 13th byte of what lies between.
    for at in sorted({*range(100), *range(0, len(data), 13), *range(len(data) - 64, len(data))}):
        for bit in (0, 3, 7):
            with pytest.raises(Refused):
                read(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


def test_every_truncation_is_refused() -> None:
    data = (FOLDER / "good" / "aliases.dcz").read_bytes()
    for size in range(len(data)):
        with pytest.raises(Refused):
            read(data[:size])


# Arithmetic


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f8_e4m3fn", "f8_e5m2", "f32"])
def test_floats_have_the_values_and_the_rounding_of_ml_dtypes(dtype: str) -> None:
    width = 8 * DTYPES[dtype]
    patterns = range(1 << width) if width <= 16 else [(i * 2_654_435_761) % (1 << 32) for i in range(5000)]
    unsigned = np.array(patterns, dtype=f"u{width // 8}")
    with np.errstate(invalid="ignore"):
        values = unsigned.view(NUMPY[dtype]).astype(np.float64).tolist()
    for bits, value in zip(patterns, values, strict=True):
        parts = FLOATS[dtype].value(bits)
        if parts is None:
            assert not np.isfinite(value)
        else:
            assert (-parts[1] if parts[0] else parts[1]) == Fraction(value)
            assert FLOATS[dtype].round(*parts) == bits


floats32 = st.integers(0, (1 << 32) - 1).filter(lambda bits: bits >> 23 & 0xFF != 0xFF)


@settings(max_examples=300, deadline=None)
@given(
    scale=floats32,
    difference=st.integers(-255, 255),
    dtype=st.sampled_from([d for d in FLOAT_DTYPES if d != "f64"]),
)
def test_affine_is_numpys_product_in_float32(scale: int, difference: int, dtype: str) -> None:
    with np.errstate(all="ignore"):
        product = np.array([scale], np.uint32).view(np.float32) * np.float32(difference)
        expected = product.astype(NUMPY[dtype]).view(f"u{DTYPES[dtype]}")[0]
    assert affine_element(dtype, "f32", scale, difference) == expected


@settings(max_examples=200, deadline=None)
@given(scale=st.floats(allow_nan=False, allow_infinity=False), difference=st.integers(-255, 255))
def test_affine_of_f64_is_pythons_product(scale: float, difference: int) -> None:
    bits = struct.unpack("<Q", struct.pack("<d", scale))[0]
    product = struct.unpack("<Q", struct.pack("<d", scale * float(difference)))[0]
    assert affine_element("f64", "f64", bits, difference) == product


# Manifests

messagepack_values: st.SearchStrategy[Any] = st.recursive(
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text()
    | st.binary(max_size=300)
    | st.booleans()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=30,
)


@given(messagepack_values)
def test_canonical_messagepack_comes_back(value: Any) -> None:
    assert unpack(pack_manifest(value)) == value
    assert msgpack.unpackb(pack_manifest(value)) == value


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_messagepack_is_either_canonical_or_refused(data: bytes) -> None:
    try:
        value = unpack(data)
    except Refused:
        return
    assert pack_manifest(value) == data


# Streams


@given(streams(), coders)
def test_streams_come_back(stream: tuple[list[int], int], coder: Coder) -> None:
    symbols, width = stream
    assert decode_stream(*coder(symbols, width), len(symbols), width) == symbols


@given(streams())
def test_huffman_is_as_short_as_the_theory_says(stream: tuple[list[int], int]) -> None:
    symbols, width = stream
    lengths = optimal_lengths(symbols)
    _, data = huffman(packed=True)(symbols, width)
    bits = sum(lengths[symbol] for symbol in symbols)
    assert len(data) == 1 + 1 + len(encode_table(lengths)) + -(-bits // 8)


@given(st.dictionaries(st.integers(0, 255), st.integers(1, 1 << 20), min_size=1), st.integers(8, 15))
def test_tables_come_back(counts: dict[int, int], limit: int) -> None:
    lengths = optimal_lengths(
        [symbol for symbol, count in counts.items() for _ in range(min(count, 40))], limit
    )
    assert read_table(encode_table(lengths) + b"rest", 8) == (lengths, b"rest")


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 400)), max_size=20))
def test_frames_of_the_reference_writer_are_zstandard(runs: list[tuple[int, int]]) -> None:
    content = b"".join(bytes([byte]) * count for byte, count in runs) + b"end"
    assert decode_zstd_frame(zstd_frame(content), len(content), "6.3") == content


# Files


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.data())
def test_files_come_back(data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.text(min_size=1).filter(lambda name: "\0" not in name), unique=True, max_size=3)
    )
    tensors = [data.draw(any_tensors(name)) for name in names]
    contents = data.draw(st.lists(st.binary(max_size=100), max_size=2))
    assets = [asset(f"file-{i}", content, coder=data.draw(coders)) for i, content in enumerate(contents)]
    parts = sum(len(owner.parts) for owner in tensors) + sum(len(owner.parts) for owner in assets)
    cuts = sorted(data.draw(st.sets(st.integers(0, parts), max_size=3)) | {0, parts})
    aliases = {"alias of " + name: name for name in names if "alias of " + name not in names}
    chunk_parts = [b - a for a, b in pairwise(cuts)]
    built = draft(tensors, assets, chunk_parts=chunk_parts, aliases=aliases)
    file = read(built.build())
    for one in tensors:
        got = file.tensors[one.fields["name"]]
        assert (got.data, list(got.shape), got.dtype) == (
            one.content,
            one.fields["shape"],
            one.fields["dtype"],
        )
    assert file.assets == {f"file-{i}": content for i, content in enumerate(contents)}
    assert {alias: file.tensors[alias] for alias in aliases} == {
        a: file.tensors[t] for a, t in aliases.items()
    }


def test_exact_tensors_are_their_input() -> None:
    content = struct.pack("<5f", 1.0, -0.0, float("nan"), float("inf"), 1e-45)
    for split in ("whole", "bytes", "rotated"):
        file = read(draft([tensor("t", "f32", [5], Exact(content, split))]).build())
        assert file.tensors["t"].data == content
        assert file.manifest["tensors"][0]["digest"] == blake3(content).digest()

"""What a reader is ready to accept (docs/format.md, section 9): refused before it is allocated, and adjustable."""

from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from tests.format.crafted import almost_empty, one_symbol
from tests.reference.dcz_reference_writer import Asset, Codebook, Draft, Exact, asset, draft, tensor
from tests.vectors.generate import FOLDER

from dcz import errors
from dcz.errors import FormatError, LimitExceeded
from dcz.format import DEFAULT_LIMITS, Limits, Reader, verify

BAD: dict[str, dict[str, Any]] = json.loads((FOLDER / "bad" / "index.json").read_text())
CLAIMS = ("limit", "bomb", "million", "65537", "2-to-the", "largest", "wraps", "above", "deep")
MiB = 1 << 20


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


def test_what_claims_much_takes_little_memory() -> None:
    """All vectors that do so. The tensors of a million have to be made before they are counted, as empty maps."""
    names = [name for name in BAD if any(word in name for word in CLAIMS) or BAD[name]["section"] == "9"]
    assert len(names) > 40
    for name in sorted(names):
        data = (FOLDER / "bad" / name).read_bytes()
        with memory_below(100 * MiB if "million" in name else 8 * MiB), pytest.raises(FormatError) as caught:
            verify(data, deep=True, threads=1)
        assert isinstance(caught.value, tuple(getattr(errors, error) for error in BAD[name]["errors"]))


def test_a_tensor_of_all_that_there_is() -> None:
    """Each way of claiming 2^60 elements."""
    for shape, fields in (
        ([1 << 60], {"segment": 1 << 24}),
        ([1 << 60], {}),
        ([1 << 30, 1 << 30], {"segment": 1 << 24, "layout": {"kind": "bitmap"}, "entries": [1 << 60]}),
        ([1 << 20] * 3, {"segment": 1, "layout": {"kind": "relative-index", "bits": 8}}),
    ):
        file = draft([tensor("t", "u8", [1], Exact(b"1"))])
        file.manifest["tensors"][0] |= {"shape": shape, **fields}
        data = file.build()
        with memory_below(2 * MiB), pytest.raises(LimitExceeded, match=str(1 << 60)) as caught:
            Reader(data)
        assert caught.value.tensor == "t"
        # Another limit takes over.
        with memory_below(2 * MiB), pytest.raises(LimitExceeded, match="segments"):
            Reader(data, limits=Limits(tensor_bytes=1 << 62))


def test_groups_as_many_as_elements() -> None:
    """Parameters of a tensor may be as large as the tensor: they have a limit of their own."""
    one = almost_empty("t", "f16", [1 << 32], {})
    one.fields["values"] = {"kind": "affine", "bits": 8, "granularity": {"kind": "group", "size": 1}}
    one.fields["codings"] = b"\0" + one.fields["codings"]
    one.fields["lengths"] = [0, *one.fields["lengths"]]
    with memory_below(2 * MiB), pytest.raises(LimitExceeded, match=f"{4 << 32} bytes of parameters"):
        Reader(draft([one]).build())


# Adjustable


def stored_manifest(data: bytes) -> tuple[bytes, int]:
    offset, length, decoded = struct.unpack_from("<QII", data, len(data) - 64)
    return data[offset : offset + length], decoded


def count(value: Any, containers: bool) -> int:
    if isinstance(value, dict):
        return containers + sum(count(part, containers) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return containers + sum(count(part, containers) for part in value)
    return not containers


def everything() -> Draft:
    """A file with more than one of everything."""
    centroids = np.arange(40, dtype=np.float32).tobytes()
    tensors = [
        tensor("a", "u8", [1000], Exact(bytes(1000)), segment=300),
        tensor("b", "f32", [50], Codebook(4, 10, [1] * 50, centroids, {"kind": "group", "size": 13})),
        tensor("c", "i64", [3], Exact(bytes(24), "bytes")),
    ]
    assets = [asset("x", b"x" * 700), asset("y", b"y" * 600)]
    # Parts: 4 segments of a; parameters and a segment of b; one of c; the assets.
    return draft(
        tensors, assets, chunk_parts=[1, 3, 3, 2], aliases={"d": "a", "e": "b"}, metadata={"m": "m" * 3000}
    )


def manifest_of(data: bytes) -> Any:
    stored, _ = stored_manifest(data)
    return msgpack.unpackb(zstandard.ZstdDecompressor().decompress(stored))


NEEDED: dict[str, Callable[[bytes], int]] = {
    "manifest_bytes": lambda data: max(len(stored_manifest(data)[0]), stored_manifest(data)[1]),
    "manifest_containers": lambda data: count(manifest_of(data), True),
    "manifest_items": lambda data: count(manifest_of(data), False),
    "tensors": lambda data: 5,
    "assets": lambda data: 2,
    "chunks": lambda data: 4,
    "streams": lambda data: 4 + 2 + 8 + 2,
    "tensor_bytes": lambda data: 1000,
    "parameter_bytes": lambda data: 160,
    "asset_bytes": lambda data: 700,
    "chunk_bytes": lambda data: 1300,
}


def test_every_limit_is_tested() -> None:
    assert {field.name for field in dataclasses.fields(Limits)} == {
        *NEEDED,
        "manifest_ratio",
        "manifest_slack",
        "chain",  # in test_format_deltas.py
    }


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_limit_is_what_is_accepted_and_no_more(name: str) -> None:
    data = everything().build()
    needed = NEEDED[name](data)
    assert needed < getattr(DEFAULT_LIMITS, name)
    limits: dict[str, int] = {name: needed}
    with Reader(data, limits=Limits(**limits)) as reader:
        assert reader.read("e").tolist() == [1.0] * 13 + [11.0] * 13 + [21.0] * 13 + [31.0] * 11
    assert verify(data, deep=True, limits=Limits(**limits)).tensors == 3
    limits[name] -= 1
    for use in (Reader, verify):
        with pytest.raises(LimitExceeded) as caught:
            use(data, limits=Limits(**limits))
        assert caught.value.offset is not None


def test_a_manifest_may_grow_by_so_much_when_it_is_decoded() -> None:
    data = draft(metadata={"m": "m" * 100_000}).build()
    stored, decoded = stored_manifest(data)
    slack = decoded - 64 * len(stored)
    ratio = -(-decoded // len(stored))
    assert slack > 0
    for good, bad in (
        (Limits(manifest_slack=slack), Limits(manifest_slack=slack - 1)),
        (Limits(manifest_slack=0, manifest_ratio=ratio), Limits(manifest_slack=0, manifest_ratio=ratio - 1)),
    ):
        Reader(data, limits=good).close()
        with memory_below(MiB), pytest.raises(LimitExceeded):
            Reader(data, limits=bad)


def test_a_limit_may_be_above_its_default() -> None:
    place = (1 << 41) - 3
    data = draft([almost_empty("t", "u8", [1 << 41], {place: b"\7"})]).build()
    with pytest.raises(LimitExceeded, match=str(1 << 41)):
        Reader(data)
    with Reader(data, limits=Limits(tensor_bytes=1 << 41)) as reader:
        assert reader.tensor("t")[-4:].tolist() == [0, 7, 0, 0]

    one = one_symbol("", [1 << 20], 9)
    size = (1 << 32) + (1 << 20)
    fields = {"path": "a", "size": size, "digest": bytes(32)}
    fields |= {"codings": b"\1" * (size >> 20), "lengths": one.fields["lengths"] * (size >> 20)}
    data = draft([], [Asset(fields, one.parts * (size >> 20), b"")]).build()
    with pytest.raises(LimitExceeded, match=str(size)):
        Reader(data)
    with Reader(data, limits=Limits(asset_bytes=size)) as reader:
        assert reader.assets() == ["a"]

"""The native reader against every vector: the same bytes as the reference reader, and the right error."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.reference.dcz_reference import read
from tests.vectors.generate import FOLDER, bases

from dcz import errors
from dcz.format import BaseReference, Reader, verify

BASES = bases()
GOOD = sorted((FOLDER / "good").glob("*.dcz"))
BAD: dict[str, dict[str, Any]] = json.loads((FOLDER / "bad" / "index.json").read_text())


def find_base(reference: BaseReference) -> Reader:
    return Reader(BASES[reference.digest])


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_vector_gives_the_bytes_of_the_reference(path: Path) -> None:
    data = path.read_bytes()
    reference = read(data, bases=BASES)
    verify(data, deep=True, base=find_base)
    with Reader(path, base=find_base) as reader:
        assert reader.digest == reference.identity
        assert reader.size == len(data)
        assert sorted(reader.keys()) == sorted(reference.tensors)
        for name, expected in reference.tensors.items():
            assert reader.dtype(name) == expected.dtype
            assert reader.shape(name) == expected.shape
            got = reader.read(name)
            assert got.shape == expected.shape
            assert got.tobytes() == expected.data
        files = [
            one["path"] for one in reference.manifest.get("assets", []) if one.get("role", "file") == "file"
        ]
        assert sorted(reader.assets()) == sorted(files)
        assert {name: reader.read_asset(name) for name in reference.assets} == reference.assets
        assert dict(reader.aliases) == reference.manifest.get("aliases", {})
        assert dict(reader.metadata) == reference.manifest.get("metadata", {})


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_vector_is_what_its_json_says(path: Path) -> None:
    """The same through other ways in: from memory, through a file object, into the caller's arrays, with one thread."""
    expected = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    for reader in (Reader(data, base=find_base), Reader(io.BytesIO(data), threads=1, base=find_base)):
        with reader:
            assert reader.digest == expected["identity"]
            outs = {name: np.full_like(reader.read(name), 1) for name in expected["tensors"]}
            reader.read_into(outs)
            assert {name: hashlib.sha256(out.tobytes()).hexdigest() for name, out in outs.items()} == {
                name: one["sha256"] for name, one in expected["tensors"].items()
            }
            for name, one in expected["assets"].items():
                assert hashlib.sha256(reader.read_asset(name)).hexdigest() == one["sha256"]


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_vector_is_refused_with_a_right_error(name: str) -> None:
    right = tuple(getattr(errors, error) for error in BAD[name]["errors"])
    with pytest.raises(right):
        verify((FOLDER / "bad" / name).read_bytes(), deep=True, base=find_base)


@pytest.mark.parametrize("name", sorted(name for name in BAD if BAD[name]["step"] <= 5))
def test_bad_manifest_is_refused_before_a_tensor_is_touched(name: str) -> None:
    right = tuple(getattr(errors, error) for error in BAD[name]["errors"])
    with pytest.raises(right):
        Reader(FOLDER / "bad" / name)


@pytest.mark.parametrize("name", sorted(name for name in BAD if BAD[name]["step"] == 7))
def test_bad_stream_is_refused_on_reading(name: str) -> None:
    """A reader applies every rule of step 7 but the last digest, whether or not that was asked for."""
    right = tuple(getattr(errors, error) for error in BAD[name]["errors"])

    def read_all() -> None:
        with Reader(FOLDER / "bad" / name, base=find_base) as reader:
            for tensor in reader.keys():  # noqa: SIM118  (the API is not a mapping's)
                reader.read(tensor)
            for asset in reader.assets():
                reader.read_asset(asset)

    if BAD[name]["errors"] == ["DigestMismatch"]:
        with contextlib.suppress(errors.DigestMismatch):
            read_all()
    else:
        with pytest.raises(right):
            read_all()

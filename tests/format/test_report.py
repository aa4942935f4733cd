"""The account of a file's bytes, against a walk of its own through the stored streams of every vector."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from tests.vectors.generate import FOLDER

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format import CodebookTensor, PerTensor, Provenance, Reader, Writer
from dcz.format.report import account

GOOD = sorted((FOLDER / "good").glob("*.dcz"))


def _parameter_streams(values: dict[str, Any]) -> int:
    """How many there are (docs/format.md, sections 5.3, 5.4 and 5.6)."""

    def coded(field: str) -> int:
        how = values.get(field, {"kind": "exact"})
        return {"exact": 1, "affine": 2, "codebook": 4 if how.get("offset") else 3}[how["kind"]]

    count = int(values.get("granularity", {"kind": "tensor"})["kind"] == "indexed")
    match values["kind"]:
        case "exact":
            return 0
        case "affine":
            count += coded("scale_values") + bool(values.get("zero_points"))
            return count + (coded("minimum_values") if values.get("minimums") else 0)
        case "scaled-codebook":
            return count + coded("scale_values") + 1
        case _:
            return count + 1


def walk(data: bytes) -> dict[str, int]:
    """Where the bytes went, from the footer and the manifest alone (docs/format.md, sections 2 to 6)."""
    offset, length = struct.unpack_from("<QI", data, len(data) - 64)
    frame = zstandard.ZstdDecompressor().decompress(data[offset : offset + length])
    manifest: dict[str, Any] = msgpack.unpackb(frame)
    at, chunks, padding = 16, b"", 0
    for size in manifest.get("chunks", {}).get("lengths", []):
        gap = -at % 64 if size >= 4096 else 0
        padding += gap
        at += gap + size
        chunks += data[at - size : at]
    sums = {"values": 0, "positions": 0, "tables": 0, "parameters": 0, "assets": 0}
    used = 0
    for tensor in manifest.get("tensors", []):
        values = tensor.get("values", {"kind": "exact", "split": "whole"})
        parameters = _parameter_streams(values)
        sparse = tensor.get("layout", {"kind": "dense"})["kind"] != "dense"
        segments = -(-int(np.prod(tensor["shape"], dtype=object)) // tensor.get("segment", 1))
        lengths = tensor.get("lengths", [])
        each = (len(lengths) - parameters) // segments if segments else 1
        for number, (coding, size) in enumerate(zip(tensor.get("codings", b""), lengths, strict=True)):
            stream = chunks[used : used + size]
            used += size
            table = 0
            if number < parameters:
                kind = "parameters"
            else:
                kind = "positions" if sparse and (number - parameters) % each == 0 else "values"
                table = _native.table_bytes(stream) if coding in (1, 4) else 0
            sums["tables"] += table
            sums[kind] += size - table
    sums["assets"] = sum(sum(asset.get("lengths", [])) for asset in manifest.get("assets", []))
    return {**sums, "manifest": length, "header": 16, "padding": padding, "footer": 64}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_every_byte_of_every_vector_is_accounted_for(path: Path) -> None:
    with Reader(path) as reader:
        report = account(reader)
        without = account(reader, tables=False)
    assert report.bytes.to_dict() == walk(path.read_bytes())
    assert report.bytes.total == without.bytes.total == report.size == path.stat().st_size
    parts = report.bytes
    data = (parts.values, parts.positions, parts.tables, parts.parameters)
    assert sum(tensor.stored for tensor in report.tensors) == sum(size or 0 for size in data)
    assert without.bytes.tables is None
    assert sum(tensor.stored for tensor in without.tensors) == sum(tensor.stored for tensor in report.tensors)
    json.dumps(report.to_dict(), allow_nan=False)


def test_how_tensors_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "model.dcz"
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((300, 1000)) * 0.02).astype(np.float32)
    mask = rng.random(weights.shape) < 0.1
    codes = rng.integers(0, 16, mask.shape, dtype=np.uint8)
    shared = CodebookTensor(
        "f32", mask.shape, 4, codes, rng.standard_normal((1, 16)).astype(np.float32), PerTensor(), mask
    )
    provenance = Provenance(source="someone/model", metrics={"loss": float("nan"), "accuracy": 0.5})
    with Writer(path, metadata={"note": "text"}, provenance=provenance) as writer:
        writer.add_tensor("weights", weights)
        writer.add_tensor("shared", shared, layout="bitmap")
        writer.add_tensor("empty", np.empty((0, 4), np.int64))
        writer.add_alias("tied", "weights")
        writer.add_asset("config.json", b"{}" * 5000)
    with Reader(path) as reader:
        report = account(reader)
    plain = report.to_dict()
    assert report.bytes.total == path.stat().st_size == plain["size"]
    lossless, sparse, empty = report.tensors
    assert lossless.stored_as == "dense x exact (rotated) x huffman+raw"
    assert lossless.elements == 300_000
    assert lossless.content == 1_200_000
    assert lossless.ratio == pytest.approx(lossless.stored / 1_200_000)
    assert lossless.bits_per_element == pytest.approx(lossless.stored * 8 / 300_000)
    assert lossless.tables
    assert sparse.stored_as.startswith("bitmap x codebook (16 shared) x ")
    assert sparse.parameters == 64
    # The positions of one element in ten cannot take less than their entropy, 0.469 bits for each element.
    assert 0.46 * 300_000 / 8 < sparse.positions + (sparse.tables or 0) < 1.01 * 300_000 / 8
    assert (empty.stored, empty.ratio, empty.bits_per_element) == (0, None, None)
    assert empty.stored_as == "dense x exact x nothing"
    assert plain["aliases"] == {"tied": "weights"}
    assert plain["metadata"] == {"note": "text"}
    assert plain["provenance"]["metrics"] == {"loss": None, "accuracy": 0.5}
    assert [(asset["path"], asset["size"]) for asset in plain["assets"]] == [("config.json", 10_000)]
    assert plain["tensors"][1]["layout"] == {"kind": "bitmap"}
    assert plain["tensors"][1]["values"]["size"] == 16


def test_tables_longer_than_their_stream_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.dcz"
    with Writer(path) as writer:
        writer.add_tensor("first", np.arange(64, dtype=np.uint8), coding="raw")
        writer.add_tensor("w", np.repeat(np.arange(4, dtype=np.uint8), 4000), coding="huffman")
    with Reader(path) as reader:
        place = reader.geometry.segment_place("w", 0)
        offset = reader.geometry.chunk_offsets[place.chunk] + place.start
        account(reader)
    data = bytearray(path.read_bytes())
    data[offset : offset + 5] = b"\xff\xff\xff\xff\x0f"
    with Reader(bytes(data)) as reader, pytest.raises(CorruptStream) as caught:
        account(reader)
    assert (caught.value.tensor, caught.value.offset) == ("w", offset)
    with Reader(bytes(data)) as reader:
        assert account(reader, tables=False).bytes.total == len(data)

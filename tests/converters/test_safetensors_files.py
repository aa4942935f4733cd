"""safetensors files through a .dcz file and back, byte by byte; shards, their index, and files that lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from tests.converters.raw_safetensors import entry, raw_safetensors

from dcz.converters.conversion import convert
from dcz.converters.decoding import decode
from dcz.converters.safetensors import SafetensorsSink, SafetensorsSource
from dcz.converters.safetensors_header import build_header
from dcz.errors import EncodingError, SourceError
from dcz.format import DTYPES, Reader, verify

TYPES = [getattr(torch, row.numpy.name) for row in DTYPES.values()]


def _through(file: bytes, folder: Path, **options: Any) -> bytes:
    (folder / "in.safetensors").write_bytes(file)
    convert(folder / "in.safetensors", folder / "m.dcz", **options)
    verify(folder / "m.dcz", deep=True)
    decode(folder / "m.dcz", folder / "out.safetensors")
    return (folder / "out.safetensors").read_bytes()


def _random(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Every pattern of bits, NaNs with payloads and -0 included."""
    size = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))
    return (data & 1).view(dtype).reshape(shape) if dtype == torch.bool else data.view(dtype).reshape(shape)


@given(
    st.lists(
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 6), max_size=4)),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
@settings(max_examples=40, deadline=None)
def test_every_type_and_shape_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[torch.dtype, list[int]]],
    metadata: dict[str, str],
) -> None:
    tensors = {f"t{i}": _random(dtype, tuple(shape), i) for i, (dtype, shape) in enumerate(parts)}
    file = save(tensors, metadata or None)
    assert _through(file, tmp_path_factory.mktemp("files")) == file


def test_order_padding_and_unknown_fields_come_back(tmp_path: Path) -> None:
    """The library would write none of these, but reads them."""
    header = json.dumps(
        {
            "z": entry("U8", [3], 4, 7) | {"comment": 1},
            "__metadata__": {"format": "pt", "ü": "\u2028"},
            "a": entry("F32", [], 0, 4),
        },
        indent=3,
    ).encode()
    file = raw_safetensors(header + b" " * 13, b"\0\0\x80\x7fabc")
    (tmp_path / "check.safetensors").write_bytes(file)
    assert load_file(tmp_path / "check.safetensors")["z"].tolist() == [97, 98, 99]
    assert _through(file, tmp_path) == file


def test_an_empty_file_comes_back(tmp_path: Path) -> None:
    assert _through(raw_safetensors(b"{}"), tmp_path) == raw_safetensors(b"{}")


def test_a_lossy_file_keeps_header_and_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"w": torch.randn(64, 64), "bias": torch.randn(64), "step": torch.tensor(3)}
    file = save(tensors, {"format": "pt"})
    back = _through(file, tmp_path, recipe="int8")
    length = len(file) - sum(t.numel() * t.element_size() for t in tensors.values())
    assert back[:length] == file[:length]
    assert len(back) == len(file)
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["bias"], tensors["bias"])
    assert torch.equal(found["step"], tensors["step"])
    worst = (found["w"] - tensors["w"]).abs().amax(1) / tensors["w"].abs().amax(1)
    assert 0 < float(worst.max()) < 1 / 250


def test_provenance_names_what_was_read(tmp_path: Path) -> None:
    file = save({"a": torch.zeros(100_000), "b": torch.ones(3)})
    _through(file, tmp_path)
    with Reader(tmp_path / "m.dcz") as reader:
        provenance = reader.manifest.provenance
        assert [(f.path, f.size, f.sha256) for f in provenance.files] == [
            ("in.safetensors", len(file), hashlib.sha256(file).digest())
        ]
        assert provenance.recipe["name"] == "lossless"
        assert str(tmp_path).encode() not in (tmp_path / "m.dcz").read_bytes()


@pytest.mark.parametrize("name", ["a:b.safetensors", "x .safetensors", "back\\slash.safetensors"])
def test_a_name_that_an_artifact_cannot_hold_is_no_obstacle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(save({"a": torch.ones(2)}))
    convert(tmp_path / name, tmp_path / "m.dcz")
    decode(tmp_path / "m.dcz", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / name).read_bytes()


def test_a_truncated_or_extended_file_is_refused(tmp_path: Path) -> None:
    file = save({"a": torch.ones(200)})
    for length in (0, 3, 8, 20, len(file) - 800, len(file) - 1, len(file) + 1):
        (tmp_path / "x.safetensors").write_bytes((file + b"!")[:length])
        with pytest.raises(SourceError, match=r"x\.safetensors"):
            convert(tmp_path / "x.safetensors", tmp_path / "m.dcz")
        assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.ones(1000)}, path)
    source = SafetensorsSource.from_file(path)
    tensors = source.tensors()
    next(tensors)
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(SourceError, match="was cut off"):
        next(tensors)
    source.close()


def test_a_bool_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw_safetensors({"m": entry("BOOL", [3], 0, 3)}, b"\0\1\2"))
    with pytest.raises(SourceError, match="'m' holds bytes that are neither 0 nor 1"):
        convert(tmp_path / "x.safetensors", tmp_path / "m.dcz")
    assert not (tmp_path / "m.dcz").exists()


# -- shards


def _shards(folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(8, 8) for i in range(4)}
    weight_map: dict[str, str] = {}
    for shard in range(2):
        name = f"model-0000{shard + 1}-of-00002.safetensors"
        part = {key: tensors[key] for key in list(tensors)[shard * 2 : shard * 2 + 2]}
        save_file(part, folder / name, {"format": "pt", "shard": str(shard)})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1024}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return tensors


def test_shards_come_back_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    tensors = _shards(folder)
    done = convert(folder / "model.safetensors.index.json", tmp_path / "m.dcz")
    assert (done.tensors, done.assets) == (4, 1)
    decoded = decode(tmp_path / "m.dcz", tmp_path / "out")
    assert decoded.original
    assert decoded.headers == 2
    assert sorted(decoded.files) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.metadata == {"format": "pt", "shard": "0"}
    # A single file cannot have two headers: it gets one of its own.
    merged = decode(tmp_path / "m.dcz", tmp_path / "one.safetensors")
    assert (merged.original, merged.headers) == (False, 2)  # they are known, but none is that of one file
    one = load_file(tmp_path / "one.safetensors")
    assert one.keys() == tensors.keys()
    assert all(torch.equal(one[name], tensors[name]) for name in one)


def _edit_index(folder: Path, **changes: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "a/../../x", "", ".", "a\\..\\x", "c:x", "nul\0", "../../x/x"],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    _shards(folder)
    save_file({"layer.0.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    _edit_index(folder, **{"layer.0.weight": shard})
    for source in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises(SourceError, match="not a valid index"):
            convert(source, tmp_path / "m.dcz")
    assert not (tmp_path / "m.dcz").exists()


def test_wrong_shards_are_named(tmp_path: Path) -> None:
    _shards(tmp_path)
    second = "model-00002-of-00002.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    _edit_index(tmp_path, **{"layer.0.weight": second})
    with pytest.raises(SourceError, match=f"'layer.0.weight' is not in {second}"):
        convert(index, tmp_path / "m.dcz")
    _shards(tmp_path)
    save_file({f"layer.{i}.weight": torch.ones(1) for i in (1, 2, 3)}, tmp_path / second)
    with pytest.raises(SourceError, match=r"'layer\.1\.weight' stands in model-00001.* and in model-00002"):
        convert(index, tmp_path / "m.dcz")
    (tmp_path / second).unlink()
    with pytest.raises(SourceError, match=f"the shard {second} is missing"):
        convert(index, tmp_path / "m.dcz")
    assert not (tmp_path / "m.dcz").exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{" * 10_000],
)
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match="not a valid index"):
        convert(tmp_path / "model.safetensors.index.json", tmp_path / "m.dcz")


# -- the sink


def test_a_sink_takes_any_order_and_only_what_fits(tmp_path: Path) -> None:
    f32 = DTYPES["f32"]
    header = build_header([("a", f32, (2,)), ("b", f32, (1, 3)), ("none", f32, (0,))], {"k": "v"})
    sink = SafetensorsSink(tmp_path / "x.safetensors", header)
    sink.add_tensor("b", np.array([[3, 4, 5]], np.float32))
    for wrong in (np.zeros(3, np.float32), np.zeros(2, np.int32)):
        with pytest.raises(EncodingError, match="no tensor 'a'"):
            sink.add_tensor("a", wrong)
    with pytest.raises(EncodingError, match="2 tensors were not written, among them 'a'"):
        sink.commit()
    sink.add_tensor("none", np.zeros(0, np.float32))
    sink.add_tensor("a", np.array([1, 2], np.float32))
    assert not (tmp_path / "x.safetensors").exists()
    sink.commit()
    found = load_file(tmp_path / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [1, 2],
        "b": [[3, 4, 5]],
        "none": [],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_aborted_sink_leaves_nothing(tmp_path: Path) -> None:
    sink = SafetensorsSink(tmp_path / "x.safetensors", build_header([("a", DTYPES["u8"], (2,))]))
    sink.add_tensor("a", np.zeros(2, np.uint8))
    sink.abort()
    sink.abort()
    assert not list(tmp_path.iterdir())

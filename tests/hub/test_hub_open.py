"""open, load, inspect and convert from the Hub, the cache, and what is there without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from tests.hub.faults import Fault
from tests.hub.server import TestHub
from tests.registry.dcz_files import MakeDcz, write_dcz

import dcz
from dcz.errors import RegistryCorrupt, SourceError, Unreachable, UsageError
from dcz.format import Reader, Writer
from dcz.registry import Hub, open_reference
from dcz.registry.hub.cache import Cache
from dcz.registry.hub.connection import Connection
from dcz.registry.refs import HubReference


@pytest.fixture
def large(hub: TestHub, tmp_path: Path) -> Path:
    """``ada/m`` with a .dcz of 4 MB, of which one tensor is small."""
    path = tmp_path / "large.dcz"
    draw = np.random.default_rng(0)
    with Writer(path, threads=1) as writer:
        writer.add_tensor("small", draw.standard_normal(1000).astype(np.float32))
        writer.add_tensor("large", draw.standard_normal(1_200_000).astype(np.float32))
    hub.add_files("ada/m", {"model.dcz": path})
    return path


def test_a_look_takes_a_few_kilobytes(hub: TestHub, ada: Hub, large: Path) -> None:
    with open_reference("hf://ada/m", registry=ada, whole=False) as reader, Reader(large) as local:
        assert reader.digest == local.digest
        assert reader.name == f"hf://ada/m@{hub.head('ada/m')}/model.dcz"
        looked = hub.log.sent("/object/")
        assert looked < 70_000
        assert np.array_equal(reader.read("small"), local.read("small"))
        assert hub.log.sent("/object/") - looked < 1_100_000
        assert np.array_equal(reader.read("large"), local.read("large"))
    assert len(hub.log.all("/resolve/")) == 1  # the signed URL is used again
    with dcz.open("hf://ada/m", "numpy", registry=ada) as file:
        assert file["small"].shape == (1000,)


def test_a_signed_url_that_expires_is_asked_for_again(hub: TestHub, ada: Hub, large: Path) -> None:
    with open_reference("hf://ada/m", registry=ada, whole=False) as reader:
        hub.faults.add(Fault("status", path="/object/", status=403))
        reader.read("small")
        hub.faults.add(Fault("reset", path="/object/", after=10), Fault("no-ranges", path="/object/"))
        reader.read("large")
    assert len(hub.log.all("/resolve/")) >= 2


def test_damage_is_found_by_ranges_too(hub: TestHub, ada: Hub, large: Path) -> None:
    with open_reference("hf://ada/m", registry=ada, whole=False) as reader:
        hub.faults.add(Fault("flip", path="/object/", after=2_000_000, times=99))
        with pytest.raises(dcz.FormatError):
            reader.read("large")


def test_what_is_loaded_is_kept(hub: TestHub, ada: Hub, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(large) as local:
        expected = local.read("large")
    assert np.array_equal(dcz.load("hf://ada/m", framework="numpy", registry=ada)["large"], expected)
    hub.log.clear()
    assert np.array_equal(dcz.load("hf://ada/m", framework="numpy", registry=ada)["large"], expected)
    assert hub.log.sent("/object/|/resolve/") == 0
    assert ada.cache is not None
    found = huggingface_hub.try_to_load_from_cache("ada/m", "model.dcz", cache_dir=ada.cache)
    assert isinstance(found, str)
    assert Path(found).read_bytes() == large.read_bytes()
    assert not huggingface_hub.scan_cache_dir(ada.cache).warnings

    # A branch that has moved is noticed, unless nobody is asked.
    hub.add_files("ada/m", {"model.dcz": write_dcz(large.with_name("new.dcz"))})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "large" in dcz.load("hf://ada/m", framework="numpy", registry=ada)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        dcz.load("hf://ada/m@v2", framework="numpy", registry=ada)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "large" not in dcz.load("hf://ada/m", framework="numpy", registry=ada)
    hub.faults.add(Fault("status", times=999))
    with pytest.raises(Unreachable):
        dcz.load("hf://ada/m", framework="numpy", registry=ada)


def test_the_cache_is_not_trusted(hub: TestHub, ada: Hub, large: Path) -> None:
    dcz.load("hf://ada/m", framework="numpy", registry=ada)
    assert ada.cache is not None
    (blob,) = (ada.cache / "models--ada--m" / "blobs").iterdir()
    right = blob.read_bytes()
    wrong = bytearray(right)
    wrong[len(wrong) // 2] ^= 1
    blob.write_bytes(wrong)  # what was written to is hashed, and fetched again
    dcz.load("hf://ada/m", framework="numpy", registry=ada)
    assert blob.read_bytes() == right
    # Damage that no time tells of is found where it is read.
    for damaged in (
        bytes(wrong),
        write_dcz(large.with_name("other.dcz")).read_bytes().ljust(len(right), b"\0"),
    ):
        before = blob.stat()
        blob.write_bytes(damaged)
        os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises((dcz.FormatError, RegistryCorrupt)):
            dcz.load("hf://ada/m", framework="numpy", registry=ada)
    # Without a note of ours, what is there is hashed, and fetched again if it is wrong.
    note = ada.cache / "models--ada--m" / ".dcz" / blob.name
    note.unlink()
    dcz.load("hf://ada/m", framework="numpy", registry=ada)
    assert blob.read_bytes() == right
    note.unlink()
    hub.log.clear()
    dcz.load("hf://ada/m", framework="numpy", registry=ada)
    assert hub.log.sent("/object/") == 0


def test_each_hub_has_a_cache(hub: TestHub) -> None:
    reference = HubReference("ada", "m")
    folders = {
        endpoint: Cache(Connection(Hub(endpoint, False)), reference).folder.parent
        for endpoint in ("https://huggingface.co", "https://hub.example.com/", "http://localhost:8080")
    }
    assert folders["https://huggingface.co"] == Path(huggingface_hub.constants.HF_HUB_CACHE)
    assert [folder.name for folder in list(folders.values())[1:]] == [
        "hub-hub.example.com",
        "hub-localhost-8080",
    ]


def test_which_file(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    hub.add_files("ada/one", {"sub/a.dcz": make_dcz("a.dcz", 1), "README.md": b"x"})
    hub.add_files("ada/two", {"model.dcz": make_dcz("model.dcz", 2), "a.dcz": make_dcz("a.dcz", 1)})
    hub.add_files("ada/none", {"b.dcz": make_dcz("b.dcz", 2), "a.dcz": make_dcz("a.dcz", 1)})

    def seed(ref: str, file: str | None = None) -> str:
        with open_reference(ref, file=file, registry=ada) as reader:
            return reader.metadata["seed"]

    assert seed("hf://ada/one") == seed("hf://ada/two", "a.dcz") == seed("hf://ada/none", "a.dcz") == "1"
    assert seed("hf://ada/two") == "2"
    for ref, file, words in (
        ("hf://ada/none", None, "2 .dcz files"),
        ("hf://ada/two", "c.dcz", "no .dcz file 'c.dcz'"),
    ):
        with pytest.raises(UsageError, match=words):
            seed(ref, file)


def safetensors(value: float) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + np.full(4, value, np.float32).tobytes()


def test_weights_are_converted_from_the_hub(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    files = {"model.safetensors": safetensors(1), "config.json": b"{}", "sub/tokenizer.json": b"[]"}
    more = {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"onnx"}
    commit = hub.add_files("ada/m", files | more, lfs=["model.safetensors", *more])
    hub.repository("ada/m").tags["v1"] = commit
    hub.add_files("ada/m", {"model.safetensors": safetensors(2)}, lfs=["model.safetensors"])
    done = dcz.convert("hf://ada/m@v1", tmp_path / "m.dcz", registry=ada)
    assert len(hub.log.all("/object/")) == 1
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.read("w").tolist() == [1, 1, 1, 1]
        assert set(reader.assets()) >= {"config.json", "sub/tokenizer.json"}
        assert (reader.manifest.provenance.source, reader.manifest.provenance.revision) == ("ada/m", commit)
    again = dcz.convert(f"hf://ada/m@{commit}", tmp_path / "again.dcz", registry=ada)
    assert again.digest == done.digest
    assert len(hub.log.all("/object/")) == 1
    hub.faults.add(Fault("flip", path="/object/", after=80, times=9))
    with pytest.raises(RegistryCorrupt):
        dcz.convert("hf://ada/m", tmp_path / "m.dcz", registry=ada)


def test_shards_are_converted_from_the_hub(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}).encode()
    shard = {"model-00001-of-00001.safetensors": safetensors(1), "other.safetensors": safetensors(2)}
    hub.add_files("ada/m", {"model.safetensors.index.json": index, **shard}, lfs=[*shard])
    dcz.convert("hf://ada/m", tmp_path / "m.dcz", registry=ada)
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.read("w").tolist() == [1, 1, 1, 1]
    hub.add_files("ada/n", {"model.safetensors.index.json": index})
    with pytest.raises(SourceError, match="which its index names"):
        dcz.convert("hf://ada/n", tmp_path / "m.dcz", registry=ada)
    hub.add_files("ada/o", {"README.md": b"x"})
    with pytest.raises(SourceError, match="no weights"):
        dcz.convert("hf://ada/o", tmp_path / "m.dcz", registry=ada)


def test_a_dcz_of_the_hub_is_converted(hub: TestHub, ada: Hub, large: Path, tmp_path: Path) -> None:
    dcz.convert("hf://ada/m", tmp_path / "m.dcz", recipe="int8", registry=ada)
    with Reader(tmp_path / "m.dcz") as reader:
        assert set(reader) == {"small", "large"}


def test_a_base_on_the_hub(hub: TestHub, ada: Hub, large: Path, tmp_path: Path) -> None:
    with Reader(large) as reader:
        tensors = {name: reader.read(name) for name in reader}
    tensors["large"] = tensors["large"].copy()
    tensors["large"][:100] += 1e-3
    done = dcz.save(tensors, tmp_path / "tuned.dcz", base="hf://ada/m", registry=ada)
    assert done.differences
    with dcz.open(tmp_path / "tuned.dcz", "numpy", base="hf://ada/m", registry=ada) as file:
        assert np.array_equal(file["large"], tensors["large"])


def test_the_guide_runs(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    guide = (Path(__file__).parents[2] / "docs" / "guides" / "hub.md").read_text()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me"))
    monkeypatch.chdir(tmp_path)
    write_dcz(tmp_path / "model.dcz")
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "hub.md", "exec"), {})  # noqa: S102 - our own documentation
    commit = hub.repository("me/minilm-dcz").tags["v1"]
    assert capsys.readouterr().out.splitlines()[0] == f"hf://me/minilm-dcz@{commit}"
    assert (tmp_path / "here" / "model.dcz").read_bytes() == (tmp_path / "model.dcz").read_bytes()

"""Several files at once: shards fetched, healed and kept as one; and what is known of them when nobody can be asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from tests.hub.faults import Fault
from tests.hub.server import TestHub
from tests.registry.dcz_files import MakeDcz

import dcz
from dcz.errors import AccessDenied, DigestMismatch, RegistryCorrupt, SourceError, Unreachable, UsageError
from dcz.registry import Hub, HubReference, lock, locked, open_reference, pull, push, write_lock

Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays() -> Arrays:
    draw = np.random.default_rng(0)
    return {f"layer.{number}": draw.standard_normal((64, 64)).astype(np.float32) for number in range(6)}


@pytest.fixture
def folder(arrays: Arrays, tmp_path: Path) -> Path:
    """Six tensors in three .dcz files with their index."""
    dcz.save_pretrained(arrays, tmp_path / "sharded", max_shard_size=35_000)
    assert len(list((tmp_path / "sharded").glob("*.dcz"))) == 3
    return tmp_path / "sharded"


def assert_same(found: dict[str, np.ndarray], arrays: Arrays) -> None:
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_a_folder_of_shards_is_loaded(folder: Path, arrays: Arrays, tmp_path: Path) -> None:
    assert_same(dcz.load(folder, framework="numpy"), arrays)
    assert_same(dcz.load(f"{folder}/", framework="numpy"), arrays)
    loaded = dcz.load_model(folder)  # no configuration of transformers: the tensors
    assert_same({name: tensor.numpy() for name, tensor in loaded.items()}, arrays)
    pins = json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["dcz"]
    assert_same(dcz.load(folder, framework="numpy", digest=pins.values()), arrays)
    with pytest.raises(RegistryCorrupt, match="not what was asked for"):
        dcz.load(folder, framework="numpy", digest=list(pins.values())[1:])
    with pytest.raises(SourceError, match="no index"):
        dcz.load(tmp_path, framework="numpy")
    shards = sorted(folder.glob("*.dcz"))
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(DigestMismatch):
        dcz.load(folder, framework="numpy")


def test_shards_on_the_hub_are_one_model(
    hub: TestHub, ada: Hub, folder: Path, arrays: Arrays, tmp_path: Path
) -> None:
    push(folder, "hf://ada/m", registry=ada)
    assert_same(dcz.load("hf://ada/m", framework="numpy", registry=ada), arrays)
    hub.log.clear()
    assert_same(dcz.load("hf://ada/m", framework="numpy", registry=ada), arrays)
    assert hub.log.all("/object/|/resolve") == []  # from the cache
    done = pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert_same(dcz.load(tmp_path / "here", framework="numpy"), arrays)
    assert len(done.files) == 5  # with index and card


def test_one_file_that_fails_stops_all(hub: TestHub, ada: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, "hf://ada/m", registry=ada)
    hub.faults.add(Fault("status", path="/object/", status=404, times=99))
    with pytest.raises(dcz.errors.RegistryCorrupt):
        pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("at", [0, 5000])
def test_damage_on_the_way_is_healed(hub: TestHub, ada: Hub, folder: Path, tmp_path: Path, at: int) -> None:
    push(folder, "hf://ada/m", registry=ada)
    hub.faults.add(Fault("flip", path="/object/", after=at))
    pull("hf://ada/m", tmp_path / "here", registry=ada)
    for path in folder.iterdir():
        assert (tmp_path / "here" / path.name).read_bytes() == path.read_bytes()


def test_what_is_damaged_in_the_cache_is_fetched_again(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    model = make_dcz(elements=200_000)
    push(model, "hf://ada/m", registry=ada)
    expected = dcz.load(model, framework="numpy")
    assert_same(dcz.load("hf://ada/m", framework="numpy", registry=ada), expected)
    assert ada.cache is not None
    (blob,) = (ada.cache / "models--ada--m" / "blobs").iterdir()
    data = bytearray(blob.read_bytes())
    data[100_000] ^= 1
    blob.write_bytes(data)
    assert_same(dcz.load("hf://ada/m", framework="numpy", registry=ada), expected)
    assert blob.read_bytes() == model.read_bytes()


def test_offline_nothing_is_left_out_in_silence(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_dcz()
    hub.add_files("ada/m", {"model.dcz": model, "config.json": b"{}"})
    dcz.load(
        "hf://ada/m", framework="numpy", registry=ada
    )  # now the .dcz is in the cache, and config.json is not
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    dcz.load("hf://ada/m", framework="numpy", registry=ada)
    pull("hf://ada/m", tmp_path / "one", files=["model.dcz"], registry=ada)
    for what in (pull, dcz.hydrate):
        with pytest.raises(Unreachable, match=r"config\.json"):
            what("hf://ada/m", tmp_path / "all", registry=ada)
        assert not (tmp_path / "all").exists()
    with pytest.raises(Unreachable, match="nothing is pushed offline"):
        push(model, "hf://ada/m", registry=ada)
    # What others have fetched may be a part.
    for listed in (ada.cache or Path()).glob("*/.dcz/*.files"):
        listed.unlink()
    with pytest.raises(Unreachable, match="does not know which files"):
        pull("hf://ada/m", tmp_path / "all", registry=ada)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_pull_goes_on(
    hub: TestHub, make_dcz: MakeDcz, tmp_path: Path, hub_environment: dict[str, str], number: int
) -> None:
    files = {f"{name}.dcz": make_dcz(f"{name}.dcz", seed, 3_000_000) for seed, name in enumerate("abc")}
    hub.add_files("ada/m", files)
    size, here = sum(path.stat().st_size for path in files.values()), tmp_path / "here"
    hub.limit_rate(20e6)
    command = [sys.executable, "-m", "dcz", "pull", "hf://ada/m", "-o", str(here)]
    process = subprocess.Popen(command, env=os.environ | hub_environment, stdout=subprocess.DEVNULL)
    while sum(path.stat().st_size for path in here.glob(".dcz-pull-*/*.0")) < size // 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    kept = sum(path.stat().st_size for path in here.glob(".dcz-pull-*/*.0"))
    assert kept >= size // 3
    hub.limit_rate(None)
    while len(hub.log.all("/object/")) < 3:  # the server has not noticed yet
        time.sleep(0.01)
    hub.log.clear()
    subprocess.run(command, env=os.environ | hub_environment, check=True, stdout=subprocess.DEVNULL)
    assert hub.log.sent("/object/") == size - kept
    assert sorted(path.name for path in here.iterdir()) == sorted(files)


def test_a_lost_connection_keeps_what_has_come(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    model = make_dcz(elements=2_000_000)
    hub.add_files("ada/m", {"model.dcz": model})
    size = model.stat().st_size
    hub.faults.add(Fault("fin", path="/object/", after=size // 2))
    hub.faults.add(Fault("status", path="/resolve/", status=503, times=0))
    hub.faults.add(Fault("reset", path="/object/", times=99))
    impatient = replace(ada, patience=replace(ada.patience, give_up=0.2))
    with pytest.raises(Unreachable, match="goes on from there"):
        pull("hf://ada/m", tmp_path / "here", registry=impatient)
    hub.faults.clear()
    hub.log.clear()
    pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert hub.log.sent("/object/") <= size // 2 + (1 << 20)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["model.dcz"]


def test_hydrate_takes_pins(hub: TestHub, ada: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, "hf://ada/m", registry=ada)
    known = lock("hf://ada/m", registry=ada)
    write_lock(tmp_path / "dcz.lock", ["hf://ada/m"], registry=ada)
    assert locked(tmp_path / "dcz.lock", "hf://ada/m") == known
    digests = list(known.files.values())
    dcz.hydrate("hf://ada/m", tmp_path / "a", digests=digests, registry=ada)
    dcz.hydrate(folder, tmp_path / "b", digests=digests)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    for source in (folder, "hf://ada/m"):
        with pytest.raises((DigestMismatch, RegistryCorrupt), match="not what was asked for"):
            dcz.hydrate(source, tmp_path / "c", digests=digests[1:], registry=ada)
    assert not (tmp_path / "c").exists()


def test_a_config_that_names_other_files_is_not_hydrated(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    dcz.decode(
        dcz.save({"w": np.ones((4, 4), np.float32)}, tmp_path / "w.dcz").path, source / "model.safetensors"
    )
    (source / "config.json").write_text('{"model_type": "llama"}')
    dcz.save_pretrained(source, tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    wrongs: list[dict[str, Any]] = [
        {"shards": {}},
        {"shards": None},
        {"shards": {"model.dcz": "blake3:" + "0" * 64}},
    ]
    for wrong in wrongs:
        changed = config | {"quantization_config": config["quantization_config"] | wrong}
        (tmp_path / "made" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(DigestMismatch, match=r"does not name the \.dcz files"):
            dcz.hydrate(tmp_path / "made", tmp_path / "back")
    (tmp_path / "made" / "config.json").write_text(json.dumps(config))
    dcz.hydrate(tmp_path / "made", tmp_path / "back")


def test_what_is_no_folder_here(ada: Hub, folder: Path, arrays: Arrays) -> None:
    for make in (
        lambda: dcz.save_pretrained(arrays, "hf://ada/m"),
        lambda: dcz.hydrate(folder, "hf://ada/m"),
        lambda: pull("m:1", "hf://ada/m"),
    ):
        with pytest.raises(UsageError, match="no folder on this machine"):
            make()
    assert not Path("hf:").exists()


def test_a_token_that_is_none(ada: Hub, tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="HF_TOKEN"):
        pull(
            "hf://ada/m",
            tmp_path / "here",
            registry=replace(ada, token="hf_\N{LATIN SMALL LETTER E WITH ACUTE}"),
        )


def test_fetches_leave_each_other_what_they_have(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    """Of two fetches that were killed, the one that goes on first does not clear away what the other has."""
    hub.add_files("ada/m", {"a.dcz": make_dcz("a.dcz", 1), "b.dcz": make_dcz("b.dcz", 2)})
    sizes = {name: make_dcz(f"{name}.dcz", seed).stat().st_size for name, seed in (("a", 1), ("b", 2))}
    digests = {name: hub.repository("ada/m").commit_of("main").files[f"{name}.dcz"].etag for name in sizes}
    blobs = tmp_path / "cache" / "models--ada--m" / "blobs"
    for name, digest in digests.items():
        folder = blobs / f".dcz-fetch-{digest[:16]}-0123456789abcdef"
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        (folder / digest).write_bytes(make_dcz(f"{name}.dcz", 1 + "ab".index(name)).read_bytes()[:1000])
    for name, size in sizes.items():
        hub.log.clear()
        open_reference(HubReference("ada", "m"), file=f"{name}.dcz", registry=ada).close()
        assert hub.log.sent("/object/") == size - 1000
    assert sorted(path.name for path in blobs.iterdir()) == sorted(digests.values())

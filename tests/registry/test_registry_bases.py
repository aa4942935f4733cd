"""Bases in a registry: what an artifact says of them, and where they are found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.registry.dcz_files import MakeDcz

from dcz.errors import BaseNotFound, NotInRegistry, RegistryCorrupt, WrongBase
from dcz.format import BaseReference, Reader, TensorBase, Writer
from dcz.registry import base_name, base_sources, find_base, pull, push, resolve, verify, version_with
from dcz.registry.artifact import DCZ_BASES, decode_artifact


def write_delta(path: Path, base: Path, hint: str | None = None, change: float = 0.0) -> Path:
    """Differences to ``weight`` of ``base``, of which one element is another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, threads=1) as writer, Reader(base, base=base_sources()) as reader:
        index = writer.add_base(reader.digest, hint)
        old = reader.read("weight")
        new = old.copy()
        new[7] = change
        writer.add_tensor("weight", new, base=TensorBase(old, index))
    return path


def identity(path: Path) -> str:
    with Reader(path) as reader:
        return reader.digest


@pytest.fixture
def base(make_dcz: MakeDcz) -> Path:
    return make_dcz("base.dcz", 1)


def test_an_artifact_names_the_bases_of_its_files(base: Path, registry: Path, tmp_path: Path) -> None:
    delta = write_delta(tmp_path / "delta.dcz", base)
    push(base, "model:1", registry=registry)
    push(delta, "model:2", registry=registry)
    (layer,) = resolve("model:2", registry=registry).manifest.layers
    assert layer.bases == (identity(base),)
    assert layer.annotations[DCZ_BASES] == identity(base)
    (layer,) = resolve("model:1", registry=registry).manifest.layers
    assert layer.bases == ()
    assert DCZ_BASES not in layer.annotations

    pulled = pull("model:2", tmp_path / "here", registry=registry)
    assert pulled.bases == (identity(base),)
    assert os.listdir(tmp_path / "here") == ["delta.dcz"]  # and nothing else comes with it
    assert pull("model:1", tmp_path / "there", registry=registry).bases == ()
    push([base, delta], "both:1", registry=registry)
    assert pull("both:1", tmp_path / "both", registry=registry).bases == ()


@pytest.mark.parametrize("text", ["", "x", "blake3:" + "0" * 63, "blake3:" + "0" * 64 + ","])
def test_a_bad_list_of_bases_is_refused(base: Path, registry: Path, tmp_path: Path, text: str) -> None:
    push(write_delta(tmp_path / "delta.dcz", base), "model:2", registry=registry)
    data = resolve("model:2", registry=registry).manifest.to_bytes()
    before = identity(base).encode()
    with pytest.raises(RegistryCorrupt, match=DCZ_BASES):
        decode_artifact(data.replace(b'"' + before + b'"', f'"{text}"'.encode()))


def test_a_base_is_found_by_its_identity(base: Path, make_dcz: MakeDcz, registry: Path) -> None:
    push(make_dcz("other.dcz", 2), "model:1", registry=registry)
    push([base, make_dcz("third.dcz", 3)], "model:2", registry=registry)
    wanted = identity(base)
    assert str(version_with(wanted, registry=registry)).startswith("model:2@")
    # The hint may be right, of another version, no name, hostile, or missing.
    for hint in (
        "model:2",
        "model",
        "model:1",
        "nobody:3",
        "../x",
        "hf://a/b",
        "\n",
        "file:///etc/passwd",
        None,
    ):
        found = find_base(BaseReference(wanted, hint, "x.dcz"), registry=registry)
        assert found is not None
        with found:
            assert found.digest == wanted
    nobody = "blake3:" + "0" * 64
    assert find_base(BaseReference(nobody, "model:2", "x.dcz"), registry=registry) is None
    assert version_with(nobody, registry=registry) is None
    assert find_base(BaseReference(wanted, None, "x.dcz"), registry=registry.parent / "none") is None
    assert not (registry.parent / "none").exists()


def test_a_damaged_version_does_not_hide_another(base: Path, make_dcz: MakeDcz, registry: Path) -> None:
    push(make_dcz("other.dcz", 2), "a:1", registry=registry)
    push(base, "b:1", registry=registry)
    digest = resolve("a:1", registry=registry).digest
    blob = registry / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.chmod(0o644)
    blob.write_bytes(b"{}")
    assert str(version_with(identity(base), registry=registry)).startswith("b:1@")


def test_verify_reads_the_base_from_the_registry(base: Path, registry: Path, tmp_path: Path) -> None:
    delta = write_delta(tmp_path / "delta.dcz", base)
    push(delta, "model:2", registry=registry)
    assert verify("model:2", registry=registry).reports["delta.dcz"].bases == (identity(base),)
    with pytest.raises(BaseNotFound, match=identity(base)):
        verify("model:2", deep=True, registry=registry)
    assert verify("model:2", deep=True, registry=registry, base=base).reports["delta.dcz"].deep
    push(base, "model:1", registry=registry)
    assert verify("model:2", deep=True, registry=registry).reports["delta.dcz"].deep


def test_a_chain_of_versions_is_followed(
    base: Path, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(registry))
    push(base, "model:1")
    second = write_delta(tmp_path / "2.dcz", base, change=2)
    push(second, "model:2")
    third = write_delta(tmp_path / "3.dcz", second, change=3)
    for path in (base, second):
        path.unlink()
    with Reader(third, base=base_sources()) as reader:
        assert reader.read("weight")[7] == 3


def test_a_file_beside_it_is_found_by_its_name_and_identity(
    base: Path, registry: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    delta = write_delta(folder / "delta.dcz", base, "old.dcz", change=5)
    sources = base_sources(registry=registry)

    def read() -> float:
        with Reader(delta, base=sources) as reader:
            return float(reader.read("weight")[7])

    for wrong in (b"no .dcz", delta.read_bytes(), b""):
        (folder / "old.dcz").write_bytes(wrong)
        with pytest.raises(BaseNotFound):
            read()
    (folder / "old.dcz").unlink()
    os.mkfifo(folder / "old.dcz")
    with pytest.raises(BaseNotFound):
        read()
    (folder / "old.dcz").unlink()
    (folder / "old.dcz").write_bytes(base.read_bytes())
    assert read() == 5


@pytest.mark.parametrize(
    "hint", ["../base.dcz", "/etc/base.dcz", "sub/base.dcz", "base", "base.dcz/", ".dcz/.."]
)
def test_a_hint_leads_nowhere_else(base: Path, registry: Path, tmp_path: Path, hint: str) -> None:
    delta = write_delta(tmp_path / "folder" / "delta.dcz", base, hint)
    for place in (
        tmp_path / "base.dcz",
        tmp_path / "folder" / "sub" / "base.dcz",
        tmp_path / "folder" / "base",
    ):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(base.read_bytes())
    with Reader(delta, base=base_sources(registry=registry)) as reader, pytest.raises(BaseNotFound):
        reader.read("weight")


def test_a_base_may_be_given_as_a_reference(
    base: Path, make_dcz: MakeDcz, registry: Path, tmp_path: Path
) -> None:
    delta = write_delta(tmp_path / "delta.dcz", base)
    push(base, "model:1", registry=registry)
    push(make_dcz("other.dcz", 2), "other:1", registry=registry)
    with Reader(delta, base=base_sources("model:1", registry=registry)) as reader:
        assert reader.read("weight").shape == (2000,)
    with Reader(delta, base=base_sources("other:1", registry=registry)) as reader, pytest.raises(WrongBase):
        reader.read("weight")
    with pytest.raises(NotInRegistry):
        base_sources("nobody:1", registry=registry)


def test_the_hint_has_no_folder() -> None:
    assert (
        base_name("/home/somebody/models/a.dcz")
        == base_name(Path("x/a.dcz"))
        == base_name("./a.dcz")
        == "a.dcz"
    )
    assert base_name("minilm:1.0") == "minilm:1.0"
    assert base_name("https://example.org/a.dcz") == "https://example.org/a.dcz"
    assert base_name(b"bytes") is base_name(None) is None
    assert base_name(np.float32(1)) is None

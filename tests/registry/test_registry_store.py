"""The store in a folder: the contract, the layout on the disk, and damage to it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.registry.dcz_files import MakeDcz, write_dcz
from tests.registry.oci_layout import check_oci_layout
from tests.registry.store_contract import StoreContract, digest_of, put

from dcz.errors import DczError, RegistryCorrupt, RegistryError
from dcz.registry import LocalStore, collect_garbage, history, list_artifacts, pull, push, tag, verify
from dcz.registry.disk import Staging, copy_hashed, exclusive_lock, open_regular
from dcz.registry.index import Index, decode_index


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "deep" / "er" / "registry")


def test_the_folder_is_an_oci_image_layout(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("hello\n")
    model = make_dcz()
    push([model, readme], "org/mini-lm:1.0", registry=registry, aliases=["champion"])
    push(make_dcz("model.dcz", 1), "org/mini-lm", registry=registry)
    found = check_oci_layout(registry)
    assert set(found) == {
        "org/mini-lm:1.0",
        "org/mini-lm:champion",
        "org/mini-lm:latest",
        "org/mini-lm:v1",
    }
    assert [(title, blob.read_bytes()) for title, blob in found["org/mini-lm:1.0"]] == [
        ("README.md", b"hello\n"),
        ("model.dcz", write_dcz(tmp_path / "again.dcz", 0).read_bytes()),
    ]
    assert found["org/mini-lm:latest"] == found["org/mini-lm:v1"]


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_and_writes_the_folder(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push(make_dcz(), "org/minilm:1.0", registry=registry)

    def skopeo(*arguments: str) -> bytes:
        return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout

    raw = skopeo("inspect", "--raw", f"oci:{registry}:org/minilm:1.0")
    assert digest_of(raw) == list_artifacts(registry=registry)[0].reference.digest
    skopeo("copy", f"oci:{registry}:org/minilm:1.0", f"oci:{tmp_path}/other:org/minilm:2.0")
    skopeo("copy", f"oci:{tmp_path}/other:org/minilm:2.0", f"oci:{registry}:org/minilm:2.0")
    assert pull("org/minilm:2.0", tmp_path / "out", registry=registry).reference.digest == digest_of(raw)
    push(make_dcz("model.dcz", 1), "org/minilm:3.0", registry=registry)
    assert [item.reference.tag for item in list_artifacts(registry=registry)] == ["1.0", "2.0", "3.0"]
    assert len(history(registry=registry)) == 4
    assert collect_garbage(registry=registry, grace=0).blobs == 0


def test_blobs_are_read_only_and_independent_of_their_sources(registry: Path, make_dcz: MakeDcz) -> None:
    model = make_dcz()
    content = model.read_bytes()
    push(model, "m:1", registry=registry)
    with open(model, "r+b") as file:
        file.write(b"overwritten in place")
    blob = registry / "blobs" / "sha256" / digest_of(content).removeprefix("sha256:")
    assert blob.read_bytes() == content
    assert blob.stat().st_mode & 0o222 == 0


def test_reading_makes_nothing(registry: Path) -> None:
    assert list_artifacts(registry=registry) == []
    assert history(registry=registry) == []
    assert collect_garbage(registry=registry).blobs == 0
    assert not registry.exists()


def test_a_folder_with_other_things_is_not_made_a_registry(registry: Path, make_dcz: MakeDcz) -> None:
    registry.mkdir()
    (registry / "thesis.txt").write_text("all my work")
    for action in (
        lambda: push(make_dcz(), "m:1", registry=registry),
        lambda: list_artifacts(registry=registry),
    ):
        with pytest.raises(RegistryError, match="not a registry, and not empty"):
            action()
    assert os.listdir(registry) == ["thesis.txt"]
    with pytest.raises(RegistryError, match=r"thesis\.txt"):
        list_artifacts(registry=registry / "thesis.txt")


def test_another_version_of_the_layout_is_refused(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry)
    (registry / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(RegistryError, match=r"2\.0\.0"):
        list_artifacts(registry=registry)


def test_a_layout_that_another_tool_made_can_be_pushed_to(registry: Path, make_dcz: MakeDcz) -> None:
    (registry / "blobs" / "sha256").mkdir(parents=True)
    (registry / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (registry / "index.json").write_text(
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    )
    push(make_dcz(), "m:1", registry=registry)
    check_oci_layout(registry)
    assert len(history(registry=registry)) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"schemaVersion":2', b"\xff" * 100, None])
def test_a_broken_index_is_corrupt(registry: Path, make_dcz: MakeDcz, content: bytes | None) -> None:
    push(make_dcz(), "m:1", registry=registry)
    (registry / "index.json").unlink()
    if content is not None:
        (registry / "index.json").write_bytes(content)
    for action in (
        lambda: list_artifacts(registry=registry),
        lambda: push(make_dcz(), "m:2", registry=registry),
        lambda: collect_garbage(registry=registry, grace=0),
    ):
        with pytest.raises(RegistryCorrupt, match=r"index\.json"):
            action()
    assert len(os.listdir(registry / "blobs" / "sha256")) == 3


def test_a_pipe_in_place_of_a_file_does_not_hang(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push(make_dcz(), "m:1", registry=registry)
    for blob in (registry / "blobs" / "sha256").iterdir():
        blob.unlink()
        os.mkfifo(blob)
    with pytest.raises(RegistryError):
        pull("m:1", tmp_path / "out", registry=registry)
    with pytest.raises(RegistryError):
        collect_garbage(registry=registry, grace=0)
    (registry / "index.json").unlink()
    os.mkfifo(registry / "index.json")
    with pytest.raises(RegistryError, match="not a regular file"):
        list_artifacts(registry=registry)


def test_the_index_is_read_once_under_the_lock(
    registry: Path, make_dcz: MakeDcz, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(make_dcz(), "m:1", registry=registry)
    read: list[str] = []

    def decode(data: bytes, *, what: str) -> Index:
        read.append(what)
        return decode_index(data, what=what)

    monkeypatch.setattr("dcz.registry.stores.local.decode_index", decode)
    push(make_dcz("model.dcz", 1), "m:2", aliases=["champion"], registry=registry)
    assert len(read) == 2, "one look before the files are copied, one with the lock"
    read.clear()
    tag("m:1", "champion", registry=registry)
    assert len(read) == 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_any_file_is_our_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp() / "mutated"
    if not base.exists():
        push(write_dcz(base / "s" / "model.dcz", 7), "m:1", registry=base / "good", aliases=["a"])
    good = base / "good"
    expected = write_dcz(base / "s" / "model.dcz", 7).read_bytes()
    bad, out = base / "bad", base / "out"
    for folder in (bad, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, bad)
    files = sorted(path for path in bad.rglob("*") if path.is_file() and path.stat().st_size)
    victim = data.draw(st.sampled_from(files))
    content = victim.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                content[:at],
                content[:at] + b"\0" * (len(content) - at),
                content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :],
                content + b"\n",
                b"",
                files[at % len(files)].read_bytes(),
            ]
        )
    )
    victim.chmod(0o644)
    victim.write_bytes(changed)
    try:
        pulled = pull("m:a", out, registry=bad)
    except DczError:
        assert not out.exists() or os.listdir(out) == []
    else:
        assert [path.read_bytes() for path in pulled.files] == [expected]
    try:
        verify("m:1", registry=bad)
        history(registry=bad)
        list_artifacts(registry=bad)
        collect_garbage(registry=bad, grace=0)
    except DczError:
        pass


# -- the history


def test_what_the_index_does_not_vouch_for_is_no_history(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry)
    log = registry / ".dcz" / "history.jsonl"
    lines = log.read_bytes()
    for tail in (b'{"time": "half a li', lines, b"\0" * 5000):
        log.write_bytes(lines + tail)
        assert len(history(registry=registry)) == 2
    push(make_dcz("model.dcz", 1), "m:2", registry=registry)
    assert log.read_bytes().startswith(lines)
    assert [change.tag for change in history(registry=registry)] == ["1", "latest", "2", "latest"]
    assert [json.loads(line)["tag"] for line in log.read_text().splitlines()] == [
        "1",
        "latest",
        "2",
        "latest",
    ]


@pytest.mark.parametrize("left", [None, 0, 10, "a line", "all but a byte"])
def test_a_lost_history_is_said_and_does_not_stop_a_push(
    registry: Path, make_dcz: MakeDcz, left: int | str | None
) -> None:
    push(make_dcz(), "m:1", registry=registry)
    log = registry / ".dcz" / "history.jsonl"
    lines = log.read_bytes()
    if left is None:
        shutil.rmtree(registry / ".dcz")
    else:
        sizes = {"a line": lines.index(b"\n") + 1, "all but a byte": len(lines) - 1}
        log.write_bytes(lines[: left if isinstance(left, int) else sizes[left]])
    with pytest.raises(RegistryCorrupt, match="lost changes") as caught:
        history(registry=registry)
    assert caught.value.hint is not None
    push(make_dcz(), "m:1", registry=registry)
    with pytest.raises(RegistryCorrupt, match="lost changes"):
        history(registry=registry)
    push(make_dcz("model.dcz", 1), "m:2", registry=registry)
    changes = history("m", registry=registry)
    kept = ["1"] if isinstance(left, str) else []
    assert [change.tag for change in changes] == [*kept, "", "2", "latest"]
    assert [change.kind for change in changes][-3:] == ["gap", "version", "alias"]
    assert [change.kind for change in history("another", registry=registry)] == ["gap"]


def test_the_history_outlives_the_index(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry)
    (registry / "index.json").unlink()
    with pytest.raises(RegistryCorrupt, match="backup"):
        push(make_dcz(), "m:1", registry=registry)
    (registry / "oci-layout").unlink()
    push(make_dcz("model.dcz", 1), "m:2", registry=registry)
    assert [change.tag for change in history(registry=registry)] == ["1", "latest", "2", "latest"]


def test_the_index_is_on_the_disk_before_the_folder_is_a_layout(
    registry: Path, make_dcz: MakeDcz, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_dcz()
    steps: list[str] = []

    def sync(folder: Path) -> None:
        steps.append(f"sync {folder.name}")

    def replace(source: Path, target: Path) -> None:
        steps.append(target.name)
        os.rename(source, target)

    monkeypatch.setattr("dcz.registry.stores.local.sync_folder", sync)
    monkeypatch.setattr("os.replace", replace)
    push(model, "m:1", registry=registry)
    assert steps[:3] == ["index.json", "sync registry", "oci-layout"]


# -- garbage


def test_cleaning_up_removes_what_nothing_refers_to(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry)
    orphan = registry / "blobs" / "sha256" / ("0" * 64)
    orphan.write_bytes(b"orphan")
    dead = registry / ".dcz" / "staging" / "dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "file-0").write_bytes(b"left behind")
    assert collect_garbage(registry=registry).blobs == 0, "a young blob may belong to another tool's push"
    removed = collect_garbage(registry=registry, grace=0)
    assert (removed.blobs, removed.size) == (1, 6)
    assert not orphan.exists()
    assert not dead.exists()
    verify("m:1", registry=registry)


def test_cleaning_up_follows_the_indexes_of_other_tools(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry)
    blobs = registry / "blobs" / "sha256"

    def blob(content: bytes) -> dict[str, object]:
        digest = digest_of(content)
        (blobs / digest.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": len(content)}

    manifest = blob(json.dumps({"config": blob(b"config"), "layers": [blob(b"layer")]}).encode())
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
    nested = blob(json.dumps({"manifests": [manifest]}).encode())
    nested["mediaType"] = "application/vnd.oci.image.index.v1+json"
    add_to_index(registry, nested)
    assert collect_garbage(registry=registry, grace=0).blobs == 0
    (blobs / str(manifest["digest"]).removeprefix("sha256:")).write_bytes(b"damaged")
    with pytest.raises(RegistryCorrupt, match="damaged; nothing is removed"):
        collect_garbage(registry=registry, grace=0)


def add_to_index(registry: Path, *entries: dict[str, object]) -> None:
    index = json.loads((registry / "index.json").read_bytes())
    index["manifests"] += entries
    (registry / "index.json").write_text(json.dumps(index))


def foreign_blob(
    registry: Path, media_type: str, content: bytes, algorithm: str = "sha256"
) -> dict[str, object]:
    encoded = hashlib.new(algorithm, content).hexdigest()
    path = registry / "blobs" / algorithm / encoded
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return {"mediaType": media_type, "digest": f"{algorithm}:{encoded}", "size": len(content)}


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.artifact.manifest.v1+json",
        "Application/vnd.OCI.image.index.v1+json",
    ],
)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_cleaning_up_keeps_what_other_tools_refer_to(
    registry: Path, make_dcz: MakeDcz, media_type: str, algorithm: str
) -> None:
    push(make_dcz(), "m:1", registry=registry)
    layer = foreign_blob(registry, "application/octet-stream", b"layer")
    content = json.dumps({"blobs": [layer]}).encode()
    manifest = foreign_blob(registry, media_type, content, algorithm)
    # The same blob also as something that refers to nothing: which of them is met first must not matter.
    also = {**manifest, "mediaType": "application/octet-stream"}
    for entries in ([manifest, also], [also, manifest]):
        add_to_index(registry, *entries)
        assert collect_garbage(registry=registry, grace=0).blobs == 0


def test_cleaning_up_removes_nothing_if_a_manifest_cannot_be_read(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry)
    layer = foreign_blob(registry, "application/octet-stream", b"layer")
    foreign_blob(registry, "application/octet-stream", b"orphan")
    twice = b'{"layers":[%s],"layers":[]}' % json.dumps(layer).encode()
    add_to_index(registry, foreign_blob(registry, "application/vnd.oci.image.manifest.v1+json", twice))
    before = sorted(os.listdir(registry / "blobs" / "sha256"))
    with pytest.raises(RegistryCorrupt, match="twice in one object; nothing is removed"):
        collect_garbage(registry=registry, grace=0)
    assert sorted(os.listdir(registry / "blobs" / "sha256")) == before


def test_cleaning_up_does_not_look_into_layers(registry: Path, make_dcz: MakeDcz) -> None:
    """A bill of materials is JSON, too, and may be long, or not even JSON."""
    push(make_dcz(), "m:1", registry=registry)
    layers = [
        foreign_blob(registry, "application/spdx+json", b'{"x":"' + b"x" * (5 << 20) + b'"}'),
        foreign_blob(registry, "application/vnd.example+json", b"not JSON"),
    ]
    manifest = json.dumps({"layers": layers}).encode()
    add_to_index(registry, foreign_blob(registry, "application/vnd.oci.image.manifest.v1+json", manifest))
    foreign_blob(registry, "application/octet-stream", b"orphan")
    assert collect_garbage(registry=registry, grace=0).blobs == 1


# -- locks


def test_the_lock_keeps_others_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        exclusive_lock(path),
        pytest.raises(RegistryError, match="locked"),
        exclusive_lock(path, timeout=0.05),
    ):
        pytest.fail("two owners")
    with exclusive_lock(path, timeout=0):
        pass


def duplicates_of(path: Path) -> list[int]:
    """New descriptors of an open file, which share its locks as those of a forked child do."""
    links = list(Path("/proc/self/fd").iterdir())
    return [os.dup(int(link.name)) for link in [link for link in links if link.resolve() == path.resolve()]]


def test_a_lock_does_not_live_on_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with exclusive_lock(tmp_path / "lock"):
        children = duplicates_of(tmp_path / "lock")
    with exclusive_lock(tmp_path / "lock", timeout=0):
        pass
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with Staging(tmp_path, "x-") as staging:
        children += duplicates_of(staging.path / "lock")
    monkeypatch.undo()
    Staging.remove_dead(tmp_path, "x-")
    assert not staging.path.exists()
    assert len(children) == 2
    for child in children:
        os.close(child)


def test_the_lock_of_a_staging_folder_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Staging(tmp_path, "x-") as staging:
        for name in ("a", "z"):
            (staging.path / name).touch()
            (staging.path / f"folder-{name}").mkdir()
        # It dies when its files are removed and the folder is not.
        monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    monkeypatch.undo()
    assert "lock" in os.listdir(staging.path)
    assert not [path for path in staging.path.iterdir() if path.name in "az"]
    Staging.remove_dead(tmp_path, "x-")
    assert os.listdir(tmp_path) == []


def test_living_staging_folders_are_left_alone(tmp_path: Path) -> None:
    with Staging(tmp_path, "x-") as first:
        (first.path / "file").touch()
        (tmp_path / "x-dead").mkdir()
        (tmp_path / "other").mkdir()
        with Staging(tmp_path, "x-") as second:
            assert first.path != second.path
            assert (first.path / "file").exists()
            assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
                ["other", first.path.name, second.path.name]
            )
    assert os.listdir(tmp_path) == ["other"]


def test_threads_push_side_by_side(registry: Path, tmp_path: Path) -> None:
    store = LocalStore(registry)

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        for count in range(3):
            put(store, folder, "m", None, f"{number}.{count}".encode(), "champion")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    versions = [tag.tag for tag in store.tags("m") if tag.kind == "version"]
    assert versions == [f"v{number}" for number in range(1, 19)]
    assert len(store.history()) == 3 * 18
    assert os.listdir(registry / ".dcz" / "staging") == []


def test_a_clone_is_hashed_as_a_copy_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few file systems share extents, so the kernel's part of it is played by a copy inside the kernel."""
    content = bytes(range(256)) * 9000
    (tmp_path / "source").write_bytes(content)

    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        assert os.sendfile(target, source, 0, len(content)) == len(content)
        os.lseek(target, 0, os.SEEK_SET)  # a real clone moves no position
        return 0

    with open_regular(tmp_path / "source") as source:
        copied = copy_hashed(source, tmp_path / "copy")
    monkeypatch.setattr("fcntl.ioctl", clone)
    with open_regular(tmp_path / "source") as source:
        cloned = copy_hashed(source, tmp_path / "clone")
    assert copied == cloned == (digest_of(content).removeprefix("sha256:"), len(content))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "clone").read_bytes() == content

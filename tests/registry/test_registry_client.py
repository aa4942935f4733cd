"""Push, pull and the rest as a user meets them."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from tests.registry.dcz_files import MakeDcz
from tests.registry.store_contract import digest_of

import dcz.registry
from dcz.errors import (
    DczError,
    FormatError,
    InvalidReference,
    NotInRegistry,
    RegistryCorrupt,
    RegistryError,
    UsageError,
    VersionExists,
)
from dcz.format import Reader
from dcz.registry import (
    LocalStore,
    Pulled,
    Reference,
    RegistryReference,
    default_registry,
    history,
    list_artifacts,
    locate,
    locate_file,
    open_registry,
    pull,
    push,
    resolve,
    tag,
    verify,
)
from dcz.registry.artifact import DCZ_DIGEST, TITLE


def blob_of(registry: Path, content: bytes) -> Path:
    return registry / "blobs" / "sha256" / digest_of(content).removeprefix("sha256:")


def test_the_public_names_are_those_of_all() -> None:
    assert dcz.registry.__all__ == sorted(dcz.registry.__all__)
    assert all(hasattr(dcz.registry, name) for name in dcz.registry.__all__)
    assert set(dcz.registry.__all__) <= set(dir(dcz.registry))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        dcz.registry.nothing_of_the_kind  # noqa: B018


def test_to_parse_a_reference_imports_next_to_nothing() -> None:
    program = """
import sys
from dcz.registry import PathReference, parse_reference
assert isinstance(parse_reference("./m.dcz"), PathReference)
print([name for name in ("numpy", "pydantic", "dcz.format", "dcz.registry.stores") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


# -- where the default registry is


def test_the_default_registry_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DCZ_REGISTRY", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_registry() == tmp_path / ".local" / "share" / "dcz" / "registry"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_registry() == tmp_path / ".local" / "share" / "dcz" / "registry"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_registry() == Path("/data/dcz/registry")
    monkeypatch.setenv("DCZ_REGISTRY", "")
    assert default_registry() == Path("/data/dcz/registry")
    monkeypatch.setenv("DCZ_REGISTRY", "~/mine")
    assert default_registry() == tmp_path / "mine"
    assert open_registry().location == str(tmp_path / "mine")
    store = LocalStore(tmp_path)
    assert open_registry(store) is store
    assert LocalStore("~/other").location == str(tmp_path / "other")
    assert LocalStore("./~/other").location == str(Path.cwd() / "~" / "other")
    monkeypatch.setenv("DCZ_REGISTRY", "~no-such-user-at-all/x")
    with pytest.raises(RegistryError, match="no place"):
        default_registry()
    with pytest.raises(RegistryError, match="no place"):
        LocalStore("~no-such-user-at-all/x")


def test_the_default_registry_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_dcz: MakeDcz
) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "mine"))
    push(make_dcz(), "m:1")
    assert [str(item.reference.tag) for item in list_artifacts()] == ["1"]
    assert locate("m").is_relative_to(tmp_path / "mine")


# -- the round trip


def test_push_and_pull_give_the_same_files(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    first, second = make_dcz("model-1.dcz", 1, 300_000), make_dcz("model-2.dcz", 2)
    config, empty = tmp_path / "config.json", tmp_path / "empty"
    config.write_text("{}")
    empty.touch()
    pushed = push([second, config, first, empty], "org/m:1.0", registry=registry)
    assert pushed.created
    pulled = pull("org/m:1.0", tmp_path / "new" / "out", registry=registry)
    assert pulled.reference == pushed.reference
    assert sorted(path.name for path in pulled.files) == [
        "config.json",
        "empty",
        "model-1.dcz",
        "model-2.dcz",
    ]
    for source in (first, second, config, empty):
        assert (tmp_path / "new" / "out" / source.name).read_bytes() == source.read_bytes()
    assert sorted(os.listdir(tmp_path / "new" / "out")) == sorted(path.name for path in pulled.files)
    assert all(path.stat().st_mode & 0o200 for path in pulled.files)


def test_the_digest_depends_on_names_and_contents_only(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    one, two = make_dcz("model.dcz", 1), make_dcz("other.dcz", 2)
    digest = push([one, two], "m:1", registry=registry).reference.digest
    os.utime(one, (1, 1))
    one.chmod(0o600)
    assert push([two, one], "another/name:7", registry=tmp_path / "elsewhere").reference.digest == digest
    two.rename(two.with_name("second.dcz"))
    assert push([one, two.with_name("second.dcz")], "m:2", registry=registry).reference.digest != digest


def test_progress_counts_up_to_the_total(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    model = make_dcz("model.dcz", 0, 1_200_000)
    size = model.stat().st_size
    assert size > 2 << 20
    calls: list[tuple[str, int, int]] = []
    push(model, "m:1", registry=registry, progress=lambda *call: calls.append(call))
    pull("m:1", tmp_path / "out", registry=registry, progress=lambda *call: calls.append(call))
    verify("m:1", registry=registry, deep=True, progress=lambda *call: calls.append(call))
    for what in ("copy model.dcz", "verify model.dcz", "check model.dcz"):
        done = [call[1] for call in calls if call[0] == what]
        assert len(done) > 2
        assert done[-1] == size
        assert all(call[2] == size for call in calls)


# -- push


def test_without_a_version_numbers_are_given(registry: Path, make_dcz: MakeDcz) -> None:
    assert str(push(make_dcz("model.dcz", 1), "m", registry=registry).reference).startswith("m:v1@sha256:")
    assert push(make_dcz("model.dcz", 2), "m:latest", registry=registry).reference.tag == "v2"
    again = push(make_dcz("model.dcz", 1), "m", registry=registry)
    assert (again.reference.tag, again.created, len(again.changes)) == ("v1", False, 1)
    assert resolve("m", registry=registry).reference.tag == "v1"


def test_a_version_is_immutable(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    model = make_dcz()
    digest = push(model, "m:1.0", registry=registry).reference.digest
    same_size = make_dcz("model.dcz", 1)
    with pytest.raises(VersionExists, match=r"m:1\.0"):
        push(same_size, "m:1.0", registry=registry)
    with pytest.raises(VersionExists, match=r"m:1\.0"):
        push(make_dcz("model.dcz", 1, 5000), "m:1.0", registry=registry)
    again = push(make_dcz(), "m:1.0", registry=registry)
    assert (again.created, again.changes, again.reference.digest) == (False, (), digest)
    assert len(history(registry=registry)) == 2
    assert os.listdir(registry / ".dcz" / "staging") == []


def test_a_broken_file_is_refused_by_its_own_name(registry: Path, make_dcz: MakeDcz) -> None:
    model = make_dcz("model.dcz", 0, 300_000)
    content = bytearray(model.read_bytes())
    for at in (0, 64, len(content) // 2, len(content) - 1):
        broken = content.copy()
        broken[at] ^= 1
        model.write_bytes(broken)
        with pytest.raises(FormatError, match=re.escape(str(model))):
            push(model, "m:1", registry=registry)
    model.write_bytes(content[:-100])
    with pytest.raises(FormatError):
        push(model, "m:1", registry=registry)
    assert list_artifacts(registry=registry) == []
    assert list((registry / "blobs" / "sha256").iterdir()) == []


def test_what_is_no_file_is_refused(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    (tmp_path / "loose.txt").touch()
    os.mkfifo(tmp_path / "pipe.dcz")
    (tmp_path / "link.dcz").symlink_to(tmp_path / "nothing.dcz")
    (tmp_path / "folder.dcz").mkdir()
    (tmp_path / "nul").touch()
    model = make_dcz()
    (tmp_path / "MODEL.dcz").write_bytes(model.read_bytes())
    for paths in (
        [],
        tmp_path / "missing.dcz",
        tmp_path / "a\0b.dcz",
        tmp_path / "pipe.dcz",
        tmp_path / "link.dcz",
        tmp_path / "folder.dcz",
        tmp_path / "loose.txt",
        [model, tmp_path / "MODEL.dcz"],
        [model, tmp_path / "nul"],
    ):
        with pytest.raises(UsageError):
            push(paths, "m:1", registry=registry)
    assert not registry.exists()


def test_references_that_cannot_be_pushed_to(registry: Path, make_dcz: MakeDcz) -> None:
    model = make_dcz()
    for ref in (f"m:1@sha256:{'0' * 64}", "./m", "model.dcz", "M", ""):
        with pytest.raises(InvalidReference):
            push(model, ref, registry=registry)
    with pytest.raises(RegistryError, match="elsewhere"):
        push(model, "oci://host/name:1", registry=registry)
    for alias in ("v1", "a b", "", "../x"):
        with pytest.raises(InvalidReference):
            push(model, "m:1", registry=registry, aliases=[alias])
    assert not registry.exists()


def test_clashes_are_seen_before_anything_is_copied(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "m:1", registry=registry, aliases=["champion"])
    calls: list[object] = []
    for ref, aliases in [("m:champion", []), ("m:2", ["1"]), ("m", ["1"]), ("m:1", [])]:
        with pytest.raises(RegistryError, match=r"is an alias|cannot move|other content"):
            push(
                make_dcz("model.dcz", 1, 5000),
                ref,
                aliases=aliases,
                registry=registry,
                progress=lambda *call: calls.append(call),
            )
    assert calls == []


def test_a_symbolic_link_to_a_file_is_its_content(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    model = make_dcz()
    (tmp_path / "link.dcz").symlink_to(model)
    push(tmp_path / "link.dcz", "m:1", registry=registry)
    path = pull("m:1", tmp_path / "out", registry=registry).files[0]
    assert path.name == "link.dcz"
    assert not path.is_symlink()
    assert path.read_bytes() == model.read_bytes()


# -- resolve, tag, list


def test_references_are_resolved(registry: Path, make_dcz: MakeDcz) -> None:
    one = push(make_dcz("model.dcz", 1), "m:1.0", registry=registry, aliases=["champion"]).reference
    two = push(make_dcz("model.dcz", 2), "m:2.0", registry=registry).reference
    cases: list[tuple[str | Reference, Reference]] = [
        ("m", two),
        ("m:latest", two),
        ("m:1.0", one),
        ("m:champion", one),
        (f"m@{one.digest}", one),
        (str(one), one),
        (f"m:latest@{one.digest}", one),
        (RegistryReference("m", "2.0"), two),
    ]
    for ref, expected in cases:
        resolved = resolve(ref, registry=registry)
        assert resolved.reference == expected
        assert digest_of(resolved.manifest.to_bytes()) == resolved.digest == expected.digest
        assert resolved.created is not None
    for unknown in ("m:3.0", "n", f"m@sha256:{'0' * 64}", f"m:1.0@{two.digest}", f"n@{one.digest}"):
        with pytest.raises(NotInRegistry):
            resolve(unknown, registry=registry)
    with pytest.raises(NotInRegistry, match=r"it has 1\.0, latest, champion|1\.0, champion, 2\.0, latest"):
        resolve("m:3.0", registry=registry)
    with pytest.raises(InvalidReference, match="path"):
        resolve("./model.dcz", registry=registry)


def test_a_name_that_is_nearly_right_is_suggested(registry: Path, make_dcz: MakeDcz) -> None:
    push(make_dcz(), "org/minilm:1", registry=registry)
    with pytest.raises(NotInRegistry, match="did you mean org/minilm"):
        resolve("org/minilmm:1", registry=registry)


def test_aliases_move_and_every_move_is_recorded(registry: Path, make_dcz: MakeDcz) -> None:
    one = push(make_dcz("model.dcz", 1), "m:1", registry=registry).reference
    two = push(make_dcz("model.dcz", 2), "m:2", registry=registry).reference
    first = tag("m:1", "champion", registry=registry)
    assert (str(first.reference), first.previous, first.moved) == (f"m:champion@{one.digest}", None, True)
    second = tag("m:2", "champion", registry=registry)
    assert (second.reference.digest, second.previous, second.moved) == (two.digest, one.digest, True)
    assert not tag("m:2", "champion", registry=registry).moved
    tag(f"m@{one.digest}", "latest", registry=registry)
    moves = [(c.tag, c.previous, c.digest) for c in history("m", registry=registry) if c.kind == "alias"]
    assert moves == [
        ("latest", None, one.digest),
        ("latest", one.digest, two.digest),
        ("champion", None, one.digest),
        ("champion", one.digest, two.digest),
        ("latest", two.digest, one.digest),
    ]
    with pytest.raises(VersionExists):
        tag("m:1", "2", registry=registry)
    with pytest.raises(InvalidReference):
        tag("m:1", "v7", registry=registry)
    with pytest.raises(NotInRegistry):
        tag("m:3", "champion", registry=registry)


def test_the_list_says_what_there_is_and_what_is_broken(registry: Path, make_dcz: MakeDcz) -> None:
    model = make_dcz("model.dcz", 1)
    push(model, "b/m:1", registry=registry)
    push(make_dcz("model.dcz", 2), "b/m:2", registry=registry, aliases=["champion"])
    push(model, "a:1", registry=registry)
    listed = list_artifacts(registry=registry)
    assert [(str(item.reference).partition("@")[0], item.aliases) for item in listed] == [
        ("a:1", ("latest",)),
        ("b/m:1", ()),
        ("b/m:2", ("champion", "latest")),
    ]
    assert listed[0].files == ("model.dcz",)
    assert listed[0].size == model.stat().st_size
    assert [item.reference.name for item in list_artifacts("a", registry=registry)] == ["a"]
    manifest = registry / "blobs" / "sha256" / str(listed[2].reference.digest).removeprefix("sha256:")
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"sha256", b"sha257"))
    broken = list_artifacts(registry=registry)[2]
    assert (broken.files, broken.size) == ((), None)
    assert broken.problem is not None
    assert "damaged" in broken.problem
    push(make_dcz("model.dcz", 2), "b/m:2", registry=registry)
    assert list_artifacts(registry=registry) == listed, "a push of the same files heals the manifest, too"


# -- locate


def test_a_model_is_read_where_it_lies(registry: Path, make_dcz: MakeDcz) -> None:
    model = make_dcz()
    push(model, "m:1", registry=registry)
    path = locate("m:1", registry=registry)
    with Reader(path) as located, Reader(model) as original:
        np.testing.assert_array_equal(located.read("weight"), original.read("weight"))
        assert located.digest == original.digest
    found = locate_file("m:1", registry=registry)
    assert (found.path, found.digest) == (path, original.digest)
    assert found.reference == resolve("m:1", registry=registry).reference
    with found.open(threads=1) as reader:
        assert reader.digest == found.digest


def test_one_of_several_files_is_named(registry: Path, make_dcz: MakeDcz) -> None:
    one, two = make_dcz("one.dcz", 1), make_dcz("two.dcz", 2)
    push([one, two], "m:1", registry=registry)
    with pytest.raises(UsageError, match=r"one\.dcz, two\.dcz"):
        locate("m:1", registry=registry)
    with pytest.raises(UsageError, match=r"three\.dcz"):
        locate("m:1", file="three.dcz", registry=registry)
    assert locate("m:1", file="two.dcz", registry=registry).read_bytes() == two.read_bytes()


def test_locate_sees_a_file_that_is_not_the_one_that_was_pushed(registry: Path, make_dcz: MakeDcz) -> None:
    model, other = make_dcz("model.dcz", 1), make_dcz("other.dcz", 2)
    push(model, "m:1", registry=registry)
    blob = blob_of(registry, model.read_bytes())
    blob.chmod(0o644)
    content = other.read_bytes()
    assert len(content) != len(model.read_bytes()) or content != model.read_bytes()
    for changed in (content, model.read_bytes()[:-1] + b"x", b"", model.read_bytes()[:-1]):
        blob.write_bytes(changed)
        with pytest.raises(RegistryCorrupt, match=r"m:1@sha256:"):
            locate("m:1", registry=registry)
    blob.unlink()
    with pytest.raises(RegistryCorrupt, match="missing"):
        locate("m:1", registry=registry)


def test_a_located_file_says_which_one_it_has_to_be(registry: Path, make_dcz: MakeDcz) -> None:
    model, other = make_dcz("model.dcz", 1, 1), make_dcz("other.dcz", 2, 1)
    assert model.stat().st_size == other.stat().st_size
    push(model, "m:1", registry=registry)
    blob = blob_of(registry, model.read_bytes())
    blob.chmod(0o644)
    blob.write_bytes(other.read_bytes())
    found = locate_file("m:1", registry=registry)
    with Reader(found.path) as reader:
        assert reader.digest != found.digest
    with pytest.raises(RegistryCorrupt, match=rf"m:1@sha256:.*is {reader.digest}, not {found.digest}"):
        found.open()
    with pytest.raises(RegistryCorrupt, match=rf"m:1@sha256:.*is {reader.digest}, not {found.digest}"):
        locate("m:1", registry=registry)


# -- pull


def test_a_second_pull_reuses_what_is_right_and_completes_what_is_missing(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    push([make_dcz("one.dcz", 1), make_dcz("two.dcz", 2)], "m:1", registry=registry)
    out = tmp_path / "out"
    pull("m:1", out, registry=registry)
    inode = (out / "one.dcz").stat().st_ino
    (out / "two.dcz").unlink()
    (out / ".dcz-pull-dead").mkdir()
    (out / ".dcz-pull-dead" / "lock").touch()
    (out / ".dcz-pull-dead" / "0").write_bytes(b"half a file")
    again = pull("m:1", out, registry=registry)
    assert [path.name for path in again.reused] == ["one.dcz"]
    assert (out / "one.dcz").stat().st_ino == inode
    assert sorted(os.listdir(out)) == ["one.dcz", "two.dcz"]


def leave_dead(out: Path, name: str, content: bytes) -> Path:
    """What a pull that was killed leaves in its destination; the file."""
    folder = out / ".dcz-pull-dead"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "unwanted").write_bytes(b"of another version")
    (folder / "unwanted-folder").mkdir()
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content,
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"more",
        lambda content: b"\0" * (len(content) // 2),
        lambda content: b"\0" * len(content),
        lambda content: b"",
    ],
    ids=["whole", "half", "all but a byte", "too long", "half wrong", "all wrong", "empty"],
)
def test_a_pull_goes_on_with_what_a_killed_one_left(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    model = make_dcz("model.dcz", 0, 400_000)
    content = model.read_bytes()
    push([model, make_dcz("small.dcz", 1)], "m:1", registry=registry)
    out = tmp_path / "out"
    left = leave_dead(out, digest_of(content).removeprefix("sha256:") + ".0", change(content))
    inode = left.stat().st_ino
    pulled = pull("m:1", out, registry=registry)
    assert pulled.reused == ()
    assert (out / "model.dcz").read_bytes() == content
    assert (out / "model.dcz").stat().st_ino == inode
    assert (out / "model.dcz").stat().st_nlink == 1
    assert sorted(os.listdir(out)) == ["model.dcz", "small.dcz"]


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_pull_writes_to_nobody_elses_file(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    content = make_dcz().read_bytes()
    push(make_dcz(), "m:1", registry=registry)
    (tmp_path / "precious").write_bytes(content[:100])
    left = leave_dead(tmp_path / "out", digest_of(content).removeprefix("sha256:") + ".0", b"")
    left.unlink()
    plant(tmp_path / "precious", left)
    pull("m:1", tmp_path / "out", registry=registry)
    assert (tmp_path / "precious").read_bytes() == content[:100]
    assert (tmp_path / "out" / "model.dcz").read_bytes() == content
    assert os.listdir(tmp_path / "out") == ["model.dcz"]


def test_equal_files_are_two_files(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push([make_dcz("one.dcz", 1), make_dcz("two.dcz", 1)], "m:1", registry=registry)
    one, two = pull("m:1", tmp_path / "out", registry=registry).files
    assert one.read_bytes() == two.read_bytes() == make_dcz("one.dcz", 1).read_bytes()
    assert not one.samefile(two)


def test_pulls_side_by_side_all_succeed(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push([make_dcz("a.dcz", 1), make_dcz("b.dcz", 2)], "m:1", registry=registry)
    out = tmp_path / "out"
    out.mkdir()
    all_have_looked = Barrier(3)

    def work(_: int) -> Pulled:
        waited = False

        def progress(what: str, done: int, total: int) -> None:
            nonlocal waited
            if what == "verify b.dcz" and not waited:
                waited = True
                all_have_looked.wait(60)

        return pull("m:1", out, registry=registry, progress=progress)

    with ThreadPoolExecutor(3) as pool:
        pulls = list(pool.map(work, range(3)))
    assert len({pulled.files for pulled in pulls}) == 1
    for name in ("a.dcz", "b.dcz"):
        assert sum(out / name not in pulled.reused for pulled in pulls) == 1
        assert (out / name).read_bytes() == make_dcz(name, "ab".index(name[0]) + 1).read_bytes()
    assert sorted(os.listdir(out)) == ["a.dcz", "b.dcz"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_at_the_last_moment_stays(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    content = make_dcz().read_bytes()
    push(make_dcz(), "m:1", registry=registry)
    final = tmp_path / "out" / "model.dcz"
    link = os.link
    appears: list[bytes] = []

    def somebody_else(source: Path, target: Path) -> None:
        if appears:
            final.write_bytes(appears.pop())
        if not links:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        link(source, target)

    monkeypatch.setattr("os.link", somebody_else)
    appears.append(b"precious")
    with pytest.raises(UsageError, match="is different"):
        pull("m:1", tmp_path / "out", registry=registry)
    assert final.read_bytes() == b"precious"
    final.unlink()
    appears.append(content)
    assert pull("m:1", tmp_path / "out", registry=registry).reused == (final,)
    final.unlink()
    assert pull("m:1", tmp_path / "out", registry=registry).reused == ()
    assert final.read_bytes() == content
    assert os.listdir(tmp_path / "out") == ["model.dcz"]


def test_different_files_stay_unless_forced(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push([make_dcz("a.dcz", 1), make_dcz("b.dcz", 2)], "m:1", registry=registry)
    out = tmp_path / "out"
    out.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("precious")
    (out / "b.dcz").symlink_to(secret)
    with pytest.raises(UsageError, match=r"b\.dcz"):
        pull("m:1", out, registry=registry)
    assert os.listdir(out) == ["b.dcz"]
    (out / "b.dcz").unlink()
    (out / "b.dcz").write_bytes(b"x" * (make_dcz("b.dcz", 2).stat().st_size))
    with pytest.raises(UsageError, match=r"b\.dcz' exists and is different .*--force") as caught:
        pull("m:1", out, registry=registry)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.filename == str(out / "b.dcz")
    (out / "b.dcz").unlink()
    (out / "b.dcz").symlink_to(secret)
    pull("m:1", out, registry=registry, force=True)
    assert secret.read_text() == "precious"
    assert not (out / "b.dcz").is_symlink()
    (out / "b.dcz").unlink()
    (out / "b.dcz").mkdir()
    with pytest.raises(UsageError, match="folder"):
        pull("m:1", out, registry=registry, force=True)


def test_a_file_that_appears_during_a_pull_stays(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push(make_dcz(), "m:1", registry=registry)
    out = tmp_path / "out"

    def somebody_else(*_: object) -> None:
        (out / "model.dcz").write_text("precious")

    with pytest.raises(UsageError, match=r"model\.dcz"):
        pull("m:1", out, registry=registry, progress=somebody_else)
    assert (out / "model.dcz").read_text() == "precious"
    assert os.listdir(out) == ["model.dcz"]
    pull("m:1", out, registry=registry, progress=somebody_else, force=True)
    assert (out / "model.dcz").read_bytes() == make_dcz().read_bytes()


def test_damage_in_the_store_is_named_and_nothing_appears(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    one, two = make_dcz("one.dcz", 1), make_dcz("two.dcz", 2)
    loose = tmp_path / "loose.bin"
    loose.write_bytes(b"loose")
    pushed = push([one, two, loose], "m:1", registry=registry)
    out = tmp_path / "out"
    for content in (two.read_bytes(), loose.read_bytes()):
        blob = blob_of(registry, content)
        blob.chmod(0o644)
        for at in (0, len(content) // 2, len(content) - 1):
            blob.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
            with pytest.raises(RegistryCorrupt) as caught:
                pull("m:1", out, registry=registry)
            assert digest_of(content) in str(caught.value)
            assert str(pushed.reference) in str(caught.value)
            assert not out.exists()
            with pytest.raises(RegistryCorrupt, match=re.escape(digest_of(content))):
                verify("m:1", registry=registry)
        for changed in (content[:-1], content + b"x", b""):
            blob.write_bytes(changed)
            with pytest.raises(RegistryCorrupt, match=re.escape(digest_of(content))):
                pull("m:1", out, registry=registry)
        blob.unlink()
        with pytest.raises(RegistryCorrupt, match="missing"):
            pull("m:1", out, registry=registry)
        push([one, two, loose], "m:1", registry=registry)
        assert len(verify("m:1", registry=registry, deep=True).reports) == 2
    assert not out.exists()
    pull("m:1", out, registry=registry)


def publish_raw(registry: Path, tmp_path: Path, files: list[tuple[str, bytes, str]]) -> None:
    """Publish what no push of ours would: (title, content, media type)."""
    layers = []
    with LocalStore(registry).upload() as upload:
        for number, (title, content, media_type) in enumerate(files):
            source = tmp_path / f"raw-{number}"
            source.write_bytes(content)
            staged = upload.add(source)
            annotations = {TITLE: title, DCZ_DIGEST: "blake3:" + "0" * 64}
            layers.append(
                {
                    "mediaType": media_type,
                    "digest": staged.digest,
                    "size": staged.size,
                    "annotations": annotations,
                }
            )
        empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.dcz.model.v1",
            "config": empty,
            "layers": layers,
        }
        upload.publish("m", "1", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "title",
    [
        "../evil",
        "../../evil",
        "/tmp/evil",
        "",
        ".",
        "..",
        "a/../../evil",
        "a\\..\\evil",
        "x\0y",
        "model.dcz",
        "MODEL.dcz",
    ],
    ids=ascii,
)
def test_file_names_do_not_escape_the_destination(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path, title: str
) -> None:
    model = make_dcz().read_bytes()
    publish_raw(
        registry,
        tmp_path,
        [("model.dcz", model, "application/vnd.dcz.file.v1"), (title, b"evil", "application/octet-stream")],
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RegistryCorrupt, match="m:1"):
        pull("m:1", tmp_path / "a" / "b", registry=registry, force=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content", [b"", b"not a dcz file at all", None], ids=["empty", "text", "another dcz"]
)
def test_a_file_that_only_claims_to_be_a_dcz_is_refused(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path, content: bytes | None
) -> None:
    content = make_dcz().read_bytes() if content is None else content
    publish_raw(registry, tmp_path, [("model.dcz", content, "application/vnd.dcz.file.v1")])
    with pytest.raises(RegistryCorrupt, match=r"model\.dcz"):
        pull("m:1", tmp_path / "out", registry=registry)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RegistryCorrupt, match=r"model\.dcz"):
        locate("m:1", registry=registry)


# -- what the operating system refuses


def test_the_cause_says_what_the_system_refused_and_where(
    registry: Path, make_dcz: MakeDcz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = make_dcz(), tmp_path / "out"

    def refused(action: Callable[[], object], kind: type[DczError], number: int, file: Path) -> None:
        with pytest.raises(kind) as caught:
            action()
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        assert (cause.errno, cause.filename, cause.filename2) == (number, str(file), None)
        assert os.strerror(number) in caught.value.message
        assert str(file) in caught.value.message
        assert (number == errno.ENOSPC) == ("free some space" in str(caught.value))

    missing = tmp_path / "missing.dcz"
    refused(lambda: push(missing, "m:1", registry=registry), UsageError, errno.ENOENT, missing)
    push(model, "m:1", registry=registry)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        refused(lambda: push(model, "m:2", registry=registry), RegistryError, errno.ENOSPC, registry)
        refused(lambda: tag("m:1", "a", registry=registry), RegistryError, errno.ENOSPC, registry)
        refused(lambda: pull("m:1", out, registry=registry), RegistryError, errno.ENOSPC, out)
    (tmp_path / "file").touch()
    there = tmp_path / "file"
    refused(lambda: pull("m:1", there, registry=registry), RegistryError, errno.ENOTDIR, there / "model.dcz")
    blob = blob_of(registry, model.read_bytes())
    blob.unlink()
    blob.mkdir()
    refused(lambda: verify("m:1", registry=registry), RegistryError, errno.EISDIR, blob)
    blob.rmdir()
    with pytest.raises(RegistryCorrupt, match=r"m:1@.*missing") as caught:
        locate("m:1", registry=registry)
    assert caught.value.__cause__ is None, "what is missing is damage, not a refusal"


def test_a_destination_that_is_a_file_is_our_error(registry: Path, make_dcz: MakeDcz, tmp_path: Path) -> None:
    push(make_dcz(), "m:1", registry=registry)
    (tmp_path / "file").touch()
    for destination in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(RegistryError):
            pull("m:1", destination, registry=registry)

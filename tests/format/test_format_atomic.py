"""Files that appear whole or not at all: with a file that has no name, and with one that has a name of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dcz.format import atomic, atomic_file, sync_folder


@pytest.fixture(params=["unnamed", "named"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Each test runs on both ways."""
    if request.param == "named":
        monkeypatch.setattr(atomic, "_open_unnamed", lambda folder: None)
    else:
        fd = atomic._open_unnamed(str(tmp_path))
        if fd is None:
            pytest.skip("this file system knows no files without a name")
        os.close(fd)
    return str(request.param)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_the_file_appears_at_the_end(path: Path, kind: str) -> None:
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        if kind == "unnamed":
            assert names(path.parent) == []
        else:
            (hidden,) = names(path.parent)
            assert hidden.startswith(".file.")
            assert hidden.endswith(".tmp")
    assert names(path.parent) == ["file"]
    assert path.read_bytes() == b"new"
    with atomic_file(str(path)) as file:
        assert path.read_bytes() == b"new"
        file.write(b"newer")
    assert names(path.parent) == ["file"]
    assert path.read_bytes() == b"newer"


@pytest.mark.parametrize("raised", [ValueError, OSError, KeyboardInterrupt, GeneratorExit])
def test_nothing_appears_if_the_block_raises(path: Path, raised: type[BaseException]) -> None:
    for before in ([], ["file"]):
        with pytest.raises(raised), atomic_file(path) as file:  # noqa: PT012
            file.write(b"new")
            raise raised
        assert names(path.parent) == before
        path.write_bytes(b"old")
    assert path.read_bytes() == b"old"


def test_nothing_appears_if_the_system_refuses(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(5, "refused")

    for call in ("fsync", "replace", *(["link"] if kind == "unnamed" else [])):
        with (  # noqa: PT012
            monkeypatch.context() as patched,
            pytest.raises(OSError, match="refused"),
            atomic_file(path) as file,
        ):
            patched.setattr(os, call, refuse)
            file.write(b"new")
        assert names(path.parent) == ["file"]
        assert path.read_bytes() == b"old"


def test_the_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}

    def spy(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            kind = ""
            if name == "fsync":
                info = os.fstat(arguments[0])
                kind = " folder" if stat.S_ISDIR(info.st_mode) else f" {info.st_size} bytes"
            done.append(name + kind)
            return real[name](*arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, spy(name))
    with atomic_file(path) as file:
        file.write(b"new")
    assert done == ["fsync 3 bytes", *(["link"] if kind == "unnamed" else []), "replace", "fsync folder"]


def test_the_mode_follows_the_umask(path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(path):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_folder_is_the_one_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with atomic_file("file"):
        monkeypatch.chdir(tmp_path / "b")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["file"], [])


@pytest.mark.parametrize("name", ["x" * 255, "模" * 85, "é" * 127, "a b\n", "\udcff"], ids=range(5))
def test_every_name_that_the_system_takes_is_taken(tmp_path: Path, name: str) -> None:
    with atomic_file(tmp_path / name) as file:
        file.write(b"new")
    assert names(tmp_path) == [name]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "nothing" / "file"):
        pass
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(NotADirectoryError), atomic_file(tmp_path / "file" / "file"):
        pass
    assert names(tmp_path) == ["file"]


def test_what_cannot_have_no_name_gets_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On systems without /proc, and on file systems without O_TMPFILE."""
    exists = os.path.exists
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "exists", lambda name: name != "/proc/self/fd" and exists(name))
        assert atomic._open_unnamed(str(tmp_path)) is None
    with monkeypatch.context() as patched:
        patched.delattr(os, "O_TMPFILE")
        assert atomic._open_unnamed(str(tmp_path)) is None
        with atomic_file(path) as file:
            assert len(names(tmp_path)) == 1
            file.write(b"new")
    assert names(tmp_path) == ["file"]


def test_only_folders_are_synced(path: Path) -> None:
    sync_folder(path.parent)
    path.touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(path)


def test_links_are_followed_and_stay_links(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("link", "dangling"):
        with atomic_file(tmp_path / name) as file:
            file.write(name.encode())
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "old").read_bytes() == b"link"
    assert (tmp_path / "new").read_bytes() == b"dangling"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/full")
    before = sorted(tmp_path.iterdir())
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match="is not a regular file") as caught, atomic_file(tmp_path / name):
            pass
        assert caught.value.filename == str(tmp_path / name)
    for path in (f"{tmp_path}/folder", f"{tmp_path}/new/", ""):
        with pytest.raises(IsADirectoryError), atomic_file(path):
            pass
    assert sorted(tmp_path.iterdir()) == before
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)

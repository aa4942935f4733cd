"""kill -9 in the middle of convert, decode, push and pull: nothing half-written under a final name, and a second try
succeeds. A process is killed when what it has written so far reaches a random part of the whole."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from tests.cli.process import Home, write_model

from dcz.format import verify

ELEMENTS = 8_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 MB, and what becomes of it."""
    folder = tmp_path_factory.mktemp("large")
    write_model(folder / "model.safetensors", elements=ELEMENTS)
    Home(folder).run("convert", "model.safetensors", "-o", "model.dcz", "--quiet")
    return folder


@pytest.fixture(params=range(3))
def share(request: pytest.FixtureRequest) -> float:
    """A random part of the work, another one in each third, and the same ones in each run."""
    third: int = request.param
    return (third + random.Random(third).random()) / 3


def written(folder: Path) -> int:
    """Bytes on the disk in a folder, whatever comes and goes in it meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 512 * path.lstat().st_blocks
        except FileNotFoundError:
            continue
    return total


def kill_at(home: Home, size: int, *arguments: str | Path, folder: Path) -> bool:
    """Start dcz, and kill it when it has written ``size`` bytes in ``folder``. Whether it was still alive, be it only to
    say that it is done."""
    before = written(folder)
    process = home.start(*arguments)
    while process.poll() is None and written(folder) - before < size:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_convert(home: Home, large: Path, share: float) -> None:
    source, expected = large / "model.safetensors", (large / "model.dcz").read_bytes()
    out = home.path / "m.dcz"
    out.write_bytes(b"what was there before")
    killed = kill_at(home, int(share * len(expected)), "convert", source, "-o", out, folder=home.path)
    found = out.read_bytes()
    assert found == expected or (killed and found == b"what was there before")
    assert visible(home.path) == {"m.dcz"}
    home.run("convert", source, "-o", out)
    assert out.read_bytes() == expected


def test_decode(home: Home, large: Path, share: float) -> None:
    source, expected = large / "model.dcz", (large / "model.safetensors").read_bytes()
    out = home.path / "out"
    killed = kill_at(home, int(share * len(expected)), "decode", source, "-o", out, folder=home.path)
    if not killed or visible(home.path):
        assert (out / "model.safetensors").read_bytes() == expected
    else:
        home.run("decode", source, "-o", out)
        assert (out / "model.safetensors").read_bytes() == expected


def test_push(home: Home, large: Path, share: float) -> None:
    source = large / "model.dcz"
    home.registry.mkdir(parents=True)
    killed = kill_at(home, int(share * source.stat().st_size), "push", source, "m:1", folder=home.registry)
    listed = home.run("list", "--json").json["versions"]
    assert listed or killed
    if listed:
        home.run("verify", "m:1", "--deep")
    home.run("push", source, "m:1")
    home.run("verify", "m:1", "--deep")
    # What the dead one left is gone: one copy of the file, and small things.
    assert written(home.registry) < 1.1 * source.stat().st_size


def test_pull(home: Home, large: Path, share: float) -> None:
    source = large / "model.dcz"
    home.run("push", source, "m:1", "--registry", large / "registry")
    folder = home.path / "here"
    folder.mkdir()
    arguments = ("pull", "m:1", "-o", "here", "--registry", large / "registry")
    killed = kill_at(home, int(share * source.stat().st_size), *arguments, folder=folder)
    if not killed or visible(folder):
        verify(folder / "model.dcz", deep=True)
    home.run(*arguments)
    verify(folder / "model.dcz", deep=True)
    assert {path.name for path in folder.iterdir()} == {"model.dcz"}

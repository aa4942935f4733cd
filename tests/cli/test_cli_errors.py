"""What goes wrong: exit codes, one line that says what and where, the same as JSON, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.cli.process import COMMAND, Home, write_model
from tests.vectors.generate import FOLDER

from dcz.cli import main
from dcz.format import Writer

BAD = sorted((FOLDER / "bad").glob("*.dcz"))


def invoke(*arguments: str | Path, home: Home | None = None) -> Result:
    """dcz inside this process, which is quicker."""
    with contextlib.chdir(home.path if home else "."):
        environment = {
            "DCZ_REGISTRY": None,
            "XDG_DATA_HOME": None,
            **({"HOME": str(home.path)} if home else {}),
        }
        return CliRunner().invoke(main, [*map(str, arguments)], prog_name="dcz", env=environment)


# docs/guides/command-line.md
EXIT_CODES = {
    "invalid-reference": 2,
    "unreachable": 7,
    "not-in-registry": 3,
    "registry-corrupt": 5,
    "version-exists": 6,
}


def error_of(home: Home, *arguments: str | Path) -> dict[str, Any]:
    """The JSON error of a command that fails; the line on standard error says the same, with and without ``--json``."""
    done = invoke(*arguments, "--json", home=home)
    assert isinstance(done.exception, SystemExit)
    printed = json.loads(done.stdout)
    assert printed.keys() == {"error"}
    error: dict[str, Any] = printed["error"]
    assert error.keys() == {"code", "message", "file", "tensor", "offset", "hint"}
    assert done.exit_code == EXIT_CODES.get(error["code"], 1)
    assert done.stderr.startswith("dcz: error: ")
    assert error["message"].splitlines()[0] in done.stderr
    assert error["hint"] is None or error["hint"] in done.stderr
    text = invoke(*arguments, home=home)
    assert (text.exit_code, text.stdout, text.stderr) == (done.exit_code, "", done.stderr)
    return error


def test_a_missing_file(home: Home) -> None:
    for command in ("inspect", "verify"):
        error = error_of(home, command, "nothing.dcz")
        assert (error["code"], error["file"]) == ("file-not-found", "nothing.dcz")
        done = home.run(command, "nothing.dcz", "--json", code=1)
        assert done.err == "dcz: error: nothing.dcz: No such file or directory\n"
        assert done.json == {"error": error}
    assert error_of(home, "decode", "nothing.dcz", "-o", "x")["code"] == "file-not-found"
    assert "nothing" in error_of(home, "convert", "nothing", "-o", "m.dcz")["message"]
    assert "nothing.dcz" in error_of(home, "push", "nothing.dcz", "m:1")["message"]
    assert home.names() == set()


def test_not_a_dcz_file(model: Home) -> None:
    error = error_of(model, "inspect", "./model.safetensors")
    assert (error["code"], error["file"], error["offset"]) == ("not-a-dcz-file", "./model.safetensors", 0)
    (model.path / "empty.dcz").touch()
    assert error_of(model, "verify", "empty.dcz")["code"] == "truncated"
    (model.path / "text.bin").write_text("no model")
    assert error_of(model, "convert", "text.bin", "-o", "m.dcz")["code"] == "source"


def test_a_file_that_reads_as_a_name(model: Home) -> None:
    error = error_of(model, "inspect", "model.safetensors")
    assert error["code"] == "not-in-registry"
    assert error["hint"] == "for the file of that name write ./model.safetensors"
    (model.path / "Model").write_text("")
    error = error_of(model, "verify", "Model")
    assert error["code"] == "invalid-reference"
    assert "./Model" in error["hint"]


def test_damage_is_located(home: Home) -> None:
    rng = np.random.default_rng(0)
    with Writer(home.path / "m.dcz") as writer:
        for name in ("first", "second"):
            writer.add_tensor(name, rng.integers(0, 256, 200_000, dtype=np.uint8))
    data = bytearray((home.path / "m.dcz").read_bytes())
    data[250_000] ^= 1
    (home.path / "m.dcz").write_bytes(data)
    error = error_of(home, "verify", "m.dcz")
    assert (error["code"], error["file"]) == ("digest-mismatch", "m.dcz")
    assert 200_000 < error["offset"] <= 250_000
    assert home.run("verify", "m.dcz", code=1).err.count("\n") == 1
    error = error_of(home, "decode", "m.dcz", "-o", "out.safetensors")
    assert (error["code"], error["file"]) == ("digest-mismatch", "m.dcz")
    assert home.names() == {"m.dcz"}
    assert error_of(home, "push", "m.dcz", "m:1")["code"] == "digest-mismatch"
    assert home.run("list", "--json").json == {"versions": []}
    (home.path / "m.dcz").write_bytes(data[:-100])
    assert error_of(home, "inspect", "m.dcz")["code"] == "truncated"


def test_bad_streams_name_the_tensor() -> None:
    """Every bad vector, in this process: an error with a code and the file, and of a bad stream tensor and offset."""
    located = 0
    for path in BAD:
        done = invoke("verify", path, "--deep", "--json", "--base", FOLDER / "good" / "base-types.dcz")
        assert done.exit_code == 1, path.name
        error = json.loads(done.stdout)["error"]
        assert error["file"] == str(path)
        assert str(path) in done.stderr
        assert "\x1b" not in done.stderr
        if error["code"] == "corrupt-stream" and error["offset"] is not None:
            tensor = f"tensor {error['tensor']!r}, " if error["tensor"] is not None else ""
            assert f"{path}, {tensor}offset {error['offset']}: " in done.stderr
            assert tensor or "the asset" in done.stderr
            located += 1
        inspected = invoke("inspect", path, "--json")
        assert inspected.exit_code in (0, 1)
        assert isinstance(inspected.exception, SystemExit | None)
    assert located > 50


def test_recipes_and_references(model: Home) -> None:
    error = error_of(model, "convert", "model.safetensors", "-o", "m.dcz", "--recipe", "int7")
    assert error["code"] == "recipe"
    assert "int8" in error["hint"]
    (model.path / "bad.toml").write_text('[[rules]]\nvalues = { kind = "affine", bits = 99 }\nnmes = ["x"]\n')
    error = error_of(model, "convert", "model.safetensors", "-o", "m.dcz", "--recipe", "bad.toml")
    assert "bad.toml:2" in error["message"]
    assert "bad.toml:3" in error["message"]
    assert not (model.path / "m.dcz").exists()

    for arguments in (("pull", "nobody:1"), ("tag", "nobody", "x"), ("verify", "nobody@sha256:" + 64 * "0")):
        assert error_of(model, *arguments)["code"] == "not-in-registry"
    assert error_of(model, "pull", "No Name")["code"] == "invalid-reference"
    assert error_of(model, "inspect", "oci://host/name")["code"] == "registry"
    assert error_of(model, "pull", "m", "--digest", "blake3:1")["code"] == "invalid-reference"
    assert error_of(model, "inspect", "http://127.0.0.1:9/m.dcz")["code"] == "unreachable"
    error = error_of(model, "inspect", "model.dcz", "--file", "x.dcz")
    assert (error["code"], error["hint"]) == ("usage", "leave it out")
    model.run("push", "model.dcz", "m:1")
    assert error_of(model, "inspect", "m:2")["hint"] == "it has 1, latest"
    assert error_of(model, "tag", "m:1", "1")["code"] == "version-exists"
    model.run("convert", "model.safetensors", "-o", "model.dcz", "--recipe", "int8", "-q")
    assert error_of(model, "push", "model.dcz", "m:1")["code"] == "version-exists"
    assert error_of(model, "pull", "m:1")["code"] == "usage"
    model.run("pull", "m:1", "--force")


def test_a_pickle_with_code_is_refused(home: Home) -> None:
    pytest.importorskip("torch")
    (home.path / "evil.pt").write_bytes(
        b"\x80\x02cos\nsystem\nq\x00X\x0c\x00\x00\x00touch harmedq\x01\x85q\x02R."
    )
    error = error_of(home, "convert", "evil.pt", "-o", "m.dcz")
    assert error["code"] == "unsafe-pickle"
    assert home.names() == {"evil.pt"}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("inspct", "x"),
        ("convert", "x"),
        ("inspect",),
        ("push", "x"),
        ("verify", "x", "--deeper"),
        ("convert", "x", "-o", "y", "--threads", "0"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage: dcz" in done.stderr
    if arguments[:1] == ("inspct",):
        assert "Did you mean inspect" in done.stderr


def test_no_permission_and_no_folder(model: Home) -> None:
    error = error_of(model, "convert", "model.safetensors", "-o", "missing/m.dcz")
    assert error["file"] == "missing/m.dcz"
    assert error["message"] == "the folder for it does not exist"
    locked = Path("/proc/self")  # not even root may write here
    error = error_of(model, "convert", "model.safetensors", "-o", locked / "m.dcz")
    assert error["file"] == str(locked / "m.dcz")
    (model.path / "full").mkdir()
    (model.path / "full" / "x").touch()
    assert error_of(model, "decode", "model.dcz", "-o", "full")["code"] == "usage"


def test_a_report_that_cannot_be_written(model: Home) -> None:
    error = error_of(model, "report", "model.dcz", "-o", "none/page.html")
    assert (error["code"], error["file"]) == ("file-not-found", "none/page.html")
    done = model.run("report", "model.dcz", "-o", "page.html", "--json", code=1, command=limited(1000))
    assert (done.json["error"]["code"], done.json["error"]["file"]) == ("disk-full", "page.html")
    assert "page.html" not in model.names()


# -- the disk is full

_LIMITED = "import resource, os, sys; n = int(sys.argv[1]); resource.setrlimit({}, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"


def limited(size: int) -> tuple[str, ...]:
    """dcz in a process whose files cannot grow beyond ``size`` bytes, as if the disk were full then."""
    return (sys.executable, "-c", _LIMITED.format(int(resource.RLIMIT_FSIZE)), str(size), *COMMAND)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_full_disk(model: Home, share: float) -> None:
    model.run("push", "model.dcz", "m:1")
    before = model.names()
    command = limited(int(share * (model.path / "model.dcz").stat().st_size))
    for arguments, file in (
        (("convert", "model.safetensors", "-o", "out.dcz"), "out.dcz"),
        (("decode", "model.dcz", "-o", "out.safetensors"), "out.safetensors"),
        (("decode", "model.dcz", "-o", "out"), "out"),
    ):
        done = model.run(*arguments, "--json", code=1, command=command)
        assert done.json["error"]["code"] == "disk-full"
        assert done.json["error"]["file"] == file
        assert "free some space" in done.err
    for verb, *rest in (["push", "model.dcz", "m:2"], ["pull", "m:1", "-o", "new"]):
        done = model.run(verb, *rest, "--json", code=1, command=command)
        assert done.json["error"]["code"] == "disk-full"
        assert done.err.startswith("dcz: error: ")
    assert model.names() - {"new"} == before
    assert not (model.path / "new").exists() or model.names("new") == set()
    assert len(model.run("list", "--json").json["versions"]) == 1
    model.run("convert", "model.safetensors", "-o", "out.dcz")
    model.run("push", "out.dcz", "m:2")
    model.run("pull", "m:2", "-o", "new")


def test_standard_output_is_full_or_gone(model: Home) -> None:
    for arguments in (["inspect", "model.dcz"], ["--help"], ["--version"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, *arguments],
                cwd=model.path,
                env=model.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == "dcz: error: standard output: No space left on device\n"
    process = model.start("inspect", "model.dcz", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE


# -- signals that can be handled


def _is_writing(pid: int, folder: Path) -> bool:
    """Whether the process has a file without a name open, which is what a file is until it is whole."""
    try:
        targets = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(target.startswith(f"{folder}/#") for target in targets)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clear_up(home: Home, number: signal.Signals) -> None:
    write_model(home.path / "model.safetensors", elements=24_000_000)
    (home.path / "m.dcz").write_text("what was there before")
    # A recipe that takes its time, so that the signal comes before the end.
    arguments = ("convert", "model.safetensors", "-o", "m.dcz", "--recipe", "int4")
    process = home.start(*arguments, stderr=subprocess.PIPE)
    while not _is_writing(process.pid, home.path) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == (b"dcz: interrupted\n" if number == signal.SIGINT else b"")
    assert home.names() == {"model.safetensors", "m.dcz"}
    assert (home.path / "m.dcz").read_text() == "what was there before"


_THROWN_AWAY = """
import os, signal, sys, time
import click
from dcz.cli.boundary import boundary

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where the handler runs; what it raises goes no further than this

@click.command()
@click.pass_context
def command(ctx):
    with boundary(ctx):
        finalized = Finalized()
        del finalized
        sys.stdout.write("went on\\n")
        time.sleep(60)

command()
"""


def test_a_signal_whose_exception_is_thrown_away_still_stops(home: Home) -> None:
    done = home.run(code=130, command=(sys.executable, "-c", _THROWN_AWAY))
    assert done.err == "dcz: interrupted\n"
    assert done.out == "went on\n"

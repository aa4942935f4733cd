"""Which instruction set is used: the best, the one of force_isa, or the one that DCZ_KERNEL names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.native.isas import ALL, HERE, forced, on_each_isa

from dcz import _native
from dcz.format import Writer

HINT = f"possible here: {', '.join(reversed(HERE))}; without it, the first of them is used"


def run(kernel: str | bytes | None, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {os.fsencode(key): os.fsencode(value) for key, value in os.environ.items()}
    environment.pop(b"DCZ_KERNEL", None)
    if kernel is not None:
        environment[b"DCZ_KERNEL"] = os.fsencode(kernel)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.dcz"
    with Writer(path) as writer:
        writer.add_tensor("t", np.random.default_rng(0).normal(size=3000).astype(np.float32))
    return path


def test_the_sets_of_this_processor_are_listed_best_first() -> None:
    assert _native.available_isas() == list(reversed(HERE))
    assert HERE[0] == "portable"


@on_each_isa
def test_a_set_can_be_forced(isa: str) -> None:
    with forced(isa):
        assert _native.active_isa() == isa


@pytest.mark.parametrize("name", ["", "AVX2", "avx", "sse9", *set(ALL) - set(HERE)])
def test_a_set_that_is_not_there_cannot_be_forced(name: str) -> None:
    before = _native.active_isa()
    assert not _native.force_isa(name)
    assert _native.active_isa() == before


ACTIVE = "from dcz import _native; print(_native.active_isa())"


@on_each_isa
def test_the_variable_forces_a_set(isa: str) -> None:
    assert run(isa, "-c", ACTIVE).stdout == f"{isa}\n"


@pytest.mark.parametrize("kernel", [None, ""])
def test_without_the_variable_the_best_set_is_used(kernel: str | None) -> None:
    assert run(kernel, "-c", ACTIVE).stdout == f"{HERE[-1]}\n"


def test_the_variable_counts_until_the_first_use() -> None:
    script = (
        "import os; from dcz import _native; os.environ['DCZ_KERNEL'] = 'portable'; "
        "print(_native.active_isa()); os.environ['DCZ_KERNEL'] = 'no such set'; print(_native.active_isa())"
    )
    assert run(None, "-c", script).stdout == "portable\nportable\n"


@pytest.mark.parametrize("kernel", ["AVX2", " avx2", b"\xff", *set(ALL) - set(HERE)])
def test_another_value_is_an_error(kernel: str | bytes) -> None:
    script = (
        "import dcz\ntry: dcz._native.active_isa()\nexcept dcz.UsageError as exc: print(ascii(exc.message))"
    )
    done = run(kernel, "-c", "import dcz._native\n" + script)
    assert ascii(os.fsdecode(kernel)) in done.stdout.replace("\\\\", "\\"), done.stderr


def test_the_command_line_says_what_is_possible(file: Path) -> None:
    done = run("sse9", "-m", "dcz", "verify", file, "--deep", "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage"
    assert error["message"].startswith("DCZ_KERNEL is 'sse9', which is not")
    assert error["hint"] == HINT
    assert done.stderr.startswith("dcz: error: DCZ_KERNEL is 'sse9'")
    assert "Traceback" not in done.stderr


def test_a_wrong_value_harms_nothing_that_uses_no_kernel(file: Path) -> None:
    assert run("sse9", "-m", "dcz", "inspect", file).returncode == 0


def test_a_wrong_value_is_an_error_each_time_until_a_set_is_forced() -> None:
    script = """
import dcz
from dcz import _native
for _ in range(2):
    try:
        _native.unpack(bytes(3), 3, bytearray(8))
    except dcz.UsageError as exc:
        print(exc.hint)
assert _native.available_isas() and not _native.force_isa("sse9") and _native.force_isa("portable")
_native.unpack(bytes(3), 3, bytearray(8))
print(_native.active_isa())
"""
    done = run("sse9", "-c", script)
    assert done.stdout == f"{HINT}\n{HINT}\nportable\n", done.stderr


def test_a_wrong_value_leaves_no_file_behind(tmp_path: Path) -> None:
    script = """
import sys, numpy, dcz
with dcz.format.Writer(sys.argv[1]) as writer:
    writer.add_tensor("t", numpy.arange(30000) % 7, coding="huffman")
"""
    done = run("sse9", "-c", "import dcz.format\n" + script, tmp_path / "file.dcz")
    assert "dcz.errors.UsageError: DCZ_KERNEL is 'sse9'" in done.stderr
    assert list(tmp_path.iterdir()) == []

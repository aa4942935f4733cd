"""Death, full disks, closed folders and company: see crash_driver.py for what is demanded after each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's are not."""
    path = Path(tempfile.mkdtemp(prefix="dcz-crash-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def drive(scenario: str, folder: Path, *prefix: str, stride: int = 1) -> int:
    driver = [sys.executable, "-W", "error", "-m", "tests.registry.crash_driver"]
    command = [*prefix, *driver, scenario, str(folder), str(stride)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("scenario", "at_least"),
    [
        ("pull_goes_on", 5),
        ("killed_while_copying", 6),
        ("killed_at_any_time", 12),
        ("file_size_limit", 10),
        ("pushed_at_once", 20),
        ("read_only", 5),
    ],
)
def test_the_registry_survives(scenario: str, at_least: int, folder: Path) -> None:
    assert drive(scenario, folder) >= at_least


SWEEPS = [
    ("push_killed", 30),
    ("push_killed_after_a_loss", 30),
    ("first_push_killed", 40),
    ("pull_killed", 40),
    ("push_without_space", 60),
]


@pytest.mark.parametrize(("scenario", "at_least"), SWEEPS)
def test_the_registry_survives_at_steps_all_over(scenario: str, at_least: int, folder: Path) -> None:
    assert drive(scenario, folder, stride=4) >= at_least


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "at_least"), SWEEPS)
def test_the_registry_survives_at_every_step(scenario: str, at_least: int, folder: Path) -> None:
    assert drive(scenario, folder) >= at_least


def _own_mounts() -> bool:
    if shutil.which("unshare") is None:
        return False
    trial = "mount -t tmpfs -o size=4k none /mnt"
    return (
        subprocess.run(["unshare", "-rm", "sh", "-c", trial], check=False, capture_output=True).returncode
        == 0
    )


@pytest.mark.skipif(not _own_mounts(), reason="this machine allows no mounts of one's own")
def test_the_registry_survives_a_full_disk(folder: Path) -> None:
    assert drive("small_disk", folder, "unshare", "-rm") == 19

"""A file appears whole or not at all, with all that was put into it and nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcz.errors import EncodingError
from dcz.format import CodebookTensor, PerTensor, Provenance, Reader, Writer, verify

ROOT = Path(__file__).parents[2]
DRIVER = [sys.executable, "-m", "tests.format.write_driver"]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.dcz"


@pytest.fixture(params=["new", "replaced"])
def before(request: pytest.FixtureRequest, path: Path) -> Callable[[], bool]:
    """Whether everything is as it was before the writer came: nothing there, or the old file."""
    if request.param == "new":
        return lambda: names(path.parent) == []
    path.write_bytes(b"old")
    return lambda: names(path.parent) == [path.name] and path.read_bytes() == b"old"


# Whole or not at all


def test_the_file_appears_when_the_block_ends(path: Path, before: Callable[[], bool]) -> None:
    with Writer(path) as writer:
        assert before()
        writer.add_tensor("t", np.arange(1 << 20))
        writer.add_asset("a", b"text")
        assert before()
        assert (writer.digest, writer.size) == (None, None)
    assert names(path.parent) == [path.name]
    assert writer.size == path.stat().st_size
    assert verify(path, deep=True).digest == writer.digest


def test_the_file_appears_on_closing(path: Path, before: Callable[[], bool]) -> None:
    writer = Writer(path)
    writer.add_tensor("t", np.arange(10))
    assert before()
    writer.close()
    digest = verify(path, deep=True).digest
    for again in (writer.close, writer.abort, writer.close):
        again()
    assert verify(path, deep=True).digest == digest == writer.digest


def test_nothing_appears_after_abort(path: Path, before: Callable[[], bool]) -> None:
    writer = Writer(path)
    writer.add_tensor("t", np.arange(1 << 20))
    for again in (writer.abort, writer.abort, writer.close):
        again()
        assert before()
    assert (writer.digest, writer.size) == (None, None)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_appears_when_the_block_raises(
    path: Path, before: Callable[[], bool], kind: type[BaseException]
) -> None:
    with pytest.raises(kind), Writer(path) as writer:  # noqa: PT012
        writer.add_tensor("t", np.arange(1 << 20))
        raise kind
    assert before()


def fail() -> bytes:
    raise LookupError


BAD_CODES = np.zeros(3 << 20, np.uint8)
BAD_CODES[-1] = 200
LATE = CodebookTensor("u8", (3 << 20,), 4, BAD_CODES, np.zeros((1, 16), np.uint8), PerTensor())

# What is called, one thing after the other, on a writer that has a tensor "t".
FAULTS: dict[str, list[tuple[Any, ...]]] = {
    "an asset that cannot be made": [("add_asset", "a", fail)],
    "an asset that is given twice": [("add_asset", "a", b""), ("add_asset", "a", b"")],
    "an asset in another case": [("add_asset", "a/b", b""), ("add_asset", "A/B", b"")],
    "an asset that is a folder": [("add_asset", "a", b""), ("add_asset", "a/b", b"")],
    "an asset outside": [("add_asset", "../a", b"")],
    "a code in the last segment": [("add_tensor", "u", LATE)],
    "a tensor that is given twice": [("add_tensor", "t", np.zeros(1))],
    "a tensor without a name": [("add_tensor", "", np.zeros(1))],
    "a tensor with a NUL in its name": [("add_tensor", "a\0b", np.zeros(1))],
    "a tensor with half a character in its name": [("add_tensor", "\ud800", np.zeros(1))],
    "a tensor with too long a name": [("add_tensor", "é" * 2049, np.zeros(1))],
    "an alias of nothing": [("add_alias", "u", "v")],
    "an alias of itself": [("add_alias", "u", "u")],
    "an alias with the name of a tensor": [("add_alias", "t", "t")],
    "an alias of an alias": [("add_alias", "u", "t"), ("add_alias", "v", "u")],
    "an alias that is given twice": [("add_alias", "u", "t"), ("add_alias", "u", "t")],
    "an alias without a name": [("add_alias", "", "t")],
    "provenance that cannot be packed": [("set_provenance", Provenance(recipe={"a": 1 << 70}))],
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_nothing_appears_after_a_fault(path: Path, before: Callable[[], bool], fault: str) -> None:
    with pytest.raises(LookupError if "made" in fault else EncodingError), Writer(path, threads=2) as writer:  # noqa: PT012
        writer.add_tensor("t", np.arange(10))
        for method, *arguments in FAULTS[fault]:
            getattr(writer, method)(*arguments)
    assert before()


def test_a_tensor_that_failed_cannot_be_passed_over(path: Path, before: Callable[[], bool]) -> None:
    """Some of its bytes are in the file already."""
    with pytest.raises(EncodingError, match="half-way"), Writer(path) as writer:  # noqa: PT012
        with pytest.raises(EncodingError, match="code"):
            writer.add_tensor("t", LATE)
        writer.add_tensor("u", np.zeros(3))
    assert before()


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": "\ud800"}, {"\ud800": "a"}], ids=ascii
)
def test_nothing_appears_if_metadata_is_not_text(
    path: Path, before: Callable[[], bool], metadata: dict[Any, Any]
) -> None:
    with pytest.raises(EncodingError), Writer(path, metadata=metadata) as writer:
        writer.add_tensor("t", np.arange(10))
    assert before()


def test_a_tensor_that_was_refused_at_once_can_be_passed_over(path: Path) -> None:
    with Writer(path) as writer:
        for tensor in (np.zeros(3, complex), "text"):
            with pytest.raises(EncodingError):
                writer.add_tensor("t", tensor)  # type: ignore[arg-type]
        writer.add_tensor("t", np.arange(3))
        for name in ("t", "u"):
            with pytest.raises(EncodingError):
                writer.add_alias(name, name)
    with Reader(path) as reader:
        assert reader.read("t").tolist() == [0, 1, 2]


def test_who_reads_the_old_file_is_not_disturbed(path: Path) -> None:
    def write(number: int) -> None:
        with Writer(path) as writer:
            writer.add_tensor("t", np.full(1000, number))

    write(1)
    with Reader(path) as old:
        write(2)
        with Reader(path) as new:
            assert (old.read("t")[0], new.read("t")[0]) == (1, 2)


def test_of_two_writers_the_later_one_stays(path: Path) -> None:
    with Writer(path) as first, Writer(path) as second:
        for number, writer in enumerate((first, second)):
            writer.add_tensor("t", np.full(1000, number))
    assert verify(path, deep=True).digest == first.digest != second.digest
    assert names(path.parent) == [path.name]


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file.dcz").mkdir()
    with pytest.raises(IsADirectoryError), Writer(tmp_path / "file.dcz") as writer:
        writer.add_tensor("t", np.arange(3))
    assert names(tmp_path) == ["file.dcz"]
    with pytest.raises(FileNotFoundError):
        Writer(tmp_path / "nothing" / "file.dcz")
    assert names(tmp_path) == ["file.dcz"]


# Processes with something in their way


def drive(scenario: str, folder: Path, size: int, named: bool, *prefix: str) -> str:
    environment = {**os.environ, "NAMED": "1" if named else ""}
    done = subprocess.run(
        [*prefix, *DRIVER, scenario, str(folder), str(size)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _own_mounts() -> bool:
    if shutil.which("unshare") is None:
        return False
    trial = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=4k none /mnt"]
    return subprocess.run(trial, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, named: bool) -> None:
    if not _own_mounts():
        pytest.skip("this machine allows no mounts of one's own")
    # Full in a tensor, and full at the very end, where only the manifest and the footer are missing.
    for size in (1 << 20, (3 << 20) + 4096):
        assert drive("full", tmp_path, size, named, "unshare", "-rm") == "ENOSPC ENOSPC old.dcz True"
    assert (
        drive("full", tmp_path, 32 << 20, named, "unshare", "-rm") == "written written new.dcz old.dcz False"
    )


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_a_limit_on_the_size_of_files_is_an_error_and_leaves_nothing(tmp_path: Path, named: bool) -> None:
    (tmp_path / "old.dcz").write_bytes(b"what was here before")
    for size in (1 << 20, 3 << 20):
        assert drive("file-size", tmp_path, size, named) == "EFBIG EFBIG old.dcz True"


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*DRIVER, "killed", str(tmp_path), "0"], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == []


# What is in it


def test_everything_is_in_it_in_order(path: Path) -> None:
    arrays: dict[str, Any] = {"b": np.arange(3), "a": np.zeros((0, 2)), "ü/x.weight": np.array(2.5)}
    made: list[str] = []

    def make() -> bytes:
        made.append("asset")
        return b"made when its turn comes"

    with Writer(path, metadata={"z": "1", "a": ""}, provenance=Provenance(source="x")) as writer:
        for name, array in arrays.items():
            assert writer.add_tensor(name, array).name == name
        writer.add_alias("tied", "b")
        writer.add_asset("z/late", make)
        writer.add_asset("empty", b"")
        writer.add_asset("numbers", np.arange(300_000, dtype=np.uint32))
        assert made == []
        writer.set_provenance(Provenance(source="y", metrics={"loss": 0.5}))
    assert made == ["asset"]
    with Reader(path) as reader:
        assert reader.keys() == list(reader) == [*arrays, "tied"]
        assert (len(reader), "tied" in reader, "x" in reader) == (4, True, False)
        assert dict(reader.metadata) == {"z": "1", "a": ""}
        assert reader.manifest.provenance == Provenance(source="y", metrics={"loss": 0.5})
        assert reader.stored_name("tied") == "b"
        assert reader.read("tied").tolist() == [0, 1, 2]
        both = {"tied": np.empty(3, np.int64), "b": np.empty(3, np.int64)}
        reader.read_into(both)
        assert both["tied"].tolist() == both["b"].tolist() == [0, 1, 2]
        assert reader.assets() == ["z/late", "empty", "numbers"]
        assert reader.read_asset("z/late") == b"made when its turn comes"
        assert reader.read_asset("empty") == b""
        assert reader.read_asset("numbers") == np.arange(300_000, dtype=np.uint32).tobytes()


def test_progress_adds_up_to_the_decoded_bytes(path: Path) -> None:
    done: list[int] = []
    with Writer(path) as writer:
        writer.add_tensor("t", np.arange(1 << 19), progress=done.append)
    assert (sum(done), len(done)) == (1 << 22, 4)
    with Reader(path) as reader:
        done.clear()
        reader.read_into({"t": np.empty(1 << 19, np.int64)}, progress=done.append)
    assert sum(done) == 1 << 22


def test_an_empty_file_is_a_file(path: Path) -> None:
    with Writer(path):
        pass
    report = verify(path, deep=True)
    assert (report.tensors, report.assets, report.chunks) == (0, 0, 0)

"""convert and decode as a whole: what is recognized, what a hostile .dcz cannot do, and what remains of failures."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

import dcz
from dcz.converters.base import AssetData, StreamDigest, transfer
from dcz.converters.container import DczSource
from dcz.converters.conversion import convert, open_source
from dcz.converters.decoding import decode
from dcz.converters.folders import save_folder
from dcz.converters.recipes import BUILTIN_RECIPES, TRAINING_RECIPES, Recipe
from dcz.converters.safetensors_header import build_header
from dcz.errors import DczError, EncodingError, ManifestError, RecipeError, SourceError, UsageError
from dcz.format import DTYPES, Reader, TensorData, Writer


def _write(path: Path, tensors: dict[str, np.ndarray], *assets: tuple[str, bytes, str]) -> None:
    with Writer(path) as writer:
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        for name, data, role in assets:
            writer.add_asset(name, data, role=role)


# -- sources


@pytest.mark.parametrize(
    "content",
    [b"x", b"hello, this is text", b"PK", b"\x89DCZ", b"\xff" * 64, b'{"a": 1}', b"GGML" + b"\0" * 60],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SourceError, match="/file: neither safetensors, nor"):
        convert(tmp_path / "file", tmp_path / "m.dcz")


@pytest.mark.parametrize("name", ["file", "a.pt", "pytorch_model.bin", "model.safetensors"])
def test_empty_files_are_said_to_be_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=f"^{tmp_path}/{name}: the file is empty$"):
        convert(tmp_path / name, tmp_path / "m.dcz")
    if "model" in name:
        with pytest.raises(SourceError, match=f"{name}: the file is empty$"):
            convert(tmp_path, tmp_path / "m.dcz")


def test_paths_that_are_no_file_are_told_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", str(tmp_path / "pipe")):
        with pytest.raises(SourceError, match=f"^{path}: neither a regular file nor a folder"):
            convert(path, tmp_path / "m.dcz")
    with pytest.raises(SourceError, match="the source is an empty path"):
        convert("", tmp_path / "m.dcz")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"a": 1}, r"metadata\['a'\] is 1"),
        ({"a": "b", 2: "c"}, "its key 2 is none"),
        ([("a", "b")], "not a list"),
        ({"a": "\ud800"}, r"metadata\['a'\] holds half of a surrogate pair"),
    ],
)
def test_metadata_that_is_not_text_is_refused(tmp_path: Path, metadata: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        convert({"a": np.zeros(1)}, tmp_path / "m.dcz", metadata=metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [5, None, b"bytes", ["list"], object()])
def test_other_objects_are_refused(tmp_path: Path, source: Any) -> None:
    with pytest.raises(SourceError, match="is not a model"):
        convert(source, tmp_path / "m.dcz")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        convert(tmp_path / "nothing", tmp_path / "m.dcz")
    with pytest.raises(RecipeError):
        convert({"a": np.zeros(1)}, tmp_path / "m.dcz", recipe="no-such-recipe")
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_may_begin_like_any_other(tmp_path: Path) -> None:
    """The first byte is the header's length; 0x80 also begins a pickle."""
    for length in range(1, 300):
        file = save({"a": torch.ones(1)}, {"k": "v" * length})
        if file[0] == 0x80:
            break
    assert file[0] == 0x80
    (tmp_path / "x").write_bytes(file)
    assert convert(tmp_path / "x", tmp_path / "m.dcz").tensors == 1


def test_an_existing_file_is_replaced_only_when_whole(tmp_path: Path) -> None:
    convert({"a": np.ones(3)}, tmp_path / "m.dcz")
    before = (tmp_path / "m.dcz").read_bytes()
    with pytest.raises(SourceError):
        convert(_Broken(), tmp_path / "m.dcz")
    assert (tmp_path / "m.dcz").read_bytes() == before
    convert({"a": np.zeros(3)}, tmp_path / "m.dcz")
    assert (tmp_path / "m.dcz").read_bytes() != before
    assert os.listdir(tmp_path) == ["m.dcz"]


class _Broken(dict[str, np.ndarray]):
    """Changes its mind while it is read."""

    def items(self) -> Any:
        yield "a", np.ones(100_000, np.float32)
        raise SourceError("gone")


def test_metadata_is_added(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"format": "pt", "k": "old"})
    convert(tmp_path / "x.safetensors", tmp_path / "m.dcz", metadata={"k": "new", "more": "1"})
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.metadata == {"format": "pt", "k": "new", "more": "1"}
    decode(tmp_path / "m.dcz", tmp_path / "back.safetensors")  # the original header all the same
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


# -- .dcz files as sources


def test_reencoding_keeps_what_is_known(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    save_file({"w": weight, "b": torch.ones(3)}, tmp_path / "x.safetensors", {"format": "pt"})
    first = convert(tmp_path / "x.safetensors", tmp_path / "first.dcz")
    second = convert(tmp_path / "first.dcz", tmp_path / "second.dcz", recipe="int8")
    direct = convert(tmp_path / "x.safetensors", tmp_path / "direct.dcz", recipe="int8")
    assert second.digest == direct.digest != first.digest
    with Reader(tmp_path / "second.dcz") as reader:
        assert [file.path for file in reader.manifest.provenance.files] == ["x.safetensors"]
        assert convert(reader, tmp_path / "third.dcz").tensors == 2
        assert "w" in reader  # an open reader stays open
    with Reader(tmp_path / "third.dcz") as reader:
        files = reader.manifest.provenance.files
        assert [file.path for file in files] == ["x.safetensors", "second.dcz"]  # this one was not lossless
        assert files[1].size == (tmp_path / "second.dcz").stat().st_size
    assert torch.equal(dcz.load(tmp_path / "third.dcz")["w"], dcz.load(tmp_path / "second.dcz")["w"])


def test_a_damaged_file_is_not_reencoded(tmp_path: Path) -> None:
    convert({"a": np.random.default_rng(0).normal(size=5000)}, tmp_path / "m.dcz")
    file = bytearray((tmp_path / "m.dcz").read_bytes())
    file[1000] ^= 1
    (tmp_path / "m.dcz").write_bytes(file)
    for action in (
        lambda: convert(tmp_path / "m.dcz", tmp_path / "n.dcz"),
        lambda: decode(tmp_path / "m.dcz", tmp_path / "n.safetensors"),
        lambda: decode(tmp_path / "m.dcz", tmp_path / "n"),
    ):
        with pytest.raises(dcz.DigestMismatch):
            action()
        assert os.listdir(tmp_path) == ["m.dcz"]


# -- decoding


def test_tied_tensors_stand_in_safetensors_under_each_name(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    convert({"a": weight, "z": weight, "b": np.ones(1, np.int8)}, tmp_path / "m.dcz")
    decode(tmp_path / "m.dcz", tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"a", "b", "z"}
    assert torch.equal(found["a"], found["z"])


def test_a_name_that_safetensors_keeps_for_itself(tmp_path: Path) -> None:
    """It would be read as the file's metadata, and the file refused by everyone."""
    convert({"__metadata__": np.ones(2), "a": np.ones(3)}, tmp_path / "m.dcz")
    assert dcz.load(tmp_path / "m.dcz")["__metadata__"].tolist() == [1, 1]
    for place in ("x.safetensors", "folder"):
        with pytest.raises(EncodingError, match="cannot hold a tensor called '__metadata__'"):
            decode(tmp_path / "m.dcz", tmp_path / place)
    assert os.listdir(tmp_path) == ["m.dcz"]


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    _write(tmp_path / "m.dcz", {"a": np.ones(2)}, ("sub/x.txt", b"text", "file"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        with pytest.raises(UsageError, match="is not an empty folder"):
            decode(tmp_path / "m.dcz", tmp_path / place)
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new", "deep/er"):
        decoded = decode(tmp_path / "m.dcz", tmp_path / place)
        assert decoded.files == ("model.safetensors", "sub/x.txt")
        assert (tmp_path / place / "sub" / "x.txt").read_bytes() == b"text"
        (tmp_path / "like any other").mkdir(exist_ok=True)
        assert (tmp_path / place).stat().st_mode == (tmp_path / "like any other").stat().st_mode
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_files_without_tensors(tmp_path: Path) -> None:
    _write(tmp_path / "m.dcz", {}, ("x.txt", b"text", "file"))
    assert decode(tmp_path / "m.dcz", tmp_path / "out").files == ("x.txt",)
    assert decode(tmp_path / "m.dcz", tmp_path / "x.safetensors").tensors == 0
    assert load_file(tmp_path / "x.safetensors") == {}


F32 = DTYPES["f32"]
LIES: dict[str, bytes] = {
    "another tensor": build_header([("a", F32, (2,)), ("b", F32, (2,))]).raw,
    "none of the tensors": build_header([]).raw,
    "another shape": build_header([("a", F32, (1, 2))]).raw,
    "another type": build_header([("a", DTYPES["i32"], (2,))]).raw,
    "no header": b"nonsense",
    "cut off": build_header([("a", F32, (2,))]).raw[:-1],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_does_not_fit_is_not_used(tmp_path: Path, lie: str) -> None:
    index = ("model.safetensors.index.json", b"{}", "file")
    array = np.array([1, 2], np.float32)
    _write(tmp_path / "m.dcz", {"a": array}, ("odd.safetensors", LIES[lie], "safetensors-header"), index)
    decoded = decode(tmp_path / "m.dcz", tmp_path / "out")
    assert not decoded.original
    assert decoded.files == ("model.safetensors",)  # the index would name files that are not there
    decode(tmp_path / "m.dcz", tmp_path / "x.safetensors")
    for path in (tmp_path / "x.safetensors", tmp_path / "out" / "model.safetensors"):
        assert load_file(path)["a"].tolist() == [1, 2]


def test_two_headers_with_the_same_tensor_are_not_used(tmp_path: Path) -> None:
    header = build_header([("a", F32, (2,))]).raw
    assets = [(f"{i}.safetensors", header, "safetensors-header") for i in range(2)]
    _write(tmp_path / "m.dcz", {"a": np.ones(2, np.float32)}, *assets)
    assert not decode(tmp_path / "m.dcz", tmp_path / "out").original


def test_an_asset_in_the_place_of_the_weights_is_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "MODEL.safetensors", "model.safetensors/x"):
        _write(tmp_path / "m.dcz", {"a": np.ones(2, np.float32)}, (name, b"not weights", "file"))
        with pytest.raises(ManifestError, match="cannot be put into one folder"):
            decode(tmp_path / "m.dcz", tmp_path / "out")
        assert os.listdir(tmp_path) == ["m.dcz"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files, in a process of its own, stands for the disk."""
    convert({"a": np.random.default_rng(0).normal(size=50_000)}, tmp_path / "m.dcz")
    code = (
        "import resource, signal, sys, dcz\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "for target in sys.argv[2:]:\n"
        "    try:\n"
        "        (dcz.convert if target.endswith('.dcz') else dcz.decode)(sys.argv[1], target)\n"
        "    except OSError as exc:\n"
        "        print(exc.strerror)\n"
    )
    targets = [str(tmp_path / name) for name in ("n.dcz", "n.safetensors", "n")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.dcz"), *targets],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["File too large"] * 3
    assert os.listdir(tmp_path) == ["m.dcz"]


# -- the flow


class _Sink:
    def __init__(self, fail_at: int) -> None:
        self.log: list[str] = []
        self.fail_at = fail_at

    def _step(self, what: str) -> None:
        if len(self.log) == self.fail_at:
            raise DczError("full")
        self.log.append(what)

    def add_tensor(self, name: str, tensor: TensorData) -> None:
        self._step(name)

    def add_alias(self, name: str, target: str) -> None:
        self._step(f"{name} = {target}")

    def add_asset(self, asset: AssetData) -> None:
        self._step(f"{asset.path} {asset.read().decode()}")

    def commit(self, provenance: object) -> None:
        self._step("commit")

    def abort(self) -> None:
        self.log.append("abort")


def test_a_sink_commits_at_the_end_or_aborts(tmp_path: Path) -> None:
    with Writer(tmp_path / "m.dcz") as writer:
        for name in ("a", "b"):
            writer.add_tensor(name, np.ones(3))
        writer.add_alias("c", "a")
        writer.add_asset("x", b"text")
    steps = ["a", "b", "c = a", "x text", "commit"]
    for fail_at in range(6):
        sink = _Sink(fail_at)
        with Reader(tmp_path / "m.dcz") as reader:
            if fail_at == 5:
                done = transfer(DczSource(reader), sink)
                assert (done.tensors, done.aliases, done.assets, done.tensor_bytes) == (2, 1, 1, 48)
                assert sink.log == steps
            else:
                with pytest.raises(DczError, match="full"):
                    transfer(DczSource(reader), sink)
                assert sink.log == [*steps[:fail_at], "abort"]


def test_digests_of_streams() -> None:
    rng = np.random.default_rng(0)
    digest, expected = StreamDigest(), hashlib.sha256()
    for size in (0, 1, 65_535, 65_536, 1_000_000, 7, 300_000):
        data = rng.bytes(size)
        digest.update(memoryview(data))
        expected.update(data)
    assert digest.digest() == expected.digest()


MEASURED = """
import sys
import numpy, dcz, dcz.converters.conversion, dcz.converters.decoding
if sys.argv[2].endswith(".pt"): import torch
# Of this program alone: ru_maxrss would begin with the memory of the process that started it.
def peak(): return 1024 * int(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])
before = peak()
getattr(dcz, sys.argv[1])(sys.argv[2], sys.argv[3], threads=2)
print(peak() - before)
"""


def test_memory_stays_near_the_largest_tensor(tmp_path: Path) -> None:
    largest, count = 8 << 20, 20
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": torch.from_numpy(rng.standard_normal(largest >> 2, np.float32)) for i in range(count)}
    save_file(tensors, tmp_path / "m.safetensors")
    torch.save(tensors, tmp_path / "m.pt")
    steps = [
        ("convert", "m.safetensors", "m.dcz"),
        ("convert", "m.pt", "p.dcz"),
        ("convert", "m.dcz", "n.dcz"),
    ]
    steps += [("decode", "m.dcz", "n.safetensors"), ("decode", "m.dcz", "folder")]
    for verb, source, target in steps:
        arguments = [sys.executable, "-c", MEASURED, verb, str(tmp_path / source), str(tmp_path / target)]
        used = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        assert used < 3 * largest + (50 << 20) < largest * count // 2, (verb, source, target, used)
    assert (tmp_path / "n.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_sources_close(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    before = len(os.listdir("/proc/self/fd"))
    source = open_source(tmp_path / "x.safetensors")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    source.close()
    convert(tmp_path / "x.safetensors", tmp_path / "m.dcz")
    decode(tmp_path / "m.dcz", tmp_path / "y.safetensors")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_with_a_long_name_in_another_script(tmp_path: Path) -> None:
    """A name may have 255 bytes, and its temporary neighbour must fit, too."""
    _write(tmp_path / "m.dcz", {"a": np.ones(2, np.float32)})
    decode(tmp_path / "m.dcz", tmp_path / ("名" * 84))
    assert (tmp_path / ("名" * 84) / "model.safetensors").is_file()


def test_a_recipe_of_stages_only_is_for_training(tmp_path: Path) -> None:
    weights = {"w": np.ones((20, 20), np.float32)}
    only = Recipe.model_validate({"name": "mine", "stages": [{"kind": "round", "dtype": "bf16"}]})
    for recipe in (only, *(name for name in TRAINING_RECIPES if name not in BUILTIN_RECIPES)):
        for attempt in (
            functools.partial(dcz.convert, weights, tmp_path / "x.dcz", recipe=recipe),
            functools.partial(save_folder, weights, tmp_path / "folder", recipe=recipe),
            functools.partial(dcz.estimate, weights, recipes=[recipe]),
        ):
            with pytest.raises(UsageError, match="stages only, which need training") as caught:
                attempt()
            assert "dcz.compress" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())
    assert dcz.convert(weights, tmp_path / "x.dcz", recipe="deep-compression").ratio < 1  # by its rules

"""Checkpoints of torch.save: what is taken from them, and what they cannot do to us."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

import dcz
from dcz.converters.conversion import Converted, convert
from dcz.errors import SourceError, UnsafePickle
from dcz.format import DTYPES, Reader, verify

TYPES = [getattr(torch, row.numpy.name) for row in DTYPES.values()]


def _convert(
    content: Any, folder: Path, *, legacy: bool = False
) -> tuple[Converted, dict[str, torch.Tensor]]:
    torch.save(content, folder / "in.pt", _use_new_zipfile_serialization=not legacy)
    done = convert(folder / "in.pt", folder / "m.dcz")
    verify(folder / "m.dcz", deep=True)
    return done, dcz.load(folder / "m.dcz")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.numel() == 0 or torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_type_comes_back(tmp_path: Path, legacy: bool) -> None:
    # torch cannot read types that are younger than the legacy form from it.
    young = (
        {torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2}
        if legacy
        else set()
    )
    tensors = {str(dtype): torch.randn(3, 5).mul(3).to(dtype) for dtype in TYPES if dtype not in young}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "bf16 scalar": torch.tensor(1.5).bfloat16(),
    }
    _, found = _convert(tensors, tmp_path, legacy=legacy)
    assert found.keys() == tensors.keys()
    assert all(_same(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_training_checkpoint_gives_its_model(tmp_path: Path, legacy: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    parallel = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint = {
        "epoch": 3,
        "state_dict": parallel,
        "optimizer": optimizer.state_dict(),
        "rng": torch.zeros(9),
    }
    done, found = _convert(checkpoint, tmp_path, legacy=legacy)
    assert found.keys() == model.state_dict().keys()
    assert all(_same(found[name], tensor) for name, tensor in model.state_dict().items())
    for left in ("epoch", "optimizer", "rng"):
        assert f"left out of in.pt: {left}" in done.notes
    assert "the prefix 'module.' of all names in in.pt was removed" in done.notes
    with Reader(tmp_path / "m.dcz") as reader:
        (file,) = reader.manifest.provenance.files
        assert file.sha256 == hashlib.sha256((tmp_path / "in.pt").read_bytes()).digest()
        assert (file.path, file.size) == ("in.pt", (tmp_path / "in.pt").stat().st_size)


@pytest.mark.parametrize("wrap", [("model",), ("model", "state_dict"), ("model_state_dict",), ("module",)])
def test_state_dicts_are_found_where_they_usually_are(tmp_path: Path, wrap: tuple[str, ...]) -> None:
    content: Any = {"a.weight": torch.ones(2), "note": "no tensor", 3: "neither"}
    for key in wrap:
        content = {key: content, "step": 1}
    done, found = _convert(content, tmp_path)
    assert list(found) == ["a.weight"]
    assert any("note, which is no tensor" in note for note in done.notes)


@pytest.mark.parametrize("content", [{3: torch.ones(1)}, {"a": torch.ones(1), 3: torch.ones(1)}])
@pytest.mark.parametrize("wrap", [(), ("model",)])
def test_a_tensor_without_a_name_is_refused(tmp_path: Path, content: Any, wrap: tuple[str, ...]) -> None:
    for key in wrap:
        content = {key: content}
    with pytest.raises(SourceError, match=r"/in\.pt: the name 3 is not a string"):
        _convert(content, tmp_path)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_dictionary_that_holds_itself_ends(tmp_path: Path, key: str, first: bool) -> None:
    content: dict[str, Any] = {key: None} if first else {}
    content["a"] = torch.ones(1)
    content[key] = content
    _, found = _convert(content, tmp_path)
    assert list(found) == ["a"]
    del content["a"]
    with pytest.raises(SourceError, match="holds no dictionary of tensors"):
        _convert(content, tmp_path)


def test_what_a_pickle_puts_over_methods_is_not_called(tmp_path: Path) -> None:
    """Both are within what torch.load(weights_only=True) builds."""
    tensor = torch.ones(2)
    for name in ("numel", "contiguous", "resolve_neg"):
        setattr(tensor, name, 5)

    class Overridden:
        def __reduce__(self) -> Any:
            state = dict.fromkeys(("items", "get", "keys"), 5)
            return (collections.OrderedDict, (), state, None, iter([("a", tensor)]))

    _, found = _convert(Overridden(), tmp_path)
    assert found["a"].tolist() == [1, 1]


def test_a_prefix_that_not_all_have_stays(tmp_path: Path) -> None:
    done, found = _convert({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path)
    assert list(found) == ["module.a", "b"]
    assert not done.notes


def test_compiled_and_parallel_prefixes_go(tmp_path: Path) -> None:
    _, found = _convert({"module._orig_mod.a": torch.ones(1), "module._orig_mod.b": torch.ones(1)}, tmp_path)
    assert list(found) == ["a", "b"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_shared_and_strided_tensors(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content = {
        "embedding": base,
        "head": base,
        "transposed": base.T,
        "again": base.T,
        "row": base[1],
        "column": base[:, 2],
        "expanded": torch.ones(1, 3).expand(5, 3),
    }
    done, found = _convert(content, tmp_path, legacy=legacy)
    assert all(_same(found[name], content[name]) for name in content)
    assert (done.tensors, done.aliases) == (5, 2)
    assert found["embedding"].data_ptr() == found["head"].data_ptr()
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.aliases == {"head": "embedding", "again": "transposed"}


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.eye(3).to_sparse(), "is sparse"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64, which .dcz does not have"),
        (torch.zeros(2, device="meta"), "has no memory"),
        (torch.zeros([1] * 65), "has 65 dimensions, more than 64"),
    ],
    ids=["sparse", "complex", "meta", "dimensions"],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, tensor: torch.Tensor, reason: str) -> None:
    with pytest.raises(SourceError, match=f"/in.pt: the tensor 'odd' .*{reason}"):
        _convert({"fine": torch.ones(2), "odd": tensor}, tmp_path)
    assert not (tmp_path / "m.dcz").exists()


def test_a_mapped_file_stays_right_while_its_pages_are_given_back(tmp_path: Path) -> None:
    """Views of one storage, read after the pages of that storage were released."""
    base = torch.randn(300_000)
    content = {
        "a": base[:200_000],
        "b": base[100_000:],
        "c": base.reshape(3, 100_000),
        "d": torch.randn(5000),
    }
    _, found = _convert(content, tmp_path)
    assert all(_same(found[name], content[name]) for name in content)


# -- files that mean harm


class _Shell:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 2", "pickle 4", "pickle 5"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    ran = tmp_path / "ran"
    content = {"weight": torch.ones(2) if "pickle" not in kind else 1, "x": _Shell(ran)}
    path = tmp_path / "evil.pth"
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(kind[-1])))
    with pytest.raises(UnsafePickle, match=r"evil\.pth: refused.*posix\.system") as caught:
        convert(path, tmp_path / "m.dcz")
    assert caught.value.hint is not None
    assert "safetensors" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]
    # That the file would have run code is the point of the test, so see that it does.
    loader = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"
    if "pickle" in kind:
        loader = "import sys, pickle; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", loader, path], check=True)
    assert ran.exists()


def test_a_whole_module_or_foreign_object_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UnsafePickle, match=r"torch\.nn\.modules\.linear\.Linear"):
        convert(tmp_path / "module.pt", tmp_path / "m.dcz")
    torch.save({"a": torch.ones(1), "args": argparse.Namespace(lr=1)}, tmp_path / "args.pt")
    with pytest.raises(UnsafePickle, match=r"argparse\.Namespace"):
        convert(tmp_path / "args.pt", tmp_path / "m.dcz")


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(3), {}, {"a": 1}, {"state_dict": {}}, 5])
def test_without_a_state_dict_there_is_nothing_to_convert(tmp_path: Path, content: Any) -> None:
    with pytest.raises(SourceError, match="holds no dictionary of tensors"):
        _convert(content, tmp_path)


def _repacked(source: Path, target: Path, change: Any) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            data, compression = change(record.filename, old.read(record))
            new.writestr(record.filename, data, compress_type=compression)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """Mapped by torch they would give the compressed bytes as weights."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    _repacked(tmp_path / "a.pt", tmp_path / "b.pt", lambda name, data: (data, zipfile.ZIP_DEFLATED))
    with pytest.raises(SourceError, match="is compressed"):
        convert(tmp_path / "b.pt", tmp_path / "m.dcz")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1, 3).expand(1 << 30, 3)}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 5000
    with pytest.raises(SourceError, match="'a' claims 12884901888 bytes"):
        convert(tmp_path / "a.pt", tmp_path / "m.dcz")
    torch.save({"a": torch.zeros(4)}, tmp_path / "b.pt")
    _repacked(
        tmp_path / "b.pt",
        tmp_path / "c.pt",
        lambda name, data: (data.replace(b"K\x04\x85", b"J\0\0\x10\0\x85") if "pkl" in name else data, 0),
    )
    with pytest.raises(SourceError, match="damaged"):
        convert(tmp_path / "c.pt", tmp_path / "m.dcz")


def _mutant(file: bytes, random: Random) -> bytes:
    """A file with one to four changes: of bytes, in length, or of what a zip says of its records."""
    changed = bytearray(file)
    for _ in range(random.choice([1, 1, 2, 4])):
        kind, place = random.random(), random.randrange(len(changed))
        if kind < 0.5:
            # The first 500 bytes hold the pickle in both forms, the last 700 the directory of the zip.
            near = (place, place % 500, len(changed) - 1 - place % 700)
            changed[max(0, random.choice(near))] = random.choice([0, 1, 128, 255, random.randrange(256)])
        elif kind < 0.6:
            del changed[max(1, place) :]
        elif kind < 0.7:
            del changed[max(1, place) : place + random.choice([2, 8, 100])]
        elif kind < 0.8:
            changed[place:place] = changed[random.randrange(len(changed)) :][: random.choice([1, 4, 16])]
        else:
            record = changed.find(random.choice([b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"]))
            place = min(len(changed) - 1, max(0, record) + random.randrange(60))
            changed[place] = random.choice([0, 1, 128, 255, random.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_damage_is_an_error_of_ours(tmp_path: Path, legacy: bool, protocol: int) -> None:
    random = Random(f"{legacy} {protocol}")
    content = {"state_dict": {"a": torch.ones(20), "b": torch.ones(3).bfloat16()}, "epoch": 1}
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    file = path.read_bytes()
    for _ in range(250):
        path.write_bytes(_mutant(file, random))
        try:
            convert(path, tmp_path / "m.dcz", threads=1)
        except SourceError as exc:
            message = str(exc)
        else:
            message = f"{path}: "
            verify(tmp_path / "m.dcz", deep=True)
            (tmp_path / "m.dcz").unlink()
        assert message.startswith(f"{path}: ")
        assert not (tmp_path / "m.dcz").exists()


def _end_of_zip(file: bytearray) -> int:
    return file.rindex(b"PK\5\6")


def _several_disks(file: bytearray) -> None:
    """What zipfile.is_zipfile does not answer, but raise."""
    place = _end_of_zip(file)
    file[place:place] = b"PK\6\7" + bytes(12) + (2).to_bytes(4, "little")


def _longer_than_the_file(file: bytearray) -> None:
    """A record that ends behind the file: EOFError."""
    record = file.index(b"byteorder", file.index(b"PK\1\2")) - 46 - len("archive/")
    for field in (20, 24):
        file[record + field : record + field + 4] = (1 << 24).to_bytes(4, "little")


def _name_that_is_not_text(file: bytearray) -> None:
    place = file.index(b"archive/data.pkl")
    file[place] = 0xFF
    file[file.index(b"PK\3\4") + 7] |= 8  # its flags: names are UTF-8


@pytest.mark.parametrize(
    ("damage", "protocol"),
    [
        (_several_disks, 2),
        (_longer_than_the_file, 2),
        (_name_that_is_not_text, 4),
    ],  # 4: opcodes are looked at
)
def test_a_damaged_zip_is_said_to_be_one(tmp_path: Path, damage: Any, protocol: int) -> None:
    path = tmp_path / "archive.pt"
    torch.save({"a": torch.ones(20)}, path, pickle_protocol=protocol)
    file = bytearray(path.read_bytes())
    damage(file)
    path.write_bytes(file)
    with pytest.raises(
        SourceError, match=r"/archive\.pt: (cannot be read|not a torch checkpoint|it was saved)"
    ):
        convert(path, tmp_path / "m.dcz")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_that_torch_does_not_read_are_named(tmp_path: Path, legacy: bool, protocol: int) -> None:
    content = {f"layer.{i}": torch.ones(2) for i in range(3)}
    path = tmp_path / "in.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    if protocol < 4:
        assert convert(path, tmp_path / "m.dcz").tensors == 3
        return
    with pytest.raises(
        SourceError, match=rf"saved with pickle protocol {protocol}, .* is protocol 2 or 3"
    ) as caught:
        convert(path, tmp_path / "m.dcz")
    assert not isinstance(caught.value, UnsafePickle)
    assert "without pickle_protocol" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_zip_files_are_told_apart(tmp_path: Path) -> None:
    script = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2))
    script.save(str(tmp_path / "script.pt"))
    with pytest.raises(SourceError, match=r"/script\.pt: a TorchScript archive.*torch\.jit\.load"):
        convert(tmp_path / "script.pt", tmp_path / "m.dcz")
    for names in (["a.txt"], ["a/b.txt"], []):
        with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "text")
        with pytest.raises(SourceError) as caught:
            convert(tmp_path / "some.zip", tmp_path / "m.dcz")
        assert "enforce fail" not in str(caught.value)
        if names:
            assert str(caught.value).endswith(
                "/some.zip: a zip file, but not a torch checkpoint: it has no data.pkl"
            )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_packed_parameters_of_torch_are_refused(tmp_path: Path) -> None:
    """Without them, a file would hold the scales and zero points of a model, and none of its weights."""
    weight = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8)
    packed = {"0.scale": torch.ones(1), "0._packed_params._packed_params": (weight, torch.ones(3))}
    with pytest.raises(
        SourceError, match=r"in\.pt: '0\._packed_params\._packed_params' holds weights that torch has"
    ):
        _convert(packed, tmp_path)


def test_shards_with_an_index(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "p-1.bin")
    torch.save({"b": torch.zeros(3), "c": torch.ones(1)}, tmp_path / "p-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "p-1.bin", "b": "p-2.bin"}}))
    convert(index, tmp_path / "m.dcz")
    assert {name: tensor.tolist() for name, tensor in dcz.load(tmp_path / "m.dcz").items()} == {
        "a": [1, 1],
        "b": [0, 0, 0],
        "c": [1],
    }
    index.write_text(json.dumps({"weight_map": {"a": "p-1.bin", "z": "p-2.bin"}}))
    with pytest.raises(SourceError, match=r"'z' is not in p-2\.bin"):
        convert(index, tmp_path / "m2.dcz")
    index.write_text(json.dumps({"weight_map": {"a": "p-1.bin", "b": "../p-2.bin"}}))
    with pytest.raises(SourceError, match="not a valid index"):
        convert(index, tmp_path / "m2.dcz")
    torch.save({"a": torch.zeros(3)}, tmp_path / "p-2.bin")
    index.write_text(json.dumps({"weight_map": {"a": "p-1.bin", "b": "p-2.bin"}}))
    with pytest.raises(SourceError, match=r"'a' stands in p-1\.bin and in p-2\.bin"):
        convert(index, tmp_path / "m2.dcz")


def test_numpy_archives_are_not_checkpoints(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(SourceError, match=r"a\.npz"):
        convert(tmp_path / "a.npz", tmp_path / "m.dcz")

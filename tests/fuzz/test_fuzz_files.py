"""Thousands of mutated files, the same in every run, each held to the invariant of target.py; ``long.py`` has more."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from tests.fuzz import long, target
from tests.fuzz.draft_mutations import take_apart
from tests.fuzz.limits import LIMITS
from tests.fuzz.mutations import MUTATORS, Mutant, mutate
from tests.fuzz.seeds import SeedFile, seed_files
from tests.fuzz.target import WAYS, Violation, check, check_by_number, memory_bound, observe
from tests.reference.dcz_reference_coders import fixed
from tests.reference.dcz_reference_writer import Draft, Exact, asset, draft, pack_manifest, tensor

from dcz.errors import CorruptStream, DigestMismatch, FormatError, LimitExceeded, ManifestError
from dcz.format import DEFAULT_LIMITS, Limits, Reader, encodings, verify

_EACH = 60


@pytest.mark.parametrize("mutator", MUTATORS)
def test_the_invariant_holds(mutator: str, tmp_path: Path) -> None:
    for number in range(_EACH):
        mutant = mutate(mutator, number)
        try:
            check_by_number(mutant, tmp_path)
        except Exception as exc:
            exc.add_note(f"python tests/fuzz/long.py --replay {mutant.name}    (from {mutant.original.name})")
            raise


@pytest.mark.parametrize("mutator", MUTATORS)
def test_every_way_in_gives_the_same(mutator: str, tmp_path: Path) -> None:
    mutant = mutate(mutator, _EACH)
    seen = [observe(mutant.data, way, tmp_path, threads=1 + 2 * (way == "path")) for way in WAYS]
    for one in seen[1:]:
        assert _plain(one) == _plain(seen[0])


def _plain(seen: target.Observed) -> list[Any]:
    """Contents as they are; errors without the name of the file, which is the way's."""
    values = [seen.opening, seen.deep, seen.identity, *seen.tensors.values(), *seen.assets.values()]
    return [
        (type(one), one.message, one.tensor, one.offset) if isinstance(one, FormatError) else one
        for one in values
    ]


def test_mutants_are_the_same_in_every_run() -> None:
    assert [mutate(name, 3).data for name in MUTATORS] == [mutate(name, 3).data for name in MUTATORS]


# Where the fault is


def _file(name: str) -> SeedFile:
    return next(one for one in seed_files() if one.name == name)


def test_an_error_says_where_the_file_was_damaged() -> None:
    data = _file("grid dense bytes").data
    with Reader(data) as reader:
        chunks = list(zip(reader.geometry.chunk_offsets, reader.geometry.chunk_lengths, strict=True))
    assert len(chunks) == 3
    manifest = struct.unpack_from("<Q", data, len(data) - 64)[0]
    for at in range(len(data)):
        with pytest.raises(FormatError) as caught:
            verify(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], limits=LIMITS)
        places = [offset for offset, length in chunks if offset <= at < offset + length]
        if at < 16:
            # Of the version, only the footer says that it is not that of the header.
            assert caught.value.offset in (0, 8, 12, len(data) - 64)
        elif at >= manifest:
            assert caught.value.offset in (manifest, len(data) - 64)
        else:
            assert (type(caught.value), [caught.value.offset]) == (DigestMismatch, places)


def test_every_truncation_is_refused_and_says_where() -> None:
    data = _file("vector names").data
    for size in range(len(data)):
        with pytest.raises(FormatError) as caught:
            Reader(data[:size])
        assert caught.value.offset is not None
        assert caught.value.offset <= size


def test_a_damaged_chunk_names_the_tensor_that_was_read() -> None:
    data = bytearray(
        draft([tensor("a", "u8", [2], Exact(b"12")), tensor("b", "u8", [2], Exact(b"34"))]).build()
    )
    data[16] ^= 1
    with Reader(bytes(data)) as reader:
        with pytest.raises(DigestMismatch) as whole:
            reader.read("b")
        with pytest.raises(DigestMismatch) as part:
            reader.tensor("b")[1:]
    for exc in (whole.value, part.value):
        assert (exc.file, exc.tensor, exc.offset) == ("<bytes>", "b", 16)


def test_a_fault_in_an_asset_says_where() -> None:
    good, bad = asset("good", b"1234"), asset("bad", b"1234", coder=fixed(1, b"\0"))
    with Reader(draft([], [good, bad], chunk_parts=[1, 1]).build()) as reader:
        assert reader.read_asset("good") == b"1234"
        with pytest.raises(CorruptStream) as caught:
            reader.read_asset("bad")
    assert (caught.value.file, caught.value.offset) == ("<bytes>", 20)


def test_a_fault_in_a_part_without_bytes_is_one_of_the_manifest() -> None:
    data = draft([tensor("t", "u8", [4], Exact(b"1234"), coders=fixed(0, b""))]).build()
    with Reader(data) as reader, pytest.raises(CorruptStream) as caught:
        reader.read("t")
    assert (caught.value.tensor, caught.value.offset) == ("t", 16)


def test_a_fault_in_the_manifest_names_the_tensor() -> None:
    file = draft([tensor("a", "u8", [1], Exact(b"1")), tensor("b", "u8", [1], Exact(b"2"))])
    file.manifest["tensors"][1]["segment"] = 0
    with pytest.raises(ManifestError) as caught:
        Reader(file.build())
    assert (caught.value.file, caught.value.tensor, caught.value.offset) == ("<bytes>", "b", 18)


# Sizes


def _empty(shape: list[int]) -> bytes:
    return draft([tensor("t", "u8", shape, Exact(b""))]).build()


@pytest.mark.parametrize("rows", [1 << 40, 1 << 60])
def test_rows_of_a_tensor_without_elements_are_bounded(rows: int) -> None:
    for shape, compress in (([rows, 0], "csr"), ([0, rows], "csc")):
        with Reader(_empty(shape)) as reader:
            assert reader.read("t").shape == tuple(shape)
            with pytest.raises(LimitExceeded) as caught:
                getattr(reader.tensor("t"), compress)()
            assert caught.value.tensor == "t"


_ZEROS = {"name": "t", "dtype": "u8", "shape": [0], "digest": blake3(b"").digest()}
_BOMBS: dict[str, dict[str, Any]] = {
    "empty tensors": {"tensors": [{}] * 100_000},
    "empty files": {"provenance": {"files": [{}] * 100_000}},
    "lengths that are no numbers": {"tensors": [_ZEROS | {"lengths": [""] * 300_000}]},
    "lengths without streams": {"tensors": [_ZEROS | {"lengths": [0] * 300_000}]},
    "a recipe of bytes": {"provenance": {"recipe": {"a": [b""] * 200_000}}},
    "a recipe of maps": {"provenance": {"recipe": {"a": [{}] * 30_000}}},
    "unknown fields": {f"unknown {i}": 0 for i in range(30_000)},
    "metadata that is no text": {"metadata": {str(i): 0 for i in range(50_000)}},
    "aliases to nothing": {"aliases": {str(i): "t" for i in range(400)}},
    "dimensions": {"tensors": [_ZEROS | {"shape": [0] * 300_000}]},
}


@pytest.mark.parametrize("name", _BOMBS)
def test_a_small_file_with_a_large_manifest_takes_no_more_than_it_may(name: str, tmp_path: Path) -> None:
    """The compression of the manifest makes hundreds of thousands of fields of some hundred bytes."""
    manifest = {"version": [1, 0], "producer": "x"} | _BOMBS[name]
    data = take_apart(Draft([], [], {"version": [1, 0], "producer": "x"}, []).build())
    data.content = pack_manifest(manifest)
    file = data.build()
    original = _file("vector empty")
    check(Mutant(name, 0, original, original, file, sealed=True), tmp_path, memory=True)


def test_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = mutate("bytes-flip-bit", 0)
    check(mutant, tmp_path, memory=True)
    monkeypatch.setattr(target, "memory_bound", lambda data: memory_bound(data) // 10_000)
    with pytest.raises(Violation, match="MiB of memory"):
        check(mutant, tmp_path, memory=True)


# What the readers did not agree on


@pytest.mark.parametrize(
    "value",
    [b"\xd4\x05x", b"\xd6\xff\0\0\0\1", b"\xc0", b"\x81\xc4\1a\1", b"\xca\x3f\x80\0\0"],
    ids=["extension", "timestamp", "nil", "key that is bytes", "float of 32 bits"],
)
def test_unknown_fields_hold_only_the_types_of_the_format(value: bytes) -> None:
    """A reader ignores a field that it does not know, but not what the format does not allow anywhere."""
    file = Draft([], [], {"version": [1, 7], "producer": "x"}, [], version=(1, 7))
    file.content = pack_manifest({"version": [1, 7], "producer": "x", "zz": 1})
    Reader(file.build()).close()
    file.content = file.content[:-1] + value
    with pytest.raises(ManifestError):
        Reader(file.build())


def test_the_limit_of_tensors_counts_aliases() -> None:
    one = tensor("t", "u8", [1], Exact(b"1"))
    data = draft([one], aliases={"a": "t", "b": "t"}).build()
    Reader(data, limits=Limits(tensors=3)).close()
    with pytest.raises(LimitExceeded):
        Reader(data, limits=Limits(tensors=2))


def test_errors_hold_no_control_characters_and_are_short() -> None:
    for fields in (
        {"\x1b[31m" * 900: 1},
        {"aliases": {"a": "\x1b[31m" * 900}},
        {"requires": ["\x1b[31m" * 900]},
    ):
        data = Draft([], [], {"version": [1, 0], "producer": "x", **fields}, []).build()
        with pytest.raises(FormatError) as caught:
            Reader(data, limits=DEFAULT_LIMITS)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000


# Whether the target would notice


def _violations(mutators: list[str], tmp_path: Path) -> Iterator[str]:
    for number in range(600):
        for mutator in mutators:
            try:
                check_by_number(mutate(mutator, number), tmp_path)
            except Violation as exc:
                yield str(exc)


def _first_violation(mutators: list[str], tmp_path: Path) -> str:
    return next(_violations(mutators, tmp_path), "none")


def test_wrong_weights_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcz.format.reader.check_digest", lambda *_: None)
    assert any(found.startswith("wrong weights") for found in _violations(["bytes-flip-bit"], tmp_path))


def test_a_missing_check_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = encodings.segment_decoder

    def forget_bools(dtype: str, *rest: Any) -> Any:
        return make("u8" if dtype == "bool" else dtype, *rest)

    monkeypatch.setattr(encodings, "segment_decoder", forget_bools)
    found = _first_violation(["reshaped", "refilled"], tmp_path)
    refused = "only the reference reader refuses it: section {}: a bool is not 0 or 1"
    assert found in (refused.format("5.1"), refused.format("5.5"))


def test_too_strict_a_reader_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CorruptStream("no parameters today")

    monkeypatch.setattr("dcz.format.reader.tensor_decoder", refuse)
    found = _first_violation(["refilled", "symbols"], tmp_path)
    assert found.startswith(("only the native reader refuses it", "the reference reader reads it"))


def test_another_exception_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr("dcz.format.reader.decode_segment", fail)
    with pytest.raises(IndexError):
        check(mutate("symbols", 0), tmp_path)


# The long run


def test_a_process_that_ends_is_noticed_and_started_again() -> None:
    code = """
import os, sys
for i in range(int(sys.argv[1]), int(sys.argv[2])):
    print(f"> stream:{i}", flush=True)
    if i == 3:
        os.abort()
    if i == 5:
        os._exit(1)
    print("same content\\t", flush=True)
"""
    found = list(long.results([sys.executable, "-c", code], 0, 7))
    assert [one.mutant for one in found] == [f"stream:{i}" for i in range(7)]
    assert [one.mutant for one in found if one.outcome == "FAILED"] == ["stream:3", "stream:5"]
    assert "SIGABRT" in found[3].detail


def test_the_long_run_counts_its_mutants(capsys: pytest.CaptureFixture[str]) -> None:
    assert long.main(["--mutations", "40", "--jobs", "1", "--only", "bytes-truncate", "stream"]) == 0
    out = capsys.readouterr().out
    assert "| bytes-truncate | 20 |" in out
    assert "40 mutants, 0 failed" in out


def test_one_mutant_can_be_checked_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert long.main(["--replay", "bytes-truncate:7"]) == 0
    assert "refused TruncatedFile" in capsys.readouterr().out


def test_taken_apart_and_built_again_a_file_is_the_same() -> None:
    for file in seed_files():
        if not file.large:
            rebuilt = take_apart(file.data).build()
            assert verify(rebuilt, deep=True, base=target.find_base).tensors == len(
                file.content.manifest.get("tensors", [])
            )

"""Differences to a base (docs/format.md, sections 3.2 and 5.5): reading and finding the base, and what the writer makes."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.strategies import any_tensors
from tests.format.test_format_round_trips import bits_of, from_bits
from tests.reference.dcz_reference import read
from tests.reference.dcz_reference_writer import Exact, draft, tensor
from tests.vectors.good_deltas import delta_tensor

from dcz.errors import (
    BaseNotFound,
    DigestMismatch,
    EncodingError,
    LimitExceeded,
    ManifestError,
    NotADczFile,
    WrongBase,
)
from dcz.format import (
    DTYPES,
    AffineTensor,
    BaseReference,
    Dense,
    Limits,
    PerTensor,
    Reader,
    TensorBase,
    Writer,
    verify,
)
from dcz.format.encodings import decode_segment
from dcz.format.geometry import TensorGeometry
from dcz.format.manifest import Delta

Operation = Literal["xor", "difference"]
OPERATIONS: tuple[Operation, ...] = ("xor", "difference")
BF16 = np.dtype(ml_dtypes.bfloat16)


def write(path: Path, tensors: dict[str, np.ndarray], base: Path | None = None, **options: Any) -> Path:
    with Writer(path, threads=options.pop("threads", None)) as writer:
        if base is None:
            for name, array in tensors.items():
                writer.add_tensor(name, array)
            return path
        operation = options.pop("operation", "auto")
        with Reader(base, base=options.pop("others", None)) as reader:
            index = writer.add_base(reader.digest, base.name)
            for name, array in tensors.items():
                of_base = TensorBase(reader.read(name), index, operation=operation)
                writer.add_tensor(name, array, base=of_base, **options)
    return path


def stored_delta(reader: Reader, name: str) -> Delta | None:
    return reader.geometry.tensors[name].delta


def delta_of(path: Path, name: str) -> Delta | None:
    with Reader(path) as reader:
        return stored_delta(reader, name)


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(BF16)


def changed(array: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    new = array.copy()
    chosen = random.random(array.shape) < share
    new[chosen] = random.normal(size=int(chosen.sum())).astype(np.float32).astype(array.dtype)
    return new


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A base, a file of differences to it, and what the tensor `w` of the latter is."""
    old = weights((300, 7000))
    new = changed(old, 0.02)
    base = write(tmp_path / "base.dcz", {"w": old, "same": old})
    return base, write(tmp_path / "delta.dcz", {"w": new, "same": old}, base), new


# What is written is read


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_type_x_layout_x_split_x_coding(tmp_path: Path, dtype: str, operation: Operation) -> None:
    if (dtype, operation) == ("bool", "difference"):
        pytest.skip("there is none")
    random, width = np.random.default_rng(2), DTYPES[dtype].itemsize
    old: dict[str, np.ndarray] = {}
    new: dict[str, np.ndarray] = {}
    for shape in ((), (7,), (5, 1, 11), (2, 200)):
        bits = random.integers(0, 2 if dtype == "bool" else 1 << (8 * width), size=shape, dtype=f"u{width}")
        other = random.integers(0, 2 if dtype == "bool" else 1 << (8 * width), size=shape, dtype=f"u{width}")
        for words, share in (("all", 1.0), ("some", 0.1), ("none", 0.0)):
            name = f"{words} {shape}"
            old[name] = from_bits(np.asarray(bits), dtype)
            new[name] = from_bits(np.where(random.random(shape) < share, other, bits), dtype)
    base = write(tmp_path / "base.dcz", old)
    bases = {Reader(base).digest: base.read_bytes()}
    layouts, codings = ("auto", "dense", "relative-index", "bitmap"), ("auto", "raw", "huffman", "zstd")
    for number, (layout, coding) in enumerate(itertools.product(layouts, codings)):
        split = ("auto", "whole", "bytes")[number % 3]
        path = write(
            tmp_path / "delta.dcz",
            new,
            base,
            layout=layout,
            coding=coding,
            split=split,
            operation=operation,
        )
        reference = read(path.read_bytes(), bases=bases)
        verify(path, deep=True, base=base)
        with Reader(path, base=base) as reader:
            for name, expected in new.items():
                assert stored_delta(reader, name) == Delta(operation=operation)
                assert reader.read(name).tobytes() == expected.tobytes()
                assert reference.tensors[name].data == expected.tobytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(any_tensors("t"), st.data())
def test_native_reads_differences_to_any_tensor(one: Any, data: st.DataObject) -> None:
    """The base is anything: quantized, sparse, in other segments. The new elements are anything, too."""
    dtype, shape, width = one.fields["dtype"], one.fields["shape"], DTYPES[one.fields["dtype"]].itemsize
    size = len(one.content)
    if dtype == "bool":
        other = bytes(data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    else:
        other = data.draw(st.binary(min_size=size, max_size=size))
    kept = data.draw(st.lists(st.booleans(), min_size=size // width, max_size=size // width))
    pieces = [(one.content if keep else other)[i * width : (i + 1) * width] for i, keep in enumerate(kept)]
    content = b"".join(pieces)
    base = draft([one]).build()
    identity = read(base).identity
    layouts: list[dict[str, Any]] = [
        {"kind": "dense"},
        {"kind": "bitmap"},
        {"kind": "relative-index", "bits": 2},
    ]
    delta = delta_tensor(
        "new",
        dtype,
        content,
        one.content,
        data.draw(st.sampled_from(["xor"] if dtype == "bool" else OPERATIONS)),
        shape=shape,
        split=data.draw(st.sampled_from(["whole", "bytes"])),
        layout=data.draw(st.sampled_from(layouts)),
        segment=data.draw(st.integers(1, size // width + 2)),
        of="t",
    )
    file = draft([delta], bases=[{"digest": bytes.fromhex(identity.removeprefix("blake3:"))}]).build()
    assert read(file, bases={identity: base}).tensors["new"].data == content
    verify(file, deep=True, base=base)
    elements = len(kept)
    start = data.draw(st.integers(0, elements))
    stop = data.draw(st.integers(start, elements))
    with Reader(file, base=io.BytesIO(base)) as reader:
        assert reader.read("new").tobytes() == content
        assert reader.read_range("new", start, stop).tobytes() == content[start * width : stop * width]


@pytest.mark.parametrize("threads", [1, 3])
def test_all_ways_of_reading(pair: tuple[Path, Path, np.ndarray], threads: int) -> None:
    base, path, new = pair
    with Reader(path, base=base, threads=threads) as reader:
        assert reader.bases == (BaseReference(Reader(base).digest, "base.dcz", str(path)),)
        assert np.array_equal(bits_of(reader.read("w")), bits_of(new))
        lazy = reader.tensor("w")
        assert np.array_equal(bits_of(lazy[17:90, ::3]), bits_of(new[17:90, ::3]))
        assert bits_of(lazy[299, -1:]).tolist() == bits_of(new[299, -1:]).tolist()
        outs = {name: np.empty(new.shape, BF16) for name in ("w", "same")}
        reader.read_into(outs)
        assert np.array_equal(bits_of(outs["w"]), bits_of(new))
        assert np.array_equal(bits_of(outs["same"]), bits_of(weights((300, 7000))))
    assert verify(path, deep=True, base=base, threads=threads).deep


def test_sparse_rows_are_those_of_the_elements(tmp_path: Path) -> None:
    """What is stored are the places that differ; what is wanted are those that are not zero."""
    random = np.random.default_rng(3)
    old = np.where(random.random((200, 4000)) < 0.1, random.normal(size=(200, 4000)), 0).astype(np.float32)
    new = old.copy()
    new[5], new[:, 7] = 0, 1
    base = write(tmp_path / "base.dcz", {"w": old})
    path = write(tmp_path / "delta.dcz", {"w": new}, base)
    assert delta_of(path, "w") is not None
    with Reader(path, base=base) as reader:
        for axis, kind in ((0, "csr"), (1, "csc")):
            made = reader.sparse("w", axis)
            assert made.kind == kind
            assert np.array_equal(made.scipy().toarray(), new)
            assert made.data.size == np.count_nonzero(new)


# The base


def test_everything_else_is_read_without_the_base(tmp_path: Path) -> None:
    old = weights((50, 1000))
    base = write(tmp_path / "base.dcz", {"w": old})
    path = tmp_path / "delta.dcz"
    with Writer(path) as writer, Reader(base) as reader:
        index = writer.add_base(reader.digest)
        writer.add_tensor("w", changed(old, 0.1), base=TensorBase(old, index))
        writer.add_tensor("bias", old[0])
        writer.add_asset("config.json", b"{}")
    assert verify(path).tensors == 2
    with Reader(path) as reader:
        assert reader.read("bias").tobytes() == old[0].tobytes()
        assert reader.read_asset("config.json") == b"{}"
        assert (reader.dtype("w"), reader.shape("w")) == ("bf16", (50, 1000))
        assert reader.tensor("w")[3:3].shape == (0, 1000)
        for use in (
            lambda: reader.read("w"),
            lambda: reader.tensor("w")[0],
            lambda: reader.sparse("w", 0),
            lambda: reader.check_content(),
            lambda: reader.read_into({"bias": np.empty(1000, BF16), "w": np.empty((50, 1000), BF16)}),
        ):
            with pytest.raises(BaseNotFound, match=reader.bases[0].digest) as caught:
                use()
            assert str(path) in str(caught.value)
            assert "base=" in str(caught.value)


def test_another_file_is_not_the_base(pair: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    base, path, new = pair
    other = write(tmp_path / "other.dcz", {"w": new, "same": new})
    for wrong in (other, other.read_bytes(), io.BytesIO(other.read_bytes()), [other], path, Reader(other)):
        with Reader(path, base=wrong) as reader, pytest.raises(WrongBase) as caught:
            reader.read("w")
        assert Reader(base).digest in str(caught.value)
    with Reader(path, base=[other, base]) as reader:
        assert reader.read("w").tobytes() == new.tobytes()
    (tmp_path / "no.dcz").write_bytes(b"no such thing" * 20)
    with Reader(path, base=tmp_path / "no.dcz") as reader, pytest.raises(NotADczFile):
        reader.read("w")
    with Reader(path, base=[base, tmp_path / "missing.dcz"]) as reader:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                reader.read("w")


def test_a_resolver_finds_the_base(pair: tuple[Path, Path, np.ndarray]) -> None:
    base, path, new = pair
    asked: list[BaseReference] = []
    made: list[Reader] = []

    def find(reference: BaseReference) -> Reader:
        asked.append(reference)
        made.append(Reader(base))
        return made[-1]

    with Reader(path, base=find) as reader:
        assert asked == []  # not before it is needed
        reader.read("w")
        reader.read("same")
        assert asked == list(reader.bases)  # and once
    with pytest.raises(Exception, match="closed"):
        made[0].read("w")
    with Reader(path, base=lambda _: None) as reader, pytest.raises(BaseNotFound):
        reader.read("w")
    with Reader(path, base=lambda _: Reader(path)) as reader, pytest.raises(WrongBase):
        reader.read("w")
    with Reader(path, base=[lambda _: None, find]) as reader:
        assert reader.read("w").tobytes() == new.tobytes()


def test_a_reader_that_was_given_stays_open(pair: tuple[Path, Path, np.ndarray]) -> None:
    base, path, _ = pair
    with Reader(base) as of_base:
        with Reader(path, base=of_base) as reader:
            reader.read("w")
        assert of_base.read("w").shape == (300, 7000)


def test_a_damaged_base_is_named(pair: tuple[Path, Path, np.ndarray]) -> None:
    base, path, _ = pair
    data = bytearray(base.read_bytes())
    with Reader(base) as reader:
        data[reader.geometry.chunk_offsets[0] + 5] ^= 1
    base.write_bytes(data)
    with Reader(path, base=base) as reader:
        for use in (lambda: reader.read("w"), lambda: reader.tensor("w")[0], lambda: reader.check_content()):
            with pytest.raises(DigestMismatch) as caught:
                use()
            assert (caught.value.file, caught.value.tensor) == (str(base), "w")


def test_a_base_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    old = tensor("t", "f32", [2], Exact(bytes(8)))
    base = draft([old]).build()
    digest = bytes.fromhex(read(base).identity.removeprefix("blake3:"))
    nothing = draft().build()
    empty = bytes.fromhex(read(nothing).identity.removeprefix("blake3:"))
    new = delta_tensor("new", "f32", bytes(8), bytes(8), "xor")
    file = draft([new], bases=[{"digest": empty}]).build()
    with Reader(file, base=nothing) as reader, pytest.raises(ManifestError, match="has no tensor 'new'"):
        reader.read("new")
    for dtype, shape, of in (("u32", [2], "t"), ("f32", [2, 1], "t"), ("f32", [2], "u")):
        new = delta_tensor("new", dtype, bytes(8), bytes(8), "xor", shape=shape, of=of)
        with Reader(draft([new], bases=[{"digest": digest}]).build(), base=base) as reader:
            with pytest.raises(ManifestError) as caught:
                reader.read("new")
            assert caught.value.tensor == "new"


# Chains


def chain(folder: Path, length: int) -> list[Path]:
    """So many files, each of differences to the one before."""
    array = weights((40, 900))
    paths = [write(folder / "0.dcz", {"w": array})]
    for number in range(1, length):
        array = changed(array, 0.01, seed=number)
        paths.append(write(folder / f"{number}.dcz", {"w": array}, paths[-1], others=paths))
    return paths


def test_a_chain_of_bases_is_followed_and_bounded(tmp_path: Path) -> None:
    paths = chain(tmp_path, 9)
    by_digest = {Reader(path).digest: path for path in paths}

    def find(reference: BaseReference) -> Reader:
        return Reader(by_digest[reference.digest])

    ways: list[Any] = [find, paths, [paths[7], find]]
    with Reader(paths[8], base=find) as reader:
        array = reader.read("w")
    for base in ways:
        with Reader(paths[8], base=base) as reader:  # eight behind each other
            assert reader.read("w").tobytes() == array.tobytes()
            assert reader.tensor("w")[3].tobytes() == array[3].tobytes()
        verify(paths[8], deep=True, base=base)
    data = {digest: path.read_bytes() for digest, path in by_digest.items()}
    assert read(paths[8].read_bytes(), bases=data).tensors["w"].data == array.tobytes()

    limits = Limits(chain=7)
    with Reader(paths[7], base=find, limits=limits) as reader:
        reader.read("w")
    with Reader(paths[8], base=find, limits=limits) as reader:
        with pytest.raises(LimitExceeded, match="more than 7 bases") as caught:
            reader.read("w")
        assert (caught.value.file, caught.value.tensor) == (str(paths[8]), "w")
    # Also where the base was opened, and read, before.
    with Reader(paths[7], base=find, limits=limits) as of_base:
        of_base.read("w")
        with Reader(paths[8], base=of_base, limits=limits) as reader, pytest.raises(LimitExceeded):
            reader.read("w")


def test_the_base_of_a_base_may_be_missing(tmp_path: Path) -> None:
    paths = chain(tmp_path, 3)
    with Reader(paths[2], base=paths[1]) as reader, pytest.raises(BaseNotFound) as caught:
        reader.read("w")
    assert Reader(paths[0]).digest in str(caught.value)
    assert str(paths[1]) in str(caught.value)
    with Reader(paths[2], base=paths[0]) as reader, pytest.raises(WrongBase):
        reader.read("w")
    with Reader(paths[2], base=Reader(paths[1], base=paths[0])) as reader:
        reader.read("w")


def test_segments_of_a_base_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of one element behind a large one would otherwise take hours."""
    old = bytes(range(256)) * 40
    base = draft([tensor("t", "u8", [len(old)], Exact(old), segment=5000)]).build()
    new = bytes(reversed(old))
    digest = bytes.fromhex(read(base).identity.removeprefix("blake3:"))
    delta = delta_tensor("t", "u8", new, old, "xor", segment=7)
    file = draft([delta], bases=[{"digest": digest}]).build()
    decoded: list[int] = []

    def count(geometry: TensorGeometry, decoder: Any, segment: int, *rest: Any, streaming: bool) -> None:
        if geometry.tensor.segment == 5000:
            decoded.append(segment)
        decode_segment(geometry, decoder, segment, *rest, streaming=streaming)

    monkeypatch.setattr("dcz.format.reader.decode_segment", count)
    with Reader(file, base=base, threads=1) as reader:
        assert reader.read("t").tobytes() == new
        assert decoded == [0, 1, 2]
        reader.check_content()
        assert reader.read_range("t", 4998, 5003).tobytes() == new[4998:5003]


# The writer


def size_of(folder: Path, new: np.ndarray, old: np.ndarray | None, **options: Any) -> int:
    base = None if old is None else write(folder / "base.dcz", {"w": old})
    return write(folder / "sized.dcz", {"w": new}, base, **options).stat().st_size


def test_sizes_are_those_of_the_change(tmp_path: Path) -> None:
    old = weights((1000, 2000))
    assert size_of(tmp_path, old, old) < 500
    few = changed(old, 0.01)
    # The entropy of the places, and at most the bits of the new elements.
    entropy = -(0.01 * np.log2(0.01) + 0.99 * np.log2(0.99)) / 8
    assert size_of(tmp_path, few, old) < (entropy + 0.01 * 2) * old.size * 1.05
    noise = np.random.default_rng(5).normal(size=old.shape) * 1e-3
    nearly = (old.astype(np.float64) + noise).astype(BF16)
    ordered = [one.view(np.int16).astype(np.int32) for one in (old, nearly)]
    signed = [np.where(one < 0, -(one & 0x7FFF) - 1, one) for one in ordered]
    counts = np.unique(signed[1] - signed[0], return_counts=True)[1] / old.size
    assert size_of(tmp_path, nearly, old) < -(counts * np.log2(counts)).sum() * old.size / 8 * 1.06


@pytest.mark.parametrize("share", [0.0, 0.003, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (3,), (100,), (300, 300), (700, 900)])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "i32", "u8", "bool"])
def test_a_base_never_makes_a_file_larger(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], share: float
) -> None:
    random = np.random.default_rng(4)
    old = np.asarray(random.normal(size=shape) * 20)
    new = np.where(random.random(shape) < share, random.normal(size=shape) * 20, old)
    arrays = [
        np.asarray(each > 0 if dtype == "bool" else np.abs(each) if dtype == "u8" else each).astype(
            DTYPES[dtype].numpy
        )
        for each in (new, old)
    ]
    assert size_of(tmp_path, arrays[0], arrays[1]) <= size_of(tmp_path, arrays[0], None)


@pytest.mark.parametrize("where", ["one row", "the end", "every tenth row", "a block that became noise"])
def test_a_change_in_few_places_is_found(tmp_path: Path, where: str) -> None:
    old = weights((2000, 768))
    new = old.copy()
    rows: Any = {
        "one row": [1234],
        "the end": slice(1900, None),
        "every tenth row": slice(None, None, 10),
    }.get(where, slice(700, 900))
    new[rows] = weights((2000, 768), seed=9)[rows]
    share = new[rows].size / new.size
    alone = size_of(tmp_path, new, None)
    assert size_of(tmp_path, new, old) < alone * (share * 1.15 + 0.02)


def test_an_unrelated_base_is_not_used(tmp_path: Path) -> None:
    new = weights((500, 700))
    path = write(tmp_path / "a.dcz", {"w": new}, write(tmp_path / "base.dcz", {"w": weights((500, 700), 8)}))
    assert path.read_bytes() == write(tmp_path / "b.dcz", {"w": new}).read_bytes()
    with Reader(path) as reader:
        assert reader.bases == ()


def test_only_bases_that_are_used_are_named(tmp_path: Path) -> None:
    old = weights((100, 100))
    with Writer(tmp_path / "a.dcz") as writer:
        first, second, third = (writer.add_base(f"blake3:{i:064x}", f"hint {i}") for i in range(3))
        writer.add_tensor("other", weights((100, 100), 9), base=TensorBase(old, first))
        writer.add_tensor("w", old, base=TensorBase(old, third, "v"))
        writer.add_tensor("v", old, base=TensorBase(old, second, "v"))
        writer.add_tensor("u", old)
    with Reader(tmp_path / "a.dcz") as reader:
        assert [base.hint for base in reader.bases] == ["hint 1", "hint 2"]
    assert delta_of(tmp_path / "a.dcz", "w") == Delta(base=1, tensor="v", operation="difference")
    assert delta_of(tmp_path / "a.dcz", "v") == Delta(base=0, operation="difference")
    assert delta_of(tmp_path / "a.dcz", "other") is delta_of(tmp_path / "a.dcz", "u") is None


def test_threads_and_memory_order_change_no_byte(tmp_path: Path) -> None:
    old = weights((900, 2100))
    new = changed(old, 0.2)
    base = write(tmp_path / "base.dcz", {"w": old})
    files = [
        write(tmp_path / f"{threads}.dcz", {"w": array}, base, threads=threads).read_bytes()
        for threads, array in ((1, new), (4, new), (2, np.asfortranarray(new)))
    ]
    assert files[0] == files[1] == files[2]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    array = weights((4, 4))
    codes = AffineTensor("bf16", (4, 4), 4, np.zeros(16, np.uint8), np.ones(1, np.float32), PerTensor())
    with Writer(tmp_path / "a.dcz") as writer:
        for digest, hint in (
            ("sha256:" + "0" * 64, None),
            ("blake3:" + "F" * 64, None),
            ("blake3:" + "0" * 64, ""),
        ):
            with pytest.raises(EncodingError, match="not a base"):
                writer.add_base(digest, hint)
        index = writer.add_base("blake3:" + "0" * 64)
        with pytest.raises(EncodingError, match="added already"):
            writer.add_base("blake3:" + "0" * 64, "again")
        for wrong in (
            TensorBase(array, 1),
            TensorBase(array.reshape(16), index),
            TensorBase(array.view(np.uint16), index),
        ):
            with pytest.raises(EncodingError):
                writer.add_tensor("w", array, base=wrong)
        with pytest.raises(EncodingError, match="only exact values"):
            writer.add_tensor("w", codes, base=TensorBase(array, index))
        with pytest.raises(EncodingError, match="rotated"):
            writer.add_tensor("w", array, split="rotated", base=TensorBase(array, index, operation="xor"))
        bits = array.astype(np.float32) > 0
        with pytest.raises(EncodingError, match="bool"):
            writer.add_tensor("w", bits, base=TensorBase(bits, index, operation="difference"))
        for i in range(1, 16):
            writer.add_base(f"blake3:{i:064x}")
        with pytest.raises(EncodingError, match="more than 16"):
            writer.add_base(f"blake3:{16:064x}")
        assert writer.add_tensor("e", array[:0], base=TensorBase(array[:0], index)).layout == Dense()

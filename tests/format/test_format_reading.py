"""Reading by ranges, from every kind of source: what is touched, what comes back, what is said if it is not there."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.format.crafted import BITMAP, DENSE, RELATIVE
from tests.reference.dcz_reference_coders import huffman, raw, zstd_library
from tests.reference.dcz_reference_writer import Exact, draft
from tests.reference.dcz_reference_writer import tensor as reference_tensor

from dcz.errors import DigestMismatch, NotADczFile, TensorNotFound, TruncatedFile, UsageError
from dcz.format import AffineTensor, PerChannel, Reader, Writer

Ranges = list[tuple[int, int]]
TAIL = 64 << 10
HEADER = (0, 16)


class WatchedFile(io.BytesIO):
    """Remembers which bytes were asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: Ranges = []

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.asked.append((start, start + len(data)))
        return data

    def forget(self) -> Ranges:
        asked, self.asked = sorted(self.asked), []
        return asked


ROWS, COLUMNS = 4096, 1024


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two tensors of several segments, each of which has a chunk of its own, and small ones that share a chunk."""
    path = tmp_path_factory.mktemp("large") / "file.dcz"
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
    with Writer(path) as writer:
        writer.add_tensor("bytes", codes, coding="raw")
        for name in "abc":
            writer.add_tensor(name, np.full(100, ord(name)))
        scales = random.random(ROWS).astype(np.float32)
        writer.add_tensor(
            "affine", AffineTensor("f32", codes.shape, 8, codes, scales, PerChannel(axis=0)), coding="raw"
        )
        writer.add_asset("config.json", b"{}" * 50)
    return path.read_bytes()


def chunks_of(reader: Reader, name: str, *segments: int) -> Ranges:
    """Where the chunks are that hold these segments, and the parameters."""
    geometry = reader.geometry
    places = [geometry.segment_place(name, segment) for segment in segments]
    if geometry.tensors[name].parameters:
        places.append(geometry.parameter_place(name))
    starts = {place.chunk: geometry.chunk_offsets[place.chunk] for place in places}
    return sorted((start, start + geometry.chunk_lengths[chunk]) for chunk, start in starts.items())


def test_opening_reads_the_header_and_the_end(large: bytes) -> None:
    file = WatchedFile(large)
    with Reader(file):
        assert file.forget() == [HEADER, (len(large) - TAIL, len(large))]


def test_opening_a_small_file_reads_it_once() -> None:
    file = WatchedFile(draft([reference_tensor("t", "u8", [3], Exact(b"abc"))]).build())
    with Reader(file) as reader:
        assert file.forget() == [(0, reader.size)]


def test_a_manifest_that_is_longer_than_the_end_is_read_whole() -> None:
    text = os.urandom(TAIL // 2).hex()  # the reference writer does not compress it
    file = WatchedFile(
        draft([reference_tensor("t", "u8", [3], Exact(b"abc"))], metadata={"text": text}).build()
    )
    with Reader(file) as reader:
        size, end = reader.size, 16 + 3
        assert file.forget() == [HEADER, (end, size - 64), (size - TAIL, size)]
        assert reader.metadata["text"] == text


@pytest.mark.parametrize("name", ["bytes", "affine"])
def test_a_slice_reads_its_chunks_and_no_others(large: bytes, name: str) -> None:
    with Reader(large) as reader:
        whole = reader.read(name)
    file = WatchedFile(large)
    with Reader(file) as reader:
        file.forget()
        lazy = reader.tensor(name)
        assert file.forget() == []
        segment = lazy._geometry.tensor.segment // COLUMNS  # rows
        for rows, segments in (
            (slice(100, 116), (0,)),
            (segment + 1, (1,)),
            (slice(segment - 1, segment + 1), (0, 1)),
            (slice(-1, None), (ROWS // segment - 1,)),
            (slice(5, 5), ()),
        ):
            with Reader(file) as fresh:
                file.forget()
                np.testing.assert_array_equal(fresh.tensor(name)[rows], whole[rows])
                assert file.forget() == (chunks_of(reader, name, *segments) if segments else [])


def test_a_small_tensor_reads_the_chunk_that_it_shares(large: bytes) -> None:
    file = WatchedFile(large)
    with Reader(file) as reader:
        file.forget()
        assert reader.read("b").tolist() == [ord("b")] * 100
        ((start, stop),) = file.forget()
        assert (start, stop) == chunks_of(reader, "a", 0)[0]
        assert stop - start < 1 << 16
        assert reader.read("c").tolist() == [ord("c")] * 100
        assert file.forget() == []


def test_an_asset_reads_its_chunk(large: bytes) -> None:
    file = WatchedFile(large)
    with Reader(file) as reader:
        file.forget()
        assert reader.read_asset("config.json") == b"{}" * 50
        assert sum(stop - start for start, stop in file.forget()) < 1000


def test_reading_everything_reads_each_chunk_once(large: bytes) -> None:
    file = WatchedFile(large)
    with Reader(file, threads=2) as reader:
        file.forget()
        reader.read("bytes")
        assert file.forget() == chunks_of(reader, "bytes", *range(reader.geometry.tensors["bytes"].segments))


# Sources


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "file.dcz"
    with Writer(path) as writer:
        writer.add_tensor("t", np.arange(5000).reshape(50, 100), coding="raw")
    return path


def check(reader: Reader) -> None:
    with reader:
        np.testing.assert_array_equal(reader.read("t"), np.arange(5000).reshape(50, 100))
        np.testing.assert_array_equal(reader.tensor("t")[7, 5:], np.arange(705, 800))


def test_paths_bytes_and_files_are_read(small: Path) -> None:
    data = small.read_bytes()
    for source in (small, str(small), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        check(Reader(source))
    with small.open("rb") as file:
        check(Reader(file))
        assert not file.closed, "it is the caller's"
        assert Reader(file).name == str(small)


def test_urls_are_read(small: Path) -> None:
    check(Reader(f"file://{small}"))
    with fsspec.open("memory://folder/file.dcz", "wb") as file:
        file.write(small.read_bytes())
    check(Reader("memory://folder/file.dcz"))
    for url in (f"file://{small}x", "memory://folder/nothing.dcz"):
        with pytest.raises(FileNotFoundError):
            Reader(url)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("text " * 100)
    for source in (tmp_path, str(tmp_path), None, 3, [b""], io.StringIO("x")):
        with pytest.raises(UsageError):
            Reader(source)  # type: ignore[arg-type]
    with text.open() as file, pytest.raises(UsageError):
        Reader(file)  # type: ignore[arg-type]
    for missing in (tmp_path / "nothing.dcz", str(tmp_path / "nothing.dcz")):
        with pytest.raises(FileNotFoundError):
            Reader(missing)
    with pytest.raises(NotADczFile):
        Reader(text)


class FewBytesAtOnce(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return super().read(7 if size is None or size > 7 else size)


def test_a_file_object_may_give_fewer_bytes_than_it_was_asked_for(small: Path) -> None:
    check(Reader(FewBytesAtOnce(small.read_bytes())))


def test_a_file_that_changes_while_it_is_open_is_noticed(small: Path) -> None:
    data = small.read_bytes()
    with Reader(small) as reader:
        os.truncate(small, 1000)
        with pytest.raises(TruncatedFile) as caught:
            reader.read("t")
        assert (caught.value.file, caught.value.offset) == (str(small), 1000)
        small.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
        with pytest.raises(DigestMismatch) as wrong:
            reader.read("t")
        assert (wrong.value.file, wrong.value.offset) == (str(small), 64)
        small.write_bytes(data)
        reader.read("t")


def test_a_file_object_that_was_cut_off_is_noticed(small: Path) -> None:
    data = small.read_bytes()
    for length in (0, 1, 8, 79, 80, len(data) - 1):
        with pytest.raises(TruncatedFile):
            Reader(io.BytesIO(data[:length]))
    with pytest.raises(TruncatedFile):
        Reader(data + b"\0")


def test_many_threads_may_share_a_reader(large: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.dcz"
    path.write_bytes(large)
    with Reader(path) as reader, Reader(large) as other:
        names = ("bytes", "affine", "a", "b")
        whole = {name: other.read(name) for name in names}

        def read(number: int) -> bool:
            name, start = names[number % 4], number * 97 % 4000
            return np.array_equal(reader.tensor(name)[start : start + 40], whole[name][start : start + 40])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(200)))


# Into the caller's memory


def test_only_arrays_that_fit_are_filled(small: Path) -> None:
    with Reader(small) as reader:
        bad: list[Any] = [
            np.empty((100, 50), np.int64),
            np.empty(5000, np.int64),
            np.empty((50, 100), np.int32),
            np.empty((50, 100), ">i8"),
            np.asfortranarray(np.empty((50, 100), np.int64)),
            np.empty((50, 200), np.int64)[:, ::2],
            np.frombuffer(bytes(40_000), np.int64).reshape(50, 100),
        ]
        for out in bad:
            with pytest.raises(UsageError, match=r"tensor 't'"):
                reader.read("t", out)
            with pytest.raises(UsageError):
                reader.read_into({"t": out})
        for start, stop in ((-1, 5), (6, 5), (0, 5001)):
            with pytest.raises(UsageError):
                reader.read_range("t", start, stop)
        for name in ("u", "", "T"):
            with pytest.raises(TensorNotFound) as caught:
                reader.read(name)
            assert isinstance(caught.value, KeyError)


# Indexing, as numpy does


@st.composite
def lazy_tensors(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A file with a tensor "t" in small segments, in some layout and coding, and its content."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    content = random.integers(0, 3, shape).astype(np.uint16)
    layout = draw(st.sampled_from([DENSE, BITMAP, RELATIVE]))
    split = draw(st.sampled_from(["whole", "bytes"]))
    if content.size == 0:
        layout, split = DENSE, "whole"
    one = reference_tensor(
        "t",
        "u16",
        list(shape),
        Exact(content.tobytes(), split),
        layout=layout,
        segment=draw(st.integers(1, 9)) if content.size else None,
        coders=draw(st.sampled_from([raw, huffman(packed=True), zstd_library])),
    )
    return draft([one]).build(), content


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Integers, also out of range, slices with any steps, and an ellipsis."""
    items: list[Any] = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        number = (
            st.integers(-size - 1, size)
            if draw(st.integers(0, 9)) == 0
            else st.integers(-size, max(-size, size - 1))
        )
        items.append(draw(number | st.slices(size) | st.just(slice(None)) | number.map(np.int64)))
    if draw(st.integers(0, 19)) == 0:
        items.append(draw(st.integers(-1, 1)))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
    return tuple(items)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_lazy_tensor_is_indexed_as_an_array_is(data: st.DataObject) -> None:
    file, content = data.draw(lazy_tensors())
    index = data.draw(indices(content.shape))
    with Reader(file, threads=1) as reader:
        lazy = reader.tensor("t")
        try:
            expected = content[index]
        except IndexError:
            with pytest.raises(IndexError):
                lazy[index]
            return
        got = lazy[index]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(got, expected)
        if len(index) == 1:
            np.testing.assert_array_equal(lazy[index[0]], expected)


@pytest.mark.parametrize(
    "index",
    [
        None,
        True,
        np.True_,
        1.0,
        "t",
        [0, 1],
        (0, [1]),
        np.array([0, 1]),
        (..., np.array([0])),
        (slice(None), True),
    ],
    ids=repr,
)
def test_other_indices_are_refused(small: Path, index: Any) -> None:
    with Reader(small) as reader, pytest.raises(UsageError, match="integers, slices"):
        reader.tensor("t")[index]


@pytest.mark.parametrize(
    "index", [(..., ...), (0, 0, 0), 50, -51, (0, 100), (slice(None), 100), 10**30], ids=repr
)
def test_indices_out_of_range_are_index_errors(small: Path, index: Any) -> None:
    with Reader(small) as reader, pytest.raises(IndexError):
        reader.tensor("t")[index]


def test_a_lazy_tensor_says_what_it_is(small: Path) -> None:
    with Reader(small) as reader:
        lazy = reader.tensor("t")
        assert (lazy.name, lazy.dtype, lazy.shape, lazy.nbytes, len(lazy)) == (
            "t",
            "i64",
            (50, 100),
            40_000,
            50,
        )
        assert repr(lazy) == "LazyTensor('t', i64, [50, 100])"
        np.testing.assert_array_equal(lazy.numpy(), np.arange(5000).reshape(50, 100))
    with Reader(draft([reference_tensor("s", "u8", [], Exact(b"\7"))]).build()) as reader:
        assert reader.tensor("s")[()] == reader.tensor("s")[...] == 7
        with pytest.raises(TypeError):
            len(reader.tensor("s"))


def test_a_damaged_chunk_names_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "m.dcz"
    large = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    with Writer(path) as writer:
        writer.add_tensor("empty", np.zeros((0, 3)))
        writer.add_tensor("large", large)
        writer.add_tensor("a", large[:100])
        writer.add_tensor("b", large[:100])
        writer.add_asset("notes.txt", b"some notes")
    data = path.read_bytes()

    def damaged(at: int) -> DigestMismatch:
        with pytest.raises(DigestMismatch) as caught, Reader(data[:at] + b"?" + data[at + 1 :]) as reader:
            reader.check_chunks()
        assert caught.value.offset is not None
        assert "fetch it again" in str(caught.value)
        return caught.value

    at = data.index(large.tobytes())
    assert damaged(at).tensor == "large"
    error = damaged(data.index(large[:100].tobytes(), at + 1000))
    assert error.tensor is None
    assert "it holds the tensor 'a' and 2 more" in str(error)


def test_a_closed_reader_and_a_number_of_threads(tmp_path: Path) -> None:
    with Writer(tmp_path / "m.dcz") as writer:
        writer.add_tensor("t", np.ones(3))
    for source in (tmp_path / "m.dcz", (tmp_path / "m.dcz").read_bytes()):
        reader = Reader(source)
        reader.read("t")
        reader.close()
        with pytest.raises(UsageError, match="is closed"):
            reader.read("t")
        for threads in (0, -1):
            with pytest.raises(UsageError, match="at least 1"):
                Reader(source, threads=threads)
    with pytest.raises(UsageError, match="at least 1"):
        Writer(tmp_path / "n.dcz", threads=0)

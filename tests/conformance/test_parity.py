"""Native and reference implementation against each other: each reads what the other writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.strategies import any_tensors, coders
from tests.reference.dcz_reference import read
from tests.reference.dcz_reference_coders import huffman
from tests.reference.dcz_reference_manifest import DTYPES
from tests.reference.dcz_reference_writer import Codebook, asset, draft, tensor

from dcz.format import (
    AffineTensor,
    Bitmap,
    CodebookTensor,
    PerChannel,
    PerGroup,
    PerTensor,
    Reader,
    RelativeIndex,
    Writer,
    verify,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    st.lists(st.integers(0, 9), unique=True, max_size=3).flatmap(
        lambda n: st.tuples(*(any_tensors(str(i)) for i in n))
    ),
    st.binary(max_size=50),
    coders,
)
def test_native_reads_what_the_reference_writes(tensors: tuple[Any, ...], content: bytes, coder: Any) -> None:
    data = draft(tensors, [asset("file", content, coder=coder)]).build()
    reference = read(data)
    assert verify(data, deep=True).digest == reference.identity
    with Reader(io.BytesIO(data)) as reader:
        assert reader.digest == reference.identity
        for one in tensors:
            got = reader.read(one.fields["name"])
            assert (got.tobytes(), list(got.shape)) == (one.content, one.fields["shape"])
        assert reader.read_asset("file") == content


NUMPY_OF = {
    **{
        dtype: np.dtype(f"{dtype[0]}{DTYPES[dtype]}")
        for dtype in DTYPES
        if dtype[0] in "iuf" and "_" not in dtype
    },
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "bool": np.dtype(np.bool_),
}
LAYOUTS: list[Any] = [
    "auto",
    "dense",
    "relative-index",
    "bitmap",
    Bitmap(),
    *(RelativeIndex(bits=b) for b in (1, 4, 8)),
]
Coding = Literal["auto", "raw", "huffman", "zstd", "range"]
CODINGS: list[Coding] = ["auto", "raw", "huffman", "zstd", "range"]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_reference_reads_exact_tensors_of_the_native_writer(
    tmp_path: Path, dtype: str, coding: Coding
) -> None:
    random = np.random.default_rng(3)
    arrays = {}
    for shape in ((), (0, 3), (7,), (5, 1, 11), (2, 700)):
        few = random.integers(0, 3 if dtype == "bool" else 200, size=shape) // (2 if dtype == "bool" else 1)
        array = np.asarray(few % 2 if dtype == "bool" else few).astype(NUMPY_OF[dtype])
        arrays[f"dense {shape}"] = array
        arrays[f"sparse {shape}"] = np.where(random.random(shape) < 0.1, array, np.zeros_like(array))
    path = tmp_path / "file.dcz"
    with Writer(path) as writer:
        for i, layout in enumerate(LAYOUTS):
            for name, array in arrays.items():
                writer.add_tensor(f"{name} {i}", array, layout=layout, coding=coding)
    reference = read(path.read_bytes())
    for i in range(len(LAYOUTS)):
        for name, array in arrays.items():
            got = reference.tensors[f"{name} {i}"]
            assert (got.dtype, got.shape, got.data) == (dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerGroup(size=4)], ids=repr
)
def test_reference_reads_quantized_tensors_of_the_native_writer(
    tmp_path: Path, granularity: PerTensor | PerChannel | PerGroup, coding: Coding
) -> None:
    random = np.random.default_rng(4)
    shape = (6, 10)
    groups = {PerTensor: 1, PerChannel: 6, PerGroup: 18}[type(granularity)]
    if granularity == PerChannel(axis=1):
        groups = 10
    path = tmp_path / "file.dcz"
    with Writer(path) as writer:
        for dtype in ("f32", "f16", "bf16", "f64", "f8_e4m3fn"):
            for mask in (None, random.random(shape) < 0.3):
                # The reference range coder is slow, and a codebook of 8 bits for each group is long.
                for bits in (1, 3, 4 if coding == "range" else 8):
                    codes = random.integers(0, 1 << bits, size=shape).astype(np.uint8)
                    name = f"{dtype} {bits} {mask is None}"
                    scales = random.normal(size=groups).astype(np.float64 if dtype == "f64" else np.float32)
                    points = (
                        random.integers(0, 1 << bits, size=groups).astype(np.uint8) if bits == 3 else None
                    )
                    affine = AffineTensor(dtype, shape, bits, codes, scales, granularity, points, mask)
                    writer.add_tensor(f"affine {name}", affine, coding=coding)
                    centroids = random.normal(size=(groups, 1 << bits)).astype(NUMPY_OF[dtype])
                    codebook = CodebookTensor(dtype, shape, bits, codes, centroids, granularity, mask)
                    writer.add_tensor(f"codebook {name}", codebook, coding=coding)
    reference = read(path.read_bytes())
    with Reader(path) as reader:
        assert reader.digest == reference.identity
        assert len(reference.tensors) == 60
        for name, one in reference.tensors.items():
            assert reader.read(name).tobytes() == one.data


def test_reference_reads_the_rest_of_a_file_of_the_native_writer(tmp_path: Path) -> None:
    path = tmp_path / "file.dcz"
    text = b"A line that comes again and again.\n" * 40_000
    with Writer(path, metadata={"licence": "none"}) as writer:
        writer.add_tensor("weight", np.arange(3000, dtype=np.int32))
        writer.add_alias("tied", "weight")
        writer.add_asset("folder/text.txt", text)
        writer.add_asset("empty", b"")
    reference = read(path.read_bytes())
    assert reference.assets == {"folder/text.txt": text, "empty": b""}
    assert reference.tensors["tied"] == reference.tensors["weight"]
    assert reference.manifest["metadata"] == {"licence": "none"}


def test_blocks_of_every_kind_of_code(tmp_path: Path) -> None:
    """More than a block of symbols, so that kernels meet whole words, tails and the change of a table."""
    random = np.random.default_rng(5)
    for width, count in ((1, 65_535), (4, 65_537), (8, 70_001)):
        symbols = np.minimum(random.geometric(0.4, size=count) - 1, (1 << width) - 1).tolist()
        identity = Codebook(width, 1 << width, symbols, bytes(range(1 << width)))
        for packed in (False, True):
            one = tensor("t", "u8", [count], identity, coders=huffman(packed=packed))
            with Reader(draft([one]).build()) as reader:
                assert reader.read("t").tobytes() == bytes(symbols)
    path = tmp_path / "file.dcz"
    array = random.normal(size=70_001).astype(np.float32).astype(ml_dtypes.bfloat16)
    with Writer(path) as writer:
        writer.add_tensor("t", array, coding="huffman")
    assert read(path.read_bytes()).tensors["t"].data == array.tobytes()

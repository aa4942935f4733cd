"""What quantized checkpoints of other formats hold, through files: every kind with every granularity, layout and coding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.reference.dcz_reference import read

from dcz.errors import EncodingError, LimitExceeded
from dcz.format import (
    AffineParameters,
    AffineTensor,
    CodebookParameters,
    CodedTensor,
    Indexed,
    Limits,
    PerChannel,
    PerFlat,
    PerGroup,
    PerTensor,
    Reader,
    ScaledCodebookTensor,
    UniformTensor,
    VectorCodebookTensor,
    Writer,
    decoded,
    verify,
)
from dcz.format.dtypes import DTYPES
from dcz.format.layers import layer_table
from dcz.format.paper import paper_table
from dcz.format.report import account
from dcz.format.tensors import GranularityLike, ParameterValues, group_count

SHAPE = (6, 40)
INDEX = Indexed((np.arange(40) * 7 % 5).astype(np.uint16))
GRANULARITIES: list[GranularityLike] = [
    PerTensor(),
    PerChannel(axis=0),
    PerGroup(size=16),
    PerFlat(size=64),
    INDEX,
]
ONE: Any = np.ones(1, np.float32)
CODES = np.zeros(4, np.uint8)


def coded(random: np.random.Generator, groups: int, kind: str) -> ParameterValues:
    codes = random.integers(0, 50, groups, dtype=np.uint8)
    if kind == "exact":
        return random.normal(size=groups).astype(np.float16)
    if kind == "affine":
        return AffineParameters(codes, 6, random.normal(size=-(-groups // 4)).astype(np.float16), 4, 20)
    table, outer = random.normal(size=50).astype(np.float32), random.normal(size=-(-groups // 7))
    return CodebookParameters(codes, 8, table, outer.astype(np.float32), 7, 0.5 if groups > 5 else None)


def tensors() -> Iterator[tuple[str, CodedTensor]]:
    random = np.random.default_rng(3)
    for dtype in ("f32", "bf16", "f16", "f8_e4m3fn"):
        for granularity in GRANULARITIES:
            groups = group_count(granularity, SHAPE)
            for kind in ("exact", "affine", "codebook"):
                mask = random.random(SHAPE) < 0.4 if kind == "affine" else None
                codes = random.integers(0, 16, SHAPE, dtype=np.uint8)
                name = f"{dtype} {type(granularity).__name__} {kind}"
                zero = random.integers(0, 17, groups).astype(np.uint8) if kind == "exact" else 0
                scales, minimums = coded(random, groups, kind), coded(random, groups, kind)
                affine = AffineTensor(dtype, SHAPE, 4, codes, scales, granularity, zero, mask, minimums)
                yield f"affine {name}", affine
                table = random.normal(size=16).astype(np.float32)
                book = ScaledCodebookTensor(dtype, SHAPE, 4, codes, table, scales, granularity, mask)
                yield f"scaled {name}", book
    for dtype in ("f32", "i16", "bool"):
        for d, per_place in ((1, False), (2, True), (5, False), (40, True)):
            words = random.integers(0, 2, (40 // d if per_place else 1, 9, d)).astype(DTYPES[dtype].numpy)
            codes = random.integers(0, 9, 240 // d, dtype=np.uint8)
            yield f"vectors {dtype} {d}", VectorCodebookTensor(dtype, SHAPE, 4, codes, words, per_place)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantized") / "model.dcz"
    codings: list[Any] = ["auto", "raw", "huffman", "zstd"]
    with Writer(place) as writer:
        for i, (name, tensor) in enumerate(tensors()):
            writer.add_tensor(name, tensor, coding=codings[i % 4])
    return place


def test_all_comes_back(path: Path) -> None:
    reference = read(path.read_bytes())
    verify(path, deep=True)
    with Reader(path) as reader:
        for name, tensor in tensors():
            expected = decoded(tensor)
            assert reader.read(name).tobytes() == expected.tobytes() == reference.tensors[name].data
            rows = reader.tensor(name)[1:4]
            assert rows.tobytes() == expected[1:4].tobytes()
        assert reader.manifest.version == (1, 1)


def test_parts_of_a_tensor_of_many_segments(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    shape = (700, 1002)
    codes = random.integers(0, 16, shape, dtype=np.uint8)
    groups = group_count(PerFlat(size=64), shape)
    scaled = ScaledCodebookTensor(
        "bf16",
        shape,
        4,
        codes,
        np.arange(16, dtype=np.float32),
        coded(random, groups, "affine"),
        PerFlat(size=64),
    )
    words = random.normal(size=(334, 16, 3)).astype(np.float32)
    vectors = VectorCodebookTensor("f32", shape, 4, codes.reshape(-1)[: 700 * 334], words, per_place=True)
    path = tmp_path / "m.dcz"
    with Writer(path) as writer:
        writer.add_tensor("scaled", scaled)
        writer.add_tensor("vectors", vectors)
    with Reader(path) as reader:
        assert all(geometry.segments > 1 for geometry in reader.geometry.tensors.values())
        for name, tensor in (("scaled", scaled), ("vectors", vectors)):
            expected = decoded(tensor)
            assert reader.read(name).tobytes() == expected.tobytes()
            part = reader.read_range(name, 262_100, 350_000)
            assert part.tobytes() == expected.reshape(-1)[262_100:350_000].tobytes()


def test_range_coding(tmp_path: Path) -> None:
    some = [pair for pair in tensors() if pair[0].split()[1] in ("bf16", "i16")]
    path = tmp_path / "m.dcz"
    with Writer(path) as writer:
        for name, tensor in some:
            writer.add_tensor(name, tensor, coding="range")
    with Reader(path) as reader:
        for name, tensor in some:
            assert reader.read(name).tobytes() == decoded(tensor).tobytes()


@pytest.mark.parametrize(
    ("zero", "requires"), [(None, ()), (8, ()), (0, ("zero-points",)), (15, ()), (16, ("zero-points",))]
)
def test_what_needs_nothing_new_is_of_version_1_0(
    tmp_path: Path, zero: int | None, requires: tuple[str, ...]
) -> None:
    """Also where it is said in a new way: the zero point for all that is the default; 15 and 16 are given for each group."""
    points = np.array([zero], np.uint8) if zero in (15, 16) else zero
    tensor = AffineTensor("f32", (4,), 4, CODES, ONE, PerTensor(), points)
    with Writer(tmp_path / "m.dcz") as writer:
        writer.add_tensor("t", tensor)
    data = (tmp_path / "m.dcz").read_bytes()
    with Reader(data) as reader:
        assert reader.manifest.requires == requires
        assert reader.manifest.version == (1, 1 if requires else 0)
        assert data[8:12] == bytes([1, 0, 1 if requires else 0, 0])
        assert reader.read("t").tobytes() == decoded(tensor).tobytes()


def test_reports_know_every_kind(path: Path) -> None:
    with Reader(path) as reader:
        report, table = account(reader), layer_table(reader)
        assert report.bytes.total == table.parts.total == path.stat().st_size
        words = {tensor.name: tensor.stored_as for tensor in report.tensors}
        assert (
            "affine (4 bits, groups of 64 across rows, scales of 6 bits, minimums of 6 bits)"
            in (words["affine f32 PerFlat affine"])
        )
        assert "scaled-codebook (16 shared, 5 groups by an index)" in words["scaled f32 Indexed exact"]
        assert "vectors (9 shared, 5 at a time)" in words["vectors f32 5"]
        by_name = {layer.name: layer.counts for layer in table.layers}
        assert by_name["vectors f32 5"].weight_bits == pytest.approx(4 / 5)
        assert by_name["affine f32 PerGroup codebook"].weight_bits == 4
        paper = paper_table(reader, 5)
        assert sum(name.startswith("vectors") for name in paper.left_out) == len(paper.left_out) == 12


def test_decoded_scales_count_against_the_limit(path: Path) -> None:
    """18 groups of 6 bits take 14 bytes and an f16 for each 4 of them, and the scales 4 bytes each in memory."""
    random = np.random.default_rng(5)
    tensor = AffineTensor(
        "f32", SHAPE, 4, np.zeros(240, np.uint8), coded(random, 18, "affine"), PerGroup(size=16)
    )
    place = path.parent / "limit.dcz"
    with Writer(place) as writer:
        writer.add_tensor("t", tensor)
    needed = 14 + 10 + 4 * 18
    Reader(place, limits=Limits(parameter_bytes=needed)).close()
    with pytest.raises(LimitExceeded, match="parameters"):
        Reader(place, limits=Limits(parameter_bytes=needed - 1))


NAN = np.array([np.nan], np.float32)
FOUR = ("f32", (4,), 4, CODES)


FAULTS: list[Any] = [
    lambda: AffineTensor(*FOUR, ONE, PerTensor(), 256),
    lambda: AffineTensor(*FOUR, ONE, PerTensor(), -1),
    lambda: AffineTensor(*FOUR, ONE, PerTensor(), minimums=NAN),
    lambda: AffineTensor(*FOUR, ONE, PerTensor(), minimums=ONE.astype(np.float16)),
    lambda: AffineTensor(*FOUR, ONE, PerTensor(), minimums=np.ones(2, np.float32)),
    lambda: AffineTensor(*FOUR, AffineParameters(CODES, 4, ONE, 4), PerTensor()),
    lambda: AffineTensor("f64", (4,), 4, CODES, AffineParameters(CODES[:1], 4, ONE, 4), PerTensor()),
    lambda: AffineTensor(*FOUR, ONE, Indexed(np.zeros(3, np.uint16))),
    lambda: AffineParameters(CODES + 16, 4, ONE, 4),
    lambda: AffineParameters(CODES, 9, ONE, 4),
    lambda: AffineParameters(CODES, 4, ONE, 0),
    lambda: AffineParameters(CODES, 4, ONE, 3),
    lambda: AffineParameters(CODES, 4, NAN, 4, 1),
    lambda: AffineParameters(CODES, 4, np.array([3e38], np.float32), 4, 255),
    lambda: AffineParameters(CODES, 4, ONE.astype(np.float64), 4),
    lambda: CodebookParameters(CODES + 2, 4, np.array([1, 2], np.float32), ONE, 4),
    lambda: CodebookParameters(CODES, 4, np.array([1, 2], np.float64), ONE, 4),
    lambda: CodebookParameters(CODES, 4, NAN, ONE, 4),
    lambda: CodebookParameters(CODES, 4, ONE, ONE, 4, float("nan")),
    lambda: CodebookParameters(CODES, 4, ONE, ONE, 4, 0.1),
    lambda: CodebookParameters(CODES, 4, np.array([3e38], np.float32), ONE, 4, float(np.float32(3e38))),
    lambda: Indexed(np.zeros(3, np.int64)),
    lambda: Indexed(np.zeros(0, np.uint16)),
    lambda: Indexed(np.full(3, 4, np.uint16), groups=4),
    lambda: ScaledCodebookTensor(*FOUR, np.ones(17, np.float32), ONE, PerTensor()),
    lambda: ScaledCodebookTensor(*FOUR, NAN, ONE, PerTensor()),
    lambda: ScaledCodebookTensor(*FOUR, ONE.astype(np.float16), ONE, PerTensor()),
    lambda: ScaledCodebookTensor("i8", (4,), 4, CODES, ONE, ONE, PerTensor()),
    lambda: VectorCodebookTensor("f32", (4,), 4, CODES, np.ones((1, 2, 3), np.float32)),
    lambda: VectorCodebookTensor("f32", (4,), 1, CODES, np.ones((1, 3, 1), np.float32)),
    lambda: VectorCodebookTensor("f32", (4,), 4, CODES, np.ones((1, 2, 2), np.float32)),
    lambda: VectorCodebookTensor("f32", (4,), 4, CODES, np.ones((2, 2, 1), np.float32)),
    lambda: VectorCodebookTensor("f32", (4,), 4, CODES, np.ones((1, 2, 1), ml_dtypes.bfloat16)),
]


@pytest.mark.parametrize("make", FAULTS, ids=[str(i) for i in range(len(FAULTS))])
def test_parts_that_do_not_fit(make: Any) -> None:
    with pytest.raises(EncodingError):
        make()


def test_codes_without_a_value(tmp_path: Path) -> None:
    three = np.array([1, 2, 3], np.float32)
    for tensor in (
        ScaledCodebookTensor("f32", (4,), 4, CODES + 3, three, ONE, PerTensor()),
        VectorCodebookTensor("f32", (4,), 4, CODES + 3, three.reshape(1, 3, 1)),
    ):
        with pytest.raises(EncodingError, match="no value"):
            decoded(tensor)
        with pytest.raises(EncodingError, match="above"), Writer(tmp_path / "m.dcz") as writer:
            writer.add_tensor("t", tensor)


def test_parameters_outlive_the_chunk_that_they_stood_in(tmp_path: Path) -> None:
    """They are in a chunk of their own, whose memory the chunks of codes get next."""
    random, shape = np.random.default_rng(5), (512, 4096)
    tensor = UniformTensor(
        dtype="f32",
        shape=shape,
        bits=8,
        codes=random.integers(0, 256, shape, dtype=np.uint8),
        scales=random.random(shape[0] * 64).astype(np.float32),
        granularity=PerGroup(size=64),
        zero_points=random.integers(0, 256, shape[0] * 64).astype(np.uint8),
    )
    with Writer(tmp_path / "m.dcz") as writer:
        writer.add_tensor("w", tensor, coding="raw")
    with Reader(tmp_path / "m.dcz", threads=1) as reader:
        np.testing.assert_array_equal(reader.read("w"), decoded(tensor))

"""How exact tensors are stored: as small as what they hold, bit for bit, and never larger than they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.dcz_reference import read

from dcz.format import Reader, Writer, verify
from dcz.format.dtypes import DTYPES
from dcz.format.effort import EFFORTS, EffortName
from dcz.format.manifest import Affine, Codebook, Dense, Exact, PerChannel, PerGroup, PerTensor, Tensor
from dcz.format.report import account

BF16 = np.dtype(ml_dtypes.bfloat16)
RANDOM = np.random.default_rng(20)


def normal(*shape: int, scale: float = 0.03) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def write(folder: Path, array: np.ndarray, **how: Any) -> tuple[int, Tensor]:
    """The size of a file with this tensor alone, and how it was stored; what comes back has the same bits."""
    path = folder / "one.dcz"
    with Writer(path, **{key: how.pop(key) for key in ("effort",) if key in how}) as writer:
        entry = writer.add_tensor("t", array, **how)
    with Reader(path) as reader:
        back = reader.read("t")
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    verify(path, deep=True)
    return path.stat().st_size, entry


def test_narrower_floats_take_the_space_of_their_own_type(tmp_path: Path) -> None:
    weights = normal(512, 300)
    for narrow, wide, name in (
        (np.dtype(np.float16), np.float32, "f16"),
        (BF16, np.float32, "bf16"),
        (np.dtype(np.float32), np.float64, "f32"),
    ):
        original, _ = write(tmp_path, weights.astype(narrow))
        size, entry = write(tmp_path, weights.astype(narrow).astype(wide))
        assert isinstance(entry.values, Exact)
        assert entry.values.stored_dtype == name
        assert size <= 1.0005 * original + 64  # segments are cut by the bytes of the wide elements


@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_narrow_values_keep_every_bit(tmp_path: Path, wide: type[np.floating[Any]]) -> None:
    """All numbers of a narrow type, with both zeros, subnormals and infinities, and the NaNs that it has."""
    if wide is np.float32:
        every = np.arange(1 << 16, dtype=np.uint16)
        halves, brains = every.view(np.float16), every.astype(np.uint32) << 16
        # As bits: numpy's conversion makes signalling NaNs quiet.
        is_nan = (every & 0x7C00 == 0x7C00) & (every & 0x3FF != 0)
        bits = halves.astype(np.float32).view(np.uint32)
        sign, mantissa = (every.astype(np.uint32) & 0x8000) << 16, every.astype(np.uint32) & 0x3FF
        bits = np.where(is_nan, sign | 0x7F800000 | mantissa << 13, bits)
        cases = [bits.view(np.float32), brains.view(np.float32)]
    else:
        few = normal(3000)
        edges = np.array([0x80000000, 0, 1, 0x807FFFFF, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
        cases = [np.concatenate([few, edges]).astype(np.float64)]
    for case in cases:
        _, entry = write(tmp_path, case)
        assert isinstance(entry.values, Exact)
        assert entry.values.stored_dtype is not None
        assert read((tmp_path / "one.dcz").read_bytes()).tensors["t"].data == case.tobytes()


def test_one_element_that_does_not_fit_is_kept(tmp_path: Path) -> None:
    weights = normal(700, 300).astype(np.float16).astype(np.float32)
    for odd in (0x3F800001, 0x7F800001, 0x00000001, 0x477FF000):  # too precise, a NaN, too small, too large
        changed = weights.copy()
        changed.view(np.uint32)[691, 7] = odd
        _, entry = write(tmp_path, changed)
        assert isinstance(entry.values, Exact)
        assert entry.values.stored_dtype is None


@pytest.mark.parametrize(
    "dtype", [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BF16], ids=str
)
def test_few_values_become_a_codebook(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    for size in (1, 2, 16, 200, 256):
        values = np.unique(normal(4000).astype(dtype))[:size]
        array = values[RANDOM.integers(0, size, (300, 250))]
        total, entry = write(tmp_path, array)
        assert isinstance(entry.values, Codebook | Affine)
        bits = max(1, (size - 1).bit_length())
        assert total <= array.size * bits / 8 + values.nbytes + 500


def test_a_codebook_keeps_zeros_nans_and_subnormals_apart(tmp_path: Path) -> None:
    bits = [0, 1 << 31, 1, 0x80000001, 0x7FC00001, 0x7FC00002, 0xFFC00001, 0x7F800001, 0x7F800000, 0x3F800001]
    array = np.array(bits, np.uint32)[RANDOM.integers(0, len(bits), 5000)].view(np.float32)
    _, entry = write(tmp_path, array)
    assert isinstance(entry.values, Codebook)
    assert entry.values.size == len(bits)
    assert read((tmp_path / "one.dcz").read_bytes()).tensors["t"].data == array.tobytes()


def test_integers_with_few_values_become_a_codebook(tmp_path: Path) -> None:
    array = RANDOM.integers(-5, 6, (40, 500)) * 1_000_003
    _, entry = write(tmp_path, array)
    assert isinstance(entry.values, Codebook)
    assert entry.values.size == 11


SCALES = {
    "tensor": (PerTensor(), (1, 1)),
    "row": (PerChannel(axis=0), (256, 1)),
    "group": (PerGroup(size=128), (256, 4)),
    "small group": (PerGroup(size=32), (256, 16)),
}


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize("groups", SCALES)
@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_quantizer_made_takes_the_space_of_its_codes(
    tmp_path: Path, dtype: np.dtype[Any], groups: str, bits: int
) -> None:
    granularity, shape = SCALES[groups]
    most = (1 << (bits - 1)) - 1
    for scale_dtype, shift in ((np.float32, 0), (np.float16, 0), (np.float32, 2)):
        codes = np.clip(np.rint(RANDOM.standard_normal((256, 512)) * most / 3), -most, most - shift) + shift
        scales = (RANDOM.random(shape) * 0.01 + 0.002).astype(scale_dtype).astype(np.float32)
        spread = np.repeat(scales, 512 // shape[1], axis=1)
        weights = (spread * codes.astype(np.float32)).astype(dtype)
        size, entry = write(tmp_path, weights)
        if groups == "tensor":
            assert isinstance(entry.values, Affine | Codebook)
        else:
            assert isinstance(entry.values, Affine)
            assert entry.values.granularity == granularity
        narrow, _ = write(tmp_path, codes.astype(np.int8))
        parameters = scales.size * (scale_dtype().itemsize + (shift > 0)) + (
            1024 if groups == "tensor" else 0
        )
        assert size <= 1.005 * narrow + parameters + 300


def test_a_quantized_tensor_with_one_other_element_stays_exact(tmp_path: Path) -> None:
    codes = RANDOM.integers(-127, 128, (256, 512)).astype(np.float32)
    scales = (RANDOM.random((256, 1)) * 0.01).astype(np.float32)
    for odd in (np.float32("nan"), np.float32("-0.0"), np.float32("inf"), np.float32(1e-30)):
        weights = scales * codes
        weights[200, 3] = odd
        _, entry = write(tmp_path, weights)
        assert isinstance(entry.values, Exact)


def test_pruned_and_shared_weights_come_out_like_deep_compression(tmp_path: Path) -> None:
    """The float32 file of a pruned network with shared weights is as small as its positions and codes."""
    from dcz.format.tensors import CodebookTensor

    for density in (0.02, 0.1, 0.3):
        mask = RANDOM.random((300, 1000)) < density
        codes = np.minimum(RANDOM.geometric(0.2, mask.shape) - 1, 31).astype(np.uint8)
        centroids = np.sort(normal(1, 32))
        ideal = CodebookTensor("f32", mask.shape, 5, codes, centroids, PerTensor(), mask)
        path = tmp_path / "ideal.dcz"
        with Writer(path) as writer:
            writer.add_tensor("t", ideal)
        with Reader(path) as reader:
            dense = reader.read("t")
        size, entry = write(tmp_path, dense)
        assert entry.layout != Dense()
        assert isinstance(entry.values, Codebook)
        assert size <= path.stat().st_size + 16


def test_sparse_floats_keep_negative_zeros(tmp_path: Path) -> None:
    array = np.where(RANDOM.random((200, 1000)) < 0.1, normal(200, 1000), np.float32(0))
    array[5, :10] = np.float32("-0.0")
    size, entry = write(tmp_path, array)
    assert entry.layout != Dense()
    assert size < 0.13 * array.nbytes


def test_an_offset_is_found_for_uniform_weights(tmp_path: Path) -> None:
    """Weights as PyTorch initializes layers: uniform up to a bound that is no power of two."""
    weights = RANDOM.uniform(-0.0447, 0.0447, (1000, 500)).astype(np.float32).astype(BF16)
    size, entry = write(tmp_path, weights)
    assert isinstance(entry.values, Exact)
    assert entry.values.offset > 0
    plain, _ = write(tmp_path, weights, split="rotated")
    assert size < 0.985 * plain
    assert read((tmp_path / "one.dcz").read_bytes()).tensors["t"].data == weights.tobytes()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Tensors that are hard on the choices: random bytes, few values, runs, narrow values, anything sparse."""
    dtype = DTYPES[draw(st.sampled_from([name for name in DTYPES if name != "bool"]))].numpy
    shape = draw(st.sampled_from([(), (1,), (7,), (300,), (3, 5), (17, 33), (64, 64), (3, 9000), (200_000,)]))
    random = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    count = int(np.prod(shape, dtype=int))
    raw = np.frombuffer(random.bytes(count * dtype.itemsize), np.uint8)
    kind = draw(st.sampled_from(["bytes", "few", "runs", "normal", "low bits", "mostly dense"]))
    if kind == "few":
        few = raw[: 8 * dtype.itemsize].view(dtype)
        out = few[random.integers(0, few.size, count)]
    elif kind == "normal":
        out = random.standard_normal(count).astype(np.float32).astype(dtype)
    else:
        whole = raw.reshape(count, dtype.itemsize).copy()
        if kind == "runs":
            whole = np.repeat(whole[: count // 50 + 1], 50, axis=0)[:count]
        elif kind == "low bits":
            whole[:, : dtype.itemsize // 2] = 0
        out = np.ascontiguousarray(whole).reshape(-1).view(dtype)
    if draw(st.booleans()):
        kept = random.random(count) < draw(st.sampled_from([0.01, 0.3, 0.9]))
        out = np.where(kept, out, np.zeros(1, dtype)).astype(dtype)
    return out.reshape(shape)


@settings(max_examples=150, deadline=None)
@given(arrays(), st.sampled_from(sorted(EFFORTS)))
def test_no_tensor_takes_more_than_it_is(
    tmp_path_factory: Any, array: np.ndarray, effort: EffortName
) -> None:
    """But for what the file says of it: with nothing to gain, its bytes stand in the file as they are."""
    folder = tmp_path_factory.mktemp("sizes", numbered=True)
    path = folder / "one.dcz"
    with Writer(path, effort=effort) as writer:
        entry = writer.add_tensor("t", array)
    with Reader(path) as reader:
        assert reader.read("t").tobytes() == array.tobytes()
    assert sum(entry.lengths) <= array.nbytes


def test_efforts_trade_size_for_speed(tmp_path: Path) -> None:
    """A plane of little structure: not worth its decoding to ``fast``, but to ``small``."""
    low = np.clip(RANDOM.normal(128, 50, (600, 500)), 0, 255).astype(np.uint32)  # 7.65 bits in 8
    bits = RANDOM.integers(0, 1 << 24, low.shape).astype(np.uint32) << 8 | low
    array = (bits & 0x007FFFFF | 0x3F000000).view(np.float32)
    sizes = {effort: write(tmp_path, array, effort=effort)[0] for effort in EFFORTS}
    assert sizes["small"] < sizes["fast"]
    assert sizes["small"] <= sizes["balanced"] <= sizes["fast"]
    text = np.frombuffer(b"".join(b"%d bottles of beer, " % i for i in range(9000)), np.uint8)
    sizes = {effort: write(tmp_path, text, effort=effort)[0] for effort in EFFORTS}
    assert sizes["small"] < sizes["balanced"]


def codings_of(folder: Path, array: np.ndarray, effort: str) -> tuple[int, set[str]]:
    size, _ = write(folder, array, effort=effort)
    with Reader(folder / "one.dcz") as reader:
        return size, set(account(reader).tensors[0].codings)


def test_fast_takes_cascades_where_they_decode_faster(tmp_path: Path) -> None:
    weights = normal(400, 500).astype(BF16)
    sizes = {effort: codings_of(tmp_path, weights, effort) for effort in EFFORTS}
    assert sizes["fast"][1] == {"raw", "cascade"}
    assert sizes["balanced"][1] == {"raw", "huffman"}
    assert "cascade" not in sizes["small"][1]
    assert sizes["balanced"][0] < sizes["fast"][0] < 1.003 * sizes["balanced"][0]
    # A long tail: levels of fixed width take a sixth more than a Huffman code.
    tail = np.minimum(RANDOM.zipf(1.2, 300_000), 255).astype(np.uint8)
    assert codings_of(tmp_path, tail, "fast")[1] == {"huffman"}
    # Exponents with two bits of the mantissa: not by as much, but by more than speed is worth to anybody.
    halves = {effort: codings_of(tmp_path, normal(400, 500).astype(np.float16), effort) for effort in EFFORTS}
    assert halves["fast"][1] == {"raw", "huffman"}
    assert halves["fast"][0] < 1.002 * halves["balanced"][0]


def test_an_unknown_effort_is_refused(tmp_path: Path) -> None:
    from dcz.errors import UsageError

    for wrong in ("Fast", "", None, 3):
        with pytest.raises(UsageError, match="is not an effort"):
            Writer(tmp_path / "x.dcz", effort=wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []

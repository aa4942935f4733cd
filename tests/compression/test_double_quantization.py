"""Scales that are codes: against all codes tried, and the arithmetic of docs/format.md, section 5.6, written down once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compression.oracles import group_numbers

from dcz.compression.quantizers import double_quantize, quantize_affine
from dcz.compression.scales import Scheme, coded_scales
from dcz.compression.tables import levels, quantize_table
from dcz.errors import EncodingError
from dcz.format import PerChannel, PerGroup, Reader, Writer, decoded
from dcz.format.dtypes import DTYPES
from dcz.format.tensors import AffineParameters, AffineTensor, ScaledCodebookTensor

Array = np.ndarray[Any, np.dtype[Any]]


def gaussian(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Array:
    return np.asarray((np.random.default_rng(seed).standard_normal(shape) / 16).astype(DTYPES[dtype].numpy))


def scales_of(parameters: Any) -> Array:
    """Scale i = outer[i div group] x code, rounded to binary32."""
    assert isinstance(parameters, AffineParameters)
    assert parameters.zero_point == 0
    assert parameters.scales.dtype == np.float32
    outer = parameters.scales[np.arange(parameters.codes.size) // parameters.group]
    return np.asarray(outer * parameters.codes.astype(np.float32))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("spread", [0.2, 20.0])
def test_codes_are_those_of_brute_force(bits: int, up: bool, spread: float) -> None:
    """The nearest of all codes, or the least that reaches; 0 for 0 alone; and the largest scale is covered by the last code."""
    random = np.random.default_rng(bits)
    exact = np.exp(spread * random.standard_normal(200)).astype(np.float32).astype(np.float64)
    exact[[3, 77]] = 0
    exact[96:128] = 0
    found = coded_scales(exact, bits=bits, group=32, up=up)
    assert found.scales.shape == (7,)
    assert found.scales[3] == 0
    for i, scale in enumerate(exact):
        outer = found.scales[i // 32]
        every = (outer * np.arange(1, 1 << bits, dtype=np.float32)).astype(np.float64)
        code = int(found.codes[i])
        if scale == 0:
            assert code == 0
        elif up:
            reaching = np.nonzero(every >= scale)[0]
            assert code == (reaching[0] + 1 if reaching.size else (1 << bits) - 1)
            assert every[code - 1] >= scale * (1 - 2**-23)
        else:
            assert abs(every[code - 1] - scale) <= np.abs(every - scale).min() * (1 + 1e-6)
    assert (found.codes.reshape(-1)[:32].max(), found.bits) == ((1 << bits) - 1, bits)


def test_normal_floats_take_what_qlora_says(tmp_path: Path) -> None:
    """0.127 bits a weight for scales of 8 bits in groups of 64, and of these in groups of 256, where 0.5 would be needed
    (Dettmers et al. 2023, section 3); for next to no error."""
    weights = gaussian((512, 1024))
    plain = quantize_table(weights, table="normal-float", granularity=PerGroup(size=64))
    tensor = quantize_table(weights, table="normal-float", granularity=PerGroup(size=64), scale_bits=8)
    with Writer(tmp_path / "m.dcz") as writer:
        entry = writer.add_tensor("t", tensor, coding="raw")
    assert 8 * sum(entry.lengths) == weights.size * (4 + 8 / 64 + 32 / (64 * 256)) + 16 * 32
    with Reader(tmp_path / "m.dcz") as reader:
        found = reader.read("t")
    assert found.tobytes() == decoded(tensor).tobytes()
    errors = [float(np.square(each - weights).mean()) for each in (decoded(plain), found)]
    assert errors[1] <= 1.001 * errors[0]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f8_e4m3fn"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_weight_takes_the_nearest_level(dtype: str, masked: bool) -> None:
    weights = gaussian((12, 50), dtype=dtype)
    mask = np.asarray(np.random.default_rng(1).random(weights.shape) < 0.5) if masked else None
    granularity = PerGroup(size=16)
    tensor = quantize_table(
        weights,
        table="normal-float",
        bits=3,
        granularity=granularity,
        scale_bits=4,
        scale_group=5,
        mask=mask,
    )
    assert isinstance(tensor, ScaledCodebookTensor)
    scales = scales_of(tensor.scales)[group_numbers(weights.shape, granularity)]
    table = levels("normal-float", 3).astype(np.float32)
    every = (scales[..., None] * table).astype(weights.dtype).astype(np.float64)
    exact = weights.astype(np.float64)
    found = decoded(tensor).astype(np.float64)
    kept = np.ones(weights.shape, np.bool_) if mask is None else mask
    distances = np.abs(every - exact[..., None]).min(axis=-1)
    np.testing.assert_array_equal(np.abs(found - exact)[kept], distances[kept])
    assert (found[~kept] == 0).all()


@pytest.mark.parametrize("scheme", ["symmetric", "symmetric-full", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale_bits", [3, 8])
@pytest.mark.parametrize("granularity", [PerGroup(size=16), PerChannel(axis=1)])
def test_uniform_codes_are_within_half_a_step(
    scheme: Scheme, bits: int, scale_bits: int, granularity: Any, tmp_path: Path
) -> None:
    weights = gaussian((12, 50))
    weights[0] = 0
    weights[3, :16] = 1e-6
    tensor = double_quantize(
        weights, bits=bits, scheme=scheme, granularity=granularity, scale_bits=scale_bits, scale_group=7
    )
    groups = group_numbers(weights.shape, granularity)
    steps = scales_of(tensor.scales)[groups]
    points: Any = 1 << (bits - 1)
    if scheme == "asymmetric":
        assert isinstance(tensor.zero_points, np.ndarray)
        points = tensor.zero_points[groups].astype(int)
    codes = tensor.codes.reshape(weights.shape).astype(int) - points
    expected = steps * codes.astype(np.float32)
    found = decoded(tensor)
    np.testing.assert_array_equal(found, expected)
    assert (found[weights == 0] == 0).all()
    error = np.abs(found.astype(np.float64) - weights)
    most = 1.0 if scheme == "symmetric-full" else 0.5 if scheme == "symmetric" else 0.5 + 0.5
    assert (error <= most * steps.astype(np.float64) * (1 + 1e-5)).all()
    with Writer(tmp_path / "m.dcz") as writer:
        writer.add_tensor("t", tensor)
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.read("t").tobytes() == found.tobytes()


def test_scales_of_8_bits_cost_little_and_save_more() -> None:
    weights = gaussian((256, 512))
    chosen: Any = {"bits": 4, "scheme": "asymmetric", "calibration": "mse", "granularity": PerGroup(size=64)}
    plain, coded = quantize_affine(weights, **chosen), double_quantize(weights, **chosen)
    assert type(coded) is AffineTensor
    errors = [float(np.square(decoded(each) - weights).mean()) for each in (plain, coded)]
    assert errors[1] <= 1.01 * errors[0]
    stochastic = [double_quantize(weights, **chosen, rounding="stochastic", seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(stochastic[0].codes, stochastic[1].codes)
    assert (stochastic[0].codes != stochastic[2].codes).any()


def test_what_is_pruned_is_not_stored() -> None:
    weights = gaussian((12, 50))
    mask = np.asarray(np.random.default_rng(1).random(weights.shape) < 0.5)
    tensor = double_quantize(weights, bits=3, granularity=PerGroup(size=16), mask=mask)
    assert tensor.mask is not None
    assert not (tensor.mask & ~mask).any()
    assert (decoded(tensor)[~mask] == 0).all()
    assert (decoded(tensor)[tensor.mask] != 0).all()


def test_what_is_refused() -> None:
    weights = gaussian((4, 64))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"scale_bits": 1}, "scales of 1 bits"),
        ({"scale_bits": 9}, "scales of 9 bits"),
        ({"scale_group": 0}, "0 scales that share"),
        ({"bits": 9}, "codes of 9 bits"),
    ]
    for wrong, message in cases:
        with pytest.raises(EncodingError, match=message):
            double_quantize(weights, **wrong)
    with pytest.raises(EncodingError, match="f64"):
        double_quantize(weights.astype(np.float64))
    with pytest.raises(EncodingError, match="f64"):
        quantize_table(weights.astype(np.float64), table="float", scale_bits=8)
    large = np.full((2, 64), 65504, np.float16)
    large[0] = 50000
    with pytest.raises(EncodingError, match="too near to the largest number of f16"):
        double_quantize(large, granularity=PerChannel(axis=0), scale_bits=2)
    weights[1, 1] = np.nan
    with pytest.raises(EncodingError, match="not finite"):
        double_quantize(weights)

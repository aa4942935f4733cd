"""Uniform quantization against the specification, torch, brute force and closed forms."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any, cast, get_args

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine, group_numbers, steps_of

from dcz.compression import groups as groups_module
from dcz.compression.quantizers import Calibration, ScaleDType, Scheme, affine_parameters, quantize_affine
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor

Array = np.ndarray[Any, np.dtype[Any]]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
FLOATS = [name for name, row in DTYPES.items() if row.is_float]


def gaussian(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Array:
    values = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(values.astype(DTYPES[dtype].numpy))


@st.composite
def granularities(draw: st.DrawFn, shape: tuple[int, ...]) -> Granularity:
    options: list[Granularity] = [PerTensor(), PerGroup(size=draw(st.integers(1, 9)))]
    options += [PerChannel(axis=axis) for axis in range(len(shape))]
    return draw(st.sampled_from(options))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, dict[str, Any]]:
    """Weights of any type and magnitude, and arguments that fit them."""
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    dtype = draw(st.sampled_from(FLOATS))
    scale = draw(st.sampled_from([1e-3, 1.0, 20.0]))
    weights = gaussian(shape, draw(st.integers(0, 9)), "f64") * scale + draw(
        st.sampled_from([0.0, 0.5, -3.0])
    )
    bits = draw(st.integers(1, 8))
    # f16 refuses the scales of weights that are smaller still.
    narrow = ["f16"] if np.abs(weights).min() > 1e-3 else []
    return weights.astype(DTYPES[dtype].numpy), {
        "bits": bits,
        "scheme": draw(st.sampled_from(SCHEMES)) if bits > 1 else "asymmetric",
        "granularity": draw(granularities(shape)),
        "scale_dtype": "f64" if dtype == "f64" else draw(st.sampled_from(["f32", "bf16", *narrow])),
    }


def rounding(values: Array) -> Array:
    """The most that rounding to the type of the values changes them, as float64."""
    limits = ml_dtypes.finfo(values.dtype)  # type: ignore[no-untyped-call]
    magnitudes = np.maximum(np.abs(values.astype(np.float64)), float(limits.smallest_normal))
    return np.asarray(magnitudes * float(limits.eps) / 2)


@given(cases())
def test_the_error_is_at_most_half_a_step(case: tuple[Array, dict[str, Any]]) -> None:
    weights, arguments = case
    tensor = quantize_affine(weights, **arguments)
    steps = steps_of(tensor)
    decoded = decode_affine(tensor)
    assert decoded.dtype == weights.dtype
    error = decoded.astype(np.float64) - weights.astype(np.float64)
    allowed = steps / 2 * (1 + 1e-5) + rounding(decoded)
    if arguments["scheme"] == "symmetric-full":
        # One code is missing on the positive side.
        allowed = np.where(weights > 0, allowed + steps / 2, allowed)
    assert (np.abs(error) <= allowed).all()
    assert (decoded[weights == 0] == 0).all()


@given(cases())
def test_codes_stay_in_their_range_and_order(case: tuple[Array, dict[str, Any]]) -> None:
    weights, arguments = case
    tensor = quantize_affine(weights, **arguments)
    least = 1 if arguments["scheme"] == "symmetric" else 0
    assert least <= tensor.codes.min()
    assert tensor.codes.max() < 1 << arguments["bits"]
    assert (tensor.scales.astype(np.float64) >= 0).all()
    numbers = group_numbers(weights.shape, tensor.granularity)
    for group in range(tensor.scales.size):
        order = np.argsort(weights[numbers == group].astype(np.float64), kind="stable")
        assert (np.diff(tensor.codes[numbers == group][order].astype(int)) >= 0).all()


@given(cases())
def test_any_block_size_gives_the_same_codes(case: tuple[Array, dict[str, Any]]) -> None:
    weights, arguments = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups_module, "BLOCK_ELEMENTS", 5)
        parts = quantize_affine(weights, **arguments)
    whole = quantize_affine(weights, **arguments)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.scales, parts.scales)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_torch_gives_the_same_codes_per_channel(axis: int) -> None:
    weights = gaussian((24, 33, 40), seed=1)
    tensor = quantize_affine(weights, scheme="asymmetric", granularity=PerChannel(axis=axis))
    assert tensor.zero_points is not None
    codes = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weights),
        torch.from_numpy(tensor.scales),
        torch.from_numpy(tensor.zero_points.astype(np.int32)),
        axis,
        0,
        255,
    )
    differing = np.count_nonzero(codes.numpy() != decode_affine(tensor))
    assert differing <= 3  # torch multiplies by the reciprocal: another code at some ties


@pytest.mark.parametrize("bits", range(2, 9))
def test_torch_gives_the_same_values_symmetrically(bits: int) -> None:
    weights = gaussian((64, 300), seed=bits)
    tensor = quantize_affine(weights, bits=bits, granularity=PerChannel(axis=0))
    most = (1 << (bits - 1)) - 1
    scales = torch.from_numpy(weights).abs().amax(dim=1) / most
    np.testing.assert_allclose(tensor.scales, scales.numpy(), rtol=1.3e-7)
    expected = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weights),
        torch.from_numpy(tensor.scales),
        torch.zeros(64, dtype=torch.int32),
        0,
        -most,
        most,
    )
    assert np.count_nonzero(expected.numpy() != decode_affine(tensor)) <= 3


def test_the_restricted_range_is_symmetric() -> None:
    weights = np.array([-1.0, -0.3, 0.0, 0.3, 1.0], dtype=np.float32)
    tensor = quantize_affine(weights)
    assert tensor.codes.tolist() == [1, 90, 128, 166, 255]
    assert tensor.zero_points is None


def test_the_full_range_has_one_more_negative_code() -> None:
    weights = np.linspace(-1, 1, 9, dtype=np.float32)
    tensor = quantize_affine(weights, bits=2, scheme="symmetric-full")
    assert tensor.scales[0] == pytest.approx(2 / 3)
    assert tensor.codes.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3]


def test_group_of_a_whole_row_is_a_channel() -> None:
    weights = gaussian((12, 50))
    rows = quantize_affine(weights, bits=4, granularity=PerChannel(axis=0))
    groups = quantize_affine(weights, bits=4, granularity=PerGroup(size=50))
    larger = quantize_affine(weights, bits=4, granularity=PerGroup(size=64))
    for other in (groups, larger):
        np.testing.assert_array_equal(rows.codes, other.codes)
        np.testing.assert_array_equal(rows.scales, other.scales)


def test_finer_granularity_has_a_smaller_error() -> None:
    weights = gaussian((64, 512)) * np.linspace(0.1, 3, 64, dtype=np.float32)[:, None]
    errors = [
        float(
            np.square(
                decode_affine(quantize_affine(weights, bits=4, granularity=granularity)) - weights
            ).mean()
        )
        for granularity in (PerTensor(), PerChannel(axis=0), PerGroup(size=128), PerGroup(size=32))
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_mean_squared_error_of_uniform_weights_is_a_twelfth_of_the_step_squared(bits: int) -> None:
    weights = np.random.default_rng(bits).uniform(-1, 1, 400_000).astype(np.float32)
    tensor = quantize_affine(weights, bits=bits, scheme="asymmetric")
    error = float(np.square(decode_affine(tensor).astype(np.float64) - weights).mean())
    assert error == pytest.approx(float(tensor.scales[0]) ** 2 / 12, rel=0.02)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 0.375, -6.0])
def test_equal_weights_come_back_exactly(dtype: str, scheme: Scheme, value: float) -> None:
    weights = np.full((3, 10), value).astype(DTYPES[dtype].numpy)
    weights[1] = 0
    tensor = quantize_affine(weights, bits=4, scheme=scheme, granularity=PerGroup(size=4))
    np.testing.assert_array_equal(decode_affine(tensor), weights)
    assert (tensor.scales.astype(np.float64)[3:6] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0]])
def test_the_scale_of_zeros_is_the_positive_zero(scheme: Scheme, zeros: list[float]) -> None:
    tensor = quantize_affine(np.array(zeros * 8, dtype=np.float32), scheme=scheme)
    assert tensor.scales.tobytes() == bytes(4)
    assert decode_affine(tensor).tobytes() == bytes(64)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("calibration", get_args(Calibration))
def test_the_smallest_and_the_largest_numbers(dtype: str, scheme: Scheme, calibration: Calibration) -> None:
    row = DTYPES[dtype]
    limits = ml_dtypes.finfo(row.numpy)  # type: ignore[no-untyped-call]
    tiny = np.array([1, -1, 0]).astype(row.numpy) * limits.smallest_subnormal
    tensor = quantize_affine(tiny, scheme=scheme, calibration=calibration)
    np.testing.assert_array_equal(decode_affine(tensor), tiny)
    huge = np.array([1, -1, 0.25, 0]).astype(row.numpy) * limits.max
    for scale_dtype in ("f64",) if dtype == "f64" else ("f32", "bf16"):
        tensor = quantize_affine(
            huge, scheme=scheme, calibration=calibration, scale_dtype=cast("ScaleDType", scale_dtype)
        )
        wanted, decoded = (values.astype(np.float64) / 8 for values in (huge, decode_affine(tensor)))
        np.testing.assert_allclose(decoded, wanted, rtol=0.13 if row.itemsize == 1 else 0.02)


def test_clipping_takes_the_best_ratio_of_each_group() -> None:
    weights = gaussian((6, 64), seed=3) ** 3
    tensor = quantize_affine(weights, bits=3, granularity=PerChannel(axis=0), calibration="mse")
    chosen = np.square(decode_affine(tensor).astype(np.float64) - weights).sum(axis=1)
    reach = np.abs(weights).max(axis=1, keepdims=True).astype(np.float64)
    best = np.full(6, np.inf)
    for ratio in np.linspace(0.25, 1, 2000):
        scales = reach * ratio / 3
        values = np.clip(np.rint(weights / scales), -3, 3) * scales
        best = np.minimum(best, np.square(values - weights).sum(axis=1))
    assert (chosen <= 1.05 * best).all()
    plain = quantize_affine(weights, bits=3, granularity=PerChannel(axis=0))
    unclipped = np.square(decode_affine(plain).astype(np.float64) - weights).sum(axis=1)
    assert (chosen <= unclipped * (1 + 1e-6)).all()
    assert chosen.sum() < 0.9 * unclipped.sum()


@given(cases(), st.integers(0, 5))
def test_a_mask_leaves_zeros_out(case: tuple[Array, dict[str, Any]], seed: int) -> None:
    weights, arguments = case
    mask = np.asarray(np.random.default_rng(seed).random(weights.shape) < 0.6)
    tensor = quantize_affine(weights, mask=mask, **arguments)
    assert tensor.mask is not None
    pruned = np.where(mask, weights, weights.dtype.type(0))
    dense = decode_affine(quantize_affine(pruned, **arguments))
    np.testing.assert_array_equal(decode_affine(tensor) == 0, ~tensor.mask)
    np.testing.assert_array_equal(decode_affine(tensor) + 0, dense + 0)


def test_weights_under_a_mask_do_not_count() -> None:
    weights = np.array([1.0, np.inf, -2.0, np.nan], dtype=np.float32)
    tensor = quantize_affine(weights, mask=np.array([True, False, True, False]))
    np.testing.assert_allclose(decode_affine(tensor), [1, 0, -2, 0], rtol=0.01)


def test_order_in_memory_does_not_matter() -> None:
    weights = gaussian((20, 30))
    expected = quantize_affine(weights, bits=4, granularity=PerGroup(size=7))
    for other in (np.asfortranarray(weights), weights.astype(">f4"), np.repeat(weights, 2, axis=1)[:, ::2]):
        tensor = quantize_affine(other, bits=4, granularity=PerGroup(size=7))
        np.testing.assert_array_equal(tensor.codes, expected.codes)
        np.testing.assert_array_equal(tensor.scales, expected.scales)


def test_scales_are_rounded_up() -> None:
    low, high = np.array([-1.0, -3.0, 0.0]), np.array([1.1, 2.0, 1e-30])
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        scales, zero_points = affine_parameters(
            low, high, bits=8, scheme="symmetric", scale_dtype=np.dtype(dtype)
        )
        wanted = np.array([1.1, 3.0, 1e-30]) / 127
        assert zero_points is None
        assert (scales.astype(np.float64) >= wanted).all()
        below = np.nextafter(scales, np.asarray(0, dtype=dtype)).astype(np.float64)
        assert (below < wanted).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("calibration", get_args(Calibration))
@pytest.mark.parametrize("bits", [2, 8])
def test_scales_that_f16_cannot_hold_are_refused(scheme: Scheme, calibration: Calibration, bits: int) -> None:
    weights = gaussian((6, 64), dtype="f64")
    weights[2] = 0

    def error(scale_dtype: ScaleDType, magnitude: float) -> float:
        scaled = (weights * magnitude).astype(np.float32)
        tensor = quantize_affine(
            scaled,
            bits=bits,
            scheme=scheme,
            calibration=calibration,
            granularity=PerChannel(axis=0),
            scale_dtype=scale_dtype,
        )
        wanted = scaled.astype(np.float64)
        return float(np.linalg.norm(decode_affine(tensor) - wanted) / np.linalg.norm(wanted))

    refused = 0
    for exponent in range(-40, 3):
        try:
            found = error("f16", 2.0**exponent)
        except EncodingError as exc:
            refused += 1
            assert re.search(r"a scale of .* is too small for float16 \(store the scales as f32", str(exc))  # noqa: PT017
        else:
            assert found < 1.2 * error("f32", 2.0**exponent)
    assert 18 <= refused <= 27
    assert error("bf16", 2.0**-120) < 1.2 * error("f32", 1)
    with pytest.raises(EncodingError, match="too small for float16"):
        error("f16", 1e-44)


def test_equal_weights_and_zeros_have_no_scale_that_is_too_small() -> None:
    for weights in (np.zeros(9, np.float32), np.full(9, -(2.0**-24), np.float32)):
        np.testing.assert_array_equal(decode_affine(quantize_affine(weights, scale_dtype="f16")), weights)
    with pytest.raises(EncodingError, match="too small for float16"):
        quantize_affine(np.full(9, 1e-8, np.float32), scale_dtype="f16")


def test_memory_is_a_fraction_of_the_weights() -> None:
    weights = gaussian((512, 8192))
    for granularity in (PerTensor(), PerChannel(axis=0), PerGroup(size=60)):
        tracemalloc.start()
        try:
            quantize_affine(weights, granularity=granularity)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 0.6 * weights.nbytes


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_are_not_finite_are_refused(dtype: str) -> None:
    weights = gaussian((4, 5), dtype=dtype)
    weights[2, 3] = np.nan
    with pytest.raises(EncodingError, match=r"1 of 20 weights are not finite, the first is nan at \[2, 3\]"):
        quantize_affine(weights)
    weights[1, 0] = -np.inf
    with pytest.raises(
        EncodingError, match=r"2 of 20 weights are not finite, the first is (-inf|nan) at \[1, 0\]"
    ):
        quantize_affine(weights, calibration="mse")


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        (np.ones(3, np.int32), {}, "only floating-point weights"),
        (np.ones((0, 3), np.float32), {}, "without elements"),
        (np.ones(3, np.float32), {"bits": 9}, "codes of 9 bits"),
        (np.ones(3, np.float32), {"bits": 0}, "codes of 0 bits"),
        (np.ones(3, np.float32), {"bits": 1}, "one bit has no room"),
        (np.ones(3, np.float32), {"granularity": PerChannel(axis=1)}, "axis 1"),
        (np.ones(3, np.float32), {"scale_dtype": "f64"}, "scales of f64"),
        (np.ones(3, np.float64), {"scale_dtype": "f32"}, "scales of f32"),
        (np.ones(3, np.float32), {"scheme": "odd"}, "unknown scheme 'odd'"),
        (np.ones(3, np.float32), {"calibration": "odd"}, "unknown calibration 'odd'"),
        (np.ones(3, np.float32), {"mask": np.ones(4, np.bool_)}, "the mask must be 3 bool"),
        (np.array([1e9, 2e9], np.float32), {"scale_dtype": "f16"}, "too large for float16"),
    ],
)
def test_what_does_not_fit_is_refused(weights: Array, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        quantize_affine(weights, **arguments)

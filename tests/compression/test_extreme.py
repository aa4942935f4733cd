"""Binary and ternary weights against closed forms and all choices tried."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine, decode_codebook, group_numbers

from dcz.compression.extreme import quantize_binary, quantize_ternary
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import CodebookTensor, UniformTensor

Array = np.ndarray[Any, np.dtype[Any]]
FLOATS = [name for name, row in DTYPES.items() if row.is_float]
GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerGroup(size=7)]


def gaussian(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype].numpy))


def decoded(tensor: UniformTensor | CodebookTensor) -> Array:
    values = decode_affine(tensor) if isinstance(tensor, UniformTensor) else decode_codebook(tensor)
    return np.asarray(values.astype(np.float64))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_binary_is_the_sign_times_the_mean_magnitude(granularity: Granularity) -> None:
    weights = gaussian((20, 30))
    numbers = group_numbers(weights.shape, granularity)
    found = decoded(quantize_binary(weights, granularity=granularity))
    for group in range(int(numbers.max()) + 1):
        chosen = weights[numbers == group].astype(np.float64)
        np.testing.assert_allclose(
            found[numbers == group], np.sign(chosen) * np.abs(chosen).mean(), rtol=1e-6
        )


@given(st.lists(st.floats(-100, 100, width=32).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=7))
def test_no_binary_weights_have_a_smaller_error(values: list[float]) -> None:
    weights = np.array(values, dtype=np.float32)
    exact = weights.astype(np.float64)
    error = np.square(decoded(quantize_binary(weights)) - exact).sum()
    for signs in product((-1.0, 1.0), repeat=weights.size):
        b = np.array(signs)
        a = b @ exact / b.size  # the least-squares scale of these signs
        assert error <= np.square(a * b - exact).sum() + 1e-6 * np.square(exact).sum()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scales", [1, 2])
def test_ternary_weight_networks(granularity: Granularity, scales: Any) -> None:
    weights = gaussian((20, 30), seed=1)
    weights[:, ::2] *= np.where(weights[:, ::2] > 0, np.float32(1.5), np.float32(1))
    numbers = group_numbers(weights.shape, granularity)
    found = decoded(quantize_ternary(weights, granularity=granularity, method="twn", scales=scales))
    for group in range(int(numbers.max()) + 1):
        chosen = weights[numbers == group].astype(np.float64)
        threshold = 0.7 * np.abs(chosen).mean()
        expected = np.zeros(chosen.size)
        sides = [np.abs(chosen) > threshold] if scales == 1 else [chosen > threshold, chosen < -threshold]
        for side in sides:
            if side.any():
                expected[side] = (np.sign(chosen) * np.abs(chosen[side]).mean())[side]
        np.testing.assert_allclose(found[numbers == group], expected, rtol=1e-6)


@given(
    st.lists(
        st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3), min_size=1, max_size=5
    ),
    st.sampled_from([1, 2]),
)
def test_no_ternary_weights_have_a_smaller_error(values: list[float], scales: Any) -> None:
    weights = np.array(values, dtype=np.float32)
    exact = weights.astype(np.float64)
    error = np.square(decoded(quantize_ternary(weights, scales=scales)) - exact).sum()
    best = np.inf
    for signs in product((-1.0, 0.0, 1.0), repeat=weights.size):
        t = np.array(signs)
        left = exact.copy()
        for part in [t != 0] if scales == 1 else [t > 0, t < 0]:
            if part.any():
                # The least-squares scale, which is not negative.
                left[part] -= (max(0.0, float(t[part] @ exact[part]) / part.sum()) * t)[part]
        best = min(best, float(np.square(left).sum()))
    assert error <= best + 1e-6 * np.square(exact).sum()


def test_the_optimum_for_normal_weights_is_the_known_one() -> None:
    # Of a normal distribution: zero below 0.612 standard deviations, the rest at their mean, 1.2240.
    weights = gaussian((1, 400_000), seed=5)
    tensor = quantize_ternary(weights)
    assert isinstance(tensor, UniformTensor)
    assert tensor.scales[0] == pytest.approx(1.2240, rel=0.01)
    assert np.abs(weights[tensor.codes == 2]).max() == pytest.approx(0.6120, rel=0.02)
    error = float(np.square(decoded(tensor) - weights).mean())
    assert error == pytest.approx(0.1902, rel=0.01)  # the distortion of three levels (Max 1960)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("method", ["twn", "optimal"])
def test_ternary_values_come_back_exactly(dtype: str, scales: Any, method: Any) -> None:
    values = np.array([-0.75, 0, 0.75 if scales == 1 else 1.25]).astype(DTYPES[dtype].numpy)
    weights = values[np.random.default_rng(0).integers(0, 3, (40, 50))]
    tensor = quantize_ternary(weights, granularity=PerChannel(axis=0), scales=scales, method=method)
    np.testing.assert_allclose(decoded(tensor), weights.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_the_largest_numbers(dtype: str) -> None:
    zeros = np.zeros((4, 6), dtype=DTYPES[dtype].numpy)
    for tensor in (quantize_binary(zeros), quantize_ternary(zeros), quantize_ternary(zeros, scales=2)):
        assert (decoded(tensor) == 0).all()
    if dtype in ("f32", "f64"):
        huge: Array = np.array([1, -1, 1, 0]).astype(DTYPES[dtype].numpy) * float(
            (np.finfo(np.float32) if dtype == "f32" else np.finfo(np.float64)).max
        )
        np.testing.assert_allclose(decoded(quantize_ternary(huge)), huge.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("scales", [1, 2])
def test_a_mask_keeps_out_and_does_not_count(scales: Any) -> None:
    weights = gaussian((16, 40), seed=3)
    mask = np.asarray(np.random.default_rng(1).random(weights.shape) < 0.4)
    tensor = quantize_ternary(weights, scales=scales, mask=mask)
    alone = quantize_ternary(weights[mask], scales=scales)
    np.testing.assert_array_equal(decoded(tensor)[mask], decoded(alone))
    assert tensor.mask is not None
    np.testing.assert_array_equal(tensor.mask, decoded(tensor) != 0)
    binary = quantize_binary(weights, mask=mask)
    np.testing.assert_array_equal(decoded(binary)[mask], decoded(quantize_binary(weights[mask])))


def test_what_is_refused() -> None:
    weights = gaussian((4, 4))
    with pytest.raises(EncodingError, match="ternary method"):
        quantize_ternary(weights, method="ttq")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="scales"):
        quantize_ternary(weights, scales=3)  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="too small for float16"):
        quantize_ternary(weights * np.float32(1e-9), scale_dtype="f16")
    with pytest.raises(EncodingError, match="too large for float16"):
        quantize_ternary(weights * np.float32(1e9), scale_dtype="f16")
    weights[1, 2] = np.nan
    for method in (quantize_binary, quantize_ternary):
        with pytest.raises(EncodingError, match="not finite"):
            method(weights)

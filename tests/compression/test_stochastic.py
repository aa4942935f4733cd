"""Stochastic rounding against the generator in Python's integers, and against its mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine

from dcz.compression import groups as groups_module
from dcz.compression.quantizers import quantize_affine
from dcz.compression.stochastic import round_stochastically, uniforms
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor


def splitmix64(state: int) -> tuple[int, int]:
    """The reference algorithm: the next state, and the output."""
    wrap = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & wrap
    mixed = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & wrap
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & wrap
    return state, mixed ^ mixed >> 31


@given(seed=st.integers(0, (1 << 32) - 1), count=st.integers(1, 20))
def test_the_numbers_are_those_of_splitmix64(seed: int, count: int) -> None:
    found = uniforms(seed, np.arange(count, dtype=np.uint64))
    state = seed
    for number in found:
        state, output = splitmix64(state)
        assert float(number) == (output >> 40) / 2**24
    assert splitmix64(0)[1] == 0xE220A8397B1DCDAF  # the published first output of seed 0


def test_the_mean_is_the_value() -> None:
    values = np.array([-2.75, -0.5, -0.1, 0.0, 0.3, 0.999, 7.25], dtype=np.float32)
    draws = 40_000
    rounded = round_stochastically(np.repeat(values[:, None], draws, axis=1), seed=1)
    fraction = values.astype(np.float64) - np.floor(values)
    deviation = np.sqrt(fraction * (1 - fraction) / draws)
    assert (np.abs(rounded.mean(axis=1, dtype=np.float64) - values) <= 4 * deviation + 2e-7).all()
    assert set(np.unique(rounded[0])) == {-3.0, -2.0}


def test_neighbours_and_seeds_are_independent() -> None:
    draws = 1 << 16
    ups = round_stochastically(np.full((2, draws), 0.5), seed=3) > 0
    other = round_stochastically(np.full((2, draws), 0.5), seed=4) > 0
    for a, b in ((ups[0, 1:], ups[0, :-1]), (ups[0], ups[1]), (ups[0], other[0])):
        assert abs(float((a == b).mean()) - 0.5) < 4 * 0.5 / np.sqrt(draws)


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.integers(0, 9))
def test_integers_stay(values: list[int], seed: int) -> None:
    for dtype in (np.float32, np.float64):
        given = np.array(values, dtype=dtype)
        found = round_stochastically(given, seed)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, given)


def test_a_value_just_below_an_integer_is_not_above_it() -> None:
    values = np.full(1000, np.nextafter(np.float32(100), np.float32(0)))
    assert set(np.unique(round_stochastically(values, 0))) <= {99.0, 100.0}


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerGroup(size=8), PerGroup(size=7)]
)
def test_weights_are_rounded_alike_whatever_the_blocks(
    granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)
    arguments = {"bits": 4, "granularity": granularity, "rounding": "stochastic"}
    first = quantize_affine(weights, seed=5, **arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(groups_module, "BLOCK_ELEMENTS", 6)
    again = quantize_affine(weights, seed=5, **arguments)  # type: ignore[arg-type]
    np.testing.assert_array_equal(first.codes, again.codes)
    other = quantize_affine(weights, seed=6, **arguments)  # type: ignore[arg-type]
    assert (first.codes != other.codes).any()
    nearest = quantize_affine(weights, bits=4, granularity=granularity)
    np.testing.assert_array_equal(nearest.scales, first.scales)
    assert (np.abs(nearest.codes.astype(int) - first.codes) <= 1).all()


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_the_mean_of_many_seeds_is_the_weight(scheme: str) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    draws = 2000
    total = np.zeros(weights.shape)
    for seed in range(draws):
        tensor = quantize_affine(
            weights,
            bits=3,
            scheme=scheme,  # type: ignore[arg-type]
            granularity=PerChannel(axis=0),
            rounding="stochastic",
            seed=seed,
        )
        total += decode_affine(tensor)
    step = tensor.scales.astype(np.float64)[:, None]
    low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    inside = (weights < high - step) & (weights > low + step)  # what is not clamped
    error = np.abs(total / draws - weights)
    assert (error[inside] <= (4.5 * 0.5 * step / np.sqrt(draws) * np.ones_like(error))[inside]).all()
    # What rounding to nearest does not do.
    nearest = decode_affine(
        quantize_affine(weights, bits=3, scheme=scheme, granularity=PerChannel(axis=0))  # type: ignore[arg-type]
    )
    assert (
        np.abs(nearest - weights)[inside] > 4.5 * 0.5 * np.broadcast_to(step, weights.shape)[inside] / 45
    ).any()


def test_zeros_stay_zeros_and_a_mask_keeps_out() -> None:
    weights = np.random.default_rng(2).standard_normal((8, 30)).astype(np.float32)
    mask = np.random.default_rng(3).random(weights.shape) < 0.3
    tensor = quantize_affine(weights, bits=3, rounding="stochastic", mask=mask)
    assert tensor.mask is not None
    assert not (tensor.mask & ~mask).any()
    assert (decode_affine(tensor)[~mask] == 0).all()


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_what_is_not_a_seed(seed: int) -> None:
    with pytest.raises(EncodingError, match="seed"):
        round_stochastically(np.zeros(1), seed)
    with pytest.raises(EncodingError, match="seed"):
        quantize_affine(np.ones((2, 2), np.float32), rounding="stochastic", seed=seed)


def test_other_roundings_are_refused() -> None:
    with pytest.raises(EncodingError, match="rounding"):
        quantize_affine(np.ones((2, 2), np.float32), rounding="down")  # type: ignore[arg-type]

"""Observers against numpy over all values at once, and against those of torch.ao.quantization."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcz.compression.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
    dynamic_parameters,
)
from dcz.compression.quantizers import Scheme, quantize_affine
from dcz.errors import EncodingError
from dcz.format.manifest import PerChannel

Array = np.ndarray[Any, np.dtype[Any]]


def batches(count: int = 6, seed: int = 0, shape: tuple[int, ...] = (16, 40)) -> list[Array]:
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal(shape) * random.uniform(0.3, 4) + 0.2).astype(np.float32)
        for _ in range(count)
    ]


def observed(observer: Observer, seen: list[Array]) -> Observer:
    for batch in seen:
        observer.observe(batch)
    return observer


@pytest.fixture
def torch_observers() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("torch.ao.quantization.observer")


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_min_max_is_that_of_all_values(axis: int | None) -> None:
    seen = batches()
    low, high = observed(MinMaxObserver(axis=axis), seen).ranges(bits=8, scheme="asymmetric")
    joined = np.stack(seen)
    others = None if axis is None else (0, 2 if axis == 0 else 1)
    np.testing.assert_array_equal(low, np.atleast_1d(joined.min(axis=others)))
    np.testing.assert_array_equal(high, np.atleast_1d(joined.max(axis=others)))


@pytest.mark.parametrize("axis", [None, 1])
def test_torch_has_the_same_moving_averages_and_parameters(torch_observers: Any, axis: int | None) -> None:
    seen = batches()
    ours = observed(MovingAverageObserver(0.1, axis=axis), seen)
    if axis is None:
        peer = torch_observers.MovingAverageMinMaxObserver(averaging_constant=0.1, dtype=torch.quint8)
    else:
        peer = torch_observers.MovingAveragePerChannelMinMaxObserver(
            averaging_constant=0.1, ch_axis=axis, dtype=torch.quint8, qscheme=torch.per_channel_affine
        )
    for batch in seen:
        peer(torch.from_numpy(batch))
    low, high = ours.ranges(bits=8, scheme="asymmetric")
    np.testing.assert_allclose(low, np.atleast_1d(peer.min_val.numpy()), rtol=1e-5)
    np.testing.assert_allclose(high, np.atleast_1d(peer.max_val.numpy()), rtol=1e-5)
    parameters = ours.parameters()
    scales, zero_points = peer.calculate_qparams()
    np.testing.assert_allclose(parameters.scales, scales.numpy(), rtol=1e-5)
    assert (np.abs(parameters.zero_points.astype(int) - zero_points.numpy()) <= 1).all()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("axis", [None, 0])
def test_torch_gives_the_same_codes(axis: int | None) -> None:
    values = batches(1, shape=(60, 500))[0]
    parameters = dynamic_parameters(values, axis=axis)
    tensor, scales = torch.from_numpy(values), torch.from_numpy(parameters.scales)
    zeros = torch.from_numpy(parameters.zero_points.astype(np.int32))
    if axis is None:
        expected = torch.quantize_per_tensor(tensor, float(scales[0]), int(zeros[0]), torch.quint8)
    else:
        expected = torch.quantize_per_channel(tensor, scales.double(), zeros.long(), axis, torch.quint8)
    codes = parameters.quantize(values)
    differences = codes.astype(int) - expected.int_repr().numpy()
    # Torch multiplies by the reciprocal: another code at some of the ties.
    assert np.abs(differences).max() <= 1
    assert np.count_nonzero(differences) <= 3
    same = differences == 0
    np.testing.assert_array_equal(parameters.dequantize(codes)[same], expected.dequantize().numpy()[same])


@pytest.mark.parametrize("scheme", ["symmetric", "symmetric-full", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 8])
def test_static_is_dynamic_when_the_batch_is_the_same(scheme: Scheme, bits: int) -> None:
    values = batches(1)[0]
    for axis in (None, 0):
        static = observed(MinMaxObserver(axis=axis), [values]).parameters(bits=bits, scheme=scheme)
        dynamic = dynamic_parameters(values, bits=bits, scheme=scheme, axis=axis)
        np.testing.assert_array_equal(static.quantize(values), dynamic.quantize(values))
        # And both are what weights become.
        weights = quantize_affine(
            values, bits=bits, scheme=scheme, granularity=None if axis is None else PerChannel(axis=0)
        )
        np.testing.assert_array_equal(dynamic.quantize(values), weights.codes)


def test_dynamic_ranges_of_tokens_are_their_own() -> None:
    values = batches(1)[0] * np.linspace(0.01, 5, 16, dtype=np.float32)[:, None]
    parameters = dynamic_parameters(values, axis=0)
    error = np.abs(parameters.dequantize(parameters.quantize(values)) - values)
    assert (error <= parameters.scales[:, None] / 2 * (1 + 1e-5)).all()
    assert parameters.scales.shape == (16,)


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 59), max_size=4),
    bins=st.sampled_from([2, 3, 16, 4096]),
)
def test_a_histogram_does_not_depend_on_the_batches(values: list[float], cuts: list[int], bins: int) -> None:
    everything = np.array(values, dtype=np.float32)
    parts = [part for part in np.split(everything, sorted(cuts)) if part.size]
    observers = [observed(HistogramObserver(bins=bins), seen) for seen in ([everything], parts, parts[::-1])]
    first = observers[0]
    assert isinstance(first, HistogramObserver)
    for other in observers:
        assert isinstance(other, HistogramObserver)
        np.testing.assert_array_equal(other.edges, first.edges)
        np.testing.assert_array_equal(other.counts, first.counts)
    inside = everything[everything != 0]
    assert first.counts.sum() == inside.size
    assert first.counts.size <= bins
    if inside.size:
        # numpy's last bin includes its upper edge, where no value is.
        counts, _ = np.histogram(inside.astype(np.float64), first.edges)
        np.testing.assert_array_equal(counts, first.counts)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("percentile", [90, 99, 99.9])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_percentiles_are_those_of_numpy_up_to_a_bin(scheme: Scheme, percentile: float, zeros: float) -> None:
    seen = batches(8, shape=(100, 100))
    for batch in seen:
        batch[np.random.default_rng(0).random(batch.shape) < zeros] = 0
    observer = observed(HistogramObserver("percentile", percentile=percentile), seen)
    assert isinstance(observer, HistogramObserver)
    low, high = observer.ranges(bits=8, scheme=scheme)
    width = observer.edges[1] - observer.edges[0]
    joined = np.concatenate([batch.reshape(-1) for batch in seen]).astype(np.float64)
    values, p = joined if scheme == "asymmetric" else np.abs(joined), percentile / 100
    slack = 2 / joined.size  # in the tails, neighbours may lie further apart than a bin is wide
    for q, reached in ((p, high[0]), (1 - p, low[0]))[: 2 if scheme == "asymmetric" else 1]:
        least, most = np.quantile(values, [q - slack, q + slack])
        assert least - width <= reached <= most + width
    if scheme == "symmetric":
        assert low[0] == -high[0]


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_is_as_good_as_the_best_of_many_clippings_of_the_values(bits: int, scheme: Scheme) -> None:
    random = np.random.default_rng(bits)
    seen = [random.standard_t(4, (50, 100)).astype(np.float32) for _ in range(4)]
    joined = np.concatenate(seen).astype(np.float64)
    parameters = observed(HistogramObserver("mse"), seen).parameters(bits=bits, scheme=scheme)
    found = np.square(parameters.dequantize(parameters.quantize(joined)) - joined).mean()
    best = np.inf
    for ratio in np.linspace(0.02, 1, 400):
        low, high = joined.min() * ratio, joined.max() * ratio
        if scheme == "symmetric":
            most = (1 << (bits - 1)) - 1
            scale = max(-low, high) / most
            decoded = np.clip(np.rint(joined / scale), -most, most) * scale
        else:
            scale = (high - low) / ((1 << bits) - 1)
            zero = np.rint(-low / scale)
            decoded = (np.clip(np.rint(joined / scale) + zero, 0, (1 << bits) - 1) - zero) * scale
        best = min(best, float(np.square(decoded - joined).mean()))
    assert found <= best * 1.06


def test_kl_clips_an_outlier_of_a_stream() -> None:
    random = np.random.default_rng(0)
    seen = [np.maximum(random.standard_normal((100, 100)), 0).astype(np.float32) for _ in range(5)]
    seen[3][0, 0] = 70
    high = observed(HistogramObserver("kl"), seen).ranges(bits=8, scheme="asymmetric")[1][0]
    assert 3 < high < 12


@pytest.mark.parametrize("calibration", ["percentile", "mse", "kl"])
@pytest.mark.parametrize("value", [0.0, 3.25, -1e-30])
def test_equal_values_come_back(calibration: Any, value: float) -> None:
    values = np.full((4, 5), value, dtype=np.float32)
    parameters = observed(HistogramObserver(calibration), [values, values]).parameters()
    np.testing.assert_allclose(parameters.dequantize(parameters.quantize(values)), values, rtol=1e-6)


@pytest.mark.parametrize("value", [3.0, -0.75])
@pytest.mark.parametrize("bits", [2, 8])
def test_a_range_of_equal_values_reaches_to_zero(torch_observers: Any, value: float, bits: int) -> None:
    """As torch has it: what was seen is no reason to believe that nothing else will come."""
    values = np.full((4, 5), value, dtype=np.float32)
    peer = torch_observers.MinMaxObserver(dtype=torch.quint8, quant_min=0, quant_max=(1 << bits) - 1)
    peer(torch.from_numpy(values))
    step, zero_point = peer.calculate_qparams()
    for found in (
        *(
            observed(observer, [values, values]).parameters(bits=bits)
            for observer in (
                MinMaxObserver(),
                MovingAverageObserver(0.5),
                HistogramObserver("percentile"),
                HistogramObserver("mse"),
                HistogramObserver("kl"),
            )
        ),
        dynamic_parameters(values, bits=bits),
        observed(MinMaxObserver(axis=1), [values]).parameters(bits=bits),
    ):
        np.testing.assert_allclose(found.scales, np.full(found.scales.shape, step.numpy()), rtol=1e-6)
        assert (found.zero_points == zero_point.numpy()).all()
    symmetric = observed(MinMaxObserver(), [values]).parameters(bits=8, scheme="symmetric")
    np.testing.assert_allclose(symmetric.scales, abs(value) / 127, rtol=1e-6)


def test_what_cannot_be_observed() -> None:
    with pytest.raises(EncodingError, match="not finite"):
        MinMaxObserver().observe(np.array([1, np.nan], dtype=np.float32))
    with pytest.raises(EncodingError, match="without elements"):
        MinMaxObserver().observe(np.zeros((0, 3), dtype=np.float32))
    with pytest.raises(EncodingError, match="floating-point"):
        MinMaxObserver().observe(np.zeros(3, dtype=np.int32))
    with pytest.raises(EncodingError, match="axis 2"):
        MinMaxObserver(axis=2).observe(np.zeros((2, 3), dtype=np.float32))
    observer = observed(MinMaxObserver(axis=1), [np.zeros((2, 3), dtype=np.float32)])
    with pytest.raises(EncodingError, match="4 positions"):
        observer.observe(np.zeros((2, 4), dtype=np.float32))
    for empty in (MinMaxObserver(), HistogramObserver("kl")):
        with pytest.raises(EncodingError, match="nothing was observed"):
            empty.parameters()
    for wrong in (lambda: MovingAverageObserver(0), lambda: HistogramObserver(bins=1)):
        with pytest.raises(EncodingError, match="possible"):
            wrong()
    with pytest.raises(EncodingError, match="decides"):
        HistogramObserver("min-max")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="one bit"):
        observer.parameters(bits=1, scheme="symmetric")

"""Equalization and bias correction against networks that torch runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.compression.oracles import decode_affine
from torch.nn import functional as F

from dcz.compression.corrections import absorb_scales, bias_correction, equalizing_scales
from dcz.compression.quantizers import quantize_affine
from dcz.errors import EncodingError

Array = np.ndarray[Any, np.dtype[Any]]


def gaussian(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def uneven(*shape: int, seed: int = 0) -> Array:
    spread = np.exp(2 * np.random.default_rng(seed + 100).standard_normal(shape[0])).astype(np.float32)
    return np.asarray(gaussian(*shape, seed=seed) * spread.reshape(-1, *[1] * (len(shape) - 1)))


def ranges_of(weights: Array, axis: int) -> Array:
    return np.asarray(np.abs(np.moveaxis(weights, axis, 0)).reshape(weights.shape[axis], -1).max(axis=1))


def test_equalized_linear_layers_are_the_same_function() -> None:
    first, bias, second = uneven(24, 10), gaussian(24), gaussian(7, 24, seed=1)
    first[3], second[:, 5] = 0, 0
    scales = equalizing_scales(first, second)
    ours = absorb_scales(first, bias, second, scales)
    assert scales[3] == scales[5] == 1
    live = [i for i in range(24) if i not in (3, 5)]
    np.testing.assert_allclose(ranges_of(ours[0], 0)[live], ranges_of(ours[2], 1)[live], rtol=1e-5)
    # s = sqrt(r1 r2) / r2, as in the paper.
    r1, r2 = ranges_of(first, 0)[live], ranges_of(second, 1)[live]
    np.testing.assert_allclose(scales[live], np.sqrt(r1 * r2) / r2, rtol=1e-6)
    inputs = torch.from_numpy(gaussian(50, 10, seed=2))
    before, after = (
        F.linear(F.relu(F.linear(inputs, torch.from_numpy(a), torch.from_numpy(b))), torch.from_numpy(c))
        for a, b, c in ((first, bias, second), ours)
    )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depthwise", [False, True])
def test_equalized_convolutions_are_the_same_function(depthwise: bool) -> None:
    first, second = uneven(8, 3, 3, 3), gaussian(8, 1, 3, 3) if depthwise else gaussian(5, 8, 1, 1)
    ours = absorb_scales(first, None, second, equalizing_scales(first, second))
    assert ours[1] is None
    assert ours[2].shape == second.shape
    inputs = torch.from_numpy(gaussian(2, 3, 9, 9, seed=2))
    before, after = (
        F.conv2d(
            F.relu(F.conv2d(inputs, torch.from_numpy(a))), torch.from_numpy(b), groups=8 if depthwise else 1
        )
        for a, b in ((first, second), (ours[0], ours[2]))
    )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_equalized_layers_bear_quantization_better() -> None:
    first, second = uneven(64, 32), gaussian(16, 64, seed=1)
    inputs = gaussian(200, 32, seed=2).astype(np.float64)

    def outputs(a: Array, b: Array) -> Array:
        return np.asarray(np.maximum(inputs @ a.T, 0) @ b.T)

    exact = outputs(first.astype(np.float64), second.astype(np.float64))
    ours = absorb_scales(first, None, second, equalizing_scales(first, second))
    errors = [
        float(np.square(outputs(*(decode_affine(quantize_affine(w, bits=6)) for w in pair)) - exact).mean())
        for pair in ((first, second), (ours[0], ours[2]))
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_the_mean_output_stays(kernel: tuple[int, ...]) -> None:
    weights = gaussian(12, 6, *kernel)
    quantized = decode_affine(quantize_affine(weights, bits=2))
    inputs = np.abs(gaussian(300, 6, *kernel, seed=1)).astype(np.float64)

    def outputs(w: Array) -> Array:
        return np.asarray(inputs.reshape(300, -1) @ w.astype(np.float64).reshape(12, -1).T)

    shift = (outputs(quantized) - outputs(weights)).mean(axis=0)
    assert np.abs(shift).max() > 0.05
    added = bias_correction(weights, quantized, inputs.mean(axis=0))
    np.testing.assert_allclose(shift + added, 0, atol=1e-12)


def test_a_mean_of_channels_serves_all_places_of_the_kernel() -> None:
    weights = gaussian(4, 3, 5, 5)
    quantized = decode_affine(quantize_affine(weights, bits=2))
    mean = np.array([0.5, -1.0, 2.0])
    everywhere = np.broadcast_to(mean[:, None, None], (3, 5, 5))
    inputs = torch.from_numpy(np.ascontiguousarray(everywhere))[None]
    before, after = (F.conv2d(inputs, torch.from_numpy(w).double()) for w in (weights, quantized))
    added = bias_correction(weights, quantized, mean)
    np.testing.assert_allclose((before - after).numpy().reshape(4), added, atol=1e-9)
    np.testing.assert_allclose(bias_correction(weights, quantized, everywhere), added, atol=1e-12)


def test_what_does_not_fit() -> None:
    with pytest.raises(EncodingError, match="behind 4 channels"):
        equalizing_scales(gaussian(4, 3), gaussian(5, 3))
    with pytest.raises(EncodingError, match="positive"):
        absorb_scales(gaussian(4, 3), None, gaussian(5, 4), np.zeros(4))
    with pytest.raises(EncodingError, match="4 channels"):
        absorb_scales(gaussian(4, 3), gaussian(3), gaussian(5, 4), np.ones(4))
    with pytest.raises(EncodingError, match="quantized"):
        bias_correction(gaussian(4, 3), gaussian(3, 4), gaussian(3))
    with pytest.raises(EncodingError, match="mean inputs"):
        bias_correction(gaussian(4, 3), gaussian(4, 3), gaussian(4))

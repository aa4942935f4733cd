"""Corrected biases: against means over data, and closed forms against sampling."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests.compression.networks.zoo import Residual, batch, mobile, seeded
from torch import nn

from dcz.compression.networks.bias_correction import (
    clipped_normal,
    correct_biases,
    correct_biases_without_data,
    expected_inputs,
)
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.networks.graph import Network, trace
from dcz.errors import UsageError


def rounded(network: Network, levels: float = 3, only: str | None = None) -> Network:
    """A copy with coarse weights, of one layer or of all."""
    found = trace(copy.deepcopy(network.module))
    with torch.no_grad():
        for operation in found.layers():
            if only not in (None, operation.name):
                continue
            weight = operation.layer.weight
            step = weight.abs().max() / levels
            weight.copy_(torch.round(weight / step) * step)
    return found


def outputs(network: Network, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mean of what each layer gives, by channel."""
    found: dict[nn.Module, torch.Tensor] = {}

    def hook(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        found[layer] = out.detach().double().mean((0,) if out.ndim == 2 else (0, 2, 3))

    handles = [operation.layer.register_forward_hook(hook) for operation in network.layers()]
    network.module(inputs)
    for handle in handles:
        handle.remove()
    return {operation.name: found[operation.layer] for operation in network.layers()}


@pytest.mark.parametrize("module", [mobile(), Residual()], ids=["mobile", "residual"])
def test_means_stay_on_the_calibration_data(module: nn.Module) -> None:
    network = fold_batch_norms(seeded(module))
    inputs = batch((3, 8, 8) if isinstance(module, nn.Sequential) else (2, 8, 8), 32)
    quantized = rounded(network)
    wanted, before = outputs(network, inputs), outputs(quantized, inputs)
    added = correct_biases(quantized, network, inputs.split(8))
    after = outputs(quantized, inputs)
    assert set(added) == set(wanted)
    assert max(float((before[name] - wanted[name]).abs().max()) for name in wanted) > 0.05
    for name, mean in wanted.items():
        torch.testing.assert_close(after[name], mean, rtol=0, atol=1e-4)


def test_a_clipped_normal_variable() -> None:
    cases = [(0.3, 1.0, np.inf), (-2.0, 0.7, np.inf), (1.5, 2.0, 6.0), (7.0, 1.0, 6.0), (-1.0, 0.5, 0.2)]
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*cases, strict=True))
    means, deviations = clipped_normal(*columns)
    for (m, s, c), mean, deviation in zip(cases, means.tolist(), deviations.tolist(), strict=True):
        normal = stats.norm(m, s)
        top = min(c, m + 40 * s)

        def integrand(x: float, power: int, normal: Any = normal) -> float:
            return float(x**power * normal.pdf(x))

        first, second = (
            integrate.quad(integrand, 0, top, args=(power,), points=[min(max(m, 0), top)])[0]
            + (c**power * normal.sf(c) if np.isfinite(c) else 0)
            for power in (1, 2)
        )
        assert mean == pytest.approx(first, abs=1e-9)
        assert deviation == pytest.approx((second - first**2) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("name", ["0", "3", "6"])
def test_without_data_the_mean_comes_back_for_normal_outputs(name: str) -> None:
    """Without padding, of norms with the statistics of the data: what is left is that sums are not quite normal."""
    module = nn.Sequential(*list(seeded(mobile(nn.ReLU, padding=0)).children())[:7], nn.BatchNorm2d(6))
    inputs = batch((3, 9, 9), 512)
    for part in module:
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            part.reset_running_stats()
    module.train()(inputs)
    network = fold_batch_norms(module)
    quantized = rounded(network, 2, only=name)
    wanted, before = outputs(network, inputs)[name], outputs(quantized, inputs)[name]
    added = correct_biases_without_data(quantized, network, input_mean=torch.full((3,), 0.0))
    after = outputs(quantized, inputs)[name]
    assert set(added) == {"0", "3", "6"}
    shift, left = (float((found - wanted).abs().mean()) for found in (before, after))
    assert left < 0.02 if name == "0" else left < 0.2 * shift
    assert all(float(change.abs().max()) == 0 for other, change in added.items() if other != name)


def test_what_is_expected_follows_the_graph() -> None:
    network = fold_batch_norms(seeded(Residual()))
    means = expected_inputs(network)
    # Behind max-pooling nothing is known; of the network's input only what one says.
    assert set(means) == {"conv2", "side"}
    moments = network.moments["conv1"]
    sample = moments.mean + moments.deviation * torch.randn(
        200_000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(means["conv2"], sample.relu().mean(0), rtol=0.02, atol=0.02)
    assert "conv1" in expected_inputs(network, input_mean=torch.zeros(2))


def test_what_does_not_fit() -> None:
    network = fold_batch_norms(seeded(mobile()))
    with pytest.raises(UsageError, match="no calibration batches"):
        correct_biases(rounded(network), network, [])
    with pytest.raises(UsageError, match="same layers"):
        correct_biases(trace(seeded(Residual())), network, [])

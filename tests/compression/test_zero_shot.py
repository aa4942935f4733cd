"""Distilled inputs have the statistics that the norms remember; noise has the distribution that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.compression.networks.zoo import batch, mobile, seeded
from torch import nn

from dcz.compression.zero_shot import Spectrum, distill, noise
from dcz.errors import UsageError


def trained_statistics() -> nn.Sequential:
    """A network whose norms have seen inputs of mean 0 and deviation 1 with structure: neighbours are alike."""
    module = seeded(mobile(nn.ReLU))
    inputs = noise((3, 8, 8), count=256, spectrum="natural", seed=3)
    for norm in module:
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = None
            norm.reset_running_stats()
    module.train()(inputs)
    return module.eval()


def statistics(module: nn.Module, inputs: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """What each norm gets, by numpy."""
    found = []

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        values = np.moveaxis(args[0].detach().numpy(), 1, 0).reshape(args[0].shape[1], -1)
        found.append((values.mean(1), values.std(1)))

    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    module(inputs)
    for handle in handles:
        handle.remove()
    return found


def distance(module: nn.Module, inputs: torch.Tensor) -> float:
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)]
    total = 0.0
    for norm, (mean, deviation) in zip(norms, statistics(module, inputs), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        total += float(np.square(mean - norm.running_mean.numpy()).sum())
        total += float(np.square(deviation - np.sqrt(norm.running_var.numpy() + norm.eps)).sum())
    return total


def test_statistics_match() -> None:
    module = trained_statistics()
    module[4].train()  # a mode that has to come back
    before = {key: value.clone() for key, value in module.state_dict().items()}
    start = torch.get_rng_state()
    found = distill(module, (3, 8, 8), count=24, steps=60, seed=5, learning_rate=0.3)
    assert found.inputs.shape == (24, 3, 8, 8)
    assert found.losses[-1] < 0.02 * found.losses[0]
    # The loss is the distance of the norms' statistics, and that of the inputs from mean 0 and deviation 1.
    channels = np.moveaxis(found.inputs.numpy(), 1, 0).reshape(3, -1)
    own = float(np.square(channels.mean(1)).sum() + np.square(channels.std(1) - 1).sum())
    assert [module[4].training, module[1].training] == [True, False]
    module.eval()
    assert found.losses[-1] == pytest.approx(distance(module, found.inputs) + own, rel=1e-3)
    first = batch((3, 8, 8), 24, seed=5)
    assert distance(module, found.inputs) < 0.05 * distance(module, first)
    assert torch.equal(torch.get_rng_state(), start)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    first, again = (distill(module, (3, 8, 8), count=4, steps=3).inputs for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("spectrum", ["white", "natural"])
def test_noise(spectrum: Spectrum) -> None:
    values = noise((2, 16, 16), count=200, mean=0.5, deviation=2.0, spectrum=spectrum)
    assert values.dtype == torch.float32
    assert float(values.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(values.std()) == pytest.approx(2.0, rel=0.02)
    power = np.square(np.abs(np.fft.fft2(values.numpy()))).mean((0, 1))
    slope = float(np.polyfit(np.log(np.arange(1, 8)), np.log(power[0, 1:8]), 1)[0])
    assert slope == pytest.approx(-2.0 if spectrum == "natural" else 0.0, abs=0.15)
    cut = noise((2, 16, 16), count=20, spectrum=spectrum, low=-0.5, high=1.0)
    assert (float(cut.min()), float(cut.max())) == (-0.5, 1.0)


def test_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="no BatchNorm"):
        distill(nn.Sequential(nn.Linear(3, 3)), (3,))
    with pytest.raises(UsageError, match="at least 2"):
        distill(trained_statistics(), (3, 8, 8), count=1)
    with pytest.raises(UsageError, match="spectrum"):
        noise((3,), spectrum="pink")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="places"):
        noise((3,), spectrum="natural")
    with pytest.raises(UsageError, match="positive"):
        noise((3,), deviation=0)

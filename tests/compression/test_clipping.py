"""Learned clipping against finite differences and the paper's formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dcz.compression.training.activations import (
    activation_parameters,
    calibrate,
    remove_activation_quantizers,
)
from dcz.compression.training.clipping import ClippingQuantizer, clip_activations
from dcz.errors import EncodingError, UsageError


def clipped(x: torch.Tensor, level: float) -> torch.Tensor:
    """The paper's equation 1."""
    return 0.5 * (x.abs() - (x - level).abs() + level)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_forward_is_the_papers(bits: int) -> None:
    torch.manual_seed(0)
    x, level = 3 * torch.randn(500), 2.5
    quantizer = ClippingQuantizer(bits, level=level)
    most = 2**bits - 1
    expected = np.rint(clipped(x.double(), level).numpy() * most / level) * level / most
    np.testing.assert_allclose(quantizer(x).detach().numpy(), expected, atol=1e-6)
    parameters = quantizer.parameters_of()
    assert parameters is not None
    again = parameters.dequantize(parameters.quantize(x.numpy()))
    assert quantizer(x).detach().numpy().tobytes() == again.tobytes()


def test_gradients_are_those_of_what_is_not_rounded() -> None:
    """Rounding passes straight through: finite differences of equation 1 alone."""
    torch.manual_seed(0)
    x = (2 * torch.randn(200)).requires_grad_()
    weights = torch.randn(200)
    quantizer = ClippingQuantizer(4, level=1.7, decay=0.0)
    (quantizer(x) * weights).sum().backward()
    exact, wide = x.detach().double(), weights.double()

    def loss(level: float) -> float:
        return float((clipped(exact, level) * wide).sum())

    numeric = (loss(1.7 + 1e-6) - loss(1.7 - 1e-6)) / 2e-6
    assert quantizer.level.grad is not None
    assert float(quantizer.level.grad) == pytest.approx(numeric, rel=1e-4)
    slopes = (clipped(exact + 1e-6, 1.7) - clipped(exact - 1e-6, 1.7)) / 2e-6
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), slopes * wide, rtol=1e-4, atol=1e-5)


def test_decay_is_a_term_of_the_loss() -> None:
    x, upstream = torch.randn(50), torch.randn(50)
    gradients = []
    for decay in (0.0, 0.3):
        quantizer = ClippingQuantizer(4, level=0.5, decay=decay)
        (quantizer(x) * upstream).sum().backward()
        assert quantizer.level.grad is not None
        gradients.append(float(quantizer.level.grad))
    assert gradients[1] - gradients[0] == pytest.approx(2 * 0.3 * 0.5, rel=1e-5)


def test_the_level_comes_to_where_clipping_costs_as_much_as_decay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.ReLU(), nn.Linear(100, 100, bias=False))
    module[1].weight = nn.Parameter(torch.eye(100), requires_grad=False)
    x, decay = torch.randn(200, 100), 0.005
    assert clip_activations(module, 8, layers=["1"], decay=decay) == ["1"]
    calibrate(module, [x])
    (level,) = (part for part in module.parameters() if part.requires_grad)
    assert level.item() == float(x.max())
    optimizer = torch.optim.Adam([level], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        optimizer.zero_grad()
        (module(x) - torch.relu(x)).square().mean().backward()
        optimizer.step()
        schedule.step()
    # The derivative of mean (min(x, a) - x)^2 + decay a^2 is zero; found by bisection.
    low, high = 0.1, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        slope = -2 * float((x - middle).clamp(min=0).mean()) + 2 * decay * middle
        low, high = (low, middle) if slope > 0 else (middle, high)
    assert level.item() == pytest.approx(low, rel=0.02)
    scales = activation_parameters(module)["1"].scales
    assert math.isclose(float(scales[0]), level.item() / 255, rel_tol=1e-6)
    remove_activation_quantizers(module)
    assert len(list(module.parameters())) == 1


def test_a_level_below_zero_is_survived() -> None:
    quantizer = ClippingQuantizer(4)
    with torch.no_grad():
        quantizer.level.fill_(-1.0)
    found = quantizer(torch.randn(10))
    assert bool(torch.isfinite(found).all())
    found.sum().backward()
    assert quantizer.level.grad is not None


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="clipping level of 0"):
        ClippingQuantizer(4, level=0)
    with pytest.raises(UsageError, match="decay of -1"):
        ClippingQuantizer(4, decay=-1)
    with pytest.raises(EncodingError, match="9 bits"):
        ClippingQuantizer(9)

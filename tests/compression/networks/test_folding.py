"""Folded networks against the networks themselves, and against torch's own folding of a pair."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.compression.networks.zoo import batch, networks, part, seeded
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from dcz.compression.networks.folding import fold_batch_norms
from dcz.errors import UsageError

Norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@pytest.mark.parametrize("name", sorted(networks()))
def test_a_folded_network_is_the_same_function(name: str) -> None:
    module, shape = networks()[name]
    before = copy.deepcopy(module.state_dict())
    network = fold_batch_norms(module)
    assert not any(isinstance(one, Norms) for one in network.module.modules())
    inputs = batch(shape)
    torch.testing.assert_close(network.module(inputs), module(inputs), rtol=1e-4, atol=1e-4)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "linear", "transposed"])
def test_weights_are_those_of_torch(name: str) -> None:
    module, _ = networks()[name]
    assert isinstance(module, nn.Sequential)
    layer, norm = part(module, "0"), part(module, "1")
    fuse: Any = fuse_linear_bn_eval if name == "linear" else fuse_conv_bn_eval
    theirs = fuse(layer, norm, True) if name == "transposed" else fuse(layer, norm)
    network = fold_batch_norms(module)
    ours = part(network.module, "0")
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
    # What the norm says of its outputs, from outputs of a layer that have the norm's running statistics.
    moments = network.moments["0"]
    for channel in range(norm.num_features):
        spread = torch.tensor([-1.0, 1.0]).double() * norm.running_var[channel].double().sqrt()
        one = (norm.running_mean[channel] + spread).reshape(2, 1).expand(2, norm.num_features)
        out = copy.deepcopy(norm).double()(one.reshape(2, -1, *[1] * (layer.weight.ndim - 2)))
        values = out.reshape(2, -1)[:, channel]
        torch.testing.assert_close(values.mean(), moments.mean[channel])
        torch.testing.assert_close(values.std(correction=0), moments.deviation[channel], rtol=1e-5, atol=0)


def test_what_cannot_be_folded_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 1)
            self.norms = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
            self.after = nn.Conv1d(2, 2, 1)
            self.seen = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norms[1](self.conv(self.norms[0](self.conv(x))))
            z = self.after(y)
            outputs: torch.Tensor = self.seen(z) + z
            return outputs

    module = seeded(Shared())
    network = fold_batch_norms(module)
    assert sum(isinstance(one, Norms) for one in network.module.modules()) == 3
    assert not network.moments
    inputs = batch((2, 5))
    torch.testing.assert_close(network.module(inputs), module(inputs))


def test_a_weight_that_is_read_elsewhere_stays() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.bn(self.fc(x)), self.fc.weight)

    module = seeded(Reading())
    network = fold_batch_norms(module)
    assert isinstance(network.module.get_submodule("bn"), nn.BatchNorm1d)
    torch.testing.assert_close(network.module(batch((3,))), module(batch((3,))))


def test_tied_weights_stay() -> None:
    module = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.Conv1d(2, 2, 1))
    module[2].weight = module[0].weight
    network = fold_batch_norms(seeded(module))
    torch.testing.assert_close(network.module(batch((2, 5))), module(batch((2, 5))))
    assert isinstance(part(network.module, "1"), nn.BatchNorm1d)


def test_what_cannot_be_followed() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="cannot be followed"):
        fold_batch_norms(Branching())
    with pytest.raises(UsageError, match="not a torch"):
        fold_batch_norms(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Sequential"):
        fold_batch_norms(nn.Linear(2, 2))
    weighted = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="parametrizations"):
        fold_batch_norms(weighted)

"""Equalized networks are the same function, with even ranges; high biases move on."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.compression.networks.zoo import Residual, batch, mobile, networks, part, seeded
from torch import nn

from dcz.compression.networks.equalization import absorb_high_biases, equalize, find_pairs
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.networks.graph import ChannelClamp, trace
from dcz.errors import UsageError


def even(first: torch.Tensor, second: torch.Tensor) -> None:
    """Largest magnitudes of both sides of each channel are the same."""
    torch.testing.assert_close(first.abs().amax(1), second.abs().amax(1), rtol=3e-3, atol=0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_chains_are_equalized_and_stay_the_same_function(activation: type[nn.Module]) -> None:
    module = seeded(mobile(activation))
    network = fold_batch_norms(module)
    pairs = equalize(network)
    assert [(pair.first.name, pair.second.name) for pair in pairs] == [("0", "3"), ("3", "6"), ("6", "11")]
    inputs = batch((3, 8, 8)) * 3
    torch.testing.assert_close(network.module(inputs), module(inputs), rtol=1e-4, atol=1e-4)
    layers = [part(network.module, name).weight.detach() for name in ("0", "3", "6", "11")]
    even(layers[0].flatten(1), layers[1].flatten(1))
    even(layers[1].flatten(1), layers[2][:, :, 0, 0].T)
    even(layers[2].flatten(1), layers[3].reshape(7, 6, 4).transpose(0, 1).flatten(1))
    clamps = [clamp for clamp in network.module.modules() if isinstance(clamp, ChannelClamp)]
    assert len(clamps) == (3 if activation is nn.ReLU6 else 0)
    assert all(clamp.ceilings.std() > 0.01 for clamp in clamps)


@pytest.mark.parametrize("name", sorted(networks()))
def test_any_network_stays_the_same_function(name: str) -> None:
    module, shape = networks()[name]
    network = fold_batch_norms(module)
    moments = {key: value.mean / value.deviation for key, value in network.moments.items()}
    equalize(network, iterations=2)
    inputs = batch(shape)
    torch.testing.assert_close(network.module(inputs), module(inputs), rtol=1e-4, atol=1e-4)
    for key, value in network.moments.items():
        torch.testing.assert_close(value.mean / value.deviation, moments[key])


def test_grouped_and_transposed_pairs() -> None:
    module = seeded(
        nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
            nn.ReLU(),
            nn.Conv2d(6, 8, 2, groups=2),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(8, 4, 2, groups=4),
        )
    )
    network = trace(copy.deepcopy(module))
    assert len(equalize(network)) == 2
    first, second, third = (part(network.module, name).weight.detach() for name in "024")
    even(
        first.reshape(2, 2, 3, 9).transpose(1, 2).reshape(6, -1),
        second.reshape(2, 4, 3, 4).transpose(1, 2).reshape(6, -1),
    )
    even(second.flatten(1), third.flatten(1))
    inputs = batch((4, 5, 5))
    torch.testing.assert_close(network.module(inputs), module(inputs), rtol=1e-4, atol=1e-4)


def test_what_is_no_pair() -> None:
    assert [pair.second.name for pair in find_pairs(fold_batch_norms(Residual()))] == ["fc2"]
    for between in ([nn.Sigmoid()], [nn.Flatten(2)], [nn.Flatten(), nn.MaxPool1d(1)], [nn.BatchNorm2d(4)]):
        chain = nn.Sequential(nn.Conv2d(2, 4, 1), *between, nn.Conv2d(4, 4, 1))
        assert not find_pairs(trace(chain)), between
    # A linear layer mixes the last axis, a convolution the second one.
    assert not find_pairs(trace(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Linear(4, 4))))
    assert not find_pairs(trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(4, 4, 1))))
    shared = nn.ReLU6()
    twice = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 4))
    assert not find_pairs(trace(twice))
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    assert not find_pairs(trace(tied))
    with pytest.raises(UsageError, match="iterations"):
        equalize(trace(tied), iterations=0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_high_biases_move_on(activation: type[nn.Module]) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        activation(),
        nn.Conv2d(6, 8, 2, groups=2),
        nn.BatchNorm2d(8),
        activation(),
        nn.Flatten(),
        nn.Linear(8 * 9, 4),
    )
    seeded(module)
    with torch.no_grad():
        for index, high in ((1, 2.0), (4, 3.0)):
            norm = part(module, str(index))
            norm.bias.copy_(torch.linspace(-1, high, norm.num_features))
            norm.weight.fill_(0.2)
    # Running statistics as the inputs really have them, or the moments would not be those of the outputs.
    inputs = batch((3, 6, 6), 64)
    for norm in module:
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            norm.reset_running_stats()
    module.train()(inputs)
    module.eval()
    network = fold_batch_norms(module)
    equalize(network)
    equalized = copy.deepcopy(network.module)
    moved = absorb_high_biases(network)
    assert set(moved) == {"0", "3"}
    first = network.moments["0"]
    assert (first.mean - 3 * first.deviation <= 1e-9).all()
    assert part(network.module, "0").bias.max() < part(equalized, "0").bias.max()
    # All but a few places are above what moved; those that are not change the output a little.
    torch.testing.assert_close(network.module(inputs), module(inputs), rtol=0.02, atol=0.02)
    middle = part(network.module, "0")(inputs) + moved["0"].float().reshape(-1, 1, 1)
    torch.testing.assert_close(middle, part(equalized, "0")(inputs), rtol=1e-4, atol=1e-4)


def test_padding_keeps_high_biases() -> None:
    network = fold_batch_norms(seeded(mobile(nn.ReLU)))
    for name, moments in list(network.moments.items()):
        moments.mean.add_(100)
        network.moments[name] = moments
    assert set(absorb_high_biases(network)) == {"3"}

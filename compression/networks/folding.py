"""BatchNorm becomes part of the layer before it (Jacob et al. 2018, section 3.2):

    W' = g W / sqrt(v + e)        b' = g (b - m) / sqrt(v + e) + beta

for each output channel, with the running mean m and variance v, g and beta learned, and e against division by zero. What the norm
says of its outputs, mean beta and deviation |g| sqrt(v / (v + e)), is kept: corrections without data live on it.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from dcz.compression.networks.graph import LAYERS, Moments, Network, Operation, trace
from dcz.compression.networks.layers import by_output, channels, ensure_bias, from_output

__all__ = ["fold_batch_norms"]


def fold_batch_norms(module: nn.Module) -> Network:
    """A copy of a module in evaluation mode, without those BatchNorms that can be folded into the layer before them.

    That is a linear layer or convolution, transposed or not, of any groups, whose output goes nowhere else. Both take
    part in one step only, and the layer shares its weight with no other. A norm that is folded is an ``nn.Identity``
    afterwards; all others stay. Behind a linear layer, inputs are taken to be (batch, features). Types of weights stay;
    the arithmetic is float64.

    Raises UsageError if the module cannot be followed.
    """
    network = trace(copy.deepcopy(module))
    while pairs := _pairs(network):
        for layer, norm in pairs:
            network.moments[layer.name] = _fold(layer, norm)
        network.replace({norm.name: nn.Identity() for _, norm in pairs})
    return network


def _pairs(network: Network) -> list[tuple[Operation, Operation]]:
    found: list[tuple[Operation, Operation]] = []
    owners: dict[int, int] = {}
    for part in network.module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for layer in network.operations.values():
        if layer.kind not in LAYERS or network.uses(layer.layer) > 1 or owners[id(layer.layer.weight)] > 1:
            continue
        norm = network.only_user(layer)
        if norm is None or norm.kind != "batch-norm" or network.uses(norm.module) > 1:  # type: ignore[arg-type]
            continue
        statistics = norm.module
        assert isinstance(statistics, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
        if statistics.running_mean is not None and statistics.num_features == channels(layer.layer)[1]:
            found.append((layer, norm))
    return found


def _fold(operation: Operation, after: Operation) -> Moments:
    layer, norm = operation.layer, after.module
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain, shift = torch.ones_like(mean), torch.zeros_like(mean)
    if norm.affine:
        gain, shift = norm.weight.detach().double(), norm.bias.detach().double()
    factor = gain / torch.sqrt(variance + norm.eps)
    from_output(layer, by_output(layer) * factor[:, None])
    bias = ensure_bias(layer)
    with torch.no_grad():
        bias.copy_((bias.double() - mean) * factor + shift)
    return Moments(shift, gain.abs() * torch.sqrt(variance / (variance + norm.eps)))

"""Cross-layer equalization, and high biases that move into the next layer (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", 2019, sections 4.1 and 4.1.3).

Two layers are a pair if nothing but functions f with f(s x) = s f(x) for each channel stand between them: ReLU, pooling,
flattening behind a convolution; and if what is between them goes nowhere else. A ReLU6 becomes a ReLU with a ceiling of its
own for each channel. All pairs are equalized again and again until nothing changes, so that chains like 1 x 1, depthwise,
1 x 1 are too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

from dcz.compression.corrections import absorb_scales, equalizing_scales
from dcz.compression.networks.graph import LAYERS, ChannelClamp, Kind, Layer, Moments, Network, Operation
from dcz.compression.networks.layers import (
    by_input,
    by_output,
    channels,
    ensure_bias,
    from_input,
    from_output,
    mean_outputs,
)
from dcz.errors import UsageError

__all__ = ["Pair", "absorb_high_biases", "equalize", "find_pairs"]

_BEHIND_CONVOLUTIONS: Final[tuple[Kind, ...]] = (
    "max-pool",
    "average-pool",
    "adaptive-average-pool",
    "flatten",
)
_ANYWHERE: Final[tuple[Kind, ...]] = ("relu", "relu6", "channel-clamp", "identity")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers, and what is between them."""

    first: Operation
    second: Operation
    between: tuple[Operation, ...]


def find_pairs(network: Network) -> list[Pair]:
    """Layers between which ranges can be moved, in order. Nothing that a pair consists of is used twice."""
    found = []
    for first in network.operations.values():
        if first.kind in LAYERS and network.uses(first.layer) == 1 and not _is_tied(network, first):
            pair = _follow(network, first)
            if pair is not None:
                found.append(pair)
    return found


def equalize(network: Network, *, iterations: int = 50, tolerance: float = 1e-3) -> list[Pair]:
    """Make the ranges of the channels between the layers of each pair equal; the network computes the same as before.

    It ends when no scale differs from 1 by more than ``tolerance``, or after so many ``iterations``. Returns the pairs.
    Changes the module and the moments. Raises UsageError if there are no iterations.
    """
    if iterations < 1:
        raise UsageError(f"{iterations} iterations of equalization: at least 1 is needed")
    clamps: dict[str, nn.Module] = {}
    for pair in find_pairs(network):
        for operation in pair.between:
            if operation.kind == "relu6":
                axis = -1 if pair.first.kind == "linear" else 1
                ceilings = pair.first.layer.weight.new_full((channels(pair.first.layer)[1],), 6.0)
                clamps[operation.name] = ChannelClamp(ceilings.detach(), axis)
    network.replace(clamps)
    pairs = find_pairs(network)
    for _ in range(iterations):
        if max((_equalize(network, pair) for pair in pairs), default=0.0) <= tolerance:
            break
    return pairs


def _equalize(network: Network, pair: Pair) -> float:
    """The farthest that a scale is from 1, as |log s|."""
    first, second = pair.first.layer, pair.second.layer
    number = channels(first)[1]
    before, after = by_output(first).cpu().numpy(), by_input(second, number).cpu().numpy()
    scales = equalizing_scales(before, after)
    bias = None if first.bias is None else first.bias.detach().double().cpu().numpy()
    scaled, scaled_bias, taken = absorb_scales(before, bias, after, scales)
    from_output(first, torch.from_numpy(scaled))
    from_input(second, torch.from_numpy(taken))
    divisors = torch.from_numpy(scales)
    if scaled_bias is not None and first.bias is not None:
        with torch.no_grad():
            first.bias.copy_(torch.from_numpy(scaled_bias))
    for clamp in _clamps(pair.between):
        clamp.ceilings.div_(divisors.to(clamp.ceilings))
    moments = network.moments.get(pair.first.name)
    if moments is not None:
        there = divisors.to(moments.mean)
        network.moments[pair.first.name] = Moments(moments.mean / there, moments.deviation / there)
    return float(np.abs(np.log(scales)).max())


def absorb_high_biases(network: Network, *, deviations: float = 3.0) -> dict[str, torch.Tensor]:
    """Move what a channel's outputs are above zero anyway into the next layer's bias: c = max(0, mean - 3 deviations).

    b1' = b1 - c and b2' = b2 + W2 c compute the same wherever the output is at least c, which for a normal distribution
    are 99.87 % of the places. It needs moments from folded BatchNorms, a ReLU between the layers, and no pooling or
    padding, as zeros at the border would count as c. Returns what was moved, float64 (channels,), by the name of the
    layer that it came from.
    """
    moved = {}
    for pair in find_pairs(network):
        moments = network.moments.get(pair.first.name)
        kinds = [one.kind for one in pair.between]
        if moments is None or not {"relu", "channel-clamp"} & set(kinds) or _pads(pair.second.layer):
            continue
        if not set(kinds) <= {"relu", "channel-clamp", "identity", "flatten"}:
            continue
        high = (moments.mean - deviations * moments.deviation).clamp(min=0)
        for clamp in _clamps(pair.between):
            high = torch.minimum(high, clamp.ceilings.to(high))
        if not (high > 0).any():
            continue
        first, second = ensure_bias(pair.first.layer), ensure_bias(pair.second.layer)
        with torch.no_grad():
            first.sub_(high.to(first))
            second.add_(mean_outputs(pair.second.layer, high).to(second))
        for clamp in _clamps(pair.between):
            clamp.ceilings.sub_(high.to(clamp.ceilings))
        network.moments[pair.first.name] = Moments(moments.mean - high, moments.deviation)
        moved[pair.first.name] = high
    return moved


def _follow(network: Network, first: Operation) -> Pair | None:
    between: list[Operation] = []
    flat = False
    operation = network.only_user(first)
    while operation is not None:
        if operation.kind in LAYERS:
            second = operation
            if network.uses(second.layer) > 1 or _is_tied(network, second):
                return None
            if (second.kind == "linear") != (first.kind == "linear" or flat):
                return None  # the channels are not what the second layer mixes
            into, out = channels(second.layer)[0], channels(first.layer)[1]
            fits = into % out == 0 if flat else into == out
            return Pair(first, second, tuple(between)) if fits else None
        if flat and operation.kind not in ("relu", "identity"):
            return None  # pooling would mix channels, and a ceiling for each would not fit
        if operation.kind == "flatten":
            if operation.options["start_dim"] != 1 or operation.options["end_dim"] != -1:
                return None
            flat = True
        allowed = _ANYWHERE if first.kind == "linear" else _ANYWHERE + _BEHIND_CONVOLUTIONS
        if operation.kind not in allowed or not _is_own(network, operation):
            return None
        between.append(operation)
        operation = network.only_user(operation)
    return None


def _is_own(network: Network, operation: Operation) -> bool:
    """A ReLU6 has to become something else, which only a module of its own can."""
    if operation.kind not in ("relu6", "channel-clamp"):
        return True
    return operation.module is not None and network.uses(operation.module) == 1


def _is_tied(network: Network, operation: Operation) -> bool:
    weight = operation.layer.weight
    owners = sum(
        any(parameter is weight for parameter in part.parameters(recurse=False))
        for part in network.module.modules()
    )
    return owners > 1


def _pads(layer: Layer) -> bool:
    if isinstance(layer, nn.Linear):
        return False
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return True  # fewer products meet at its borders, whatever its padding
    return layer.padding != "valid" if isinstance(layer.padding, str) else any(layer.padding)


def _clamps(operations: Sequence[Operation]) -> list[ChannelClamp]:
    return [one.module for one in operations if isinstance(one.module, ChannelClamp)]

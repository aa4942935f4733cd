"""Weights of linear layers and convolutions as matrices by output or by input channel, whatever their layout.

    linear                    (out, in)
    convolution               (out, in / groups, ...)
    transposed convolution    (in, out / groups, ...)

The matrices are copies in float64.
"""

from __future__ import annotations

import torch
from torch import nn

from dcz.compression.networks.graph import Layer

__all__ = [
    "by_input",
    "by_output",
    "channels",
    "ensure_bias",
    "from_input",
    "from_output",
    "groups_of",
    "mean_outputs",
]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def channels(layer: Layer) -> tuple[int, int]:
    """How many go in, and out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def groups_of(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _split(layer: Layer) -> tuple[int, int, int, int]:
    """Groups, inputs and outputs of each, and places of the kernel."""
    into, out = channels(layer)
    groups = groups_of(layer)
    return groups, into // groups, out // groups, layer.weight[0, 0].numel()


def _grouped(layer: Layer) -> torch.Tensor:
    """(groups, outputs, inputs, places), float64."""
    groups, into, out, places = _split(layer)
    weight = layer.weight.detach().double()
    if isinstance(layer, _TRANSPOSED):
        return weight.reshape(groups, into, out, places).transpose(1, 2)
    return weight.reshape(groups, out, into, places)


def _set_grouped(layer: Layer, value: torch.Tensor) -> None:
    if isinstance(layer, _TRANSPOSED):
        value = value.transpose(1, 2)
    with torch.no_grad():
        layer.weight.copy_(value.reshape(layer.weight.shape))


def by_output(layer: Layer) -> torch.Tensor:
    """float64 (out, inputs of the group x places): a copy."""
    groups, into, out, places = _split(layer)
    return _grouped(layer).reshape(groups * out, into * places).clone()


def from_output(layer: Layer, matrix: torch.Tensor) -> None:
    """Set the weight from what `by_output` gives."""
    groups, into, out, places = _split(layer)
    _set_grouped(layer, matrix.reshape(groups, out, into, places))


def by_input(layer: Layer, number: int) -> torch.Tensor:
    """float64 (rows, number): all weights that the channels of the layer before it meet, a copy.

    ``number``: of those channels; behind a flatten, each of them goes into several inputs of a linear layer.
    """
    groups, into, out, places = _split(layer)
    repeat = groups * into // number
    grouped = _grouped(layer)
    if repeat > 1:
        return grouped.reshape(out, number, repeat).transpose(1, 2).reshape(out * repeat, number).clone()
    return grouped.permute(1, 3, 0, 2).reshape(out * places, groups * into).clone()


def from_input(layer: Layer, matrix: torch.Tensor) -> None:
    """Set the weight from what `by_input` gives."""
    groups, into, out, places = _split(layer)
    number = matrix.shape[1]
    repeat = groups * into // number
    if repeat > 1:
        _set_grouped(layer, matrix.reshape(out, repeat, number).transpose(1, 2).reshape(1, out, into, 1))
    else:
        _set_grouped(layer, matrix.reshape(out, places, groups, into).permute(2, 0, 3, 1))


def mean_outputs(layer: Layer, mean: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """W E[x], float64 (out,), where every place of the kernel meets the same mean; padding is not considered.

    ``mean``: float64 (channels of what is before,). ``weight``: another one, as `by_output` gives it.
    """
    groups, into, out, places = _split(layer)
    matrix = by_output(layer) if weight is None else weight
    spread = mean.repeat_interleave(groups * into // mean.numel()).reshape(groups, into)
    return torch.einsum("goip,gi->go", matrix.reshape(groups, out, into, places), spread).reshape(-1)


def ensure_bias(layer: Layer) -> torch.Tensor:
    """The layer's bias; zeros become it if there was none."""
    if layer.bias is None:
        _, out = channels(layer)
        layer.bias = nn.Parameter(layer.weight.new_zeros(out), requires_grad=layer.weight.requires_grad)
    return layer.bias

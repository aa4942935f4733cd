"""The mean change of a layer's outputs goes into its bias (Nagel et al. 2019, section 4.2 and appendix).

    with data       means of the outputs over calibration batches, before and after, layer by layer, so that each
                    correction sees the corrected layers before it
    without data    -(W^ - W) E[x], where E[x] follows from the statistics of BatchNorm

A normal variable that is cut off at zero, and for a ReLU6 at a ceiling, has a mean in closed form; sums, concatenations and
averages pass on theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from dcz.compression.networks.graph import ChannelClamp, Network, Operation, kept_batches
from dcz.compression.networks.layers import by_output, channels, ensure_bias, mean_outputs
from dcz.errors import UsageError

__all__ = [
    "clipped_normal",
    "correct_biases",
    "correct_biases_without_data",
    "expected_inputs",
    "mean_of_outputs",
]


def correct_biases(
    quantized: Network, original: Network, batches: Iterable[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Make the mean of each output channel over the batches what it is in the original. Changes the biases of ``quantized``.

    ``quantized``, ``original``: of the same structure, with other weights. ``batches``: inputs; they are gone through
    once for each layer. Returns what was added to the biases, float64 (out,), by the layers' names.

    Raises UsageError if there are no batches, or if the layers are not the same.
    """
    names = _same_layers(quantized, original)
    kept = kept_batches(batches)
    wanted = mean_of_outputs(original, names, kept)
    added = {}
    for operation in quantized.layers():
        change = wanted[operation.name] - mean_of_outputs(quantized, [operation.name], kept)[operation.name]
        _add(operation, change)
        added[operation.name] = change
    return added


def correct_biases_without_data(
    quantized: Network, original: Network, *, input_mean: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """As `correct_biases`, from what the folded BatchNorms of ``original`` say.

    ``input_mean``: of the network's inputs, (channels,), if it is known. Layers about whose inputs nothing is known are left
    as they are: those behind max-pooling, behind what has no kind, and the first one without ``input_mean``. Inputs at
    the border of a padded convolution are taken for as large as the others.
    """
    _same_layers(quantized, original)
    means = expected_inputs(original, input_mean=input_mean)
    weights = {operation.name: by_output(operation.layer) for operation in original.layers()}
    added = {}
    for operation in quantized.layers():
        mean = means.get(operation.name)
        if mean is None:
            continue
        layer = operation.layer
        change = mean_outputs(layer, mean, weights[operation.name] - by_output(layer))
        _add(operation, change)
        added[operation.name] = change
    return added


def mean_of_outputs(
    network: Network, names: Iterable[str], batches: Iterable[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The mean of each output channel of some layers over batches of inputs: float64 (out,), by name.

    Raises UsageError if there are no batches.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    handles = []

    def watch(name: str, operation: Operation) -> None:
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
            axis = output.ndim - 1 if operation.kind == "linear" else 1
            rows = output.detach().double().movedim(axis, 0).flatten(1)
            sums[name] = sums.get(name, torch.zeros(())) + rows.sum(1)
            counts[name] = counts.get(name, 0) + rows.shape[1]

        handles.append(operation.layer.register_forward_hook(hook))

    layers = {operation.name: operation for operation in network.layers()}
    wanted = list(names)
    for name in wanted:
        watch(name, layers[name])
    try:
        with torch.no_grad():
            for batch in batches:
                network.module(batch)
    finally:
        for handle in handles:
            handle.remove()
    if any(name not in sums for name in wanted):
        raise UsageError("there are no calibration batches", hint="give at least one batch of inputs")
    return {name: sums[name] / counts[name] for name in wanted}


@dataclass(frozen=True, eq=False)
class _Known:
    """Of each channel: its mean, and if that is known its deviation, with which it is taken for normal."""

    mean: torch.Tensor
    deviation: torch.Tensor | None = None


def expected_inputs(network: Network, *, input_mean: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """E[x] of each input channel of layers, float64, by the layers' names, where something is known.

    Of a layer behind a flatten: of the channels before it.
    """
    known: dict[object, _Known | None] = {}
    means = {}
    for node, operation in network.operations.items():
        inputs = [known.get(one) for one in operation.inputs]
        if operation.kind == "input":
            known[node] = None if input_mean is None else _Known(input_mean.detach().double().cpu())
            continue
        known[node] = _next(network, operation, inputs)
        if operation.kind in ("linear", "convolution", "transposed-convolution"):
            before = inputs[0]
            if before is not None and channels(operation.layer)[0] % before.mean.numel() == 0:
                means[operation.name] = before.mean
    return means


def _next(network: Network, operation: Operation, inputs: list[_Known | None]) -> _Known | None:
    moments = network.moments.get(operation.name)
    if moments is not None:
        return _Known(moments.mean.cpu(), moments.deviation.cpu())
    if operation.kind == "batch-norm":
        weight, bias = getattr(operation.module, "weight", None), getattr(operation.module, "bias", None)
        if weight is None or bias is None:
            return None
        return _Known(bias.detach().double().cpu(), weight.detach().double().abs().cpu())
    known = [one for one in inputs if one is not None]
    if not known or len(known) < len(inputs):
        return None
    first = known[0]
    match operation.kind:
        case "linear" | "convolution":
            layer = operation.layer
            if channels(layer)[0] % first.mean.numel():
                return None
            mean = mean_outputs(layer, first.mean.to(layer.weight.device))
            return _Known((mean if layer.bias is None else mean + layer.bias.detach().double()).cpu())
        case "relu" | "relu6" | "channel-clamp":
            if first.deviation is None:
                return None
            ceiling = torch.full_like(first.mean, 6.0 if operation.kind == "relu6" else math.inf)
            if isinstance(operation.module, ChannelClamp):
                ceiling = operation.module.ceilings.double().cpu()
            return _Known(*clipped_normal(first.mean, first.deviation, ceiling))
        case "identity" | "flatten":
            return first
        case "average-pool" | "adaptive-average-pool":
            return _Known(first.mean)
        case "add":
            deviation = None
            if all(one.deviation is not None for one in known):
                squares = [torch.square(one.deviation) for one in known if one.deviation is not None]
                deviation = torch.stack(squares).sum(0).sqrt()
            if len({one.mean.shape for one in known}) > 1:
                return None
            return _Known(torch.stack([one.mean for one in known]).sum(0), deviation)
        case "concatenate" if operation.options["dim"] == 1:
            deviations = [one.deviation for one in known if one.deviation is not None]
            whole = len(deviations) == len(known)
            return _Known(torch.cat([one.mean for one in known]), torch.cat(deviations) if whole else None)
        case _:
            return None


def clipped_normal(
    mean: torch.Tensor, deviation: torch.Tensor, ceiling: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of min(max(x, 0), c), where x is normal. All float64, of one shape; c may be infinite.

    With a = -m / s, b = (c - m) / s, and phi and Phi the standard normal density and distribution:

        E[y]   = m (Phi(b) - Phi(a)) + s (phi(a) - phi(b)) + c (1 - Phi(b))
        E[y^2] = (m^2 + s^2) (Phi(b) - Phi(a)) + s (m phi(a) - (m + c) phi(b)) + c^2 (1 - Phi(b))
    """
    s = deviation.clamp(min=1e-30)
    low, high = -mean / s, (ceiling - mean) / s
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    above = torch.special.ndtr(-high)
    finite = torch.where(torch.isfinite(ceiling), ceiling, 0.0)
    at_low, at_high = _density(low), _density(high)
    first = mean * inside + s * (at_low - at_high) + finite * above
    second = (mean**2 + s**2) * inside + s * (mean * at_low - (mean + finite) * at_high) + finite**2 * above
    return first, (second - first**2).clamp(min=0).sqrt()


def _density(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _same_layers(quantized: Network, original: Network) -> list[str]:
    ours, theirs = ([one.name for one in network.layers()] for network in (quantized, original))
    if ours != theirs:
        raise UsageError("the two networks do not have the same layers")
    return ours


def _add(operation: Operation, change: torch.Tensor) -> None:
    bias = ensure_bias(operation.layer)
    with torch.no_grad():
        bias.add_(change.to(bias))

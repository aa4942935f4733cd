"""Learned rounding: each weight up or down, so that the outputs of its layer change little (AdaRound: Nagel et al., "Up or
Down? Adaptive Rounding for Post-Training Quantization", 2020).

No labels and few inputs are needed. Layer by layer, in the order in which they are called, with the scales S and zero points
Z of dcz.compression.quantizers held and one variable V for each weight:

    soft weights    S (clamp(floor(w / S) + Z + h(V), least, most) - Z),  h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)
    loss            the squared error of the layer's outputs, relative to that of rounding to nearest, plus
                    strength x mean (1 - |2 h(V) - 1|^beta)

beta falls from 20 to 2, so that in the end each h is 0 or 1. The inputs are those that the layers before give once they are
quantized, the outputs that are wanted those of the network as it was. Where rounding to nearest is better on the calibration
set after all, it is kept.

    found = learn_rounding(module, batches, bits=4, granularity=PerChannel(axis=0))
    found.errors["conv1.weight"]      # of the outputs: rounded to nearest, and learned
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from dcz.compression.calibration import Calibration
from dcz.compression.quantizers import ScaleDType, Scheme, quantize_affine
from dcz.compression.scales import least_code
from dcz.compression.training.activations import run_batch
from dcz.compression.training.masks import array_of, naming
from dcz.compression.training.quantized_weights import Bits, bits_of, oriented
from dcz.compression.training.torch_groups import spread
from dcz.compression.training.weights import Weight, find_weights
from dcz.errors import EncodingError, UsageError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import UniformTensor

__all__ = ["LearnedRounding", "learn_rounding", "rectified_sigmoid", "undecided"]

_KINDS: Final = ("linear", "conv")
_STRETCH: Final = (-0.1, 1.1)
_BETA: Final = (20.0, 2.0)
_WARM_UP: Final = 0.2  # of the steps, without the second term


@dataclass(frozen=True)
class LearnedRounding:
    """What came out, by the first names of the weights. ``tensors``: their codes. ``errors``: the mean squared error of the
    layer's outputs on the calibration set, rounded to nearest and as it is now."""

    tensors: dict[str, UniformTensor] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


def rectified_sigmoid(variables: torch.Tensor) -> torch.Tensor:
    """h(V), 0 to 1, of the same shape; equation 23 of the paper."""
    low, high = _STRETCH
    return (torch.sigmoid(variables) * (high - low) + low).clamp(0, 1)


def undecided(parts: torch.Tensor, beta: float) -> torch.Tensor:
    """The mean of 1 - |2 h - 1|^beta: 0 if each is 0 or 1; equation 24 of the paper."""
    return (1 - (2 * parts - 1).abs().pow(beta)).mean()


def learn_rounding(
    module: nn.Module,
    batches: Iterable[Any],
    bits: Bits = 4,
    *,
    weights: Sequence[Weight] | None = None,
    scheme: Scheme = "symmetric",
    granularity: Granularity | None = None,
    calibration: Calibration = "mse",
    scale_dtype: ScaleDType | None = None,
    steps: int = 500,
    batch_size: int = 32,
    lr: float = 0.1,
    strength: float = 3.0,
    seed: int = 0,
    run: Callable[[nn.Module, Any], object] | None = None,
) -> LearnedRounding:
    """Quantize the weights of linear and convolutional layers in place, each to the codes that change its outputs least.

    ``batches``: of inputs, as for dcz.compression.training.activations.calibrate, which has ``run``, too; a few hundred inputs are
    enough. All activations of one layer at a time are kept. ``bits`` ... ``scale_dtype``: as for
    dcz.compression.training.fake_quantization.fake_quantize. ``weights``: which; None for all. ``steps``, of ``batch_size``
    inputs each, and ``lr``: of Adam. The result depends on ``seed`` alone.

    Raises UsageError if there are no batches, or if a weight is under a parametrization, belongs to several layers, or its layer
    is not called; EncodingError, which names the weight, if it or the activations of its layer are not finite or the arguments
    do not fit it.
    """
    chosen = (
        [weight for weight in find_weights(module) if weight.kind in _KINDS] if weights is None else weights
    )
    for weight in chosen:
        if weight.parametrization is not None or len(weight.owners) != 1 or weight.kind not in _KINDS:
            raise UsageError(
                f"the rounding of {weight.name} cannot be learned",
                hint="remove its parametrization; a linear or convolutional layer of its own is needed",
            )
    inputs = list(batches)
    if not inputs:
        raise UsageError("there are no batches", hint="give at least one batch of inputs")
    dense = copy.deepcopy(module)
    its = dict(zip([id(part) for part in module.modules()], dense.modules(), strict=True))
    order = _call_order(module, chosen, inputs, run or run_batch)
    found = LearnedRounding()
    generator = torch.Generator().manual_seed(seed)
    for weight in order:
        wanted = bits_of(bits, weight)
        if wanted is None:
            continue
        layer, attribute = weight.owners[0]
        with naming(weight):
            nearest = quantize_affine(
                array_of(weight.parameter),
                bits=wanted,
                scheme=scheme,
                granularity=oriented(granularity or PerTensor(), weight),
                calibration=calibration,
                scale_dtype=scale_dtype,
            )
        calls = _Calls(
            [arguments for arguments, _ in _seen(module, layer, inputs, run or run_batch)],
            [output for _, output in _seen(dense, its[id(layer)], inputs, run or run_batch)],
            layer,
            attribute,
        )
        soft = _Soft(weight.parameter.detach(), nearest, scheme)
        best = soft.value(soft.nearest())
        floor = error = calls.error(best)
        if not math.isfinite(floor):
            raise EncodingError(
                f"what goes into the layer of {weight.name}, or comes out of it, is not finite"
            )
        if floor > 0:
            value = soft.value(_learned(soft, calls, floor, steps, batch_size, lr, strength, generator))
            learned = calls.error(value)
            if learned < floor:
                best, error = value, learned
        found.errors[weight.name] = floor, error
        found.tensors[weight.name] = soft.stored(best)
        with torch.no_grad():
            weight.parameter.copy_(best)
    return found


class _Soft:
    """A weight between its two neighbouring codes."""

    def __init__(self, weight: torch.Tensor, nearest: UniformTensor, scheme: Scheme) -> None:
        self._nearest = nearest
        self._dtype = weight.dtype
        compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
        middle = np.full(nearest.scales.shape, 1 << (nearest.bits - 1), np.uint8)
        points = middle if nearest.zero_points is None else nearest.zero_points
        shape = tuple(weight.shape)
        self._steps, self._zeros = (
            spread(
                torch.from_numpy(part.astype(np.float64)).to(weight.device, compute),
                shape,
                nearest.granularity,
            )
            for part in (nearest.scales, points)
        )
        exact = weight.to(compute) / torch.where(self._steps == 0, 1, self._steps)
        self._below = exact.floor()
        self.fractions = exact - self._below
        self._least = least_code(scheme)
        self._most = (1 << nearest.bits) - 1

    def nearest(self) -> torch.Tensor:
        """Whether each weight goes up, as 0 and 1, when rounded to nearest; ties to the even code."""
        return torch.round(self._below + self.fractions) - self._below

    def codes(self, parts: torch.Tensor) -> torch.Tensor:
        return (self._below + self._zeros + parts).clamp(self._least, self._most)

    def value(self, parts: torch.Tensor) -> torch.Tensor:
        return (self._steps * (self.codes(parts) - self._zeros)).to(self._dtype)

    def stored(self, value: torch.Tensor) -> UniformTensor:
        codes = torch.round(value.to(self._steps.dtype) / torch.where(self._steps == 0, 1, self._steps))
        nearest = self._nearest
        return UniformTensor(
            dtype=nearest.dtype,
            shape=nearest.shape,
            bits=nearest.bits,
            codes=(codes + self._zeros).to("cpu", torch.uint8).numpy(),
            scales=nearest.scales,
            granularity=nearest.granularity,
            zero_points=nearest.zero_points,
        )


class _Calls:
    """What a layer was called with, and what it should put out."""

    def __init__(
        self,
        arguments: list[tuple[Any, ...]],
        outputs: list[torch.Tensor],
        layer: nn.Module,
        attribute: str,
    ) -> None:
        self._calls = list(zip(arguments, outputs, strict=True))
        self._layer, self._attribute = layer, attribute

    def _difference(
        self, weight: torch.Tensor, arguments: tuple[Any, ...], wanted: torch.Tensor
    ) -> torch.Tensor:
        output = torch.func.functional_call(self._layer, {self._attribute: weight}, arguments)
        difference: torch.Tensor = (output - wanted).float()
        return difference

    @torch.no_grad()
    def error(self, weight: torch.Tensor) -> float:
        """Mean squared error of the outputs, over all calls."""
        total = count = 0.0
        for arguments, wanted in self._calls:
            total += float(self._difference(weight, arguments, wanted).square().sum(dtype=torch.float64))
            count += wanted.numel()
        return total / count

    def sampled(self, weight: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
        """The same of a random part of one call, as a scalar that can be differentiated."""
        which = int(torch.randint(len(self._calls), (), generator=generator))
        (first, *others), wanted = self._calls[which]
        if len(first) > size:
            rows = torch.randperm(len(first), generator=generator)[:size].to(first.device)
            first, wanted = first[rows], wanted[rows]
        return self._difference(weight, (first, *others), wanted).square().mean()


def _learned(
    soft: _Soft,
    calls: _Calls,
    floor: float,
    steps: int,
    batch_size: int,
    lr: float,
    strength: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Whether each weight goes up, 0 or 1."""
    low, high = _STRETCH
    # h(V) is the fraction at first: what is computed with is the weight itself.
    odds = (soft.fractions - low) / (high - low)
    variables = torch.logit(odds).requires_grad_()
    optimizer = torch.optim.Adam([variables], lr)
    warm = int(_WARM_UP * steps)
    with torch.enable_grad():
        for step in range(steps):
            parts = rectified_sigmoid(variables)
            loss = calls.sampled(soft.value(parts), batch_size, generator) / floor
            if step >= warm:
                done = (step - warm) / max(1, steps - warm)
                beta = _BETA[1] + 0.5 * (_BETA[0] - _BETA[1]) * (1 + math.cos(math.pi * done))
                loss = loss + strength * undecided(parts, beta)
            (variables.grad,) = torch.autograd.grad(loss, [variables])
            optimizer.step()
    with torch.no_grad():
        return (rectified_sigmoid(variables) >= 0.5).to(soft.fractions.dtype)


def _seen(
    module: nn.Module, layer: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], object]
) -> list[tuple[tuple[Any, ...], torch.Tensor]]:
    """Arguments and outputs of each call of the layer, in evaluation."""
    seen: list[tuple[tuple[Any, ...], torch.Tensor]] = []

    def see(_: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        seen.append((arguments, output))

    hook = layer.register_forward_hook(see)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                run(module, batch)
    finally:
        hook.remove()
        for part, training in modes:
            part.training = training
    return seen


def _call_order(
    module: nn.Module,
    weights: Sequence[Weight],
    batches: Sequence[Any],
    run: Callable[[nn.Module, Any], object],
) -> list[Weight]:
    """The weights as their layers are called. Raises UsageError for one that is not, or without positional arguments."""
    called: list[int] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and id(layer) not in called:
            called.append(id(layer))

    hooks = [weight.owners[0][0].register_forward_pre_hook(note) for weight in weights]
    try:
        _seen(module, module, batches[:1], run)
    finally:
        for hook in hooks:
            hook.remove()
    for weight in weights:
        if id(weight.owners[0][0]) not in called:
            raise UsageError(
                f"the layer of {weight.name} was not called with the first batch",
                hint="give batches of inputs, and leave out the weights of layers that are not used",
            )
    return sorted(weights, key=lambda weight: called.index(id(weight.owners[0][0])))

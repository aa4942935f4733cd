"""What a weight's quantization costs in quality, before anything is chosen. Two ways:

*Second order* (Dong et al., "HAWQ-V2", 2020; Yao et al., "HAWQ-V3", 2021): near a minimum of the loss L, an error e in a weight w
adds e'He / 2 to it, H the Hessian of L with respect to w. For an error that points nowhere in particular that is on average

    tr(H) / n x ||Q(w) - w||^2 / 2          n elements

and the trace is estimated as Hutchinson did (1990): v'Hv has the mean tr(H) if the elements of v are -1 or 1 at random. One
v for all weights at once gives the traces of all diagonal blocks, as what lies off the diagonal has the mean 0. (The papers
leave out the 1/2. With it, what is estimated is what can be measured.)

*Measured*: each weight is stored alone in each way, all others as they are, and the quality is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dcz.compression.search.costs import Choice, Option, stored
from dcz.compression.torch_tensors import check_tensor, to_numpy, to_torch
from dcz.compression.training.masks import PruningMask
from dcz.compression.training.weights import Weight
from dcz.errors import UsageError
from dcz.format.effort import EffortName

__all__ = ["LossOf", "Trace", "choices", "hessian_traces", "measured_loss", "second_order_loss"]

Batch = TypeVar("Batch")
LossOf: TypeAlias = Callable[[Weight, torch.Tensor], float]
"""What it costs to put these values, of the weight's shape and type, in a weight's place."""


@dataclass(frozen=True)
class Trace:
    """An estimate of the trace of a weight's Hessian, for each of its elements. ``error``: its standard error, NaN of a single probe."""

    mean: float
    error: float


def hessian_traces(
    weights: Sequence[Weight],
    loss: Callable[[Batch], torch.Tensor],
    batches: Iterable[Batch],
    *,
    probes: int = 8,
    seed: int = 0,
) -> dict[str, Trace]:
    """Traces of the Hessian of the mean loss with respect to each weight, over its elements.

    ``loss(batch)``: a scalar with a graph, of the module that the weights belong to, in the mode (train or eval) that it is in.
    ``batches``: gone through once, each with ``probes`` random vectors. Same weights, batches, seed: same traces. Attention is
    computed by products of matrices meanwhile, as torch's fused kernels have no second derivatives.

    Raises UsageError if there are no batches, or the loss depends on none of the weights.
    """
    if probes < 1:
        raise UsageError(f"{probes} probes: at least 1 is needed")
    generator = torch.Generator().manual_seed(seed)
    parameters = [weight.parameter for weight in weights]
    draws: list[list[float]] = [[] for _ in parameters]
    required = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for batch in batches:
                gradients = _gradients(loss(batch), parameters)
                for _ in range(probes):
                    vectors = [_signs(parameter, generator) for parameter in parameters]
                    for drawn, value in zip(draws, _quadratic(gradients, parameters, vectors), strict=True):
                        drawn.append(value)
                del gradients
    finally:
        for parameter, value in zip(parameters, required, strict=True):
            parameter.requires_grad_(value)
    if weights and not draws[0]:
        raise UsageError("there are no batches to estimate the Hessian with")
    return {
        weight.name: _trace(drawn, weight.parameter.numel())
        for weight, drawn in zip(weights, draws, strict=True)
    }


def _gradients(
    loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]
) -> tuple[torch.Tensor | None, ...]:
    if not loss.requires_grad:
        raise UsageError("the loss depends on none of the weights", hint="loss(batch) has to call the model")
    return torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)


def _quadratic(
    gradients: Sequence[torch.Tensor | None],
    parameters: Sequence[torch.nn.Parameter],
    vectors: Sequence[torch.Tensor],
) -> list[float]:
    """v'Hv of each weight's block, by the gradient of the product of gradient and v."""
    pairs = [
        (gradient, vector)
        for gradient, vector in zip(gradients, vectors, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not pairs:
        return [0.0] * len(parameters)
    products: Sequence[torch.Tensor | None] = list(
        torch.autograd.grad(
            [gradient for gradient, _ in pairs],
            parameters,
            grad_outputs=[vector for _, vector in pairs],
            retain_graph=True,
            allow_unused=True,
        )
    )
    return [
        0.0 if product is None else float((product.double() * vector).sum())
        for product, vector in zip(products, vectors, strict=True)
    ]


def _signs(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(0, 2, parameter.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(parameter.device, parameter.dtype)


def _trace(drawn: Sequence[float], elements: int) -> Trace:
    count = len(drawn)
    mean = math.fsum(drawn) / count
    spread = math.fsum((value - mean) ** 2 for value in drawn) / (count - 1) if count > 1 else math.nan
    return Trace(mean / elements, math.sqrt(spread / count) / elements)


def second_order_loss(traces: Mapping[str, Trace]) -> LossOf:
    """Half of the mean of the Hessian's diagonal times the squared error.

    Its magnitude counts: where an estimate is negative, the network is not at a minimum, and the weight not insensitive.
    """

    def loss_of(weight: Weight, values: torch.Tensor) -> float:
        error = float((values.double() - weight.value().double()).square().sum())
        return abs(traces[weight.name].mean) * error / 2

    return loss_of


def measured_loss(evaluate: Callable[[], float]) -> LossOf:
    """What ``evaluate()``, a quality, higher is better, falls by; it is called once here and once for each weight and option."""

    def quality_now() -> float:
        with torch.no_grad():
            return float(evaluate())

    quality = quality_now()

    def loss_of(weight: Weight, values: torch.Tensor) -> float:
        if not isinstance(weight.parametrization, PruningMask | None):
            raise UsageError(
                f"{weight.name} cannot be measured: it is under {type(weight.parametrization).__name__}"
            )
        parameter, before = weight.parameter, weight.parameter.data
        try:
            parameter.data = values.to(before.device)
            return quality - quality_now()
        finally:
            parameter.data = before

    return loss_of


def choices(
    weights: Sequence[Weight],
    options: Mapping[str, Sequence[Option]],
    loss_of: LossOf,
    *,
    effort: EffortName = "balanced",
) -> dict[str, tuple[Choice, ...]]:
    """Each weight stored in each of its ways, encoded as the writer would: the bytes and the loss.

    ``options``: of each weight, by its first name.
    The weights are the same afterwards, to the bit. Raises EncodingError if an option does not fit a weight, and what
    ``loss_of`` raises.
    """
    found: dict[str, tuple[Choice, ...]] = {}
    for weight in weights:
        value = weight.value()
        dtype = check_tensor(weight.name, value)
        row: list[Choice] = []
        for option in options[weight.name]:
            kept = stored(to_numpy(value, dtype), option, effort=effort)
            loss = loss_of(weight, to_torch(kept.values, dtype))
            row.append(Choice(option.name, option.bits, kept.bytes, loss))
        found[weight.name] = tuple(row)
    return found

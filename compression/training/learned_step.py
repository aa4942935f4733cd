"""Learned step sizes: the scale of a quantizer is trained with the weights (Esser et al., "Learned Step Size Quantization",
2020).

With the step s, codes between -n and p, and everything rounded to nearest, ties to even:

    forward         s q,  q = clamp(rne(x / s), -n, p)
    gradient of x   1 where -n <= rne(x / s) <= p, 0 outside
    gradient of s   q - x / s inside, -n or p outside; times 1 / sqrt(N p), where N values have the same step
    at first        s = 2 mean|x| / sqrt(p)

    scheme          n               p
    symmetric       2^(b-1) - 1     2^(b-1) - 1
    symmetric-full  2^(b-1)         2^(b-1) - 1     the paper's, for weights
    asymmetric      Z               2^b - 1 - Z     with a zero point Z that is held; 0 for activations that are not negative

What is trained is the step in units of its first value. So an optimizer that moves each parameter by about its learning rate,
such as Adam, changes all steps in proportion, and plain gradient descent does exactly what it does in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from dcz.compression.observers import Parameters
from dcz.compression.quantizers import ScaleDType, Scheme
from dcz.compression.scales import check_bits, least_code, nearest_scales, stored_dtype
from dcz.compression.torch_tensors import check_tensor
from dcz.compression.training.activations import (
    ActivationQuantizer,
    Layers,
    Side,
    add_activation_quantizers,
)
from dcz.compression.training.quantized_weights import (
    Bits,
    UniformWeight,
    bits_of,
    oriented,
    put_under,
    scale_type,
)
from dcz.compression.training.torch_groups import check_granularity, group_means, spread
from dcz.compression.training.weights import Weight
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import UniformTensor

__all__ = [
    "LearnedStepQuantizer",
    "LearnedStepWeight",
    "LearnedSteps",
    "learn_activation_steps",
    "learn_steps",
    "stepped",
]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        steps: torch.Tensor,
        zero_points: torch.Tensor,
        least: int,
        most: int,
        scale: float,
    ) -> torch.Tensor:
        exact = values.to(steps.dtype) / steps
        codes = torch.round(exact) + zero_points
        inside = (codes >= least) & (codes <= most)
        codes = codes.clamp_(least, most) - zero_points
        # Where the value is clipped, the derivative is the code alone.
        ctx.save_for_backward(inside, torch.where(inside, codes - exact, codes))
        ctx.shape, ctx.scale = steps.shape, scale
        return (steps * codes).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (inside, slopes), (gradient,) = ctx.saved_tensors, grad_outputs
        of_steps = (gradient.to(slopes.dtype) * slopes).sum_to_size(ctx.shape) * ctx.scale
        return gradient * inside, of_steps, None, None, None, None


def stepped(
    values: torch.Tensor,
    steps: torch.Tensor,
    zero_points: torch.Tensor,
    *,
    bits: int,
    scheme: Scheme,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Quantized and decoded again, in the values' own type; the gradients are those of the table above.

    ``values``: floating-point, any shape. ``steps``: above 0, of the type in which is computed; ``zero_points``: integers as
    floats of that type; both of as many dimensions as the values, to whose shape they broadcast. ``gradient_scale``: of the steps' gradient.
    """
    found: torch.Tensor = _Step.apply(  # type: ignore[no-untyped-call]
        values, steps, zero_points, least_code(scheme), (1 << bits) - 1, gradient_scale
    )
    return found


class _PassedOn(torch.autograd.Function):
    """Steps as they are used, from relative ones; the gradient of descent on the steps themselves."""

    @staticmethod
    def forward(ctx: Any, relative: torch.Tensor, first: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(first)
        exact = (first * relative).to(stored)
        return exact.clamp(min=torch.finfo(stored).tiny).to(first.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (first,) = ctx.saved_tensors
        # Descent moves the relative step by this times the rate, and so the step by `first` times that: the gradient.
        return grad_outputs[0] / first, None, None


class LearnedSteps(nn.Module):
    """Learned steps, one for each group. ``first``: (groups,), above 0, of the type in which is computed; ``stored``: the
    type to which they are rounded."""

    first: torch.Tensor

    def __init__(self, first: torch.Tensor, stored: torch.dtype) -> None:
        super().__init__()
        self._stored = stored
        self.register_buffer("first", first.detach().clone())
        self.relative = nn.Parameter(torch.ones_like(self.first))

    def forward(self) -> torch.Tensor:
        """(groups,), of the type in which is computed."""
        steps: torch.Tensor = _PassedOn.apply(self.relative, self.first, self._stored)  # type: ignore[no-untyped-call]
        return steps


def _most(bits: int) -> int:
    """The greatest multiple of the step, of signed codes."""
    return (1 << (bits - 1)) - 1


class LearnedStepWeight(UniformWeight):
    """The weight as uniform codes with learned steps give it.

    ``first``: the steps at the beginning, (groups,), float64 for f64 weights and float32 for others. ``bits`` at least 2.
    """

    def __init__(
        self,
        bits: int,
        first: torch.Tensor,
        scheme: Scheme = "symmetric",
        granularity: Granularity | None = None,
        scale_dtype: ScaleDType | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        super().__init__(bits, scheme, granularity, scale_dtype, mask)
        if scheme == "asymmetric":
            raise EncodingError(
                "learned steps of weights are symmetric", hint="scheme = 'symmetric-full' has one code more"
            )
        self.steps = LearnedSteps(first, scale_type(scale_dtype, first.dtype))

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        kept = self.kept(original)
        steps, most = self.steps(), _most(self.bits)
        return stepped(
            kept,
            spread(steps, tuple(kept.shape), self.granularity),
            steps.new_full([1] * kept.ndim, 1 << (self.bits - 1)),
            bits=self.bits,
            scheme=self.scheme,
            gradient_scale=1 / math.sqrt(kept.numel() / steps.numel() * most),
        )

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        return cls(**cls.arguments(settings), first=state["steps.first"], mask=state.get("mask"))

    @torch.no_grad()
    def stored(self, original: torch.Tensor) -> UniformTensor:
        kept = self.kept(original.detach())
        steps, middle = self.steps(), 1 << (self.bits - 1)
        multiples = torch.round(kept.to(steps.dtype) / spread(steps, tuple(kept.shape), self.granularity))
        stored = stored_dtype(self.scale_dtype, check_tensor("weight", kept))
        return self.coded(kept, multiples + middle, middle, steps.cpu().numpy().astype(stored))


def learn_steps(
    weights: Sequence[Weight],
    bits: Bits = 4,
    *,
    scheme: Scheme = "symmetric-full",
    granularity: Granularity | None = None,
    scale_dtype: ScaleDType | None = None,
) -> list[Weight]:
    """Let each weight be what codes with a learned step give, from now on; weights and steps are trained.

    ``bits``: 2 to 8; one for all, or by the first name of each weight; a weight without them is left as it is. ``granularity``:
    what shares a step; None is the whole tensor, as in the paper. A channel of axis 0 is an output of the layer also where
    a matrix is stored transposed. ``scale_dtype``: the type in which steps are stored, and to which they are rounded while
    they are learned.

    What was pruned stays pruned, and counts for nothing in the first step. Returns the weights that are quantized now.
    Raises EncodingError, which names the weight, if it is not finite or the arguments do not fit it; UsageError for
    one that is shared.
    """

    def make(weight: Weight, mask: torch.Tensor | None) -> LearnedStepWeight | None:
        wanted = bits_of(bits, weight)
        if wanted is None:
            return None
        check_bits(wanted, scheme)
        values = weight.parameter.detach()
        chosen = oriented(granularity or PerTensor(), weight)
        check_granularity(chosen, tuple(values.shape))
        dtype = check_tensor("weight", values)
        stored = stored_dtype(scale_dtype, dtype)
        if not bool(torch.isfinite(values if mask is None else values[mask]).all()):
            raise EncodingError("a weight is not finite")
        first = 2 * group_means(values.abs(), chosen, mask) / math.sqrt(_most(wanted))
        first = torch.where(first > 0, first, torch.ones_like(first))
        compute = torch.float64 if values.dtype == torch.float64 else torch.float32
        nearest_scales(first.cpu().numpy(), stored)
        return LearnedStepWeight(wanted, first.to(compute), scheme, chosen, scale_dtype, mask)

    return put_under(weights, make)


class LearnedStepQuantizer(ActivationQuantizer):
    """Activations with one learned step. The first is that of the first tensor that comes, or of those of `calibrate`;
    with it is decided whether codes are signed: they are not if no value is negative.
    """

    zero_point: torch.Tensor

    def __init__(self, bits: int = 4) -> None:
        super().__init__(bits, "asymmetric")
        self.steps = LearnedSteps(torch.zeros(1), torch.float32)
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.uint8))
        self._seen: list[tuple[float, int, float]] = []  # sum of magnitudes, number, the least

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.observing or not bool(self.steps.first > 0):
            self._observe(values)
            if self.observing:
                return values
            self.finish()
        most = (1 << self.bits) - 1 - int(self.zero_point)
        features = max(1, values.numel() // max(1, values.shape[0])) if values.ndim > 1 else values.numel()
        along = [1] * values.ndim
        return stepped(
            values,
            self.steps().reshape(along),
            self.zero_point.to(torch.float32).reshape(along),
            bits=self.bits,
            scheme=self.scheme,
            gradient_scale=1 / math.sqrt(features * max(1, most)),
        )

    @torch.no_grad()
    def _observe(self, values: torch.Tensor) -> None:
        seen = float(values.abs().sum(dtype=torch.float64)), values.numel(), float(values.min())
        if not math.isfinite(seen[0]):
            raise EncodingError("an activation is not finite")
        self._seen.append(seen)

    @torch.no_grad()
    def finish(self) -> None:
        if not self._seen:
            return
        total, count = sum(seen[0] for seen in self._seen), sum(seen[1] for seen in self._seen)
        signed = min(seen[2] for seen in self._seen) < 0 and self.bits > 1
        self.zero_point.fill_(1 << (self.bits - 1) if signed else 0)
        most = (1 << self.bits) - 1 - int(self.zero_point)
        self.steps.first.fill_(2 * total / count / math.sqrt(max(1, most)) or 1.0)
        self.steps.relative.fill_(1)
        self._seen.clear()

    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        del state
        return cls(**settings)

    def parameters_of(self) -> Parameters | None:
        if not bool(self.steps.first > 0):
            return None
        with torch.no_grad():
            steps = self.steps().cpu().numpy()
        return Parameters(self.bits, self.scheme, steps, self.zero_point.cpu().numpy())


def learn_activation_steps(
    module: nn.Module, bits: int = 4, *, layers: Layers = None, side: Side = "inputs"
) -> list[str]:
    """Quantize what goes into chosen layers, or comes out of them, with learned steps from now on.

    ``bits``, ``layers``, ``side``, result and errors: as for dcz.compression.training.activations.quantize_activations.
    """
    return add_activation_quantizers(
        module, lambda _name, _layer: LearnedStepQuantizer(bits), layers=layers, side=side
    )

"""Activations that are clipped where training says (PACT: Choi et al., "Parameterized Clipping Activation for Quantized Neural
Networks", 2018). With a learned level a and codes of b bits:

    y = (|x| - |x - a| + a) / 2            0 below 0, x between, a above
    forward     a / (2^b - 1) x rne(y (2^b - 1) / a)
    gradient    of x: 1 where 0 <= x < a, 0 elsewhere; of a: 1 where x >= a, 0 elsewhere
    decay       the gradient of decay x a^2, once for each backward pass, so that the level is no larger than it has to be

It does what a ReLU does, too: its place is where no value is negative, or instead of a ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from dcz.compression.observers import Parameters
from dcz.compression.training.activations import (
    ActivationQuantizer,
    Layers,
    Side,
    add_activation_quantizers,
)
from dcz.errors import UsageError

__all__ = ["ClippingQuantizer", "clip_activations"]


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, level: torch.Tensor, most: int, decay: float) -> torch.Tensor:
        wide = values.to(level.dtype)
        ctx.save_for_backward(wide, level)
        ctx.decay = decay
        step = level / most
        codes = torch.round(wide / step).clamp_(0, most).abs_()  # no -0
        return (codes * step).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (values, level), (gradient,) = ctx.saved_tensors, grad_outputs
        above = values >= level
        inside = (values >= 0) & ~above
        of_level = (gradient * above).sum(dtype=level.dtype).reshape(1) + 2 * ctx.decay * level
        return gradient * inside, of_level, None, None


class ClippingQuantizer(ActivationQuantizer):
    """Activations from 0 to a learned level, in uniform codes. ``level``: at first, above 0; ``decay``: 0 or more."""

    def __init__(self, bits: int = 4, *, level: float = 6.0, decay: float = 1e-4) -> None:
        super().__init__(bits, "asymmetric")
        if not (level > 0 and math.isfinite(level)):
            raise UsageError(f"a clipping level of {level}: above 0 is possible")
        if not (decay >= 0 and math.isfinite(decay)):
            raise UsageError(f"a decay of {decay}: 0 or more is possible")
        self.decay = decay
        self.level = nn.Parameter(torch.tensor([level], dtype=torch.float32))
        self._largest = 0.0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.observing:
            self._largest = max(self._largest, float(values.max()))
            return values
        found: torch.Tensor = _Clip.apply(values, self._positive(), (1 << self.bits) - 1, self.decay)  # type: ignore[no-untyped-call]
        return found

    def _positive(self) -> torch.Tensor:
        """An optimizer may step over zero."""
        least = torch.finfo(torch.float32).eps
        return self.level + (self.level.clamp(min=least) - self.level).detach()

    def finish(self) -> None:
        """Calibrated, the level is the largest value at first."""
        if self._largest > 0 and math.isfinite(self._largest):
            with torch.no_grad():
                self.level.fill_(self._largest)

    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "decay": self.decay}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        del state
        return cls(**settings)

    def parameters_of(self) -> Parameters | None:
        with torch.no_grad():
            step = (self._positive() / ((1 << self.bits) - 1)).cpu().numpy()
        return Parameters(self.bits, self.scheme, step, torch.zeros(1, dtype=torch.uint8).numpy())


def clip_activations(
    module: nn.Module,
    bits: int = 4,
    *,
    layers: Layers,
    level: float = 6.0,
    decay: float = 1e-4,
    side: Side = "inputs",
) -> list[str]:
    """Clip and quantize what goes into the chosen layers, or comes out of them, at levels that are learned from now on.

    ``bits``: 1 to 8. ``layers``: those where no value is negative, as for
    dcz.compression.training.activations.quantize_activations, which has ``side``, the result and further errors, too. ``level``: at first; calibrate()
    sets it to the largest value that it sees. Raises UsageError if ``level`` or ``decay`` is not possible.
    """
    return add_activation_quantizers(
        module,
        lambda _name, _layer: ClippingQuantizer(bits, level=level, decay=decay),
        layers=layers,
        side=side,
    )

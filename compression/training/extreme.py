"""Binary and ternary weights that are trained (survey, section IV-D). With the weights w of a group that share scales:

    binary    sign(w) a, a = mean|w|                               XNOR-Net: Rastegari et al. 2016
    twn       a sign(w) where |w| > D, otherwise 0;                ternary weight networks: Li, Zhang and Liu 2016
              D = 0.7 mean|w|, a = mean of |w| above D
    ttq       p where w > D, -n where w < -D, otherwise 0;         trained ternary quantization: Zhu et al. 2017
              D = 0.05 max|w|, p and n learned

and gradients, g being that of the weight that is used:

    binary    a g where |w| <= 1, and through the mean, sign(w) / N times the sum of g sign(w)
    twn       g
    ttq       of w: p g, n g or g, by where w is; of p and n: the sum of g where w > D, of -g where w < -D

Zero counts as negative, as in dcz.compression.extreme. Binary weights are stored as two values, ternary ones as codes of
which the fourth never occurs: 1 bit, and under 1.6 bits for each weight with the range coder, which the effort ``small`` tries;
a prefix code takes up to 1.67 where the three are about as frequent. Scales come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import torch
from torch.autograd.function import once_differentiable

from dcz.compression.quantizers import ScaleDType
from dcz.compression.scales import nearest_scales, stored_dtype
from dcz.compression.torch_tensors import check_tensor
from dcz.compression.training.learned_step import LearnedSteps
from dcz.compression.training.masks import array_of
from dcz.compression.training.quantized_weights import (
    QuantizedWeight,
    granularity_of,
    oriented,
    put_under,
    scale_type,
)
from dcz.compression.training.torch_groups import check_granularity, group_means, rows_of, spread
from dcz.compression.training.weights import Weight
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerChannel, PerTensor
from dcz.format.tensors import CodebookTensor, UniformTensor

__all__ = [
    "BinaryWeight",
    "ExtremeMethod",
    "LearnedTernaryWeight",
    "TernaryWeight",
    "use_few_values",
]

ExtremeMethod: TypeAlias = Literal["binary", "twn", "ttq"]

_TWN_RATIO: Final = 0.7
_TTQ_RATIO: Final = 0.05
_ZERO: Final = 2  # the code of zero among affine codes of two bits


class _Also(torch.autograd.Function):
    """The first tensor; the gradient goes to both, as if they were one."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        del ctx, other
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del ctx
        return grad_outputs[0], grad_outputs[0]


def _also(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Also.apply(value, other)  # type: ignore[no-untyped-call]
    return found


class _FewValues(QuantizedWeight):
    """``granularity``: what shares scales. ``scale_dtype``: the type to which they are rounded; None for that of the arithmetic."""

    def __init__(
        self,
        granularity: Granularity | None = None,
        scale_dtype: ScaleDType | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        super().__init__(mask)
        self.granularity: Granularity = granularity or PerTensor()
        self.scale_dtype: ScaleDType | None = scale_dtype

    def settings(self) -> dict[str, Any]:
        return {"granularity": self.granularity.model_dump(), "scale_dtype": self.scale_dtype}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        return cls(granularity_of(settings["granularity"]), settings["scale_dtype"], state.get("mask"))

    def _rounded(self, scales: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
        """Scales, float64, as they are stored; the gradient passes straight through."""
        kept = scales.detach().to(compute).to(scale_type(self.scale_dtype, compute)).to(compute)
        return _also(kept, scales.to(compute))

    def _each(self, parameters: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return spread(parameters, tuple(values.shape), self.granularity)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


class BinaryWeight(_FewValues):
    """The mean magnitude of the group, with the sign of the weight."""

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        values = _wide(self.kept(original))
        signs = _also(torch.where(values.detach() > 0, 1.0, -1.0).to(values.dtype), values.clamp(-1, 1))
        return self.kept((signs * self._each(self._scales(values), values)).to(original.dtype))

    def _scales(self, values: torch.Tensor) -> torch.Tensor:
        return self._rounded(group_means(values.abs(), self.granularity, self.mask), values.dtype)

    @torch.no_grad()
    def stored(self, original: torch.Tensor) -> CodebookTensor:
        values = _wide(self.kept(original))
        scales = self._scales(values).to(original.dtype)
        return CodebookTensor(
            dtype=check_tensor("weight", original).name,
            shape=tuple(original.shape),
            bits=1,
            codes=(values > 0).to("cpu", torch.uint8).numpy(),
            centroids=array_of(torch.stack([-scales, scales], dim=1)),
            granularity=self.granularity,
            mask=None if self.mask is None else self.mask.cpu().numpy(),
        )


class TernaryWeight(_FewValues):
    """The weight's sign times the mean magnitude of those of its group that are large; zero if it is not."""

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        values = _wide(self.kept(original))
        signs, scales = self._parts(values.detach())
        return _also((signs * self._each(scales, values)).to(original.dtype), self.kept(original))

    def _parts(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signs, with zeros, and the scale of each group."""
        magnitudes = values.abs()
        thresholds = _TWN_RATIO * group_means(magnitudes, self.granularity, self.mask)
        large = magnitudes > self._each(thresholds, values)
        scales = self._rounded(group_means(magnitudes, self.granularity, large), values.dtype)
        return torch.where(large, values.sign(), 0), scales

    @torch.no_grad()
    def stored(self, original: torch.Tensor) -> UniformTensor:
        signs, scales = self._parts(_wide(self.kept(original)))
        dtype = check_tensor("weight", original)
        return UniformTensor(
            dtype=dtype.name,
            shape=tuple(original.shape),
            bits=2,
            codes=(signs + _ZERO).to("cpu", torch.uint8).numpy(),
            scales=scales.cpu().numpy().astype(stored_dtype(self.scale_dtype, dtype)),
            granularity=self.granularity,
            mask=None if self.mask is None else (signs != 0).cpu().numpy(),
        )


class LearnedTernaryWeight(_FewValues):
    """-n, 0 or p, which are learned. ``above``, ``below``: p and n at the beginning, (groups,), above 0, of the type in which is
    computed."""

    def __init__(
        self,
        above: torch.Tensor,
        below: torch.Tensor,
        granularity: Granularity | None = None,
        scale_dtype: ScaleDType | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        super().__init__(granularity, scale_dtype, mask)
        self.above = LearnedSteps(above, scale_type(scale_dtype, above.dtype))
        self.below = LearnedSteps(below, scale_type(scale_dtype, below.dtype))

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        return cls(
            state["above.first"],
            state["below.first"],
            granularity_of(settings["granularity"]),
            settings["scale_dtype"],
            state.get("mask"),
        )

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        values = _wide(self.kept(original))
        signs = self.signs(values.detach())
        above, below = self._each(self.above(), values), self._each(self.below(), values)
        value = torch.where(signs > 0, above, torch.where(signs < 0, -below, 0))
        slopes = torch.where(signs > 0, above, torch.where(signs < 0, below, 1)).detach()
        return _also(value, slopes * values).to(original.dtype)

    def signs(self, values: torch.Tensor) -> torch.Tensor:
        """1, -1 and 0 for what is p, -n and 0. ``values``: what is trained, after the mask."""
        thresholds = _TTQ_RATIO * rows_of(values.abs(), self.granularity).amax(1)
        return torch.where(values.abs() > self._each(thresholds, values), values.sign(), 0)

    @torch.no_grad()
    def stored(self, original: torch.Tensor) -> CodebookTensor:
        signs = self.signs(_wide(self.kept(original)))
        above, below = self.above().to(original.dtype), self.below().to(original.dtype)
        return CodebookTensor(
            dtype=check_tensor("weight", original).name,
            shape=tuple(original.shape),
            bits=2,
            codes=(signs + 1).to("cpu", torch.uint8).numpy(),
            centroids=array_of(torch.stack([-below, torch.zeros_like(above), above], dim=1)),
            granularity=self.granularity,
            mask=None if self.mask is None else (signs != 0).cpu().numpy(),
        )


def use_few_values(
    weights: Sequence[Weight],
    method: ExtremeMethod = "twn",
    *,
    granularity: Granularity | None = None,
    scale_dtype: ScaleDType | None = None,
) -> list[Weight]:
    """Let each weight have two or three values, from now on; the weights beneath are trained.

    ``granularity``: what shares scales; None is an output of a layer each for ``binary``, as in the paper, and the tensor
    for the others. A channel of axis 0 is an output of the layer also where a matrix is stored transposed. ``scale_dtype``:
    the type to which scales are rounded; None is f64 for f64 weights and f32 for the rest.

    What was pruned stays pruned. Returns the weights. Raises EncodingError, which names the weight, if it is not finite or
    the arguments do not fit it; UsageError for one that is shared.
    """
    if method not in get_args(ExtremeMethod):
        raise EncodingError(
            f"unknown method {method!r}", hint=f"allowed: {', '.join(get_args(ExtremeMethod))}"
        )
    if granularity is None:
        granularity = PerChannel(axis=0) if method == "binary" else PerTensor()

    def make(weight: Weight, mask: torch.Tensor | None) -> QuantizedWeight:
        original = weight.parameter.detach()
        chosen = oriented(granularity, weight)
        check_granularity(chosen, tuple(original.shape))
        stored = stored_dtype(scale_dtype, check_tensor("weight", original))
        if not bool(torch.isfinite(original if mask is None else original[mask]).all()):
            raise EncodingError("a weight is not finite")
        if method == "binary":
            return BinaryWeight(chosen, scale_dtype, mask)
        made = TernaryWeight(chosen, scale_dtype, mask)
        if method == "twn":
            return made
        values = _wide(made.kept(original))
        ones = torch.ones(len(rows_of(values, chosen)), dtype=values.dtype, device=values.device)
        first = LearnedTernaryWeight(ones, ones, chosen, scale_dtype, mask)
        signs, scales = first.signs(values), []
        for side in (signs > 0, signs < 0):
            means = group_means(values.abs(), chosen, side)
            nearest_scales(means.cpu().numpy(), stored)
            scales.append(torch.where(means > 0, means, 1).to(values.dtype))
        return LearnedTernaryWeight(scales[0], scales[1], chosen, scale_dtype, mask)

    return put_under(weights, make)

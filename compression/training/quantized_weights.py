"""Weights that are quantized while they are trained: what all methods share.

The Parameter holds the weights that are trained, in full precision; what the owners see are the values of their codes. A
method says how codes come of weights, and which gradient passes through: fake_quantization, learned_step, extreme.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from pydantic import TypeAdapter

from dcz.compression.scales import ScaleDType, Scheme, check_bits, least_code
from dcz.compression.torch_tensors import check_tensor
from dcz.compression.training.masks import PruningMask, naming
from dcz.compression.training.weights import Weight, WeightParametrization
from dcz.errors import UsageError
from dcz.format.manifest import Granularity, PerChannel, PerTensor
from dcz.format.tensors import UniformTensor

if TYPE_CHECKING:
    from dcz.format.tensors import TensorData

__all__ = [
    "Bits",
    "QuantizedWeight",
    "UniformWeight",
    "bits_of",
    "granularity_of",
    "oriented",
    "put_under",
    "quantized_tensors",
    "scale_type",
]

Bits: TypeAlias = "int | Mapping[str, int]"

_TRANSPOSED: Final = {0: 1, 1: 0}
_GRANULARITY: Final[TypeAdapter[Any]] = TypeAdapter(Granularity)
_TYPES: Final = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class QuantizedWeight(WeightParametrization):
    """A weight as its codes give it. ``mask``: bool, True where it is kept; the rest is zero. None keeps all."""

    mask: torch.Tensor | None

    def __init__(self, mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def kept(self, values: torch.Tensor) -> torch.Tensor:
        """The values with zeros where the mask says so."""
        return values if self.mask is None else torch.where(self.mask, values, values.new_zeros(()))

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """So that weights can be assigned while they are trained."""
        return value

    @abc.abstractmethod
    def stored(self, original: torch.Tensor) -> TensorData:
        """Codes and parameters that decode to exactly what forward() gives in evaluation."""


class UniformWeight(QuantizedWeight):
    """A weight as uniform codes give it. ``bits``, ``scheme``, ``granularity``, ``scale_dtype``: as for
    dcz.compression.quantizers.quantize_affine."""

    def __init__(
        self,
        bits: int,
        scheme: Scheme,
        granularity: Granularity | None,
        scale_dtype: ScaleDType | None,
        mask: torch.Tensor | None,
    ) -> None:
        super().__init__(mask)
        check_bits(bits, scheme)
        self.bits: int = bits
        self.scheme: Scheme = scheme
        self.granularity: Granularity = granularity or PerTensor()
        self.scale_dtype: ScaleDType | None = scale_dtype

    def settings(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "scheme": self.scheme,
            "granularity": self.granularity.model_dump(),
            "scale_dtype": self.scale_dtype,
        }

    @staticmethod
    def arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Of the constructor, from what ``settings()`` gave."""
        return {**settings, "granularity": granularity_of(settings["granularity"])}

    def coded(
        self,
        kept: torch.Tensor,
        codes: torch.Tensor,
        zeros: torch.Tensor | int,
        scales: np.ndarray,
        zero_points: np.ndarray | None = None,
    ) -> UniformTensor:
        """``codes``: of the weight, not clamped, of its shape; ``zeros``: the codes of zero, which a mask need not keep."""
        codes = codes.clamp(least_code(self.scheme), (1 << self.bits) - 1)
        return UniformTensor(
            dtype=check_tensor("weight", kept).name,
            shape=tuple(kept.shape),
            bits=self.bits,
            codes=codes.to("cpu", torch.uint8).numpy(),
            scales=scales,
            granularity=self.granularity,
            zero_points=zero_points,
            mask=None if self.mask is None else (codes != zeros).cpu().numpy(),
        )


def granularity_of(described: Mapping[str, Any]) -> Granularity:
    """What ``model_dump()`` of a granularity describes."""
    found: Granularity = _GRANULARITY.validate_python(described)
    return found


def bits_of(bits: Bits, weight: Weight) -> int | None:
    """For this weight; None if it is to be left as it is."""
    return bits.get(weight.name) if isinstance(bits, Mapping) else bits


def oriented(granularity: Granularity, weight: Weight) -> Granularity:
    """The granularity for the weight as it lies in memory; channels are counted as in torch.nn.Linear, 0 for outputs."""
    if weight.transposed and isinstance(granularity, PerChannel):
        return PerChannel(axis=_TRANSPOSED.get(granularity.axis, granularity.axis))
    return granularity


def scale_type(scale_dtype: ScaleDType | None, compute: torch.dtype) -> torch.dtype:
    """The type in which scales are kept; ``compute``: in which is computed with them."""
    return compute if scale_dtype is None else _TYPES[scale_dtype]


def put_under(
    weights: Sequence[Weight], make: Callable[[Weight, torch.Tensor | None], QuantizedWeight | None]
) -> list[Weight]:
    """Put each weight under what ``make`` gives for it and its mask; None leaves it as it is. Returns those that were put.

    What was pruned stays pruned. A weight that is quantized already is quantized anew, from the weights that are trained.

    Raises UsageError for a weight that is shared or trained against its size; EncodingError, which names the weight, if it is
    not finite.
    """
    chosen: list[tuple[Weight, QuantizedWeight]] = []
    for weight in weights:
        current = weight.parametrization
        if not isinstance(current, PruningMask | QuantizedWeight | None):
            raise UsageError(
                f"{weight.name} cannot be quantized: it is under {type(current).__name__}",
                hint="quantize instead of that, not after it",
            )
        with naming(weight):
            made = make(weight, None if current is None else current.mask)
        if made is not None:
            chosen.append((weight, made))
    for weight, made in chosen:
        weight.parametrize(made.to(weight.parameter.device))
    return [weight for weight, _ in chosen]


def quantized_tensors(weights: Sequence[Weight]) -> dict[str, Any]:
    """What is stored of those that are quantized, by their first names: for dcz.format.Writer.add_tensor."""
    return {
        weight.name: weight.parametrization.stored(weight.parameter.detach())
        for weight in weights
        if isinstance(weight.parametrization, QuantizedWeight)
    }

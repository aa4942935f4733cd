"""What the stage ``quantize`` of a recipe does with a model (dcz.runtime.pipeline)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from torch import nn

from dcz.compression.observers import HistogramObserver, MinMaxObserver, Observer
from dcz.compression.training.activations import (
    calibrate,
    quantize_activations,
    remove_activation_quantizers,
)
from dcz.compression.training.extreme import use_few_values
from dcz.compression.training.fake_quantization import fake_quantize
from dcz.compression.training.learned_step import learn_activation_steps, learn_steps
from dcz.compression.training.weights import Weight
from dcz.converters.recipe_stages import (
    DynamicActivations,
    LearnedActivations,
    QuantizeStage,
    StaticActivations,
)
from dcz.errors import UsageError
from dcz.format.manifest import Granularity, PerChannel, PerTensor

if TYPE_CHECKING:
    import torch

__all__ = ["bits_of_stage", "quantize"]

_DEFAULT_BITS: Final = 4
_FEW_BITS: Final = {"binary": 1, "twn": 2, "ttq": 2}
# Of fewer weights a channel is not found in a file, where a scale for each would be a large part of it, too.
_LEAST_ROW: Final = 16


def bits_of_stage(stage: QuantizeStage) -> int:
    """Of the codes of each weight."""
    return _FEW_BITS.get(stage.method) or stage.bits or _DEFAULT_BITS


def quantize(
    stage: QuantizeStage,
    module: nn.Module,
    weights: Sequence[Weight],
    bits: Mapping[str, int],
    evaluate: Callable[[nn.Module], float] | None,
) -> None:
    """Put weights and activations of the module under what the stage says. ``bits``: by the names of the weights.

    Raises UsageError if the stage needs evaluate(), or no layer has such activations; EncodingError if a weight is not finite.
    """
    parts: dict[bool, list[Weight]] = {True: [], False: []}
    for weight in weights:
        parts[_worth_channels(weight)].append(weight)
    for whole, some in parts.items():
        granularity: Granularity = stage.granularity
        if isinstance(granularity, PerChannel) and not whole:
            granularity = PerTensor()
        _quantize_weights(stage, some, bits, granularity)
    if stage.activations is not None:
        remove_activation_quantizers(module)
        _quantize_activations(stage.activations, module, weights, evaluate)


def _worth_channels(weight: Weight) -> bool:
    shape: torch.Size = weight.value().shape
    outputs = shape[1 if weight.transposed else 0]
    return weight.value().numel() // outputs >= _LEAST_ROW


def _quantize_weights(
    stage: QuantizeStage, weights: Sequence[Weight], bits: Mapping[str, int], granularity: Granularity
) -> None:
    for wide in (False, True):
        # f64 weights have no other scales.
        some = [weight for weight in weights if (weight.parameter.element_size() == 8) == wide]
        scale_dtype = "f64" if wide else stage.scale_dtype
        if stage.method == "lsq":
            learn_steps(
                some,
                bits,
                scheme=stage.scheme or "symmetric-full",
                granularity=granularity,
                scale_dtype=scale_dtype,
            )
        elif stage.method == "ste":
            fake_quantize(
                some,
                bits,
                scheme=stage.scheme or "symmetric",
                granularity=granularity,
                calibration=stage.calibration or "min-max",
                scale_dtype=scale_dtype,
            )
        else:
            use_few_values(some, stage.method, granularity=granularity, scale_dtype=scale_dtype)


def _quantize_activations(
    wanted: LearnedActivations | DynamicActivations | StaticActivations,
    module: nn.Module,
    weights: Sequence[Weight],
    evaluate: Callable[[nn.Module], float] | None,
) -> None:
    owners = {id(owner) for weight in weights if weight.kind != "embedding" for owner, _ in weight.owners}

    def layers(name: str, layer: nn.Module) -> bool:
        return id(layer) in owners and any(fnmatchcase(name, pattern) for pattern in wanted.layers)

    if isinstance(wanted, LearnedActivations):
        learn_activation_steps(module, wanted.bits, layers=layers)
    elif isinstance(wanted, DynamicActivations):
        quantize_activations(module, wanted.bits, scheme=wanted.scheme, mode="dynamic", layers=layers)
    else:
        if evaluate is None:
            raise UsageError("static ranges of activations need evaluate()")
        quantize_activations(
            module,
            wanted.bits,
            scheme=wanted.scheme,
            observer=lambda: _observer(wanted),
            layers=layers,
        )
        calibrate(module, [None], lambda model, _: evaluate(model))


def _observer(wanted: StaticActivations) -> Observer:
    if wanted.calibration == "min-max":
        return MinMaxObserver()
    return HistogramObserver(wanted.calibration, percentile=wanted.percentile)

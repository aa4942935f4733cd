"""What can be said of the stages of a recipe and a model before anything is trained (dcz.runtime.pipeline)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from torch import nn

from dcz.compression.torch_tensors import unwrapped
from dcz.compression.training.masks import PruningMask
from dcz.compression.training.quantized_weights import QuantizedWeight
from dcz.compression.training.rate import UniformGrid
from dcz.compression.training.weight_sharing import SharedWeights
from dcz.converters.recipe_stages import (
    PruneStage,
    QuantizeStage,
    RoundStage,
    SensitivityScan,
    StaticActivations,
    order_fault,
)
from dcz.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from dcz.compression.training.weights import Weight
    from dcz.converters.recipe_stages import Stage

__all__ = ["check_stages", "idle_stages"]

_SHOWN: Final = 5
# By which stage a weight becomes that.
_KINDS: Final[Mapping[type, str]] = {
    PruningMask: "prune",
    SharedWeights: "share",
    QuantizedWeight: "quantize",
    UniformGrid: "rate",
}


def check_stages(stages: Sequence[Stage], weights: Sequence[Weight], *, evaluates: bool) -> None:
    """``weights``: all of the model. ``evaluates``: whether there is an evaluate().

    Raises RecipeError if a weight would come to a stage that is too late for it, UsageError if a stage needs evaluate().
    """
    for number, stage in enumerate(stages, 1):
        if not evaluates and isinstance(stage, PruneStage) and isinstance(stage.densities, SensitivityScan):
            raise UsageError(f"stages[{number}]: a sensitivity scan needs evaluate()")
        if (
            not evaluates
            and isinstance(stage, QuantizeStage)
            and isinstance(stage.activations, StaticActivations)
        ):
            raise UsageError(f"stages[{number}]: static ranges of activations need evaluate()")
    for weight in weights:
        elements = weight.value().numel()
        before = [
            (kind, "it is under it already")
            for part, kind in _KINDS.items()
            if isinstance(weight.parametrization, part)
        ]
        for number, stage in enumerate(stages, 1):
            if isinstance(stage, RoundStage) or not stage.takes(weight.names, elements):
                continue
            for kind, by in before:
                fault = order_fault(kind, stage.kind)
                if fault is not None:
                    raise RecipeError(f"stages[{number}] takes {weight.name}: {fault}, and {by}")
            before.append((stage.kind, f"stages[{number}] is {stage.kind!r}"))


def idle_stages(stages: Sequence[Stage], model: nn.Module, weights: Sequence[Weight]) -> dict[int, str]:
    """The stages that take nothing of the model, by their numbers from 1, and what is to be noted of each."""
    found: dict[int, str] = {}
    for number, stage in enumerate(stages, 1):
        sizes = dict(_parameters(model) if isinstance(stage, RoundStage) else _by_names(weights))
        if any(stage.takes(names, elements) for names, elements in sizes.items()):
            continue
        shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in stage.names[:_SHOWN])
        more = ", ..." if len(stage.names) > _SHOWN else ""
        note = f"stage {number} ({stage.kind}, names = [{shown}{more}]) did nothing: "
        if isinstance(stage, RoundStage):
            found[number] = note + "it matches no parameter"
            continue
        every = stage.model_copy(update={"min_elements": 0})
        fitting = [elements for names, elements in sizes.items() if every.takes(names, elements)]
        found[number] = note + (
            f"its names fit {len(fitting)} weight{'s' if len(fitting) > 1 else ''}, none of {stage.min_elements} elements or more"
            if fitting
            else "it matches no weight"
        )
    return found


def _by_names(weights: Sequence[Weight]) -> Iterator[tuple[tuple[str, ...], int]]:
    return ((weight.names, weight.value().numel()) for weight in weights)


def _parameters(model: nn.Module) -> Iterator[tuple[tuple[str, ...], int]]:
    inner, _ = unwrapped(model)
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        yield (name,), parameter.numel()

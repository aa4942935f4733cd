"""allocate_bits: how many bits each weight of a module gets, within a budget, as a recipe.

What a weight costs in quality comes of the Hessian of a loss or of measurements, what it costs in bytes of encoding it, and an integer
programme chooses (dcz.compression.search). The result is an ordinary recipe with a rule for each kind of storage.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from torch import nn

from dcz.compression.search.costs import Choice, Costs, Option, total
from dcz.compression.search.integer_programme import least_loss
from dcz.compression.search.latency import LatencyModel
from dcz.compression.search.sensitivity import (
    choices,
    hessian_traces,
    measured_loss,
    second_order_loss,
)
from dcz.compression.training.weights import Weight, find_weights
from dcz.converters import conversion
from dcz.converters.recipe_actions import Affine, Binary, Codebook, Exact, Ternary, VectorCodebook
from dcz.converters.recipes import Recipe, Rule
from dcz.errors import UsageError
from dcz.format.manifest import PerChannel, PerGroup

if TYPE_CHECKING:
    import torch

    from dcz.converters.recipe_actions import Values
    from dcz.format.effort import EffortName

__all__ = ["Allocation", "allocate_bits", "options_of", "recipe_of", "uniform_values"]

ValuesOf: TypeAlias = "Callable[[Weight], Sequence[Values]]"

_ATTEMPTS: Final = 10
_GROUP: Final = 64
_CLIPPED_UP_TO: Final = 6


@dataclass(frozen=True)
class Allocation:
    """What was chosen. ``recipe``: for dcz.convert; a tensor that no search was about is stored exactly. ``choices``: of each weight,
    by its first name. ``file_bytes``: of the complete file that dcz.convert makes of the module with the recipe. ``seconds``: up to the
    first output, None without a latency model. ``costs``: what was chosen from."""

    recipe: Recipe
    choices: Mapping[str, Choice]
    file_bytes: int
    seconds: float | None
    costs: Costs

    @property
    def total(self) -> Choice:
        """The costs of all weights together."""
        return total(self.choices)

    def text(self) -> str:
        """What each weight became, for people."""
        width = max((len(name) for name in self.choices), default=0)
        lines = [
            f"{name:{width}}  {choice.name:>20}  {choice.bytes:>12,} bytes  loss {choice.loss:.3g}"
            for name, choice in self.choices.items()
        ]
        return "\n".join([*lines, f"the file: {self.file_bytes:,} bytes"])


def allocate_bits(
    model: nn.Module,
    *,
    size: int | None = None,
    latency: float | None = None,
    latency_model: LatencyModel | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    batches: Iterable[Any] | None = None,
    values: ValuesOf | None = None,
    probes: int = 8,
    seed: int = 0,
    effort: EffortName = "balanced",
    name: str = "mixed-precision",
) -> Allocation:
    """Choose how each weight is stored, so that budgets of size and latency are kept and the least quality is lost.

    Sensitivity is measured with ``evaluate(model)``, a quality, higher is better, which is called once for each weight and each
    way to store it; or it is estimated from the Hessian of ``loss(model, batch)``, a scalar with a graph, over ``batches``, with
    ``probes`` random vectors from ``seed`` for each. ``values``: the ways to store a weight; by default `uniform_values`, 2 to 8 bits,
    or exactly. ``size``: bytes of the complete file that ``dcz.convert(model, path, recipe=allocation.recipe, effort=effort)``
    makes, entropy coding, biases and manifest included. ``latency``: seconds up to the first output, by ``latency_model``
    (dcz.compression.search.latency). At least one of these budgets is needed. The model is not changed.

    Raises UsageError if a budget is too small (it names the least that is possible), if neither or both of the two ways to tell the
    sensitivity are given, or the model cannot be searched; EncodingError if a weight is not finite; MissingDependency without scipy.
    """
    if (evaluate is None) == (loss is None) or (loss is None) != (batches is None):
        raise UsageError("either evaluate, or loss and batches, say how sensitive weights are")
    if size is None and latency is None:
        raise UsageError("without a budget there is nothing to choose: give size or latency, or both")
    for what, budget in (("size", size), ("latency", latency)):
        given: Any = budget
        if given is not None and not (isinstance(given, int | float) and not isinstance(given, bool)):
            raise UsageError(f"the {what} is a number, not {given!r:.100}")
    if latency is not None and latency_model is None:
        raise UsageError("a budget of latency needs a latency_model")
    weights = find_weights(model)
    for weight in weights:
        if weight.parametrization is not None:
            raise UsageError(
                f"{weight.name} is being compressed by {type(weight.parametrization).__name__}",
                hint="dcz.compression.training.weights.remove_parametrizations makes plain parameters",
            )
    by_name: dict[str, Values] = {}
    options = {weight.name: options_of((values or uniform_values)(weight), by_name) for weight in weights}
    if evaluate is not None:
        loss_of = measured_loss(functools.partial(evaluate, model))
    else:
        assert loss is not None
        assert batches is not None
        traces = hessian_traces(weights, functools.partial(loss, model), batches, probes=probes, seed=seed)
        loss_of = second_order_loss(traces)
    costs: Costs = choices(weights, options, loss_of, effort=effort)
    if latency_model is not None:
        costs = latency_model.costs(costs)

    def made(chosen: Mapping[str, Choice]) -> Allocation:
        recipe = recipe_of(weights, chosen, by_name=by_name, name=name)
        file_bytes = _file_bytes(model, recipe, effort)
        seconds = None
        if latency_model is not None:
            both = total(chosen)
            seconds = both.seconds + latency_model.beside(file_bytes - both.bytes)
        return Allocation(recipe, chosen, file_bytes, seconds, costs)

    return _within(costs, made, size, latency)


def uniform_values(weight: Weight, bits: Iterable[int] = range(2, 9)) -> tuple[Values, ...]:
    """Asymmetric codes of so many bits in groups of 64 along the last axis (convolutions: by channel), or exactly."""
    convolution = weight.parameter.ndim > 2
    granularity = PerChannel(axis=int(weight.transposed)) if convolution else PerGroup(size=_GROUP)
    affine = [
        Affine(
            kind="affine",
            bits=count,
            scheme="asymmetric",
            granularity=granularity,
            calibration="mse" if count <= _CLIPPED_UP_TO else "min-max",
            scale_dtype="bf16",
        )
        for count in bits
    ]
    return (*affine, Exact(kind="exact"))


def options_of(values: Sequence[Values], by_name: dict[str, Values]) -> tuple[Option, ...]:
    """Values of recipes as options of a search. ``by_name``: what the names of options stand for; new ones are added."""
    options: list[Option] = []
    for value in values:
        option = Option(_name(value, by_name), _bits(value), functools.partial(_quantize, value))
        by_name.setdefault(option.name, value)
        options.append(option)
    return tuple(options)


def recipe_of(
    weights: Sequence[Weight], chosen: Mapping[str, Choice], *, by_name: Mapping[str, Values], name: str
) -> Recipe:
    """A rule for each kind of storage, with the names of the weights that are stored so."""
    names: dict[str, list[str]] = {}
    for weight in weights:
        names.setdefault(chosen[weight.name].name, []).extend(weight.names)
    rules = [
        Rule(names=tuple(map(_pattern, names[option])), values=value, min_elements=1)
        for option, value in by_name.items()
        if option in names
    ]
    return Recipe(name=name, rules=tuple(rules))


def _within(
    costs: Costs,
    made: Callable[[Mapping[str, Choice]], Allocation],
    size: int | None,
    latency: float | None,
) -> Allocation:
    """The best choice whose file keeps the budgets: what a file holds beside the weights is learned from files."""
    smallest = made(
        {name: min(row, key=lambda choice: (choice.bytes, choice.loss)) for name, row in costs.items()}
    )
    if size is not None and smallest.file_bytes > size:
        raise UsageError(
            f"the budget of {size} bytes is too small: the file has at least {smallest.file_bytes} bytes"
        )
    beside = smallest.file_bytes - smallest.total.bytes
    beside_seconds = (smallest.seconds or 0.0) - smallest.total.seconds
    quickest = math.fsum(min(choice.seconds for choice in row) for row in costs.values()) + beside_seconds
    if latency is not None and quickest > latency:
        raise UsageError(
            f"the budget of {latency:.6g} s is too small: the latency is at least {quickest:.6g} s"
        )
    for _ in range(_ATTEMPTS):
        left = None if size is None else max(size - beside, smallest.total.bytes)
        left_seconds = None if latency is None else latency - beside_seconds
        found = made(least_loss(costs, size=left, seconds=left_seconds))
        over = 0 if size is None else found.file_bytes - size
        over_seconds = 0.0 if latency is None else (found.seconds or 0.0) - latency
        if over <= 0 and over_seconds <= 0:
            return found
        beside += max(0, over)
        beside_seconds += max(0.0, over_seconds)
    if latency is None or (smallest.seconds or 0.0) <= latency:
        return smallest
    raise UsageError("nothing was found that keeps the budgets of size and latency together")


def _file_bytes(model: nn.Module, recipe: Recipe, effort: EffortName) -> int:
    with tempfile.TemporaryDirectory(prefix="dcz-search-") as folder:
        path = Path(folder) / "model.dcz"
        return conversion.convert(model, path, recipe=recipe, effort=effort).file_bytes


def _quantize(values: Values, weights: Any) -> Any:
    return Rule(values=values).apply(weights).tensor


def _pattern(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _bits(values: Values) -> int:
    match values:
        case Exact():
            return 32
        case Binary():
            return 1
        case Ternary():
            return 2
        case Codebook(size=size):
            return max(1, (size - 1).bit_length())
        case VectorCodebook(size=size, dimension=dimension):
            return max(1, -(-(size - 1).bit_length() // dimension))
        case _:
            return values.bits


def _name(values: Values, by_name: Mapping[str, Values]) -> str:
    """Short, and another one for other values."""
    name = values.kind if isinstance(values, Exact | Binary | Ternary) else f"{values.kind}-{_bits(values)}"
    match None if isinstance(values, Exact | VectorCodebook) else values.granularity:
        case PerChannel(axis=axis):
            name += f", channel {axis}"
        case PerGroup(size=size):
            name += f", groups of {size}"
        case _:
            pass
    for number in itertools.count(2):
        if by_name.get(name, values) == values:
            break
        name = f"{name.partition(' #')[0]} #{number}"
    return name

"""What a recipe did, or did not do, that its author should know of: notes for the result of a conversion."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz.compression.pruning import nonzero_mask
from dcz.converters.base import element_type
from dcz.converters.recipes import is_builtin
from dcz.format.decoded import decoded
from dcz.format.tensors import (
    AffineTensor,
    CodebookTensor,
    PerChannel,
    PerGroup,
    ScaledCodebookTensor,
    UniformTensor,
    VectorCodebookTensor,
    parameter_values,
)

if TYPE_CHECKING:
    from dcz.converters.recipes import Prepared, Recipe
    from dcz.format.tensors import TensorData

__all__ = ["RecipeTally"]

_SHOWN: Final = 5


class RecipeTally:
    """Counts what the rules of a recipe matched and did, tensor by tensor."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tensors = 0
        self._changed = 0
        self._decoded = 0
        self._wiped: list[str] = []
        self._decided = [0] * len(recipe.rules)
        self._matched = [0] * len(recipe.rules)
        self._fitting = [0] * len(recipe.rules)
        self._aliases: list[str | None] = [None] * len(recipe.rules)

    @property
    def changed(self) -> int:
        """How many tensors a rule has changed until now."""
        return self._changed

    def add(self, name: str, tensor: TensorData, prepared: Prepared) -> None:
        """``prepared``: what the recipe made of the tensor."""
        self._tensors += 1
        deciding = None
        dtype = element_type(tensor)
        for number, rule in enumerate(self._recipe.rules):
            self._fitting[number] += rule.fits(name)
            if rule.matches(name, dtype, tensor.shape):
                self._matched[number] += 1
                deciding = number if deciding is None else deciding
        if deciding is None:
            return
        self._decided[deciding] += 1
        if self._recipe.rules[deciding].changes_weights:
            self._changed += 1
            self._decoded += not isinstance(tensor, np.ndarray)
            if _is_zero(prepared.tensor) and nonzero_mask(decoded(tensor)).any():
                self._wiped.append(name)

    def add_alias(self, name: str, target: str) -> None:
        for number, rule in enumerate(self._recipe.rules):
            if self._aliases[number] is None and rule.fits(name):
                self._aliases[number] = f"{name!r} is stored as {target!r}"

    def notes(self) -> tuple[str, ...]:
        """Complete once all tensors and aliases were added."""
        notes: list[str] = []
        if self._tensors and not self._changed and any(rule.changes_weights for rule in self._recipe.rules):
            notes.append(f"the recipe changed 0 of {self._tensors} tensor{'s' if self._tensors > 1 else ''}")
        if self._decoded:
            many = "1 tensor was" if self._decoded == 1 else f"{self._decoded} tensors were"
            notes.append(
                f"{many} quantized already: what their codes stand for was quantized again by the recipe, and lost more than once"
            )
        if self._tensors and not is_builtin(self._recipe):  # those that come with dcz are for many models
            notes += [
                note for number in range(len(self._decided)) if (note := self._idle(number)) is not None
            ]
        if self._wiped:
            shown = ", ".join(map(repr, self._wiped[:_SHOWN])) + (
                ", ..." if len(self._wiped) > _SHOWN else ""
            )
            notes.append(
                f"the recipe left nothing of {shown}: all weights became 0"
                + (f" ({len(self._wiped)} tensors)" if len(self._wiped) > 1 else "")
            )
        return tuple(notes)

    def _idle(self, number: int) -> str | None:
        """Why a rule decided about no tensor, or None if it did."""
        if self._decided[number]:
            return None
        names = self._recipe.rules[number].names
        shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:_SHOWN])
        more = ", ..." if len(names) > _SHOWN else ""
        which = f"rule {number + 1} (names = [{shown}{more}])"
        if self._matched[number]:
            return f"{which} decided nothing: rules before it match all tensors that it matches"
        if self._fitting[number]:
            return f"{which} matched no tensor: its names fit {self._fitting[number]}, but not what else it asks for"
        alias = self._aliases[number]
        return f"{which} matched no tensor" + (f": {alias}" if alias is not None else "")


def _is_zero(tensor: TensorData) -> bool:
    """Whether every element that comes back is zero."""
    match tensor:
        case UniformTensor():
            # Of a tensor with a mask only what is not zero is stored.
            return _has_only_zero_points(tensor) if tensor.mask is None else not tensor.mask.any()
        case CodebookTensor():
            nothing = tensor.mask is not None and not tensor.mask.any()
            return nothing or not tensor.centroids.astype(np.float64).any()
        case ScaledCodebookTensor():
            nothing = tensor.mask is not None and not tensor.mask.any()
            return nothing or not (parameter_values(tensor.scales).any() and tensor.table[tensor.codes].any())
        case VectorCodebookTensor():
            return not tensor.codewords.astype(np.float64).any()
        case AffineTensor():
            return not nonzero_mask(decoded(tensor)).any()
        case _:
            return not nonzero_mask(tensor).any()


def _has_only_zero_points(tensor: UniformTensor) -> bool:
    codes = tensor.codes.reshape(tensor.shape)
    if tensor.zero_points is None:
        return not (codes != 1 << (tensor.bits - 1)).any()
    points = tensor.zero_points
    if codes.flat[0] != points[0]:  # nearly always enough
        return False
    match tensor.granularity:
        case PerChannel(axis=axis):
            points = points.reshape(-1, *[1] * (codes.ndim - axis - 1))
        case PerGroup(size=size) if codes.ndim:
            points = np.repeat(points.reshape(*codes.shape[:-1], -1), size, axis=-1)[..., : codes.shape[-1]]
        case _:
            pass
    return not (codes != points).any()

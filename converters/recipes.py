"""Recipes: how each tensor of a model is to be stored (docs/guides/recipes.md).

A recipe is a list of rules; the first rule that matches a tensor decides, and a tensor that none matches is stored
exactly. The recipes that are built in are TOML files like any other (``builtin_recipes/``).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import os
import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from dcz.compression.codebooks import with_zero
from dcz.compression.pruning import nonzero_mask
from dcz.converters.base import element_type
from dcz.converters.recipe_actions import (
    Auto,
    Dense,
    Exact,
    Layout,
    MagnitudePruning,
    RecipeModel,
    Ternary,
    Values,
    VectorCodebook,
    layout_choice,
)
from dcz.converters.recipe_errors import explain
from dcz.converters.recipe_stages import Names, Stage, check_order
from dcz.errors import EncodingError, RecipeError, UsageError
from dcz.format.coding import CodingChoice
from dcz.format.decoded import decoded
from dcz.format.dtypes import DTYPES, DType
from dcz.format.encoder import LayoutChoice
from dcz.format.tensors import AffineTensor, CodebookTensor, ScaledCodebookTensor, TensorData

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from dcz.format.effort import EffortName

__all__ = [
    "BUILTIN_RECIPES",
    "TRAINING_RECIPES",
    "Prepared",
    "Recipe",
    "Rule",
    "is_builtin",
    "load_recipe",
    "recipe_of_rules",
]

BUILTIN_RECIPES: Final = ("lossless", "int8", "int4", "codebook", "deep-compression")
TRAINING_RECIPES: Final = ("deep-compression", "rate-aware", "qat-int4", "qat-ternary", "qat-binary")
"""Those that have stages, for dcz.compress."""

# What a rule that changes weights passes over unless it says otherwise: biases, norms and other vectors; what is too
# small to be worth it; fp8, which was quantized before.
_CHANGEABLE: Final = ("f64", "f32", "f16", "bf16")
_MIN_RANK: Final = 2
_MIN_ELEMENTS: Final = 256
_MAX_BYTES: Final = 1 << 20  # of a recipe
_MOST_SHARED: Final = 256  # in a codebook


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor as the writer takes it: ``Writer.add_tensor(name, tensor, layout=layout, coding=coding)``."""

    tensor: TensorData
    layout: LayoutChoice
    coding: CodingChoice


class Rule(RecipeModel):
    """For which tensors, and what is done with them.

    A tensor has to match all that is given. ``names``: patterns, of which one has to match the whole name, in which
    ``*`` is any number of characters (dots too), ``?`` one, and ``[...]`` one of a set. If ``dtypes``,
    ``min_elements`` or ``min_rank`` are not given, a rule that leaves the weights as they are matches all; one that
    changes them matches the types f64, f32, f16 and bf16, tensors of 256 elements and of two dimensions. It never
    matches integers, booleans, or tensors without elements.
    """

    names: Names = ("*",)
    dtypes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    min_elements: Annotated[int, Field(ge=0)] | None = None
    max_elements: Annotated[int, Field(ge=0)] | None = None
    min_rank: Annotated[int, Field(ge=0)] | None = None
    max_rank: Annotated[int, Field(ge=0)] | None = None
    pruning: MagnitudePruning | None = None
    values: Values = Exact(kind="exact")
    layout: Layout = Auto(kind="auto")
    coding: CodingChoice = "auto"

    @field_validator("dtypes")
    @classmethod
    def _known(cls, dtypes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in dtypes or ():
            if name not in DTYPES:
                raise ValueError(f"unknown element type {name!r}; allowed: {', '.join(DTYPES)}")
        return dtypes

    @model_validator(mode="after")
    def _can_match(self) -> Rule:
        for what, most in (("elements", self.max_elements), ("rank", self.max_rank)):
            least = self._least(what)
            if most is not None and most < least:
                given = getattr(self, f"min_{what}") is not None
                unless = "" if given else ", as in every rule that changes weights and does not give it"
                raise ValueError(
                    f"matches no tensor: max_{what} is {most}, and min_{what} is {least}{unless}"
                )
        if self.changes_weights and not any(DTYPES[name].is_float for name in self.dtypes or _CHANGEABLE):
            raise ValueError(
                "matches no tensor: only floating-point weights are changed, and dtypes has no such type"
            )
        return self

    @model_validator(mode="after")
    def _vectors_are_dense(self) -> Rule:
        if not isinstance(self.values, VectorCodebook):
            return self
        if self.pruning is not None:
            raise ValueError(
                "a vector-codebook has no code for a single weight: it cannot be combined with pruning"
            )
        if self.layout.kind not in ("auto", "dense"):
            raise ValueError(
                f"a vector-codebook has no code for a single weight; allowed: layout = 'auto' or 'dense', not {self.layout.kind!r}"
            )
        return self

    @property
    def changes_weights(self) -> bool:
        return self.pruning is not None or not isinstance(self.values, Exact)

    def matches(self, name: str, dtype: DType, shape: tuple[int, ...]) -> bool:
        """Whether the rule is for a tensor of this name, element type and shape."""
        elements, rank = math.prod(shape), len(shape)
        changes = self.changes_weights
        if changes and not (dtype.is_float and elements):
            return False
        dtypes = self.dtypes or (_CHANGEABLE if changes else tuple(DTYPES))
        return (
            dtype.name in dtypes
            and elements >= self._least("elements")
            and (self.max_elements is None or elements <= self.max_elements)
            and rank >= self._least("rank")
            and (self.max_rank is None or rank <= self.max_rank)
            and self.fits(name)
        )

    def fits(self, name: str) -> bool:
        """Whether one of the patterns is for this name."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)

    def _least(self, what: str) -> int:
        given = self.min_elements if what == "elements" else self.min_rank
        if given is not None or not self.changes_weights:
            return given or 0
        return _MIN_ELEMENTS if what == "elements" else _MIN_RANK

    def apply(self, tensor: TensorData, effort: EffortName = "balanced") -> Prepared:
        """Prune and quantize. Codes stay as they are if the rule does not change weights (in a dense layout, zero becomes one of
        them); otherwise they are decoded first. ``effort``: with which the result will be written.

        Raises EncodingError if the tensor does not allow it.
        """
        layout = layout_choice(self.layout)
        dense = isinstance(self.layout, Dense)
        if not self.changes_weights:
            return Prepared(_without_mask(tensor) if dense else tensor, layout, self.coding)
        weights = decoded(tensor)
        if self.pruning is not None:
            mask: np.ndarray | None = self.pruning.mask(weights)
        else:
            mask = self._zeros_left_out(weights)
        if isinstance(self.values, Ternary):
            ternary = self.values.quantize(weights, mask, dense=dense)
            coding = self.values.coding(ternary, effort) if self.coding == "auto" else self.coding
            return Prepared(ternary, layout, coding)
        return Prepared(self.values.quantize(weights, mask, dense=dense), layout, self.coding)

    def _zeros_left_out(self, weights: np.ndarray) -> np.ndarray | None:
        """The mask of a tensor that was pruned before: as the layout says, or if more than half of it is zero, where a
        code word for each zero would cost more than the positions."""
        if isinstance(self.layout, Dense) or isinstance(self.values, Exact | VectorCodebook):
            return None
        mask = nonzero_mask(weights)
        if isinstance(self.layout, Auto) and 2 * int(np.count_nonzero(mask)) >= mask.size:
            return None
        return mask


class Recipe(RecipeModel):
    """Rules in order, under a name. A tensor that no rule matches is stored exactly.

    ``stages`` are for dcz.compress, which trains the model; what they made is then stored exactly. ``rules`` are for dcz.convert,
    which does not train. A recipe may have both: two ways to the same end.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: str = ""
    rules: Annotated[tuple[Rule, ...], Field(strict=False)] = ()
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = ()

    @field_validator("stages")
    @classmethod
    def _in_a_possible_order(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        check_order(stages)
        return stages

    def rule_for(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Rule | None:
        """The first rule that matches, or None."""
        return next((rule for rule in self.rules if rule.matches(name, dtype, shape)), None)

    def apply(self, name: str, tensor: TensorData, effort: EffortName = "balanced") -> Prepared:
        """What is to be stored in place of a tensor.

        ``tensor``: an array of any type and shape that the format has (dcz.format.dtypes), or codes. ``effort``: with which it
        will be written. Raises EncodingError if the rule cannot be applied to it, for example because a weight is not finite.
        """
        rule = self.rule_for(name, element_type(tensor), tensor.shape)
        if rule is None:
            return Prepared(tensor, "auto", "auto")
        try:
            return rule.apply(tensor, effort)
        except EncodingError as exc:
            raise EncodingError(exc.message, hint=exc.hint or self._way_out(name)) from exc

    def _way_out(self, name: str) -> str:
        """What to do about a tensor that no rule but one for exact storage can take."""
        place = f"a copy of {_builtin_file(self.name)}" if is_builtin(self) else "the recipe"
        pattern = json.dumps(re.sub(r"([*?[])", r"[\1]", name), ensure_ascii=False)
        return f"to store it exactly, let {place} begin with a rule, [[rules]], of the one line names = [{pattern}]"

    def describe(self) -> dict[str, Any]:
        """The recipe as str, int, float, bool, list and dict, without the description and without defaults.

        ``Recipe.model_validate`` makes an equal recipe of it (but for the description).
        """
        described: dict[str, Any] = _plain(self)
        described.pop("description", None)
        return described


def _without_mask(tensor: TensorData) -> TensorData:
    """The same elements, zeros stored as others are: codes where they have room for zero, otherwise as they decode."""
    if not isinstance(tensor, AffineTensor | CodebookTensor | ScaledCodebookTensor):
        return tensor
    if tensor.mask is None or tensor.mask.all():
        return tensor
    if isinstance(tensor, CodebookTensor) and tensor.centroids.shape[1] < _MOST_SHARED:
        return with_zero(tensor)
    return decoded(tensor)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = (
            (name, getattr(value, name), info.default) for name, info in type(value).model_fields.items()
        )
        return {name: _plain(field) for name, field, default in fields if name == "kind" or field != default}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def load_recipe(spec: str | os.PathLike[str] | Recipe = "lossless") -> Recipe:
    """A recipe by the name of a built-in one, or from a TOML file; a Recipe is given back as it is.

    A file without ``name`` is named after itself. Raises RecipeError, which says in which line of which file what is
    wrong, and what is allowed there.
    """
    if isinstance(spec, Recipe):
        return spec
    training = [name for name in TRAINING_RECIPES if name not in BUILTIN_RECIPES]
    allowed = f"built in: {', '.join(BUILTIN_RECIPES)}; for dcz.compress: {', '.join(training)}; otherwise the path of a TOML file"
    given: Any = spec
    if not isinstance(given, str | os.PathLike):
        raise RecipeError(
            f"a recipe is a name, a path or a Recipe, not a {type(spec).__name__}", hint=allowed
        )
    if not os.fspath(spec):
        raise RecipeError("the name of the recipe is empty", hint=allowed)
    if isinstance(spec, str) and spec in BUILTIN_RECIPES + TRAINING_RECIPES:
        return _builtin(spec)
    path = Path(spec)
    try:
        text = _read(path).decode()
    except FileNotFoundError as exc:
        raise RecipeError(f"there is no recipe {os.fspath(spec)!r}", hint=allowed) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path}: the recipe cannot be read: {exc}") from exc
    return _parse(text, file=str(path))


def recipe_of_rules(spec: str | os.PathLike[str] | Recipe) -> Recipe:
    """The same, for what does not train. Raises RecipeError; UsageError if all that the recipe says needs training."""
    recipe = load_recipe(spec)
    if recipe.stages and not recipe.rules:
        raise UsageError(
            f"the recipe {recipe.name!r} has stages only, which need training: nothing of it can be done to a model as it is",
            hint="dcz.compress trains; recipes with rules do without",
        )
    return recipe


def _read(path: Path) -> bytes:
    if not path.is_file() and path.exists():
        raise RecipeError(f"{path}: the recipe cannot be read: it is not a regular file")
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path}: more than {_MAX_BYTES} bytes are not a recipe")
    return data


def is_builtin(recipe: Recipe) -> bool:
    """Whether this is one of the recipes that come with dcz, and not only called like one."""
    return recipe.name in BUILTIN_RECIPES and recipe.rules == _builtin(recipe.name).rules


@functools.cache
def _builtin(name: str) -> Recipe:
    return _parse(_builtin_file(name).read_text(encoding="utf-8"), file=f"{name}.toml")


def _builtin_file(name: str) -> Traversable:
    return importlib.resources.files("dcz.converters") / "builtin_recipes" / f"{name}.toml"


def _parse(text: str, *, file: str) -> Recipe:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # numbers of thousands of digits, brackets in brackets
        raise RecipeError(f"{file}: not valid TOML: {exc}") from exc
    try:
        return Recipe.model_validate({"name": Path(file).stem, **data})
    except ValidationError as exc:
        raise RecipeError(explain(exc, text, file, root=Recipe, rule=Rule)) from exc

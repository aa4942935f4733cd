"""What a recipe does with a model that is trained, before it is stored (dcz.compress):

    prune       fewer weights, in steps, trained between them
    share       few values for the weights that are left, trained as well
    rate        both at once: training against the size of the coded file

A stage says what is done, not how it is trained: that is the caller's own loop. Names of fields are those of
dcz.compression.training.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from dcz.compression.clustering import Init, Method
from dcz.compression.patterns import Block, Channel, NofM, Pattern, Unstructured
from dcz.converters.recipe_actions import RecipeModel, kind_alone

__all__ = [
    "BlockPattern",
    "ChannelPattern",
    "DescriptionLength",
    "FixedBits",
    "GlobalThreshold",
    "NMPattern",
    "PruneStage",
    "RateStage",
    "SensitivityScan",
    "ShareStage",
    "Stage",
    "StdThreshold",
    "Uniform",
    "UnstructuredPattern",
]

Density: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Names: TypeAlias = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)
]
_Count: TypeAlias = Annotated[int, Field(ge=0, le=10_000)]
_MIN_ELEMENTS = 256


class Uniform(RecipeModel):
    """The same density for each weight."""

    kind: Literal["uniform"]
    density: Density


class GlobalThreshold(RecipeModel):
    """One threshold for all weights, so that together they have ``density``; of each at least the part ``floor`` is kept.
    ``scale``: what makes the magnitudes of layers comparable (dcz.compression.training.masks.global_densities)."""

    kind: Literal["global"]
    density: Density
    floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    scale: Literal["none", "std", "lamp"] = "lamp"


class StdThreshold(RecipeModel):
    """A threshold of ``factor`` standard deviations of each weight: the quality parameter of Han et al. (2015)."""

    kind: Literal["std"]
    factor: Annotated[float, Field(ge=0)]


class SensitivityScan(RecipeModel):
    """Densities of equal loss, by a scan of each weight alone at ``scanned``, so that together they have ``density``
    (dcz.compression.training.sensitivity). Needs evaluate()."""

    kind: Literal["sensitivity"]
    density: Density
    scanned: (
        Annotated[
            tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1, max_length=100)
        ]
        | None
    ) = None


class UnstructuredPattern(RecipeModel):
    """Each weight for itself."""

    kind: Literal["unstructured"]

    def pattern(self) -> Pattern:
        return Unstructured()


class NMPattern(RecipeModel):
    """Of each ``m`` neighbours ``n`` stay, along the inputs of a layer."""

    kind: Literal["n:m"]
    n: Annotated[int, Field(ge=1, le=64)]
    m: Annotated[int, Field(ge=1, le=64)]

    def pattern(self) -> Pattern:
        return NofM(self.n, self.m)


class ChannelPattern(RecipeModel):
    """Whole outputs (axis 0) or inputs (axis 1) of a layer."""

    kind: Literal["channel"]
    axis: Annotated[int, Field(ge=0, le=1)] = 0

    def pattern(self) -> Pattern:
        return Channel(self.axis)


class BlockPattern(RecipeModel):
    """Rectangles of the matrix."""

    kind: Literal["block"]
    rows: Annotated[int, Field(ge=1, le=4096)]
    columns: Annotated[int, Field(ge=1, le=4096)]

    def pattern(self) -> Pattern:
        return Block(self.rows, self.columns)


class FixedBits(RecipeModel):
    """Bits by the kind of layer, as in the paper."""

    kind: Literal["fixed"]
    conv: Annotated[int, Field(ge=1, le=8)] = 8
    other: Annotated[int, Field(ge=1, le=8)] = 5

    def of(self, kind: str) -> int:
        return self.conv if kind == "conv" else self.other


class DescriptionLength(RecipeModel):
    """Bits that leave the least error within a budget for codes, codebooks and positions: ``rate`` of the bytes that the
    weights take as they are."""

    kind: Literal["description-length"]
    rate: Annotated[float, Field(gt=0, le=1)]


class _Stage(RecipeModel):
    """``names``: patterns as in a rule, of which one has to match a name of the weight. ``min_elements``: smaller weights
    are left alone."""

    names: Names = ("*",)
    min_elements: Annotated[int, Field(ge=0)] = _MIN_ELEMENTS

    def takes(self, names: tuple[str, ...], elements: int) -> bool:
        """Whether the stage is for a weight of these names and this size."""
        fits = any(fnmatchcase(name, pattern) for name in names for pattern in self.names)
        return fits and elements >= self.min_elements


class PruneStage(_Stage):
    """Prune to ``densities`` in ``steps``, by a ``schedule`` (dcz.compression.training.schedules), with ``epochs`` of training after
    each step and ``last_epochs`` more at the end. What a schedule cannot come down to in steps (``std``) is done in one."""

    kind: Literal["prune"]
    densities: Annotated[
        Uniform | GlobalThreshold | StdThreshold | SensitivityScan,
        Field(discriminator="kind"),
        BeforeValidator(kind_alone),
    ]
    pattern: Annotated[
        UnstructuredPattern | NMPattern | ChannelPattern | BlockPattern,
        Field(discriminator="kind"),
        BeforeValidator(kind_alone),
    ] = UnstructuredPattern(kind="unstructured")
    steps: Annotated[int, Field(ge=1, le=1000)] = 5
    schedule: Literal["cubic", "geometric", "linear"] = "cubic"
    epochs: _Count = 1
    last_epochs: _Count = 1


class ShareStage(_Stage):
    """Share weights, with ``epochs`` of training of the shared values."""

    kind: Literal["share"]
    bits: Annotated[
        FixedBits | DescriptionLength, Field(discriminator="kind"), BeforeValidator(kind_alone)
    ] = FixedBits(kind="fixed")
    method: Method = "optimal"
    init: Init = "linear"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    epochs: _Count = 1


class RateStage(_Stage):
    """Train against the coded size (dcz.compression.training.rate), with one of ``strengths`` after the other, and ``epochs`` of
    training for each. A strength is what the loss grows by if each weight costs one bit more: the larger, the smaller the
    file. ``levels``: quantization steps up to the largest weight, at first; the steps are learned. ``biases`` too."""

    kind: Literal["rate"]
    strengths: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1, max_length=1000)
    ] = (0.1, 0.2, 0.4, 0.8)
    levels: Annotated[float, Field(gt=0, le=127)] = 8.0
    biases: bool = True
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 3


Stage: TypeAlias = Annotated[PruneStage | ShareStage | RateStage, Field(discriminator="kind")]

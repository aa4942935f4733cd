"""What a recipe does with a model that is trained, before it is stored (dcz.compress):

    prune       fewer weights, in steps, trained between them
    share       few values for the weights that are left, trained as well
    quantize    uniform codes, or two or three values, trained beneath (quantization-aware training)
    rate        both at once: training against the size of the coded file
    round       half precision for what is still stored number by number

A stage says what is done, not how it is trained: that is the caller's own loop. Names of fields are those of
dcz.compression.training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from dcz.compression.calibration import Calibration
from dcz.compression.clustering import Init, Method
from dcz.compression.patterns import Block, Channel, NofM, Pattern, Unstructured
from dcz.compression.scales import Scheme
from dcz.converters.recipe_actions import Misplaced, RecipeModel, kind_alone
from dcz.format.manifest import Granularity, PerChannel

__all__ = [
    "BlockPattern",
    "ChannelPattern",
    "DescriptionLength",
    "DynamicActivations",
    "FixedBits",
    "GlobalThreshold",
    "LearnedActivations",
    "NMPattern",
    "PruneStage",
    "QuantizeStage",
    "RateStage",
    "RoundStage",
    "SensitivityScan",
    "ShareStage",
    "Stage",
    "StaticActivations",
    "StdThreshold",
    "Uniform",
    "UnstructuredPattern",
    "check_order",
    "order_fault",
]

Density: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Names: TypeAlias = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)
]
_Count: TypeAlias = Annotated[int, Field(ge=0, le=10_000)]
_MIN_ELEMENTS = 256
_ROUNDED: Final = 0.01  # densities that people write for 1/3

# What a weight cannot be any more once it is something else, as the parametrizations of dcz.compression.training are.
_PAST: Final[Mapping[str, str]] = {
    "prune": "pruned",
    "share": "shared",
    "quantize": "quantized",
    "rate": "trained against its size",
}
_IMPOSSIBLE_AFTER: Final[Mapping[str, tuple[str, ...]]] = {
    "prune": ("share", "quantize", "rate"),
    "share": ("quantize", "rate"),
    "quantize": ("share", "rate"),
}


class Uniform(RecipeModel):
    """The same density for each weight."""

    kind: Literal["uniform"]
    density: Density


class GlobalThreshold(RecipeModel):
    """One threshold for all weights, so that together they have ``density``; of each at least the part ``floor`` is kept, by
    default 0.01 or ``density`` if that is less.
    ``scale``: what makes the magnitudes of layers comparable (dcz.compression.training.masks.global_densities)."""

    kind: Literal["global"]
    density: Density
    floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    scale: Literal["none", "std", "lamp"] = "lamp"

    @model_validator(mode="after")
    def _fit(self) -> GlobalThreshold:
        if "floor" in self.model_fields_set and self.floor > self.density:
            raise Misplaced(
                f"{self.floor} of each weight cannot be kept where all have a density of {self.density}",
                "floor",
            )
        return self


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

    @model_validator(mode="after")
    def _fit(self) -> NMPattern:
        if self.n > self.m:
            raise Misplaced(f"of {self.m} neighbours {self.n} cannot stay", "n")
        return self

    @property
    def density(self) -> float:
        return self.n / self.m

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


def _fits(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


class _Stage(RecipeModel):
    """``names``: patterns as in a rule, of which one has to match a name of the weight. ``min_elements``: smaller weights
    are left alone."""

    names: Names = ("*",)
    min_elements: Annotated[int, Field(ge=0)] = _MIN_ELEMENTS

    def takes(self, names: tuple[str, ...], elements: int) -> bool:
        """Whether the stage is for a weight of these names and this size."""
        return _fits(names, self.names) and elements >= self.min_elements


class PruneStage(_Stage):
    """Prune to ``densities`` in ``steps``, by a ``schedule`` (dcz.compression.training.schedules), with ``epochs`` of training after
    each step and ``last_epochs`` more at the end. What a schedule cannot come down to in steps (``std``) is done in one.

    The pattern ``n:m`` is a density itself, of each weight, and needs none beside it: a schedule goes through more of the ``m``.
    """

    kind: Literal["prune"]
    densities: (
        Annotated[
            Uniform | GlobalThreshold | StdThreshold | SensitivityScan,
            Field(discriminator="kind"),
            BeforeValidator(kind_alone),
        ]
        | None
    ) = None
    pattern: Annotated[
        UnstructuredPattern | NMPattern | ChannelPattern | BlockPattern,
        Field(discriminator="kind"),
        BeforeValidator(kind_alone),
    ] = UnstructuredPattern(kind="unstructured")
    steps: Annotated[int, Field(ge=1, le=1000)] = 5
    schedule: Literal["cubic", "geometric", "linear"] = "cubic"
    epochs: _Count = 1
    last_epochs: _Count = 1

    @model_validator(mode="after")
    def _fit(self) -> PruneStage:
        given = self.densities
        if not isinstance(self.pattern, NMPattern):
            if given is None:
                raise Misplaced("is missing", "densities")
        elif given is not None and not (
            isinstance(given, Uniform) and abs(given.density - self.pattern.density) < _ROUNDED
        ):
            n, m = self.pattern.n, self.pattern.m
            raise Misplaced(
                f"of the pattern {n}:{m}, {n} of {m} weights of every layer stay, whatever densities say; leave them out",
                "densities",
            )
        return self


class ShareStage(_Stage):
    """Share weights, with ``epochs`` of training of the shared values."""

    ONLY_WITH: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "init": ("method", "lloyd"),
        "seed": ("init", "forgy"),
    }

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


class LearnedActivations(RecipeModel):
    """A learned step for what goes into each layer (dcz.compression.training.learned_step)."""

    kind: Literal["learned"]
    bits: Annotated[int, Field(ge=1, le=8)] = 8
    layers: Names = ("*",)


class DynamicActivations(RecipeModel):
    """The range of each input when it comes (dcz.compression.training.activations)."""

    kind: Literal["dynamic"]
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    scheme: Scheme = "asymmetric"
    layers: Names = ("*",)


class StaticActivations(RecipeModel):
    """The range of what is seen while evaluate() runs, before this stage trains; ``calibration``: how it is chosen
    (dcz.compression.observers). Needs evaluate()."""

    ONLY_WITH: ClassVar[Mapping[str, tuple[str, Any]]] = {"percentile": ("calibration", "percentile")}

    kind: Literal["static"]
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    scheme: Scheme = "asymmetric"
    calibration: Calibration = "min-max"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.9
    layers: Names = ("*",)


class QuantizeStage(_Stage):
    """Quantization-aware training: let weights be what their codes give, and train those beneath for ``epochs``.

    ``method``: ``ste`` (dcz.compression.training.fake_quantization), ``lsq`` (learned_step), ``binary``, ``twn`` or ``ttq``
    (extreme). ``bits``, for the first two, and ``scheme``, by default symmetric-full for ``lsq`` and symmetric for
    ``ste``. ``calibration``, for ``ste``. Channels of fewer than 16 weights share one scale."""

    kind: Literal["quantize"]
    method: Literal["ste", "lsq", "binary", "twn", "ttq"] = "lsq"
    bits: Annotated[int, Field(ge=1, le=8)] | None = None
    scheme: Scheme | None = None
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerChannel(axis=0)
    calibration: Calibration | None = None
    scale_dtype: Literal["f32", "f16", "bf16"] = "bf16"
    activations: (
        Annotated[
            LearnedActivations | DynamicActivations | StaticActivations,
            Field(discriminator="kind"),
            BeforeValidator(kind_alone),
        ]
        | None
    ) = None
    epochs: _Count = 3

    @model_validator(mode="after")
    def _fit(self) -> QuantizeStage:
        uniform = self.method in ("ste", "lsq")
        for name in ("bits", "scheme"):
            if getattr(self, name) is not None and not uniform:
                raise ValueError(f"{name} is for the methods ste and lsq, not for {self.method}")
        if self.calibration is not None and self.method != "ste":
            raise ValueError(f"calibration is for the method ste, not for {self.method}")
        if self.method == "lsq" and self.scheme == "asymmetric":
            raise ValueError("learned steps are symmetric; allowed: symmetric, symmetric-full")
        if self.bits == 1 and self.scheme != "asymmetric":
            raise ValueError("1 bit has no room for both signs and zero; allowed: method = 'binary'")
        return self


class RoundStage(RecipeModel):
    """Round what is still stored number by number (shared values, biases, norms, weights that are neither shared nor quantized) to
    ``dtype``: half of the bytes.
    ``names``: as in the other stages."""

    kind: Literal["round"]
    dtype: Literal["bf16", "f16"] = "bf16"
    names: Names = ("*",)

    def takes(self, names: tuple[str, ...], elements: int) -> bool:
        """Whether the stage is for a parameter of these names."""
        del elements
        return _fits(names, self.names)


Stage: TypeAlias = Annotated[
    PruneStage | ShareStage | RateStage | QuantizeStage | RoundStage, Field(discriminator="kind")
]


def order_fault(earlier: str, later: str) -> str | None:
    """Why a weight cannot go through a stage of the kind ``later`` after one of the kind ``earlier``; None if it can."""
    if earlier not in _IMPOSSIBLE_AFTER.get(later, ()):
        return None
    return f"what is {_PAST[earlier]} cannot be {_PAST[later]} any more"


def check_order(stages: Sequence[Stage]) -> None:
    """Raises Misplaced if a stage comes too late for weights that it surely has in common with an earlier one; of others,
    only the names in a model tell."""
    for number, later in enumerate(stages):
        for before, earlier in enumerate(stages[:number]):
            fault = order_fault(earlier.kind, later.kind)
            if fault is not None and _surely_meet(earlier.names, later.names):
                raise Misplaced(f"{fault}, and stages[{before + 1}] is {earlier.kind!r}", number, "kind")


def _surely_meet(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return "*" in (*some, *others) or not set(some).isdisjoint(others)

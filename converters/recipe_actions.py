"""What a rule of a recipe can do with a tensor: three small families, independent of each other.

    pruning     which weights are kept           magnitude
    values      what a stored value is           exact, affine, codebook, vector-codebook, table, binary-coding, binary, ternary
    layout      how positions are written        auto, dense, relative-index, bitmap

A new method is a new member of one of them. The field ``kind`` tells the members of a family apart, as in the manifest
of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dcz.compression.binary_coding import quantize_binary_coding
from dcz.compression.clustering import Init
from dcz.compression.codebooks import CodebookMethod, quantize_codebook, with_zero
from dcz.compression.extreme import TernaryMethod, quantize_binary, quantize_ternary
from dcz.compression.pruning import magnitude_mask, nonzero_mask
from dcz.compression.quantizers import (
    Calibration,
    Rounding,
    ScaleDType,
    Scheme,
    double_quantize,
    quantize_affine,
)
from dcz.compression.tables import Table, quantize_table, table_bits
from dcz.compression.vector_codebooks import quantize_vectors
from dcz.format.encoder import LayoutChoice
from dcz.format.layout import MAX_DIMENSION, MAX_GROUP
from dcz.format.manifest import Granularity, PerTensor, RelativeIndex
from dcz.format.tensors import CodebookTensor, TensorData, UniformTensor

if TYPE_CHECKING:
    from dcz.format.coding import CodingChoice
    from dcz.format.effort import EffortName

__all__ = [
    "Affine",
    "Auto",
    "Binary",
    "BinaryCoding",
    "Bitmap",
    "Codebook",
    "Dense",
    "Exact",
    "Layout",
    "MagnitudePruning",
    "Misplaced",
    "RecipeModel",
    "RelativeIndexLayout",
    "TableValues",
    "Ternary",
    "Values",
    "VectorCodebook",
    "kind_alone",
    "layout_choice",
]


ScaleBits: TypeAlias = Annotated[int, Field(ge=2, le=8)]
ScaleGroup: TypeAlias = Annotated[int, Field(ge=1, le=MAX_GROUP)]
_TERNARY_BITS: Final = 1.6  # log2(3) is 1.585


class RecipeModel(BaseModel):
    """Strict, frozen, no unknown fields, and none without effect."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    ONLY_WITH: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Fields that matter only with one value of another field."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name, (other, value) in self.ONLY_WITH.items():
            given = getattr(self, other)
            if given != value and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to {other} = {value!r}, and {other} is {given!r}")
        return self


class Misplaced(ValueError):
    """What is wrong with a part of what is being validated; ``place``: names of fields and numbers, from 0, that lead to it."""

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message)
        self.place = place


def kind_alone(value: Any) -> Any:
    """A member without further fields may be given by its kind alone."""
    return {"kind": value} if isinstance(value, str) else value


class MagnitudePruning(RecipeModel):
    """Keep the part ``density`` of the weights, at least one: those of largest magnitude."""

    kind: Literal["magnitude"]
    density: Annotated[float, Field(gt=0, le=1)]

    def mask(self, weights: np.ndarray) -> np.ndarray:
        """Which weights are kept; never one that is zero."""
        mask = magnitude_mask(weights, max(self.density, 1 / weights.size))
        mask &= nonzero_mask(weights)
        return mask


class Exact(RecipeModel):
    """The bits as they are."""

    kind: Literal["exact"]

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        del dense  # zeros are values like any other
        return weights if mask is None else np.where(mask, weights, weights.dtype.type(0))


class Affine(RecipeModel):
    """Uniform quantization (dcz.compression.quantizers). ``scale_dtype`` is for all but f64 tensors, whose scales are f64;
    ``scale_bits``, of scales that are codes, not for these."""

    ONLY_WITH = {"percentile": ("calibration", "percentile"), "seed": ("rounding", "stochastic")}

    kind: Literal["affine"]
    bits: Annotated[int, Field(ge=1, le=8)] = 8
    scheme: Scheme = "symmetric"
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerTensor()
    calibration: Calibration = "min-max"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.9
    rounding: Rounding = "nearest"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    scale_dtype: Literal["f32", "f16", "bf16"] = "f32"
    scale_bits: ScaleBits | None = None
    scale_group: ScaleGroup = 256

    @model_validator(mode="after")
    def _one_kind_of_scales(self) -> Affine:
        if self.scale_bits is not None and self.scale_dtype != "f32":
            raise ValueError(
                f"scales are either codes of {self.scale_bits} bits or {self.scale_dtype}; allowed: one of scale_bits and scale_dtype"
            )
        return self

    @model_validator(mode="after")
    def _both_signs_and_zero(self) -> Affine:
        if self.bits == 1 and self.scheme != "asymmetric":
            raise ValueError("1 bit has no room for both signs and zero; allowed: scheme = 'asymmetric'")
        return self

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        weights, mask = _zeros_among_weights(weights, mask) if dense else (weights, mask)
        if self.scale_bits is not None:
            return double_quantize(
                weights,
                bits=self.bits,
                scheme=self.scheme,
                granularity=self.granularity,
                calibration=self.calibration,
                percentile=self.percentile,
                rounding=self.rounding,
                seed=self.seed,
                scale_bits=self.scale_bits,
                scale_group=self.scale_group,
                mask=mask,
            )
        return quantize_affine(
            weights,
            bits=self.bits,
            scheme=self.scheme,
            granularity=self.granularity,
            calibration=self.calibration,
            percentile=self.percentile,
            rounding=self.rounding,
            seed=self.seed,
            scale_dtype=_scale_dtype(weights, self.scale_dtype),
            mask=mask,
        )


class Codebook(RecipeModel):
    """Weight sharing (dcz.compression.codebooks)."""

    ONLY_WITH = {"init": ("method", "lloyd"), "seed": ("init", "forgy")}

    kind: Literal["codebook"]
    size: Annotated[int, Field(ge=1, le=256)]
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerTensor()
    method: CodebookMethod = "optimal"
    init: Init = "linear"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        zero = dense and mask is not None
        tensor = quantize_codebook(
            weights,
            size=max(1, self.size - 1) if zero else self.size,
            granularity=self.granularity,
            method=self.method,
            init=self.init,
            seed=self.seed,
            mask=mask,
        )
        return with_zero(tensor) if zero else tensor


class VectorCodebook(RecipeModel):
    """Neighbours that share a code (dcz.compression.vector_codebooks). Dense: single weights have no position."""

    kind: Literal["vector-codebook"]
    dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSION)]
    size: Annotated[int, Field(ge=1, le=256)]
    product: bool = False
    iterations: Annotated[int, Field(ge=1, le=1000)] = 25
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        assert mask is None, "a rule with vectors has no pruning and no sparse layout"
        del dense
        return quantize_vectors(
            weights,
            dimension=self.dimension,
            size=self.size,
            product=self.product,
            iterations=self.iterations,
            seed=self.seed,
        ).tensor()


class TableValues(RecipeModel):
    """Levels that are known beforehand (dcz.compression.tables)."""

    kind: Literal["table"]
    table: Table
    bits: int = 4
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerTensor()
    scale_bits: ScaleBits | None = None
    scale_group: ScaleGroup = 256

    @model_validator(mode="after")
    def _possible(self) -> TableValues:
        bits = table_bits(self.table)
        if self.bits not in bits:
            raise ValueError(
                f"a {self.table} table has {bits.start} to {bits.stop - 1} bits, not {self.bits}"
            )
        return self

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        weights, mask = _zeros_among_weights(weights, mask) if dense else (weights, mask)
        return quantize_table(
            weights,
            table=self.table,
            bits=self.bits,
            granularity=self.granularity,
            scale_bits=self.scale_bits,
            scale_group=self.scale_group,
            mask=mask,
        )


class BinaryCoding(RecipeModel):
    """Sums of scaled binaries (dcz.compression.binary_coding)."""

    kind: Literal["binary-coding"]
    bits: Annotated[int, Field(ge=1, le=6)]
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerTensor()
    iterations: Annotated[int, Field(ge=0, le=1000)] = 15

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        tensor = quantize_binary_coding(
            weights, bits=self.bits, granularity=self.granularity, iterations=self.iterations, mask=mask
        )
        return with_zero(tensor) if dense else tensor


class Binary(RecipeModel):
    """The sign and one scale (dcz.compression.extreme)."""

    kind: Literal["binary"]
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerTensor()

    def quantize(self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool) -> TensorData:
        tensor = quantize_binary(weights, granularity=self.granularity, mask=mask)
        return with_zero(tensor) if dense else tensor


class Ternary(RecipeModel):
    """The sign or zero, and one scale or two (dcz.compression.extreme). ``scale_dtype`` is that of a single scale, as of
    Affine."""

    ONLY_WITH = {"scale_dtype": ("scales", 1)}

    kind: Literal["ternary"]
    granularity: Annotated[Granularity, BeforeValidator(kind_alone)] = PerTensor()
    method: TernaryMethod = "optimal"
    scales: Literal[1, 2] = 1
    scale_dtype: Literal["f32", "f16", "bf16"] = "f32"

    def quantize(
        self, weights: np.ndarray, mask: np.ndarray | None, *, dense: bool
    ) -> UniformTensor | CodebookTensor:
        tensor = quantize_ternary(
            weights,
            granularity=self.granularity,
            method=self.method,
            scales=self.scales,
            scale_dtype=_scale_dtype(weights, self.scale_dtype),
            mask=mask,
        )
        # What is not kept has the code of zero.
        return replace(tensor, mask=None) if dense else tensor

    def coding(self, tensor: UniformTensor | CodebookTensor, effort: EffortName) -> CodingChoice:
        """``range`` where a prefix code, of one bit for the most frequent code and two for the others, would take more than 1.6
        bits a weight, unless decoding has to be fast."""
        if effort == "fast" or tensor.mask is not None:
            return "auto"
        most = int(np.bincount(tensor.codes.reshape(-1)).max())
        return "range" if 2 - most / tensor.codes.size > _TERNARY_BITS else "auto"


def _zeros_among_weights(weights: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, None]:
    return (weights if mask is None else np.where(mask, weights, weights.dtype.type(0))), None


def _scale_dtype(weights: np.ndarray, wanted: Literal["f32", "f16", "bf16"]) -> ScaleDType:
    return "f64" if weights.dtype == np.float64 else wanted


class Auto(RecipeModel):
    """The layout that takes the least space."""

    kind: Literal["auto"]


class Dense(RecipeModel):
    """All positions; what was pruned is a zero among the values."""

    kind: Literal["dense"]


class RelativeIndexLayout(RecipeModel):
    """Gaps between the stored positions, in ``bits`` bits each; None is the width that takes the least space."""

    kind: Literal["relative-index"]
    bits: Annotated[int, Field(ge=1, le=8)] | None = None


class Bitmap(RecipeModel):
    """One bit for each position."""

    kind: Literal["bitmap"]


Values: TypeAlias = Annotated[
    Exact | Affine | Codebook | VectorCodebook | TableValues | BinaryCoding | Binary | Ternary,
    Field(discriminator="kind"),
    BeforeValidator(kind_alone),
]
Layout: TypeAlias = Annotated[
    Auto | Dense | RelativeIndexLayout | Bitmap, Field(discriminator="kind"), BeforeValidator(kind_alone)
]


def layout_choice(layout: Layout) -> LayoutChoice:
    """The layout as the writer takes it."""
    if isinstance(layout, RelativeIndexLayout) and layout.bits is not None:
        return RelativeIndex(bits=layout.bits)
    return layout.kind

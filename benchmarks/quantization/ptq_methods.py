"""Every post-training method of dcz at 8 to 2 bits, as `ptq` measures them.

All but GPTQ are recipes: what `dcz convert` does without a line of Python. Biases, norms and tensors of fewer than 256
elements are stored exactly. Embeddings are treated as the other matrices, but for two things: where each channel has a
codebook of its own, an embedding has one for each column, not for each row, of which there are 30,522; and some methods say
in their name that embeddings have other bits. GPTQ is for matrices that are multiplied with inputs; embeddings are then
rounded to nearest, with the same bits, scales and calibration.

Vector codebooks are not among them: the format has no place for them yet (docs/decisions/0027).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from benchmarks.quantization.ptq_networks import Array, Subject, is_quantized
from dcz.compression.gptq import quantize_gptq
from dcz.converters.recipes import Recipe
from dcz.format import (
    CodebookTensor,
    PerChannel,
    PerGroup,
    PerTensor,
    ScaledCodebookTensor,
    TensorData,
    UniformTensor,
)

Tensors = dict[str, TensorData]
Rule = dict[str, Any]

EMBEDDINGS: Final = "*embed*"
TENSOR: Final = {"kind": "tensor"}
ROWS: Final = {"kind": "channel", "axis": 0}
COLUMNS: Final = {"kind": "channel", "axis": 1}


@dataclass(frozen=True)
class Method:
    """One point of the results: a method at one setting. ``bits``: of a code of the matrices."""

    name: str
    bits: float
    quantize: Callable[[Subject], Tensors]


def by_recipe(name: str, bits: float, rule: Rule, embeddings: Rule | None = None) -> Method:
    """A rule for all matrices, or one for embeddings and one for the others."""
    recipe = _recipe(rule, embeddings)
    return Method(
        name,
        bits,
        lambda subject: {key: recipe.apply(key, array).tensor for key, array in subject.arrays.items()},
    )


def by_gptq(name: str, bits: int, embeddings: Rule, **options: Any) -> Method:
    """GPTQ for what is multiplied with inputs, a recipe's rule for the embeddings."""
    recipe = _recipe(embeddings)

    def quantize(subject: Subject) -> Tensors:
        layers = _layers(subject, bits, **options)
        return {
            key: layers[key] if key in layers else recipe.apply(key, array).tensor
            for key, array in subject.arrays.items()
        }

    return Method(name, bits, quantize)


@lru_cache(maxsize=4)
def _layers(subject: Subject, bits: int, **options: Any) -> Tensors:
    """What GPTQ makes of the matrices that are multiplied with inputs. Methods that differ in embeddings alone share it."""
    return {
        key: quantize_gptq(array, subject.hessians[key], bits=bits, order="activation", **options)
        for key, array in subject.arrays.items()
        if key in subject.hessians and is_quantized(array)
    }


def _recipe(rule: Rule, embeddings: Rule | None = None) -> Recipe:
    rules = [rule] if embeddings is None else [{"names": [EMBEDDINGS], **embeddings}, rule]
    return Recipe.model_validate({"name": "ptq", "rules": rules})


def affine(bits: int, granularity: Rule, **options: Any) -> Rule:
    """Uniform codes."""
    return {"values": {"kind": "affine", "bits": bits, "granularity": granularity, **options}}


def groups(bits: int, size: int, calibration: str = "mse") -> Rule:
    """As the recipe int4: asymmetric codes in groups, scales in bf16."""
    return affine(
        bits,
        {"kind": "group", "size": size},
        scheme="asymmetric",
        calibration=calibration,
        scale_dtype="bf16",
    )


def _uniform() -> Iterator[Method]:
    for bits in (8, 6, 5, 4, 3, 2):
        yield by_recipe("affine, symmetric, channel", bits, affine(bits, ROWS))
    for bits in (8, 7, 6, 5, 4):
        yield by_recipe("affine, symmetric, tensor", bits, affine(bits, TENSOR))
    for bits in (8, 6, 5, 4, 3, 2):
        yield by_recipe("affine, asymmetric, mse, groups of 64", bits, groups(bits, 64))
    for size in (128, 32):
        for bits in (4, 3, 2):
            yield by_recipe(f"affine, asymmetric, mse, groups of {size}", bits, groups(bits, size))
    for bits in (4, 3):
        yield by_recipe(
            "affine, asymmetric, min-max, groups of 64", bits, groups(bits, 64, calibration="min-max")
        )
        for calibration in ("percentile", "mse"):
            yield by_recipe(
                f"affine, symmetric, {calibration}, channel",
                bits,
                affine(bits, ROWS, calibration=calibration, percentile=99.0),
            )
    yield by_recipe("affine, symmetric, kl, tensor", 4, affine(4, TENSOR, calibration="kl"))


def _codebooks() -> Iterator[Method]:
    def channel(values: Rule) -> tuple[Rule, Rule]:
        return {"values": {**values, "granularity": ROWS}}, {"values": {**values, "granularity": COLUMNS}}

    for bits in (8, 6, 5, 4, 3, 2):
        yield by_recipe("k-means, tensor", bits, {"values": {"kind": "codebook", "size": 1 << bits}})
    for bits in (4, 3, 2):
        yield by_recipe("k-means, channel", bits, *channel({"kind": "codebook", "size": 1 << bits}))
        yield by_recipe("binary coding, channel", bits, *channel({"kind": "binary-coding", "bits": bits}))
    for table, some in (("normal-float", (6, 4, 3, 2)), ("power-of-two", (4, 3)), ("float", (4, 3))):
        for bits in some:
            yield by_recipe(
                f"{table}, channel", bits, *channel({"kind": "table", "table": table, "bits": bits})
            )
    yield by_recipe("ternary, channel", 1.6, {"values": {"kind": "ternary", "granularity": ROWS}})
    yield by_recipe("binary, channel", 1, *channel({"kind": "binary"}))
    for bits in (5, 4, 3):
        shared = {"values": {"kind": "codebook", "size": 1 << bits}}
        yield by_recipe(
            "pruned to 90 % (embeddings 70 %), k-means, tensor",
            bits,
            {"pruning": {"kind": "magnitude", "density": 0.9}, **shared},
            {"pruning": {"kind": "magnitude", "density": 0.7}, **shared},
        )


def _second_order() -> Iterator[Method]:
    def channel(more: int, name: str) -> Iterator[Method]:
        for bits in (8, 6, 5, 4, 3, 2) if more == 0 else (5, 4, 3, 2):
            yield by_gptq(
                f"GPTQ, symmetric, channel{name}",
                bits,
                affine(bits + more, ROWS, calibration="mse"),
                scheme="symmetric",
                calibration="mse",
            )

    yield from channel(0, "")
    yield from channel(1, "; embeddings one bit more")
    for size, more, name in ((128, 0, ""), (64, 0, ""), (64, 1, "; embeddings one bit more")):
        for bits in (6, 5, 4, 3, 2):
            yield by_gptq(
                f"GPTQ, asymmetric, mse, groups of {size}{name}",
                bits,
                groups(bits + more, size),
                granularity=PerGroup(size=size),
                calibration="mse",
                scale_dtype="bf16",
            )
    for calibration, some in (("min-max", (8, 7, 6, 5, 4)), ("mse", (6, 5, 4, 3, 2))):
        for bits in some:
            yield by_gptq(
                f"GPTQ, symmetric, {calibration}, tensor",
                bits,
                affine(bits, TENSOR, calibration=calibration),
                scheme="symmetric",
                granularity=PerTensor(),
                calibration=calibration,
            )


METHODS: Final = (*_uniform(), *_codebooks(), *_second_order())


def decoded(tensor: TensorData) -> Array:
    """The elements of a tensor by the formulas of docs/format.md, section 5.3: what a file has to give back, bit for bit."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if not isinstance(tensor, UniformTensor | CodebookTensor | ScaledCodebookTensor):
        raise TypeError(f"no method makes a {type(tensor).__name__}")
    codes = tensor.codes.reshape(tensor.shape).astype(np.int64)
    places = _groups(tensor)
    if isinstance(tensor, UniformTensor):
        scales = tensor.scales.astype(np.float32)
        zeros = (
            np.full(scales.shape, 1 << (tensor.bits - 1))
            if tensor.zero_points is None
            else tensor.zero_points
        )
        values = scales[places] * (codes - zeros.astype(np.int64)[places]).astype(np.float32)
    elif isinstance(tensor, ScaledCodebookTensor):
        assert isinstance(tensor.scales, np.ndarray)
        values = tensor.scales.astype(np.float32)[places] * tensor.table[codes]
    else:
        values = tensor.centroids[places, codes]
    if tensor.mask is not None:
        values = np.where(tensor.mask.reshape(tensor.shape), values, np.float32(0))
    return np.asarray(values, np.float32)


def _groups(tensor: UniformTensor | CodebookTensor | ScaledCodebookTensor) -> Array:
    """The group of each element."""
    rows, columns = tensor.shape
    match tensor.granularity:
        case PerChannel(axis=axis):
            return np.asarray(np.indices(tensor.shape, np.int32)[axis])
        case PerGroup(size=size):
            each = -(-columns // size)
            return np.arange(rows)[:, None] * each + np.arange(columns) // size
        case _:
            return np.zeros(tensor.shape, np.int32)

"""Every post-training method of dcz at 8 to 1 bits, as `ptq` measures them.

All but GPTQ are recipes: what `dcz convert` does without a line of Python. Biases, norms and tensors of fewer
than 256 elements are stored exactly. Embeddings are treated as the other matrices, but for two things: where each channel has a
codebook of its own, an embedding has one for each column, not for each row, of which there are 30,522; and some methods say
in their name that embeddings have other bits. GPTQ is for matrices that are multiplied with inputs; embeddings are then
rounded to nearest, with the same bits, scales and calibration.

GPTQ sees the inputs of the dense network. "Refitted" goes layer by layer: what the layers before, quantized already, give to
a layer is what it is refitted to and rounded for, and its bias takes up the mean change of its outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np

from benchmarks.quantization.ptq_networks import Array, Subject, is_quantized, load, products
from dcz.compression.calibration import Calibration
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.gptq import LevelRounder, quantize_gptq, refitted, round_second_order
from dcz.compression.tables import quantize_table
from dcz.converters.recipes import Recipe
from dcz.format import CodebookTensor, PerGroup, PerTensor, ScaledCodebookTensor, TensorData
from dcz.format.decoded import decoded

Tensors = dict[str, TensorData]
Rule = dict[str, Any]
Bits = tuple[int, ...]
Layer = Callable[[Array, Array], TensorData]  # of a matrix and its Hessian

EMBEDDINGS: Final = "*embed*"
TENSOR: Final = {"kind": "tensor"}
ROWS: Final = {"kind": "channel", "axis": 0}
COLUMNS: Final = {"kind": "channel", "axis": 1}


@dataclass(frozen=True)
class Method:
    """One point of the results: a method at one setting. ``bits``: of a code of the matrices; ``data``: whether it looks at
    calibration inputs."""

    name: str
    bits: float
    quantize: Callable[[Subject], Tensors]
    data: bool = False


def by_recipe(name: str, bits: float, rule: Rule, embeddings: Rule | None = None) -> Method:
    """A rule for all matrices, or one for embeddings and one for the others."""
    recipe = _recipe(rule, embeddings)
    return Method(
        name,
        bits,
        lambda subject: {key: recipe.apply(key, array).tensor for key, array in subject.arrays.items()},
    )


def by_gptq(name: str, bits: int, embeddings: Rule, layer: Layer) -> Method:
    """Second-order rounding for what is multiplied with inputs, a recipe's rule for the embeddings."""
    recipe = _recipe(embeddings)

    def quantize(subject: Subject) -> Tensors:
        layers = _layers(subject, layer)
        return {
            key: layers[key] if key in layers else recipe.apply(key, array).tensor
            for key, array in subject.arrays.items()
        }

    return Method(name, bits, quantize, data=True)


@lru_cache(maxsize=4)
def _layers(subject: Subject, layer: Layer) -> Tensors:
    """What becomes of the matrices that are multiplied with inputs. Methods that differ in embeddings alone share it."""
    return {
        key: layer(array, subject.hessians[key])
        for key, array in subject.arrays.items()
        if key in subject.hessians and is_quantized(array)
    }


def by_refitting(name: str, bits: int, embeddings: Rule, layer: Layer) -> Method:
    """The same layer by layer, in a network whose embeddings and layers before are quantized."""
    recipe = _recipe(embeddings)

    def quantize(subject: Subject) -> Tensors:
        network = copy.deepcopy(subject.network)
        later = {key for names in subject.order for key in names}
        found: Tensors = {
            key: array if key in later else recipe.apply(key, array).tensor
            for key, array in subject.arrays.items()
        }
        load(network, {key: decoded(tensor) for key, tensor in found.items()})
        for names in subject.order:
            inputs = subject.rows(network, names)
            for key in names:
                array, before, now = subject.arrays[key], subject.dense_rows[key], inputs[key]
                hessian = products(now, now)
                fitted = refitted(array, hessian, products(before, now)).astype(np.float32)
                found[key] = layer(fitted, hessian)
                values = decoded(found[key])
                change = array @ before.mean(0).numpy() - values @ now.mean(0).numpy()
                bias = key.removesuffix("weight") + "bias"
                found[bias] = subject.arrays[bias] + change
                load(network, {key: values, bias: decoded(found[bias])})
        return found

    return Method(name, bits, quantize, data=True)


@lru_cache
def uniform_layer(bits: int, **options: Any) -> Layer:
    """Uniform codes by GPTQ."""
    return partial(quantize_gptq, bits=bits, order="activation", **options)


def level_layer(nearest: Callable[[Array], CodebookTensor | ScaledCodebookTensor]) -> Layer:
    """Codes by second order for the levels that rounding to nearest has."""

    def layer(weights: Array, hessian: Array) -> TensorData:
        tensor = nearest(weights)
        codes = round_second_order(weights, hessian, LevelRounder(tensor).round, order="activation")
        return replace(tensor, codes=codes)

    return layer


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


def shared(bits: int) -> Rule:
    """2^bits shared weights for the tensor."""
    return {"values": {"kind": "codebook", "size": 1 << bits}}


def _uniform() -> Iterator[Method]:
    for bits in (8, 6, 5, 4, 3, 2):
        yield by_recipe("affine, symmetric, channel", bits, affine(bits, ROWS))
        yield by_recipe("affine, asymmetric, channel", bits, affine(bits, ROWS, scheme="asymmetric"))
    for bits in (5, 4, 3, 2):
        rule = affine(bits, ROWS, scheme="asymmetric", calibration="mse")
        yield by_recipe("affine, asymmetric, mse, channel", bits, rule)
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
        for options in ({"calibration": "percentile", "percentile": 99.0}, {"calibration": "mse"}):
            yield by_recipe(
                f"affine, symmetric, {options['calibration']}, channel",
                bits,
                affine(bits, ROWS, **options),
            )
    yield by_recipe("affine, symmetric, kl, tensor", 4, affine(4, TENSOR, calibration="kl"))


def _codebooks() -> Iterator[Method]:
    def channel(values: Rule) -> tuple[Rule, Rule]:
        return {"values": {**values, "granularity": ROWS}}, {"values": {**values, "granularity": COLUMNS}}

    for bits in (8, 6, 5, 4, 3, 2):
        yield by_recipe("k-means, tensor", bits, shared(bits))
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
        yield by_recipe(
            "pruned to 90 % (embeddings 70 %), k-means, tensor",
            bits,
            {"pruning": {"kind": "magnitude", "density": 0.9}, **shared(bits)},
            {"pruning": {"kind": "magnitude", "density": 0.7}, **shared(bits)},
        )


def _vectors() -> Iterator[Method]:
    for size, dimension, product in (
        (256, 2, False),
        (64, 2, False),
        (16, 2, False),
        (256, 4, False),
        (64, 4, False),
        (16, 4, True),
    ):
        values = {"kind": "vector-codebook", "dimension": dimension, "size": size, "product": product}
        name = f"vectors of {dimension}, {'each place' if product else 'tensor'}"
        yield by_recipe(name, math.log2(size) / dimension, {"values": values})


def _tables_in_groups() -> Iterator[Method]:
    for table, size, some in (("normal-float", 64, (4, 3, 2)), ("float", 32, (4, 3))):
        for bits in some:
            yield by_recipe(f"{table}, groups of {size}", bits, _table(table, bits, size))


def _table(table: str, bits: int, size: int) -> Rule:
    return {
        "values": {
            "kind": "table",
            "table": table,
            "bits": bits,
            "granularity": {"kind": "group", "size": size},
        }
    }


def _second_order() -> Iterator[Method]:
    in_channels: tuple[tuple[int, Bits], ...] = ((0, (8, 6, 5, 4, 3, 2)), (1, (5, 4, 3, 2)))
    for more, some in in_channels:
        for bits in some:
            yield by_gptq(
                f"GPTQ, symmetric, channel{_EMBEDDINGS[more]}",
                bits,
                affine(bits + more, ROWS, calibration="mse"),
                uniform_layer(bits, scheme="symmetric", calibration="mse"),
            )
    for size, more, least, most in ((128, 0, 2, 6), (64, 0, 2, 6), (64, 1, 2, 6), (64, -1, 3, 4)):
        for bits in range(most, least - 1, -1):
            yield by_gptq(
                f"GPTQ, asymmetric, mse, groups of {size}{_EMBEDDINGS[more]}",
                bits,
                groups(bits + more, size),
                _in_groups(bits, size),
            )
    in_tensor: tuple[tuple[Calibration, Bits], ...] = (("min-max", (8, 7, 6, 5, 4)), ("mse", (6, 5, 4, 3, 2)))
    for calibration, some in in_tensor:
        for bits in some:
            yield by_gptq(
                f"GPTQ, symmetric, {calibration}, tensor",
                bits,
                affine(bits, TENSOR, calibration=calibration),
                _in_tensor(bits, calibration),
            )
    for bits in (5, 4, 3, 2):
        yield by_gptq("GPTQ, k-means, tensor", bits, shared(bits), _shared_layer(bits))
    for bits in (4, 3):
        yield by_gptq(
            "GPTQ, normal-float, groups of 64",
            bits,
            _table("normal-float", bits, 64),
            level_layer(
                partial(quantize_table, table="normal-float", bits=bits, granularity=PerGroup(size=64))
            ),
        )


def _refitted() -> Iterator[Method]:
    for size, more, least, most in (
        (64, 0, 2, 6),
        (64, 1, 2, 4),
        (64, -1, 3, 4),
        (64, -2, 4, 5),
        (128, 0, 2, 3),
    ):
        for bits in range(most, least - 1, -1):
            yield by_refitting(
                f"GPTQ, refitted, asymmetric, mse, groups of {size}{_EMBEDDINGS[more]}",
                bits,
                groups(bits + more, size),
                _in_groups(bits, size),
            )
    for bits in (7, 6, 5, 4):
        yield by_refitting(
            "GPTQ, refitted, symmetric, min-max, tensor",
            bits,
            affine(bits, TENSOR, calibration="min-max"),
            _in_tensor(bits, "min-max"),
        )
    for bits in (4, 3, 2):
        yield by_refitting("GPTQ, refitted, k-means, tensor", bits, shared(bits), _shared_layer(bits))


def _in_groups(bits: int, size: int) -> Layer:
    return uniform_layer(bits, granularity=PerGroup(size=size), calibration="mse", scale_dtype="bf16")


def _in_tensor(bits: int, calibration: Calibration) -> Layer:
    return uniform_layer(bits, scheme="symmetric", granularity=PerTensor(), calibration=calibration)


def _shared_layer(bits: int) -> Layer:
    return level_layer(partial(quantize_codebook, size=1 << bits))


_EMBEDDINGS: Final = {
    0: "",
    1: "; embeddings one bit more",
    -1: "; embeddings one bit less",
    -2: "; embeddings two bits less",
}
METHODS: Final = (
    *_uniform(),
    *_codebooks(),
    *_tables_in_groups(),
    *_vectors(),
    *_second_order(),
    *_refitted(),
)

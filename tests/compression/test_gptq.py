"""Second-order rounding against the update written out with one inverse for each column, and against rounding to nearest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compression.oracles import decode_affine

from dcz.compression.codebooks import quantize_codebook
from dcz.compression.gptq import (
    LevelRounder,
    Order,
    output_error,
    quantize_gptq,
    refitted,
    round_second_order,
)
from dcz.compression.quantizers import Scheme, quantize_affine
from dcz.compression.tables import quantize_table
from dcz.errors import EncodingError
from dcz.format import CodebookTensor, Reader, ScaledCodebookTensor, Writer
from dcz.format.decoded import decoded
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor

Array = np.ndarray[Any, np.dtype[Any]]
GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(axis=0), PerGroup(size=16), PerGroup(size=50)]


def layer(out: int, columns: int, seed: int = 0) -> tuple[Array, Array]:
    """Weights, and the Hessian of inputs that depend on each other."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) / np.sqrt(columns)
    inputs = random.standard_normal((4 * columns, columns)) @ (mixing + 0.3 * np.eye(columns)) + 0.2
    weights = random.standard_normal((out, columns)).astype(np.float32)
    return weights, inputs.T @ inputs / len(inputs)


def change(weights: Array, tensor: Any) -> Array:
    return decode_affine(tensor).astype(np.float64) - weights


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("order", ["given", "activation"])
def test_independent_inputs_are_rounded_to_nearest(
    granularity: Granularity, scheme: Scheme, order: Order
) -> None:
    weights, _ = layer(20, 150)
    tensor = quantize_gptq(weights, np.eye(150), bits=4, scheme=scheme, granularity=granularity, order=order)
    nearest = quantize_affine(weights, bits=4, scheme=scheme, granularity=granularity)
    np.testing.assert_array_equal(tensor.scales, nearest.scales)
    # In float64 here and float32 there: a tie may go the other way.
    assert np.count_nonzero(tensor.codes != nearest.codes) <= 1


def one_by_one(weights: Array, hessian: Array, scales: Array, zeros: Array, order: Array, bits: int) -> Array:
    """Optimal Brain Quantization in a fixed order: the inverse of what is left of H is computed anew for each column."""
    left = weights.astype(np.float64).copy()
    codes = np.empty(weights.shape)
    for step, column in enumerate(order):
        rest = order[step:]
        inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
        codes[:, column] = np.clip(np.rint(left[:, column] / scales) + zeros, 0, (1 << bits) - 1)
        error = left[:, column] - scales * (codes[:, column] - zeros)
        left[:, rest] -= np.outer(error / inverse[0, 0], inverse[0])
    return codes


@pytest.mark.parametrize("columns", [30, 200])
@pytest.mark.parametrize("order", ["given", "activation"])
def test_blocks_and_factors_are_the_update_of_each_column(columns: int, order: Order) -> None:
    weights, hessian = layer(8, columns)
    tensor = quantize_gptq(weights, hessian, bits=3, damping=0.05, order=order)
    assert tensor.zero_points is not None
    damped = hessian + 0.05 * np.diagonal(hessian).mean() * np.eye(columns)
    chosen = np.argsort(-np.diagonal(hessian), kind="stable") if order == "activation" else np.arange(columns)
    expected = one_by_one(
        weights, damped, tensor.scales.astype(np.float64), tensor.zero_points.astype(np.float64), chosen, 3
    )
    np.testing.assert_array_equal(tensor.codes, expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("order", ["given", "activation"])
def test_the_outputs_change_less_than_by_rounding_to_nearest(
    granularity: Granularity, bits: int, order: Order
) -> None:
    for seed in range(3):
        weights, hessian = layer(24, 160, seed)
        tensor = quantize_gptq(weights, hessian, bits=bits, granularity=granularity, order=order)
        nearest = quantize_affine(weights, bits=bits, scheme="asymmetric", granularity=granularity)
        ours, theirs = (output_error(change(weights, t), hessian) for t in (tensor, nearest))
        assert ours < 0.8 * theirs


def test_it_is_near_the_best_of_all_roundings() -> None:
    ours, nearest, best = 0.0, 0.0, 0.0
    for seed in range(8):
        weights, hessian = layer(1, 7, seed)
        tensor = quantize_gptq(weights, hessian, bits=2, scheme="symmetric-full", damping=1e-9)
        scale = float(tensor.scales[0])
        ours += output_error(change(weights, tensor), hessian)
        plain = quantize_affine(weights, bits=2, scheme="symmetric-full", granularity=PerChannel(axis=0))
        nearest += output_error(change(weights, plain), hessian)
        changes = scale * np.array(list(product(range(-2, 2), repeat=7))) - weights
        best += float(((changes @ hessian) * changes).sum(axis=1).min())
    assert best <= ours <= best + 0.5 * (nearest - best)


def test_the_error_of_outputs_is_that_of_the_outputs() -> None:
    random = np.random.default_rng(0)
    inputs, dw = random.standard_normal((50, 12)), random.standard_normal((5, 12))
    assert output_error(dw, inputs.T @ inputs) == pytest.approx(np.square(inputs @ dw.T).sum())


def test_inputs_that_are_always_zero_do_not_matter() -> None:
    weights, hessian = layer(6, 40)
    hessian[7], hessian[:, 7] = 0, 0
    hessian[0], hessian[:, 0] = 0, 0
    tensor = quantize_gptq(weights, hessian, damping=0)
    nearest = quantize_affine(weights, bits=4, scheme="asymmetric", granularity=PerChannel(axis=0))
    np.testing.assert_array_equal(tensor.codes[:, [0, 7]], nearest.codes[:, [0, 7]])
    assert output_error(change(weights, tensor), hessian) < output_error(change(weights, nearest), hessian)


LEVELS: dict[str, Callable[[Array], CodebookTensor | ScaledCodebookTensor]] = {
    "shared": lambda w: quantize_codebook(w, size=8),
    "shared by rows": lambda w: quantize_codebook(w, size=8, granularity=PerChannel(axis=0)),
    "a table in groups": lambda w: quantize_table(
        w, table="normal-float", bits=3, granularity=PerGroup(size=50)
    ),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_that_are_not_uniform(kind: str) -> None:
    """With independent inputs the nearest; otherwise outputs that change less, by levels that the weight's group has."""
    weights, hessian = layer(24, 160)
    nearest = LEVELS[kind](weights)
    assert isinstance(nearest, ScaledCodebookTensor) == ("table" in kind)
    rounder = LevelRounder(nearest).round
    np.testing.assert_array_equal(
        round_second_order(weights, np.eye(160), rounder), nearest.codes.reshape(24, 160)
    )
    codes = round_second_order(weights, hessian, rounder)
    found = replace(nearest, codes=codes)
    ours, theirs = (output_error(decoded(tensor) - weights, hessian) for tensor in (found, nearest))
    assert ours < 0.8 * theirs
    _, values = rounder(np.zeros(24), 159)
    last = replace(nearest, codes=np.full((24, 160), rounder(np.zeros(24), 159)[0][:, None], np.uint8))
    np.testing.assert_array_equal(values, decoded(last)[:, 159])


def test_levels_that_have_no_rows() -> None:
    weights, _ = layer(6, 8)
    for tensor in (
        quantize_codebook(weights, size=4, granularity=PerChannel(axis=1)),
        quantize_codebook(weights, size=4, mask=weights > 0),
    ):
        with pytest.raises(EncodingError, match="axis 0 or groups, and no mask"):
            LevelRounder(tensor)


def test_refitted_weights_are_those_of_least_squares() -> None:
    """With the damping as further equations, by LAPACK's own solver."""
    random = np.random.default_rng(0)
    before = random.standard_normal((90, 12))
    now = before + 0.3 * random.standard_normal((90, 12))
    weights = random.standard_normal((5, 12)).astype(np.float32)
    hessian, cross = now.T @ now, before.T @ now
    found = refitted(weights, hessian, cross, damping=0.05)
    root = np.sqrt(0.05 * np.diagonal(hessian).mean())
    wanted, *_ = np.linalg.lstsq(
        np.concatenate([now, root * np.eye(12)]),
        np.concatenate([before @ weights.T, root * weights.T]),
        rcond=None,
    )
    np.testing.assert_allclose(found, wanted.T, rtol=1e-9)
    np.testing.assert_allclose(refitted(weights, hessian, hessian), weights, rtol=1e-9)


def test_what_cannot_be_refitted() -> None:
    weights, hessian = layer(6, 8)
    for arguments, message in (
        ((weights[0], hessian, hessian), "matrix"),
        ((weights, hessian[:7], hessian), "Hessian of shape"),
        ((weights, hessian, hessian[:7]), "products of shape"),
        ((weights, hessian, hessian * np.inf), "not finite"),
        ((weights, np.zeros((8, 8)), hessian), "singular"),
    ):
        with pytest.raises(EncodingError, match=message):
            refitted(*arguments)
    with pytest.raises(EncodingError, match="damping"):
        refitted(weights, hessian, hessian, damping=-1)


def test_through_a_file(tmp_path: Path) -> None:
    weights, hessian = layer(32, 64)
    tensor = quantize_gptq(weights, hessian, granularity=PerGroup(size=32), scale_dtype="bf16")
    with Writer(tmp_path / "m.dcz") as writer:
        writer.add_tensor("w", tensor)
    with Reader(tmp_path / "m.dcz") as reader:
        np.testing.assert_array_equal(reader.read("w"), decode_affine(tensor))


def test_what_is_refused() -> None:
    weights, hessian = layer(6, 8)
    for bad, message in (
        (hessian[:7], "shape"),
        (hessian * np.nan, "finite and symmetric"),
        (hessian + np.triu(np.ones((8, 8))), "symmetric"),
        (-hessian, "semidefinite"),
        (np.ones((8, 8)) - 2 * np.eye(8) + 1, "singular"),
    ):
        with pytest.raises(EncodingError, match=message):
            quantize_gptq(weights, bad, damping=0)
    for arguments, message in (
        ({"granularity": PerChannel(axis=1)}, "axis 0"),
        ({"order": "random"}, "order"),
        ({"damping": -1}, "damping"),
    ):
        with pytest.raises(EncodingError, match=message):
            quantize_gptq(weights, hessian, **arguments)
    with pytest.raises(EncodingError, match="matrix"):
        quantize_gptq(weights[0], hessian)

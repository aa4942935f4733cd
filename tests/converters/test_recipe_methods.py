"""Each method of dcz.compression that a recipe reaches: the same as the function gives, and back from a file to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compression.oracles import decode_affine, decode_codebook

from dcz.compression.quantizers import quantize_affine
from dcz.converters.recipes import load_recipe
from dcz.format import AffineTensor, CodebookTensor, PerChannel, PerGroup, Reader, Writer
from dcz.format.dtypes import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]
Method = Callable[[Array, "Array | None"], AffineTensor | CodebookTensor]

METHODS: dict[str, tuple[str, Method]] = {
    "percentile": (
        'kind = "affine", bits = 5, calibration = "percentile", percentile = 97, granularity = { kind = "channel", axis = 0 }',
        lambda w, mask: quantize_affine(
            w, bits=5, calibration="percentile", percentile=97, granularity=PerChannel(axis=0), mask=mask
        ),
    ),
    "kl": (
        'kind = "affine", scheme = "asymmetric", calibration = "kl"',
        lambda w, mask: quantize_affine(w, scheme="asymmetric", calibration="kl", mask=mask),
    ),
    "stochastic": (
        'kind = "affine", bits = 4, rounding = "stochastic", seed = 7, granularity = { kind = "group", size = 24 }',
        lambda w, mask: quantize_affine(
            w, bits=4, rounding="stochastic", seed=7, granularity=PerGroup(size=24), mask=mask
        ),
    ),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_method_through_a_file(name: str, dtype: str, pruned: bool, tmp_path: Path) -> None:
    text, method = METHODS[name]
    weights = (np.random.default_rng(1).standard_normal((48, 60)) / 16).astype(DTYPES[dtype].numpy)
    if pruned:
        weights[:, ::3] = 0
        weights[:, 1::3] = 0
    (tmp_path / "mine.toml").write_text(f"[[rules]]\nvalues = {{ {text} }}\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "mine.toml")
    assert type(recipe).model_validate(recipe.describe()) == recipe
    prepared = recipe.apply("w", weights)
    expected = method(weights, weights.astype(np.float64) != 0 if pruned else None)
    decoded = decode_affine(expected) if isinstance(expected, AffineTensor) else decode_codebook(expected)
    path = tmp_path / "model.dcz"
    with Writer(path) as writer:
        writer.add_tensor("w", prepared.tensor, layout=prepared.layout, coding=prepared.coding)
    with Reader(path) as reader:
        found = reader.read("w")
    assert found.dtype == decoded.dtype
    np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(decoded).view(np.uint8))
    assert (found[weights == 0] == 0).all() or not pruned

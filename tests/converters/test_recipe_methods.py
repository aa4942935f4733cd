"""Each method of dcz.compression that a recipe reaches: the same as the function gives, and back from a file to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dcz
from dcz.compression.binary_coding import quantize_binary_coding
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.extreme import quantize_binary, quantize_ternary
from dcz.compression.quantizers import double_quantize, quantize_affine
from dcz.compression.tables import quantize_table
from dcz.compression.vector_codebooks import quantize_vectors
from dcz.converters.recipes import Recipe, load_recipe
from dcz.errors import EncodingError, RecipeError
from dcz.format import CodedTensor, PerChannel, PerGroup, Reader, Writer, decoded
from dcz.format.dtypes import DTYPES
from dcz.format.effort import EffortName

Array = np.ndarray[Any, np.dtype[Any]]
Method = Callable[[Array, "Array | None"], CodedTensor]

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
    "quantile": (
        'kind = "codebook", size = 12, method = "quantile"',
        lambda w, mask: quantize_codebook(w, size=12, method="quantile", mask=mask),
    ),
    "normal-float": (
        'kind = "table", table = "normal-float", granularity = { kind = "channel", axis = 1 }',
        lambda w, mask: quantize_table(
            w, table="normal-float", bits=4, granularity=PerChannel(axis=1), mask=mask
        ),
    ),
    "normal-float in groups": (
        'kind = "table", table = "normal-float", granularity = { kind = "group", size = 20 }',
        lambda w, mask: quantize_table(w, table="normal-float", granularity=PerGroup(size=20), mask=mask),
    ),
    "normal-float, double": (
        'kind = "table", table = "normal-float", granularity = { kind = "group", size = 20 }, scale_bits = 8',
        lambda w, mask: quantize_table(
            w, table="normal-float", granularity=PerGroup(size=20), scale_bits=8, mask=mask
        ),
    ),
    "affine, double": (
        'kind = "affine", bits = 4, scheme = "asymmetric", granularity = { kind = "group", size = 20 }, scale_bits = 6, scale_group = 16',
        lambda w, mask: double_quantize(
            w,
            bits=4,
            scheme="asymmetric",
            granularity=PerGroup(size=20),
            scale_bits=6,
            scale_group=16,
            mask=mask,
        ),
    ),
    "power-of-two": (
        'kind = "table", table = "power-of-two", bits = 3',
        lambda w, mask: quantize_table(w, table="power-of-two", bits=3, mask=mask),
    ),
    "binary-coding": (
        'kind = "binary-coding", bits = 3, granularity = { kind = "channel", axis = 0 }',
        lambda w, mask: quantize_binary_coding(w, bits=3, granularity=PerChannel(axis=0), mask=mask),
    ),
    "binary": (
        'kind = "binary", granularity = { kind = "group", size = 40 }',
        lambda w, mask: quantize_binary(w, granularity=PerGroup(size=40), mask=mask),
    ),
    "ternary": (
        'kind = "ternary", method = "twn", granularity = { kind = "group", size = 25 }',
        lambda w, mask: quantize_ternary(w, method="twn", granularity=PerGroup(size=25), mask=mask),
    ),
    "two scales": (
        'kind = "ternary", scales = 2, granularity = { kind = "channel", axis = 0 }',
        lambda w, mask: quantize_ternary(w, scales=2, granularity=PerChannel(axis=0), mask=mask),
    ),
}


def through_a_file(text: str, weights: Array, tmp_path: Path) -> tuple[Array, int]:
    """What a recipe's rule makes of weights, and the bytes of their streams in the file."""
    (tmp_path / "mine.toml").write_text(f"[[rules]]\n{text}\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "mine.toml")
    assert type(recipe).model_validate(recipe.describe()) == recipe
    prepared = recipe.apply("w", weights)
    path = tmp_path / "model.dcz"
    with Writer(path) as writer:
        entry = writer.add_tensor("w", prepared.tensor, layout=prepared.layout, coding=prepared.coding)
    with Reader(path) as reader:
        return reader.read("w"), sum(entry.lengths)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_method_through_a_file(name: str, dtype: str, pruned: bool, tmp_path: Path) -> None:
    text, method = METHODS[name]
    weights = (np.random.default_rng(1).standard_normal((48, 60)) / 16).astype(DTYPES[dtype].numpy)
    if pruned:
        weights[:, ::3] = 0
        weights[:, 1::3] = 0
    if dtype == "f64" and "scale_bits" in text:
        with pytest.raises(EncodingError, match="f64"):
            through_a_file(f"values = {{ {text} }}", weights, tmp_path)
        return
    expected = method(weights, weights.astype(np.float64) != 0 if pruned else None)
    wanted = decoded(expected)
    found, _ = through_a_file(f"values = {{ {text} }}", weights, tmp_path)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8))
    assert not pruned or (found[weights == 0] == 0).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("kl", "percentile", "stochastic")])
def test_pruned_weights_are_zeros_in_a_dense_layout_too(name: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((48, 60)).astype(np.float32)
    text = f'pruning = {{ kind = "magnitude", density = 0.3 }}\nvalues = {{ {METHODS[name][0]} }}\nlayout = '
    dense, sparse = (
        through_a_file(text + layout, weights, tmp_path)[0] for layout in ("'dense'", "'bitmap'")
    )
    pruned = np.abs(weights) < np.quantile(np.abs(weights), 0.7)
    assert (dense[pruned] == 0).all()
    assert (sparse[pruned] == 0).all()
    if name != "quantile":  # one of its levels is left for the zero
        np.testing.assert_array_equal(dense, sparse)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("product", ["", ", product = true, iterations = 9, seed = 3"])
@pytest.mark.parametrize("layout", ["", "layout = 'dense'"])
def test_vectors_through_a_file(dtype: str, product: str, layout: str, tmp_path: Path) -> None:
    """Zeros among the weights, as many as there are, are weights like others."""
    weights = (np.random.default_rng(1).standard_normal((48, 60)) / 16).astype(DTYPES[dtype].numpy)
    weights[:, ::3] = 0
    weights[:, 1::3] = 0
    options: dict[str, Any] = {"product": True, "iterations": 9, "seed": 3} if product else {}
    wanted = quantize_vectors(weights, dimension=5, size=20, **options).decode()
    values = f'{{ kind = "vector-codebook", dimension = 5, size = 20{product} }}'
    found, _ = through_a_file(f"values = {values}\n{layout}", weights, tmp_path)
    assert found.tobytes() == wanted.tobytes()


def test_rows_that_cannot_be_cut_have_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[[rules]]\nvalues = { kind = "vector-codebook", dimension = 8, size = 20 }\n', encoding="utf-8"
    )
    recipe = load_recipe(tmp_path / "mine.toml")
    with pytest.raises(EncodingError, match="rows of 60 weights cannot be cut into pieces of 8") as caught:
        recipe.apply("layer.weight", np.zeros((48, 60), np.float32))
    assert caught.value.hint is not None
    assert 'names = ["layer.weight"]' in caught.value.hint


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ('values = "binary"', 1.001),
        ('values = "binary"\ncoding = "raw"', 1.001),
        ('values = { kind = "binary", granularity = { kind = "channel", axis = 0 } }', 1.07),
        ('values = "ternary"', 1.56),
        ('values = { kind = "ternary", method = "twn" }', 1.6),
        ('values = { kind = "ternary", scales = 2 }', 1.56),
        ('values = "ternary"\ncoding = "range"', 1.54),
        (
            'values = { kind = "ternary", granularity = { kind = "channel", axis = 0 }, scale_dtype = "bf16" }',
            1.6,
        ),
    ],
)
@pytest.mark.parametrize("tails", [3, 1000])
def test_the_bits_of_extreme_weights(text: str, most: float, tails: int, tmp_path: Path) -> None:
    weights = np.random.default_rng(2).standard_t(tails, (512, 1024)).astype(np.float32)
    _, stored = through_a_file(text, weights, tmp_path)
    assert 8 * stored <= most * weights.size


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize("method", ["twn", "optimal"])
def test_ternary_weights_of_a_flat_distribution(scales: int, method: str, tmp_path: Path) -> None:
    """As torch initializes layers: log2(3) bits, where a Huffman code takes a bit for a third of them, two for the others."""
    weights = np.random.default_rng(3).uniform(-1, 1, (512, 512)).astype(np.float32)
    values = {"kind": "ternary", "method": method, "scales": scales}
    recipe = Recipe.model_validate({"name": "mine", "rules": [{"values": values}]})
    bits = {}
    efforts: tuple[EffortName, ...] = ("fast", "balanced", "small")
    for effort in efforts:
        done = dcz.convert({"w": weights}, tmp_path / "x.dcz", recipe=recipe, effort=effort)
        with Reader(tmp_path / "x.dcz") as reader:
            (entry,) = reader.manifest.tensors
        bits[effort] = 8 * sum(entry.lengths) / weights.size
        found = dcz.estimate({"w": weights}, recipes=[recipe], efforts=[effort]).estimates[0]
        assert effort == "fast" or found.file_bytes == pytest.approx(done.file_bytes, rel=0.01)
    zero = np.count_nonzero(decoded(recipe.apply("w", weights).tensor) == 0) / weights.size
    p = np.array([zero, (1 - zero) / 2, (1 - zero) / 2])
    entropy = -(p * np.log2(p)).sum()
    assert bits["balanced"] == bits["small"]
    assert entropy * 0.999 < bits["small"] < 1.6 < bits["fast"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{ kind = "table", table = "float", bits = 2 }', "3 to 6 bits"),
        ('{ kind = "table", table = "nf4" }', r"values\.table: Input should be 'normal-float'"),
        ('{ kind = "binary-coding", bits = 7 }', "bits"),
        ('{ kind = "ternary", scales = 3 }', "scales"),
        ('{ kind = "affine", percentile = 50 }', "percentile"),
        ('{ kind = "affine", scale_bits = 9 }', "scale_bits"),
        ('{ kind = "affine", scale_bits = 8, scale_dtype = "bf16" }', "one of scale_bits and scale_dtype"),
        ('{ kind = "affine", calibration = "entropy" }', "calibration"),
        ('{ kind = "affine", percentile = 99 }', r"percentile belongs to calibration = 'percentile'"),
        ('{ kind = "affine", seed = 3 }', r"seed belongs to rounding = 'stochastic'"),
        ('{ kind = "codebook", size = 4, init = "density" }', r"init belongs to method = 'lloyd'"),
        ('{ kind = "codebook", size = 4, method = "lloyd", seed = 1 }', r"seed belongs to init = 'forgy'"),
        ('{ kind = "ternary", scales = 2, scale_dtype = "bf16" }', r"scale_dtype belongs to scales = 1"),
    ],
)
def test_what_a_recipe_refuses(values: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"[[rules]]\nvalues = {values}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "mine.toml")

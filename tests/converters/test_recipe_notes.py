"""What is said of a recipe that did nothing, or too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcz.converters.conversion import Converted, convert
from dcz.converters.recipes import BUILTIN_RECIPES, is_builtin, load_recipe
from dcz.format import CodebookTensor, PerTensor, Reader, UniformTensor, Writer
from dcz.format.manifest import Codebook, Dense

Array = np.ndarray[Any, np.dtype[Any]]


def gaussian(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def converted(tensors: dict[str, Array], recipe: str, folder: Path) -> tuple[Converted, dict[str, Array]]:
    if recipe not in BUILTIN_RECIPES:
        (folder / "mine.toml").write_text(recipe, encoding="utf-8")
        recipe = str(folder / "mine.toml")
    done = convert(tensors, folder / "m.dcz", recipe=recipe)
    with Reader(folder / "m.dcz") as reader:
        return done, {name: reader.read(name) for name in reader}


MODEL = {"a.weight": gaussian(40, 50), "b.weight": gaussian(30, 30), "bias": gaussian(400)}
INT8 = "[[rules]]\nvalues = { kind = 'affine' }\n"


@pytest.mark.parametrize("recipe", BUILTIN_RECIPES)
def test_recipes_that_do_their_work_say_nothing(recipe: str, tmp_path: Path) -> None:
    assert converted(MODEL, recipe, tmp_path)[0].notes == ()
    assert converted({}, recipe, tmp_path)[0].notes == ()
    assert is_builtin(load_recipe(recipe))


@pytest.mark.parametrize("recipe", BUILTIN_RECIPES[1:])
def test_a_recipe_that_changes_nothing_says_so(recipe: str, tmp_path: Path) -> None:
    vectors = {"a": gaussian(400), "b": gaussian(9)}
    assert converted(vectors, recipe, tmp_path)[0].notes == ("the recipe changed 0 of 2 tensors",)


def test_a_recipe_that_is_to_change_nothing_says_nothing(tmp_path: Path) -> None:
    assert converted({"a": gaussian(400)}, "[[rules]]\ncoding = 'raw'", tmp_path)[0].notes == ()


def test_rules_that_decide_nothing_are_named_with_the_reason(tmp_path: Path) -> None:
    recipe = "".join(
        f"[[rules]]\n{rule}\n"
        for rule in (
            "names = ['typo.*', '*.wieght']",
            "names = ['bias']\nvalues = { kind = 'affine' }",
            "names = ['tied']",
            "values = { kind = 'affine' }",
            "names = ['a.*']\nlayout = 'dense'",
        )
    )
    assert converted({**MODEL, "tied": MODEL["a.weight"]}, recipe, tmp_path)[0].notes == (
        'rule 1 (names = ["typo.*", "*.wieght"]) matched no tensor',
        'rule 2 (names = ["bias"]) matched no tensor: its names fit 1, but not what else it asks for',
        "rule 3 (names = [\"tied\"]) matched no tensor: 'tied' is stored as 'a.weight'",
        'rule 5 (names = ["a.*"]) decided nothing: rules before it match all tensors that it matches',
    )


def test_a_recipe_with_the_name_of_another_is_not_it(tmp_path: Path) -> None:
    done, _ = converted(MODEL, f"name = 'int8'\n[[rules]]\nnames = ['typo']\n{INT8}", tmp_path)
    assert done.recipe == "int8"
    assert done.notes == ('rule 1 (names = ["typo"]) matched no tensor',)


ONE_BIT = "kind = 'affine', bits = 1, scheme = 'asymmetric'"


@pytest.mark.parametrize(
    "granularity", ["'tensor'", "{ kind = 'channel', axis = 1 }", "{ kind = 'group', size = 7 }"]
)
@pytest.mark.parametrize("layout", ["auto", "dense", "bitmap"])
def test_layers_of_which_nothing_is_left_are_named(granularity: str, layout: str, tmp_path: Path) -> None:
    """One bit is 0 and the whole range: of weights on both sides of zero, none is nearer to the latter."""
    weights = np.tile(np.array([[1, -1.5], [-1.5, 1]], np.float32), (14, 21)) * np.float32(0.4)
    weights[::2, ::3] = 0.1
    recipe = f"[[rules]]\nvalues = {{ {ONE_BIT}, granularity = {granularity} }}\nlayout = '{layout}'"
    tensors = {"zeros": np.zeros((20, 20), np.float32), "w": weights}
    done, found = converted(tensors, recipe, tmp_path)
    wiped = not found["w"].any()
    assert done.notes == (("the recipe left nothing of 'w': all weights became 0",) if wiped else ())
    many = {f"w{i}": weights for i in range(8)} if wiped else {}
    many = {name: array.copy() for name, array in many.items()}
    if many:
        (note,) = converted(many, recipe, tmp_path)[0].notes
        assert note.endswith("'w0', 'w1', 'w2', 'w3', 'w4', ...: all weights became 0 (8 tensors)")


def test_a_range_on_both_sides_of_zero_in_one_bit_leaves_nothing(tmp_path: Path) -> None:
    weights = np.tile(np.array([1, -1], np.float32), (20, 20))
    done, found = converted({"w": weights}, f"[[rules]]\nvalues = {{ {ONE_BIT} }}", tmp_path)
    assert not found["w"].any()
    assert done.notes == ("the recipe left nothing of 'w': all weights became 0",)


@pytest.mark.parametrize("values", ["'exact'", "{ kind = 'affine' }", "{ kind = 'codebook', size = 4 }"])
@pytest.mark.parametrize("density", ["1e-9", "0.4"])
def test_pruning_keeps_at_least_one_weight(values: str, density: str, tmp_path: Path) -> None:
    recipe = f"""
    [[rules]]
    min_rank = 0
    min_elements = 1
    pruning = {{ kind = "magnitude", density = {density} }}
    values = {values}
    """
    tensors = {"scalar": np.array(-3, np.float32), "w": gaussian(20, 20)}
    done, found = converted(tensors, recipe, tmp_path)
    assert done.notes == ()
    assert found["scalar"] == -3
    kept = max(1, round(float(density) * 400))
    assert np.count_nonzero(found["w"]) <= kept
    largest = np.abs(tensors["w"]).argmax()
    assert found["w"].flat[largest] == pytest.approx(tensors["w"].flat[largest], rel=0.3)


def test_a_name_that_decode_will_refuse_is_noted(tmp_path: Path) -> None:
    done, _ = converted({"__metadata__": gaussian(3), "a": gaussian(3)}, "lossless", tmp_path)
    assert done.notes == (
        "the name '__metadata__' is for metadata in safetensors files: decode will refuse it",
    )


@pytest.mark.parametrize("shared", [8, 256])
@pytest.mark.parametrize("kind", ["codebook", "uniform"])
def test_what_was_sparse_is_stored_dense(kind: str, shared: int, tmp_path: Path) -> None:
    """Codes have no zero of their own where zeros were left out: it becomes one of them, or the elements are stored."""
    rng = np.random.default_rng(0)
    mask = rng.random((64, 128)) < 0.3
    codes = rng.integers(0, shared, mask.shape).astype(np.uint8)
    tensor: CodebookTensor | UniformTensor
    if kind == "codebook":
        centroids = np.linspace(1, 2, shared, dtype=np.float32)[None]
        tensor = CodebookTensor(
            "f32", mask.shape, 8 if shared > 8 else 3, codes, centroids, PerTensor(), mask
        )
        expected = np.where(mask, centroids[0][codes], np.float32(0))
    else:
        scales = np.array([0.25], np.float32)
        tensor = UniformTensor("f32", mask.shape, 8, codes, scales, PerTensor(), mask=mask)
        expected = np.where(mask, (codes.astype(np.float32) - 128) * scales[0], np.float32(0))
    with Writer(tmp_path / "sparse.dcz") as writer:
        writer.add_tensor("w", tensor)
    recipe = tmp_path / "dense.toml"
    recipe.write_text('[[rules]]\nlayout = "dense"\n')
    convert(tmp_path / "sparse.dcz", tmp_path / "dense.dcz", recipe=recipe)
    with Reader(tmp_path / "dense.dcz") as reader:
        assert isinstance(reader.manifest.tensors[0].layout, Dense)
        assert np.array_equal(reader.read("w"), expected)
        if kind == "codebook" and shared == 8:
            assert isinstance(reader.manifest.tensors[0].values, Codebook)

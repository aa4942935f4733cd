"""Recipes: which rule decides, what it does, what is said of a wrong one, and what comes back from a file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine, decode_codebook

from dcz.converters import recipes
from dcz.converters.recipes import BUILTIN_RECIPES, TRAINING_RECIPES, Prepared, Recipe, load_recipe
from dcz.errors import EncodingError, RecipeError
from dcz.format import (
    Bitmap,
    CodebookTensor,
    PerChannel,
    PerGroup,
    Reader,
    RelativeIndex,
    UniformTensor,
    Writer,
)
from dcz.format.dtypes import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "recipes.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)


def gaussian(shape: tuple[int, ...], dtype: str = "f32", seed: int = 0) -> Array:
    return np.asarray((np.random.default_rng(seed).standard_normal(shape) / 16).astype(DTYPES[dtype].numpy))


def recipe_of(text: str, tmp_path: Path) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def decoded(prepared: Prepared) -> Array:
    match prepared.tensor:
        case UniformTensor():
            return decode_affine(prepared.tensor)
        case CodebookTensor():
            return decode_codebook(prepared.tensor)
        case np.ndarray():
            return prepared.tensor
        case _:
            raise AssertionError("no recipe makes this")


def through_a_file(prepared: Prepared, path: Path) -> tuple[Array, Any]:
    """What a reader gives back, and the tensor's entry in the manifest."""
    with Writer(path) as writer:
        entry = writer.add_tensor("w", prepared.tensor, layout=prepared.layout, coding=prepared.coding)
    with Reader(path) as reader:
        return reader.read("w"), entry


MODEL: dict[str, Array] = {
    "embeddings.word_embeddings.weight": gaussian((400, 32)),
    "layer.0.dense.weight": gaussian((64, 96), seed=1),
    "layer.0.dense.bias": gaussian((640,), seed=2),
    "layer.0.LayerNorm.weight": gaussian((640,), seed=3),
    "stage.0.norm.gamma": gaussian((64, 8, 1, 1), seed=4),
    "stage.0.conv.weight": gaussian((32, 16, 3, 3), seed=5),
    "head.weight": gaussian((2, 100), seed=6),
    "lm_head.weight": gaussian((400, 32), seed=7),
    "half.weight": gaussian((48, 64), "bf16", seed=8),
    "double.weight": gaussian((48, 64), "f64", seed=9),
    "eight.weight": gaussian((48, 64), "f8_e4m3fn", seed=10),
    "embeddings.position_ids": np.arange(1024).reshape(2, 512),
    "mask": np.ones((32, 32), dtype=np.bool_),
    "scale": np.array(3, dtype=np.float32),
    "empty.weight": np.zeros((0, 1000), dtype=np.float32),
}
CHANGED = {
    "embeddings.word_embeddings.weight",
    "layer.0.dense.weight",
    "stage.0.conv.weight",
    "lm_head.weight",
    "half.weight",
    "double.weight",
}


@pytest.mark.parametrize("name", BUILTIN_RECIPES)
def test_built_in_recipes_change_what_they_should(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    for tensor_name, tensor in MODEL.items():
        prepared = recipe.apply(tensor_name, tensor)
        back, _ = through_a_file(prepared, tmp_path / "model.dcz")
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        if name != "lossless" and tensor_name in CHANGED:
            assert not isinstance(prepared.tensor, np.ndarray), tensor_name
            np.testing.assert_array_equal(back, decoded(prepared))
            error = np.linalg.norm(back.astype(np.float64) - tensor.astype(np.float64))
            limit = {"int8": 0.01, "int4": 0.15, "codebook": 0.05, "deep-compression": 0.35}[name]
            assert error < limit * np.linalg.norm(tensor.astype(np.float64)), tensor_name
        else:
            assert prepared.tensor is tensor, tensor_name
            assert back.tobytes() == tensor.tobytes()


def test_int8_has_a_symmetric_scale_for_each_row() -> None:
    tensor = load_recipe("int8").apply("layer.weight", MODEL["layer.0.dense.weight"]).tensor
    assert isinstance(tensor, UniformTensor)
    assert (tensor.bits, tensor.granularity, tensor.zero_points) == (8, PerChannel(axis=0), None)
    assert tensor.scales.shape == (64,)


def test_int4_has_groups_in_matrices_and_channels_in_convolutions() -> None:
    recipe = load_recipe("int4")
    matrix = recipe.apply("layer.weight", MODEL["layer.0.dense.weight"]).tensor
    convolution = recipe.apply("conv.weight", MODEL["stage.0.conv.weight"]).tensor
    head = recipe.apply("lm_head.weight", MODEL["lm_head.weight"]).tensor
    assert isinstance(matrix, UniformTensor)
    assert (matrix.bits, matrix.granularity) == (4, PerGroup(size=64))
    assert isinstance(convolution, UniformTensor)
    assert (convolution.bits, convolution.granularity) == (4, PerChannel(axis=0))
    assert isinstance(head, UniformTensor)
    assert head.bits == 8


def test_deep_compression_prunes_to_its_densities() -> None:
    recipe = load_recipe("deep-compression")
    for name, density in (("embeddings.word_embeddings.weight", 0.5), ("layer.0.dense.weight", 0.9)):
        tensor = recipe.apply(name, MODEL[name]).tensor
        assert isinstance(tensor, CodebookTensor)
        assert tensor.mask is not None
        assert tensor.mask.sum() == round(density * MODEL[name].size)
        assert tensor.centroids.shape == (1, 32)


@pytest.mark.parametrize("name", BUILTIN_RECIPES[1:])
def test_zeros_of_a_pruned_model_cost_nothing_and_stay(name: str, tmp_path: Path) -> None:
    weights = gaussian((256, 512))
    weights[np.random.default_rng(1).random(weights.shape) > 0.1] = 0
    prepared = load_recipe(name).apply("w", weights)
    back, entry = through_a_file(prepared, tmp_path / "sparse.dcz")
    assert entry.layout.kind != "dense"
    assert (back[weights == 0] == 0).all()
    assert sum(entry.lengths) < weights.size * 1.4 / 8


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_guide(number: int, tmp_path: Path) -> None:
    recipe = recipe_of(EXAMPLES[number], tmp_path)
    assert recipe.rules
    for name, tensor in MODEL.items():
        through_a_file(recipe.apply(name, tensor), tmp_path / "model.dcz")


def test_the_guide_names_every_built_in_recipe_and_field() -> None:
    assert len(EXAMPLES) >= 5
    for name in BUILTIN_RECIPES:
        assert f"| `{name}` |" in GUIDE
    for field in (
        "names",
        "dtypes",
        "min_elements",
        "max_elements",
        "min_rank",
        "max_rank",
        "pruning",
        "values",
    ):
        assert f"`{field}`" in GUIDE
    for field in (
        "density",
        "bits",
        "scheme",
        "granularity",
        "calibration",
        "scale_dtype",
        "size",
        "method",
        "init",
    ):
        assert f"`{field}`" in GUIDE


def test_every_file_is_a_recipe_that_can_be_named() -> None:
    folder = ROOT / "converters" / "builtin_recipes"
    assert sorted(path.stem for path in folder.iterdir()) == sorted({*BUILTIN_RECIPES, *TRAINING_RECIPES})


def test_the_first_rule_that_matches_decides(tmp_path: Path) -> None:
    recipe = recipe_of(
        """
        [[rules]]
        names = ["*.head.weight", "skip?"]
        [[rules]]
        names = ["*.weight"]
        max_elements = 1000
        values = { kind = "affine", bits = 5 }
        [[rules]]
        dtypes = ["f16"]
        values = { kind = "affine", bits = 6 }
        [[rules]]
        max_rank = 3
        values = { kind = "affine", bits = 7 }
        """,
        tmp_path,
    )

    def bits(name: str, weights: Array) -> int | None:
        tensor = recipe.apply(name, weights).tensor
        return tensor.bits if isinstance(tensor, UniformTensor) else None

    small, large = gaussian((20, 20)), gaussian((40, 40))
    assert recipe.name == "mine"
    assert bits("a.head.weight", small) is None
    assert bits("head.weight", small) == 5  # a dot is asked for
    assert bits("skip1", small) is None
    assert bits("skip12", small) == 7
    assert bits("a.WEIGHT", small) == 7
    assert bits("a.weight", small) == 5
    assert bits("a.weight", large) == 7
    assert bits("a.weight", large.astype(np.float16)) == 6
    assert bits("a.weight", large.reshape(2, 20, 2, 20)) is None
    assert bits("a.weight", large.reshape(-1)) is None
    assert bits("a.weight", small[:5, :5]) is None
    assert bits("a.weight", large.astype(np.int32)) is None


def test_a_rule_that_says_so_reaches_vectors_and_fp8(tmp_path: Path) -> None:
    recipe = recipe_of(
        """
        [[rules]]
        min_rank = 0
        min_elements = 1
        dtypes = ["f8_e5m2", "f32", "i32"]
        values = { kind = "codebook", size = 4 }
        """,
        tmp_path,
    )
    assert isinstance(recipe.apply("a", gaussian((9,), "f8_e5m2")).tensor, CodebookTensor)
    assert isinstance(recipe.apply("a", np.array(2, dtype=np.float32)).tensor, CodebookTensor)
    integers = np.arange(9, dtype=np.int32)
    assert recipe.apply("a", integers).tensor is integers


VALUES = {
    "exact": "",
    "affine": 'values = { kind = "affine", bits = 6, granularity = { kind = "group", size = 24 } }',
    "asymmetric": 'values = { kind = "affine", bits = 3, scheme = "asymmetric", granularity = "tensor" }',
    "codebook": 'values = { kind = "codebook", size = 16, granularity = { kind = "channel", axis = 1 } }',
    "full": 'values = { kind = "codebook", size = 256 }',
}
LAYOUTS = {
    "auto": "",
    "dense": 'layout = "dense"',
    "gaps": 'layout = "relative-index"',
    "five": 'layout = { kind = "relative-index", bits = 5 }',
    "bitmap": 'layout = { kind = "bitmap" }',
}


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("density", [None, 0.3])
def test_pruning_values_and_layout_are_independent(
    dtype: str, values: str, layout: str, density: float | None, tmp_path: Path
) -> None:
    weights = gaussian((60, 50), dtype)
    weights[::4] = 0
    pruning = "" if density is None else f"pruning = {{ kind = 'magnitude', density = {density} }}"
    recipe = recipe_of(f"[[rules]]\n{pruning}\n{VALUES[values]}\n{LAYOUTS[layout]}", tmp_path)
    prepared = recipe.apply("w", weights)
    back, entry = through_a_file(prepared, tmp_path / "model.dcz")
    np.testing.assert_array_equal(back, decoded(prepared))
    stored = int(np.count_nonzero(back.astype(np.float64)))
    if density is not None:
        assert stored <= density * weights.size
        kept = back.astype(np.float64) != 0
        magnitudes = np.abs(weights.astype(np.float64))
        assert magnitudes[kept].min() >= np.quantile(magnitudes, 1 - density) - 1e-9
    expected = {
        "dense": "dense",
        "gaps": "relative-index",
        "five": "relative-index",
        "bitmap": "bitmap",
    }.get(layout)
    if expected is not None:
        assert entry.layout.kind == expected
    if layout == "five":
        assert entry.layout == RelativeIndex(bits=5)
    if layout == "bitmap":
        assert entry.layout == Bitmap()
    if entry.layout.kind != "dense":
        assert sum(entry.entries) == stored
    limit = {"exact": 0.0, "affine": 0.04, "asymmetric": 0.6, "codebook": 0.2, "full": 0.02}[values]
    error = back.astype(np.float64) - weights.astype(np.float64)
    reference = np.linalg.norm(weights.astype(np.float64))
    if density is None:
        assert np.linalg.norm(error) <= limit * reference


@pytest.mark.parametrize("coding", ["raw", "huffman", "zstd"])
def test_the_coding_is_the_one_asked_for(coding: str, tmp_path: Path) -> None:
    recipe = recipe_of(
        f'[[rules]]\nvalues = {{ kind = "codebook", size = 8 }}\ncoding = "{coding}"', tmp_path
    )
    _, entry = through_a_file(recipe.apply("w", gaussian((60, 50))), tmp_path / "model.dcz")
    assert set(entry.codings) == {["raw", "huffman", "zstd"].index(coding)}


def test_a_tensor_of_zeros(tmp_path: Path) -> None:
    zeros = np.zeros((40, 50), dtype=np.float32)
    for name in BUILTIN_RECIPES:
        back, _ = through_a_file(load_recipe(name).apply("w", zeros), tmp_path / "zeros.dcz")
        np.testing.assert_array_equal(back, zeros)


@pytest.mark.parametrize("name", BUILTIN_RECIPES[1:])
def test_weights_that_are_not_finite_are_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    weights = gaussian((40, 50))
    weights[7, 8] = np.nan
    weights[9, 1] = -np.inf
    with pytest.raises(EncodingError) as caught:
        load_recipe(name).apply("odd[0].w*", weights)
    assert caught.value.message == "2 of 2000 weights are not finite, the first is nan at [7, 8]"
    # What the hint says works, for this tensor and no other.
    found = re.fullmatch(
        r"to store it exactly, let a copy of (.*) begin with a rule, \[\[rules\]\], of the one line (names = .*)",
        str(caught.value.hint),
    )
    assert found is not None
    text = Path(found[1]).read_text(encoding="utf-8")
    start = text.index("[[rules]]")
    recipe = recipe_of(f"{text[:start]}[[rules]]\n{found[2]}\n\n{text[start:]}", tmp_path)
    assert recipe.apply("odd[0].w*", weights).tensor is weights
    with pytest.raises(EncodingError, match="let the recipe begin with a rule") as again:
        recipe.apply("odd0.w", weights)
    assert '["odd0.w"]' in str(again.value.hint)


@pytest.mark.parametrize("name", BUILTIN_RECIPES)
def test_descriptions_are_plain_and_complete(name: str) -> None:
    recipe = load_recipe(name)
    described = recipe.describe()
    assert json.loads(json.dumps(described)) == described
    again = Recipe.model_validate(described)
    assert again == recipe.model_copy(update={"description": ""})
    assert again.describe() == described
    assert described["name"] == name
    assert load_recipe(recipe) is recipe


def test_a_description_keeps_what_is_not_default(tmp_path: Path) -> None:
    recipe = recipe_of(
        """
        description = "left out"
        [[rules]]
        names = ["a", "b"]
        layout = "auto"
        values = { kind = "codebook", size = 8, granularity = { kind = "group", size = 32 }, seed = 0 }
        """,
        tmp_path,
    )
    values = {"kind": "codebook", "size": 8, "granularity": {"kind": "group", "size": 32}}
    assert recipe.describe() == {"name": "mine", "rules": [{"names": ["a", "b"], "values": values}]}


BAD = [
    ("rules = 3", "mine.toml:1: rules: ", "a list is expected, not 3"),
    ("nam = 'x'", "mine.toml:1: nam: ", "unknown field; allowed: name, description, rules"),
    ("\nname = ''", "mine.toml:2: name: ", "at least 1 character needed, not ''"),
    ("[[rules]]\nname = ['*']", "mine.toml:2: rules[1].name: ", "unknown field; allowed: names, dtypes, "),
    ("[[rules]]\nnames = '*'", "mine.toml:2: rules[1].names: ", "not '*'"),
    ("[[rules]]\nnames = []", "mine.toml:2: rules[1].names: ", "at least 1 item needed, not []"),
    (
        "[[rules]]\ndtypes = ['f32', 'float']",
        "mine.toml:2: rules[1].dtypes: ",
        "'float'; allowed: f64, f32, ",
    ),
    (
        "[[rules]]\nmin_elements = -1",
        "mine.toml:2: rules[1].min_elements: ",
        "greater than or equal to 0, not -1",
    ),
    ("[[rules]]\nmin_rank = '2'", "mine.toml:2: rules[1].min_rank: ", "valid integer, not '2'"),
    (
        "[[rules]]\ncoding = 'rar'",
        "mine.toml:2: rules[1].coding: ",
        "'auto', 'raw', 'huffman', 'cascade', 'zstd' or 'range', not 'rar'",
    ),
    (
        "[[rules]]\nlayout = 'sparse'",
        "mine.toml:2: rules[1].layout: ",
        "allowed: auto, dense, relative-index, bitmap",
    ),
    (
        "[[rules]]\nvalues = 'int8'",
        "mine.toml:2: rules[1].values: ",
        "unknown kind 'int8'; allowed: exact, affine, codebook, vector-codebook, table, binary-coding, binary, ternary",
    ),
    (
        "[[rules]]\nvalues = { kind = 'table', table = 'float', bit = 3 }",
        "mine.toml:2: rules[1].values.bit: ",
        "unknown field; allowed: kind, table, bits, granularity",
    ),
    (
        "[[rules]]\nvalues = { kind = 'vector-codebook', dimension = 4, size = 257 }",
        "mine.toml:2: rules[1].values.size: ",
        "less than or equal to 256, not 257",
    ),
    (
        "[[rules]]\nvalues = { kind = 'vector-codebook', size = 16 }",
        "mine.toml:2: rules[1].values.dimension: ",
        "is missing",
    ),
    (
        "[[rules]]\nvalues = { kind = 'vector-codebook', dimension = 4, size = 16, granularity = 'tensor' }",
        "mine.toml:2: rules[1].values.granularity: ",
        "unknown field; allowed: kind, dimension, size, product, iterations, seed",
    ),
    (
        "[[rules]]\npruning = { kind = 'magnitude', density = 0.5 }\nvalues = { kind = 'vector-codebook', dimension = 4, size = 16 }",
        "mine.toml:1: rules[1]: ",
        "cannot be combined with pruning",
    ),
    (
        "[[rules]]\nlayout = 'bitmap'\nvalues = { kind = 'vector-codebook', dimension = 4, size = 16 }",
        "mine.toml:1: rules[1]: ",
        "allowed: layout = 'auto' or 'dense', not 'bitmap'",
    ),
    (
        "[[stages]]\nkind = 'prune'\ndensities = { kind = 'std', factor = 1, floor = 2 }",
        "mine.toml:3: stages[1].densities.floor: ",
        "unknown field; allowed: kind, factor",
    ),
    (
        "[[stages]]\nkind = 'quant'",
        "mine.toml:1: stages[1]: ",
        "unknown kind 'quant'; allowed: prune, share, rate, quantize, round",
    ),
    (
        "[[rules]]\nvalues = { bits = 3 }",
        "mine.toml:2: rules[1].values: ",
        "'kind' is missing; allowed: exact, ",
    ),
    ("[[rules]]\nvalues = 'codebook'", "mine.toml:2: rules[1].values.size: ", "is missing"),
    (
        "[[rules]]\n[[rules]]\n# bits = 1\nvalues = { kind = 'affine', bits = 9 }",
        "mine.toml:4: rules[2].values.bits: ",
        "less than or equal to 8, not 9",
    ),
    (
        "[[rules]]\n[rules.values]\nkind = 'affine'\nbits = 1",
        "mine.toml:2: rules[1].values: ",
        "1 bit has no room",
    ),
    (
        "[[rules]]\n[rules.values]\nkind = 'codebook'\ngranularity = { kind = 'group', size = 4 }\nsize = 0",
        "mine.toml:5: rules[1].values.size: ",
        "greater than or equal to 1, not 0",
    ),
    (
        "[[rules]]\n[rules.values]\nkind = 'codebook'\nsize = 4\ngranularity = { kind = 'group', size = 0 }",
        "mine.toml:5: rules[1].values.granularity.size: ",
        "greater than or equal to 1, not 0",
    ),
    (
        "[[rules]]\nvalues = { kind = 'affine', granularity = { kind = 'channel', axes = 0 } }",
        "mine.toml:2: rules[1].values.granularity.axes: ",
        "unknown field; allowed: kind, axis",
    ),
    (
        "[[rules]]\npruning = { kind = 'magnitude', density = 0 }",
        "rules[1].pruning.density: ",
        "greater than 0",
    ),
    ("[[rules]]\npruning = { kind = 'magnitude', density = nan }", "rules[1].pruning.density: ", "not nan"),
    (
        "[[rules]]\npruning = { kind = 'magnitude', share = 1 }",
        "rules[1].pruning.share: ",
        "allowed: kind, density",
    ),
    ("rules = [3]", "mine.toml: rules[1]: ", "a table is expected, not 3"),
    ("[[rules]]\nvalues = 3", "mine.toml:2: rules[1].values: ", "a table is expected, not 3"),
    (
        "[[rules]]\n[[rules]]\nmin_elements = 9\nmax_elements = 8",
        "mine.toml:2: rules[2]: ",
        "matches no tensor: max_elements is 8, and min_elements is 9",
    ),
    (
        "[[rules]]\nmax_rank = 1\npruning = { kind = 'magnitude', density = 0.5 }",
        "mine.toml:1: rules[1]: ",
        "max_rank is 1, and min_rank is 2, as in every rule that changes weights and does not give it",
    ),
    (
        "[[rules]]\ndtypes = ['i8', 'bool']\nvalues = { kind = 'affine' }",
        "mine.toml:1: rules[1]: ",
        "only floating-point weights are changed",
    ),
    ("[[rules]\n", "mine.toml: not valid TOML: ", "line 1"),
]


@pytest.mark.parametrize(("text", "where", "what"), BAD)
def test_wrong_recipes_are_refused_with_the_place_and_what_is_allowed(
    text: str, where: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine.toml")
    assert where in str(caught.value)
    assert what in str(caught.value)


def test_the_error_that_the_guide_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[[rules]]\n[rules.values]\nkind = "affine"\nbits = 9'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine.toml")
    assert f"```text\n{caught.value}\n```" in GUIDE


def test_every_fault_has_its_line_and_they_are_in_order(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of("[[rules]]\ncoding = 'x'\nmin_rank = -1\n\n[[rules]]\nmax_rank = 'y'\nnam = 3", tmp_path)
    lines = str(caught.value).splitlines()
    numbers = [re.search(r"mine\.toml:(\d+): ", line)[1] for line in lines]  # type: ignore[index]
    assert numbers == ["2", "3", "6", "7"]


@pytest.mark.parametrize("spec", [None, {"rules": []}, 5, b"int8", ["int8"]])
def test_what_is_no_recipe_is_refused(spec: Any) -> None:
    with pytest.raises(RecipeError, match="a recipe is a name, a path or a Recipe, not a "):
        load_recipe(spec)


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the name of the recipe is empty \(built in: lossless"):
        load_recipe("")
    with pytest.raises(RecipeError, match=r"there is no recipe 'int9' \(built in: lossless, int8, int4, "):
        load_recipe("int9")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(RecipeError, match="cannot be read: it is not a regular file"):
            load_recipe(endless)
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecipeError, match=r"large\.toml: more than 1048576 bytes are not a recipe"):
        load_recipe(tmp_path / "large.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "latin.toml")


@given(st.data())
def test_any_text_is_a_recipe_or_refused(data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(EXAMPLES))
    start = data.draw(st.integers(0, len(source)))
    end = data.draw(st.integers(start, min(len(source), start + 12)))
    pieces = [
        "",
        "[[rules]]\n",
        "kind",
        '"x"',
        "-1",
        "1.5",
        "{}",
        "[]",
        "\n",
        "= ",
        "rules.",
        "true",
        "1979-05-27",
    ]
    text = source[:start] + data.draw(st.sampled_from(pieces) | st.text(max_size=5)) + source[end:]
    try:
        recipe = recipes._parse(text, file="mine.toml")
    except RecipeError as exc:
        refusal = str(exc)
    else:
        refusal = "mine.toml"
        assert Recipe.model_validate(recipe.describe()).describe() == recipe.describe()
    assert refusal.startswith("mine.toml")

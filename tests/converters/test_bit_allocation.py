"""From a module and a budget to a recipe, and from the recipe to a file that keeps the budget."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dcz
from dcz.compression.search.costs import total
from dcz.compression.search.integer_programme import least_loss
from dcz.compression.search.latency import LatencyModel, LatencyTable, WeightLatency
from dcz.compression.training.masks import prune
from dcz.compression.training.weights import find_weights
from dcz.converters.bit_allocation import allocate_bits, options_of, uniform_values
from dcz.converters.recipe_actions import (
    Affine,
    Binary,
    BinaryCoding,
    Codebook,
    Exact,
    TableValues,
    Ternary,
    Values,
    VectorCodebook,
)
from dcz.converters.recipe_files import recipe_text, save_recipe
from dcz.converters.recipes import BUILTIN_RECIPES, TRAINING_RECIPES, Recipe, load_recipe
from dcz.errors import UsageError
from dcz.format import PerChannel, PerGroup


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Network(nn.Module):
    """Convolution, embedding that is tied to the output, linear layers; one is of no importance at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 32)
        self.convolution = nn.Conv1d(32, 32, 3, padding=1)
        self.unused = nn.Linear(32, 64)
        self.hidden = nn.Linear(32, 32)
        self.output = nn.Linear(32, 50)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.convolution(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        outputs: torch.Tensor = self.output(torch.tanh(self.hidden(states)))
        unused: torch.Tensor = self.unused(states)
        return outputs + 0 * unused.sum()


TOKENS = torch.arange(200).reshape(4, 50) % 50


def loss(module: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(module(tokens).flatten(0, 1), tokens.flatten())


with torch.no_grad():
    DENSE = Network()(TOKENS)


def evaluate(module: nn.Module) -> float:
    return -float((module(TOKENS) - DENSE).square().mean())


@pytest.mark.parametrize("way", ["measured", "second-order"])
def test_the_file_keeps_the_budget_and_holds_what_was_chosen(way: str, tmp_path: Path) -> None:
    module = Network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    asked: dict[str, Any] = (
        {"evaluate": evaluate} if way == "measured" else {"loss": loss, "batches": [TOKENS]}
    )
    found = allocate_bits(module, size=8000, **asked)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    save_recipe(found.recipe, tmp_path / "mixed.toml")
    done = dcz.convert(module, tmp_path / "m.dcz", recipe=tmp_path / "mixed.toml")
    assert 0.95 * 8000 < done.file_bytes <= 8000
    assert not done.notes
    with dcz.open(tmp_path / "m.dcz") as file:
        entries = {entry.name: entry for entry in file.reader.manifest.tensors}
        for name, choice in found.choices.items():
            assert sum(entries[name].lengths) == choice.bytes
    assert dcz.load(tmp_path / "m.dcz")["convolution.bias"].equal(before["convolution.bias"])
    # What the outputs do not depend on gets the fewest bits.
    assert found.choices["unused.weight"].bits == min(choice.bits for choice in found.choices.values()) == 2
    assert len({choice.name for choice in found.choices.values()}) > 1
    # The same by hand.
    again = least_loss(found.costs, size=found.total.bytes)
    assert total(again).loss == pytest.approx(found.total.loss)
    assert allocate_bits(module, size=8000, **asked).choices == found.choices
    assert "the file: " in found.text()


def test_the_recipe_that_was_returned_is_the_file_that_was_counted(tmp_path: Path) -> None:
    found = allocate_bits(Network(), size=12_000, evaluate=evaluate, effort="small")
    done = dcz.convert(Network(), tmp_path / "m.dcz", recipe=found.recipe, effort="small")
    assert done.file_bytes == found.file_bytes <= 12_000


def test_too_small_budgets_say_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"1000 bytes is too small: the file has at least (\d+) bytes"
    ) as caught:
        allocate_bits(Network(), size=1000, evaluate=evaluate)
    least = int(str(caught.value).split()[-2])
    assert allocate_bits(Network(), size=least, evaluate=evaluate).file_bytes == least
    plenty = allocate_bits(Network(), size=10**9, evaluate=lambda _: 1.0)
    assert plenty.file_bytes < 30_000


def latency_table(module: nn.Module) -> LatencyTable:
    """Decoding takes a microsecond for each bit, and computing depends on the batch alone."""
    options = {weight.name: options_of(uniform_values(weight), {}) for weight in find_weights(module)}
    return LatencyTable(
        version=1,
        network="n",
        processor="",
        torch="",
        threads=1,
        batches=(1, 8),
        open=1e-4,
        rest=(1e-4, 1e-3),
        weights=tuple(
            WeightLatency(
                name=name,
                shape=(1,),
                decode={option.name: 1e-6 * option.bits for option in row},
                compute={"f32": (1e-5, 1e-4), "int8": (2e-5, 3e-5)},
            )
            for name, row in options.items()
        ),
    )


def test_budgets_of_latency(tmp_path: Path) -> None:
    module = Network()
    model = LatencyModel(latency_table(module), bandwidth=1e6, batch=8)
    found = allocate_bits(module, latency=0.01, latency_model=model, evaluate=evaluate)
    size = dcz.convert(module, tmp_path / "m.dcz", recipe=found.recipe).file_bytes
    # By hand: everything is fetched, decoded, and computed.
    by_hand = size / 1e6 + 1e-4 + 1e-3 + 4e-4 + sum(1e-6 * choice.bits for choice in found.choices.values())
    assert found.seconds == pytest.approx(by_hand)
    assert 0.0095 < by_hand <= 0.01
    faster = LatencyModel(latency_table(module), bandwidth=1e7, batch=8, precision="int8")
    with_both = allocate_bits(module, size=6000, latency=0.01, latency_model=faster, evaluate=evaluate)
    assert with_both.file_bytes <= 6000
    assert with_both.seconds is not None
    assert with_both.seconds < 0.003
    with pytest.raises(
        UsageError, match=r"0.001 s is too small: the latency is at least (0\.\d+) s"
    ) as caught:
        allocate_bits(module, latency=0.001, latency_model=model, evaluate=evaluate)
    least = 1.0001 * float(str(caught.value).split()[-2])
    assert {
        choice.bits
        for choice in allocate_bits(
            module, latency=least, latency_model=model, evaluate=evaluate
        ).choices.values()
    } == {2}


def test_what_cannot_be_searched() -> None:
    with pytest.raises(UsageError, match="without a budget"):
        allocate_bits(Network(), evaluate=evaluate)
    with pytest.raises(UsageError, match="needs a latency_model"):
        allocate_bits(Network(), latency=1.0, evaluate=evaluate)
    both = {"evaluate": evaluate, "loss": loss, "batches": []}
    wrong: dict[str, Any]
    for wrong in ({}, both, {"loss": loss}, {"batches": []}):
        with pytest.raises(UsageError, match="either evaluate, or loss and batches"):
            allocate_bits(Network(), size=1000, **wrong)
    module = Network()
    prune(find_weights(module), 0.5)
    with pytest.raises(UsageError, match="is being compressed by PruningMask"):
        allocate_bits(module, size=1000, evaluate=evaluate)


def test_other_ways_to_store_weights(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 16))
    values = (
        Affine(kind="affine", bits=4, granularity=PerChannel(axis=0)),
        Codebook(kind="codebook", size=16),
        Ternary(kind="ternary", granularity=PerChannel(axis=0)),
        Binary(kind="binary"),
    )
    inputs = torch.randn(100, 64)
    with torch.no_grad():
        wanted = module(inputs)
    found = allocate_bits(
        module,
        size=4000,
        evaluate=lambda module: -float((module(inputs) - wanted).square().mean()),
        values=lambda _: values,
    )
    done = dcz.convert(module, tmp_path / "m.dcz", recipe=found.recipe)
    assert done.file_bytes == found.file_bytes <= 4000
    assert [choice.bits for choice in found.costs["0.weight"]] == [4, 4, 2, 1]
    assert {rule.values.kind for rule in found.recipe.rules} <= {value.kind for value in values}


def test_options_have_names_of_their_own() -> None:
    by_name: dict[str, Any] = {}
    values: list[Values] = [
        Affine(kind="affine", bits=4),
        Affine(kind="affine", bits=4, calibration="mse"),
        Affine(kind="affine", bits=4, granularity=PerGroup(size=8)),
        Affine(kind="affine", bits=4),
        BinaryCoding(kind="binary-coding", bits=3),
        TableValues(kind="table", table="normal-float", bits=3),
        Codebook(kind="codebook", size=1),
        Exact(kind="exact"),
        VectorCodebook(kind="vector-codebook", dimension=4, size=200),
        VectorCodebook(kind="vector-codebook", dimension=8, size=16),
    ]
    options = options_of(values, by_name)
    assert options[0].name == options[3].name
    assert len({option.name for option in options}) == len(by_name) == 9
    assert [option.bits for option in options] == [4, 4, 4, 4, 3, 3, 1, 32, 2, 1]
    assert all(by_name[option.name] == value for option, value in zip(options, values, strict=True))


@pytest.mark.parametrize("name", sorted({*BUILTIN_RECIPES, *TRAINING_RECIPES}))
def test_recipes_come_back_from_text(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    save_recipe(recipe, tmp_path / "copy.toml")
    assert load_recipe(tmp_path / "copy.toml") == recipe


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    name=TEXT,
    description=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    names=st.lists(TEXT, min_size=1, max_size=30),
    density=st.floats(1e-300, 1),
)
def test_any_text_and_number_comes_back(
    name: str, description: str, names: list[str], density: float
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": name,
            "description": description,
            "rules": [{"names": names, "pruning": {"kind": "magnitude", "density": density}}],
        }
    )
    assert Recipe.model_validate(tomllib.loads(recipe_text(recipe))) == recipe

"""The stage ``quantize`` of dcz.compress, on a network that is trained here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.digits_training import Net, check_resuming, evaluate, train, trained
from torch import nn

import dcz
from dcz.compression.training.activation_metadata import (
    ACTIVATIONS,
    describe_activations,
    restore_activations,
)
from dcz.compression.training.activations import activation_quantizers
from dcz.compression.training.weights import find_weights
from dcz.converters.recipes import Recipe, load_recipe
from dcz.errors import RecipeError, UsageError
from dcz.format import Reader
from dcz.format.manifest import Affine, Codebook, Dense

WEIGHTS = ("conv.weight", "hidden.weight", "last.weight")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense() -> Net:
    torch.set_num_threads(1)
    return trained()


@pytest.fixture
def model(dense: Net) -> Net:
    torch.manual_seed(1)
    return copy.deepcopy(dense)


def recipe(*stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"name": "mine", "stages": list(stages)})


def quantize(**fields: Any) -> dict[str, Any]:
    return {"kind": "quantize", "min_elements": 0, "epochs": 2, **fields}


def levels(tensor: torch.Tensor) -> int:
    return max(len(torch.unique(row)) for row in tensor)


@pytest.mark.parametrize(
    ("name", "most", "loss", "bits"),
    [("qat-int4", 16, 1.5, 4.0), ("qat-ternary", 3, 4.0, 1.6), ("qat-binary", 2, 4.0, 1.1)],
)
def test_builtin_recipes(model: Net, name: str, most: int, loss: float, bits: float, tmp_path: Path) -> None:
    done = dcz.compress(model, tmp_path / "m.dcz", train=train, evaluate=evaluate, recipe=name)
    assert [step.kind for step in done.steps] == ["dense", "quantize", "round"]
    assert done.quality[0] is not None
    assert done.quality[1] is not None
    assert done.quality[1] >= done.quality[0] - loss
    assert done.quality[1] == evaluate(model.eval())
    other = Net()
    dcz.load_into(other, tmp_path / "m.dcz")
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert levels(model.hidden.weight) <= most
    with Reader(tmp_path / "m.dcz") as reader:
        entries = {tensor.name: tensor for tensor in reader.manifest.tensors}
        values = entries["hidden.weight"].values
        assert isinstance(values, Affine | Codebook)
        assert values.bits <= np.ceil(np.log2(most)) + 1
    layer = next(layer for layer in done.layers.layers if layer.name == "hidden.weight")
    assert 8 * layer.counts.stored / layer.counts.weights < bits + 0.15  # and a scale for each output


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "ste", "bits": 3, "calibration": "mse"},
        {"method": "ste", "bits": 4, "scheme": "asymmetric", "granularity": {"kind": "group", "size": 32}},
        {"method": "lsq", "bits": 2, "granularity": "tensor", "scale_dtype": "f32"},
        {"method": "ttq"},
    ],
    ids=str,
)
def test_other_ways(model: Net, fields: dict[str, Any], tmp_path: Path) -> None:
    stage = quantize(**fields)
    done = dcz.compress(model, tmp_path / "m.dcz", train=train, evaluate=evaluate, recipe=recipe(stage))
    assert done.quality[1] is not None
    assert done.quality[1] > 85
    with Reader(tmp_path / "m.dcz") as reader:
        values = next(tensor.values for tensor in reader.manifest.tensors if tensor.name == "hidden.weight")
        assert isinstance(values, Affine | Codebook)
        assert np.array_equal(reader.read("hidden.weight"), model.hidden.weight.detach().numpy())


def test_pruned_then_quantized_then_entropy_coded(model: Net, tmp_path: Path) -> None:
    pruned: dict[str, torch.Tensor] = {}

    def watching(module: nn.Module) -> None:
        train(module)
        for weight in find_weights(module):
            name, value = weight.name, weight.value()
            zeros = value == 0
            if name in pruned:
                assert bool(zeros[pruned[name]].all()), "a pruned weight came back"
            if int(zeros.sum()) > 0.79 * value.numel():
                pruned.setdefault(name, zeros.clone())

    plan = recipe(
        {"kind": "prune", "densities": {"kind": "uniform", "density": 0.2}, "steps": 2, "min_elements": 0},
        quantize(method="lsq", bits=3),
    )
    done = dcz.compress(model, tmp_path / "m.dcz", train=watching, evaluate=evaluate, recipe=plan)
    assert set(pruned) == set(WEIGHTS)
    assert done.quality[0] is not None
    assert done.quality[1] is not None
    assert done.quality[1] >= done.quality[0] - 4
    for name in WEIGHTS:
        value = model.state_dict()[name]
        assert torch.count_nonzero(value) <= round(0.2 * value.numel())
    with Reader(tmp_path / "m.dcz") as reader:
        entry = next(tensor for tensor in reader.manifest.tensors if tensor.name == "hidden.weight")
        assert not isinstance(entry.layout, Dense)
        assert isinstance(entry.values, Affine | Codebook)
        codings = {reader.manifest.provenance.effort}
        found = reader.read("hidden.weight")
    assert codings == {"small"}
    assert np.array_equal(found, model.hidden.weight.detach().numpy())
    layer = next(layer for layer in done.layers.layers if layer.name == "hidden.weight")
    # Positions by their entropy, and three bits for what is kept at the most, and a scale for each output.
    density = np.count_nonzero(found) / found.size
    bound = -density * np.log2(density) - (1 - density) * np.log2(1 - density) + 3 * density
    assert 8 * layer.counts.stored < found.size * bound + 16 * 64 + 200


@pytest.mark.parametrize(
    "stages",
    [
        [quantize(method="lsq", bits=3, activations={"kind": "learned", "bits": 4})],
        [
            quantize(method="ste", bits=3, calibration="mse", activations={"kind": "static"}),
            quantize(method="ttq"),
        ],
        [
            {
                "kind": "prune",
                "densities": {"kind": "uniform", "density": 0.3},
                "steps": 1,
                "min_elements": 0,
            },
            quantize(method="twn", activations="dynamic"),
            quantize(method="binary", epochs=1),
            {"kind": "round"},
        ],
    ],
    ids=["learned", "held", "pruned"],
)
def test_resuming_after_each_epoch_gives_the_same_bits(
    dense: Net, stages: list[dict[str, Any]], tmp_path: Path
) -> None:
    check_resuming(dense, tmp_path, 2, 3, recipe=recipe(*stages))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"FakeQuantizedWeight"', '"FakeQuantizedWeights"'),
        ('"symmetric"', '"sideways"'),
        ('"scale_dtype": "bf16"', '"scale_type": "bf16"'),
        ('"parts"', '"part"'),
    ],
)
def test_a_checkpoint_that_is_not_ours(model: Net, old: str, new: str, tmp_path: Path) -> None:
    plan = recipe(quantize(method="ste", bits=3, epochs=0))
    dcz.compress(copy.deepcopy(model), train=train, recipe=plan, checkpoints=tmp_path)
    path = tmp_path / "checkpoint.dcz"
    with dcz.open(path) as file:
        metadata = dict(file.metadata())
    assert old in metadata["dcz.compress"]
    metadata["dcz.compress"] = metadata["dcz.compress"].replace(old, new)
    dcz.save(dcz.load(path), path, metadata=metadata)
    with pytest.raises(UsageError, match=r"another version|does not know|cannot be made"):
        dcz.compress(copy.deepcopy(model), train=train, recipe=plan, checkpoints=tmp_path)


@pytest.mark.parametrize(
    "activations",
    [
        {"kind": "learned", "bits": 4},
        {"kind": "static", "bits": 6, "calibration": "percentile", "percentile": 99.5},
        {"kind": "dynamic", "bits": 5, "layers": ["hidden", "last"]},
    ],
    ids=["learned", "static", "dynamic"],
)
def test_activations_travel_with_the_file(model: Net, activations: dict[str, Any], tmp_path: Path) -> None:
    plan = recipe(quantize(bits=4, activations=activations))
    done = dcz.compress(model, tmp_path / "m.dcz", train=train, evaluate=evaluate, recipe=plan)
    assert list(activation_quantizers(model)) == []
    assert list(model.state_dict()) == list(Net().state_dict())
    other = Net().eval()
    dcz.load_into(other, tmp_path / "m.dcz")
    with dcz.open(tmp_path / "m.dcz") as file:
        described = file.metadata()[ACTIVATIONS]
    names = restore_activations(other, described)
    assert names == activations.get("layers", ["conv", "hidden", "last"])
    assert evaluate(other) == done.quality[1]
    assert describe_activations(other) == described


def test_a_budget_gives_more_bits_or_none(model: Net) -> None:
    plan = recipe(quantize(method="ste", bits=2, epochs=0), quantize(method="binary", epochs=0))
    done = dcz.compress(model, train=train, evaluate=evaluate, recipe=plan, tolerance=1.0)
    assert done.quality[0] is not None
    assert done.quality[1] == evaluate(model.eval())
    assert done.quality[1] >= done.quality[0] - 1
    tried = [next(iter(step.bits.values())) for step in done.steps if step.stage == 1]
    assert tried == list(range(2, tried[-1] + 1))
    assert len(tried) > 1
    assert [step.kept for step in done.steps if step.stage == 1][-1]
    binary = [step for step in done.steps if step.stage == 2]
    assert [step.kept for step in binary] == [False]
    assert levels(model.hidden.weight) > 2


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"method": "binary", "bits": 2}, "bits is for the methods ste and lsq"),
        ({"method": "twn", "scheme": "symmetric"}, "scheme is for the methods ste and lsq"),
        ({"method": "lsq", "calibration": "mse"}, "calibration is for the method ste"),
        ({"method": "lsq", "scheme": "asymmetric"}, "learned steps are symmetric"),
        ({"bits": 1}, "1 bit has no room"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        recipe(quantize(**fields))


def test_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[stages]]\nkind = "quantize"\nmethod = "lsq"\nactivations = { kind = "learned", bit = 3 }\n'
    )
    with pytest.raises(RecipeError, match=r"mine\.toml:4: .*bit: unknown field; allowed: kind, bits, layers"):
        load_recipe(path)
    path.write_text('[[stages]]\nkind = "quantize"\nactivations = "later"\n')
    with pytest.raises(RecipeError, match=r"mine\.toml:3: .*allowed: learned, dynamic, static"):
        load_recipe(path)


def test_wrong_use(model: Net) -> None:
    with pytest.raises(UsageError, match=r"need evaluate"):
        dcz.compress(model, train=train, recipe=recipe(quantize(activations="static")))
    assert isinstance(model.hidden.weight, nn.Parameter)
    with pytest.raises(UsageError, match="no layer is chosen"):
        dcz.compress(
            model,
            train=train,
            recipe=recipe(quantize(activations={"kind": "dynamic", "layers": ["nothing"]})),
        )

"""dcz.compress: pruned, shared, trained and written, on a network that is trained here."""

from __future__ import annotations

import copy
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime import digits_training
from tests.runtime.digits_training import Net, check_resuming, evaluate, train, trained
from torch import nn

import dcz
from dcz.converters.recipes import Recipe
from dcz.errors import EncodingError, UsageError
from dcz.format import Reader
from dcz.format.manifest import Affine, Codebook, Dense

WEIGHTS = ("conv.weight", "hidden.weight", "last.weight")
QUICK = {
    "name": "quick",
    "stages": [
        {"kind": "prune", "densities": {"kind": "uniform", "density": 0.1}, "steps": 2, "min_elements": 0},
        {"kind": "share", "bits": {"kind": "fixed", "conv": 4, "other": 3}, "min_elements": 0},
    ],
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense() -> Net:
    return trained()


@pytest.fixture
def model(dense: Net) -> Net:
    torch.manual_seed(1)
    return copy.deepcopy(dense)


def quick(**changes: object) -> Recipe:
    return Recipe.model_validate({**QUICK, **changes})


def test_deep_compression_without_loss(model: Net, tmp_path: Path) -> None:
    before = evaluate(model.eval())
    steps: list[dcz.runtime.pipeline.Step] = []
    done = dcz.compress(
        model, tmp_path / "m.dcz", train=train, evaluate=evaluate, tolerance=1.0, progress=steps.append
    )
    assert done.quality[0] == before
    assert done.quality[1] == evaluate(model.eval())
    assert done.quality[1] >= before - 1.0
    assert done.file_bytes == (tmp_path / "m.dcz").stat().st_size
    assert done.tensor_bytes == sum(4 * value.numel() for value in model.state_dict().values()) + 4
    assert done.compression == done.tensor_bytes / done.file_bytes
    assert done.compression > 10
    assert tuple(steps) == done.steps
    assert [step.kind for step in steps if step.kept] == ["dense", *["prune"] * 5, "share", "round"]
    # What was measured on the way is in the file; the sizes are those of the tensors alone.
    with Reader(tmp_path / "m.dcz") as reader:
        metrics = reader.manifest.provenance.metrics
    for number, step in enumerate(steps):
        if number and step.kept:
            assert metrics[f"quality.step.{number:03}"] == step.quality
            assert metrics[f"bytes.step.{number:03}"] == step.bytes
    sizes = [step.bytes or 0 for step in steps if step.kept]
    assert sizes == sorted(sizes, reverse=True)
    assert 0.9 * done.file_bytes < sizes[-1] < 1.2 * done.file_bytes
    # The file gives back what the model holds, and so the quality that was measured.
    other = Net()
    dcz.load_into(other, tmp_path / "m.dcz")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert evaluate(other.eval()) == done.quality[1]


def test_the_file_holds_few_values_at_few_places(model: Net, tmp_path: Path) -> None:
    dcz.compress(model, tmp_path / "m.dcz", train=train, evaluate=evaluate, recipe=quick())
    with Reader(tmp_path / "m.dcz") as reader:
        entries = {tensor.name: tensor for tensor in reader.manifest.tensors}
        provenance = reader.manifest.provenance
        for name in WEIGHTS:
            array = reader.read(name)
            assert np.count_nonzero(array) == round(0.1 * array.size)
            few = 16 if name == "conv.weight" else 8
            assert len(np.unique(array[array != 0])) <= few
        # Smaller ones may take less as they are.
        values = entries["hidden.weight"].values
        assert isinstance(values, Codebook)
        assert values.size <= 8
        assert not isinstance(entries["hidden.weight"].layout, Dense)
    assert {"quality", "quality.dense", "quality.step.001"} <= provenance.metrics.keys()
    assert Recipe.model_validate(provenance.recipe) == quick()


def test_the_table_is_that_of_the_file(model: Net, tmp_path: Path) -> None:
    done = dcz.compress(model, tmp_path / "m.dcz", train=train, recipe=quick())
    assert done.quality == (None, None)
    assert done.layers.size == done.file_bytes == done.layers.parts.total
    table = {layer.name: layer.counts for layer in done.layers.layers}
    for name in WEIGHTS:
        assert table[name].entries == round(0.1 * table[name].weights)


def test_without_a_file(model: Net, tmp_path: Path) -> None:
    done = dcz.compress(model, train=train, recipe=quick())
    assert done.path is None
    again = dcz.convert(model, tmp_path / "m.dcz", effort="small")
    assert abs(again.file_bytes - done.file_bytes) < 200  # what the provenance says of the recipe


def test_masks_and_codes_hold_whatever_an_optimizer_does(model: Net) -> None:
    def momentum(module: nn.Module) -> None:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(digits_training._X[:64]), digits_training._Y[:64])
            torch.autograd.backward(loss)
            optimizer.step()

    dcz.compress(model, train=momentum, recipe=quick())
    for name in WEIGHTS:
        value = model.state_dict()[name]
        assert torch.count_nonzero(value) <= round(0.1 * value.numel())
        assert len(torch.unique(value)) <= 17


def test_the_model_is_plain_again(model: Net) -> None:
    parameters = {name: id(value) for name, value in model.named_parameters()}
    keys = list(model.state_dict())
    dcz.compress(model, train=train, recipe=quick())
    assert {name: id(value) for name, value in model.named_parameters()} == parameters
    assert list(model.state_dict()) == keys
    assert all(value.requires_grad for value in model.parameters())


def test_a_budget_undoes_what_costs_too_much(model: Net) -> None:
    harsh = quick(
        stages=[
            {
                "kind": "prune",
                "densities": {"kind": "uniform", "density": 0.001},
                "steps": 4,
                "epochs": 0,
                "last_epochs": 0,
                "min_elements": 0,
            },
            {
                "kind": "share",
                "bits": {"kind": "fixed", "conv": 1, "other": 1},
                "epochs": 0,
                "min_elements": 0,
            },
        ]
    )
    done = dcz.compress(model, train=train, evaluate=evaluate, recipe=harsh, tolerance=3.0)
    undone = [step for step in done.steps if not step.kept]
    assert next(step.kind for step in undone) == "prune"
    assert any(step.kind == "share" for step in undone)
    assert done.quality[0] is not None
    assert done.quality[1] == evaluate(model.eval())
    assert done.quality[1] >= done.quality[0] - 3.0
    last = done.steps[-1]
    assert last.kept
    assert set(last.bits) == set(WEIGHTS)
    assert all(bits > 1 for bits in last.bits.values())


def test_description_length_keeps_its_rate(model: Net) -> None:
    rate = 0.05
    recipe = quick(
        stages=[
            QUICK["stages"][0],
            {"kind": "share", "bits": {"kind": "description-length", "rate": rate}, "min_elements": 0},
        ]
    )
    done = dcz.compress(model, train=train, recipe=recipe)
    counts = done.layers.weights
    assert counts.stored <= rate * counts.dense * 1.1


def test_resuming_after_kill_gives_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, digits_training.__file__]
    subprocess.run([*command, tmp_path / "whole", tmp_path / "whole.dcz"], check=True)
    kills = 0
    while kills < 2:
        process = subprocess.Popen([*command, tmp_path / "killed", tmp_path / "killed.dcz"])
        checkpoint = tmp_path / "killed" / "checkpoint.dcz"
        seen = checkpoint.stat().st_ino if checkpoint.exists() else None
        # Each time a little later than the next checkpoint.
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_ino == seen):
            time.sleep(0.002)
        if process.poll() is not None:
            break
        time.sleep(0.03 * kills)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 2
    subprocess.run([*command, tmp_path / "killed", tmp_path / "killed.dcz"], check=True)
    assert (tmp_path / "killed.dcz").read_bytes() == (tmp_path / "whole.dcz").read_bytes()


@pytest.mark.parametrize("recipe", ["deep-compression", "rate-aware"])
def test_resuming_after_each_epoch_gives_the_same_bits(dense: Net, recipe: str, tmp_path: Path) -> None:
    check_resuming(dense, tmp_path, 3, 7, recipe=recipe, tolerance=2.0)


def test_rate_aware_without_loss(model: Net, tmp_path: Path) -> None:
    def longer(module: nn.Module) -> None:
        for _ in range(4):
            train(module)

    before = evaluate(model.eval())
    done = dcz.compress(
        model, tmp_path / "m.dcz", train=longer, evaluate=evaluate, recipe="rate-aware", tolerance=1.5
    )
    assert done.compression > 18
    assert done.quality[1] == evaluate(model.eval())
    assert done.quality[1] >= before - 1.5
    densities = [step.density for step in done.steps if step.kept]
    assert densities == sorted(densities, reverse=True)
    with Reader(tmp_path / "m.dcz") as reader:
        for name, value in model.state_dict().items():
            assert np.array_equal(reader.read(name), value.numpy()), name
        # Multiples of one step, and found to be.
        steps = reader.read("hidden.weight")
        step = np.abs(steps[steps != 0]).min()
        assert np.array_equal(steps, np.round(steps / step).astype(np.float32) * step)
        values = next(tensor.values for tensor in reader.manifest.tensors if tensor.name == "hidden.weight")
        assert isinstance(values, Affine | Codebook)


def test_what_was_broken_off_goes_on_with_the_same_module(dense: Net, model: Net, tmp_path: Path) -> None:
    calls = 0

    def breaks_off(module: nn.Module) -> None:
        nonlocal calls
        train(module)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dcz.compress(model, train=breaks_off, recipe=quick(), checkpoints=tmp_path)
    done = dcz.compress(model, train=breaks_off, recipe=quick(), checkpoints=tmp_path)
    torch.manual_seed(1)
    whole = dcz.compress(copy.deepcopy(dense), train=train, recipe=quick())
    assert done.digest == whole.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effort": "silly"}, "silly"),
        ({"threads": 0}, "at least 1"),
        ({"metadata": {"a": 1}}, "strings"),
        ({"path": "nowhere/m.dcz"}, "no file can be written there"),
        ({"path": "m\0.dcz"}, "no file can be written there"),
        ({"path": "/proc/m.dcz"}, "no file can be written there"),
        ({"checkpoints": ""}, "need a folder"),
        ({"tolerance": 1.0, "evaluate": lambda _: float("nan")}, "no loss of that"),
    ],
)
def test_wrong_arguments_are_seen_before_training(
    model: Net, arguments: dict[str, Any], message: str
) -> None:
    def fails(_: nn.Module) -> None:
        raise AssertionError("trained")

    with pytest.raises(UsageError, match=message):
        dcz.compress(model, train=fails, recipe=quick(), **arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_no_module_is_refused(model: Net) -> None:
    scripted = torch.jit.script(nn.Linear(2, 2))
    for given in (model.state_dict(), scripted):
        with pytest.raises(UsageError, match=r"give the torch\.nn\.Module itself"):
            dcz.compress(given, train=train)  # type: ignore[arg-type]


def test_training_that_diverges_is_named(model: Net) -> None:
    def diverges(module: nn.Module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(math.nan)

    with pytest.raises(EncodingError, match=r"conv\.weight is not finite after train\(\) in stage 1"):
        dcz.compress(model, train=diverges, recipe=quick())


def test_a_checkpoint_of_something_else_is_refused(dense: Net, model: Net, tmp_path: Path) -> None:
    dcz.compress(model, train=train, recipe=quick(), checkpoints=tmp_path)
    with pytest.raises(UsageError, match="of another recipe or tolerance"):
        dcz.compress(model, train=train, recipe=quick(name="other"), checkpoints=tmp_path)
    with pytest.raises(UsageError, match="of another model"):
        dcz.compress(nn.Linear(8, 8), train=train, recipe=quick(), checkpoints=tmp_path)
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.last.bias[0] += 1
    kept = copy.deepcopy(other.state_dict())
    with pytest.raises(UsageError, match="began with other weights"):
        dcz.compress(other, train=train, recipe=quick(), checkpoints=tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())
    dcz.save({"a": torch.ones(2)}, tmp_path / "checkpoint.dcz")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        dcz.compress(model, train=train, recipe=quick(), checkpoints=tmp_path)


def test_a_damaged_checkpoint_is_refused(model: Net, tmp_path: Path) -> None:
    dcz.compress(model, train=train, recipe=quick(), checkpoints=tmp_path)
    path = tmp_path / "checkpoint.dcz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(dcz.FormatError):
        dcz.compress(model, train=train, recipe=quick(), checkpoints=tmp_path)


def test_what_train_raises_passes_and_the_model_is_plain(model: Net) -> None:
    def broken(module: nn.Module) -> None:
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        dcz.compress(model, train=broken, recipe=quick())
    assert isinstance(model.hidden.weight, nn.Parameter)


def test_wrong_use(model: Net, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no stages"):
        dcz.compress(model, train=train, recipe="int8")
    with pytest.raises(UsageError, match="needs evaluate"):
        dcz.compress(model, train=train, tolerance=1.0)
    with pytest.raises(UsageError, match="nothing to compress"):
        dcz.compress(nn.BatchNorm1d(4), train=train)
    with pytest.raises(UsageError, match="no file can be written"):
        dcz.compress(model, tmp_path / "no" / "m.dcz", train=train)

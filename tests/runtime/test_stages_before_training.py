"""What dcz.compress says of a recipe before anything is trained, and what it does not train for."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dcz
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.converters.recipe_stages import order_fault
from dcz.converters.recipes import Recipe, load_recipe
from dcz.errors import RecipeError, UsageError

KINDS: dict[str, dict[str, Any]] = {
    "prune": {
        "kind": "prune",
        "densities": {"kind": "uniform", "density": 0.5},
        "steps": 1,
        "epochs": 0,
        "last_epochs": 0,
    },
    "share": {"kind": "share", "epochs": 0},
    "quantize": {"kind": "quantize", "epochs": 0},
    "rate": {"kind": "rate", "strengths": [0.1], "epochs": 1},
    "round": {"kind": "round"},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 30))


def recipe(*stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"name": "mine", "stages": list(stages)})


def train(model: nn.Module) -> None:
    torch.autograd.backward(model(torch.ones(1, 32)).square().sum())


def unchecking(*arguments: object, **options: object) -> None:
    pass


def never(model: nn.Module) -> None:
    raise AssertionError("trained")


@pytest.mark.parametrize("later", KINDS)
@pytest.mark.parametrize("earlier", KINDS)
def test_what_is_refused_is_what_would_not_work(earlier: str, later: str) -> None:
    """The order is judged before it is tried; here it is tried, with the parts of which each stage is made."""
    model = network()
    stages = (KINDS[earlier], KINDS[later])
    if order_fault(earlier, later) is None:
        dcz.compress(model, train=train, recipe=recipe(*stages))
        return
    with pytest.raises(ValueError, match=rf"cannot be .* any more, and stages\[1\] is '{earlier}'"):
        recipe(*stages)
    # As if it had not been looked at: the stage itself refuses.
    unchecked = recipe(stages[0]).model_copy(
        update={"stages": (*recipe(stages[0]).stages, *recipe(stages[1]).stages)}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcz.runtime.pipeline.check_stages", unchecking)
        with pytest.raises(UsageError, match=r"0\.weight cannot be"):
            dcz.compress(model, train=train, recipe=unchecked)


def test_an_order_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    prune = '[[stages]]\nkind = "prune"\ndensities = { kind = "uniform", density = 0.5 }\n'
    path.write_text('[[stages]]\nkind = "share"\n' + prune)
    with pytest.raises(
        RecipeError, match=r"mine\.toml:4: stages\[2\]\.kind: what is shared cannot be pruned"
    ):
        load_recipe(path)
    path.write_text('[[stages]]\nkind = "share"\nnames = ["a.*"]\n' + prune + 'names = ["b.*"]\n')
    assert len(load_recipe(path).stages) == 2


def test_an_order_that_only_the_model_shows() -> None:
    shared, pruned = {**KINDS["share"], "names": ["0.*"]}, {**KINDS["prune"], "names": ["*.weight"]}
    with pytest.raises(RecipeError, match=r"stages\[2\] takes 0\.weight: what is shared cannot be pruned"):
        dcz.compress(network(), train=never, recipe=recipe(shared, pruned))
    apart = {**KINDS["prune"], "names": ["2.*"]}
    dcz.compress(network(), train=never, recipe=recipe(shared, apart))
    by_hand = network()
    share(find_weights(by_hand), 4)
    with pytest.raises(RecipeError, match=r"stages\[1\] takes 0\.weight: what is shared cannot be pruned"):
        dcz.compress(by_hand, train=never, recipe=recipe(pruned))


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        (
            {"names": ["encoder.*", "x"]},
            '(share, names = ["encoder.*", "x"]) did nothing: it matches no weight',
        ),
        (
            {"min_elements": 641},
            '(share, names = ["*"]) did nothing: its names fit 2 weights, none of 641 elements or more',
        ),
        ({"kind": "round", "names": ["y"]}, '(round, names = ["y"]) did nothing: it matches no parameter'),
    ],
)
def test_a_stage_for_nothing_is_noted_and_not_trained(stage: dict[str, Any], why: str) -> None:
    done = dcz.compress(
        network(),
        train=never,
        recipe=recipe(
            KINDS["prune"], {"kind": "share", **({} if "kind" in stage else {"epochs": 3}), **stage}
        ),
    )
    assert done.notes == ("stage 2 " + why,)
    assert [step.kind for step in done.steps] == ["dense", "prune"]
    assert dcz.compress(network(), train=never, recipe=recipe(KINDS["prune"], KINDS["round"])).notes == ()


def test_what_needs_evaluate_says_so_before_training() -> None:
    scanned = {"kind": "prune", "densities": {"kind": "sensitivity", "density": 0.5}}
    static = {"kind": "quantize", "activations": "static"}
    for late in (scanned, static):
        with pytest.raises(UsageError, match=r"stages\[2\]: .* need"):
            dcz.compress(network(), train=never, recipe=recipe({**KINDS["prune"], "epochs": 1}, late))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 7), (1, 3)])
@pytest.mark.parametrize("given", [False, True])
def test_n_of_m_stay(n: int, m: int, given: bool) -> None:
    model = network()
    stage = {**KINDS["prune"], "steps": 3, "pattern": {"kind": "n:m", "n": n, "m": m}}
    del stage["densities"]
    if given:
        stage["densities"] = {"kind": "uniform", "density": round(n / m, 2)}
    dcz.compress(model, train=never, recipe=recipe(stage))
    for weight in find_weights(model):
        kept = weight.value().numpy() != 0
        for start in range(0, kept.shape[1], m):
            group = kept[:, start : start + m]
            assert np.all(group.sum(axis=1) == min(n, group.shape[1]))
    assert Recipe.model_validate(recipe(stage).describe()) == recipe(stage)


N_OF_M = {"pattern": {"kind": "n:m", "n": 2, "m": 4}}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"densities": None}, r"densities: is missing"),
        (
            {"densities": {"kind": "uniform", "density": 0.1}, **N_OF_M},
            r"densities: .*2 of 4 weights of every",
        ),
        ({"densities": {"kind": "global", "density": 0.5}, **N_OF_M}, r"densities: .*leave them out"),
        ({"densities": {"kind": "std", "factor": 1.0}, **N_OF_M}, r"densities: .*leave them out"),
        ({"pattern": {"kind": "n:m", "n": 4, "m": 2}}, r"pattern\.n: of 2 neighbours 4 cannot stay"),
        ({"densities": {"kind": "global", "density": 0.1, "floor": 0.2}}, r"densities\.floor: 0\.2 of each"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], what: str, tmp_path: Path) -> None:
    def toml(value: object) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + " }"
        return f'"{value}"' if isinstance(value, str) else str(value)

    stage = {key: value for key, value in {**KINDS["prune"], **fields}.items() if value is not None}
    path = tmp_path / "mine.toml"
    path.write_text("[[stages]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in stage.items()))
    with pytest.raises(RecipeError, match=rf"mine\.toml:\d: stages\[1\]\.{what}"):
        load_recipe(path)


def test_the_default_floor_gives_way_to_a_small_density() -> None:
    model = network()
    densities = {"kind": "global", "density": 0.005}
    dcz.compress(model, train=never, recipe=recipe({**KINDS["prune"], "densities": densities}))
    kept = sum(int(torch.count_nonzero(weight.value())) for weight in find_weights(model))
    assert kept == round(0.005 * 1240)


def test_train_may_not_remove_masks() -> None:
    def removing(model: nn.Module) -> None:
        remove_parametrizations(model)

    stage = {**KINDS["prune"], "epochs": 1}
    with pytest.raises(
        UsageError, match=r"0\.weight is no longer under its PruningMask after train\(\) in stage 1"
    ):
        dcz.compress(network(), train=removing, recipe=recipe(stage))

    def replacing(model: nn.Module) -> None:
        assert isinstance(model, nn.Sequential)
        model[2] = nn.Linear(20, 30)

    with pytest.raises(UsageError, match=r"2\.weight is no longer under its SharedWeights"):
        dcz.compress(network(), train=replacing, recipe=recipe({**KINDS["share"], "epochs": 1}))


def test_one_compression_at_a_time_writes_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    stage = {**KINDS["prune"], "epochs": 1}
    # A process of its own, as locks of one process may be another matter.
    code = (
        "import sys\nfrom dcz.runtime.checkpoints import Checkpoints\n"
        "with Checkpoints(sys.argv[1]).held():\n    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another compression is under way"):
        dcz.compress(network(), train=never, recipe=recipe(stage), checkpoints=folder)
    assert not (folder / "checkpoint.dcz").exists()
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()

    def twice(model: nn.Module) -> None:
        with pytest.raises(UsageError, match="another compression is under way"):
            dcz.compress(network(), train=never, recipe=recipe(stage), checkpoints=folder)

    dcz.compress(network(), train=twice, recipe=recipe(stage), checkpoints=folder)
    dcz.compress(network(), train=never, recipe=recipe(stage), checkpoints=folder)


def test_file_systems_without_locks_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    dcz.compress(network(), train=never, recipe=recipe(KINDS["prune"]), checkpoints=tmp_path)
    assert (tmp_path / "checkpoint.dcz").exists()


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_nothing_is_written_to_the_temporary_folder(
    with_checkpoints: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be small. Steps are measured where the file, or the checkpoints, will be."""
    (tmp_path / "out").mkdir()
    sizes: list[int | None] = []

    def full(*arguments: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, "no space left on device")

    def evaluate(model: nn.Module) -> float:
        monkeypatch.setattr("tempfile.mkdtemp", full)
        return 1.0

    with pytest.raises(OSError, match="no space"):  # the end of it: a model that is written nowhere
        dcz.compress(network(), train=never, evaluate=evaluate, recipe=recipe(KINDS["prune"]))
    options: dict[str, Any] = {"checkpoints": tmp_path / "kept"} if with_checkpoints else {}
    done = dcz.compress(
        network(),
        tmp_path / "out" / "m.dcz",
        train=never,
        evaluate=evaluate,
        recipe=recipe(KINDS["prune"]),
        **options,
    )
    sizes = [step.bytes for step in done.steps]
    assert all(size is not None and size > 0 for size in sizes)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.dcz"]
    if with_checkpoints:
        assert {path.name for path in (tmp_path / "kept").iterdir()} == {"checkpoint.dcz", "lock"}

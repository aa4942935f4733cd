"""dcz.compress: from a trained model to a .dcz file, with training in between (Han, Mao and Dally 2016, figure 1).

The stages of a recipe are carried out one after the other on the model itself. Between them the caller's own loop trains
it; here is only what happens around that: schedules, the quality budget, checkpoints, and the file at the end.

    dense model --prune, train, prune, train ...--> sparse --share, train--> few values --encode--> file
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dcz.compression.torch_tensors import is_module, unwrapped
from dcz.compression.training.activation_metadata import ACTIVATIONS, describe_activations
from dcz.compression.training.activations import activation_quantizers, remove_activation_quantizers
from dcz.compression.training.masks import density_of, global_densities, prune, std_densities
from dcz.compression.training.rate import RateAware, UniformGrid, find_biases
from dcz.compression.training.rounding import round_parameters
from dcz.compression.training.schedules import scheduled
from dcz.compression.training.sensitivity import DENSITIES, scan
from dcz.compression.training.weight_sharing import choose_bits, share
from dcz.compression.training.weights import Weight, find_weights, remove_parametrizations
from dcz.converters import conversion
from dcz.converters.recipe_stages import (
    DescriptionLength,
    GlobalThreshold,
    NMPattern,
    PruneStage,
    QuantizeStage,
    RateStage,
    RoundStage,
    SensitivityScan,
    ShareStage,
    StdThreshold,
    Uniform,
)
from dcz.converters.recipes import load_recipe
from dcz.errors import EncodingError, UsageError
from dcz.format import Reader
from dcz.format.atomic import atomic_file, naming, temporary_prefix
from dcz.format.layers import layer_table
from dcz.runtime.checkpoints import Checkpoints, Snapshot, held_values
from dcz.runtime.folders import is_pretrained
from dcz.runtime.loading import save
from dcz.runtime.quantizing import bits_of_stage, quantize
from dcz.runtime.stage_checks import check_stages, idle_stages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dcz.converters.conversion import RecipeLike
    from dcz.converters.recipes import Recipe
    from dcz.format.effort import EffortName
    from dcz.format.layers import LayerTable

__all__ = ["Compressed", "Progress", "Step", "Train", "compress"]

Train: TypeAlias = "Callable[[nn.Module], object]"
Evaluate: TypeAlias = "Callable[[nn.Module], float]"
Kind: TypeAlias = Literal["dense", "prune", "share", "quantize", "rate", "round"]

_MOST_BITS: Final = 8

# What the compression of a module began with that was broken off: the weights that it has now are neither these nor its last
# checkpoint's.
_INTERRUPTED: Final[WeakKeyDictionary[nn.Module, str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Step:
    """One step that was done. ``stage``: its number, from 1, 0 before the first; ``kind``: of the stage, ``dense`` before the first.
    ``density``: the part of the weights (all that can be compressed) that is not zero. ``bits``: of each weight that was shared or
    quantized.
    ``quality``: what evaluate() said, None if it was not asked. ``bytes``: of the tensors as a file then (effort ``balanced``), None if there
    was no quality to compare them with. ``kept``: False if the quality budget did not allow the step, and it was undone."""

    stage: int
    kind: Kind
    step: int
    steps: int
    density: float
    bits: Mapping[str, int] = field(default_factory=dict)
    quality: float | None = None
    bytes: int | None = None
    kept: bool = True


Progress: TypeAlias = "Callable[[Step], object]"


@dataclass(frozen=True)
class Compressed:
    """What came out. ``path``: of the file; None if none was asked for. ``quality``: of the model before and after, None if
    it was not evaluated. ``steps``: all of them, in order. ``layers``: the table of the file, in the paper's columns; its
    ``text()`` is for people. ``file_bytes``: of the complete file; ``tensor_bytes``: of the model as it was. ``notes``: such as
    stages that took no weight, for which nothing was trained."""

    path: str | None
    digest: str
    recipe: str
    quality: tuple[float | None, float | None]
    steps: tuple[Step, ...]
    layers: LayerTable
    file_bytes: int
    tensor_bytes: int
    notes: tuple[str, ...]

    @property
    def compression(self) -> float:
        """Bytes of the model for each byte of the file: "40x" is 40."""
        return self.tensor_bytes / self.file_bytes


def compress(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    train: Train,
    evaluate: Evaluate | None = None,
    recipe: RecipeLike = "deep-compression",
    tolerance: float | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    effort: EffortName = "small",
    threads: int | None = None,
    metadata: Mapping[str, str] | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compress a trained model by the stages of a recipe, and write it to a .dcz file.

    ``model``: any module; it is compressed in place, and holds at the end exactly the weights that the file gives, as plain
    parameters. ``path``: of the file; None writes none that stays. ``train(model)`` trains for one epoch, or whatever is
    a unit of training; it makes its optimizer itself, from ``model.parameters()``, because a Parameter changes its shape
    where weights are shared. Weights that are pruned stay zero and shared ones shared, whatever it does. ``evaluate(model)``
    gives the quality, higher is better. ``recipe``: a recipe with stages, by name, path or as an object.

    ``tolerance``: how much of the quality of the dense model may be lost, in the unit of evaluate(). A step of pruning that
    loses more is undone, and the stage ends; shared and quantized weights get more bits until it is kept, or are left as they
    were. None takes whatever comes.

    Activations that a stage quantizes are quantized while the model is trained and measured. The file holds how, in its
    metadata: dcz.compression.training.activation_metadata.restore_activations puts that into a model again.

    ``checkpoints``: a folder. After each epoch it holds where the compression is, and a call with the same model, recipe and
    folder goes on from there: after a crash at most one epoch is lost, and the end is the same to the bit if train() does
    the same from the same random numbers. Checkpoints are not removed at the end.

    A model of transformers travels as its own save_pretrained writes it, with its configuration, so that dcz.load_model makes
    it of the file. ``tokenizer``: what else it needs and has a save_pretrained, such as a tokenizer or a processor.

    ``effort``, ``threads``, ``metadata``: as for dcz.convert. ``progress`` is called after each step.

    Beside the checkpoints, or else beside the file, stand files that are only measured, each for a moment; nothing of them stays.

    Raises UsageError if the recipe has no stages, the model cannot be trained through parametrizations, or a checkpoint is
    of another model or recipe, or in use; if train() removes parametrizations; RecipeError, also before anything is trained if a
    stage comes too late for a weight; EncodingError if a weight is not finite; OSError. The model is left as the last step left
    it, with its parametrizations removed; what train() and evaluate() raise passes through.
    """
    if not is_module(model) or isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"a {type(model).__name__} cannot be trained through parametrizations",
            hint="give the torch.nn.Module itself",
        )
    plan = load_recipe(recipe)
    if not plan.stages:
        raise UsageError(
            f"the recipe {plan.name!r} has no stages: nothing of it is done while a model is trained",
            hint="dcz.convert applies its rules without training",
        )
    if tolerance is not None and (evaluate is None or not tolerance >= 0):
        raise UsageError(
            "a tolerance is a loss of quality, 0 or more, and needs evaluate() to be measured",
        )
    inner, _ = unwrapped(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UsageError(
            "a model under DistributedDataParallel cannot be compressed: its weights change their shapes",
            hint="compress model.module, and wrap it inside of train()",
        )
    if tokenizer is not None and not is_pretrained(inner):
        raise UsageError(
            f"a tokenizer travels with a model of transformers, not with a {type(inner).__name__}"
        )
    weights = find_weights(model)
    if not weights:
        raise UsageError("the model has no weights of two and more dimensions: there is nothing to compress")
    # Before hours of training, not after them.
    conversion.check_options(effort=effort, threads=threads, metadata=metadata)
    _check_writable(path)
    check_stages(plan.stages, weights, evaluates=evaluate is not None)
    kept = None if checkpoints is None else Checkpoints(checkpoints)
    if kept is not None:
        folder = kept.path.parent
    else:
        folder = Path(tempfile.gettempdir() if path is None else os.path.dirname(os.path.realpath(path)))
    run = _Run(model, plan, train, evaluate, tolerance, progress, folder)
    try:
        with contextlib.nullcontext() if kept is None else kept.held():
            run.all_stages(kept)
        if any(activation_quantizers(model)):
            metadata = {**(metadata or {}), ACTIVATIONS: describe_activations(model)}
    finally:
        remove_parametrizations(model)
        remove_activation_quantizers(model)
    needs_folder = path is None or is_pretrained(inner)
    with (
        tempfile.TemporaryDirectory(prefix=".dcz-compress-", dir=folder)
        if needs_folder
        else contextlib.nullcontext("") as scratch
    ):
        done = conversion.convert(
            _saved(inner, tokenizer, Path(scratch) / "model") if is_pretrained(inner) else model,
            Path(scratch) / "model.dcz" if path is None else path,
            recipe=plan,
            effort=effort,
            threads=threads,
            metadata=metadata,
            trained=run.metrics(),
        )
        with Reader(done.path) as reader:
            layers = layer_table(reader)
    return Compressed(
        path=None if path is None else done.path,
        digest=done.digest,
        recipe=plan.name,
        quality=(run.steps[0].quality, run.quality),
        steps=tuple(run.steps),
        layers=layers,
        file_bytes=done.file_bytes,
        tensor_bytes=done.tensor_bytes,
        notes=(*run.idle.values(), *done.notes),
    )


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    """A model of transformers, as it saves itself."""
    for part in (model, tokenizer):
        if part is not None:
            part.save_pretrained(folder)
    return folder


class _Tried(Exception):
    """Leaves nothing of a file that was only tried."""


def _check_writable(path: str | os.PathLike[str] | None) -> None:
    if path is None:
        return
    try:
        with contextlib.suppress(_Tried), naming(path), atomic_file(path):
            raise _Tried
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(
            f"{os.fspath(path)!r}: no file can be written there: {reason}",
            hint="name a file in a folder that exists",
        ) from exc


class _Run:
    """One run through the stages. Every epoch is a place at which it can be taken up again."""

    def __init__(
        self,
        model: nn.Module,
        plan: Recipe,
        train: Train,
        evaluate: Evaluate | None,
        tolerance: float | None,
        progress: Progress | None,
        folder: Path,
    ) -> None:
        """``folder``: where files may be written that are measured and removed."""
        self._folder = folder
        self._model = model
        self._plan = plan
        self._train = train
        self._evaluate = evaluate
        self._tolerance = tolerance
        self._progress = progress
        self._checkpoints: Checkpoints | None = None
        self._before: Snapshot | None = None
        """The model before the step that is being tried."""
        self._resumed: dict[str, Any] | None = None
        self._began = ""
        """Says which model, and with which weights, the first stage began with."""
        self.steps: list[Step] = []
        self.idle = idle_stages(plan.stages, model, find_weights(model))
        """Stages that take nothing, by their numbers: nothing is trained for them."""

    @property
    def quality(self) -> float | None:
        """Of the model as it is."""
        return next((step.quality for step in reversed(self.steps) if step.kept), None)

    def metrics(self) -> dict[str, float]:
        """What the file is to record: the quality before, after, and in between, and how large the model was then."""
        if self.quality is None or self.steps[0].quality is None:
            return {}
        found = {"quality": self.quality, "quality.dense": self.steps[0].quality}
        for number, step in enumerate(self.steps):
            if number and step.kept and step.quality is not None and step.bytes is not None:
                found |= {
                    f"quality.step.{number:03}": step.quality,
                    f"bytes.step.{number:03}": float(step.bytes),
                }
        return found

    def all_stages(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints
        self._check_finite("before the first stage")
        if checkpoints is not None:
            self._began = _INTERRUPTED.get(self._model) or Snapshot.take(self._model).digest()
        self._resume()
        if self._began:
            _INTERRUPTED[self._model] = self._began
        if not self.steps:
            self._note(self._taken(0, "dense", 1, 1, {}))
            self._save(0, {})
        for number, stage in enumerate(self._plan.stages, 1):
            if number in self.idle or self._done(number):
                continue
            weights = [
                weight
                for weight in find_weights(self._model)
                if stage.takes(weight.names, math.prod(weight.value().shape))
            ]
            if isinstance(stage, PruneStage):
                self._prune(number, stage, weights)
            elif isinstance(stage, ShareStage):
                self._share(number, stage, weights)
            elif isinstance(stage, QuantizeStage):
                self._quantize(number, stage, weights)
            elif isinstance(stage, RateStage):
                self._rate(number, stage, weights)
            else:
                self._round(number, stage)
            self._save(number, {"done": True})
        _INTERRUPTED.pop(self._model, None)

    # -- stages

    def _targets(self, stage: PruneStage, weights: list[Weight]) -> dict[str, float]:
        """The density of each weight at the end, where that can be said at the beginning."""
        wanted, pattern = stage.densities, stage.pattern.pattern()
        if isinstance(stage.pattern, NMPattern):
            return {weight.name: stage.pattern.density for weight in weights}
        if isinstance(wanted, StdThreshold):
            return std_densities(weights, wanted.factor, pattern)
        if isinstance(wanted, Uniform):
            return {weight.name: wanted.density for weight in weights}
        if isinstance(wanted, SensitivityScan):
            found = scan(weights, self._needed_quality, wanted.scanned or DENSITIES, pattern=pattern)
            return found.propose(wanted.density)
        return {}

    def _prune(self, number: int, stage: PruneStage, weights: list[Weight]) -> None:
        targets = self._place(number).get("targets") or self._targets(stage, weights)
        start = self._place(number).get("start") or {weight.name: density_of(weight) for weight in weights}
        steps = 1 if isinstance(stage.densities, StdThreshold) else stage.steps
        pattern = stage.pattern.pattern()
        sizes = {weight.name: weight.value().numel() for weight in weights}
        start_together = sum(start[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))
        for step in range(1, steps + 1):
            if step < self._place(number).get("step", 1):
                continue
            fixed = {"step": step, "targets": targets, "start": start}

            def act(step: int = step) -> dict[str, int]:
                if isinstance(stage.densities, GlobalThreshold):
                    # Asked anew in each step which layers give most: training has moved the weights.
                    density = scheduled(stage.schedule, start_together, stage.densities.density, step, steps)
                    densities = global_densities(
                        weights,
                        density,
                        floor=min(stage.densities.floor, stage.densities.density),
                        scale=stage.densities.scale,
                        pattern=pattern,
                    )
                else:
                    densities = {
                        name: scheduled(stage.schedule, start[name], target, step, steps)
                        for name, target in targets.items()
                    }
                prune(weights, densities, pattern)
                return {}

            epochs = stage.epochs + (stage.last_epochs if step == steps else 0)
            if not self._step(number, "prune", step, steps, act, epochs, fixed):
                return
            self._save(number, {**fixed, "step": step + 1})

    def _share(self, number: int, stage: ShareStage, weights: list[Weight]) -> None:
        bits = self._place(number).get("bits")
        if bits is None:
            if isinstance(stage.bits, DescriptionLength):
                dense = sum(weight.value().numel() * weight.value().element_size() for weight in weights)
                bits = choose_bits(weights, stage.bits.rate * dense)
            else:
                bits = {weight.name: stage.bits.of(weight.kind) for weight in weights}

        def act(bits: Mapping[str, int]) -> None:
            share(weights, bits, method=stage.method, init=stage.init, seed=stage.seed)

        self._with_bits(number, "share", bits, act, stage.epochs)

    def _quantize(self, number: int, stage: QuantizeStage, weights: list[Weight]) -> None:
        bits = self._place(number).get("bits") or {weight.name: bits_of_stage(stage) for weight in weights}

        def act(bits: Mapping[str, int]) -> None:
            quantize(stage, self._model, weights, bits, self._evaluate)

        self._with_bits(number, "quantize", bits, act, stage.epochs, more=stage.method in ("ste", "lsq"))

    def _with_bits(
        self,
        number: int,
        kind: Kind,
        bits: Mapping[str, int],
        act: Callable[[Mapping[str, int]], None],
        epochs: int,
        *,
        more: bool = True,
    ) -> None:
        """Act with bits by the names of weights; with one ``more`` each, until the budget allows it."""
        step = self._place(number).get("step", 1)
        while True:

            def act_and_say(bits: Mapping[str, int] = bits) -> dict[str, int]:
                act(bits)
                return dict(bits)

            place = {"step": step, "bits": dict(bits)}
            if self._step(number, kind, step, step, act_and_say, epochs, place):
                return
            if not more or all(count == _MOST_BITS for count in bits.values()):
                return
            bits = {name: min(_MOST_BITS, count + 1) for name, count in bits.items()}
            step += 1

    def _rate(self, number: int, stage: RateStage, weights: list[Weight]) -> None:
        if "step" not in self._place(number):
            for weight in weights:
                weight.unparametrize()  # what was pruned or shared goes on from there
        chosen = [*weights, *(self._biases(weights) if stage.biases else ())]
        taken = {weight.name for weight in chosen}
        # Small ones of a run that was taken up again, which are quantized already.
        chosen += [
            weight
            for weight in find_weights(self._model)
            if isinstance(weight.parametrization, UniformGrid) and weight.name not in taken
        ]
        elements = sum(weight.value().numel() for weight in chosen)
        for step, strength in enumerate(stage.strengths, 1):
            if step < self._place(number).get("step", 1):
                continue
            hooks: list[Callable[[], None]] = []

            def penalize(strength: float = strength, hooks: list[Callable[[], None]] = hooks) -> None:
                # Anew for each epoch, so that nothing depends on where a run was taken up again.
                while hooks:
                    hooks.pop()()
                aware = RateAware(self._model, chosen, levels=stage.levels)
                hooks.append(aware.penalize(strength / elements))

            def act(penalize: Callable[[], None] = penalize) -> dict[str, int]:
                penalize()
                return {}

            steps = len(stage.strengths)
            place = {"step": step}
            try:
                kept = self._step(number, "rate", step, steps, act, stage.epochs, place, penalize)
            finally:
                while hooks:
                    hooks.pop()()
            if not kept:
                return
            self._save(number, {"step": step + 1})

    def _round(self, number: int, stage: RoundStage) -> None:
        def act() -> dict[str, int]:
            round_parameters(self._model, stage.dtype, stage.takes)
            return {}

        self._step(number, "round", 1, 1, act, 0, {"step": 1})

    def _biases(self, weights: list[Weight]) -> list[Weight]:
        """Of the same layers, those that are not among the weights already, as they are once they are quantized."""
        owners = {owner for weight in weights for owner, _ in weight.owners}
        taken = {weight.name for weight in weights}
        return [
            bias
            for bias in find_biases(self._model)
            if bias.owners[0][0] in owners and bias.name not in taken
        ]

    def _step(
        self,
        stage: int,
        kind: Kind,
        step: int,
        steps: int,
        act: Callable[[], dict[str, int]],
        epochs: int,
        place: Mapping[str, Any],
        each_epoch: Callable[[], None] = lambda: None,
    ) -> bool:
        """Act, train, measure; ``each_epoch`` is called before each. False if the budget did not allow it: then the model is as it was before."""
        resumed = self._place(stage)
        first = 0
        bits: dict[str, int] = {}
        if resumed.get("step") == step and "epoch" in resumed:
            first, bits = resumed["epoch"], resumed["shared"]
        else:
            if self._tolerance is not None:
                self._before = Snapshot.take(self._model)
            bits = act()
            self._save(stage, {**place, "epoch": 0, "shared": bits})
        self._resumed = None
        for epoch in range(first, epochs):
            each_epoch()
            parts = self._parts()
            self._train(self._model)
            self._check_parts(parts, stage)
            self._check_finite(f"after train() in stage {stage}")
            self._save(stage, {**place, "epoch": epoch + 1, "shared": bits})
        taken = self._taken(stage, kind, step, steps, bits)
        self._note(taken)
        if not taken.kept:
            assert self._before is not None
            self._before.put_back(self._model)
        self._before = None
        return taken.kept

    # -- around them

    def _parts(self) -> dict[str, str | None]:
        """What each weight is under, by its first name."""
        parts = {weight.name: weight.parametrization for weight in find_weights(self._model)}
        return {name: None if part is None else type(part).__name__ for name, part in parts.items()}

    def _check_parts(self, before: Mapping[str, str | None], stage: int) -> None:
        after = self._parts()
        for name, part in before.items():
            if part is not None and after.get(name) != part:
                raise UsageError(
                    f"{name} is no longer under its {part} after train() in stage {stage}: what was compressed would be lost",
                    hint="train() may not remove parametrizations, or put other modules in place of those of the model",
                )

    def _check_finite(self, when: str) -> None:
        for weight in find_weights(self._model):
            if not weight.value().isfinite().all():
                raise EncodingError(f"{weight.name} is not finite {when}")

    def _taken(self, stage: int, kind: Kind, step: int, steps: int, bits: dict[str, int]) -> Step:
        """The step that was just taken, measured."""
        quality = self._measured()
        size = None if quality is None else self._file_bytes()
        return Step(
            stage, kind, step, steps, self._density(), bits, quality, size, kept=self._allowed(quality)
        )

    def _file_bytes(self) -> int:
        path = self._folder / f"{temporary_prefix('step.dcz')}{secrets.token_hex(6)}.tmp"
        try:
            return save(held_values(self._model), path).file_bytes
        finally:
            path.unlink(missing_ok=True)

    def _measured(self) -> float | None:
        if self._evaluate is None:
            return None
        modes = [(part, part.training) for part in self._model.modules()]
        self._model.eval()
        try:
            quality = float(self._evaluate(self._model))
        finally:
            for part, training in modes:
                part.training = training
        if not self.steps and self._tolerance is not None and not math.isfinite(quality):
            raise UsageError(
                f"evaluate() says {quality} of the model as it is: no loss of that can be measured"
            )
        return quality

    def _needed_quality(self) -> float:
        quality = self._measured()
        if quality is None:
            raise UsageError("a sensitivity scan needs evaluate()")
        return quality

    def _allowed(self, quality: float | None) -> bool:
        if not self.steps or self._tolerance is None or quality is None:
            return True
        dense = self.steps[0].quality
        return dense is None or quality >= dense - self._tolerance

    def _density(self) -> float:
        sizes = [(density_of(weight), weight.value().numel()) for weight in find_weights(self._model)]
        return sum(density * size for density, size in sizes) / sum(size for _, size in sizes)

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        if self._progress is not None:
            self._progress(step)

    # -- checkpoints

    def _save(self, stage: int, place: Mapping[str, Any]) -> None:
        if self._checkpoints is None:
            return
        snapshots = {"model": Snapshot.take(self._model)}
        if self._before is not None:
            snapshots["before"] = self._before
        self._checkpoints.write(
            {
                "model": self._began,
                "recipe": self._plan.describe(),
                "tolerance": self._tolerance,
                "stage": stage,
                "place": dict(place),
                "steps": [asdict(step) for step in self.steps],
            },
            snapshots,
        )

    def _resume(self) -> None:
        found = None if self._checkpoints is None else self._checkpoints.read()
        if found is None or self._checkpoints is None:
            return
        place, snapshots = found
        if (place["recipe"], place["tolerance"]) != (self._plan.describe(), self._tolerance):
            raise UsageError(
                f"{self._checkpoints.path} is of another recipe or tolerance",
                hint="go on with the same ones, or take an empty folder to begin anew",
            )
        snapshots["model"].check_fits(self._model)
        if place["model"] != self._began:
            raise UsageError(
                f"{self._checkpoints.path} is of another model: its compression began with other weights",
                hint="go on with the model as it was then, or take an empty folder to begin anew",
            )
        snapshots["model"].put_back(self._model)
        self._before = snapshots.get("before")
        self.steps = [Step(**step) for step in place["steps"]]
        self._resumed = place

    def _place(self, stage: int) -> dict[str, Any]:
        """Where in a stage to go on; empty unless it is the one that was taken up again."""
        if self._resumed is None or self._resumed["stage"] != stage:
            return {}
        place: dict[str, Any] = self._resumed["place"]
        return place

    def _done(self, stage: int) -> bool:
        if self._resumed is None:
            return False
        return stage < self._resumed["stage"] or bool(self._place(stage).get("done"))

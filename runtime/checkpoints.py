"""Checkpoints of a compression in progress: one .dcz file each, so that none is ever half-written, and damage is seen.

A checkpoint holds every parameter and buffer of the model under its own name, what stands between them (masks, codes),
the states of the random generators, and the place in the recipe. Nothing in it is code.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import torch
from torch import nn

from dcz.compression.torch_tensors import unwrapped
from dcz.compression.training.activations import (
    ActivationQuantizer,
    DynamicQuantizer,
    StaticQuantizer,
    activation_quantizers,
    put_on,
    remove_activation_quantizers,
)
from dcz.compression.training.clipping import ClippingQuantizer
from dcz.compression.training.extreme import BinaryWeight, LearnedTernaryWeight, TernaryWeight
from dcz.compression.training.fake_quantization import FakeQuantizedWeight
from dcz.compression.training.learned_step import LearnedStepQuantizer, LearnedStepWeight
from dcz.compression.training.masks import PruningMask
from dcz.compression.training.rate import UniformGrid, find_biases
from dcz.compression.training.weight_sharing import SharedWeights
from dcz.compression.training.weights import WeightParametrization, find_weights
from dcz.errors import EncodingError, FormatError, UsageError
from dcz.format import Reader
from dcz.format.digests import Hasher, digest_name
from dcz.runtime.loading import load_tensors, save

if TYPE_CHECKING:
    from dcz.compression.training.weights import Weight

__all__ = ["Checkpoints", "Snapshot", "held_values"]

_Part = TypeVar("_Part", WeightParametrization, ActivationQuantizer)

_NAME: Final = "checkpoint.dcz"
_LOCK: Final = "lock"
_KEY: Final = "dcz.compress"  # of the metadata
_VALUE, _PART, _ACTIVATION, _RANDOM = "value:", "part:", "activation:", "random:"

_ANEW: Final = "take an empty folder to begin anew"

# By their names: what a checkpoint says is looked up here, and nowhere else.
_PARTS: Final[Mapping[str, type[WeightParametrization]]] = {
    kind.__name__: kind
    for kind in (
        PruningMask,
        SharedWeights,
        UniformGrid,
        FakeQuantizedWeight,
        LearnedStepWeight,
        BinaryWeight,
        TernaryWeight,
        LearnedTernaryWeight,
    )
}
_ACTIVATIONS: Final[Mapping[str, type[ActivationQuantizer]]] = {
    kind.__name__: kind
    for kind in (StaticQuantizer, DynamicQuantizer, LearnedStepQuantizer, ClippingQuantizer)
}


@dataclass(frozen=True)
class Snapshot:
    """A model in the middle of its compression: tensors on the CPU, by prefixed names.

    ``parts``: by the same names without what is behind the last slash, what stands there: ``[kind, settings]``, plain data.
    """

    tensors: Mapping[str, torch.Tensor]
    parts: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def take(cls, module: nn.Module) -> Snapshot:
        """A copy of what the module holds now."""
        tensors: dict[str, torch.Tensor] = {}
        parts: dict[str, Sequence[Any]] = {}
        weights = _all(module)
        for name, value in _held(module, weights).items():
            tensors[_VALUE + name] = value.detach().to("cpu", copy=True)
        found: list[tuple[str, WeightParametrization | ActivationQuantizer]] = [
            (_PART + weight.name, weight.parametrization)
            for weight in weights
            if weight.parametrization is not None
        ]
        found += [
            (f"{_ACTIVATION}{side}:{name}", quantizer)
            for name, _, side, quantizer in activation_quantizers(module)
        ]
        for name, part in found:
            parts[name] = [type(part).__name__, part.settings()]
            for key, value in part.state_dict().items():
                tensors[f"{name}/{key}"] = value.detach().to("cpu", copy=True)
        return cls(tensors, parts)

    def digest(self) -> str:
        """The same for the same model with the same weights, and no other."""
        hasher = Hasher()
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        hasher.update(json.dumps(dict(self.parts), sort_keys=True).encode())
        return digest_name(hasher.digest())

    def check_fits(self, module: nn.Module) -> None:
        """Raises UsageError if the module has other parameters or buffers."""
        held = _held(module, _all(module))
        expected = {_VALUE + name for name in held}
        found = {name for name in self.tensors if name.startswith(_VALUE)}
        if expected != found:
            strange = min(expected ^ found).removeprefix(_VALUE)
            raise UsageError(f"the checkpoint is of another model: {strange!r} is only in one of them")

    def put_back(self, module: nn.Module) -> None:
        """Make the module what it was. Raises UsageError if it is another one."""
        self.check_fits(module)
        weights = _all(module)
        for weight in weights:
            original = self.tensors[_VALUE + weight.name].to(weight.parameter.device)
            weight.unparametrize()
            part = self._restored(_PART + weight.name, _PARTS)
            if part is not None:
                weight.parametrize(part.to(weight.parameter.device), original)
        remove_activation_quantizers(module)
        for name in self.parts:
            quantizer = self._restored(name, _ACTIVATIONS) if name.startswith(_ACTIVATION) else None
            if quantizer is not None:
                side, _, layer = name.removeprefix(_ACTIVATION).partition(":")
                put_on(module, layer, "inputs" if side == "inputs" else "outputs", quantizer)
        with torch.no_grad():
            for name, value in _held(module, weights).items():
                stored = self.tensors[_VALUE + name]
                if stored.shape != value.shape or stored.dtype != value.dtype:
                    raise UsageError(
                        f"the checkpoint is of another model: {name!r} has the shape {tuple(stored.shape)} there"
                    )
                value.copy_(stored)

    def _restored(self, name: str, kinds: Mapping[str, type[_Part]]) -> _Part | None:
        """What stood there, with the state that it had; None if there was nothing."""
        if name not in self.parts:
            return None
        kind, settings = self.parts[name]
        if kind not in kinds:
            raise UsageError(f"the checkpoint holds a {kind}, which this version of dcz does not know")
        state = {
            key.removeprefix(f"{name}/"): value
            for key, value in self.tensors.items()
            if key.startswith(f"{name}/")
        }
        try:
            part = kinds[kind].restored(settings, state)
            part.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError, EncodingError) as exc:
            raise UsageError(f"the checkpoint holds a {kind} that cannot be made: {exc}") from exc
        return part


def _all(module: nn.Module) -> list[Weight]:
    """What can be under a parametrization. A bias that is, is among the weights already."""
    weights = find_weights(module)
    return [*weights, *find_biases(module)]


def _held(module: nn.Module, weights: Sequence[Weight]) -> dict[str, torch.Tensor]:
    """Every parameter and buffer once, under the name that it has without parametrizations. Buffers that are not
    persistent are among them: training may have changed them."""
    module, _ = unwrapped(module)
    compressed = {id(weight.parameter): weight.name for weight in weights}
    held: dict[str, torch.Tensor] = {weight.name: weight.parameter.data for weight in weights}
    parts = {
        id(inner)
        for part in (
            *(weight.parametrization for weight in weights),
            *(quantizer for _, _, _, quantizer in activation_quantizers(module)),
        )
        if part is not None
        for inner in part.modules()
    }
    for prefix, part in module.named_modules():
        if id(part) in parts:
            continue
        for name, parameter in part.named_parameters(prefix, recurse=False):
            if id(parameter) not in compressed:
                held.setdefault(name, parameter.data)
        for name, buffer in part.named_buffers(prefix, recurse=False):
            held.setdefault(name, buffer)
    return held


def held_values(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer that travels with the module, once, as its owners see it now; not to be written to."""
    weights = _all(module)
    persistent = {
        name for name in unwrapped(module)[0].state_dict() if ".parametrizations." not in f".{name}"
    }
    seen = {weight.name: weight.value() for weight in weights}
    return seen | {
        name: value
        for name, value in _held(module, weights).items()
        if name in persistent and name not in seen
    }


class Checkpoints:
    """The newest checkpoint in a folder, and the way to write the next one."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not os.fspath(folder):
            raise UsageError("checkpoints need a folder")
        self._path = Path(folder) / _NAME
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(
                f"{os.fspath(folder)!r} cannot be a folder for checkpoints: {exc.strerror}"
            ) from exc

    @property
    def path(self) -> Path:
        return self._path

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """While a compression writes there, no other one does, of this process or another on this machine.

        Where the file system has no locks, nothing is held. Raises UsageError if another one is under way, or nothing can be
        written there.
        """
        path = self._path.with_name(_LOCK)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as exc:
            raise UsageError(f"{path}: no checkpoints can be written there: {exc.strerror}") from exc
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise UsageError(
                    f"another compression is under way with the checkpoints in {self._path.parent}",
                    hint="wait for its end, or take another folder",
                ) from exc
            except OSError:
                pass
            yield
        finally:
            # Closing alone would leave it to children that were forked meanwhile, such as workers that load data.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def write(self, place: Mapping[str, Any], snapshots: Mapping[str, Snapshot]) -> None:
        """``place``: plain data that says how far it got. ``snapshots``: by names without a slash."""
        tensors = {
            f"{key}/{name}": tensor
            for key, shot in snapshots.items()
            for name, tensor in shot.tensors.items()
        }
        generators, numbers = _random_state()
        save(
            {**tensors, **{_RANDOM + name: state for name, state in generators.items()}},
            self._path,
            effort="fast",
            metadata={
                _KEY: json.dumps(
                    {
                        "place": place,
                        "random": numbers,
                        "parts": {key: dict(shot.parts) for key, shot in snapshots.items()},
                    }
                )
            },
        )

    def read(self) -> tuple[dict[str, Any], dict[str, Snapshot]] | None:
        """What was written last, with the random generators set to where they were; None if there is nothing.

        Raises FormatError if it is damaged, UsageError if it is another kind of file.
        """
        if not self._path.exists():
            return None
        try:
            with Reader(self._path) as reader:
                found = reader.manifest.metadata.get(_KEY)
                tensors = load_tensors(reader)
        except FormatError as exc:
            exc.hint = _ANEW
            raise
        if found is None:
            raise UsageError(f"{self._path} is not a checkpoint of dcz.compress")
        content = json.loads(found)
        if "parts" not in content or "model" not in content["place"]:
            raise UsageError(f"{self._path} was written by another version of dcz", hint=_ANEW)
        parts: dict[str, dict[str, torch.Tensor]] = {}
        generators: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if name.startswith(_RANDOM):
                generators[name.removeprefix(_RANDOM)] = tensor
            else:
                key, _, rest = name.partition("/")
                parts.setdefault(key, {})[rest] = tensor
        _set_random_state(generators, content["random"])
        described = content["parts"]
        return content["place"], {key: Snapshot(part, described[key]) for key, part in parts.items()}


def _random_state() -> tuple[dict[str, torch.Tensor], Any]:
    """The states of the generators that a training loop may use: of torch on all its devices, of numpy and of Python."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    generators = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(legacy[1].astype(np.int64)),
        "python": torch.tensor(numbers, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        generators |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return generators, {"python": [version, gauss], "numpy": [legacy[0], *map(float, legacy[2:])]}


def _set_random_state(generators: Mapping[str, torch.Tensor], others: Any) -> None:
    torch.set_rng_state(generators["torch"])
    version, gauss = others["python"]
    random.setstate((version, tuple(generators["python"].tolist()), gauss))
    name, place, has_gauss, cached = others["numpy"]
    np.random.set_state(
        (name, generators["numpy"].numpy().astype(np.uint32), int(place), int(has_gauss), cached)
    )
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(
            [generators[f"cuda{i}"] for i in range(torch.cuda.device_count()) if f"cuda{i}" in generators]
        )

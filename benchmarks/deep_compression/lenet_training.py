"""How the LeNets are trained and compressed: one run of each variant passes through all operating points."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import dcz
from benchmarks.deep_compression.mnist import Lessons, Mnist, error_percent, normalized
from benchmarks.deep_compression.networks import LeNet5, LeNet300
from dcz.compression.torch_tensors import check_tensor, to_numpy
from dcz.compression.training.masks import density_of, global_densities, prune
from dcz.compression.training.rate import RateAware, UniformGrid, find_biases
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.format.stored import stored_tensor
from dcz.format.tensors import AffineTensor, UniformTensor
from dcz.format.writer import Writer

if TYPE_CHECKING:
    from dcz.format.tensors import TensorData

__all__ = [
    "SETTINGS",
    "Candidate",
    "Settings",
    "finishing_run",
    "plain_run",
    "rate_aware_run",
    "write_file",
]

_SMOOTHING = 0.02  # of the labels
_CLEAN = 0.5  # part of the images that are shown as they are
_FINISHING_CLEAN = 0.9  # of those for so small a network: it cannot learn all that distortions would teach it
_FINISHING_EPOCHS = 5
_LOWEST_RATE = 0.03  # of the learning rate, at the end of a stage
_STEP_LR = 5e-3
_RETRAINING_EPOCHS = 3
_FINISHING_SEED = 1000  # beyond that of the run before, whose random numbers are not used again
_FIRST_DENSITIES = (0.4, 0.2)  # on the way, without a file
_CLUSTER_BITS = 3
_FLOOR = 0.01  # of each layer, that no threshold takes
_CENTROID_LR = 5e-4


@dataclass(frozen=True)
class Settings:
    """``strengths``: of the rate, in units of the loss for 1,000 bits, one for each stage of ``epochs``.

    ``cluster_densities``: to which the plain variant prunes, one after the other. ``finishing``: strengths of further stages,
    from the file of the stage ``finish_from``.
    """

    make: Callable[[], nn.Module]
    lr: float
    batch: int
    dense_epochs: int
    levels: float
    epochs: int
    strengths: tuple[float, ...]
    cluster_densities: tuple[float, ...]
    finish_from: float = 0.0
    finishing: tuple[float, ...] = ()


SETTINGS = {
    "lenet-300-100": Settings(
        make=LeNet300,
        lr=2e-3,
        batch=256,
        dense_epochs=5,
        epochs=4,
        levels=8,
        strengths=(0.0004, 0.0007, 0.001, 0.0015, 0.0022, 0.0032),
        cluster_densities=(0.1, 0.08, 0.06, 0.045, 0.035),
    ),
    "lenet-5": Settings(
        make=LeNet5,
        lr=1.5e-3,
        batch=128,
        dense_epochs=3,
        epochs=4,
        levels=6,
        strengths=(0.0003, 0.0006, 0.0012, 0.0025, 0.005),
        cluster_densities=(0.1, 0.07, 0.045, 0.03),
        finish_from=0.005,
        finishing=(0.004,),
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A file that was written after a stage, and what it is worth on the validation split."""

    file: str
    bytes: int
    stage: float
    validation_error: float
    densities: dict[str, float]
    expected_bytes: float | None
    seconds: float


def write_file(path: Path, tensors: dict[str, TensorData]) -> int:
    """The bytes of the complete file."""
    with Writer(path, effort="small", threads=1) as writer:
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
    return path.stat().st_size


def one_epoch(
    network: nn.Module,
    lessons: Lessons,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    size: int,
    *,
    factor: Callable[[float], float] = lambda _: 1.0,
    penalty: Callable[[], torch.Tensor] | None = None,
    clean: float = _CLEAN,
) -> None:
    """Show each training image once, as it is or distorted.

    ``size``: of a batch. ``factor``: of the learning rates, by how far the epoch is, 0 to 1. ``penalty``: is added to the loss.
    ``clean``: part of the images that are shown as they are.
    """
    copies, count = lessons.images.shape[:2]
    which = torch.randint(1, copies, (count,), generator=generator)
    which[torch.rand(count, generator=generator) < clean] = 0
    order = torch.randperm(count, generator=generator)[: count // size * size]
    batches = order.split(size)
    rates = [group["lr"] for group in optimizer.param_groups]
    network.train()
    for i, batch in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(i / len(batches))
        outputs = network(normalized(lessons.images[which[batch], batch]))
        loss = functional.cross_entropy(outputs, lessons.labels[batch], label_smoothing=_SMOOTHING)
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def train_stage(
    network: nn.Module,
    lessons: Lessons,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batch: int,
    epochs: int,
    penalty: Callable[[], torch.Tensor] | None = None,
    clean: float = _CLEAN,
) -> None:
    """Epochs in which the learning rates fall along half a cosine."""
    for epoch in range(epochs):

        def factor(part: float, epoch: int = epoch) -> float:
            return _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * (epoch + part) / epochs)) / 2

        one_epoch(
            network,
            lessons,
            optimizer,
            generator,
            batch,
            factor=factor,
            penalty=penalty,
            clean=clean,
        )


def dense_network(settings: Settings, lessons: Lessons, generator: torch.Generator, seed: int) -> nn.Module:
    """Trained as the compressed one is, without anything that compresses."""
    torch.manual_seed(seed)
    network = settings.make()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pools twice as fast
    optimizer = torch.optim.Adam(network.parameters(), settings.lr, betas=(0.9, 0.98))
    train_stage(network, lessons, optimizer, generator, settings.batch, settings.dense_epochs)
    return network


def _price(rate: RateAware, strength: float) -> torch.Tensor:
    return rate.bits() * (strength / 1000)


def rate_aware_run(
    settings: Settings, data: Mnist, lessons: Lessons, seed: int, folder: Path
) -> Iterator[Candidate]:
    """Train with a rate that grows from stage to stage; a file after each of them."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    network = dense_network(settings, lessons, generator, seed)
    print(f"dense: validation error {error_percent(network, *data.validation):.2f} %", flush=True)
    rate = RateAware(network, levels=settings.levels)
    for strength in settings.strengths:
        yield _rate_stage(
            settings, data, lessons, generator, network, rate, strength, folder, start, settings.epochs
        )


def finishing_run(
    settings: Settings, data: Mnist, lessons: Lessons, seed: int, folder: Path
) -> Iterator[Candidate]:
    """Stages between and beyond those of ``rate_aware_run``, from one of its files: nothing else is kept of its run."""
    if not settings.finishing:
        return
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed + _FINISHING_SEED)
    network = settings.make()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = folder / f"{settings.finish_from:g}.dcz"
    network.load_state_dict(dcz.load(path))
    weights = [*find_weights(network), *find_biases(network)]
    rate = RateAware(network, weights)
    with dcz.open(path) as file:
        for weight in weights:
            stored = stored_tensor(file.reader, weight.name)
            grid = weight.parametrization
            assert isinstance(stored, AffineTensor | UniformTensor)
            assert isinstance(stored.scales, np.ndarray)
            assert isinstance(grid, UniformGrid)
            nn.init.constant_(grid.log_step, math.log(stored.scales.item()))
    for strength in settings.finishing:
        yield _rate_stage(
            settings,
            data,
            lessons,
            generator,
            network,
            rate,
            strength,
            folder,
            start,
            _FINISHING_EPOCHS,
            _FINISHING_CLEAN,
        )


def _rate_stage(
    settings: Settings,
    data: Mnist,
    lessons: Lessons,
    generator: torch.Generator,
    network: nn.Module,
    rate: RateAware,
    strength: float,
    folder: Path,
    start: float,
    epochs: int,
    clean: float = _CLEAN,
) -> Candidate:
    """Train with one strength, and write a file."""
    optimizer = torch.optim.Adam(rate.parameter_groups(settings.lr, step_lr=_STEP_LR), betas=(0.9, 0.98))
    train_stage(
        network,
        lessons,
        optimizer,
        generator,
        settings.batch,
        epochs,
        functools.partial(_price, rate, strength),
        clean,
    )
    path = folder / f"{strength:g}.dcz"
    size = write_file(path, rate.tensors())
    candidate = Candidate(
        path.name,
        size,
        strength,
        error_percent(network, *data.validation),
        dict(rate.densities()),
        sum(rate.code_length().values()) / 8,
        time.perf_counter() - start,
    )
    print(asdict(candidate), flush=True)
    return candidate


def _copy(settings: Settings, network: nn.Module) -> nn.Module:
    """A pruned network of its own: copy.deepcopy lets both share the class that torch made for the parametrizations."""
    made = settings.make()
    remove_parametrizations(network)
    made.load_state_dict(network.state_dict())
    for module in (network, made):
        prune(find_weights(module), 1.0)  # what is zero stays zero
    return made


def plain_run(
    settings: Settings, data: Mnist, lessons: Lessons, seed: int, folder: Path
) -> Iterator[Candidate]:
    """The paper's stages: prune by magnitude and retrain, share weights, train the centroids; a file for each density."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    network = dense_network(settings, lessons, generator, seed)
    for density in (*_FIRST_DENSITIES, *settings.cluster_densities):
        weights = find_weights(network)
        prune(weights, global_densities(weights, density, floor=_FLOOR, scale="std"))
        optimizer = torch.optim.Adam(network.parameters(), settings.lr, betas=(0.9, 0.98))
        train_stage(network, lessons, optimizer, generator, settings.batch, _RETRAINING_EPOCHS)
        if density in _FIRST_DENSITIES:
            continue
        shared = _copy(settings, network)
        share(find_weights(shared), _CLUSTER_BITS)
        optimizer = torch.optim.Adam(shared.parameters(), _CENTROID_LR, betas=(0.9, 0.98))
        train_stage(shared, lessons, optimizer, generator, settings.batch, 1)
        densities = {weight.name: density_of(weight) for weight in find_weights(shared)}
        remove_parametrizations(shared)
        tensors: dict[str, TensorData] = {
            name: to_numpy(value, check_tensor(name, value)) for name, value in shared.state_dict().items()
        }
        path = folder / f"{density:g}.dcz"
        candidate = Candidate(
            path.name,
            write_file(path, tensors),
            density,
            error_percent(shared, *data.validation),
            densities,
            None,
            time.perf_counter() - start,
        )
        print(asdict(candidate), flush=True)
        yield candidate

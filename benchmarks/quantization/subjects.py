"""The networks that mixed precision is tried on: what one pass is, how they are judged, and what their bits are chosen by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["SUBJECTS", "Subject", "digits", "g2p", "lenet"]


@dataclass(frozen=True)
class Subject:
    """A trained network.

    ``run(batch)``: one forward pass. ``batches``: of the training set, for ``loss(network, batch)``, a scalar with a graph.
    ``closeness(network)``: the divergence from the dense network's outputs on data to choose by, negative, nats. ``score(network)``: on
    data that nothing was chosen by: errors in per cent, and the divergence there.
    """

    name: str
    network: nn.Module
    run: Callable[[int], object]
    batches: Sequence[Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    closeness: Callable[[nn.Module], float]
    score: Callable[[nn.Module], tuple[float, float]]

    def fresh(self) -> Any:
        """A copy of the dense network."""
        return copy.deepcopy(self.network)


def _divergence(outputs: torch.Tensor, wanted: torch.Tensor) -> float:
    """Kullback and Leibler's, of classes, nats for each row."""
    logs, targets = functional.log_softmax(outputs, 1), functional.log_softmax(wanted, 1)
    return float(functional.kl_div(logs, targets, log_target=True, reduction="batchmean"))


def classifier(
    name: str,
    network: nn.Module,
    train: tuple[torch.Tensor, torch.Tensor],
    choosing: torch.Tensor,
    test: tuple[torch.Tensor, torch.Tensor],
) -> Subject:
    """A network from inputs (n, ...) to scores of classes; training and test data with their labels (n,)."""
    network.eval()

    @torch.no_grad()
    def outputs(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([module(part) for part in inputs.split(1000)])

    dense = {"choosing": outputs(network, choosing), "test": outputs(network, test[0])}

    def score(module: nn.Module) -> tuple[float, float]:
        found = outputs(module, test[0])
        wrong = int((found.argmax(1) != test[1]).sum())
        return 100 * wrong / len(test[1]), _divergence(found, dense["test"])

    return Subject(
        name=name,
        network=network,
        run=lambda batch: network(train[0][:batch]),
        batches=list(zip(train[0].split(256), train[1].split(256), strict=True)),
        loss=lambda module, batch: functional.cross_entropy(module(batch[0]), batch[1]),
        closeness=lambda module: -_divergence(outputs(module, choosing), dense["choosing"]),
        score=score,
    )


def lenet(data: Path | None, work: Path) -> Subject:
    """LeNet-5 on MNIST, trained once and kept in ``work``."""
    from benchmarks.deep_compression.lenet_training import SETTINGS, dense_network
    from benchmarks.deep_compression.mnist import lessons, load_mnist, normalized

    mnist = load_mnist(data)
    network = SETTINGS["lenet-5"].make()
    kept = work / "lenet-5.pt"
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
    else:
        taught = lessons(mnist, work / "lessons.npy")
        network = dense_network(SETTINGS["lenet-5"], taught, torch.Generator().manual_seed(0), 0)
        torch.save(network.state_dict(), kept)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images, labels = mnist.train
    test_images, test_labels = mnist.test
    return classifier(
        "lenet-5",
        network,
        (normalized(images[:1024]), labels[:1024]),
        normalized(mnist.validation[0][:2000]),
        (normalized(test_images), test_labels),
    )


def digits(_data: Path | None = None, _work: Path | None = None) -> Subject:
    """A small network on the 8 x 8 digits of scikit-learn, trained in a second."""
    from sklearn.datasets import load_digits

    found = load_digits()
    inputs = torch.from_numpy(found.data).float() / 16
    labels = torch.from_numpy(found.target).long()
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for part in torch.randperm(1000).split(50):
            loss = functional.cross_entropy(network(inputs[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier(
        "digits", network, (inputs[:512], labels[:512]), inputs[1000:1300], (inputs[1300:], labels[1300:])
    )


def g2p(_data: Path | None = None, _work: Path | None = None) -> Subject:
    """The recurrent network of the package g2p-en on words of CMUdict. Errors are those of phonemes."""
    from benchmarks.deep_compression.g2p_network import dictionary, pretrained, score, split
    from benchmarks.deep_compression.g2p_training import Teacher, divergence

    network = pretrained().eval()
    training, choosing, testing = split(dictionary())

    def lessons(words: Sequence[Any]) -> list[Any]:
        asked = Teacher.ask(network, [word.letters for word in words])
        return list(asked.shuffled(torch.Generator().manual_seed(0)))

    sets = {
        "training": lessons(training[:1000]),
        "choosing": lessons(choosing[:300]),
        "test": lessons(testing),
    }

    @torch.no_grad()
    def apart(module: nn.Module, batches: Sequence[Any]) -> float:
        sizes = [int((batch.says >= 0).sum()) for batch in batches]
        found = [float(divergence(module, batch)) * size for batch, size in zip(batches, sizes, strict=True)]
        return sum(found) / sum(sizes)

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        scores = module(batch.letters, batch.before)
        return functional.cross_entropy(scores.flatten(0, 1), batch.says.flatten(), ignore_index=-100)

    letters, before = (torch.ones(4096, length, dtype=torch.long) * 5 for length in (8, 7))
    return Subject(
        name="g2p-en",
        network=network,
        run=lambda batch: network(letters[:batch], before[:batch]),
        batches=sets["training"],
        loss=loss,
        closeness=lambda module: -apart(module, sets["choosing"]),
        score=lambda module: (score(module, testing).phoneme_error, apart(module, sets["test"])),  # type: ignore[arg-type]
    )


SUBJECTS: dict[str, Callable[[Path | None, Path], Subject]] = {
    "lenet-5": lenet,
    "g2p-en": g2p,
    "digits": digits,
}

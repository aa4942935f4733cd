"""The networks of the study of quantization-aware training, and how they are trained on MNIST."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.deep_compression.lenet_training import one_epoch
from benchmarks.deep_compression.mnist import Lessons
from benchmarks.deep_compression.networks import LeNet5

__all__ = ["NETWORKS", "Network", "ResNet", "epochs_of"]

_LOWEST_RATE = 0.02  # of the learning rate, at the end
_BETAS = (0.9, 0.98)


class _Block(nn.Module):
    """Two convolutions, and what bridges them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.bridge = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(images)))))
        return torch.relu(features + (images if self.bridge is None else self.bridge(images)))


class ResNet(nn.Module):
    """A residual network of eight layers with BatchNorm: 77,562 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(_Block(16, 16), _Block(16, 32), _Block(32, 64))
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.blocks(torch.relu(self.norm(self.conv(images))))
        outputs: torch.Tensor = self.last(features.mean((2, 3)))
        return outputs


@dataclass(frozen=True)
class Network:
    """``lr``: of the first training, and of the training with quantized weights."""

    make: Callable[[], nn.Module]
    lr: float
    quantized_lr: float


NETWORKS = {"lenet-5": Network(LeNet5, 1.5e-3, 1e-3), "resnet": Network(ResNet, 4e-3, 2e-3)}


def epochs_of(
    network: nn.Module,
    lessons: Lessons,
    generator: torch.Generator,
    *,
    lr: float,
    epochs: int,
    batch: int = 128,
) -> Iterator[int]:
    """Train with Adam, its rate falling along half a cosine; yields the number of each epoch that is done."""
    optimizer = torch.optim.Adam(network.parameters(), lr, betas=_BETAS)
    for epoch in range(epochs):

        def factor(part: float, epoch: int = epoch) -> float:
            return _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * (epoch + part) / epochs)) / 2

        one_epoch(network, lessons, optimizer, generator, batch, factor=factor)
        yield epoch + 1

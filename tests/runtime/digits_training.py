"""A small network on scikit-learn's digits, trained the same way each time. Run as a program, it compresses one, with checkpoints:

python tests/runtime/digits_training.py CHECKPOINTS FILE
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import dcz


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.hidden = nn.Linear(8 * 36, 64)
        self.norm = nn.BatchNorm1d(64)
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv(images)).flatten(1)
        outputs: torch.Tensor = self.last(torch.relu(self.norm(self.hidden(features))))
        return outputs


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, test images and labels; every fifth image is for the test."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    test = torch.arange(len(y)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


_X, _Y, _TEST_X, _TEST_Y = data()


def train(model: nn.Module) -> None:
    """One epoch, in an order that torch's generator draws."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = torch.randperm(len(_Y))
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(_X[batch]), _Y[batch]))
        optimizer.step()


def evaluate(model: nn.Module) -> float:
    """Percent of the test images that are right."""
    with torch.no_grad():
        return 100 * float((model(_TEST_X).argmax(1) == _TEST_Y).float().mean())


def trained(epochs: int = 12) -> Net:
    torch.manual_seed(0)
    model = Net()
    for _ in range(epochs):
        train(model)
    return model


class Crash(Exception):
    """What ends a run in the middle of an epoch."""


def check_resuming(dense: nn.Module, folder: Path, every: int, epochs: int, **options: Any) -> None:
    """A compression that crashes in each ``every``-th epoch, in at least ``epochs`` epochs in all, and is taken up again from its
    checkpoints ends in the bytes of one that does not. ``options``: of dcz.compress."""
    torch.manual_seed(1)
    whole = dcz.compress(
        copy.deepcopy(dense), folder / "whole.dcz", train=train, evaluate=evaluate, **options
    )
    torch.manual_seed(1)
    calls = 0

    def crashing(module: nn.Module) -> None:
        nonlocal calls
        calls += 1
        if calls % every == 0:
            raise Crash
        train(module)

    while True:
        try:
            done = dcz.compress(
                copy.deepcopy(dense),
                folder / "crashed.dcz",
                train=crashing,
                evaluate=evaluate,
                checkpoints=folder / "checkpoints",
                **options,
            )
            break
        except Crash:
            torch.manual_seed(calls)  # whatever another process begins with
    assert calls >= epochs
    assert done.steps == whole.steps
    assert (folder / "crashed.dcz").read_bytes() == (folder / "whole.dcz").read_bytes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dcz.compress(
        trained(), sys.argv[2], train=train, evaluate=evaluate, tolerance=2.0, checkpoints=sys.argv[1]
    )

"""Which kinds the steps of a network get."""

from __future__ import annotations

import torch
from tests.compression.networks.zoo import Residual
from torch import nn
from torch.nn import functional as F

from dcz.compression.networks.graph import trace


def kinds(module: nn.Module) -> list[str]:
    return [operation.kind for operation in trace(module).operations.values()]


def test_kinds_of_functions_methods_and_modules() -> None:
    assert kinds(Residual()) == [
        "input",
        "convolution",
        "batch-norm",
        "relu",
        "convolution",
        "batch-norm",
        "add",
        "relu",
        "convolution",
        "relu",
        "concatenate",
        "max-pool",
        "adaptive-average-pool",
        "flatten",
        "linear",
        "relu",
        "linear",
        "output",
    ]


def test_options_are_those_of_the_call() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
            x = torch.max_pool2d(x, 2, 1)
            x = F.dropout(x, training=self.training)
            return F.avg_pool2d(self.pool(x), (1, 2), ceil_mode=True).flatten(start_dim=1)

    operations = list(trace(Pools()).operations.values())
    assert [one.kind for one in operations[1:]] == [
        "max-pool",
        "max-pool",
        "identity",
        "average-pool",
        "average-pool",
        "flatten",
        "output",
    ]
    options = [one.options for one in operations]
    assert (options[1]["kernel_size"], options[1]["stride"], options[1]["padding"]) == (3, 2, 1)
    assert (options[2]["kernel_size"], options[2]["stride"], options[2]["dilation"]) == (2, 1, 1)
    assert (options[4]["count_include_pad"], options[4]["ceil_mode"]) == (False, False)
    assert (options[5]["kernel_size"], options[5]["stride"], options[5]["ceil_mode"]) == ((1, 2), None, True)
    assert (options[6]["start_dim"], options[6]["end_dim"]) == (1, -1)


def test_other_things_are_not_taken_for_what_they_resemble() -> None:
    class Scaled(nn.Conv1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = Scaled(2, 2, 1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.scaled(x)
            z = self.relu(y)
            return F.dropout(torch.add(z, y, alpha=2) + 1)

    found = kinds(Mixed())
    assert set(found) == {"input", "other", "output"}, found


def test_only_users() -> None:
    network = trace(Residual())
    by_name = {one.name: one for one in network.operations.values()}
    after = network.only_user(by_name["conv1"])
    assert after is not None
    assert after.name == "bn1"
    assert network.only_user(by_name["relu"]) is None
    assert [one.name for one in network.layers()] == ["conv1", "conv2", "side", "fc1", "fc2"]

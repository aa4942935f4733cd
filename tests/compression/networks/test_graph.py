"""Which kinds the steps of a network get."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.compression.networks.zoo import Residual
from torch import fx, nn
from torch.nn import functional as F

from dcz.compression.integer.conversion import integer_network
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


class _Written(nn.Module):
    """The end of a network, written in some way; the layers before and behind it are always the same."""

    def __init__(self, end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], features: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(features, 5)
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.end(F.relu(self.first(x)), x))
        return outputs


WRITTEN: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], str]] = {
    "view": (lambda y, x: y.view(y.size(0), -1), "flatten"),
    "shape": (lambda y, x: y.view(y.shape[0], -1), "flatten"),
    "size": (lambda y, x: y.reshape(y.size()[0], -1), "flatten"),
    "of the input": (lambda y, x: y.view(x.size(0), -1), "flatten"),
    "a function": (lambda y, x: torch.reshape(y, (x.shape[0], -1)), "flatten"),
    "mean": (lambda y, x: y.mean((2, 3)), "adaptive-average-pool flatten"),
    "mean, kept": (lambda y, x: y.mean([3, 2], keepdim=True).flatten(1), "adaptive-average-pool flatten"),
    "mean, function": (lambda y, x: torch.mean(y, dim=(2, 3)), "adaptive-average-pool flatten"),
    "mean, kept too": (lambda y, x: torch.mean(y, (2, 3), True).flatten(1), "adaptive-average-pool flatten"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_to_write_the_same(name: str) -> None:
    """Of the same kinds as if written plainly, and with the outputs of the module itself: also on integers."""
    end, expected = WRITTEN[name]
    torch.manual_seed(0)
    module = _Written(end, 4 if "mean" in name else 144).eval()
    assert kinds(module) == ["input", "convolution", "relu", *expected.split(), "linear", "output"]
    network = trace(module)
    graph = fx.GraphModule(module, next(iter(network.operations)).graph)
    inputs = torch.randn(32, 3, 8, 8)
    exact = module(inputs).detach()
    torch.testing.assert_close(graph(inputs), exact, rtol=1e-5, atol=1e-6)
    integers = integer_network(module, [inputs])
    assert float((integers(inputs) - exact).abs().max() / exact.abs().max()) < 0.05


@pytest.mark.parametrize(
    "end",
    [
        lambda y, x: y.view(x.size(1), -1),
        lambda y, x: y.view(y.size(0), -1, 2),
        lambda y, x: y.view(-1, 144),
        lambda y, x: y.transpose(0, 1).reshape(x.size(0), -1),
        lambda y, x: y.mean((1, 2)),
        lambda y, x: y.mean((2, 3), dtype=torch.float64),
        lambda y, x: y.mean(),
    ],
    ids=["another axis", "three", "minus first", "turned", "channels", "another type", "everything"],
)
def test_what_only_looks_like_it(end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    assert "other" in kinds(_Written(end, 144))

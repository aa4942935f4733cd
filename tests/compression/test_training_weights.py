"""Which weights of a module are found, and that a parametrization reaches all who use them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from dcz.compression.training.weights import (
    Weight,
    WeightParametrization,
    find_weights,
    remove_parametrizations,
)
from dcz.errors import UsageError


class Halves(WeightParametrization):
    """Half of what the Parameter holds."""

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original / 2

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        return cls()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.embed(x))
        return found


def halve_all(module: nn.Module) -> list[Weight]:
    weights = find_weights(module)
    for weight in weights:
        weight.parametrize(Halves())
    return weights


def halved_by_hand(module: nn.Module) -> nn.Module:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in find_weights(other):
            weight.parameter.div_(2)
    return other


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int]] = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6), "linear", 1),
    "two": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (3, 6), "linear", 2),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), (1, 2, 8), "conv", 1),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, groups=2), (1, 2, 8, 8), "conv", 1),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), "conv", 1),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2), (1, 2, 4, 4), "conv", 1),
    "lstm": (lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True), (5, 2, 4), "recurrent", 8),
    "projected": (lambda: nn.LSTM(4, 6, proj_size=3), (5, 2, 4), "recurrent", 3),
    "gru": (lambda: nn.GRU(4, 3, batch_first=True), (2, 5, 4), "recurrent", 2),
    "rnn": (lambda: nn.RNN(4, 3), (5, 2, 4), "recurrent", 2),
    "gru-cell": (lambda: nn.GRUCell(4, 3), (2, 4), "recurrent", 2),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8), "attention", 4),
    "conv1d-of-gpt2": (lambda: transformers.pytorch_utils.Conv1D(4, 6), (3, 6), "linear", 1),
}


def outputs(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = module(x)
    first: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return first


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_layers_use_what_the_parametrization_gives(case: str, training: bool) -> None:
    make, shape, kind, count = CASES[case]
    torch.manual_seed(0)
    module = make()
    for child in module.modules():
        if isinstance(child, nn.Dropout | nn.MultiheadAttention):
            child.p = child.dropout = 0.0
    module.train(training)
    x = torch.randn(shape)
    expected = halved_by_hand(module)
    plain = {name: value.clone() for name, value in module.state_dict().items()}
    weights = halve_all(module)
    assert weights[0].kind == kind
    assert len(weights) == count
    for _ in range(2):
        torch.testing.assert_close(outputs(module, x), outputs(expected, x))
    torch.testing.assert_close(outputs(copy.deepcopy(module), x), outputs(expected, x))
    outputs(module, x).square().sum().backward()
    outputs(expected, x).square().sum().backward()
    for weight, other in zip(weights, find_weights(expected), strict=True):
        assert other.parameter.grad is not None
        torch.testing.assert_close(weight.parameter.grad, other.parameter.grad / 2)

    remove_parametrizations(module)
    assert not any(parametrize.is_parametrized(child) for child in module.modules())
    assert list(module.state_dict()) == list(plain)
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(outputs(module, x), outputs(expected, x))
    outputs(module, x).sum().backward()


def test_recurrent_layers_are_theirs_again() -> None:
    module = nn.LSTM(4, 3)
    hooks = len(module._forward_pre_hooks), len(module._forward_hooks)
    before = list(module.named_parameters())
    halve_all(module)
    remove_parametrizations(module)
    assert (len(module._forward_pre_hooks), len(module._forward_hooks)) == hooks
    for (name, parameter), (old_name, old), flat in zip(
        module.named_parameters(), before, module._flat_weights, strict=True
    ):
        assert name == old_name
        assert parameter is old is flat


def test_tied_weights_are_one_weight() -> None:
    module = Tied()
    parameter = module.embed.weight
    (weight,) = find_weights(module)
    assert weight.names == ("embed.weight", "head.weight")
    assert weight.kind == "embedding"
    assert len(weight.owners) == 2
    x = torch.arange(10)
    expected = halved_by_hand(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    weight.parametrize(Halves())
    torch.testing.assert_close(module(x), expected(x))
    assert [name for name, _ in module.named_parameters()] == ["embed.parametrizations.weight.original"]
    assert next(iter(module.parameters())) is parameter
    before = parameter.detach().clone()
    module(x).sum().backward()
    optimizer.step()
    assert not torch.equal(before, parameter)
    remove_parametrizations(module)
    assert module.embed.weight is module.head.weight is parameter
    torch.testing.assert_close(parameter.detach(), (before - 0.1 * parameter.grad) / 2)  # type: ignore[operator]


def test_a_module_used_twice_is_one_owner() -> None:
    layer = nn.Linear(3, 3)
    (weight,) = find_weights(nn.Sequential(layer, nn.ReLU(), layer))
    assert weight.names == ("0.weight", "2.weight")
    assert weight.owners == ((layer, "weight"),)


def test_norms_biases_and_integers_are_not_weights() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm((3, 4)), nn.PReLU(2))
    module.register_parameter("count", nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False))
    assert [weight.name for weight in find_weights(module)] == ["0.weight"]


def test_own_parameters_are_weights() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(2, 3, 4))
            self.lists = nn.ParameterList([torch.randn(3, 3)])

    weights = find_weights(Experts())
    assert [(weight.name, weight.kind) for weight in weights] == [("up", "other"), ("lists.0", "other")]


def test_wrappers_are_looked_through() -> None:
    inner = nn.Linear(3, 3)
    assert find_weights(nn.DataParallel(inner))[0].names == ("weight",)
    assert find_weights(torch.compile(inner, backend="eager"))[0].names == ("weight",)  # type: ignore[arg-type]


def test_a_new_shape_drops_the_gradient() -> None:
    module = nn.Linear(3, 2)
    (weight,) = find_weights(module)
    module(torch.ones(1, 3)).sum().backward()
    weight.parametrize(Halves(), torch.ones(5))
    assert weight.parameter.grad is None
    assert weight.parameter.shape == (5,)
    assert dict(module.named_parameters())["parametrizations.weight.original"] is weight.parameter


def test_values_are_those_of_evaluation() -> None:
    class Noisy(Halves):
        def forward(self, original: torch.Tensor) -> torch.Tensor:
            return original / 2 + (torch.randn_like(original) if self.training else 0)

    module = nn.Linear(3, 2)
    (weight,) = find_weights(module)
    expected = weight.value() / 2
    weight.parametrize(Noisy())
    assert torch.equal(weight.value(), expected)
    assert weight.parametrization is not None
    assert weight.parametrization.training


def _legacy_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(3, 3))


def _shared_memory() -> nn.Module:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = nn.Parameter(first.weight.detach())
    return nn.Sequential(first, second)


def _inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch_parametrizations.weight_norm(nn.Linear(3, 3)), "weight has a parametrization already"),
        (_legacy_weight_norm, "normalized by the hooks"),
        (lambda: torch_prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5), "remove\\(module, 'weight'\\)"),
        (lambda: nn.Embedding(3, 3, sparse=True), "sparse=False"),
        (lambda: nn.Embedding(3, 3, max_norm=1.0), "max_norm=None"),
        (lambda: nn.LazyLinear(3), "call the module once"),
        (lambda: nn.Linear(3, 3, device="meta"), "has no memory"),
        (_shared_memory, "1.weight cannot be compressed: it shares its memory with 0.weight"),
        (_inference, "inference mode"),
    ],
)
def test_what_cannot_be_compressed_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_weights(make())


def test_a_deep_copy_keeps_its_weights() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.MultiheadAttention(4, 2, kdim=3))
    halve_all(module)
    other = copy.deepcopy(module)
    expected = {name: weight.value().clone() for name, weight in ((w.name, w) for w in find_weights(module))}
    remove_parametrizations(other)
    for weight in find_weights(module):
        for owner, attribute in weight.owners:
            assert parametrize.is_parametrized(owner, attribute)
            torch.testing.assert_close(getattr(owner, attribute), expected[weight.name], rtol=0, atol=0)
    assert type(other[0]) is nn.Linear
    remove_parametrizations(module)
    torch.testing.assert_close(module[0].weight, other[0].weight, rtol=0, atol=0)

"""Traces against the exact Hessian of tiny networks; what is measured against measuring by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcz.compression.quantizers import quantize_affine
from dcz.compression.search import sensitivity
from dcz.compression.search.costs import Option
from dcz.compression.search.sensitivity import (
    Trace,
    choices,
    hessian_traces,
    measured_loss,
    second_order_loss,
)
from dcz.compression.training.masks import prune
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights
from dcz.errors import EncodingError, UsageError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2, bias=False)).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(5, 2).double(), torch.randint(0, 2, (5,))) for _ in range(2)]


def loss_with(module: nn.Module) -> Callable[[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    return lambda batch: nn.functional.cross_entropy(module(batch[0]), batch[1])


def exact_traces(module: nn.Module) -> dict[str, float]:
    """Of the mean loss over the batches, by torch's own Hessian, all of its elements."""
    traces: dict[str, float] = {}
    for weight in find_weights(module):

        def loss(value: torch.Tensor, name: str = weight.name) -> torch.Tensor:
            losses = [
                nn.functional.cross_entropy(
                    torch.func.functional_call(module, {name: value}, (inputs,)), labels
                )
                for inputs, labels in batches()
            ]
            return torch.stack(losses).mean()

        value = weight.parameter.detach()
        size = value.numel()
        hessian: Any = torch.autograd.functional.hessian(loss, value)
        traces[weight.name] = float(hessian.reshape(size, size).trace()) / size
    return traces


def test_all_vectors_of_signs_give_the_exact_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    weights = find_weights(module)
    sizes = [weight.parameter.numel() for weight in weights]
    signs = itertools.product((-1.0, 1.0), repeat=sum(sizes))
    vectors = (
        part.reshape(weight.parameter.shape)
        for row in itertools.cycle([torch.tensor(row, dtype=torch.float64) for row in signs])
        for part, weight in zip(row.split(sizes), weights, strict=True)
    )
    monkeypatch.setattr(sensitivity, "_signs", lambda *_: next(vectors))
    found = hessian_traces(weights, loss_with(module), batches(), probes=2 ** sum(sizes))
    for name, trace in exact_traces(module).items():
        assert found[name].mean == pytest.approx(trace, rel=1e-9)


def test_random_vectors_come_as_near_as_they_say() -> None:
    module = network()
    weights = find_weights(module)
    found = hessian_traces(weights, loss_with(module), batches(), probes=100, seed=3)
    for name, trace in exact_traces(module).items():
        assert 0 < found[name].error < 0.4 * abs(trace)
        assert abs(found[name].mean - trace) < 4 * found[name].error
    assert found == hessian_traces(weights, loss_with(module), batches(), probes=100, seed=3)
    assert found != hessian_traces(weights, loss_with(module), batches(), probes=100, seed=4)
    assert math.isnan(hessian_traces(weights, loss_with(module), batches()[:1], probes=1)["0.weight"].error)


def test_a_quadratic_is_known_exactly() -> None:
    # L = sum of c w^2 / 2: the Hessian is diagonal, so that every vector of signs gives the trace.
    module = nn.Linear(4, 3, bias=False)
    scale = torch.arange(12.0).reshape(3, 4)
    found = hessian_traces(
        find_weights(module), lambda _: (scale * module.weight.square()).sum() / 2, [None], probes=2
    )
    assert found["weight"].mean == pytest.approx(5.5)
    assert found["weight"].error == pytest.approx(0.0, abs=1e-6)
    module.weight.data.zero_()
    loss_of = second_order_loss({"weight": Trace(5.5, 0.0)})
    assert loss_of(find_weights(module)[0], torch.full((3, 4), 0.5)) == 5.5 * 12 * 0.25 / 2
    assert second_order_loss({"weight": Trace(-1.0, 0.0)})(find_weights(module)[0], torch.ones(3, 4)) == 6.0


def test_what_the_loss_does_not_depend_on_has_no_trace() -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 2), "linear": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    weights = find_weights(module)
    weights[2].parameter.requires_grad_(False)

    def loss(_: object) -> torch.Tensor:
        return module["used"].weight.pow(4).sum() + module["linear"].weight.sum()  # type: ignore[operator]

    found = hessian_traces(weights, loss, [None])
    assert found["used.weight"].mean > 0
    assert found["linear.weight"].mean == found["unused.weight"].mean == 0
    assert not weights[2].parameter.requires_grad
    with pytest.raises(UsageError, match="depends on none"):
        hessian_traces(weights, lambda _: torch.tensor(1.0), [None])
    with pytest.raises(UsageError, match="no batches"):
        hessian_traces(weights, loss, [])
    with pytest.raises(UsageError, match="0 probes"):
        hessian_traces(weights, loss, [None], probes=0)


def test_attention_and_recurrent_layers_have_second_derivatives() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"rnn": nn.GRU(4, 4, batch_first=True), "attention": nn.MultiheadAttention(4, 2)})
    inputs = torch.randn(2, 3, 4)

    def loss(_: object) -> torch.Tensor:
        states = module["rnn"](inputs)[0]
        outputs: torch.Tensor = module["attention"](states, states, states, need_weights=False)[0]
        return outputs.square().mean()

    found = hessian_traces(find_weights(module), loss, [None], probes=2)
    assert len(found) == 4
    assert all(math.isfinite(trace.mean) and trace.mean != 0 for trace in found.values())


def affine(bits: int) -> Option:
    return Option(str(bits), bits, lambda array: quantize_affine(array, bits=bits))


def test_each_weight_is_measured_alone() -> None:
    module = network(2).float()
    inputs = torch.randn(64, 2)
    with torch.no_grad():
        dense = module(inputs)

    def evaluate() -> float:
        assert not torch.is_grad_enabled()
        return 1 - float((module(inputs) - dense).square().mean())

    weights = find_weights(module)
    before = [weight.parameter.detach().clone() for weight in weights]
    options = {weight.name: (affine(2), affine(8)) for weight in weights}
    found = choices(weights, options, measured_loss(evaluate))
    for weight, value in zip(weights, before, strict=True):
        assert torch.equal(weight.parameter, value)
        for choice, bits in zip(found[weight.name], (2, 8), strict=True):
            tensor = quantize_affine(value.numpy(), bits=bits)
            levels = tensor.codes.astype(np.float32) - np.float32(1 << bits - 1)
            values = torch.from_numpy(tensor.scales * levels.reshape(value.shape))
            with torch.no_grad():
                outputs = torch.func.functional_call(module, {weight.name: values}, (inputs,))
            assert choice.loss == pytest.approx(float((outputs - dense).square().mean()), rel=1e-4, abs=1e-7)
            assert choice.bits == bits
        assert found[weight.name][0].loss > found[weight.name][1].loss


def test_weights_are_put_back_and_shared_ones_refused() -> None:
    module = network().float()
    weights = find_weights(module)
    values = [weight.parameter.detach().clone() for weight in weights]
    calls = 0

    def evaluate() -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError
        return 0.0

    options = {weight.name: (affine(2),) for weight in weights}
    with pytest.raises(KeyError):
        choices(weights, options, measured_loss(evaluate))
    assert all(torch.equal(weight.parameter, value) for weight, value in zip(weights, values, strict=True))
    prune(weights[:1], 0.5)
    share(weights[1:], 2)
    with pytest.raises(UsageError, match="under SharedWeights"):
        choices(weights, options, measured_loss(lambda: 0.0))
    weights[0].parameter.data.fill_(torch.nan)
    with pytest.raises(EncodingError, match="not finite"):
        choices(weights, options, measured_loss(lambda: 0.0))

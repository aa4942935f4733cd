"""Shared weights against the paper's equations, a direct implementation and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.compression.test_training_masks import network
from torch import nn

from dcz.compression.clustering import Init, density_init, forgy_init, linear_init
from dcz.compression.training.masks import array_of, density_of, prune
from dcz.compression.training.weight_sharing import SharedWeights, choose_bits, share
from dcz.compression.training.weights import Weight, find_weights, remove_parametrizations
from dcz.errors import EncodingError, UsageError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def shared(weight: Weight) -> SharedWeights:
    found = weight.parametrization
    assert isinstance(found, SharedWeights)
    return found


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_gradients_are_summed_by_cluster(density: float) -> None:
    """Equation 3, element by element."""
    torch.manual_seed(0)
    module = nn.Linear(12, 9, dtype=torch.float64)
    (weight,) = find_weights(module)
    if density < 1:
        prune([weight], density)
    share([weight], 3)
    x = torch.randn(5, 12, dtype=torch.float64)
    dense = weight.value().clone().requires_grad_()
    torch.autograd.backward(nn.functional.linear(x, dense, module.bias).square().sum())
    torch.autograd.backward(module(x).square().sum())
    assert dense.grad is not None
    assert weight.parameter.grad is not None
    expected = [0.0] * weight.parameter.numel()
    codes = shared(weight).codes
    for i, j in itertools.product(range(9), range(12)):
        if codes[i, j]:
            expected[int(codes[i, j]) - 1] += float(dense.grad[i, j])
    assert weight.parameter.grad.tolist() == pytest.approx(expected)
    assert all(gradient != 0 for gradient in expected)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 6, (7, 5), dtype=torch.int16)
    centroids = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SharedWeights(codes), (centroids,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_large_clusters_are_not_lost(dtype: torch.dtype) -> None:
    codes = torch.ones(300, 300, dtype=torch.int16)
    centroids = torch.ones(1, dtype=dtype, requires_grad=True)
    torch.autograd.backward((SharedWeights(codes)(centroids) * 0.5).sum())
    assert centroids.grad is not None
    assert float(centroids.grad) == pytest.approx(45000, rel=0.01)  # adding one by one, bf16 stops at 128


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [1.0, 0.2])
def test_every_weight_has_its_nearest_centroid(dtype: torch.dtype, density: float) -> None:
    torch.manual_seed(0)
    module = nn.Linear(40, 30).to(dtype)
    (weight,) = find_weights(module)
    if density < 1:
        prune([weight], density)
    before = array_of(weight.value().double())
    assert share([weight], 4) == {"weight": 16}
    centroids = array_of(weight.parameter.detach().double())
    after = array_of(weight.value().double())
    kept = before != 0
    assert weight.parameter.dtype == weight.value().dtype == dtype
    assert np.array_equal(after != 0, kept)
    nearest = np.abs(before[kept][:, None] - centroids).min(axis=1)
    assert np.array_equal(np.abs(before[kept] - after[kept]), nearest)
    assert 0 not in centroids


def lloyd(values: np.ndarray[Any, Any], centroids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    for _ in range(300):
        nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
        moved = np.array([values[nearest == k].mean() for k in range(centroids.size) if (nearest == k).any()])
        if moved.shape == centroids.shape and np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


@pytest.mark.parametrize("init", ["linear", "density", "forgy"])
def test_the_papers_initializations(init: Init) -> None:
    torch.manual_seed(0)
    module = nn.Linear(30, 20, dtype=torch.float64)
    (weight,) = find_weights(module)
    prune([weight], 0.4)
    values = array_of(weight.value())
    values = values[values != 0]
    start = {
        "linear": linear_init(values, 8),
        "density": density_init(values, 8),
        "forgy": forgy_init(values, 8, 3),
    }
    share([weight], 3, method="lloyd", init=init, seed=3)
    np.testing.assert_allclose(array_of(weight.parameter), lloyd(values, start[init]), rtol=1e-9)


def test_training_moves_centroids_and_nothing_else() -> None:
    module = network()
    weights = find_weights(module)
    prune(weights, 0.5)
    share(weights, {"0.weight": 3, "2.weight": 2})
    before = [(weight.value().clone(), weight.parameter.detach().clone()) for weight in weights[:2]]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        torch.autograd.backward(module(torch.randn(8, 20)).square().sum())
        optimizer.step()
    for weight, (value, centroids) in zip(weights, before, strict=False):
        assert (weight.parameter != centroids).all()
        table = dict(zip(centroids.tolist(), weight.parameter.tolist(), strict=True))
        expected = [table.get(old, 0.0) for old in value.flatten().tolist()]
        assert weight.value().flatten().tolist() == expected
        assert density_of(weight) == 0.5
    values = [weight.value().clone() for weight in weights]
    remove_parametrizations(module)
    for weight, value in zip(weights, values, strict=True):
        assert torch.equal(weight.parameter, value)


def test_tied_weights_sum_over_all_owners() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4, dtype=torch.float64)
            self.head = nn.Linear(4, 10, bias=False, dtype=torch.float64)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.embed(x))
            return found

    module = Tied()
    (weight,) = find_weights(module)
    share([weight], 2)
    x = torch.arange(10)
    dense = weight.value().clone().requires_grad_()
    torch.autograd.backward(nn.functional.linear(dense[x], dense).square().sum())
    torch.autograd.backward(module(x).square().sum())
    assert dense.grad is not None
    assert weight.parameter.grad is not None
    codes = shared(weight).codes.long() - 1
    expected = torch.zeros(4, dtype=torch.float64).index_add(0, codes.flatten(), dense.grad.flatten())
    torch.testing.assert_close(weight.parameter.grad, expected)


def test_one_value_and_none() -> None:
    module = nn.Linear(4, 4)
    (weight,) = find_weights(module)
    module.weight.data.fill_(0.25)
    assert share([weight], 8) == {"weight": 1}
    remove_parametrizations(module)
    module.weight.data.zero_()
    prune([weight], 0.5)
    share([weight], 2)
    assert not weight.value().any()


def test_wrong_bits_and_weights_are_named() -> None:
    module = network()
    with pytest.raises(EncodingError, match=r"0\.weight: 9 bits"):
        share(find_weights(module), 9)
    next(iter(module.parameters())).data[0, 0] = torch.nan
    with pytest.raises(EncodingError, match=r"0\.weight: .*NaN"):
        share(find_weights(module), 2)


# Bits by description length


def entropy(codes: np.ndarray[Any, Any]) -> float:
    _, counts = np.unique(codes, return_counts=True)
    parts = counts / counts.sum()
    return float(-(parts * np.log2(parts)).sum())


def price(module: nn.Module, bits: dict[str, int]) -> tuple[float, float]:
    """Bytes and error of a choice, by making it."""
    weights = find_weights(module)
    before = {weight.name: array_of(weight.value().double()).copy() for weight in weights}
    share(weights, bits)
    length = error = 0.0
    for weight in weights:
        old, new = before[weight.name], array_of(weight.value().double())
        codes = shared(weight).codes.numpy()
        length += codes.size * entropy(codes > 0) + (codes > 0).sum() * entropy(codes[codes > 0])
        length += 32 * weight.parameter.numel()
        error += float(((old - new) ** 2).sum() / (old**2).sum())
    return length / 8, error


@pytest.mark.parametrize("budget", [150, 250, 400, 700])
def test_the_choice_of_bits_is_on_the_convex_hull(budget: int) -> None:
    def pruned() -> nn.Sequential:
        module = network()
        prune(find_weights(module), {"0.weight": 0.3, "2.weight": 0.5})
        return module

    names = [weight.name for weight in find_weights(network())]
    prices = {
        choice: price(pruned(), dict(zip(names, choice, strict=True)))
        for choice in itertools.product(range(1, 7), repeat=3)
    }
    chosen = choose_bits(find_weights(pruned()), budget)
    length, error = prices[tuple(min(6, chosen[name]) for name in names)]
    assert length <= budget
    # No better one among those that lie on or below each line through neighbours of the hull.
    better = [
        (other, lost) for other, lost in prices.values() if other <= length + 1e-6 and lost < error - 1e-9
    ]
    assert not better


def test_a_budget_that_nothing_keeps() -> None:
    with pytest.raises(UsageError, match="the smallest takes"):
        choose_bits(find_weights(network()), 10)

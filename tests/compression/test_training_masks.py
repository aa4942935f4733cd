"""Masks hold whatever an optimizer does; patterns and densities are as defined."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers.pytorch_utils import Conv1D

from dcz.compression.patterns import Block, Channel, NofM, Pattern, Unstructured
from dcz.compression.training.masks import (
    Scale,
    array_of,
    density_of,
    global_densities,
    mask_of,
    prune,
    std_densities,
)
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.errors import EncodingError, UsageError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def layer(module: nn.Sequential, number: int) -> nn.Linear:
    found = module[number]
    assert isinstance(found, nn.Linear)
    return found


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        module(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda module: torch.optim.SGD(
        module.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
    "adamw": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1),
    "adagrad": lambda module: torch.optim.Adagrad(module.parameters(), lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_and_what_is_kept_trains_as_if_pruned_weights_were_not_there(name: str) -> None:
    module = network()
    optimizer = OPTIMIZERS[name](module)
    train(module, optimizer)  # so that there is momentum when the masks come
    weights = find_weights(module)
    prune(weights, 0.7)
    masks = [mask_of(weight) for weight in weights]
    before = [weight.value().clone() for weight in weights]
    train(module, optimizer)
    for weight, mask, old in zip(weights, masks, before, strict=True):
        assert mask is not None
        assert not weight.value()[~mask].any()
        assert not torch.signbit(weight.value()[~mask]).any()
        assert (weight.value() != old)[mask].all()
        assert weight.parameter.grad is not None
        assert not weight.parameter.grad[~mask].any()
    remove_parametrizations(module)
    for weight, mask in zip(weights, masks, strict=True):
        assert mask is not None
        assert not weight.parameter[~mask].any()


def test_training_is_that_of_torchs_own_pruning() -> None:
    ours, theirs = network(), network()
    prune(find_weights(ours), 0.25)
    for number in (0, 2, 4):
        torch_prune.l1_unstructured(theirs[number], "weight", 0.75)
    for module in (ours, theirs):
        train(module, torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9))
    kept = dict(theirs.named_parameters())
    masks = dict(theirs.named_buffers())
    for weight in find_weights(ours):
        torch.testing.assert_close(
            weight.value(),
            (kept[f"{weight.name}_orig"] * masks[f"{weight.name}_mask"]).detach(),
            rtol=0,
            atol=0,
        )


def test_what_is_pruned_stays_pruned() -> None:
    module = network()
    weights = find_weights(module)
    prune(weights, 0.5)
    first = [mask_of(weight) for weight in weights]
    train(module, OPTIMIZERS["momentum"](module))
    before = [mask.clone() for mask in first if mask is not None]
    parametrizations = [weight.parametrization for weight in weights]
    prune(weights, 0.2)
    assert [weight.parametrization for weight in weights] == parametrizations
    for weight, mask in zip(weights, before, strict=True):
        now = mask_of(weight)
        assert now is not None
        assert not (now & ~mask).any()
        assert density_of(weight) == pytest.approx(0.2, abs=0.5 / now.numel())
    prune(weights, 1.0)
    assert all(density_of(weight) < 0.25 for weight in weights)


def test_infinite_weights_are_named() -> None:
    module = network()
    layer(module, 2).weight.data[0, 1] = torch.inf
    with pytest.raises(EncodingError, match=r"^2\.weight: 1 of 128 weights are not finite"):
        prune(find_weights(module), 0.5)
    with pytest.raises(EncodingError, match=r"a density of 1\.5"):
        prune(find_weights(module), 1.5)


def test_densities_by_name() -> None:
    module = network()
    reached = prune(find_weights(module), {"0.weight": 0.5, "4.weight": 0.25})
    assert reached == {"0.weight": 0.5, "4.weight": 0.25}
    assert [mask_of(weight) is None for weight in find_weights(module)] == [False, True, False]


def test_bf16_and_frozen_weights() -> None:
    module = nn.Linear(32, 32).to(torch.bfloat16).requires_grad_(False)
    (weight,) = find_weights(module)
    prune([weight], 0.1)
    assert module.weight.dtype == torch.bfloat16
    assert int(torch.count_nonzero(module.weight)) == 102
    assert not weight.parameter.requires_grad
    assert np.array_equal(
        array_of(weight.value()).view(np.uint16),
        module.weight.detach().view(torch.int16).numpy().view(np.uint16),
    )


def test_weights_can_be_assigned_while_they_are_pruned() -> None:
    module = nn.Linear(4, 4)
    (weight,) = find_weights(module)
    prune([weight], 0.5)
    mask = mask_of(weight)
    module.weight = torch.ones(4, 4)
    assert mask is not None
    assert torch.equal(module.weight, mask.float())


# Patterns


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 11),
    m=st.integers(1, 5),
    n=st.integers(1, 5),
    axis=st.integers(0, 1),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_n_of_m_neighbours_are_kept(
    rows: int, columns: int, m: int, n: int, axis: int, density: float, seed: int
) -> None:
    n = min(n, m)
    weights = (
        np.random.default_rng(seed).permutation(rows * columns).astype(np.float32).reshape(rows, columns)
    )
    pattern = NofM(n, m, axis)
    mask = pattern.mask(pattern.keep(pattern.scores(weights + 1), density), weights.shape)
    count = max(n, int(np.ceil(density * m - 1e-9)))
    lines = zip(weights, mask, strict=True) if axis == 1 else zip(weights.T, mask.T, strict=True)
    for line, kept in lines:
        for start in range(0, line.size, m):
            group = line[start : start + m]
            largest = set(np.argsort(-group)[: min(count, group.size)])
            assert set(np.flatnonzero(kept[start : start + m])) == largest


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4)),
    axis=st.integers(0, 2),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_channels_are_kept_by_their_norm(
    shape: tuple[int, int, int], axis: int, density: float, seed: int
) -> None:
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    pattern = Channel(axis)
    mask = pattern.mask(pattern.keep(pattern.scores(weights), density), shape)
    norms = np.linalg.norm(np.moveaxis(weights, axis, 0).reshape(shape[axis], -1).astype(np.float64), axis=1)
    kept = np.argsort(-norms)[: max(1, round(density * norms.size))]
    expected = np.isin(np.arange(shape[axis]), kept)
    assert np.array_equal(np.moveaxis(mask, axis, 0).reshape(shape[axis], -1).any(axis=1), expected)
    assert np.array_equal(np.moveaxis(mask, axis, 0).reshape(shape[axis], -1).all(axis=1), expected)


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_blocks_are_kept_by_their_norm(
    shape: tuple[int, int], block: tuple[int, int], density: float, seed: int
) -> None:
    weights = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    pattern = Block(*block)
    mask = pattern.mask(pattern.keep(pattern.scores(weights), density), shape)
    places = [
        (slice(r, r + block[0]), slice(c, c + block[1]))
        for r, c in itertools.product(range(0, shape[0], block[0]), range(0, shape[1], block[1]))
    ]
    norms = [float(np.sqrt(np.mean(weights[place].astype(np.float64) ** 2))) for place in places]
    kept = set(np.argsort(-np.array(norms))[: max(1, round(density * len(norms)))])
    for number, place in enumerate(places):
        assert mask[place].all() == mask[place].any() == (number in kept)


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4), Channel(), Channel(1), Block(2, 2)])
def test_patterns_hold_for_layers(pattern: Pattern) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(8))
    module(torch.randn(1, 3, 6, 6))
    reached = prune(find_weights(module), 0.5, pattern)
    assert all(density == pytest.approx(0.5, abs=0.2) for density in reached.values())


def test_axes_are_those_of_a_linear_layer() -> None:
    linear, transposed = nn.Linear(6, 4), Conv1D(4, 6)
    with torch.no_grad():
        transposed.weight.copy_(linear.weight.T)
    for pattern in (Channel(0), Channel(1), NofM(1, 2), Block(2, 1)):
        for module in (linear, transposed):
            remove_parametrizations(module)
            with torch.no_grad():
                transposed.weight.copy_(linear.weight.T)
            prune(find_weights(module), 0.5, pattern)
        assert torch.equal(linear.weight.T, transposed.weight)


def test_patterns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EncodingError, match="axis 2 of a tensor with 2 dimensions"):
        prune(find_weights(network()), 0.5, Channel(2))
    with pytest.raises(EncodingError, match="3 of 2"):
        NofM(3, 2)
    with pytest.raises(EncodingError, match="0 x 1"):
        Block(0, 1)


# Densities


def test_standard_deviations() -> None:
    module = network()
    weights = find_weights(module)
    found = std_densities(weights, {"0.weight": 1.0, "4.weight": 0.5})
    assert list(found) == ["0.weight", "4.weight"]
    for name, factor in (("0.weight", 1.0), ("4.weight", 0.5)):
        value = next(weight for weight in weights if weight.name == name).value().double()
        threshold = factor * value.std(correction=0)
        assert found[name] == float((value.abs() > threshold).double().mean())
        prune(weights, {name: found[name]})
        kept = dict(module.named_modules())[name.removesuffix(".weight")].weight != 0
        assert torch.equal(kept, value.abs() > threshold)
    # What is zero already does not count.
    assert std_densities(weights, 0.0)["0.weight"] == density_of(weights[0])


def by_ranking(weights: list[torch.Tensor], density: float, scale: Scale) -> list[float]:
    """One threshold for all, without a floor."""
    scores = []
    for weight in weights:
        squares = weight.double().square().flatten()
        if scale == "lamp":
            scores.append(torch.stack([s / squares[squares >= s].sum() for s in squares]))
        else:
            scores.append(squares / (squares.mean() if scale == "std" else 1))
    every = torch.cat(scores).sort(descending=True).values
    threshold = every[round(density * every.numel()) - 1]
    return [float((score >= threshold).double().mean()) for score in scores]


@pytest.mark.parametrize("scale", ["none", "std", "lamp"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_one_threshold_for_all(scale: Scale, density: float) -> None:
    module = network()
    with torch.no_grad():
        layer(module, 0).weight *= 1.2
    weights = find_weights(module)
    expected = by_ranking([weight.value() for weight in weights], density, scale)
    found = global_densities(weights, density, scale=scale)
    for weight, part in zip(weights, expected, strict=True):
        assert round(found[weight.name] * weight.parameter.numel()) == round(part * weight.parameter.numel())


def by_sorting(
    arrays: list[np.ndarray], density: float, floor: float, scale: str, pattern: Pattern
) -> list[float]:
    """The definition, with all units in their order: each weight's ranks, what is kept for sure, one order for all."""
    ranks: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for array in arrays:
        scores = np.abs(pattern.scores(array).astype(np.float64))
        ranked = scores.copy()
        largest = float(scores.max()) or 1.0
        squares = (scores / largest) ** 2
        if scale == "std":
            count = np.count_nonzero(scores)
            ranked = scores / largest / (np.sqrt(squares.sum() / count) if count else 1.0)
        if scale == "lamp":
            order = np.argsort(squares, kind="stable")
            sums = np.cumsum(squares[order][::-1])[::-1]
            ranked[order] = np.divide(squares[order], sums, out=np.zeros_like(squares), where=sums > 0)
        sure = min(scores.size, max(1, round(floor * scores.size)))
        ranked[np.argsort(-scores, kind="stable")[:sure]] = np.inf
        ranks.append(ranked)
        sizes.append(np.full(scores.size, array.size / scores.size))
    together, weighed = np.concatenate(ranks), np.concatenate(sizes)
    order = np.argsort(-together, kind="stable")
    taken = np.zeros(together.size, np.bool_)
    taken[order] = np.cumsum(weighed[order]) <= density * weighed.sum() + 1e-6
    taken |= np.isinf(together)
    parts = np.split(taken, np.cumsum([rank.size for rank in ranks])[:-1])
    return [float(np.count_nonzero(part)) / part.size for part in parts]


@given(
    seed=st.integers(0, 10_000),
    values=st.sampled_from(["normal", "few", "zeros", "tiny"]),
    density=st.floats(0, 1),
    floor=st.floats(0, 1),
    scale=st.sampled_from(["none", "std", "lamp"]),
    pattern=st.sampled_from([Unstructured(), Channel(), Block(3, 4), NofM(1, 3)]),
)
def test_densities_are_those_of_sorting_everything(
    seed: int, values: str, density: float, floor: float, scale: Scale, pattern: Pattern
) -> None:
    rng = np.random.default_rng(seed)
    module = network()
    for number in (0, 2, 4):
        weight = layer(module, number).weight
        shape = tuple(weight.shape)
        made: np.ndarray
        if values == "few":
            made = rng.integers(-3, 4, shape).astype(np.float64)
        elif values == "tiny":  # whose squares are equal, and zero
            made = 10.0 ** rng.integers(-38, 3, shape)
        else:
            made = rng.standard_normal(shape)
        if values == "zeros":
            made *= rng.random(shape) < rng.random()
        weight.data = torch.from_numpy(made.astype(np.float32))
    weights = find_weights(module)
    found = global_densities(weights, density, floor=floor, scale=scale, pattern=pattern)
    arrays = [weight.value().numpy() for weight in weights]
    assert list(found.values()) == by_sorting(arrays, density, floor, scale, pattern)


def test_no_layer_is_starved() -> None:
    module = network()
    with torch.no_grad():
        layer(module, 4).weight *= 1e-3
    weights = find_weights(module)
    assert global_densities(weights, 0.2)["4.weight"] == 1 / 32
    found = global_densities(weights, 0.3, floor=0.25)
    assert found["4.weight"] == 0.25
    total = sum(found[weight.name] * weight.parameter.numel() for weight in weights)
    assert total == int(0.3 * sum(weight.parameter.numel() for weight in weights))
    with pytest.raises(UsageError, match="a floor of 2"):
        global_densities(weights, 0.2, floor=2)
    with pytest.raises(UsageError, match="no scale"):
        global_densities(weights, 0.2, scale="max")  # type: ignore[arg-type]
    assert global_densities([], 0.2) == {}


def test_channels_count_by_their_weights() -> None:
    module = nn.Sequential(nn.Linear(100, 2, bias=False), nn.Linear(2, 10, bias=False))
    with torch.no_grad():
        layer(module, 0).weight.fill_(1)
        layer(module, 1).weight.fill_(0.5)
    found = global_densities(find_weights(module), 0.5, pattern=Channel())
    assert found == {
        "0.weight": 0.5,
        "1.weight": 0.1,
    }  # 102 of 220 weights: another channel would be too many

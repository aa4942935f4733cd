"""What a scan measures, and what is proposed from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.compression.test_training_masks import network
from torch import nn

from dcz.compression.training.masks import density_of, prune
from dcz.compression.training.schedules import scheduled
from dcz.compression.training.sensitivity import Sensitivity, scan
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights
from dcz.errors import EncodingError, UsageError


@pytest.mark.parametrize("pruned", [False, True])
def test_each_weight_is_pruned_alone(pruned: bool) -> None:
    module = network()
    weights = find_weights(module)
    if pruned:
        prune(weights, 0.9)
    before = [weight.parameter.detach().clone() for weight in weights]
    seen: list[list[float]] = []

    def evaluate() -> float:
        seen.append([density_of(weight) for weight in weights])
        kept = [float(weight.value().abs().sum()) for weight in weights]
        return math.fsum(kept)

    found = scan(weights, evaluate, [0.25, 0.5])
    dense = 0.9 if pruned else 1.0
    assert found.densities == (0.5, 0.25)
    assert seen[0] == pytest.approx([dense] * 3, abs=0.02)
    for number, densities in enumerate(seen[1:]):
        for other, density in enumerate(densities):
            assert density == pytest.approx(
                (0.5, 0.25)[number % 2] if other == number // 2 else dense, abs=0.02
            )
    for weight, value in zip(weights, before, strict=True):
        assert torch.equal(weight.parameter, value)
        # What is lost is the least of the magnitudes.
        ordered = value.abs().flatten().sort().values
        for density, quality in zip(found.densities, found.curves[weight.name], strict=True):
            lost = ordered[: round((1 - density) * ordered.numel())].sum()
            gone = ordered[: round((1 - dense) * ordered.numel())].sum()
            assert found.quality - quality == pytest.approx(float(lost - gone), rel=1e-3)


def test_weights_are_put_back_whatever_happens() -> None:
    module = network()
    weights = find_weights(module)
    before = [weight.parameter.detach().clone() for weight in weights]
    calls = 0

    def evaluate() -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError
        return 0.0

    with pytest.raises(KeyError):
        scan(weights, evaluate, [0.5, 0.1])
    for weight, value in zip(weights, before, strict=True):
        assert torch.equal(weight.parameter, value)


def test_what_cannot_be_scanned() -> None:
    module = network()
    weights = find_weights(module)
    for densities in ([], [0.0], [1.0], [float("nan")]):
        with pytest.raises(UsageError, match="above 0 and below 1"):
            scan(weights, lambda: 0.0, densities)
    share(weights[:1], 2)
    with pytest.raises(UsageError, match=r"0\.weight cannot be scanned: it is under SharedWeights"):
        scan(weights, lambda: 0.0)
    broken = nn.Linear(2, 2)
    broken.weight.data.fill_(torch.nan)
    with pytest.raises(EncodingError, match="not finite"):
        scan(find_weights(broken), lambda: 0.0)
    with pytest.raises(UsageError, match=r"evaluate\(\) says nan of the model as it is"):
        scan(find_weights(network()), lambda: math.nan)


def test_within_a_loss() -> None:
    found = Sensitivity(
        10.0,
        (0.5, 0.2, 0.1),
        {"a": (9.0, 9.5, 6.0), "b": (10.0, 10.5, 10.0), "c": (float("nan"), 10.0, 10.0)},
        {"a": 100, "b": 100, "c": 100},
    )
    assert found.within(0) == {"a": 1.0, "b": 0.1, "c": 1.0}
    assert found.within(0.5)["a"] == pytest.approx(0.75)  # halfway to the loss at 0.5
    assert found.within(1)["a"] == 0.2  # a gain of quality on the way down is luck
    assert found.within(2.5)["a"] == pytest.approx(0.15)
    assert found.within(100) == {"a": 0.1, "b": 0.1, "c": 1.0}
    with pytest.raises(UsageError, match="a loss of -1"):
        found.within(-1)


@given(
    curves=st.lists(st.lists(st.integers(0, 10), min_size=3, max_size=3), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 1000), min_size=4, max_size=4),
    density=st.floats(0.01, 1),
)
def test_proposals_have_the_density_and_equal_loss(
    curves: list[list[int]], sizes: list[int], density: float
) -> None:
    names = [str(number) for number in range(len(curves))]
    found = Sensitivity(
        10.0,
        (0.5, 0.25, 0.125),
        {name: tuple(map(float, curve)) for name, curve in zip(names, curves, strict=True)},
        dict(zip(names, sizes, strict=False)),
    )
    proposed = found.propose(density)
    total = sum(found.sizes.values())
    assert sum(proposed[name] * found.sizes[name] for name in names) == pytest.approx(density * total)
    assert all(0 < part <= 1 for part in proposed.values())
    assume(all(part >= 0.125 for part in proposed.values()))
    # There is a loss that all layers have in common: each has no density that loses less than the others' losses.
    losses = np.linspace(0, 10, 2001)
    allowed = [found.within(float(loss)) for loss in losses]
    slack = 2e-3
    bounds = [all(part <= proposed[name] + slack for name, part in parts.items()) for parts in allowed]
    first = bounds.index(True)
    if first:
        assert all(part >= proposed[name] - slack for name, part in allowed[first - 1].items())


def test_proposals_below_what_was_scanned() -> None:
    found = Sensitivity(1.0, (0.5,), {"a": (1.0,), "b": (0.0,)}, {"a": 100, "b": 300})
    assert found.propose(0.25) == {"a": 0.25, "b": 0.25}
    assert found.propose(1.0) == {"a": 1.0, "b": 1.0}
    with pytest.raises(UsageError, match="a density of 0"):
        found.propose(0)


def test_schedules() -> None:
    # Equation 1 of Zhu and Gupta, in sparsities as there.
    for step in range(1, 6):
        sparsity = 0.9 + (0.1 - 0.9) * (1 - step / 5) ** 3
        assert scheduled("cubic", 0.9, 0.1, step, 5) == pytest.approx(1 - sparsity)
    left = 1.0
    for step in range(1, 5):
        left *= 0.01 ** (1 / 4)
        assert scheduled("geometric", 1.0, 0.01, step, 4) == pytest.approx(left)
        assert scheduled("linear", 1.0, 0.2, step, 4) == pytest.approx(1 - 0.2 * step)
    for schedule in ("cubic", "geometric", "linear"):
        assert scheduled(schedule, 1.0, 0.3, 7, 7) == 0.3
    with pytest.raises(UsageError, match="step 3 of 2"):
        scheduled("linear", 1.0, 0.1, 3, 2)

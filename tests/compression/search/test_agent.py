"""The agent's pieces against formulas, and what it finds against what is best."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import nn

from dcz.compression.search.agent import Settings, layer_features, search
from dcz.compression.search.costs import Choice, total
from dcz.compression.search.ddpg import DDPG, Transition, truncated_normal
from dcz.compression.search.integer_programme import least_loss
from dcz.compression.training.weights import find_weights
from dcz.errors import UsageError

SMALL = Settings(episodes=150, warmup=20, hidden=(64, 48), actor_rate=1e-3)


def transitions(count: int = 6) -> list[Transition]:
    torch.manual_seed(3)
    return [
        Transition(torch.randn(2), 0.1 * n, float(n), torch.randn(2), last=n % 3 == 2) for n in range(count)
    ]


@pytest.mark.parametrize("mean", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_noise_is_a_truncated_normal(mean: float, sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [truncated_normal(mean, sigma, generator) for _ in range(1000)]
    law = truncnorm(-mean / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert kstest(drawn, law.cdf).pvalue > 1e-3
    assert 0 <= min(drawn) <= max(drawn) <= 1
    assert truncated_normal(0.3, 1e-9, generator) == pytest.approx(0.3)
    assert truncated_normal(1.0, 1e-300, generator) == 1.0


def test_what_the_critic_is_to_say() -> None:
    agent = DDPG(2, Settings(hidden=(5, 4), discount=0.5))
    with torch.no_grad():
        for value in agent.critic_target.parameters():
            value.add_(0.3)
    batch = transitions()
    found = agent.targets(batch)
    assert agent.baseline == 2.5
    for row, step in zip(found, batch, strict=True):
        with torch.no_grad():
            action = agent.actor_target(step.next_state[None])
            later = float(agent.critic_target(step.next_state[None], action))
        assert float(row) == pytest.approx(step.reward - 2.5 + (0 if step.last else 0.5 * later), abs=1e-6)
    agent.targets(batch[:2])
    assert agent.baseline == 2.5 + 0.5 * (0.5 - 2.5)


def test_one_step_of_learning_is_that_of_the_formulas() -> None:
    agent = DDPG(2, Settings(hidden=(5, 4), batch=1, tau=0.25))
    agent.replay.extend(transitions(1))
    step = agent.replay[0]
    before = copy.deepcopy((agent.actor, agent.critic, agent.actor_target, agent.critic_target))
    wanted = DDPG.targets(copy.deepcopy(agent), [step])
    agent.learn()
    state, action = step.state[None], torch.tensor([[step.action]])

    def gradients(network: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(network.parameters())))

    def moved(old: nn.Module, new: nn.Module) -> list[torch.Tensor]:
        pairs = zip(old.parameters(), new.parameters(), strict=True)
        return [(b - a).detach() for a, b in pairs]

    by_critic = gradients(before[1], (before[1](state, action) - wanted).square().mean())
    # The actor goes up where the critic that has just learned says.
    by_actor = gradients(before[0], -agent.critic(state, before[0](state)).mean())
    for rate, old, new, slopes in (
        (1e-3, before[1], agent.critic, by_critic),
        (1e-4, before[0], agent.actor, by_actor),
    ):
        for change, slope in zip(moved(old, new), slopes, strict=True):
            # Adam's first step: the rate, against the sign of the gradient.
            expected = -rate * slope / (slope.abs() + 1e-8)
            torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-7)
    for slow, old, network in (
        (agent.actor_target, before[2], agent.actor),
        (agent.critic_target, before[3], agent.critic),
    ):
        for value, start, goal in zip(slow.parameters(), old.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(value, 0.75 * start + 0.25 * goal)


def table(sizes: Sequence[int], sensitivity: Sequence[float], bits: Sequence[int]) -> dict[str, list[Choice]]:
    return {
        str(number): [Choice(str(b), b, size * b // 8, weight * 4.0**-b, size * b * 1e-9) for b in bits]
        for number, (size, weight) in enumerate(zip(sizes, sensitivity, strict=True))
    }


def numbered(costs: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {name: (float(name), 7 * float(name) % 5) for name in costs}


def test_it_learns_what_each_weight_wants() -> None:
    goals = (1, 6, 3, 7, 2)
    costs = {
        str(number): [Choice(str(b), b, b, float((b - goal) ** 2)) for b in range(1, 9)]
        for number, goal in enumerate(goals)
    }
    found = search(costs, numbered(costs), lambda chosen: -total(chosen).loss, settings=SMALL)
    first, last = (
        np.mean([-episode.quality for episode in part])
        for part in (found.episodes[:20], found.episodes[-20:])
    )
    assert last < first / 4
    assert -found.best.quality <= 2
    few = replace(SMALL, episodes=30)
    again = search(costs, numbered(costs), lambda chosen: -total(chosen).loss, settings=few)
    assert again.episodes == found.episodes[:30]


@pytest.mark.parametrize("budget", ["size", "seconds"])
def test_it_comes_near_the_integer_programme(budget: str) -> None:
    costs = table((4000, 12_000, 1600, 8000), (2.0, 0.3, 9.0, 0.05), (2, 3, 4, 6, 8))
    middle = total({name: row[2] for name, row in costs.items()})
    asked: dict[str, Any] = {"size": middle.bytes} if budget == "size" else {"seconds": middle.seconds}
    best = total(least_loss(costs, **asked))
    tried: list[Mapping[str, Choice]] = []

    def quality(chosen: Mapping[str, Choice]) -> float:
        tried.append(chosen)
        return -total(chosen).loss

    found = search(costs, numbered(costs), quality, settings=SMALL, **asked)
    assert best.loss <= total(found.best.choices).loss < 1.05 * best.loss < 0.8 * middle.loss
    # No network is judged twice, and none that exceeds the budget.
    assert len(tried) == len({tuple(choice.name for choice in one.values()) for one in tried})
    for one in tried:
        assert total(one).bytes <= asked.get("size", math.inf)
        assert total(one).seconds <= asked.get("seconds", math.inf)


def test_budgets_are_enforced_from_the_last_weight_on() -> None:
    costs = table((8, 8, 8), (1.0, 1.0, 1.0), (1, 2, 4))
    always_large = Settings(episodes=1, warmup=0, hidden=(2, 2), sigma=1e-12)
    # Without a budget the actor says about 0.5 at first: the second of three choices.
    for size, wanted in ((100, [2, 2, 2]), (5, [2, 2, 1]), (4, [2, 1, 1]), (3, [1, 1, 1])):
        found = search(costs, numbered(costs), lambda _: 0.0, size=size, settings=always_large)
        assert [choice.bits for choice in found.best.choices.values()] == wanted
    with pytest.raises(UsageError, match="of 2 bytes is too small: the smallest choices take 3 bytes"):
        search(costs, numbered(costs), lambda _: 0.0, size=2)
    with pytest.raises(UsageError, match="the smallest choices take"):
        search(costs, numbered(costs), lambda _: 0.0, seconds=1e-9)


def test_a_step_down_never_takes_more() -> None:
    slower_below = [Choice("1", 1, 1, 3.0, 0.5), Choice("2", 2, 2, 2.0, 0.9), Choice("4", 4, 4, 1.0, 0.6)]
    settings = Settings(episodes=30, warmup=30)
    bits = {
        choice.bits
        for episode in search(
            {"a": slower_below}, {"a": (1.0,)}, lambda _: 0.0, seconds=1.0, settings=settings
        ).episodes
        for choice in episode.choices.values()
    }
    assert bits == {1, 4}


def test_qualities_that_are_no_numbers_are_bad() -> None:
    costs = table((8, 8), (1.0, 1.0), (1, 2, 4))

    def quality(chosen: Mapping[str, Choice]) -> float:
        return -math.inf if chosen["0"].bits == 4 else -total(chosen).loss

    found = search(costs, numbered(costs), quality, settings=Settings(episodes=40, warmup=10, hidden=(8, 8)))
    assert [choice.bits for choice in found.best.choices.values()] == [2, 4]


def test_what_the_agent_sees() -> None:
    module = nn.ModuleDict(
        {
            "deep": nn.Conv2d(4, 4, 3, stride=2, groups=4),
            "up": nn.ConvTranspose1d(6, 2, 5),
            "flat": nn.Linear(3, 7),
            "words": nn.Embedding(9, 3),
            "memory": nn.LSTMCell(3, 2),
        }
    )
    found: dict[str, tuple[Any, ...]] = dict(layer_features(find_weights(module)))
    assert found["deep.weight"] == (0, 4, 1, 9, 2, 36, True, True, False, False)
    assert found["up.weight"] == (1, 2, 6, 5, 1, 60, True, False, False, False)
    assert found["flat.weight"] == (2, 7, 3, 1, 0, 21, False, False, False, False)
    assert found["words.weight"][-2:] == (True, False)
    assert found["memory.weight_ih"][-2:] == (False, True)

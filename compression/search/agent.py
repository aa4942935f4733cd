"""Bits chosen by an agent that learns from what whole networks are worth: HAQ (Wang et al., "HAQ: Hardware-Aware Automated Quantization
with Mixed Precision", 2019).

An episode goes through the weights one after the other. For each the agent sees what kind of layer it belongs to and what it did
last, and gives a number from 0 to 1, which is rounded to one of the weight's choices. If the budget is exceeded at the end, weights get the
next smaller choice, one after the other from the last to the first, until it is kept. Then the network is judged, and every step is
rewarded with that. So, unlike the integer programme, it does not assume that losses add up; in return it needs hundreds of
judgements.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from dcz.compression.search.costs import Choice, Costs, total
from dcz.compression.search.ddpg import DDPG, Settings, Transition
from dcz.compression.training.weights import Weight
from dcz.errors import UsageError

__all__ = ["Episode", "Found", "Settings", "layer_features", "search"]

_MOST_REWARD: Final = 5.0


@dataclass(frozen=True)
class Episode:
    """What was chosen in an episode, after the budget was enforced, and its quality."""

    choices: Mapping[str, Choice]
    quality: float


@dataclass(frozen=True)
class Found:
    """``best``: the best of all episodes, the first of several. ``episodes``: all, in order."""

    best: Episode
    episodes: tuple[Episode, ...] = field(repr=False)


def search(
    costs: Costs,
    features: Mapping[str, Sequence[float]],
    quality: Callable[[Mapping[str, Choice]], float],
    *,
    size: int | None = None,
    seconds: float | None = None,
    settings: Settings | None = None,
) -> Found:
    """Let an agent choose for each weight, so that the quality is high and the budgets are kept.

    ``costs``: the choices of each weight. ``features``: what the agent sees of each weight (`layer_features`), of one length.
    ``quality(choices)``: of the network with these choices, higher is better; asked once for each choice of all. ``size`` and ``seconds``:
    as for dcz.compression.search.integer_programme.least_loss. Same arguments and seed: same result.

    Raises UsageError if the budgets cannot be kept by taking smaller choices.
    """
    settings = settings or Settings()
    ladders = {name: _ladder(row, size is not None, seconds is not None) for name, row in costs.items()}
    least = total({name: ladder[0] for name, ladder in ladders.items()})
    for budget, cost, unit in ((size, least.bytes, "bytes"), (seconds, least.seconds, "s")):
        if budget is not None and cost > budget:
            raise UsageError(
                f"the budget of {budget:g} {unit} is too small: the smallest choices take {cost:g} {unit}"
            )
    walk = _Walk(ladders, _normalized([features[name] for name in ladders]))
    agent = DDPG(walk.width, settings)
    known: dict[tuple[int, ...], float] = {}
    episodes: list[Episode] = []
    waiting: list[list[Transition]] = []
    reward: _Reward | None = None
    for number in range(settings.episodes):
        steps = walk.go(functools.partial(agent.explore, episode=number))
        places = walk.enforced([place for _, _, place in steps], size, seconds)
        chosen = walk.chosen(places)
        if tuple(places) not in known:
            judged = float(quality(chosen))
            known[tuple(places)] = -math.inf if math.isnan(judged) else judged
        episodes.append(Episode(chosen, known[tuple(places)]))
        waiting.append(_transitions(steps))
        if number + 1 < settings.warmup:
            continue
        if reward is None:
            reward = _Reward([episode.quality for episode in episodes])
        for episode, transitions in zip(episodes[-len(waiting) :], waiting, strict=True):
            agent.replay.extend(replace(step, reward=reward(episode.quality)) for step in transitions)
        waiting.clear()
        for _ in steps:
            agent.learn()
    best = max(episodes, key=lambda episode: episode.quality)
    return Found(best, tuple(episodes))


class _Reward:
    """Quality in units of what it differs by at random, so that the rates of learning fit whatever it is measured in. What is far
    worse than most is only called bad."""

    def __init__(self, qualities: Sequence[float]) -> None:
        finite = [quality for quality in qualities if math.isfinite(quality)] or [0.0]
        self._middle = statistics.median(finite)
        self._unit = statistics.median(abs(quality - self._middle) for quality in finite)

    def __call__(self, quality: float) -> float:
        if not math.isfinite(quality):
            return -_MOST_REWARD
        scaled = (quality - self._middle) / self._unit if self._unit > 0 else quality - self._middle
        return min(_MOST_REWARD, max(-_MOST_REWARD, scaled))


class _Walk:
    """One episode after the other through the weights."""

    def __init__(self, ladders: Mapping[str, Sequence[Choice]], features: Sequence[Sequence[float]]) -> None:
        self._ladders = ladders
        self._features = features
        self.width = len(features[0]) + 1

    def go(self, act: Callable[[torch.Tensor], float]) -> list[tuple[torch.Tensor, float, int]]:
        """State, action and place on the ladder of each weight. The first one sees an action of 1 before it."""
        steps: list[tuple[torch.Tensor, float, int]] = []
        before = 1.0
        for ladder, row in zip(self._ladders.values(), self._features, strict=True):
            state = torch.tensor([*row, before], dtype=torch.float32)
            action = act(state)
            # Equal parts of 0 to 1 for all choices.
            place = min(len(ladder) - 1, int(action * len(ladder)))
            steps.append((state, action, place))
            before = (place + 1) / len(ladder)
        return steps

    def enforced(self, places: Sequence[int], size: int | None, seconds: float | None) -> list[int]:
        """The same places, or smaller ones, one weight after the other, until the budgets are kept."""
        found = list(places)
        ladders = list(self._ladders.values())
        while self._is_over(found, size, seconds):
            over = total(self.chosen(found))
            bytes_left, seconds_left = over.bytes, over.seconds
            for number in reversed(range(len(found))):
                place = found[number]
                if place == 0:
                    continue
                above, below = ladders[number][place], ladders[number][place - 1]
                found[number] -= 1
                bytes_left += below.bytes - above.bytes
                seconds_left += below.seconds - above.seconds
                if (size is None or bytes_left <= size) and (seconds is None or seconds_left <= seconds):
                    break
        return found

    def _is_over(self, places: Sequence[int], size: int | None, seconds: float | None) -> bool:
        both = total(self.chosen(places))
        return (size is not None and both.bytes > size) or (seconds is not None and both.seconds > seconds)

    def chosen(self, places: Sequence[int]) -> dict[str, Choice]:
        return {
            name: ladder[place] for (name, ladder), place in zip(self._ladders.items(), places, strict=True)
        }


def _ladder(row: Sequence[Choice], by_size: bool, by_seconds: bool) -> list[Choice]:
    """The choices in ascending order of bits, without those from which a step down would make a budgeted cost larger."""
    kept: list[Choice] = []
    for choice in sorted(row, key=lambda choice: (choice.bits, choice.bytes), reverse=True):
        below = kept[-1] if kept else choice
        if (not by_size or choice.bytes <= below.bytes) and (
            not by_seconds or choice.seconds <= below.seconds
        ):
            kept.append(choice)
    return kept[::-1]


def _transitions(steps: Sequence[tuple[torch.Tensor, float, int]]) -> list[Transition]:
    states = [state for state, _, _ in steps]
    return [
        Transition(state, action, 0.0, following, number + 1 == len(steps))
        for number, ((state, action, _), following) in enumerate(
            zip(steps, [*states[1:], states[-1]], strict=True)
        )
    ]


def _normalized(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each feature from 0 to 1 over all weights."""
    columns = list(zip(*rows, strict=True))
    spans = [(min(column), max(column)) for column in columns]
    return [
        [
            (value - low) / (high - low) if high > low else 0.0
            for value, (low, high) in zip(row, spans, strict=True)
        ]
        for row in rows
    ]


def layer_features(weights: Sequence[Weight]) -> dict[str, tuple[float, ...]]:
    """What the agent sees of each weight: its number, outputs, inputs, kernel, stride, elements, and whether it is of a convolution, of
    one by depth, of an embedding, of a recurrent layer."""
    found: dict[str, tuple[float, ...]] = {}
    for number, weight in enumerate(weights):
        shape = tuple(weight.parameter.shape)
        outputs, inputs = (shape[1], shape[0]) if weight.transposed else shape[:2]
        owner = weight.owners[0][0]
        stride = getattr(owner, "stride", 0)
        groups = getattr(owner, "groups", 1)
        found[weight.name] = (
            number,
            outputs,
            inputs,
            math.prod(shape[2:]),
            stride[0] if isinstance(stride, tuple) else stride,
            weight.parameter.numel(),
            weight.kind == "conv",
            weight.kind == "conv" and groups > 1 and groups == getattr(owner, "in_channels", 0),
            weight.kind == "embedding",
            weight.kind == "recurrent",
        )
    return found

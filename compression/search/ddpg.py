"""Deep deterministic policy gradient (Lillicrap et al., 2016), as HAQ uses it (Wang et al., 2019, section 3.4): one continuous action in
0 to 1, every step of an episode rewarded with what came of the whole episode, and a moving baseline.

    critic   minimizes  (R - B + discount Q'(s', mu'(s')) - Q(s, a))^2          no Q' behind the last step
    actor    maximizes  Q(s, mu(s))
    targets  theta' <- tau theta + (1 - tau) theta'
    noise    a ~ normal of mean mu(s) and deviation sigma, truncated to 0 to 1; sigma decays from episode to episode
"""

from __future__ import annotations

import copy
import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["DDPG", "Settings", "Transition", "truncated_normal"]


@dataclass(frozen=True)
class Settings:
    """The defaults are those of HAQ. ``warmup``: episodes of uniformly random actions, before anything is learned. ``replay``: transitions that are
    remembered. ``sigma``, ``decay``: of the noise, and its factor after each episode. ``smoothing``: how fast the baseline follows."""

    episodes: int = 600
    warmup: int = 20
    hidden: tuple[int, int] = (400, 300)
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    batch: int = 64
    replay: int = 2000
    discount: float = 1.0
    tau: float = 0.01
    sigma: float = 0.5
    decay: float = 0.99
    smoothing: float = 0.5
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Transition:
    """One step. ``state``, ``next_state``: f32 (features,). ``last``: whether the episode ended with it."""

    state: torch.Tensor
    action: float
    reward: float
    next_state: torch.Tensor
    last: bool


class Actor(nn.Module):
    """From states, (n, features), to actions, (n, 1), 0 to 1."""

    def __init__(self, features: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], 1),
            nn.Sigmoid(),
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        actions: torch.Tensor = self.layers(states)
        return actions


class Critic(nn.Module):
    """From states, (n, features), and actions, (n, 1), to values, (n, 1)."""

    def __init__(self, features: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features + 1, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], 1),
        )

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.layers(torch.cat([states, actions], 1))
        return values


class DDPG:
    """The agent. Everything random comes from the settings' seed."""

    def __init__(self, features: int, settings: Settings) -> None:
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.actor, self.critic = Actor(features, settings.hidden), Critic(features, settings.hidden)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_steps = torch.optim.Adam(self.actor.parameters(), settings.actor_rate)
        self._critic_steps = torch.optim.Adam(self.critic.parameters(), settings.critic_rate)
        self.replay: deque[Transition] = deque(maxlen=settings.replay)
        self.baseline: float | None = None
        self._generator = torch.Generator().manual_seed(settings.seed)

    def explore(self, state: torch.Tensor, episode: int) -> float:
        """An action for a state, (features,): random in the first episodes, then near what the actor says."""
        settings = self.settings
        if episode < settings.warmup:
            return float(torch.rand((), generator=self._generator, dtype=torch.float64))
        with torch.no_grad():
            mean = float(self.actor(state[None]))
        sigma = settings.sigma * settings.decay ** (episode - settings.warmup)
        return truncated_normal(mean, sigma, self._generator)

    def act(self, state: torch.Tensor) -> float:
        """What the actor says."""
        with torch.no_grad():
            return float(self.actor(state[None]))

    def learn(self) -> None:
        """One step of critic, actor and targets, on a batch of what is remembered."""
        settings = self.settings
        drawn = torch.randint(len(self.replay), (settings.batch,), generator=self._generator).tolist()
        batch = [self.replay[place] for place in drawn]
        states = torch.stack([step.state for step in batch])
        actions = torch.tensor([[step.action] for step in batch], dtype=torch.float32)
        values = self.targets(batch)
        self._critic_steps.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(self.critic(states, actions), values))
        self._critic_steps.step()
        self._actor_steps.zero_grad()
        torch.autograd.backward(-self.critic(states, self.actor(states)).mean())
        self._actor_steps.step()
        self.follow()

    def targets(self, batch: list[Transition]) -> torch.Tensor:
        """What the critic should say of the steps, (n, 1); moves the baseline."""
        rewards = torch.tensor([[step.reward] for step in batch], dtype=torch.float64)
        mean = float(rewards.mean())
        smoothing = self.settings.smoothing
        self.baseline = mean if self.baseline is None else self.baseline + smoothing * (mean - self.baseline)
        following = torch.stack([step.next_state for step in batch])
        goes_on = torch.tensor([[float(not step.last)] for step in batch])
        with torch.no_grad():
            later: torch.Tensor = self.critic_target(following, self.actor_target(following))
        return (rewards - self.baseline).float() + self.settings.discount * goes_on * later

    def follow(self) -> None:
        """Move the target networks towards the networks."""
        with torch.no_grad():
            for target, network in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
                for slow, value in zip(target.parameters(), network.parameters(), strict=True):
                    slow.lerp_(value, self.settings.tau)


def truncated_normal(mean: float, sigma: float, generator: torch.Generator) -> float:
    """A number from a normal distribution that is cut off below 0 and above 1, by the inverse of its distribution function."""
    bounds = torch.special.ndtr(torch.tensor([-mean / sigma, (1 - mean) / sigma], dtype=torch.float64))
    low, high = bounds.tolist()
    drawn = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
    value = mean + sigma * float(torch.special.ndtri(torch.tensor(drawn, dtype=torch.float64)))
    return min(1.0, max(0.0, value)) if math.isfinite(value) else min(1.0, max(0.0, mean))

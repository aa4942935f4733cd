"""Distillation of g2p-en: a network learns to say what the dense one says, of words that are not tested with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.deep_compression.g2p_network import (
    END,
    IGNORED,
    LONGEST,
    START,
    G2p,
    Word,
    as_letters,
    by_length,
)
from dcz.compression.training import distillation

BATCH = 128


@dataclass(frozen=True)
class Batch:
    """Words of one length: ``letters``, what the teacher had said before each step and says then, and its scores."""

    letters: torch.Tensor
    before: torch.Tensor
    says: torch.Tensor
    scores: torch.Tensor


class Teacher:
    """What the dense network says of many words, and its scores at each step, in half precision: computed once."""

    def __init__(self, parts: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        self._parts = parts

    @classmethod
    @torch.no_grad()
    def ask(cls, network: G2p, words: Sequence[str]) -> Teacher:
        """Let the network say all the words: a minute for a hundred thousand."""
        parts = {}
        for length, places in by_length(words).items():
            letters = as_letters([words[place] for place in places])
            said, scores = [], []
            for part in torch.split(letters, 1024):
                says = torch.full((len(part), LONGEST), IGNORED)
                for row, phonemes in zip(says, network.spell(part), strict=True):
                    ended = torch.tensor([*phonemes, END][:LONGEST])
                    row[: len(ended)] = ended
                said.append(says)
                scores.append(network(part, _before(says)).half())
            parts[length] = letters.to(torch.uint8), torch.cat(said).to(torch.int8), torch.cat(scores)
        return cls(parts)

    @classmethod
    def cached(cls, path: Path | None, network: G2p, words: Sequence[str]) -> Teacher:
        """From the file, if there is one of so many words; otherwise asked, and written to it."""
        if path is not None and path.exists():
            found = cls(torch.load(path, weights_only=True))
            if len(found) == len(words):
                return found
        teacher = cls.ask(network, words)
        if path is not None:
            torch.save(teacher._parts, path)
        return teacher

    def __len__(self) -> int:
        return sum(len(letters) for letters, _, _ in self._parts.values())

    @property
    def batches(self) -> int:
        """In one pass over all words."""
        return sum(math.ceil(len(letters) / BATCH) for letters, _, _ in self._parts.values())

    def shuffled(self, generator: torch.Generator) -> Iterator[Batch]:
        """All words once, those of one length together, in random order."""
        places = [
            (length, part)
            for length, (letters, _, _) in self._parts.items()
            for part in torch.split(torch.randperm(len(letters), generator=generator), BATCH)
        ]
        for chosen in torch.randperm(len(places), generator=generator).tolist():
            length, part = places[chosen]
            letters, said, scores = (tensor[part] for tensor in self._parts[length])
            says = said.long()
            steps = int((says != IGNORED).sum(1).max())
            says = says[:, :steps]
            yield Batch(letters.long(), _before(says), says, scores[:, :steps].float())


def divergence(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Kullback and Leibler's divergence of the network from its teacher, nats for each phoneme."""
    counts = batch.says != IGNORED
    return distillation.divergence(network(batch.letters, batch.before)[counts], batch.scores[counts])


def distil(
    network: nn.Module,
    teacher: Teacher,
    epochs: float,
    *,
    rate: float,
    seed: int = 0,
    groups: Sequence[dict[str, object]] | None = None,
    penalty: Callable[[], torch.Tensor] | None = None,
    before_step: Callable[[int, int], None] | None = None,
) -> float:
    """Train what the network gives as parameters with Adam, its rate falling from ``rate`` to nothing along a cosine.

    ``groups``: parameters with rates of their own, in place of all with one. ``penalty`` is added to the divergence.
    ``before_step`` is called with the number of each step and of all. Returns the mean divergence of the last fifth.
    """
    total = max(1, round(epochs * teacher.batches))
    parameters = groups or [{"params": [value for value in network.parameters() if value.requires_grad]}]
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    seen: list[float] = []
    network.train()
    while len(seen) < total:
        for batch in teacher.shuffled(generator):
            step = len(seen)
            factor = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group, its in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = its * factor
            if before_step is not None:
                before_step(step, total)
            with parametrize.cached():
                loss = divergence(network, batch)
                optimizer.zero_grad()
                torch.autograd.backward(loss if penalty is None else loss + penalty())
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            seen.append(loss.item())
            if len(seen) == total:
                break
    network.eval()
    last = seen[-max(1, total // 5) :]
    return sum(last) / len(last)


def training_words(words: Sequence[Word], tested: Sequence[Word]) -> list[str]:
    """Without those that are tested with."""
    held_out = {word.letters for word in tested}
    return [word.letters for word in words if word.letters not in held_out]


def _before(says: torch.Tensor) -> torch.Tensor:
    """What a step is given: the start, then what was said at the step before."""
    start = torch.full((len(says), 1), START)
    return torch.cat([start, says[:, :-1].clamp(min=0)], 1)

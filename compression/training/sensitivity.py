"""Which layers bear pruning: each is pruned alone, without training, and the quality is measured (Han, Pool, Tran and
Dally 2015, figure 6).

What a scan says of a layer is pessimistic, because no training makes up for the loss, but it says which layers bear more
than others. So densities are proposed by one rule: every layer gives as much as costs the same loss, alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dcz.compression.patterns import Pattern
from dcz.compression.training.masks import PruningMask, kept_of
from dcz.compression.training.weights import Weight
from dcz.errors import UsageError

__all__ = ["DENSITIES", "Sensitivity", "scan"]

DENSITIES = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02)

_HALVINGS = 60


@dataclass(frozen=True)
class Sensitivity:
    """What a scan measured. ``quality``: of the model as it is. ``densities``: descending, below 1. ``curves``: for each
    weight, by its first name, the quality at each of the densities, only this weight pruned. ``sizes``: elements."""

    quality: float
    densities: tuple[float, ...]
    curves: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]

    def within(self, loss: float) -> dict[str, float]:
        """The least density of each weight that alone loses at most ``loss`` of the quality, 0 or more.

        Between the densities of the scan the loss is taken to be linear, and never to fall as more is pruned.
        """
        if not loss >= 0:
            raise UsageError(f"a loss of {loss} is not possible: it is 0 or more")
        return {name: self._least(curve, loss) for name, curve in self.curves.items()}

    def propose(self, density: float) -> dict[str, float]:
        """Densities of equal loss, so that all weights together have ``density``, above 0 and up to 1.

        Where even the least densities of the scan leave more, all of them are made smaller by the same factor.
        """
        if not 0 < density <= 1:
            raise UsageError(f"a density of {density}: above 0 and up to 1 is possible")
        total = density * sum(self.sizes.values())
        losses = [self.quality - quality for curve in self.curves.values() for quality in curve]
        low, high = 0.0, max((loss for loss in losses if math.isfinite(loss) and loss > 0), default=0.0)
        least = self.within(high)
        if self._elements(least) > total:
            return {name: part * total / self._elements(least) for name, part in least.items()}
        more, fewer = dict.fromkeys(self.curves, 1.0), least
        if self._elements(self.within(low)) > total:
            more = self.within(low)
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                found = self.within(middle)
                if self._elements(found) > total:
                    low, more = middle, found
                else:
                    high, fewer = middle, found
        else:
            fewer = self.within(low)
        # A loss that many densities have in common decides nothing between them.
        above, below = self._elements(more) - total, total - self._elements(fewer)
        part = below / (above + below) if above + below > 0 else 0.0
        return {name: fewer[name] + part * (more[name] - fewer[name]) for name in self.curves}

    def _elements(self, densities: Mapping[str, float]) -> float:
        return sum(part * self.sizes[name] for name, part in densities.items())

    def _least(self, curve: Sequence[float], loss: float) -> float:
        reached, before, lost = 1.0, 1.0, 0.0
        for density, quality in zip(self.densities, curve, strict=True):
            now = math.inf if math.isnan(quality) else max(lost, self.quality - quality)
            if now > loss:
                between = (loss - lost) / (now - lost) if now > lost and math.isfinite(now) else 0.0
                return before + between * (density - before)
            reached = before = density
            lost = now
        return reached


def scan(
    weights: Sequence[Weight],
    evaluate: Callable[[], float],
    densities: Sequence[float] = DENSITIES,
    *,
    pattern: Pattern | None = None,
) -> Sensitivity:
    """Prune each weight alone to each of ``densities`` and measure; the weights are the same afterwards, to the bit.

    ``evaluate()`` gives the quality of the model that they belong to, higher is better; it is called once for each weight
    and density. ``densities``: above 0 and below 1. ``pattern``: as for dcz.compression.training.masks.prune.

    Raises UsageError if a density is not possible, weights are shared already, or the quality of the model as it is is not a
    finite number (a pruned one's need not be), and EncodingError as prune does.
    """
    ordered = tuple(sorted(set(densities), reverse=True))
    if not ordered or not 0 < ordered[-1] <= ordered[0] < 1:
        raise UsageError(f"densities of {list(densities)}: above 0 and below 1 are possible")
    for weight in weights:
        if not isinstance(weight.parametrization, PruningMask | None):
            raise UsageError(
                f"{weight.name} cannot be scanned: it is under {type(weight.parametrization).__name__}"
            )
    quality = float(evaluate())
    if not math.isfinite(quality):
        raise UsageError(f"evaluate() says {quality} of the model as it is: no loss of that can be measured")
    curves: dict[str, tuple[float, ...]] = {}
    for weight in weights:
        parameter, dense = weight.parameter, weight.parameter.data
        curve: list[float] = []
        try:
            for density in ordered:
                kept = kept_of(weight, density, pattern)
                parameter.data = torch.where(kept, dense, dense.new_zeros(()))
                curve.append(float(evaluate()))
                parameter.data = dense
        finally:
            parameter.data = dense
        curves[weight.name] = tuple(curve)
    return Sensitivity(quality, ordered, curves, {weight.name: weight.value().numel() for weight in weights})

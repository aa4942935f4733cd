"""Pruning with masks that hold while a module is trained.

A pruned weight is zero because the parametrization makes it so each time it is used. No optimizer, momentum or weight
decay can revive it, and it gets no gradient.

How much of each weight is kept is a matter of densities, which may come from anywhere: fixed ones, a threshold of so many
standard deviations (Han, Pool, Tran and Dally 2015), one threshold for all of them, or a sensitivity scan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch

from dcz.compression.patterns import Pattern, Unstructured
from dcz.compression.pruning import nonzero_mask
from dcz.compression.torch_tensors import check_tensor, to_numpy
from dcz.compression.training.weights import Weight, WeightParametrization
from dcz.errors import EncodingError, UsageError

__all__ = [
    "Densities",
    "PruningMask",
    "Scale",
    "array_of",
    "density_of",
    "global_densities",
    "kept_of",
    "mask_of",
    "naming",
    "prune",
    "std_densities",
]

Densities: TypeAlias = "float | Mapping[str, float]"
Scale: TypeAlias = Literal["none", "std", "lamp"]


class PruningMask(WeightParametrization):
    """The weight where ``mask`` is True, 0 elsewhere."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        # Not a product: that would make -0, and NaN of what is infinite.
        return torch.where(self.mask, original, original.new_zeros(()))

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """So that weights can be assigned while they are pruned."""
        return value

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        del settings
        return cls(state["mask"])


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """The elements as an array, C order; on the CPU the tensor's own memory if it is contiguous."""
    return to_numpy(tensor, check_tensor("weight", tensor))


def mask_of(weight: Weight) -> torch.Tensor | None:
    """Which weights were kept, bool; None if it was not pruned."""
    parametrization = weight.parametrization
    mask = getattr(parametrization, "mask", None)
    return mask if isinstance(mask, torch.Tensor) else None


def density_of(weight: Weight) -> float:
    """The part of a weight that is not zero."""
    return float(torch.count_nonzero(weight.value())) / weight.value().numel()


def prune(
    weights: Sequence[Weight], densities: Densities, pattern: Pattern | None = None
) -> dict[str, float]:
    """Keep the part ``densities`` of each weight, what is largest in magnitude; the rest is zero from now on.

    ``densities``: one for all, or by the first name of each weight; a weight without one is left as it is. They count the
    units of the pattern (a channel is kept or not), at least one stays. ``pattern``: unstructured if it is None; axes are
    those of torch.nn.Linear also where a matrix is stored transposed. What was pruned before stays pruned.

    Returns the density of each weight that was pruned, counted in weights. Raises EncodingError, which names the weight, if
    it is not finite, or a density or the pattern is not possible for it.
    """
    reached: dict[str, float] = {}
    for weight in weights:
        density = densities if isinstance(densities, int | float) else densities.get(weight.name)
        if density is None:
            continue
        mask = kept_of(weight, density, pattern)
        _set_mask(weight, mask)
        reached[weight.name] = float(torch.count_nonzero(mask)) / mask.numel()
    return reached


def kept_of(weight: Weight, density: float, pattern: Pattern | None = None) -> torch.Tensor:
    """Which of a weight's elements prune() would keep: bool, in its shape, on its device. Arguments and errors as there."""
    pattern = Unstructured() if pattern is None else pattern
    array = _oriented(weight)
    with naming(weight):
        if not 0 <= density <= 1:
            raise EncodingError(f"a density of {density}: 0 to 1 are possible")
        kept = pattern.keep(pattern.scores(array), density)
        mask = pattern.mask(kept, array.shape) & nonzero_mask(array)
    if weight.transposed:
        mask = np.ascontiguousarray(np.swapaxes(mask, 0, 1))
    return torch.from_numpy(mask).to(weight.parameter.device)


def std_densities(
    weights: Sequence[Weight], factor: Densities, pattern: Pattern | None = None
) -> dict[str, float]:
    """The densities of a threshold of ``factor`` standard deviations of the weights that are not zero.

    ``factor``: the paper's quality parameter; one for all, or by name. Raises EncodingError as prune does.
    """
    pattern = Unstructured() if pattern is None else pattern
    found: dict[str, float] = {}
    for weight in weights:
        given = factor if isinstance(factor, int | float) else factor.get(weight.name)
        if given is None:
            continue
        array = _oriented(weight)
        with naming(weight):
            scores = np.abs(pattern.scores(array).astype(np.float64))
            nonzero = array.astype(np.float64)[nonzero_mask(array)]
            threshold = float(given) * float(nonzero.std()) if nonzero.size else 0.0
            found[weight.name] = float(np.count_nonzero(scores > threshold)) / scores.size
    return found


def global_densities(
    weights: Sequence[Weight],
    density: float,
    *,
    floor: float = 0.0,
    scale: Scale = "none",
    pattern: Pattern | None = None,
) -> dict[str, float]:
    """The densities that one threshold for all weights gives, so that all of them together have ``density``.

    ``floor``: the part of each weight that is kept in any case, so that no layer is starved; at least one unit is.
    ``scale``: what makes the magnitudes of different layers comparable: ``none``; ``std`` divides by the root of the mean
    square of what is not zero; ``lamp`` ranks by the layer-adaptive score of Lee, Park, Mo, Ahn and Shin (2021), the square
    of a weight over the sum of the squares of those of its layer that are not smaller.

    Raises EncodingError as prune does, and UsageError if the density or the floor is not from 0 to 1.
    """
    for what, given in (("density", density), ("floor", floor)):
        if not 0 <= given <= 1:
            raise UsageError(f"a {what} of {given}: 0 to 1 are possible")
    pattern = Unstructured() if pattern is None else pattern
    ranks: list[np.ndarray] = []
    units: list[float] = []  # elements of each
    for weight in weights:
        array = _oriented(weight)
        with naming(weight):
            scores = np.abs(pattern.scores(array).astype(np.float64))
        ranks.append(_ranks(scores, scale, min(scores.size, max(1, round(floor * scores.size)))))
        units.append(array.size / scores.size)
    if not ranks:
        return {}
    if all(elements == 1 for elements in units):
        taken = _largest(ranks, density)
    else:
        taken = _largest_units(ranks, units, density)
    return {weight.name: count / rank.size for weight, rank, count in zip(weights, ranks, taken, strict=True)}


def _ranks(scores: np.ndarray, scale: Scale, sure: int) -> np.ndarray:
    """What makes units of all weights comparable, in any order; infinity for the ``sure`` ones of largest score."""
    first = scores.size - sure
    if scale == "none":
        ranks = np.partition(scores, first)
        ranks[first:] = np.inf
        return ranks
    largest = float(scores.max()) or 1.0
    squares = (scores / largest) ** 2
    if scale == "std":
        count = np.count_nonzero(scores)
        mean = np.sqrt(squares.sum() / count) if count else 1.0
        ranks = np.partition(scores / largest / mean, first)
        ranks[first:] = np.inf
        return ranks
    if scale != "lamp":
        raise UsageError(f"no scale {scale!r}", hint="allowed: none, std, lamp")
    ordered = np.sort(squares)
    # From the largest down: summing small to large would be exact where it matters least.
    not_smaller = np.cumsum(ordered[::-1])[::-1]
    ranks = np.divide(ordered, not_smaller, out=np.zeros_like(ordered), where=not_smaller > 0)
    # Of equal squares the later unit has the larger rank, but the larger score, or the earlier unit, is kept for sure.
    low, high = (
        np.searchsorted(ordered, ordered[first], "left"),
        np.searchsorted(ordered, ordered[first], "right"),
    )
    ranks[high:] = np.inf
    equal = scores[squares == ordered[first]]
    ranks[low + np.argsort(-equal, kind="stable")[: high - first]] = np.inf
    return ranks


def _largest(ranks: Sequence[np.ndarray], density: float) -> list[int]:
    """How many units of each weight are among the part ``density`` of all, those of the largest ranks, of equal ones those of
    the first weights; and whatever is infinite."""
    together = np.concatenate(ranks)
    most = min(together.size, int(density * together.size + 1e-6))
    together.partition(together.size - max(1, most))
    threshold = together[together.size - most] if most else np.inf
    if np.isinf(threshold):
        return [int(np.count_nonzero(np.isinf(rank))) for rank in ranks]
    above = [int(np.count_nonzero(rank > threshold)) for rank in ranks]
    left = most - sum(above)
    taken: list[int] = []
    for rank, count in zip(ranks, above, strict=True):
        ties = min(left, int(np.count_nonzero(rank == threshold)))
        left -= ties
        taken.append(count + ties)
    return taken


def _largest_units(ranks: Sequence[np.ndarray], units: Sequence[float], density: float) -> list[int]:
    """As ``_largest``, where a unit of a weight counts for ``units`` elements."""
    together = np.concatenate(ranks)
    weighed = np.repeat(units, [rank.size for rank in ranks])
    order = np.argsort(-together, kind="stable")
    taken = np.zeros(together.size, np.bool_)
    taken[order] = np.cumsum(weighed[order]) <= density * weighed.sum() + 1e-6
    taken |= np.isinf(together)
    ends = np.cumsum([rank.size for rank in ranks])
    return [
        int(np.count_nonzero(taken[end - rank.size : end])) for rank, end in zip(ranks, ends, strict=True)
    ]


def _oriented(weight: Weight) -> np.ndarray:
    """The weight with outputs first."""
    array = array_of(weight.value())
    return np.ascontiguousarray(np.swapaxes(array, 0, 1)) if weight.transposed else array


def _set_mask(weight: Weight, tensor: torch.Tensor) -> None:
    current = weight.parametrization
    if isinstance(current, PruningMask):
        current.mask.copy_(tensor)
    elif current is None:
        weight.parametrize(PruningMask(tensor))
    else:
        raise UsageError(
            f"{weight.name} cannot be pruned any more: it is under {type(current).__name__}",
            hint="prune first",
        )


@contextlib.contextmanager
def naming(weight: Weight) -> Generator[None]:
    """Says of which weight an EncodingError is."""
    try:
        yield
    except EncodingError as exc:
        raise EncodingError(f"{weight.name}: {exc.message}", hint=exc.hint) from exc

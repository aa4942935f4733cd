"""Weight sharing that is trained (Han, Mao and Dally, "Deep Compression", 2016, section 3).

All weights of a layer take the values of a few centroids. Which weight has which centroid is fixed when they are shared;
what the centroids are is trained. The Parameter of a shared weight holds its centroids, so that any optimizer trains them,
and autograd sums the gradients of the weights by cluster (equation 3 of the paper):

    dL/dC_k = sum over the weights i that share centroid k of dL/dW_i

What was pruned takes no part: it stays zero, and zero needs no centroid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from dcz.compression.arguments import is_whole
from dcz.compression.clustering import MAX_CENTROIDS, Init, Method, assign, kmeans
from dcz.compression.training.masks import PruningMask, array_of, naming
from dcz.compression.training.weights import Weight, WeightParametrization
from dcz.errors import EncodingError, UsageError
from dcz.format.dtypes import DTYPES, dtype_of

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Bits", "SharedWeights", "choose_bits", "share"]

Bits: TypeAlias = "int | Mapping[str, int]"

_MAX_BITS = 8


class _Gather(torch.autograd.Function):
    """From centroids and codes to weights; code 0 is a pruned weight, code j + 1 centroid j."""

    @staticmethod
    def forward(ctx: Any, centroids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes)
        ctx.size = centroids.numel()
        table = torch.cat([centroids.new_zeros(1), centroids])
        return table[codes.int()]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        (codes,), (gradient,) = ctx.saved_tensors, grad_outputs
        # In double precision, because a cluster may have millions of weights.
        sums = torch.bincount(
            codes.reshape(-1), weights=gradient.reshape(-1).double(), minlength=ctx.size + 1
        )
        return sums[1:].to(gradient.dtype), None


class SharedWeights(WeightParametrization):
    """Weights that are shared. The Parameter holds the centroids, (k,), in the type of the weight.

    ``codes``: int16, in the shape of the weight; 0 where it was pruned, otherwise the number of the centroid, from 1.
    """

    codes: torch.Tensor

    def __init__(self, codes: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = _Gather.apply(original, self.codes)  # type: ignore[no-untyped-call]
        return weight

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        del settings
        return cls(state["codes"])


def share(
    weights: Sequence[Weight],
    bits: Bits,
    *,
    method: Method = "optimal",
    init: Init = "linear",
    seed: int = 0,
) -> dict[str, int]:
    """Let each weight have 2 to the power of ``bits`` shared values, or as few as it needs, from now on.

    ``bits``: 1 to 8; one for all, or by the first name of each weight; a weight without one is left as it is. ``method``,
    ``init``, ``seed``: as in dcz.compression.clustering.kmeans. Weights that are shared already are shared anew.

    Returns the number of centroids of each weight that is shared now. Raises EncodingError, which names the weight, if it
    is not finite or ``bits`` are out of range.
    """
    shared: dict[str, int] = {}
    for weight in weights:
        wanted = bits.get(weight.name) if isinstance(bits, Mapping) else bits
        if wanted is None:
            continue
        with naming(weight):
            if not is_whole(wanted, 1, _MAX_BITS):
                raise EncodingError(f"{wanted!r} bits for shared weights: 1 to {_MAX_BITS} are possible")
            kept, codes, centroids = _clustered(weight, 1 << wanted, method, init, seed)
        _set(weight, kept, codes, centroids)
        shared[weight.name] = centroids.size
    return shared


def _clustered(
    weight: Weight, size: int, method: Method, init: Init, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8], np.ndarray]:
    """Which weights are kept, their codes, and the centroids in the type of the weight."""
    array = array_of(weight.value())
    dtype = dtype_of(array).numpy
    kept = _kept(weight, array)
    values = array[kept]
    found = kmeans(values, size, method=method, init=init, seed=seed).centroids
    # Rounding may make two equal, or zero, as which a weight would look pruned; both only cost a centroid.
    centroids = np.unique(found.astype(dtype).astype(np.float64) + 0.0).astype(dtype)
    if centroids.size == 0:
        centroids = np.zeros(1, dtype)
    return kept, assign(values, centroids), centroids


def _kept(weight: Weight, array: np.ndarray) -> npt.NDArray[np.bool_]:
    """All weights, if it was never pruned; a zero of a dense layer is a value like any other."""
    current = weight.parametrization
    if isinstance(current, PruningMask):
        kept: npt.NDArray[np.bool_] = current.mask.cpu().numpy()
        return kept
    if isinstance(current, SharedWeights):
        return (current.codes > 0).cpu().numpy()
    if current is not None:
        raise UsageError(f"{weight.name} cannot be shared: it is under {type(current).__name__}")
    return np.ones(array.shape, np.bool_)


def _set(weight: Weight, kept: npt.NDArray[np.bool_], codes: np.ndarray, centroids: np.ndarray) -> None:
    numbers = np.zeros(kept.shape, np.int16)
    numbers[kept] = codes.astype(np.int16) + 1
    parameter = weight.parameter
    # Through float64, which holds all types exactly: torch takes no bf16 from numpy.
    original = torch.from_numpy(centroids.astype(np.float64)).to(parameter.dtype).to(parameter.device)
    weight.parametrize(SharedWeights(torch.from_numpy(numbers).to(parameter.device)), original)


@dataclass(frozen=True)
class _Option:
    """What a number of bits for one weight costs, in bits, and the error that it leaves, relative to the weight's energy."""

    bits: int
    length: float
    error: float


def choose_bits(
    weights: Sequence[Weight],
    budget: float,
    *,
    sensitivity: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Bits for each weight, so that the error is least and all of them together take at most ``budget`` bytes.

    The description length of a weight is that of its codes (their entropy), its codebook, and its positions (the entropy
    of a mask of its density). The error of a weight is the sum of the squared differences over the sum of the squares,
    times its ``sensitivity`` (1 if there is none). The best choice for a multiplier of the length is found for each weight
    by itself; the multiplier is the least that keeps the budget (Lagrangian relaxation, so that a little of the budget may
    be left over, never more than one step of one weight on the convex hull).

    Raises UsageError if no choice keeps the budget; it says how many bytes the smallest takes.
    """
    options = {weight.name: _options(weight, (sensitivity or {}).get(weight.name, 1.0)) for weight in weights}
    limit = 8 * budget

    def chosen(multiplier: float) -> dict[str, _Option]:
        return {
            name: min(some, key=lambda option: (option.error + multiplier * option.length, option.length))
            for name, some in options.items()
        }

    def length(choice: Mapping[str, _Option]) -> float:
        return sum(option.length for option in choice.values())

    best = {name: min(some, key=lambda option: option.length) for name, some in options.items()}
    if length(best) > limit:
        raise UsageError(
            f"no choice of bits fits in {budget:.0f} bytes: the smallest takes {math.ceil(length(best) / 8)}",
            hint="prune more, or give a larger budget",
        )
    # Only where two options of a weight change places does the choice change.
    multipliers = sorted(
        {
            (few.error - many.error) / (many.length - few.length)
            for some in options.values()
            for few in some
            for many in some
            if few.length < many.length and few.error > many.error
        }
        | {0.0}
    )
    low, high = 0, len(multipliers)
    while low < high:
        middle = (low + high) // 2
        choice = chosen(multipliers[middle])
        if length(choice) <= limit:
            best, high = choice, middle
        else:
            low = middle + 1
    return {name: option.bits for name, option in best.items()}


def _options(weight: Weight, sensitivity: float) -> list[_Option]:
    array = array_of(weight.value())
    kept = _kept(weight, array)
    values = array[kept].astype(np.float64)
    density = values.size / array.size
    positions = array.size * _entropy(np.array([density, 1 - density]))
    itemsize = DTYPES[dtype_of(array).name].itemsize
    energy = float(values @ values) or 1.0
    options: list[_Option] = []
    for bits in range(1, _MAX_BITS + 1):
        found = kmeans(array[kept], min(1 << bits, MAX_CENTROIDS))
        counts = np.bincount(assign(array[kept], found.centroids), minlength=1) if values.size else np.ones(1)
        codes = values.size * _entropy(counts / counts.sum())
        length = positions + codes + 8 * itemsize * found.centroids.size
        options.append(_Option(bits, length, sensitivity * found.cost / energy))
        if found.cost == 0:
            break
    return options


def _entropy(parts: np.ndarray) -> float:
    parts = parts[parts > 0]
    return float(-(parts * np.log2(parts)).sum())

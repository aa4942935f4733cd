"""What a weight may be stored as, and what each of these costs.

    Option    a way to store any weight                 "asymmetric, 4 bits, groups of 64"
    Choice    an option for one weight, with its costs  bytes in the file, loss, seconds
    Costs     the choices of each weight: the table that every search works on

Bytes are those of the encoded streams, entropy coding included, as the writer makes them; what else a file holds (manifest, padding,
tensors that are not chosen for) is the same for all choices but for a few bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dcz.format.effort import EffortName, effort_of
from dcz.format.encoder import TensorEncoder
from dcz.format.tensors import TensorData

__all__ = ["Choice", "Costs", "Option", "Stored", "stored", "total"]


@dataclass(frozen=True)
class Option:
    """One way to store any weight. ``name``: unique among the options of a search. ``bits``: of a code, for what asks how
    precise it is; 32 for weights that stay f32. ``quantize``: from weights, floating-point, any shape, to what is stored."""

    name: str
    bits: int
    quantize: Callable[[np.ndarray], TensorData]


@dataclass(frozen=True)
class Choice:
    """One option for one weight. ``bytes``: of its streams in the file. ``loss``: what it costs in quality, 0 for the weight as it is.
    ``seconds``: of latency, by whatever model (dcz.compression.search.latency)."""

    name: str
    bits: int
    bytes: int
    loss: float
    seconds: float = 0.0


Costs: TypeAlias = Mapping[str, Sequence[Choice]]


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight as it is stored: the bytes of its streams, and what they decode to, of its own type and shape."""

    bytes: int
    values: np.ndarray


def stored(weights: np.ndarray, option: Option, *, effort: EffortName = "balanced") -> Stored:
    """Encode a weight as the writer would. Raises EncodingError if the option does not fit the weight."""
    encoder = TensorEncoder(option.quantize(weights), effort=effort_of(effort))
    size = sum(len(data) for _, data in encoder.parameter_streams())
    values = np.empty(weights.size * weights.itemsize, np.uint8)
    start = 0
    for number in range(encoder.segments):
        segment = encoder.encode(number)
        size += sum(len(data) for _, data in segment.streams)
        content = segment.content.reshape(-1).view(np.uint8)
        values[start : start + content.size] = content
        start += content.size
    return Stored(size, values.view(weights.dtype).reshape(weights.shape))


def total(chosen: Mapping[str, Choice]) -> Choice:
    """The costs of all weights together. The sums do not depend on the order."""
    choices = chosen.values()
    return Choice(
        "total",
        max((choice.bits for choice in choices), default=0),
        sum(choice.bytes for choice in choices),
        math.fsum(choice.loss for choice in choices),
        math.fsum(choice.seconds for choice in choices),
    )

"""How activations are quantized, as text that travels in the metadata of a file beside the weights.

dcz.save(tensors, path, metadata={ACTIVATIONS: describe_activations(module)})
with dcz.open(path) as file:
    restore_activations(other, file.metadata()[ACTIVATIONS])
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from dcz.compression.observers import Parameters
from dcz.compression.scales import Scheme
from dcz.compression.training.activations import (
    ActivationQuantizer,
    DynamicQuantizer,
    Side,
    StaticQuantizer,
    activation_quantizers,
    put_on,
    remove_activation_quantizers,
)
from dcz.errors import EncodingError, UsageError
from dcz.format.layout import MAX_RANK

__all__ = ["ACTIVATIONS", "describe_activations", "restore_activations"]

ACTIVATIONS: Final = "dcz.activations"
"""The key of the metadata."""


def describe_activations(module: nn.Module) -> str:
    """The quantizers of a module as JSON, to travel with its weights (``metadata={ACTIVATIONS: ...}``). What is learned is
    described as it is now, as static scales and zero points."""
    described: list[dict[str, Any]] = []
    for name, _, side, quantizer in activation_quantizers(module):
        parameters = quantizer.parameters_of()
        one = {"layer": name, "side": side, "bits": quantizer.bits, "scheme": quantizer.scheme}
        if parameters is not None:
            one |= {
                "axis": parameters.axis,
                "scales": parameters.scales.astype(float).tolist(),
                "zero_points": parameters.zero_points.tolist(),
            }
        elif isinstance(quantizer, DynamicQuantizer):
            one |= {"axis": quantizer.axis}
        elif not isinstance(quantizer, StaticQuantizer):
            continue  # what would be learned of activations that never came
        else:
            raise UsageError(
                f"the range of the {side} of {name or 'the module'} is not known",
                hint="calibrate(module, batches) observes it",
            )
        described.append(one)
    return json.dumps(described, separators=(",", ":"))


def restore_activations(module: nn.Module, described: str) -> list[str]:
    """Put in the quantizers that `describe_activations` described, in place of those that there are. Returns the names of
    the layers.

    Raises UsageError if this is no such description, or the module has no such layers.
    """
    try:
        entries = [_Described.model_validate(one, strict=True) for one in json.loads(described)]
        quantizers = [(entry, entry.quantizer()) for entry in entries]
        if len({(entry.layer, entry.side) for entry in entries}) < len(entries):
            raise ValueError("a layer has two quantizers on one side")
    except (ValueError, TypeError, OverflowError, RecursionError, EncodingError) as exc:
        raise UsageError(f"not a description of quantizers of activations: {exc}") from exc
    remove_activation_quantizers(module)
    try:
        for entry, quantizer in quantizers:
            put_on(module, entry.layer, entry.side, quantizer)
    except UsageError:
        remove_activation_quantizers(module)
        raise
    return [entry.layer for entry in entries]


class _Described(BaseModel):
    """One quantizer of a description, which may come from anywhere."""

    model_config = ConfigDict(extra="forbid")

    layer: str
    side: Side
    bits: int = Field(ge=1, le=8)
    scheme: Scheme
    axis: Annotated[int, Field(ge=-MAX_RANK, lt=MAX_RANK)] | None
    scales: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(None, min_length=1)
    zero_points: list[Annotated[int, Field(ge=0, le=255)]] | None = None

    def quantizer(self) -> ActivationQuantizer:
        if self.scales is None:
            return DynamicQuantizer(self.bits, self.scheme, axis=self.axis)
        with np.errstate(over="ignore"):
            scales = np.array(self.scales, np.float32)
        zero_points = np.array(self.zero_points or [], np.uint8)
        if zero_points.shape != scales.shape:
            raise ValueError("as many zero points as scales are needed")
        if not np.isfinite(scales).all():
            raise ValueError("a scale is too large for binary32")
        if self.axis is None and scales.size > 1:
            raise ValueError(f"there are {scales.size} scales, and no axis")
        least = most = 1 << (self.bits - 1)
        if self.scheme == "asymmetric":
            least, most = 0, (1 << self.bits) - 1
        if int(zero_points.min()) < least or int(zero_points.max()) > most:
            raise ValueError(f"a zero point is none of {self.scheme} codes of {self.bits} bits")
        return StaticQuantizer.of(Parameters(self.bits, self.scheme, scales, zero_points, self.axis))

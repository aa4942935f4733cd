"""Which operations an integer network consists of: a closed vocabulary, as JSON. There is no code in it and no name of a
class.

    {"version": 1, "input": [1, 28, 28], "steps": [{"op": "convolution", "name": "conv1", "inputs": [0], ...}, ...]}

Values are counted: 0 is the input, i + 1 what step i gives; a step takes only values before it, and the last one is the
output. ``input`` is the shape without the batch. Tensors are not in here; each step has those of its kind under its name:

    op                     tensors
    linear, convolution    weight, bias, multiplier, shift, bounds
    average-pool           multiplier, shift, bounds
    add, concatenate       multiplier, shift, bounds
    clamp                  bounds
    max-pool, flatten      none: the codes keep their meaning

The network has ``activations.scales`` and ``activations.zero_points`` of all values, and ``activations.input_bounds``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcz.errors import EncodingError

__all__ = [
    "AddStep",
    "AveragePoolStep",
    "ClampStep",
    "ConcatenateStep",
    "ConvolutionStep",
    "Description",
    "FlattenStep",
    "LinearStep",
    "MaxPoolStep",
    "Step",
    "decode_description",
    "encode_description",
]

MAX_BYTES: Final = 4 << 20
_MAX_STEPS: Final = 10_000
_MAX_EXTENT: Final = 1 << 24

Extent: TypeAlias = Annotated[int, Field(ge=1, le=_MAX_EXTENT)]
Pad: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_EXTENT)]
Number: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_STEPS)]
Extents: TypeAlias = Annotated[tuple[Extent, ...], Field(min_length=1, max_length=2)]
Pads: TypeAlias = Annotated[tuple[tuple[Pad, Pad], ...], Field(min_length=1, max_length=2)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Step(_Model):
    name: Name
    inputs: Annotated[tuple[Number, ...], Field(min_length=1, max_length=1024)]


class _Unary(_Step):
    inputs: tuple[Number]


class LinearStep(_Unary):
    op: Literal["linear"] = "linear"


class ConvolutionStep(_Unary):
    """``padding``: before and after, on each axis."""

    op: Literal["convolution"] = "convolution"
    stride: Extents
    padding: Pads
    dilation: Extents
    groups: Extent


class MaxPoolStep(_Unary):
    op: Literal["max-pool"] = "max-pool"
    kernel: Extents
    stride: Extents
    padding: Pads
    dilation: Extents


class AveragePoolStep(_Unary):
    """Padding counts as zeros."""

    op: Literal["average-pool"] = "average-pool"
    kernel: Extents
    stride: Extents
    padding: Pads


class ClampStep(_Unary):
    op: Literal["clamp"] = "clamp"


class FlattenStep(_Unary):
    """All axes but the batch become one."""

    op: Literal["flatten"] = "flatten"


class AddStep(_Step):
    op: Literal["add"] = "add"


class ConcatenateStep(_Step):
    """Along the channels."""

    op: Literal["concatenate"] = "concatenate"


Step: TypeAlias = (
    LinearStep
    | ConvolutionStep
    | MaxPoolStep
    | AveragePoolStep
    | ClampStep
    | FlattenStep
    | AddStep
    | ConcatenateStep
)


class Description(_Model):
    version: Literal[1] = 1
    input: Annotated[tuple[Extent, ...], Field(min_length=1, max_length=3)]
    steps: Annotated[
        tuple[Annotated[Step, Field(discriminator="op")], ...], Field(min_length=1, max_length=_MAX_STEPS)
    ]

    @model_validator(mode="after")
    def _check_order(self) -> Description:
        for number, step in enumerate(self.steps):
            if max(step.inputs) > number:
                raise ValueError(f"step {number} takes value {max(step.inputs)}, which comes later")
        if len({step.name for step in self.steps}) < len(self.steps):
            raise ValueError("two steps have the same name")
        return self


def encode_description(description: Description) -> bytes:
    return description.model_dump_json().encode()


def decode_description(data: bytes) -> Description:
    """Raises EncodingError, which says where, for anything else than a description."""
    if len(data) > MAX_BYTES:
        raise EncodingError(f"a description of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        return Description.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EncodingError(f"not the description of an integer network: {where}: {first['msg']}") from exc

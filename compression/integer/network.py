"""A description and its tensors as a network that runs, once everything about them is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from dcz.compression.integer import operations
from dcz.compression.integer.description import (
    AddStep,
    AveragePoolStep,
    ClampStep,
    ConcatenateStep,
    ConvolutionStep,
    Description,
    FlattenStep,
    LinearStep,
    MaxPoolStep,
    Step,
)
from dcz.compression.integer.requantization import MAX_SHIFT
from dcz.errors import EncodingError, UsageError

__all__ = ["INPUT_BOUNDS", "SCALES", "ZERO_POINTS", "IntegerNetwork", "tensor_names"]

SCALES: Final = "activations.scales"
ZERO_POINTS: Final = "activations.zero_points"
INPUT_BOUNDS: Final = "activations.input_bounds"

_MAX_ELEMENTS: Final = 1 << 26  # of one value, of one input of the batch
_TENSORS: Final[dict[type, tuple[str, ...]]] = {
    LinearStep: ("weight", "bias", "multiplier", "shift", "bounds"),
    ConvolutionStep: ("weight", "bias", "multiplier", "shift", "bounds"),
    AveragePoolStep: ("multiplier", "shift", "bounds"),
    AddStep: ("multiplier", "shift", "bounds"),
    ConcatenateStep: ("multiplier", "shift", "bounds"),
    ClampStep: ("bounds",),
    MaxPoolStep: (),
    FlattenStep: (),
}
_DTYPES: Final = {
    "weight": torch.int8,
    "bias": torch.int32,
    "multiplier": torch.int32,
    "shift": torch.uint8,
    "bounds": torch.int8,
}

Shape = tuple[int, ...]


def tensor_names(description: Description) -> list[str]:
    """Those that a network of this description has, besides the scales of its weights."""
    names = [f"{step.name}.{part}" for step in description.steps for part in _TENSORS[type(step)]]
    return [SCALES, ZERO_POINTS, INPUT_BOUNDS, *names]


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A network on int8 codes.

    ``tensors``: as the description's module lists them. ``weight``: int8 (out, in / groups, ...). ``bias``: int32 (out,), with the
    input's zero point in it. ``multiplier``: int32 and ``shift``: uint8, (out,), of pools (1,), of concatenations one for each part, of sums one multiplier
    for each term and one shift. ``bounds``: int8 (2, 1) or (2, out), the least and the greatest code. Scales of activations are float32
    (values,), zero points int8 (values,); the bounds of the input's codes int8 (2,). ``weight_scales``: float32 (out,) by the names of the steps; nothing is computed with them.

    Raises EncodingError if they do not fit together, or if an accumulator could pass the range of int32.
    """

    description: Description
    tensors: Mapping[str, torch.Tensor]
    weight_scales: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        _check(self.description, self.tensors)
        for step in self.description.steps:
            if isinstance(step, LinearStep | ConvolutionStep):
                scales = self.weight_scales.get(step.name)
                if scales is None or scales.shape != self.tensors[f"{step.name}.bias"].shape:
                    raise EncodingError(f"{step.name}: the scales of the weights do not fit")

    def quantize(self, inputs: torch.Tensor) -> torch.Tensor:
        """clamp(rne(x / S) + Z): int8 codes of floating-point inputs (batch, \\*shape). Raises EncodingError for NaN."""
        scale, zero = self.tensors[SCALES][0], self.tensors[ZERO_POINTS][0]
        if inputs.isnan().any():
            raise EncodingError("an input is not a number, and has no code")
        codes = torch.round(inputs.float() / scale) + zero.float()
        low, high = self.tensors[INPUT_BOUNDS].tolist()
        return codes.clamp(low, high).to(torch.int8)

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """S (q - Z): float32 outputs of int8 codes."""
        scale, zero = self.tensors[SCALES][-1], self.tensors[ZERO_POINTS][-1]
        return scale * (codes.int() - zero.int()).float()

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Quantize, run, dequantize: float32 from floating-point (batch, \\*shape)."""
        return self.dequantize(self.run(self.quantize(inputs)))

    def run(self, codes: torch.Tensor) -> torch.Tensor:
        """int8 codes of the outputs from those of the inputs, by integer operations only.

        Raises UsageError if the codes have another type or shape.
        """
        return self.values(codes)[-1]

    def values(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """The codes of all values: the input, and what each step gives."""
        if codes.dtype != torch.int8 or tuple(codes.shape[1:]) != self.description.input:
            raise UsageError(
                f"inputs {codes.dtype} {list(codes.shape)}",
                hint=f"int8 (batch, {', '.join(map(str, self.description.input))}) is what this network takes",
            )
        zeros: list[int] = self.tensors[ZERO_POINTS].tolist()
        values = [codes]
        for number, step in enumerate(self.description.steps):
            inputs = [values[i] for i in step.inputs]
            values.append(self._step(step, inputs, [zeros[i] for i in step.inputs], zeros[number + 1]))
        return values

    def _step(self, step: Step, inputs: list[torch.Tensor], zeros: list[int], zero: int) -> torch.Tensor:
        parts = {part: self.tensors[f"{step.name}.{part}"] for part in _TENSORS[type(step)]}
        first = inputs[0]
        match step:
            case LinearStep():
                sums = operations.linear(first, parts["weight"], parts["bias"])
                return operations.rescaled(
                    sums, parts["multiplier"], parts["shift"], -1, zero, parts["bounds"]
                )
            case ConvolutionStep():
                sums = operations.convolve(
                    first,
                    parts["weight"],
                    parts["bias"],
                    zero_point=zeros[0],
                    stride=step.stride,
                    padding=step.padding,
                    dilation=step.dilation,
                    groups=step.groups,
                )
                return operations.rescaled(
                    sums, parts["multiplier"], parts["shift"], 1, zero, parts["bounds"]
                )
            case AveragePoolStep():
                sums = operations.average_pool(
                    first, zero_point=zeros[0], kernel=step.kernel, stride=step.stride, padding=step.padding
                )
                return operations.rescaled(
                    sums, parts["multiplier"], parts["shift"], 1, zero, parts["bounds"]
                )
            case MaxPoolStep():
                return operations.max_pool(
                    first,
                    kernel=step.kernel,
                    stride=step.stride,
                    padding=step.padding,
                    dilation=step.dilation,
                )
            case ClampStep():
                return operations.clamped(first, parts["bounds"], 1)
            case FlattenStep():
                return first.flatten(1)
            case AddStep():
                return operations.rescaled_sum(
                    inputs, zeros, parts["multiplier"], parts["shift"], zero, parts["bounds"]
                )
            case ConcatenateStep():
                scaled = [
                    operations.rescaled(
                        part.int() - before,
                        parts["multiplier"][i : i + 1],
                        parts["shift"][i : i + 1],
                        1,
                        zero,
                        parts["bounds"],
                    )
                    for i, (part, before) in enumerate(zip(inputs, zeros, strict=True))
                ]
                return torch.cat(scaled, 1)


def shapes_of(description: Description, tensors: Mapping[str, torch.Tensor]) -> list[Shape]:
    """The shape of each value without the batch. Raises EncodingError if a step does not fit its inputs."""
    shapes: list[Shape] = [description.input]
    for step in description.steps:
        shape = _shape(step, [shapes[i] for i in step.inputs], tensors)
        if math.prod(shape) > _MAX_ELEMENTS:
            raise EncodingError(f"{step.name}: a value of {math.prod(shape)} elements")
        shapes.append(shape)
    return shapes


def _shape(step: Step, inputs: list[Shape], tensors: Mapping[str, torch.Tensor]) -> Shape:
    first = inputs[0]
    match step:
        case LinearStep():
            weight = tensors[f"{step.name}.weight"]
            _need(
                step, weight.ndim == 2 and weight.shape[1] == first[-1], "the weight does not fit the input"
            )
            return (*first[:-1], weight.shape[0])
        case ConvolutionStep():
            weight = tensors[f"{step.name}.weight"]
            kernel = tuple(weight.shape[2:])
            _need(
                step, weight.ndim == len(first) + 1 and len(kernel) > 0, "the weight does not fit the input"
            )
            fits = weight.shape[1] * step.groups == first[0] and weight.shape[0] % step.groups == 0
            _need(step, fits, "the groups do not fit the channels")
            places = _places(step, first[1:], kernel, step.stride, step.padding, step.dilation)
            copied = first[0] * math.prod(places) * math.prod(kernel)
            _need(step, copied <= _MAX_ELEMENTS, f"{copied} products of inputs")
            return (weight.shape[0], *places)
        case MaxPoolStep() | AveragePoolStep():
            dilation = step.dilation if isinstance(step, MaxPoolStep) else (1,) * len(step.kernel)
            if isinstance(step, MaxPoolStep):
                small = all(
                    2 * max(pad) <= size for pad, size in zip(step.padding, step.kernel, strict=False)
                )
                _need(step, small, "a window could lie in the padding only")
            places = _places(step, first[1:], step.kernel, step.stride, step.padding, dilation)
            copied = first[0] * math.prod(places) * math.prod(step.kernel)
            _need(step, copied <= _MAX_ELEMENTS, f"{copied} elements in windows")
            return (first[0], *places)
        case FlattenStep():
            return (math.prod(first),)
        case ConcatenateStep():
            _need(step, len({shape[1:] for shape in inputs}) == 1, "the parts have different shapes")
            return (sum(shape[0] for shape in inputs), *first[1:])
        case AddStep():
            _need(step, len(set(inputs)) == 1, "the terms have different shapes")
            return first
        case ClampStep():
            return first


def _places(
    step: Step,
    extents: Shape,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Shape:
    ranks = {len(part) for part in (extents, kernel, stride, padding, dilation)}
    _need(step, len(ranks) == 1, "kernel, stride, padding or dilation have not as many axes as the input")
    found = []
    for size, width, by, pads, apart in zip(extents, kernel, stride, padding, dilation, strict=True):
        left = size + sum(pads) - apart * (width - 1) - 1
        _need(step, left >= 0, "the kernel is larger than the input")
        _need(step, size + sum(pads) <= _MAX_ELEMENTS, "more padding than input")
        found.append(left // by + 1)
    return tuple(found)


def _need(step: Step, condition: bool, message: str) -> None:
    if not condition:
        raise EncodingError(f"{step.name}: {message}")


def _check(description: Description, tensors: Mapping[str, torch.Tensor]) -> None:
    count = len(description.steps) + 1
    missing = [name for name in tensor_names(description) if name not in tensors]
    if missing:
        raise EncodingError(f"the tensor {missing[0]!r} is missing")
    scales, zeros = tensors[SCALES], tensors[ZERO_POINTS]
    if scales.dtype != torch.float32 or scales.shape != (count,):
        raise EncodingError(f"{SCALES} must be float32 ({count},)")
    if not (torch.isfinite(scales) & (scales > 0)).all():
        raise EncodingError("a scale is not positive and finite")
    if zeros.dtype != torch.int8 or zeros.shape != (count,):
        raise EncodingError(f"{ZERO_POINTS} must be int8 ({count},)")
    bounds = tensors[INPUT_BOUNDS]
    if bounds.dtype != torch.int8 or bounds.shape != (2,) or bool(bounds[0] > bounds[1]):
        raise EncodingError(f"{INPUT_BOUNDS} must be int8 (2,), the least and the greatest code")
    for step in description.steps:
        for part in _TENSORS[type(step)]:
            tensor = tensors[f"{step.name}.{part}"]
            _need(step, tensor.dtype == _DTYPES[part], f"{part} must be {_DTYPES[part]}")
            _need(step, tensor.numel() > 0, f"{part} is empty")
    shapes = shapes_of(description, tensors)
    for number, step in enumerate(description.steps):
        _check_values(step, tensors, shapes[number + 1])
        if isinstance(step, MaxPoolStep | ClampStep | FlattenStep):
            before = step.inputs[0]
            same = bool(scales[before] == scales[number + 1]) and bool(zeros[before] == zeros[number + 1])
            _need(step, same, "it cannot change what codes mean")


def _check_values(step: Step, tensors: Mapping[str, torch.Tensor], shape: Shape) -> None:
    parts = {part: tensors[f"{step.name}.{part}"] for part in _TENSORS[type(step)]}
    channels = shape[-1] if isinstance(step, LinearStep) else shape[0]
    if "bounds" in parts:
        bounds = parts["bounds"]
        many = isinstance(step, LinearStep | ConvolutionStep | ClampStep)
        fits = bounds.ndim == 2 and bounds.shape[0] == 2 and bounds.shape[1] in (1, channels if many else 1)
        _need(step, fits, "the bounds do not fit the channels")
        _need(step, bool((bounds[0] <= bounds[1]).all()), "the least code is above the greatest")
    if "multiplier" in parts:
        terms = len(step.inputs)  # of a pool, one
        if isinstance(step, LinearStep | ConvolutionStep):
            terms = channels
        shifts = 1 if isinstance(step, AddStep) else terms
        _need(step, parts["multiplier"].shape == (terms,), f"the multiplier must have {terms} elements")
        _need(step, parts["shift"].shape == (shifts,), f"the shift must have {shifts} elements")
        _need(step, bool((parts["multiplier"] >= 0).all()), "a multiplier is negative")
        inside = (parts["shift"] >= 1) & (parts["shift"] <= MAX_SHIFT)
        _need(step, bool(inside.all()), f"a shift is not between 1 and {MAX_SHIFT}")
    if "weight" in parts:
        _need(step, parts["bias"].shape == (channels,), "the bias does not fit the outputs")
        most = int(operations.largest_accumulator(parts["weight"], parts["bias"]).max())
        _need(step, most < 1 << 31, f"its accumulators could reach {most}, past the range of int32")
    if isinstance(step, AveragePoolStep):
        most = 256 * math.prod(step.kernel)
        _need(step, most < 1 << 31, f"its accumulators could reach {most}, past the range of int32")

"""What integer networks compute: on int8 codes, with int32 accumulators, and int64 where those are rescaled.

No tensor in here is ever of a floating-point type. With codes q of a zero point Z and step S, weights w of a step T and a
bias b in units of S T, an output is S T (sum w (q - Z) + b) = S T (sum w q + b - Z sum w): the zero point is part of the
bias, and what is accumulated are products of int8 and int8. Padding is Z, the code of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from dcz.compression.integer.requantization import requantize, rounding_shift

__all__ = [
    "LOWEST",
    "average_pool",
    "clamped",
    "convolve",
    "largest_accumulator",
    "linear",
    "max_pool",
    "rescaled",
    "rescaled_sum",
]

LOWEST: Final = -128  # no code is below it: what max-pooling pads with

_WINDOW_ELEMENTS: Final = 1 << 22  # of copies of the inputs that are in memory at once

Pads = Sequence[tuple[int, int]]


def largest_accumulator(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The most that the magnitude of a partial sum can be, for any codes: 128 sum |w| + |b| of each output, int64 (out,)."""
    return 128 * weight.long().abs().flatten(1).sum(1) + bias.long().abs()


def linear(codes: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """sum w q + b: int32 (..., out) from int8 (..., in), int8 (out, in) and int32 (out,)."""
    rows = codes.flatten(0, -2).int()
    return (rows @ weight.int().T + bias).reshape(*codes.shape[:-1], len(bias))


def convolve(
    codes: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    zero_point: int,
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """The same at each place: int32 (batch, out, ...) from int8 (batch, in, ...) and int8 (out, in / groups, ...)."""
    kernel = weight.shape[2:]
    padded = _padded(codes, padding, zero_point)
    out, into = weight.shape[0] // groups, weight.shape[1]
    matrix = weight.int().reshape(groups, out, -1).transpose(1, 2)
    parts = []
    windows = _windows(padded, kernel, stride, dilation)
    places = windows.shape[2 : 2 + len(kernel)]
    step = max(1, _WINDOW_ELEMENTS // max(1, windows[:1].numel()))
    for part in windows.split(step):
        count = len(part)
        rows = part.reshape(count, groups, into, math.prod(places), math.prod(kernel))
        rows = rows.permute(1, 0, 3, 2, 4).reshape(
            groups, count * math.prod(places), into * math.prod(kernel)
        )
        sums = torch.bmm(rows.int(), matrix).reshape(groups, count, math.prod(places), out)
        parts.append(sums.permute(1, 0, 3, 2).reshape(count, groups * out, *places))
    return torch.cat(parts) + bias.reshape(-1, *[1] * len(kernel))


def average_pool(
    codes: torch.Tensor, *, zero_point: int, kernel: Sequence[int], stride: Sequence[int], padding: Pads
) -> torch.Tensor:
    """The sum of q - Z over each window: int32 from int8 (batch, channels, ...)."""
    windows = _windows(_padded(codes, padding, zero_point), kernel, stride, [1] * len(kernel))
    sums = windows.flatten(2 + len(kernel)).sum(-1, dtype=torch.int32)
    return sums - zero_point * math.prod(kernel)


def max_pool(
    codes: torch.Tensor,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
) -> torch.Tensor:
    """int8 from int8 (batch, channels, ...)."""
    return (
        _windows(_padded(codes, padding, LOWEST), kernel, stride, dilation).flatten(2 + len(kernel)).amax(-1)
    )


def rescaled(
    sums: torch.Tensor,
    multiplier: torch.Tensor,
    shift: torch.Tensor,
    axis: int,
    zero_point: int,
    bounds: torch.Tensor,
) -> torch.Tensor:
    """Codes of another step: int8 from int32 sums. ``multiplier``, ``shift``: (1,) or one for each channel of the axis."""
    codes = requantize(sums, _along(multiplier, sums, axis), _along(shift, sums, axis)) + zero_point
    return clamped(codes, bounds, axis)


def rescaled_sum(
    terms: Sequence[torch.Tensor],
    zero_points: Sequence[int],
    multipliers: torch.Tensor,
    shift: torch.Tensor,
    zero_point: int,
    bounds: torch.Tensor,
) -> torch.Tensor:
    """round(sum m_i (q_i - Z_i) / 2^s) + Z: int8 from int8, rounded once."""
    total = torch.zeros_like(terms[0], dtype=torch.int64)
    for term, zero, multiplier in zip(terms, zero_points, multipliers.long(), strict=True):
        total = total + (term.long() - zero) * multiplier
    return clamped(rounding_shift(total, shift) + zero_point, bounds, 1)


def clamped(codes: torch.Tensor, bounds: torch.Tensor, axis: int) -> torch.Tensor:
    """int8, between the least and the greatest code: ``bounds`` is int8 (2, 1) or (2, channels)."""
    low, high = (_along(bound.to(codes.dtype), codes, axis) for bound in bounds)
    return torch.minimum(torch.maximum(codes, low), high).to(torch.int8)


def _along(values: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    shape = [1] * like.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _padded(codes: torch.Tensor, padding: Pads, value: int) -> torch.Tensor:
    if not any(side for pair in padding for side in pair):
        return codes
    extents = codes.shape[2:]
    sizes = [size + sum(pair) for size, pair in zip(extents, padding, strict=True)]
    # functional.pad takes its value through a float.
    padded = codes.new_full((*codes.shape[:2], *sizes), value)
    inner = padded
    for axis, (size, pair) in enumerate(zip(extents, padding, strict=True)):
        inner = inner.narrow(2 + axis, pair[0], size)
    inner.copy_(codes)
    return padded


def _windows(
    codes: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """A view (batch, channels, places ..., kernel ...)."""
    rank = len(kernel)
    view = codes
    for axis in range(rank):
        view = view.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
    every = [slice(None, None, step) for step in dilation]
    return view[..., every[0]] if rank == 1 else view[..., every[0], every[1]]

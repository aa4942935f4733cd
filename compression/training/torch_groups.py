"""The groups of dcz.compression.groups for tensors of torch: what shares parameters, and where each of them goes."""

from __future__ import annotations

import torch

from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor

__all__ = ["check_granularity", "group_means", "rows_of", "spread"]


def check_granularity(granularity: Granularity, shape: tuple[int, ...]) -> None:
    """Raises EncodingError if a tensor of this shape has no such channels."""
    if isinstance(granularity, PerChannel) and granularity.axis >= len(shape):
        raise EncodingError(f"axis {granularity.axis} of a tensor with {len(shape)} dimensions")


def rows_of(tensor: torch.Tensor, granularity: Granularity, fill: float | None = None) -> torch.Tensor:
    """The elements of each group: (groups, elements).

    Where the last group of a row is shorter, it is filled up with ``fill``; None: with the row's last element.
    """
    match granularity:
        case PerTensor():
            return tensor.reshape(1, -1)
        case PerChannel(axis=axis):
            return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
        case PerGroup(size=size):
            length = tensor.shape[-1]
            size = min(size, length)
            rows = tensor.reshape(-1, length)
            if length % size:
                last = rows[:, -1:] if fill is None else rows.new_full((len(rows), 1), fill)
                rows = torch.cat([rows, last.expand(-1, size - length % size)], dim=1)
            return rows.reshape(-1, size)


def group_means(
    tensor: torch.Tensor, granularity: Granularity, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean of each group over what is ``counted`` (bool, None: all): (groups,), float64; 0 where nothing is."""
    counts = torch.ones_like(tensor, dtype=torch.bool) if counted is None else counted
    sums = rows_of(torch.where(counts, tensor, 0), granularity, 0.0).sum(1, dtype=torch.float64)
    return sums / rows_of(counts.double(), granularity, 0.0).sum(1).clamp(min=1)


def spread(parameters: torch.Tensor, shape: tuple[int, ...], granularity: Granularity) -> torch.Tensor:
    """The parameter of each element's group, in a shape that broadcasts to ``shape``. ``parameters``: (groups,)."""
    match granularity:
        case PerTensor():
            return parameters.reshape([1] * len(shape))
        case PerChannel(axis=axis):
            return parameters.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        case PerGroup(size=size):
            length = shape[-1]
            each = parameters.reshape(*shape[:-1], -1, 1).expand(*[-1] * len(shape), min(size, length))
            return each.reshape(*shape[:-1], -1)[..., :length]

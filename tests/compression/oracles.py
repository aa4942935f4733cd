"""What the specification says of quantized tensors (docs/format.md, sections 5.3 and 5.4), written down once more."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcz.format.dtypes import DTYPES
from dcz.format.manifest import PerChannel, PerGroup, PerTensor
from dcz.format.tensors import CodebookTensor, GranularityLike, UniformTensor

Array = np.ndarray[Any, np.dtype[Any]]


def group_numbers(shape: tuple[int, ...], granularity: GranularityLike) -> Array:
    """The group of each element, by the formulas of section 5.4, from the index of the element."""
    match granularity:
        case PerTensor():
            return np.zeros(shape, dtype=np.int64)
        case PerChannel(axis=axis):
            return np.asarray(np.indices(shape)[axis])
        case PerGroup(size=size):
            length = shape[-1] if shape else 1
            element = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
            row, column = element // length, element % length
            return np.asarray(row * -(-length // size) + column // size)
        case _:
            raise AssertionError("no quantizer groups weights so")


def steps_of(tensor: UniformTensor) -> Array:
    """The scale of each element, float64."""
    return np.asarray(tensor.scales.astype(np.float64)[group_numbers(tensor.shape, tensor.granularity)])


def decode_affine(tensor: UniformTensor) -> Array:
    groups = group_numbers(tensor.shape, tensor.granularity)
    if tensor.zero_points is None:
        zero_points = np.full(tensor.shape, 1 << (tensor.bits - 1), dtype=np.int64)
    else:
        zero_points = tensor.zero_points.astype(np.int64)[groups]
    difference = tensor.codes.astype(np.int64).reshape(tensor.shape) - zero_points
    wide = np.float64 if tensor.dtype == "f64" else np.float32
    product = tensor.scales.astype(wide)[groups] * difference.astype(wide)
    values: Array = product.astype(DTYPES[tensor.dtype].numpy)
    return values if tensor.mask is None else np.asarray(np.where(tensor.mask, values, values.dtype.type(0)))


def decode_codebook(tensor: CodebookTensor) -> Array:
    groups = group_numbers(tensor.shape, tensor.granularity)
    values: Array = tensor.centroids[groups, tensor.codes.reshape(tensor.shape)]
    return values if tensor.mask is None else np.asarray(np.where(tensor.mask, values, values.dtype.type(0)))

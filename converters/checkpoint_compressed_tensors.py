"""Checkpoints of compressed-tensors (llm-compressor, vLLM), of the formats whose values are codes:

    pack-quantized    weight_packed i32, weight_shape, weight_scale, weight_zero_point (packed too, down the columns), weight_g_idx
    int-quantized, naive-quantized    weight i8, weight_scale, weight_zero_point
    float-quantized, naive-quantized  weight f8_e4m3fn, weight_scale

They decode to (code - zero point) x scale, computed and given in the type of the scales. What shares a scale follows from the
shape of the scales: the tensor, a row, a group of a row, or a block of rows and columns, whose scale is stored for each row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from dcz.converters.checkpoint_parts import (
    Outlines,
    QuantizedTensor,
    Unread,
    expect,
    field_of,
    read_whole,
    unpacked_bits,
    zero_points_of,
)
from dcz.errors import SourceError
from dcz.format.tensors import (
    AffineTensor,
    GranularityLike,
    Indexed,
    PerChannel,
    PerGroup,
    PerTensor,
    ScaledCodebookTensor,
    TensorData,
)

__all__ = ["compressed_tensors"]

_PACKED: Final = ".weight_packed"
_SCALE: Final = ".weight_scale"
_FORMATS: Final = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
)
_FLOATS: Final = ("f32", "f16", "bf16")
_MAX_GROUPS: Final = 256  # configurations
# Of activations, which a model with plain weights does not quantize.
_ACTIVATIONS: Final = tuple(
    f"{what}_{field}" for what in ("input", "output") for field in ("scale", "zero_point", "global_scale")
)
_F8_VALUES: Final = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
_F8_NAN: Final = (0x7F, 0xFF)


@dataclass(frozen=True)
class _Arguments:
    """How weights were quantized. ``size`` of a group, ``block`` of rows and columns, or None."""

    bits: int
    symmetric: bool
    size: int | None
    block: tuple[int, int] | None


def _arguments(group: Any) -> _Arguments | None:
    weights = group.get("weights") if isinstance(group, dict) else None
    if weights is None:
        return None
    if not isinstance(weights, dict):
        raise SourceError("in the quantization_config, weights is no object")
    bits = field_of(weights, "num_bits", int, 8)
    size = field_of(weights, "group_size", int, -1)
    block = weights.get("block_structure")
    if not 1 <= bits <= 8 or not (size == -1 or 1 <= size <= 1 << 24):
        raise SourceError(f"in the quantization_config, num_bits is {bits} and group_size {size}")
    if block is not None:
        numbers = isinstance(block, list) and len(block) == 2 and all(type(each) is int for each in block)
        if not numbers or not all(1 <= each <= 1 << 24 for each in block):
            raise SourceError(f"in the quantization_config, block_structure is {block!r:.100}")
        block = (block[0], block[1])
    symmetric = field_of(weights, "symmetric", bool, True)
    return _Arguments(bits, symmetric, None if size == -1 else size, block)


def compressed_tensors(config: Mapping[str, Any], outlines: Outlines) -> Iterator[QuantizedTensor]:
    """The modules of a checkpoint of compressed-tensors. Raises SourceError, Unread."""
    groups = field_of(config, "config_groups", dict, {})
    if len(groups) > _MAX_GROUPS:
        raise SourceError(f"the quantization_config has {len(groups)} groups")
    forms = {field_of(config, "format", str, "dense")}
    forms |= {field_of(group, "format", str, "dense") for group in groups.values() if isinstance(group, dict)}
    if unknown := forms - set(_FORMATS):
        raise Unread(f"of compressed-tensors, dcz does not read the format {min(unknown)!r:.100}")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise Unread("of compressed-tensors, dcz does not read checkpoints that are sparse, too")
    transforms = config.get("transform_config")
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        raise Unread(
            "of compressed-tensors, dcz does not read models that turn activations (transform_config)"
        )
    arguments = [found for group in groups.values() if (found := _arguments(group)) is not None]
    for scale in outlines:
        if scale.endswith(_SCALE):
            yield _module(scale.removesuffix(_SCALE), outlines, arguments)


def _module(module: str, outlines: Outlines, arguments: list[_Arguments]) -> QuantizedTensor:
    name, scale = f"{module}.weight", outlines[f"{module}{_SCALE}"]
    expect(scale.dtype.name in _FLOATS, name, f"has scales of {scale.dtype.name}")
    zero, index = f"{module}.weight_zero_point", f"{module}.weight_g_idx"
    parts = [f"{module}{_SCALE}", *(part for part in (zero, index) if part in outlines)]
    packed = outlines.get(f"{module}{_PACKED}")
    expect((packed is None) == (name in outlines), name, "is there twice, or not at all")
    if packed is None:
        shape, kind = outlines[name].shape, outlines[name].dtype.name
        expect(len(shape) == 2, name, f"has the shape {list(shape)}")
        expect(kind in ("i8", "f8_e4m3fn"), name, f"has scales, and is of {kind}")
        fitting = arguments
        parts.append(name)
    else:
        shape = _packed_shape(module, outlines)
        parts += [f"{module}{_PACKED}", f"{module}.weight_shape"]
        words = packed.shape[1]
        fitting = [each for each in arguments if -(-shape[1] * each.bits // 32) == words]
        expect(
            len({each.bits for each in fitting}) == 1,
            name,
            "has codes of no number of bits that is configured",
        )
        kind = "packed"
    expect(min(shape) > 0, name, "is empty")
    expect(bool(fitting), name, "has scales, and no configuration")
    chosen = _chosen(name, fitting, shape, scale.shape)
    expect(zero in outlines or chosen.symmetric, name, f"has no {zero}")
    expect(kind != "f8_e4m3fn" or zero not in outlines, name, "has zero points, and is of f8_e4m3fn")
    others = tuple(part for each in _ACTIVATIONS if (part := f"{module}.{each}") in outlines)
    read = functools.partial(_read, module, kind, shape, chosen, outlines)
    return QuantizedTensor(name, scale.dtype, shape, tuple(parts), read, others)


def _packed_shape(module: str, outlines: Outlines) -> tuple[int, int]:
    name, packed = f"{module}.weight", outlines[f"{module}{_PACKED}"]
    expect(packed.dtype.name == "i32" and len(packed.shape) == 2, name, "has no codes in words of 32 bits")
    given = outlines.get(f"{module}.weight_shape")
    expect(given is not None, name, f"has no {module}.weight_shape")
    assert given is not None
    expect(given.dtype.name in ("i64", "i32") and given.shape == (2,), name, "has no shape of two dimensions")
    rows, columns = read_whole(given).tolist()
    expect(
        rows == packed.shape[0] and 0 < columns <= 32 * packed.shape[1],
        name,
        f"has the shape {[rows, columns]}, and codes of the shape {list(packed.shape)}",
    )
    return rows, columns


def _chosen(
    name: str, fitting: list[_Arguments], shape: tuple[int, ...], scales: tuple[int, ...]
) -> _Arguments:
    """The first of the configurations whose groups are as many as there are scales."""
    for each in fitting:
        if math.prod(scales) == 1 or _groups(each, shape) == (scales if len(scales) == 2 else (*scales, 1)):
            return each
    expect(False, name, f"has scales of the shape {list(scales)}, which fits no configuration")
    raise AssertionError


def _groups(arguments: _Arguments, shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the scales, unless there is one for the tensor."""
    rows, columns = shape
    if arguments.block is not None:
        return -(-rows // arguments.block[0]), -(-columns // arguments.block[1])
    return rows, 1 if arguments.size is None else -(-columns // arguments.size)


def _granularity(
    module: str, shape: tuple[int, ...], chosen: _Arguments, outlines: Outlines
) -> GranularityLike:
    scales = outlines[f"{module}{_SCALE}"].shape
    index = outlines.get(f"{module}.weight_g_idx")
    if math.prod(scales) == 1:
        return PerTensor()
    groups = _groups(chosen, shape)[1]
    size = chosen.block[1] if chosen.block is not None else chosen.size
    if size is None or size >= shape[1]:
        return PerChannel(axis=0)
    if index is not None:
        found = read_whole(index)
        right = index.dtype.name in ("i32", "i64") and found.shape == (shape[1],)
        expect(
            right and int(found.min()) >= 0 and int(found.max()) < min(groups, 1 << 16),
            f"{module}.weight",
            f"has a weight_g_idx that is not of {shape[1]} columns and {groups} groups",
        )
        if bool((found != np.arange(shape[1]) // size).any()):
            return Indexed(found.astype(np.uint16), groups)
    return PerGroup(size=size)


def _of_rows(values: np.ndarray, granularity: GranularityLike, chosen: _Arguments, rows: slice) -> np.ndarray:
    """The parameters of some rows, one for each group."""
    if isinstance(granularity, PerTensor):
        return values.reshape(1)
    if chosen.block is not None:
        values = np.repeat(values, chosen.block[0], axis=0)
    return np.ascontiguousarray(values[rows]).reshape(-1)


def _read(
    module: str,
    kind: str,
    shape: tuple[int, ...],
    chosen: _Arguments,
    outlines: Outlines,
    start: int,
    stop: int,
) -> TensorData:
    scale = outlines[f"{module}{_SCALE}"]
    granularity = _granularity(module, shape, chosen, outlines)
    rows, here = slice(start, stop), (stop - start, shape[1])
    scales = _of_rows(read_whole(scale), granularity, chosen, rows)
    stored = outlines[f"{module}{_PACKED}" if kind == "packed" else f"{module}.weight"].read(start, stop)
    assert isinstance(stored, np.ndarray)
    if kind == "f8_e4m3fn":
        codes = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
        expect(not np.isin(codes, _F8_NAN).any(), f"{module}.weight", "has weights that are no numbers")
        table = np.where(np.isnan(_F8_VALUES), np.float32(0), _F8_VALUES)
        return ScaledCodebookTensor(scale.dtype.name, here, 8, codes, table, scales, granularity)
    bits = chosen.bits if kind == "packed" else 8
    codes = (
        unpacked_bits(stored, bits, shape[1]) if kind == "packed" else stored.view(np.uint8) ^ np.uint8(128)
    )
    points: np.ndarray | int | None = None
    if f"{module}.weight_zero_point" in outlines:
        found = _zero_points(module, shape[0], bits, outlines)
        points = zero_points_of(_of_rows(found, granularity, chosen, rows), bits)
    return AffineTensor(
        scale.dtype.name, here, bits, np.ascontiguousarray(codes).reshape(-1), scales, granularity, points
    )


def _zero_points(module: str, rows: int, bits: int, outlines: Outlines) -> np.ndarray:
    """As codes, uint8, of the shape of the scales: packed down the columns, or as they are."""
    name, zero = f"{module}.weight", outlines[f"{module}.weight_zero_point"]
    wanted = outlines[f"{module}{_SCALE}"].shape
    found = read_whole(zero)
    if zero.dtype.name == "i32" and len(wanted) == 2:
        expect(
            found.shape == (-(-rows * bits // 32), wanted[1]) and wanted[0] == rows,
            name,
            f"has packed zero points of the shape {list(found.shape)} for scales of {list(wanted)}",
        )
        return unpacked_bits(found.T, bits, rows).T
    expect(
        zero.dtype.name == "i8" and zero.shape == wanted,
        name,
        f"has zero points of {zero.dtype.name} {list(zero.shape)}",
    )
    points = found.astype(np.int16) + (1 << (bits - 1))
    expect(
        int(points.min()) >= 0 and int(points.max()) >> bits == 0,
        name,
        f"has zero points of more than {bits} bits",
    )
    return points.astype(np.uint8)

"""Layout x values x coding: from a segment's streams to elements (docs/format.md, section 5).

Positions and values are decoded apart and then put together; neither knows the other's kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format import layout as spec
from dcz.format.coding import decode_stream, unzip
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import (
    Affine,
    Bitmap,
    Codebook,
    Dense,
    Exact,
    PerChannel,
    PerGroup,
    PerTensor,
    RelativeIndex,
)

if TYPE_CHECKING:
    from dcz.format.geometry import Stream, TensorGeometry
    from dcz.format.manifest import Granularity

__all__ = [
    "Parameters",
    "decode_entries",
    "decode_parameters",
    "decode_segment",
    "decode_values",
    "groups_of",
]


@dataclass(frozen=True, eq=False)
class Parameters:
    """The decoded parameter part of a tensor: which fields are set depends on the kind of its values."""

    centroids: np.ndarray | None = None  # uint8: the bytes of groups x size elements
    scales: np.ndarray | None = None  # float32, or float64 for f64 tensors, one for each group
    zero_points: np.ndarray | None = None  # uint8, one for each group, or None for 2**(bits-1)


def groups_of(granularity: Granularity, shape: tuple[int, ...]) -> tuple[str, int, int]:
    """The granularity as the kernels want it: kind, elements of an inner run or row, and channels or group size."""
    match granularity:
        case PerTensor():
            return ("tensor", 1, 1)
        case PerChannel(axis=axis):
            return ("channel", math.prod(shape[axis + 1 :]), shape[axis])
        case PerGroup(size=size):
            return ("group", shape[-1] if shape else 1, size)


def _split(part: memoryview, streams: list[Stream]) -> list[memoryview]:
    out, at = [], 0
    for stream in streams:
        out.append(part[at : at + stream.length])
        at += stream.length
    return out


def _check_bool(geometry: TensorGeometry, elements: np.ndarray) -> None:
    if geometry.tensor.dtype == "bool" and elements.size and int(elements.max()) > 1:
        raise CorruptStream("a bool is neither 0 nor 1")


def decode_parameters(geometry: TensorGeometry, part: memoryview) -> Parameters:
    """The parameter part of a tensor. Raises CorruptStream."""
    streams = geometry.parameter_part()
    decoded = [decode_stream(data, s) for data, s in zip(_split(part, streams), streams, strict=True)]
    values = geometry.tensor.values
    if isinstance(values, Codebook):
        _check_bool(geometry, decoded[0])
        return Parameters(centroids=decoded[0])
    if isinstance(values, Affine):
        dtype = geometry.tensor.scale_dtype
        scales = decoded[0].view(DTYPES[dtype].numpy).astype(np.float64 if dtype == "f64" else np.float32)
        if not np.isfinite(scales).all():
            raise CorruptStream("a scale is not finite")
        return Parameters(scales=scales, zero_points=decoded[1] if values.zero_points else None)
    return Parameters()


def decode_values(
    geometry: TensorGeometry,
    parameters: Parameters,
    codes: np.ndarray,
    start: int,
    positions: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """Codes to elements. ``start`` is the tensor's element from which ``positions`` (None: all) count."""
    values = geometry.tensor.values
    if codes.size == 0:
        return
    if isinstance(values, Codebook):
        groups = groups_of(values.granularity, geometry.tensor.shape)
        centroids = parameters.centroids
        _native.look_up(codes, centroids, values.size, geometry.dtype.itemsize, groups, start, positions, out)  # type: ignore[arg-type]
    elif isinstance(values, Affine):
        groups = groups_of(values.granularity, geometry.tensor.shape)
        _native.dequantize(
            codes,
            parameters.scales,  # type: ignore[arg-type]
            parameters.zero_points,
            values.bits,
            geometry.tensor.dtype,
            groups,
            start,
            positions,
            out,
        )


def _decode_stored(
    geometry: TensorGeometry,
    parameters: Parameters,
    segment: int,
    streams: list[tuple[Stream, memoryview]],
    positions: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """The stored entries of a segment, one behind the other, into ``out`` (uint8)."""
    values = geometry.tensor.values
    if not isinstance(values, Exact):
        stream, data = streams[0]
        decode_values(
            geometry,
            parameters,
            decode_stream(data, stream),
            segment * geometry.tensor.segment,
            positions,
            out,
        )
        return
    if values.split == "whole":
        stream, data = streams[0]
        decode_stream(data, stream, out)
    elif out.size == 0:
        for stream, data in streams:
            decode_stream(data, stream)
    else:
        planes = [
            (stream.coding == spec.HUFFMAN, unzip(data, stream) if stream.coding == spec.ZSTD else data)
            for stream, data in streams
        ]
        _native.decode_planes(planes, values.split == "rotated", out)
    _check_bool(geometry, out)


def _decode_positions(geometry: TensorGeometry, segment: int, stream: Stream, data: memoryview) -> np.ndarray:
    symbols = decode_stream(data, stream)
    positions = np.empty(geometry.segment_entries(segment), np.uint32)
    elements = geometry.segment_elements(segment)
    match geometry.tensor.layout:
        case RelativeIndex(bits=bits):
            _native.gap_positions(symbols, bits, elements, positions)
        case Bitmap():
            _native.bitmap_positions(symbols, elements, positions)
        case Dense():
            raise AssertionError("a dense layout has no position stream")
    return positions


def decode_entries(
    geometry: TensorGeometry, parameters: Parameters, segment: int, part: memoryview
) -> tuple[np.ndarray | None, np.ndarray]:
    """The stored entries of a segment: positions (uint32, from the segment's start; None for all) and their elements
    (uint8, itemsize bytes each). Raises CorruptStream."""
    streams = geometry.segment_part(segment)
    coded = list(zip(streams, _split(part, streams), strict=True))
    positions = None
    if geometry.position_streams:
        positions = _decode_positions(geometry, segment, *coded.pop(0))
    out = np.empty(geometry.segment_entries(segment) * geometry.dtype.itemsize, np.uint8)
    _decode_stored(geometry, parameters, segment, coded, positions, out)
    return positions, out


def decode_segment(
    geometry: TensorGeometry, parameters: Parameters, segment: int, part: memoryview, out: np.ndarray
) -> None:
    """All elements of a segment into ``out`` (uint8, contiguous, of their size). Raises CorruptStream."""
    if geometry.position_streams:
        positions, values = decode_entries(geometry, parameters, segment, part)
        assert positions is not None
        _native.scatter(positions, values, geometry.dtype.itemsize, out)
    else:
        streams = geometry.segment_part(segment)
        coded = list(zip(streams, _split(part, streams), strict=True))
        _decode_stored(geometry, parameters, segment, coded, None, out)

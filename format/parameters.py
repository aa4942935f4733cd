"""The parameter streams of a tensor: which there are, and what they hold (docs/format.md, sections 5.3, 5.4 and 5.6).

Codes of scales and minimums are decoded as the codes of tensors are: they are affine values, or a scaled codebook, of one
dimension.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcz import _native
from dcz.errors import CorruptStream
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import (
    Affine,
    AffineCoded,
    Codebook,
    CodebookCoded,
    Exact,
    PerChannel,
    PerFlat,
    PerGroup,
    PerIndex,
    PerTensor,
    ScaledCodebook,
    Vectors,
)
from dcz.format.tensors import group_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dcz.format.manifest import Parameters, StoredGranularity, Tensor

__all__ = ["Groups", "ParameterStream", "expanded_bytes", "groups_of", "parameter_streams", "read_parameters"]


class ParameterStream(NamedTuple):
    """``role``: what it holds; behind a dot, what of the codes of scales or minimums. ``symbols`` of ``width`` bits."""

    role: str
    symbols: int
    width: int


class Groups(NamedTuple):
    """A granularity as the kernels want it: kind, elements of an inner run or row, and channels or group size."""

    kind: str
    inner: int
    extent: int


def groups_of(granularity: StoredGranularity, shape: tuple[int, ...]) -> Groups:
    match granularity:
        case PerTensor():
            return Groups("tensor", 1, 1)
        case PerChannel(axis=axis):
            return Groups("channel", math.prod(shape[axis + 1 :]), shape[axis])
        case PerGroup(size=size):
            return Groups("group", shape[-1] if shape else 1, size)
        case PerFlat(size=size):
            return Groups("group", math.prod(shape), size)
        case PerIndex(groups=groups):
            return Groups("indexed", shape[-1] if shape else 1, groups)


def _values(role: str, how: Parameters, dtype: str, groups: int) -> list[ParameterStream]:
    """The streams of scales or minimums."""
    if not isinstance(how, AffineCoded | CodebookCoded):
        return [ParameterStream(role, groups * DTYPES[dtype].itemsize, 8)]
    streams = [ParameterStream(f"{role}.codes", groups, how.bits)]
    if isinstance(how, CodebookCoded):
        streams.append(ParameterStream(f"{role}.table", how.size * 4, 8))
    supers = -(-groups // how.group)
    streams.append(ParameterStream(f"{role}.scales", supers * DTYPES[how.dtype].itemsize, 8))
    if isinstance(how, CodebookCoded) and how.offset:
        streams.append(ParameterStream(f"{role}.offset", 4, 8))
    return streams


def parameter_streams(tensor: Tensor) -> list[ParameterStream]:
    """In the order of the file."""
    values, itemsize = tensor.values, DTYPES[tensor.dtype].itemsize
    if isinstance(values, Exact):
        return []
    if isinstance(values, Vectors):
        d = values.dimension
        tables = (tensor.shape[-1] if tensor.shape else 1) // d if values.per_place else 1
        return [ParameterStream("codewords", tables * values.size * d * itemsize, 8)]
    groups = group_count(values.granularity, tensor.shape)
    match values:
        case Codebook(size=size):
            streams = [ParameterStream("centroids", groups * size * itemsize, 8)]
        case ScaledCodebook(size=size):
            streams = _values("scales", values.scale_values, tensor.scale_dtype, groups)
            streams.append(ParameterStream("table", size * (8 if tensor.dtype == "f64" else 4), 8))
        case Affine():
            streams = _values("scales", values.scale_values, tensor.scale_dtype, groups)
            if values.zero_points:
                streams.append(ParameterStream("zero points", groups, values.zero_point_bits or values.bits))
            if values.minimums:
                streams += _values("minimums", values.minimum_values, tensor.scale_dtype, groups)
    if isinstance(values.granularity, PerIndex):
        streams.append(ParameterStream("index", 2 * (tensor.shape[-1] if tensor.shape else 1), 8))
    return streams


def expanded_bytes(tensor: Tensor) -> int:
    """What the codes of scales and minimums become in memory, beyond their streams."""
    values = tensor.values
    if not isinstance(values, Affine | ScaledCodebook):
        return 0
    coded = isinstance(values.scale_values, AffineCoded | CodebookCoded)
    more = isinstance(values, Affine) and isinstance(values.minimum_values, AffineCoded | CodebookCoded)
    return 4 * group_count(values.granularity, tensor.shape) * (coded + more)


def decode_codes(
    decoder: _native.SegmentDecoder, streams: Sequence[np.ndarray], first: int, entries: int, out: np.ndarray
) -> None:
    """All elements of a segment of which the symbols (uint8) are there already, into ``out`` (uint8). ``entries``: stored
    elements."""
    decoder.decode(
        b"",
        0,
        [(0, 0, stream.size, 8) for stream in streams],
        dict(enumerate(streams)),
        first,
        entries,
        False,
        out,
    )


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    # There may be millions, and new memory for a bool of each takes longer than this. NaN is the least and the largest.
    with np.errstate(invalid="ignore"):
        ends = (values.min(), values.max()) if values.size else ()
    if not np.isfinite(ends).all():
        raise CorruptStream(f"a {what} is not finite")
    return values


def _wide(data: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers (uint8) of a type, as float32, or float64 for f64, in memory of their own."""
    return data.view(DTYPES[dtype].numpy).astype(np.float64 if dtype == "f64" else np.float32)


def _read_values(symbols: dict[str, np.ndarray], role: str, how: Parameters, dtype: str) -> np.ndarray:
    """Scales or minimums, float32 or float64 (groups,)."""
    what = role.removesuffix("s")
    if not isinstance(how, AffineCoded | CodebookCoded):
        return _finite(_wide(symbols[role], dtype), what)
    codes = symbols[f"{role}.codes"]
    supers = _finite(_wide(symbols[f"{role}.scales"], how.dtype), f"scale of {role}")
    groups = Groups("group", codes.size, how.group)
    if isinstance(how, AffineCoded):
        decoder = _native.SegmentDecoder.affine(
            "dense", 8, "f32", how.bits, groups, supers, None, None, how.zero_point
        )
    else:
        table = _finite(_wide(symbols[f"{role}.table"], "f32"), f"value of a table of {role}")
        offsets = None
        if how.offset:
            offset = _finite(_wide(symbols[f"{role}.offset"], "f32"), f"offset of {role}")
            offsets = np.repeat(offset, supers.size)
        decoder = _native.SegmentDecoder.scaled_codebook("dense", 8, "f32", groups, supers, table, offsets)
    out = np.empty(codes.size, np.float32)
    decode_codes(decoder, [codes], 0, codes.size, out.view(np.uint8))
    return _finite(out, what)


def read_parameters(tensor: Tensor, symbols: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From the symbols (uint8) of each stream, by its role, to what a decoder wants: ``scales`` and ``minimums`` (float32,
    or float64 for f64 tensors), ``zero points`` (uint8), ``table`` (as scales), ``index`` (uint16), and ``centroids`` or
    ``codewords`` (uint8). Raises CorruptStream for what the format does not allow.
    """
    values, found = tensor.values, {}
    if isinstance(values, Affine | ScaledCodebook):
        found["scales"] = _read_values(symbols, "scales", values.scale_values, tensor.scale_dtype)
    if isinstance(values, Affine) and values.minimums:
        found["minimums"] = _read_values(symbols, "minimums", values.minimum_values, tensor.scale_dtype)
    if "table" in symbols:
        found["table"] = _finite(
            _wide(symbols["table"], "f64" if tensor.dtype == "f64" else "f32"), "value of the table"
        )
    if "index" in symbols:
        found["index"] = symbols["index"].view("<u2")
        granularity = values.granularity  # type: ignore[union-attr]
        if isinstance(granularity, PerIndex) and int(found["index"].max(initial=0)) >= granularity.groups:
            raise CorruptStream("a column belongs to a group that is not there")
    for role in ("zero points", "centroids", "codewords"):
        if role in symbols:
            found[role] = symbols[role]
            if tensor.dtype == "bool" and role != "zero points" and int(found[role].max(initial=0)) > 1:
                raise CorruptStream("a bool is neither 0 nor 1")
    return found

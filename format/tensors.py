"""What a compression method or an importer hands to the writer: codes and their parameters, before any coding.

The kinds of values (docs/format.md, section 5.3) correspond to a plain numpy array (exact), AffineTensor, CodebookTensor,
ScaledCodebookTensor and VectorCodebookTensor. Layout and coding are not theirs to choose. What a reader makes of them,
dcz.format.decoded says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from dcz.errors import EncodingError
from dcz.format import layout as spec
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import PerChannel, PerFlat, PerGroup, PerIndex, PerTensor

if TYPE_CHECKING:
    from dcz.format.manifest import Granularity, StoredGranularity

__all__ = [
    "AffineParameters",
    "AffineTensor",
    "CodebookParameters",
    "CodebookTensor",
    "CodedTensor",
    "GranularityLike",
    "Indexed",
    "ParameterValues",
    "PerChannel",
    "PerFlat",
    "PerGroup",
    "PerTensor",
    "ScaledCodebookTensor",
    "TensorBase",
    "TensorData",
    "UniformTensor",
    "VectorCodebookTensor",
    "group_count",
    "parameter_values",
]


@dataclass(frozen=True, eq=False)
class Indexed:
    """Each column of the last axis, of L elements, belongs to a group of its row that ``index`` names: uint16 (L,), below
    ``groups``, which are as many as it needs unless given, 1 to 65536. (GPTQ's ``g_idx``.)

    The parameters of row r and group g stand at r x groups + g. Raises EncodingError.
    """

    index: np.ndarray
    groups: int = 0

    def __post_init__(self) -> None:
        if self.index.dtype != np.uint16 or self.index.ndim != 1 or not self.index.size:
            raise EncodingError(f"an index must be uint16 (L,), not {self.index.shape} {self.index.dtype}")
        needed = int(self.index.max()) + 1
        if not self.groups:
            object.__setattr__(self, "groups", needed)
        if not needed <= self.groups <= spec.MAX_INDEXED_GROUPS:
            raise EncodingError(f"an index of {needed} groups, and {self.groups} of them")


GranularityLike: TypeAlias = PerTensor | PerChannel | PerGroup | PerFlat | Indexed


def group_count(granularity: StoredGranularity | Indexed, shape: tuple[int, ...]) -> int:
    """How many groups a tensor of this shape has (docs/format.md, section 5.4)."""
    match granularity:
        case PerTensor():
            return 1
        case PerChannel(axis=axis):
            return shape[axis]
        case PerGroup(size=size):
            last = shape[-1] if shape else 1
            return math.prod(shape[:-1]) * -(-last // size)
        case PerFlat(size=size):
            return -(-math.prod(shape) // size)
        case PerIndex(groups=groups) | Indexed(groups=groups):
            return math.prod(shape[:-1]) * groups


_NESTED_SCALES: Final = ("f32", "f16", "bf16")


def _check_codes(codes: np.ndarray, count: int, bits: int, group: int, scales: np.ndarray) -> None:
    if not 1 <= bits <= 8:
        raise EncodingError(f"codes of {bits} bits: 1 to 8 are possible")
    if codes.dtype != np.uint8 or codes.shape != (count,):
        raise EncodingError(f"codes of parameters must be uint8 (groups,), not {codes.shape} {codes.dtype}")
    if count and int(codes.max()) >> bits:
        raise EncodingError(f"a parameter's code does not fit in {bits} bits")
    if not 1 <= group <= spec.MAX_GROUP:
        raise EncodingError(f"{group} parameters that share a scale: 1 to {spec.MAX_GROUP} are possible")
    if scales.dtype not in [DTYPES[name].numpy for name in _NESTED_SCALES]:
        raise EncodingError(f"scales of {scales.dtype}: {', '.join(_NESTED_SCALES)} are possible")
    if scales.shape != (-(-count // group),):
        raise EncodingError(f"{scales.shape} scales for {count} parameters, {group} of which share one")


@dataclass(frozen=True, eq=False)
class AffineParameters:
    """Scales or minimums that are codes themselves: parameter i = scales[i div group] x (codes[i] - zero_point), rounded to
    binary32. (The k-quants of GGUF.)

    ``codes``: uint8 (groups of the tensor,), below 2**bits. ``scales``: (ceil(groups / group),), of the type in which they
    are to be stored: float32, float16 or bfloat16. ``zero_point``: 0 to 255. All parameters are finite. Raises EncodingError.
    """

    codes: np.ndarray
    bits: int
    scales: np.ndarray
    group: int
    zero_point: int = 0

    def __post_init__(self) -> None:
        _check_codes(self.codes, self.codes.size, self.bits, self.group, self.scales)
        if not 0 <= self.zero_point <= 255:
            raise EncodingError(f"a zero point of {self.zero_point}: 0 to 255 are possible")
        _check_finite(parameter_values(self), "parameter")


@dataclass(frozen=True, eq=False)
class CodebookParameters:
    """Scales or minimums that are codes themselves: parameter i = table[codes[i]] x scales[i div group] + offset, product and
    sum rounded to binary32, one after the other. (The double quantization of bitsandbytes.)

    ``codes``: uint8 (groups of the tensor,), below the size of the table. ``table``: float32, 1 to 2**bits values. ``scales``
    and ``group``: as in AffineParameters. ``offset``: a binary32 number, or None. All parameters are finite. Raises
    EncodingError.
    """

    codes: np.ndarray
    bits: int
    table: np.ndarray
    scales: np.ndarray
    group: int
    offset: float | None = None

    def __post_init__(self) -> None:
        _check_codes(self.codes, self.codes.size, self.bits, self.group, self.scales)
        _check_table(self.table, np.dtype("<f4"), self.bits)
        if self.codes.size and int(self.codes.max()) >= self.table.size:
            raise EncodingError(f"a parameter's code has no value: there are {self.table.size}")
        if self.offset is not None and float(np.float32(self.offset)) != self.offset:
            raise EncodingError(f"the offset {self.offset} is not a finite binary32 number")
        _check_finite(parameter_values(self), "parameter")


ParameterValues: TypeAlias = "np.ndarray | AffineParameters | CodebookParameters"


def parameter_values(parameters: ParameterValues) -> np.ndarray:
    """The parameters themselves: float32 (groups,), or float64 where they are stored so."""
    if isinstance(parameters, np.ndarray):
        return parameters if parameters.dtype == np.float64 else parameters.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        each = np.repeat(parameters.scales.astype(np.float32), parameters.group)[: parameters.codes.size]
        if isinstance(parameters, AffineParameters):
            codes = parameters.codes.astype(np.int32) - parameters.zero_point
            return np.asarray(each * codes.astype(np.float32))
        product = parameters.table.astype(np.float32)[parameters.codes] * each
        return product if parameters.offset is None else np.asarray(product + np.float32(parameters.offset))


def _check(
    dtype: str,
    shape: tuple[int, ...],
    bits: int,
    codes: np.ndarray,
    granularity: GranularityLike,
    mask: np.ndarray | None,
) -> int:
    """The rules that the kinds with groups share; returns the number of groups."""
    n = _check_elements(dtype, shape, bits)
    if codes.dtype != np.uint8 or codes.size != n:
        raise EncodingError(f"codes must be {n} uint8, not {codes.size} {codes.dtype}")
    if mask is not None and (mask.dtype != np.bool_ or mask.size != n):
        raise EncodingError(f"the mask must be {n} bool, not {mask.size} {mask.dtype}")
    if isinstance(granularity, PerChannel) and granularity.axis >= len(shape):
        raise EncodingError(f"axis {granularity.axis} of a tensor with {len(shape)} dimensions")
    if isinstance(granularity, Indexed) and granularity.index.size != (shape[-1] if shape else 1):
        raise EncodingError(f"an index of {granularity.index.size} columns for a tensor of shape {shape}")
    return group_count(granularity, shape)


def _check_elements(dtype: str, shape: tuple[int, ...], bits: int) -> int:
    if dtype not in DTYPES:
        raise EncodingError(f"unknown element type {dtype!r}")
    if not 1 <= bits <= 8:
        raise EncodingError(f"codes of {bits} bits: 1 to 8 are possible")
    n = math.prod(shape)
    if n == 0:
        raise EncodingError("a tensor without elements has nothing to quantize")
    return n


def _check_finite(parameters: np.ndarray, what: str) -> None:
    if not np.isfinite(parameters.astype(np.float64)).all():
        raise EncodingError(f"a {what} is not finite")


def _check_parameters(parameters: ParameterValues, what: str, dtype: str, groups: int) -> None:
    """The rules for the scales or the minimums of a tensor of type ``dtype``."""
    if not DTYPES[dtype].is_float:
        raise EncodingError(f"{what}s are for floating-point tensors, not for {dtype}")
    if not isinstance(parameters, np.ndarray):
        if dtype == "f64":
            raise EncodingError(f"{what}s of an f64 tensor are stored as they are")
        if parameters.codes.shape != (groups,):
            raise EncodingError(f"{parameters.codes.size} {what}s for {groups} groups")
        return
    allowed = ("f64",) if dtype == "f64" else ("f32", "f16", "bf16")
    if parameters.dtype not in [DTYPES[name].numpy for name in allowed]:
        raise EncodingError(f"{what}s of {parameters.dtype}: {', '.join(allowed)} are possible for {dtype}")
    if parameters.shape != (groups,):
        raise EncodingError(f"{what}s of shape {parameters.shape} for {groups} groups")
    _check_finite(parameters, what)


def _check_table(table: np.ndarray, dtype: np.dtype[np.generic], bits: int) -> None:
    if table.dtype != dtype or table.ndim != 1 or not 1 <= table.size <= 1 << bits:
        raise EncodingError(
            f"a table must have 1 to {1 << bits} values of {dtype}, not {table.shape} of {table.dtype}"
        )
    _check_finite(table, "value of a table")


@dataclass(frozen=True, eq=False)
class AffineTensor:
    """Uniform quantization: element = scale x (code - zero point), plus the minimum if there is one, rounded to ``dtype``.

    ``codes``: uint8, one for each element, C order, below 2**bits. ``scales``: (groups,), finite, of the type in which
    they are to be stored: float32, float16 or bfloat16, or float64 for an f64 tensor; or codes themselves.
    ``zero_points``: uint8 (groups,), or one for all, 0 to 255, or None for 2**(bits-1). ``mask``: bool, which positions are
    stored, None for all; where it is False the element is 0 and the code is ignored. ``minimums``: as ``scales``, and of
    the same type where both are stored as they are; or None.

    Raises EncodingError if the parts do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int
    codes: np.ndarray
    scales: ParameterValues
    granularity: GranularityLike
    zero_points: np.ndarray | int | None = None
    mask: np.ndarray | None = None
    minimums: ParameterValues | None = None

    def __post_init__(self) -> None:
        groups = _check(self.dtype, self.shape, self.bits, self.codes, self.granularity, self.mask)
        _check_parameters(self.scales, "scale", self.dtype, groups)
        scales, minimums = self.scales, self.minimums
        if minimums is not None:
            _check_parameters(minimums, "minimum", self.dtype, groups)
            if (
                isinstance(scales, np.ndarray)
                and isinstance(minimums, np.ndarray)
                and scales.dtype != minimums.dtype
            ):
                raise EncodingError(f"scales of {scales.dtype} and minimums of {minimums.dtype}")
        points = self.zero_points
        if isinstance(points, np.ndarray):
            if points.dtype != np.uint8 or points.shape != (groups,):
                raise EncodingError(f"zero points must be {groups} uint8, not {points.shape} {points.dtype}")
        elif points is not None and not 0 <= points <= 255:
            raise EncodingError(f"a zero point of {points}: 0 to 255 are possible")


@dataclass(frozen=True, eq=False)
class UniformTensor(AffineTensor):
    """An AffineTensor with an array of scales, and of zero points if it has some: what quantizers make of weights."""

    scales: np.ndarray
    granularity: Granularity
    zero_points: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CodebookTensor:
    """Weight sharing: element = the centroid that its code names.

    ``codes``: uint8, one for each element, C order, below ``k``. ``centroids``: (groups, k), of the tensor's type, with
    k at most 2**bits. ``mask``: as in AffineTensor.

    Raises EncodingError if the parts do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int
    codes: np.ndarray
    centroids: np.ndarray
    granularity: GranularityLike
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        groups = _check(self.dtype, self.shape, self.bits, self.codes, self.granularity, self.mask)
        if self.centroids.dtype != DTYPES[self.dtype].numpy:
            raise EncodingError(f"centroids of {self.centroids.dtype} for a tensor of {self.dtype}")
        if self.centroids.ndim != 2 or self.centroids.shape[0] != groups:
            raise EncodingError(f"centroids of shape {self.centroids.shape} for {groups} groups")
        if not 1 <= self.centroids.shape[1] <= 1 << self.bits:
            raise EncodingError(f"{self.centroids.shape[1]} centroids do not fit in {self.bits} bits")


@dataclass(frozen=True, eq=False)
class ScaledCodebookTensor:
    """Shared values with a scale for each group: element = scale x table[code], rounded to ``dtype``.

    ``codes``: uint8, one for each element, C order, below the size of the table. ``table``: float32 (float64 for an f64
    tensor), finite, 1 to 2**bits values. ``scales``, ``mask``: as in AffineTensor.

    Raises EncodingError if the parts do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int
    codes: np.ndarray
    table: np.ndarray
    scales: ParameterValues
    granularity: GranularityLike
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        groups = _check(self.dtype, self.shape, self.bits, self.codes, self.granularity, self.mask)
        _check_parameters(self.scales, "scale", self.dtype, groups)
        _check_table(self.table, np.dtype("<f8" if self.dtype == "f64" else "<f4"), self.bits)


@dataclass(frozen=True, eq=False)
class VectorCodebookTensor:
    """Vectors of d neighbours of a row share a code: they are the codeword that it names.

    ``codes``: uint8 (elements / d,), in C order. ``codewords``: (tables, size, d), of the tensor's type, with size at most
    2**bits and d at most 65536; d divides the last dimension. There is one table; or with ``per_place`` one for each of the
    L / d places of a row.

    Raises EncodingError if the parts do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int
    codes: np.ndarray
    codewords: np.ndarray
    per_place: bool = False

    def __post_init__(self) -> None:
        n = _check_elements(self.dtype, self.shape, self.bits)
        words = self.codewords
        if words.dtype != DTYPES[self.dtype].numpy or words.ndim != 3:
            raise EncodingError(f"codewords of {words.shape} {words.dtype} for a tensor of {self.dtype}")
        tables, size, d = words.shape
        last = self.shape[-1] if self.shape else 1
        if not 1 <= d <= spec.MAX_DIMENSION or last % d:
            raise EncodingError(f"codewords of {d} elements for rows of {last}")
        if tables != (last // d if self.per_place else 1):
            raise EncodingError(f"{tables} tables for rows of {last // d} codes")
        if not 1 <= size <= 1 << self.bits:
            raise EncodingError(f"{size} codewords do not fit in {self.bits} bits")
        if self.codes.dtype != np.uint8 or self.codes.size != n // d:
            raise EncodingError(f"codes must be {n // d} uint8, not {self.codes.size} {self.codes.dtype}")


CodedTensor: TypeAlias = AffineTensor | CodebookTensor | ScaledCodebookTensor | VectorCodebookTensor
TensorData: TypeAlias = np.ndarray | CodedTensor


@dataclass(frozen=True, eq=False)
class TensorBase:
    """The tensor of a base, to which a tensor of the same type and shape can be stored as differences (section 5.5).

    ``content``: its elements. ``index``: the number of the base among those that the writer was given. ``name``: its name
    there; None for the same. ``operation``: ``auto`` takes the smallest, which may be to store no differences.
    """

    content: np.ndarray
    index: int = 0
    name: str | None = None
    operation: Literal["auto", "xor", "difference"] = "auto"

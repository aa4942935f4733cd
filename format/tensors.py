"""What a compression method hands to the writer: codes and their parameters, before any coding.

The three kinds of values (docs/format.md, section 5.3) correspond to a plain numpy array (exact), AffineTensor and
CodebookTensor. Layout and coding are not theirs to choose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import PerChannel, PerGroup, PerTensor

if TYPE_CHECKING:
    from dcz.format.manifest import Granularity

__all__ = [
    "AffineTensor",
    "CodebookTensor",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "TensorData",
    "group_count",
]


def group_count(granularity: Granularity, shape: tuple[int, ...]) -> int:
    """How many groups a tensor of this shape has (docs/format.md, section 5.4)."""
    match granularity:
        case PerTensor():
            return 1
        case PerChannel(axis=axis):
            return shape[axis]
        case PerGroup(size=size):
            last = shape[-1] if shape else 1
            return math.prod(shape[:-1]) * -(-last // size)


def _check(
    dtype: str,
    shape: tuple[int, ...],
    bits: int,
    codes: np.ndarray,
    granularity: Granularity,
    mask: np.ndarray | None,
) -> int:
    """The rules that both kinds share; returns the number of groups."""
    if dtype not in DTYPES:
        raise EncodingError(f"unknown element type {dtype!r}")
    if not 1 <= bits <= 8:
        raise EncodingError(f"codes of {bits} bits: 1 to 8 are possible")
    n = math.prod(shape)
    if n == 0:
        raise EncodingError("a tensor without elements has nothing to quantize")
    if codes.dtype != np.uint8 or codes.size != n:
        raise EncodingError(f"codes must be {n} uint8, not {codes.size} {codes.dtype}")
    if mask is not None and (mask.dtype != np.bool_ or mask.size != n):
        raise EncodingError(f"the mask must be {n} bool, not {mask.size} {mask.dtype}")
    if isinstance(granularity, PerChannel) and granularity.axis >= len(shape):
        raise EncodingError(f"axis {granularity.axis} of a tensor with {len(shape)} dimensions")
    return group_count(granularity, shape)


@dataclass(frozen=True, eq=False)
class AffineTensor:
    """Uniform quantization: element = scale x (code - zero point), rounded to ``dtype``.

    ``codes``: uint8, one for each element, C order, below 2**bits. ``scales``: (groups,), finite, of the type in which
    they are to be stored: float32, float16 or bfloat16, or float64 for an f64 tensor. ``zero_points``: uint8 (groups,),
    or None for the fixed 2**(bits-1). ``mask``: bool, which positions are stored, None for all; where it is False the
    element is 0 and the code is ignored.

    Raises EncodingError if the parts do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int
    codes: np.ndarray
    scales: np.ndarray
    granularity: Granularity
    zero_points: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        groups = _check(self.dtype, self.shape, self.bits, self.codes, self.granularity, self.mask)
        if not DTYPES[self.dtype].is_float:
            raise EncodingError(f"affine values are for floating-point tensors, not for {self.dtype}")
        allowed = ("f64",) if self.dtype == "f64" else ("f32", "f16", "bf16")
        if self.scales.dtype not in [DTYPES[name].numpy for name in allowed]:
            raise EncodingError(
                f"scales of {self.scales.dtype}: {', '.join(allowed)} are possible for {self.dtype}"
            )
        if self.scales.shape != (groups,):
            raise EncodingError(f"scales of shape {self.scales.shape} for {groups} groups")
        if not np.isfinite(self.scales.astype(np.float64)).all():
            raise EncodingError("a scale is not finite")
        points = self.zero_points
        if points is not None:
            if points.dtype != np.uint8 or points.shape != (groups,):
                raise EncodingError(f"zero points must be {groups} uint8, not {points.shape} {points.dtype}")
            if int(points.max(initial=0)) >> self.bits:
                raise EncodingError(f"a zero point does not fit in {self.bits} bits")


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
    granularity: Granularity
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        groups = _check(self.dtype, self.shape, self.bits, self.codes, self.granularity, self.mask)
        if self.centroids.dtype != DTYPES[self.dtype].numpy:
            raise EncodingError(f"centroids of {self.centroids.dtype} for a tensor of {self.dtype}")
        if self.centroids.ndim != 2 or self.centroids.shape[0] != groups:
            raise EncodingError(f"centroids of shape {self.centroids.shape} for {groups} groups")
        if not 1 <= self.centroids.shape[1] <= 1 << self.bits:
            raise EncodingError(f"{self.centroids.shape[1]} centroids do not fit in {self.bits} bits")


TensorData: TypeAlias = "np.ndarray | AffineTensor | CodebookTensor"


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

"""The element types (docs/format.md, section 5.1): one table, everything else is looked up in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import ml_dtypes
import numpy as np

from dcz.errors import EncodingError

__all__ = ["DTYPES", "NARROWER", "Buffer", "DType", "dtype_of", "view_of"]

# numpy's arrays have the buffer protocol for type checkers only from Python 3.12 on.
Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray


def view_of(data: Buffer) -> memoryview:
    """``data`` as a memoryview, without a copy."""
    return memoryview(data)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DType:
    """An element type.

    ``numpy`` is the little-endian numpy (or ml_dtypes) type, ``safetensors`` the name that safetensors gives it.
    """

    name: str
    itemsize: int
    numpy: np.dtype[np.generic]
    is_float: bool
    safetensors: str


def _row(name: str, scalar: object, is_float: bool, safetensors: str) -> DType:
    dtype: np.dtype[np.generic] = np.dtype(scalar).newbyteorder("<")  # type: ignore[call-overload]
    return DType(name, dtype.itemsize, dtype, is_float, safetensors)


DTYPES: Final[dict[str, DType]] = {
    row.name: row
    for row in (
        _row("f64", np.float64, True, "F64"),
        _row("f32", np.float32, True, "F32"),
        _row("f16", np.float16, True, "F16"),
        _row("bf16", ml_dtypes.bfloat16, True, "BF16"),
        _row("f8_e4m3fn", ml_dtypes.float8_e4m3fn, True, "F8_E4M3"),
        _row("f8_e5m2", ml_dtypes.float8_e5m2, True, "F8_E5M2"),
        _row("i8", np.int8, False, "I8"),
        _row("i16", np.int16, False, "I16"),
        _row("i32", np.int32, False, "I32"),
        _row("i64", np.int64, False, "I64"),
        _row("u8", np.uint8, False, "U8"),
        _row("u16", np.uint16, False, "U16"),
        _row("u32", np.uint32, False, "U32"),
        _row("u64", np.uint64, False, "U64"),
        _row("bool", np.bool_, False, "BOOL"),
    )
}

NARROWER: Final[dict[str, tuple[str, ...]]] = {"f64": ("f32",), "f32": ("f16", "bf16")}
"""The types as which the elements of a type may be stored, if they all have the values of one (docs/format.md, 5.3)."""

_BY_NUMPY: Final[dict[np.dtype[np.generic], DType]] = {row.numpy: row for row in DTYPES.values()}


def dtype_of(array: np.ndarray) -> DType:
    """The element type of a numpy array.

    Raises EncodingError for types that the format does not have (complex, strings, objects, ...).
    """
    row = _BY_NUMPY.get(array.dtype.newbyteorder("<"))
    if row is None:
        allowed = ", ".join(DTYPES)
        raise EncodingError(f"no element type for arrays of {array.dtype}", hint=f"allowed: {allowed}")
    return row

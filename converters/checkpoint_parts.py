"""What the readers of quantized checkpoints share: a module of several tensors that becomes one, and packed integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dcz.errors import SourceError

if TYPE_CHECKING:
    from dcz.converters.base import TensorOutline
    from dcz.format.dtypes import DType
    from dcz.format.tensors import TensorData

__all__ = [
    "Outlines",
    "QuantizedTensor",
    "Unread",
    "expect",
    "field_of",
    "read_whole",
    "unpacked_bits",
    "zero_points_of",
]


class Unread(Exception):
    """A checkpoint of a kind that is not read: its tensors are stored as they lie there. Says why."""


Outlines: TypeAlias = Mapping[str, "TensorOutline"]


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor that a checkpoint holds in several ``parts``, the names of tensors; ``read(start, stop)`` as of TensorOutline.
    ``left_out``: tensors that a model with plain weights has no use for, such as the scales of its activations."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    read: Callable[[int, int], TensorData]
    left_out: tuple[str, ...] = ()


def expect(condition: bool, name: str, message: str) -> None:
    """Raises SourceError, about the tensor ``name``, unless the condition holds."""
    if not condition:
        raise SourceError(f"the quantized tensor {name!r} {message}")


def read_whole(outline: TensorOutline) -> np.ndarray:
    """All of a part, which is an array."""
    found = outline.read(0, outline.shape[0] if outline.shape else 1)
    assert isinstance(found, np.ndarray)
    return found


def field_of(config: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A field of a configuration, null being the default. Raises SourceError if it is of another type."""
    value = config.get(name)
    if value is None:
        value = default
    if type(value) is not kind:
        what = "is missing" if value is None else f"is {value!r:.100}"
        raise SourceError(f"in the quantization_config, {name} {what}")
    return value


def unpacked_bits(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` integers of ``bits`` bits of each row, (rows, count) uint8.

    ``words``: int32 (rows, n), each row a sequence of bits, the lowest of a word first. There are enough of them.
    """
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return octets[:, :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        parts = (octets[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
        return parts.reshape(len(octets), -1)[:, :count]
    out = np.zeros((len(octets), count), np.uint8)
    at = np.arange(count, dtype=np.int64) * bits
    first, shift = at // 8, (at % 8).astype(np.uint16)
    padded = np.concatenate([octets, np.zeros((len(octets), 1), np.uint8)], axis=1)
    for row, codes in zip(padded, out, strict=True):
        pair = row[first].astype(np.uint16) | (row[first + 1].astype(np.uint16) << np.uint16(8))
        codes[:] = (pair >> shift) & np.uint16((1 << bits) - 1)
    return out


def zero_points_of(points: np.ndarray, bits: int) -> np.ndarray | int | None:
    """Zero points, uint8 (groups,), as a tensor takes them: one for all if they are all the same, and None for the middle."""
    first = int(points[0])
    if bool((points != first).any()):
        return np.ascontiguousarray(points)
    return None if first == 1 << (bits - 1) else first

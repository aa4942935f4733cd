"""The header of a safetensors file: read strictly, and written as safetensors itself writes it.

    +--------------+---------------------------------+------------------------------+
    | N, u64       | N bytes of JSON, from "{" on,   | the tensors, back to back,   |
    | little-endian| filled up with spaces           | from offset 0 to the end     |
    +--------------+---------------------------------+------------------------------+

Nothing of the data is touched before the whole header is known to be right: the tensors cover the data exactly, without
holes and overlaps, and each has the size that its type and shape say.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dcz.errors import EncodingError, SourceError
from dcz.format.dtypes import DTYPES, DType
from dcz.format.layout import MAX_RANK
from dcz.format.manifest import check_name

__all__ = ["METADATA_NAME", "Header", "HeaderTensor", "build_header", "parse_header", "read_header"]

MAX_HEADER: Final = 100_000_000  # the format's own limit
_LENGTH: Final = struct.Struct("<Q")
_ALIGNMENT: Final = 8
METADATA_NAME: Final = "__metadata__"
_BY_NAME: Final[dict[str, DType]] = {row.safetensors: row for row in DTYPES.values()}
# The order in which safetensors writes tensors, by type; within a type they stand by name.
_ORDER: Final = [
    "U64",
    "I64",
    "F64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "BOOL",
]


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor: ``begin`` and ``end`` are counted in bytes from the start of the data."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A valid header. ``raw`` are its bytes, length included; ``tensors`` stand in the order of their data."""

    raw: bytes
    tensors: tuple[HeaderTensor, ...]
    metadata: Mapping[str, str]

    @property
    def data_start(self) -> int:
        return len(self.raw)

    @property
    def data_bytes(self) -> int:
        return self.tensors[-1].end if self.tensors else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is given twice")
    return fields


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def load_json(text: bytes) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN. Raises ValueError."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _naturals(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        raise ValueError("is not an array of natural numbers below 2^63")
    return tuple(value)


def _tensor(name: str, fields: Any, file: str) -> HeaderTensor:
    try:
        if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
            raise ValueError("is not an object with dtype, shape and data_offsets")
        shape, offsets = _naturals(fields["shape"]), _naturals(fields["data_offsets"])
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(f"has the data_offsets {list(offsets)}")
        check_name(name)
        if len(shape) > MAX_RANK:
            raise ValueError(f"has {len(shape)} dimensions, more than {MAX_RANK}")
        dtype = _BY_NAME.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
        if dtype is None:
            raise ValueError(f"has the type {fields['dtype']!r}, which .dcz does not have")
        if math.prod(size for size in shape if size) * dtype.itemsize >= 1 << 63:
            raise ValueError(f"has the shape {list(shape)}, which is beyond 2^63 bytes")
        if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
            raise ValueError(
                f"has {offsets[1] - offsets[0]} bytes, not those of {list(shape)} elements of {dtype.safetensors}"
            )
    except ValueError as exc:
        raise SourceError(f"{file}: the tensor {name[:200]!r} {exc}") from exc
    return HeaderTensor(name, dtype, shape, offsets[0], offsets[1])


def parse_header(raw: bytes, *, file: str) -> Header:
    """The header whose bytes, length included, are ``raw``.

    Raises SourceError if anything about it is wrong, naming ``file`` and, where there is one, the tensor.
    """
    if len(raw) < _LENGTH.size:
        raise SourceError(f"{file}: {len(raw)} bytes are no safetensors file")
    (length,) = _LENGTH.unpack_from(raw)
    if length > MAX_HEADER or len(raw) != _LENGTH.size + length:
        raise SourceError(f"{file}: not a safetensors file, or cut off: a header of {length} bytes")
    try:
        fields = load_json(raw[_LENGTH.size :]) if raw[_LENGTH.size : _LENGTH.size + 1] == b"{" else None
    except ValueError as exc:
        raise SourceError(f"{file}: the safetensors header is not valid JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise SourceError(f"{file}: the safetensors header is not a JSON object")
    metadata = fields.pop(METADATA_NAME, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{file}: {METADATA_NAME} is not an object of strings")
    try:
        "".join([*metadata, *metadata.values()]).encode()
    except UnicodeEncodeError as exc:
        raise SourceError(f"{file}: {METADATA_NAME} holds half of a surrogate pair") from exc
    tensors = sorted(
        (_tensor(name, value, file) for name, value in fields.items()), key=lambda t: (t.begin, t.end)
    )
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise SourceError(f"{file}: the tensor {tensor.name!r} starts at {tensor.begin}, not at {end}")
        end = tensor.end
    return Header(bytes(raw), tuple(tensors), metadata)


def read_header(descriptor: int, *, file: str) -> Header:
    """Read and check the header of an open safetensors file, and the file's size against it.

    Raises SourceError as parse_header does, and if the file is longer or shorter than its header says.
    """
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise SourceError(f"{file}: the file is empty")
    start = os.pread(descriptor, _LENGTH.size, 0)
    length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
    if not 2 <= length <= min(MAX_HEADER, size - _LENGTH.size):
        raise SourceError(
            f"{file}: not a safetensors file, or cut off: a header of {length} bytes in a file of {size}"
        )
    header = parse_header(os.pread(descriptor, _LENGTH.size + length, 0), file=file)
    if header.data_start + header.data_bytes != size:
        raise SourceError(
            f"{file}: the file has {size} bytes, its header describes {header.data_start + header.data_bytes}"
        )
    return header


def build_header(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> Header:
    """The header that safetensors gives these tensors: widest types first, then by name, so that all are aligned.

    Raises EncodingError if there is no such header, as one of the names means something else in it, or it would be
    longer than safetensors reads.
    """
    ordered = sorted(tensors, key=lambda item: (_ORDER.index(item[1].safetensors), item[0].encode()))
    fields: dict[str, Any] = {METADATA_NAME: dict(sorted(metadata.items()))} if metadata else {}
    placed: list[HeaderTensor] = []
    end = 0
    for name, dtype, shape in ordered:
        if name == METADATA_NAME:
            raise EncodingError(
                f"a safetensors file cannot hold a tensor called {name!r}, which is what its metadata is called",
                hint="the .dcz file can be loaded; rename the tensor to write it as safetensors",
            )
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": dtype.safetensors, "shape": list(shape), "data_offsets": [begin, end]}
        placed.append(HeaderTensor(name, dtype, shape, begin, end))
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise EncodingError(f"a safetensors header of {len(text)} bytes: at most {MAX_HEADER} are read")
    return Header(_LENGTH.pack(len(text)) + text, tuple(placed), dict(metadata or {}))

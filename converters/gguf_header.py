"""The head of a GGUF file: read strictly, and written again with other types (the GGUF specification, ggml/docs/gguf.md).

    +--------------------------------+-------------+--------------+---------+-------------------------------+
    | GGUF, version, numbers of both | key, type,  | name, shape, | padding | tensors, each at a multiple   |
    |                                | value, ...  | type, place  |         | of the alignment from here on |
    +--------------------------------+-------------+--------------+---------+-------------------------------+

Nothing of the data is touched before the whole head is known to be right. Values are stepped over, but for the alignment and
the short texts about the model: what they mean is the business of who runs it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dcz.converters.gguf_blocks import BLOCK_TYPES, UNSUPPORTED, BlockType
from dcz.errors import SourceError
from dcz.format.layout import DEFAULT_LIMITS
from dcz.format.manifest import check_name

__all__ = ["GGUF_MAGIC", "GgufHead", "GgufTensor", "parse_rest", "read_head", "retyped"]

GGUF_MAGIC: Final = b"GGUF"
MAX_HEAD: Final = 1 << 27  # bytes; vocabularies are in it
_VERSIONS: Final = (2, 3)
_PIECE: Final = 1 << 20
_MAX_KEY: Final = 65535
_MAX_DIMENSIONS: Final = 4
_MAX_DEPTH: Final = 4  # arrays of arrays
_MAX_ALIGNMENT: Final = 1 << 20
_DEFAULT_ALIGNMENT: Final = 32
_ALIGNMENT_KEY: Final = "general.alignment"
_TOLD: Final = "general."  # texts of these keys become metadata
_MAX_TOLD: Final = 1024  # bytes of each

_UINT32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the values of fixed size: u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. ``shape`` is that of numpy, the last dimension first in the file; ``begin`` and ``end`` are counted in bytes
    from the start of the data."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GgufHead:
    """A valid head. ``raw`` are its bytes up to the data, padding included; ``tensors`` stand in the order of the file.
    ``metadata``: the short texts that say what the model is called and of what kind it is."""

    raw: bytes
    tensors: tuple[GgufTensor, ...]
    alignment: int
    metadata: Mapping[str, str]
    infos_start: int
    """Where in ``raw`` the tensors are described, after all keys and values."""

    def placed(self) -> list[GgufTensor]:
        """The tensors in the order of their data."""
        return sorted(self.tensors, key=lambda tensor: (tensor.begin, tensor.end))

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """What is not tensors behind the head, in a file of so many bytes: from where to where, from its start."""
        end = len(self.raw)
        for tensor in self.placed():
            if tensor.end == tensor.begin:
                continue
            begin = len(self.raw) + tensor.begin
            if begin > end:
                yield end, begin
            end = len(self.raw) + tensor.end
        if size > end:
            yield end, size


class _Bytes:
    """The bytes of a file from its start, as far as they were asked for."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self.read = bytearray()
        self.at = 0

    @property
    def left(self) -> int:
        return self._size - self.at

    def step(self, size: int) -> int:
        """Go on by so many bytes. Gives where they start. Raises ValueError if there are not as many."""
        start, end = self.at, self.at + size
        if end > self._size:
            raise ValueError(f"it ends at {self._size}, and should go on to {end} at least")
        if end > MAX_HEAD:
            raise ValueError(f"its head has more than {MAX_HEAD} bytes")
        while len(self.read) < end:
            wanted = min(max(_PIECE, end - len(self.read)), self._size - len(self.read))
            piece = os.pread(self._descriptor, wanted, len(self.read))
            if not piece:
                raise ValueError(f"it was cut off at {len(self.read)} while it was read")
            self.read += piece
        self.at = end
        return start

    def number(self, kind: str) -> int:
        start = self.step(struct.calcsize(kind))
        return int(struct.unpack_from(kind, self.read, start)[0])

    def text(self, most: int) -> bytes:
        length = self.number("<Q")
        if length > most:
            raise ValueError(f"at {self.at} a text of {length} bytes: {most} are possible")
        start = self.step(length)
        return bytes(self.read[start : start + length])


def _name(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"the name {data[:100]!r} is not UTF-8") from exc


def _step_over(file: _Bytes, kind: int, depth: int = 0) -> None:
    """Past a value. Raises ValueError."""
    if kind in _SIZES:
        file.step(_SIZES[kind])
    elif kind == _STRING:
        file.step(file.number("<Q"))
    elif kind == _ARRAY:
        if depth == _MAX_DEPTH:
            raise ValueError(f"at {file.at} arrays are nested more than {_MAX_DEPTH} deep")
        inner, count = file.number("<I"), file.number("<Q")
        if inner in _SIZES:
            file.step(_SIZES[inner] * count)
            return
        for _ in range(count):  # each takes bytes of the file
            _step_over(file, inner, depth + 1)
    else:
        raise ValueError(f"at {file.at} a value of the unknown type {kind}")


def _values(file: _Bytes, count: int) -> tuple[int, dict[str, str]]:
    """The alignment and the texts. Raises ValueError."""
    keys: set[str] = set()
    alignment, told = _DEFAULT_ALIGNMENT, dict[str, str]()
    for _ in range(count):
        key = _name(file.text(_MAX_KEY))
        if key in keys:
            raise ValueError(f"the key {key!r} is given twice")
        keys.add(key)
        kind, start = file.number("<I"), file.at
        _step_over(file, kind)
        if key == _ALIGNMENT_KEY:
            alignment = int(struct.unpack_from("<I", file.read, start)[0]) if kind == _UINT32 else 0
            if alignment & (alignment - 1) or not 1 <= alignment <= _MAX_ALIGNMENT:
                raise ValueError(f"{key} is not a power of two up to {_MAX_ALIGNMENT}")
        elif kind == _STRING and key.startswith(_TOLD) and file.at - start - 8 <= _MAX_TOLD:
            try:
                told[key] = file.read[start + 8 : file.at].decode()
            except UnicodeDecodeError:
                continue
    return alignment, told


def _tensor(file: _Bytes, alignment: int) -> GgufTensor:
    name = _name(file.text(_MAX_KEY))
    check_name(name)
    rank = file.number("<I")
    if rank > _MAX_DIMENSIONS:
        raise ValueError(f"the tensor {name!r} has {rank} dimensions, more than {_MAX_DIMENSIONS}")
    shape = tuple(reversed([file.number("<Q") for _ in range(rank)]))
    number, begin = file.number("<I"), file.number("<Q")
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        called = (
            f"{UNSUPPORTED[number]}, which dcz does not read"
            if number in UNSUPPORTED
            else f"{number}, which is unknown"
        )
        raise ValueError(f"the tensor {name!r} has the type {called}")
    if math.prod(size for size in shape if size) * 8 >= 1 << 63:
        raise ValueError(f"the tensor {name!r} has the shape {list(shape)}, which is beyond 2^63 bytes")
    last = shape[-1] if shape else 1
    if last % kind.elements:
        raise ValueError(
            f"the tensor {name!r} has rows of {last}, and {kind.name} has blocks of {kind.elements}"
        )
    if begin % alignment:
        raise ValueError(f"the tensor {name!r} starts at {begin}, which is no multiple of {alignment}")
    return GgufTensor(name, kind, shape, begin, begin + math.prod(shape) // kind.elements * kind.size)


def _parse(file: _Bytes, size: int) -> GgufHead:
    start = file.step(4)
    if bytes(file.read[start : start + 4]) != GGUF_MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = file.number("<I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in _VERSIONS
        raise ValueError(
            "it is big-endian" if swapped else f"it has the version {version}; dcz reads 2 and 3"
        )
    tensors, values = file.number("<Q"), file.number("<Q")
    if tensors > DEFAULT_LIMITS.tensors:
        raise ValueError(f"it has {tensors} tensors, more than {DEFAULT_LIMITS.tensors}")
    alignment, metadata = _values(file, values)
    infos_start = file.at
    found: list[GgufTensor] = []
    names: set[str] = set()
    for _ in range(tensors):
        found.append(_tensor(file, alignment))
        if found[-1].name in names:
            raise ValueError(f"the tensor {found[-1].name!r} is given twice")
        names.add(found[-1].name)
    padding = -file.at % alignment
    # Where nothing follows, some writers leave the padding out.
    file.step(padding if any(tensor.end > tensor.begin for tensor in found) else min(padding, file.left))
    head = GgufHead(bytes(file.read[: file.at]), tuple(found), alignment, metadata, infos_start)
    end, before = 0, ""
    for tensor in head.placed():
        if tensor.end > tensor.begin:
            if tensor.begin < end:
                raise ValueError(f"the tensors {before!r} and {tensor.name!r} overlap")
            end, before = tensor.end, tensor.name
    if len(head.raw) + end > size:
        raise ValueError(f"it has {size} bytes, its head describes {len(head.raw) + end}")
    return head


def read_head(descriptor: int, *, file: str) -> GgufHead:
    """Read and check the head of an open GGUF file, and the file's size against it. Raises SourceError."""
    size = os.fstat(descriptor).st_size
    try:
        return _parse(_Bytes(descriptor, size), size)
    except ValueError as exc:
        raise SourceError(f"{file}: not a GGUF file that can be read: {exc}") from exc


def parse_rest(data: bytes, *, file: str) -> tuple[GgufHead, int]:
    """The head, and the size, of the GGUF file of which ``data`` is what is not tensors: the head and all gaps, one behind the
    other. Raises SourceError."""
    given = _Bytes(-1, len(data))
    given.read += data
    try:
        head = _parse(given, 1 << 63)
        size = len(data) + sum(tensor.end - tensor.begin for tensor in head.tensors)
        if len(head.raw) + sum(end - begin for begin, end in head.gaps(size)) != len(data):
            raise ValueError("its gaps are not those of its tensors")
    except ValueError as exc:
        raise SourceError(f"{file}: not the head of a GGUF file: {exc}") from exc
    return head, size


def retyped(head: GgufHead, types: Sequence[BlockType]) -> GgufHead:
    """The head of a file with the same keys, values and tensors, whose data are of other types: one for each tensor."""
    tensors: list[GgufTensor] = []
    infos, end = bytearray(), 0
    for tensor, kind in zip(head.tensors, types, strict=True):
        begin = end + -end % head.alignment
        end = begin + math.prod(tensor.shape) // kind.elements * kind.size
        name = tensor.name.encode()
        infos += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        infos += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        infos += struct.pack("<IQ", kind.number, begin)
        tensors.append(replace(tensor, type=kind, begin=begin, end=end))
    raw = head.raw[: head.infos_start] + infos
    return replace(head, raw=raw + bytes(-len(raw) % head.alignment), tensors=tuple(tensors))

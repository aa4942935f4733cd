"""GGUF files: read, and written back byte by byte.

Codes stay codes (gguf_blocks.py). What of the file is no tensor, its head and whatever lies between the tensors and behind them,
travels as a plain asset called as the file with ``-head`` behind it, so that decoding can give back the very file.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz.converters.base import AssetData, StreamDigest, TensorOutline
from dcz.converters.gguf_blocks import BLOCK_TYPES, BlockType
from dcz.converters.gguf_header import GgufHead, GgufTensor, parse_rest, read_head, retyped
from dcz.errors import EncodingError, SourceError, UsageError
from dcz.format.atomic import WriteBehind, atomic_file
from dcz.format.decoded import decoded, groups_of_elements
from dcz.format.dtypes import DTYPES, view_of
from dcz.format.manifest import Provenance, SourceFile, check_asset_paths
from dcz.format.stored import stored_tensor
from dcz.format.tensors import AffineTensor, PerChannel, PerFlat, PerGroup, PerTensor, parameter_values

if TYPE_CHECKING:
    from dcz.converters.base import Progress
    from dcz.format.dtypes import Buffer
    from dcz.format.reader import Reader
    from dcz.format.tensors import TensorData

__all__ = ["GgufOriginal", "GgufSource", "gguf_original", "write_gguf"]

_HEAD: Final = "-head"
_SUFFIX: Final = f".gguf{_HEAD}"
_MAX_GAPS: Final = 64 << 20  # bytes
_MAX_READ: Final = 1 << 30


class GgufSource:
    """The tensors of a GGUF file, in the order of their data: codes where the file has codes."""

    def __init__(self, path: Path) -> None:
        """Raises SourceError if the head is wrong, or a tensor of a type that is not read."""
        self._name = str(path)
        self._stack = ExitStack()
        self._read: list[SourceFile] = []
        self._changed: list[str] = []
        try:
            try:
                file = self._stack.enter_context(path.open("rb"))
            except OSError as exc:
                raise SourceError(f"{path}: cannot be read: {exc.strerror}") from exc
            self._descriptor = file.fileno()
            self._head = read_head(self._descriptor, file=self._name)
            self._size = os.fstat(self._descriptor).st_size
            self._gaps = list(self._head.gaps(self._size))
            holes = sum(end - begin for begin, end in self._gaps)
            if holes > _MAX_GAPS:
                raise SourceError(f"{path}: {holes} bytes are neither head nor tensors")
        except BaseException:
            self._stack.close()
            raise
        try:
            check_asset_paths([f"{path.name}{_HEAD}"])
            self._called = path.name if path.name.endswith(".gguf") else "model.gguf"
        except ValueError:
            self._called = "model.gguf"

    @property
    def tensor_bytes(self) -> int:
        return sum(
            math.prod(tensor.shape) * DTYPES[tensor.type.dtype].itemsize for tensor in self._head.tensors
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._head.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file holds. That blocks were not as ggml writes them is known once all tensors were read."""
        counts = Counter(tensor.type.name for tensor in self._head.tensors)
        held = Counter[str]()
        for tensor in self._head.tensors:
            held[tensor.type.name] += tensor.end - tensor.begin
        parts = [
            f"{counts[name]} of {name} ({held[name]} bytes)" for name in sorted(held, key=lambda n: -held[n])
        ]
        notes = [f"the file has {self._size} bytes; tensors: {', '.join(parts)}"] if parts else []
        if self._changed:
            notes.append(
                f"the blocks of {self._changed[0]!r} have more than one form, and this is not ggml's: its values are kept, "
                f"its bytes will be others in a GGUF file ({len(self._changed)} tensors)"
            )
        return tuple(notes)

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        digest = StreamDigest()
        try:
            digest.update(self._head.raw)
            gaps = iter([*self._gaps, (self._size, self._size)])
            gap = next(gaps)
            for tensor in self._head.placed():
                begin = len(self._head.raw) + tensor.begin
                if gap[0] < begin and tensor.end > tensor.begin:
                    digest.update(self._bytes(*gap).data)
                    gap = next(gaps)
                data = self._bytes(begin, begin + tensor.end - tensor.begin)
                digest.update(data.data)
                unpacked = self._unpacked(tensor, data, tensor.shape)
                self._check_form(tensor, data, unpacked)
                yield tensor.name, unpacked
                del unpacked
                digest.wait()
                del data
            if gap[0] < self._size:
                digest.update(self._bytes(*gap).data)
            self._read.append(SourceFile(path=self._called, size=self._size, sha256=digest.digest()))
        finally:
            digest.close()

    def _unpacked(self, tensor: GgufTensor, data: np.ndarray, shape: tuple[int, ...]) -> TensorData:
        if not data.size:
            return np.empty(shape, DTYPES[tensor.type.dtype].numpy)
        try:
            return tensor.type.unpack(data, shape)
        except EncodingError as exc:
            raise SourceError(f"{self._name}: the tensor {tensor.name!r}: {exc.message}") from exc

    def _check_form(self, tensor: GgufTensor, data: np.ndarray, unpacked: TensorData) -> None:
        if tensor.type.several_forms:
            packed = tensor.type.pack(unpacked)
            if packed is None or not np.array_equal(packed, data):
                self._changed.append(tensor.name)

    def outlines(self) -> Iterator[TensorOutline]:
        for tensor in self._head.placed():
            read = functools.partial(self._rows, tensor)
            yield TensorOutline(tensor.name, DTYPES[tensor.type.dtype], tensor.shape, read)

    def _rows(self, tensor: GgufTensor, start: int, stop: int) -> TensorData:
        kind, shape = tensor.type, tensor.shape
        row = math.prod(shape[1:])
        if len(shape) == 1:  # whole blocks
            start = start // kind.elements * kind.elements
            stop = min(-(-stop // kind.elements) * kind.elements, shape[0])
        begin = len(self._head.raw) + tensor.begin
        first, last = (at * row // kind.elements * kind.size for at in (start, stop))
        return self._unpacked(
            tensor, self._bytes(begin + first, begin + last), (stop - start, *shape[1:]) if shape else ()
        )

    def _bytes(self, begin: int, end: int) -> np.ndarray:
        data = np.empty(end - begin, np.uint8)
        done = 0
        while done < data.size:
            got = os.preadv(self._descriptor, [data[done : done + _MAX_READ].data], begin + done)
            if got == 0:
                raise SourceError(f"{self._name}: the file was cut off at {begin + done} while it was read")
            done += got
        return data

    def aliases(self) -> Mapping[str, str]:
        return {}

    def assets(self) -> Iterator[AssetData]:
        yield AssetData(
            f"{self._called}{_HEAD}",
            lambda: b"".join([self._head.raw, *(self._bytes(*gap).tobytes() for gap in self._gaps)]),
        )

    def provenance(self) -> Provenance:
        return Provenance(files=tuple(self._read))

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class GgufOriginal:
    """The GGUF file of which a .dcz file was made: its ``name``, and all of it but the tensors. ``gaps``: what lies behind the
    head, from which byte of the file on. ``asset``: where it is kept."""

    name: str
    head: GgufHead
    size: int
    gaps: tuple[tuple[int, bytes], ...]
    asset: str


def gguf_original(reader: Reader) -> GgufOriginal | None:
    """The GGUF file that the tensors of ``reader`` came from, if it has the head of one that has just these."""
    for path in reader.assets():
        if not path.endswith(_SUFFIX) or "/" in path:
            continue
        data = reader.read_asset(path)
        try:
            head, size = parse_rest(data, file=path)
        except SourceError:
            continue
        shapes = {tensor.name: tensor.shape for tensor in head.tensors}
        if shapes != {name: reader.shape(name) for name in reader.keys()}:  # noqa: SIM118 - aliases too
            continue
        gaps, at = [], len(head.raw)
        for begin, end in head.gaps(size):
            gaps.append((begin, data[at : at + end - begin]))
            at += end - begin
        return GgufOriginal(path.removesuffix(_HEAD), head, size, tuple(gaps), path)
    return None


class _DoesNotFit(Exception):
    """A tensor is not of the type that the head says."""


def write_gguf(reader: Reader, target: Path, progress: Progress | None = None) -> bool:
    """Write a model that came from a GGUF file as one. Gives whether it has the original head, and so is the original file if no
    recipe changed a tensor.

    Where one did, a tensor that is not stored as its original type has it gets the first of Q4_0, Q4_1, Q8_0 and the type of its
    elements that has the same values. Memory holds one tensor. Raises UsageError if there is no head of a GGUF file, or a
    tensor of a type that GGUF does not have; FormatError if the .dcz file is at fault.
    """
    original = gguf_original(reader)
    if original is None:
        raise UsageError(
            f"{reader.name} does not hold the head of a GGUF file, and a GGUF file without one says nothing of its model",
            hint="only what was converted from GGUF can be written as GGUF; write to a folder or a .safetensors file",
        )
    if reader.manifest.provenance.recipe.get("name") == "lossless":
        with contextlib.suppress(_DoesNotFit):
            _write(reader, target, original.head, original.size, original.gaps, progress)
            return True
    types = [_best_type(reader, tensor) for tensor in original.head.tensors]
    if types == [tensor.type for tensor in original.head.tensors]:
        _write(reader, target, original.head, original.size, original.gaps, progress)
        return True
    head = retyped(original.head, types)
    end = max((tensor.end for tensor in head.tensors), default=0)
    _write(reader, target, head, len(head.raw) + end + -end % head.alignment, (), progress)
    return False


def _write(
    reader: Reader,
    target: Path,
    head: GgufHead,
    size: int,
    gaps: tuple[tuple[int, bytes], ...],
    progress: Progress | None,
) -> None:
    total = sum(math.prod(tensor.shape) * DTYPES[tensor.type.dtype].itemsize for tensor in head.tensors)
    done = 0
    with atomic_file(target) as file:
        behind = WriteBehind(file.fileno())

        def write(data: Buffer, offset: int) -> None:
            view, at = view_of(data), 0
            while at < len(view):
                at += os.pwrite(file.fileno(), view[at : at + _MAX_READ], offset + at)
            behind.wrote(offset, at)

        write(head.raw, 0)
        for begin, content in gaps:
            write(content, begin)
        for tensor in head.placed():
            packed = _packed(tensor.type, reader, tensor)
            if packed is None:
                raise _DoesNotFit
            assert packed.size == tensor.end - tensor.begin
            if packed.size:
                write(packed, len(head.raw) + tensor.begin)
            done += math.prod(tensor.shape) * DTYPES[tensor.type.dtype].itemsize
            if progress is not None:
                progress(done, total)
        os.ftruncate(file.fileno(), size)


def _packed(kind: BlockType, reader: Reader, tensor: GgufTensor) -> np.ndarray | None:
    """The tensor's bytes as that type; None if it does not have just these values."""
    if not math.prod(tensor.shape):
        return np.empty(0, np.uint8)
    if kind.elements == 1:
        return kind.pack(reader.read(tensor.name))
    stored = stored_tensor(reader, tensor.name)
    packed = kind.pack(stored)
    if packed is None and kind in _REGROUPED and isinstance(stored, AffineTensor):
        candidate = _regrouped(stored, kind)
        if candidate is not None and np.array_equal(
            decoded(candidate).view("<u4"), reader.read(tensor.name).view("<u4")
        ):
            return kind.pack(candidate)
    return packed


def _best_type(reader: Reader, tensor: GgufTensor) -> BlockType:
    plain = _PLAIN.get(reader.dtype(tensor.name))
    if plain is None:
        raise UsageError(f"GGUF has no type for the tensor {tensor.name!r} of {reader.dtype(tensor.name)}")
    if not math.prod(tensor.shape):
        return tensor.type
    stored = stored_tensor(reader, tensor.name)
    if tensor.type.elements > 1 and tensor.type.pack(stored) is not None:
        return tensor.type
    return next((kind for kind in _REGROUPED if _packed(kind, reader, tensor) is not None), plain)


def _regrouped(tensor: AffineTensor, kind: BlockType) -> AffineTensor | None:
    """The same codes with one scale for each block of a type without codes for scales; whether the values are the same
    remains to be seen."""
    size, last = kind.elements, tensor.shape[-1] if tensor.shape else 1
    if tensor.dtype != "f32" or tensor.mask is not None or tensor.minimums is not None or last % size:
        return None
    granularity = tensor.granularity
    match granularity:
        case PerGroup(size=group) if group < last:
            fits = group % size == 0
            granularity = PerGroup(size=max(1, group // size))
        case PerChannel(axis=axis):
            fits = axis < len(tensor.shape) - 1
        case PerFlat(size=group):
            fits = group % size == 0
            granularity = PerFlat(size=max(1, group // size))
        case PerTensor() | PerGroup():
            fits = True
            granularity = granularity if isinstance(granularity, PerTensor) else PerGroup(size=last // size)
        case _:
            fits = False
    if not fits:
        return None
    blocks = tensor.codes.size // size
    groups = groups_of_elements(granularity, (*tensor.shape[:-1], last // size), 0, blocks)
    with np.errstate(over="ignore"):
        scales = parameter_values(tensor.scales)[groups].astype(np.float16)
        points = tensor.zero_points
        points = 1 << (tensor.bits - 1) if points is None else points
        points = (
            np.full(blocks, points, np.int32) if isinstance(points, int) else points[groups].astype(np.int32)
        )
        minimums = (-points * scales.astype(np.float32)).astype(np.float16)
    codes = tensor.codes.reshape(blocks, size).astype(np.int16)
    if kind is _Q4_1:
        bits, middle = 4, 0
    else:
        bits = 4 if kind is _Q4_0 else 8
        middle = 1 << (bits - 1)
        codes += middle - points.astype(np.int16)[:, None]
    if int(codes.min()) < 0 or int(codes.max()) >> bits:
        return None
    if not np.isfinite(scales).all() or not np.isfinite(minimums).all():
        return None
    return AffineTensor(
        "f32",
        tensor.shape,
        bits,
        codes.astype(np.uint8).reshape(-1),
        scales,
        PerGroup(size=size),
        zero_points=None if middle else 0,
        minimums=None if middle else minimums,
    )


_PLAIN: Final = {kind.dtype: kind for kind in BLOCK_TYPES.values() if kind.elements == 1}
_Q4_0, _Q4_1 = BLOCK_TYPES[2], BLOCK_TYPES[3]
_REGROUPED: Final = (_Q4_0, _Q4_1, BLOCK_TYPES[8])

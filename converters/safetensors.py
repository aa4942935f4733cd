"""safetensors files: one, or shards with an index. Read without the safetensors package, and written back byte by byte.

The header of each file travels as an asset of role ``safetensors-header`` (docs/format.md, section 7.1), so that decoding
gives back the very file: its order, its metadata, its padding. The index of sharded weights travels as a plain asset.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcz.converters.base import AssetData, StreamDigest, TensorOutline, flat_rows
from dcz.converters.safetensors_header import Header, HeaderTensor, load_json, read_header
from dcz.errors import EncodingError, SourceError
from dcz.format.atomic import WriteBehind, atomic_file
from dcz.format.dtypes import dtype_of
from dcz.format.manifest import Provenance, SourceFile, check_asset_paths

if TYPE_CHECKING:
    from dcz.format.dtypes import DType

__all__ = ["INDEX_SUFFIX", "SafetensorsSink", "SafetensorsSource", "as_elements", "read_weight_map"]

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_INDEX = 1 << 28
_MAX_READ = 1 << 30


def as_elements(data: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes, a flat uint8 array, as the elements that they are. Raises ValueError for a bool that is not 0 or 1."""
    if dtype.name == "bool" and data.size and int(data.max()) > 1:
        raise ValueError("holds bytes that are neither 0 nor 1, and so no bool")
    return data.view(dtype.numpy).reshape(shape)


def read_weight_map(path: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes of an index file, and its ``weight_map``: tensor name -> file in the same folder.

    Raises SourceError unless every file is a plain relative path inside the index's folder.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_INDEX + 1)
    try:
        if len(data) > _MAX_INDEX:
            raise ValueError(f"longer than {_MAX_INDEX} bytes")
        fields = load_json(data)
        weights = fields.get("weight_map") if isinstance(fields, dict) else None
        if not isinstance(weights, dict) or not weights:
            raise ValueError("it has no weight_map")
        if not all(isinstance(shard, str) for shard in weights.values()):
            raise ValueError("its weight_map is not an object of strings")
        check_asset_paths(sorted(set(weights.values())))
    except ValueError as exc:
        raise SourceError(f"{path}: not a valid index of shards: {exc}") from exc
    return data, weights


class SafetensorsSource:
    """The tensors of one or more safetensors files, in the order in which they stand there.

    Files are read, not mapped: one that shrinks meanwhile is an error and not a signal, and what was read does not stay
    in memory.
    """

    def __init__(self, files: Sequence[tuple[str, Path]], *, index: AssetData | None = None) -> None:
        """``files``: where each file belongs, relative to the model's folder, and where it is now.

        Raises SourceError if a header is wrong, or two files hold the same tensor.
        """
        self._index = index
        self._files: list[tuple[str, int, Header]] = []
        self._read: list[SourceFile] = []
        self._started = False
        self._stack = ExitStack()
        try:
            for name, path in files:
                try:
                    file = self._stack.enter_context(path.open("rb"))
                except OSError as exc:
                    raise SourceError(f"{path}: cannot be read: {exc.strerror}") from exc
                self._files.append((name, file.fileno(), read_header(file.fileno(), file=str(path))))
            owner: dict[str, str] = {}
            for name, _, header in self._files:
                for tensor in header.tensors:
                    if owner.setdefault(tensor.name, name) != name:
                        raise SourceError(
                            f"the tensor {tensor.name!r} stands in {owner[tensor.name]} and in {name}"
                        )
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def from_file(cls, path: Path) -> SafetensorsSource:
        try:
            check_asset_paths([path.name])
        except ValueError:  # the artifact cannot hold this name; what matters is inside
            return cls([("model.safetensors", path)])
        return cls([(path.name, path)])

    @classmethod
    def from_index(cls, path: Path) -> SafetensorsSource:
        """Raises SourceError if a shard is missing or outside the folder, or lacks a tensor that it should have."""
        data, weights = read_weight_map(path)
        shards = sorted(set(weights.values()))
        for shard in shards:
            if not (path.parent / shard).is_file():
                raise SourceError(f"{path}: the shard {shard} is missing")
        source = cls(
            [(shard, path.parent / shard) for shard in shards], index=AssetData(path.name, lambda: data)
        )
        held = {tensor.name: name for name, _, header in source._files for tensor in header.tensors}
        for tensor, shard in weights.items():
            if held.get(tensor) != shard:
                source.close()
                raise SourceError(f"{path}: the tensor {tensor!r} is not in {shard}")
        return source

    @property
    def tensor_bytes(self) -> int:
        return sum(header.data_bytes for _, _, header in self._files)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of all files; where they differ, of the first one."""
        merged: dict[str, str] = {}
        for _, _, header in self._files:
            for key, value in header.metadata.items():
                merged.setdefault(key, value)
        return merged

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        self._started = True
        for name, descriptor, header in self._files:
            digest = StreamDigest()
            try:
                digest.update(header.raw)
                for tensor in header.tensors:
                    data = self._bytes(name, descriptor, header, tensor.begin, tensor.end)
                    digest.update(data.data)
                    try:
                        array = as_elements(data, tensor.dtype, tensor.shape)
                    except ValueError as exc:
                        raise SourceError(f"{name}: the tensor {tensor.name!r} {exc}") from exc
                    del data
                    yield tensor.name, array
                    del array
                    digest.wait()
                size = header.data_start + header.data_bytes
                self._read.append(SourceFile(path=name, size=size, sha256=digest.digest()))
            finally:
                digest.close()

    def outlines(self) -> Iterator[TensorOutline]:
        for name, descriptor, header in self._files:
            for tensor in header.tensors:
                read = functools.partial(self._range, name, descriptor, header, tensor)
                yield TensorOutline(tensor.name, tensor.dtype, tensor.shape, flat_rows(read, tensor.shape))

    def _range(
        self, name: str, descriptor: int, header: Header, tensor: HeaderTensor, start: int, stop: int
    ) -> np.ndarray:
        size = tensor.dtype.itemsize
        data = self._bytes(name, descriptor, header, tensor.begin + start * size, tensor.begin + stop * size)
        try:
            return as_elements(data, tensor.dtype, (stop - start,))
        except ValueError as exc:
            raise SourceError(f"{name}: the tensor {tensor.name!r} {exc}") from exc

    def _bytes(self, name: str, descriptor: int, header: Header, begin: int, end: int) -> np.ndarray:
        data = np.empty(end - begin, np.uint8)
        done = 0
        while done < data.size:
            start = header.data_start + begin + done
            got = os.preadv(descriptor, [data[done : done + _MAX_READ].data], start)
            if got == 0:
                raise SourceError(f"{name}: the file was cut off at {start} while it was read")
            done += got
        return data

    def aliases(self) -> Mapping[str, str]:
        return {}

    def assets(self) -> Iterator[AssetData]:
        if self._index is not None:
            yield self._index
        for name, _, header in self._files:
            yield AssetData(name, functools.partial(bytes, header.raw), "safetensors-header")

    def provenance(self) -> Provenance:
        if not self._read and not self._started:  # outlines were read instead
            self._read = [
                SourceFile(path=name, size=header.data_start + header.data_bytes, sha256=_sha256(descriptor))
                for name, descriptor, header in self._files
            ]
        return Provenance(files=tuple(self._read))

    def close(self) -> None:
        self._stack.close()


def _sha256(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").digest()


class SafetensorsSink:
    """One safetensors file with a known header. Tensors may come in any order; each is written to its place.

    The file gets its name in commit(), when it is whole.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._header = header
        self._places = {tensor.name: tensor for tensor in header.tensors}
        self._written: set[str] = set()
        self._stack = ExitStack()
        self._descriptor = self._stack.enter_context(atomic_file(path)).fileno()
        self._behind = WriteBehind(self._descriptor)
        try:
            self._write(memoryview(header.raw), 0)
        except BaseException:
            self.abort()
            raise

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add_tensor(self, name: str, tensor: np.ndarray) -> None:
        """Raises EncodingError if the header has no such tensor."""
        place = self._places.get(name)
        if place is None or place.dtype is not dtype_of(tensor) or place.shape != tensor.shape:
            raise EncodingError(
                f"the header has no tensor {name!r} of {tensor.dtype} and shape {tensor.shape}"
            )
        if tensor.nbytes:
            data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
            self._write(data, self._header.data_start + place.begin)
        self._written.add(name)

    def _write(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done : done + _MAX_READ], offset + done)
        self._behind.wrote(offset, done)

    def commit(self) -> None:
        """Raises EncodingError if a tensor of the header was never added."""
        missing = self._places.keys() - self._written
        if missing:
            raise EncodingError(f"{len(missing)} tensors were not written, among them {min(missing)!r}")
        os.ftruncate(self._descriptor, self._header.data_start + self._header.data_bytes)
        self._stack.close()

    def abort(self) -> None:
        """Give up what is not committed; nothing appears under ``path``."""
        self._stack.__exit__(_Aborted, _Aborted(), None)


class _Aborted(Exception):
    """Makes atomic_file throw away what was written."""

"""What a source and a sink are, and the one function that lets the tensors flow from one to the other.

Tensors pass one at a time: whoever holds a tensor longer than it takes to handle it makes the memory of a conversion
grow from the largest tensor to the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.encoder import TensorEncoder
from dcz.format.tensors import AffineTensor, CodebookTensor, VectorCodebookTensor, group_count

if TYPE_CHECKING:
    from dcz.format.manifest import Provenance
    from dcz.format.tensors import CodedTensor, ParameterValues, TensorData

__all__ = [
    "AssetData",
    "Progress",
    "StreamDigest",
    "TensorOutline",
    "TensorSink",
    "TensorSource",
    "Transferred",
    "decoded_bytes",
    "element_type",
    "first_rows",
    "flat_rows",
    "held_bytes",
    "sha256_of_file",
    "transfer",
]

Progress: TypeAlias = Callable[[int, int], None]
"""Called after each tensor with the tensor bytes that are done and those that there are in all."""

AssetRole: TypeAlias = Literal["file", "safetensors-header"]


@dataclass(frozen=True)
class AssetData:
    """A file that travels with the tensors; ``role`` as in docs/format.md, section 7.

    ``read`` gives the content; it is called once, when the content is needed.
    """

    path: str
    read: Callable[[], bytes]
    role: AssetRole = "file"


@dataclass(frozen=True)
class TensorOutline:
    """What is known of a tensor before it is read.

    ``read(start, stop)`` gives some of its rows, that is of the elements along its first dimension, as a tensor of the shape
    (stop - start, *shape[1:]); of a scalar the only row is (0, 1), and what is given is the scalar. If the tensor is quantized in
    groups, it may give as many other rows.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    read: Callable[[int, int], TensorData]


def flat_rows(
    read: Callable[[int, int], np.ndarray], shape: tuple[int, ...]
) -> Callable[[int, int], np.ndarray]:
    """What an outline reads, of a tensor whose ``read`` gives ranges of its elements in C order, (n,)."""
    row = math.prod(shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        return read(start * row, stop * row).reshape((stop - start, *shape[1:]) if shape else ())

    return rows


class TensorSource(Protocol):
    """Where tensors come from. Used once, in the order: tensors, aliases, assets, provenance, close.

    Instead of tensors(), outlines() may be used, for who wants to read only parts of them.

    ``tensor_bytes`` is what tensors() is going to yield in all, decoded; ``notes`` say what was left out, and why.
    """

    @property
    def tensor_bytes(self) -> int: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        """Each stored tensor once: an array in C order, little-endian, of a type that dcz.format.dtypes knows; or, if the source
        has codes and their parameters, those as they are.

        Raises SourceError if a tensor cannot be read.
        """
        ...

    def outlines(self) -> Iterator[TensorOutline]:
        """What tensors() would yield, unread. Reading a range raises SourceError as tensors() does."""
        ...

    def aliases(self) -> Mapping[str, str]:
        """The further names of tensors: alias -> the name that tensors() yields."""
        ...

    def assets(self) -> Iterator[AssetData]: ...

    def provenance(self) -> Provenance:
        """Source, revision and read files; the digests of the files are complete once tensors() is exhausted."""
        ...

    def close(self) -> None: ...


class TensorSink(Protocol):
    """Where tensors go. Nothing is visible at the destination before commit() returns."""

    def add_tensor(self, name: str, tensor: TensorData) -> None: ...

    def add_alias(self, name: str, target: str) -> None: ...

    def add_asset(self, asset: AssetData) -> None: ...

    def commit(self, provenance: Provenance) -> None: ...

    def abort(self) -> None: ...


@dataclass(frozen=True)
class Transferred:
    """What went through: numbers of things, and the bytes of the tensors as they were decoded."""

    tensors: int
    aliases: int
    assets: int
    tensor_bytes: int


def transfer(source: TensorSource, sink: TensorSink, progress: Progress | None = None) -> Transferred:
    """Let everything flow from ``source`` to ``sink``; the sink commits at the end, or aborts on any exception."""
    try:
        count = done = assets = 0
        for name, tensor in source.tensors():
            sink.add_tensor(name, tensor)
            count += 1
            done += decoded_bytes(tensor)
            del tensor  # or it would live until the source has read the next one
            if progress is not None:
                progress(done, source.tensor_bytes)
        aliases = source.aliases()
        for alias, target in aliases.items():
            sink.add_alias(alias, target)
        for asset in source.assets():
            sink.add_asset(asset)
            assets += asset.role == "file"
        sink.commit(source.provenance())
    except BaseException:
        sink.abort()
        raise
    return Transferred(tensors=count, aliases=len(aliases), assets=assets, tensor_bytes=done)


def element_type(tensor: TensorData) -> DType:
    """Of an array or of what codes decode to. Raises EncodingError for an array of a type that the format does not have."""
    return dtype_of(tensor) if isinstance(tensor, np.ndarray) else DTYPES[tensor.dtype]


def decoded_bytes(tensor: TensorData) -> int:
    return math.prod(tensor.shape) * element_type(tensor).itemsize


def held_bytes(tensor: TensorData) -> int:
    """About the bytes that a tensor takes as the source has it: of codes, without any coding, and their parameters."""
    if isinstance(tensor, np.ndarray):
        return tensor.nbytes
    encoder = TensorEncoder(tensor, coding="raw")
    parameters = sum(len(data) for _, data in encoder.parameter_streams())
    return parameters + -(-tensor.codes.size * tensor.bits // 8)


def first_rows(tensor: CodedTensor, count: int) -> CodedTensor:
    """The first ``count`` of a tensor's rows, the elements along its first dimension, which there is. The parameters of groups stand
    in the order of their elements, so that those of the first rows are the first ones."""
    shape = (count, *tensor.shape[1:])
    elements = math.prod(shape)
    if isinstance(tensor, VectorCodebookTensor):
        if len(shape) == 1 or count == tensor.shape[0]:
            return tensor
        codes = elements // tensor.codewords.shape[2]
        return replace(tensor, shape=shape, codes=tensor.codes.reshape(-1)[:codes])
    groups = group_count(tensor.granularity, shape)
    fields: dict[str, Any] = {"shape": shape, "codes": tensor.codes.reshape(-1)[:elements]}
    if tensor.mask is not None:
        fields["mask"] = tensor.mask.reshape(-1)[:elements]
    if isinstance(tensor, CodebookTensor):
        return replace(tensor, **fields, centroids=tensor.centroids[:groups])
    fields["scales"] = _first_parameters(tensor.scales, groups)
    if isinstance(tensor, AffineTensor):
        if isinstance(tensor.zero_points, np.ndarray):
            fields["zero_points"] = tensor.zero_points[:groups]
        if tensor.minimums is not None:
            fields["minimums"] = _first_parameters(tensor.minimums, groups)
    return replace(tensor, **fields)


def _first_parameters(parameters: ParameterValues, groups: int) -> ParameterValues:
    if isinstance(parameters, np.ndarray):
        return parameters[:groups]
    supers = -(-groups // parameters.group)
    return replace(parameters, codes=parameters.codes[:groups], scales=parameters.scales[:supers])


class StreamDigest:
    """The SHA-256 of bytes that are read anyway, computed on a thread while they are encoded."""

    _INLINE = 1 << 16  # below this a thread costs more than it saves

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Add ``data``, which must not change before the next call."""
        self.wait()
        if len(data) < self._INLINE:
            self._hash.update(data)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="dcz-sha256")
        self._pending = self._pool.submit(self._hash.update, data)

    def wait(self) -> None:
        """Return once no buffer is held any more."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def digest(self) -> bytes:
        self.close()
        return self._hash.digest()

    def close(self) -> None:
        self.wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def sha256_of_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

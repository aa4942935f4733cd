"""Tensors that are in memory already: a dictionary of arrays, torch tensors or codes, or a module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dcz.compression.torch_tensors import (
    check_no_packed_parameters,
    check_tensor,
    is_tensor,
    to_numpy,
    unwrapped,
    view_key,
)
from dcz.converters.base import (
    AssetData,
    TensorOutline,
    decoded_bytes,
    element_type,
    first_rows,
    flat_rows,
)
from dcz.errors import EncodingError, SourceError
from dcz.format.dtypes import DType, dtype_of
from dcz.format.manifest import Provenance, check_name
from dcz.format.tensors import CodedTensor

if TYPE_CHECKING:
    import torch

    from dcz.format.tensors import TensorData

__all__ = ["MemorySource", "module_source"]


def _element_type(name: Any, value: Any) -> DType:
    if not isinstance(name, str):
        raise SourceError(f"the name {name!r} is not a string")
    try:
        check_name(name)
    except ValueError as exc:
        raise SourceError(str(exc)) from exc
    if is_tensor(value):
        return check_tensor(name, value)
    if isinstance(value, CodedTensor):
        return element_type(value)
    if not isinstance(value, np.ndarray | np.generic):
        raise SourceError(
            f"{name!r} is neither a tensor, nor an array, nor codes, but a {type(value).__name__}"
        )
    try:
        return dtype_of(np.asarray(value))
    except EncodingError as exc:
        raise SourceError(f"the array {name!r}: {exc.message}", hint=exc.hint) from exc


class MemorySource:
    """The tensors of a mapping, in its order: arrays, torch tensors, and codes as quantizers make them (dcz.format.tensors). What
    shares its memory entirely, or is the same object, is yielded once, the rest are aliases.

    Everything is checked at once, so that nothing is written for a model of which a later tensor would fail.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        *,
        metadata: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
        release: Callable[[Any], None] | None = None,
    ) -> None:
        """``release`` is called with each tensor once it is done.

        Raises SourceError if something is not a tensor, or of a kind that cannot be stored.
        """
        self._metadata = dict(metadata or {})
        self._notes = notes
        self._release = release
        self._aliases: dict[str, str] = {}
        self._tensors: dict[str, tuple[Any, DType]] = {}
        first: dict[Any, str] = {}
        for name, value in tensors.items():
            dtype = _element_type(name, value)
            key = id(value) if isinstance(value, CodedTensor) else view_key(value)
            target = first.setdefault(key, name) if key is not None else name
            if target == name:
                self._tensors[name] = (value, dtype)
            else:
                self._aliases[name] = target
        self._bytes = sum(_size(value, dtype) for value, dtype in self._tensors.values())

    @property
    def tensor_bytes(self) -> int:
        return self._bytes

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def names(self) -> set[str]:
        return self._tensors.keys() | self._aliases.keys()

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        for name in list(self._tensors):
            value, dtype = self._tensors.pop(name)
            tensor = _whole(name, value, dtype)
            yield name, tensor
            del tensor
            if self._release is not None:
                self._release(value)
            del value

    def outlines(self) -> Iterator[TensorOutline]:
        for name, (value, dtype) in self._tensors.items():
            shape = tuple(value.shape)
            if isinstance(value, CodedTensor):
                yield TensorOutline(name, dtype, shape, functools.partial(_code_rows, value))
                continue
            read = functools.partial(_range, value, dtype)
            yield TensorOutline(name, dtype, shape, flat_rows(read, shape))

    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    def assets(self) -> Iterator[AssetData]:
        return iter(())

    def provenance(self) -> Provenance:
        return Provenance()

    def close(self) -> None:
        self._tensors.clear()


def _whole(name: str, value: Any, dtype: DType) -> TensorData:
    if isinstance(value, CodedTensor):
        return value
    array = to_numpy(value, dtype) if is_tensor(value) else np.asarray(value, dtype=dtype.numpy, order="C")
    if dtype.name == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
        raise SourceError(f"the tensor {name!r} holds bytes that are neither 0 nor 1, and so no bool")
    return array


def _code_rows(tensor: CodedTensor, start: int, stop: int) -> CodedTensor:
    """The first rows, as many as are wanted: others would begin within a group."""
    return first_rows(tensor, stop - start) if tensor.shape else tensor


def _range(value: Any, dtype: DType, start: int, stop: int) -> np.ndarray:
    if is_tensor(value):
        return to_numpy(value.reshape(-1)[start:stop], dtype)
    return np.ascontiguousarray(np.asarray(value).reshape(-1)[start:stop], dtype=dtype.numpy)


def _size(value: Any, dtype: DType) -> int:
    """Bytes, decoded."""
    if isinstance(value, CodedTensor):
        return decoded_bytes(value)
    return dtype.itemsize * int(value.numel() if is_tensor(value) else value.size)


def module_source(module: torch.nn.Module) -> MemorySource:
    """The parameters and persistent buffers of a module; tied ones once. Of a wrapper, as
    DataParallel and torch.compile make them, those of the module inside, under its own names.

    Raises SourceError as MemorySource does, and if the module holds weights that are no tensors.
    """
    inner, prefixes = unwrapped(module)
    notes = [f"the prefix {prefix!r} of all names was removed" for prefix in prefixes]
    tensors: dict[str, torch.Tensor] = {}
    for name, value in inner.state_dict().items():
        if is_tensor(value):
            tensors[name] = value
        else:
            check_no_packed_parameters(name, value)
            notes.append(f"left out: {name}, which is no tensor")
    return MemorySource(tensors, notes=tuple(notes))

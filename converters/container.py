"""The .dcz file itself, as a source and as a sink."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz.converters.base import AssetData, TensorOutline, sha256_of_file
from dcz.converters.recipe_notes import RecipeTally
from dcz.converters.safetensors_header import METADATA_NAME
from dcz.errors import EncodingError
from dcz.format import Reader, Writer
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Provenance, SourceFile

if TYPE_CHECKING:
    from dcz.converters.recipes import Recipe
    from dcz.format.effort import EffortName
    from dcz.format.manifest import Tensor

__all__ = ["DczSink", "DczSource"]

_BATCH: Final = 32 << 20


class DczSource:
    """The tensors of a .dcz file as they decode, in the order of the file.

    Small tensors are decoded many at a time, so that the threads have something to do.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def tensor_bytes(self) -> int:
        return sum(_nbytes(tensor) for tensor in self._reader.manifest.tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._reader.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        batch: list[Tensor] = []
        size = 0
        for tensor in self._reader.manifest.tensors:
            if batch and size + _nbytes(tensor) > _BATCH:
                yield from self._decode(batch)
                batch, size = [], 0
            batch.append(tensor)
            size += _nbytes(tensor)
        yield from self._decode(batch)

    def _decode(self, batch: list[Tensor]) -> Iterator[tuple[str, np.ndarray]]:
        arrays = {tensor.name: np.empty(tensor.shape, DTYPES[tensor.dtype].numpy) for tensor in batch}
        self._reader.read_into(arrays)
        for tensor in batch:
            yield tensor.name, arrays.pop(tensor.name)

    def outlines(self) -> Iterator[TensorOutline]:
        for tensor in self._reader.manifest.tensors:
            read = functools.partial(self._reader.read_range, tensor.name)
            yield TensorOutline(tensor.name, DTYPES[tensor.dtype], tensor.shape, read)

    def aliases(self) -> Mapping[str, str]:
        return self._reader.aliases

    def assets(self) -> Iterator[AssetData]:
        for asset in self._reader.manifest.assets:
            read = functools.partial(self._reader.read_asset, asset.path)
            yield AssetData(asset.path, read, asset.role)

    def provenance(self) -> Provenance:
        """What the file says of its own source. A file that was not lossless is a source itself, and is added."""
        known = self._reader.manifest.provenance
        if known.recipe.get("name", "lossless") == "lossless" or not os.path.isfile(self._reader.name):
            return known.model_copy(update={"recipe": {}})
        path = Path(self._reader.name)
        this = SourceFile(path=path.name, size=self._reader.size, sha256=sha256_of_file(path))
        return known.model_copy(update={"recipe": {}, "files": (*known.files, this)})

    def close(self) -> None:
        self._reader.close()


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize


class DczSink:
    """A new .dcz file, each tensor stored as the recipe says."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        recipe: Recipe,
        *,
        metadata: Mapping[str, str],
        effort: EffortName = "balanced",
        threads: int | None = None,
    ) -> None:
        self._effort: EffortName = effort
        self._recipe = recipe
        self._tally = RecipeTally(recipe)
        self._notes: list[str] = []
        self._writer = Writer(path, metadata=metadata, effort=effort, threads=threads)

    @property
    def digest(self) -> str:
        """The identity of the artifact. Only once it is committed."""
        assert self._writer.digest is not None
        return self._writer.digest

    @property
    def size(self) -> int:
        """Bytes of the file. Only once it is committed."""
        assert self._writer.size is not None
        return self._writer.size

    @property
    def notes(self) -> tuple[str, ...]:
        """What the author of the recipe, or of the model, should know. Only once everything was added."""
        return (*self._notes, *self._tally.notes())

    def add_tensor(self, name: str, tensor: np.ndarray) -> None:
        try:
            prepared = self._recipe.apply(name, tensor)
            self._tally.add(name, tensor, prepared)
            self._writer.add_tensor(name, prepared.tensor, layout=prepared.layout, coding=prepared.coding)
        except EncodingError as exc:
            place = f"tensor {name!r}"
            message = exc.message if exc.message.startswith(place) else f"{place}: {exc.message}"
            raise EncodingError(message, hint=exc.hint) from exc
        self._check_decoding(name)

    def _check_decoding(self, name: str) -> None:
        if name == METADATA_NAME:
            self._notes.append(
                f"the name {name!r} is for metadata in safetensors files: decode will refuse it"
            )

    def add_alias(self, name: str, target: str) -> None:
        self._check_decoding(name)
        self._tally.add_alias(name, target)
        self._writer.add_alias(name, target)

    def add_asset(self, asset: AssetData) -> None:
        self._writer.add_asset(asset.path, asset.read, role=asset.role)

    def commit(self, provenance: Provenance) -> None:
        self._writer.set_provenance(
            provenance.model_copy(update={"recipe": self._recipe.describe(), "effort": self._effort})
        )
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()

"""The .dcz file itself, as a source and as a sink."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz.converters.base import AssetData, TensorOutline, first_rows, flat_rows, sha256_of_file
from dcz.converters.recipe_notes import RecipeTally
from dcz.converters.safetensors_header import METADATA_NAME
from dcz.errors import EncodingError, UsageError
from dcz.format import DEFAULT_LIMITS, DTYPES, Reader, TensorBase, Writer, dtype_of
from dcz.format.manifest import Exact, Provenance, SourceFile
from dcz.format.stored import stored_tensor

if TYPE_CHECKING:
    from dcz.converters.recipes import Recipe
    from dcz.format import TensorData
    from dcz.format.effort import EffortName
    from dcz.format.manifest import Tensor

__all__ = ["DczSink", "DczSource"]

_BATCH: Final = 32 << 20


class DczSource:
    """The tensors of a .dcz file as they decode, in the order of the file; with ``codes``, those that have codes as these.

    Small tensors are decoded many at a time, so that the threads have something to do.
    """

    def __init__(self, reader: Reader, *, codes: bool = False) -> None:
        self._reader = reader
        self._as_codes = codes

    @property
    def tensor_bytes(self) -> int:
        return sum(_nbytes(tensor) for tensor in self._reader.manifest.tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._reader.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def _has_codes(self, tensor: Tensor) -> bool:
        return self._as_codes and not isinstance(tensor.values, Exact)

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        batch: list[Tensor] = []
        size = 0
        for tensor in self._reader.manifest.tensors:
            if self._has_codes(tensor):
                yield from self._decode(batch)
                batch, size = [], 0
                yield tensor.name, stored_tensor(self._reader, tensor.name)
                continue
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
            rows: Callable[[int, int], TensorData] = flat_rows(read, tensor.shape)
            if self._has_codes(tensor):
                rows = functools.partial(self._coded_rows, tensor.name)
            yield TensorOutline(tensor.name, DTYPES[tensor.dtype], tensor.shape, rows)

    def _coded_rows(self, name: str, start: int, stop: int) -> TensorData:
        tensor = stored_tensor(self._reader, name)
        assert not isinstance(tensor, np.ndarray)
        return first_rows(tensor, stop - start) if tensor.shape else tensor

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
        trained: Mapping[str, float] | None = None,
        effort: EffortName = "balanced",
        threads: int | None = None,
        base: Reader | None = None,
        base_hint: str | None = None,
        tally: RecipeTally | None = None,
    ) -> None:
        """``trained``: that the stages of the recipe were carried out on the model, and its metrics; None: its rules are to be.
        ``tally``: of several files that one recipe makes. ``base``: to whose tensors of the same names those that are kept exactly are stored as differences, where that is
        smaller; ``base_hint``: what it is called in the file."""
        self._path = os.fspath(path)
        self._effort: EffortName = effort
        self._recipe = recipe.model_copy(update={"stages": ()} if trained is None else {"rules": ()})
        self._metrics = dict(trained or {})
        self._tally = RecipeTally(self._recipe) if tally is None else tally
        self._notes: list[str] = []
        self._base = base
        self._check_not_needed()
        self._too_far = 0
        self.differences = 0
        """How many tensors are stored as differences."""
        self._writer = Writer(path, metadata=metadata, effort=effort, threads=threads)
        self._base_index = 0 if base is None else self._writer.add_base(base.digest, base_hint)

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
        notes = list(self._notes)
        if self._too_far:
            many = "1 tensor is" if self._too_far == 1 else f"{self._too_far} tensors are"
            notes.append(
                f"{many} stored without the base: there would be more than {DEFAULT_LIMITS.chain} bases behind each other"
            )
        elif self._base is not None and not self.differences:
            notes.append("the base is not used: no tensor is smaller as a difference to it")
        return (*notes, *self._tally.notes())

    def add_tensor(self, name: str, tensor: TensorData) -> None:
        try:
            prepared = self._recipe.apply(name, tensor, self._effort)
            self._tally.add(name, tensor, prepared)
            entry = self._writer.add_tensor(
                name,
                prepared.tensor,
                layout=prepared.layout,
                coding=prepared.coding,
                base=self._of_base(name, prepared.tensor),
            )
            self.differences += isinstance(entry.values, Exact) and entry.values.delta is not None
        except EncodingError as exc:
            place = f"tensor {name!r}"
            message = exc.message if exc.message.startswith(place) else f"{place}: {exc.message}"
            raise EncodingError(message, hint=exc.hint) from exc
        self._check_decoding(name)

    def _of_base(self, name: str, tensor: TensorData) -> TensorBase | None:
        base = self._base
        if base is None or not isinstance(tensor, np.ndarray) or name not in base or not tensor.size:
            return None
        if (base.dtype(name), base.shape(name)) != (dtype_of(tensor).name, tensor.shape):
            return None
        if base.prepare(name) >= DEFAULT_LIMITS.chain:
            self._too_far += 1
            return None
        return TensorBase(base.read(name), self._base_index)

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

    def _check_not_needed(self) -> None:
        """The new file must not take the place of one that is needed to read it."""
        needed = set[str]() if self._base is None else {self._base.name} | self._base.needed_files()
        for name in needed:
            if os.path.exists(self._path) and os.path.exists(name) and os.path.samefile(self._path, name):
                raise UsageError(
                    f"{self._path} is the base, or a base of it: the new file cannot be read without",
                    hint="write to another file",
                )

    def commit(self, provenance: Provenance) -> None:
        self._check_not_needed()
        self._writer.set_provenance(
            provenance.model_copy(
                update={
                    "recipe": self._recipe.describe(),
                    "effort": self._effort,
                    "metrics": {**provenance.metrics, **self._metrics},
                }
            )
        )
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()

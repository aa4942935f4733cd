"""Models in several .dcz files: shards of one set of tensors, with an index that says which tensor is where.

The index is the one of safetensors shards, ``{"metadata": {...}, "weight_map": {tensor: file}}``, and names .dcz files.
Its metadata has ``dcz``: the digest of each file, so that files of different versions are not taken for one model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Self

from dcz.converters.base import AssetData, TensorOutline, TensorSink, decoded_bytes, element_type, held_bytes
from dcz.converters.container import DczSink, DczSource
from dcz.converters.recipe_notes import RecipeTally
from dcz.converters.safetensors import INDEX_SUFFIX, read_weight_map
from dcz.converters.safetensors_header import load_json
from dcz.errors import DigestMismatch, ManifestError, SourceError
from dcz.format import DEFAULT_LIMITS, DTYPES, BaseLike, Limits, Reader
from dcz.format.manifest import Provenance

if TYPE_CHECKING:
    from dcz.converters.recipes import Recipe
    from dcz.format.effort import EffortName
    from dcz.format.tensors import TensorData

__all__ = ["MAX_SHARD_BYTES", "ShardSink", "Shards", "index_of", "is_shard_index"]

MAX_SHARD_BYTES: Final = 5 * 10**9
_FLOATS: Final = ("f32", "f16", "bf16", "f64")


def is_shard_index(path: Path) -> bool:
    """Whether an index names .dcz files, all of them. Raises SourceError if it is not valid."""
    names = set(read_weight_map(path)[1].values())
    found = {PurePosixPath(name).suffix == ".dcz" for name in names}
    if len(found) > 1:
        raise SourceError(f"{path}: an index of .dcz files and of others")
    return found == {True}


def index_of(folder: Path) -> Path:
    """The index of .dcz files in a folder, not in its sub-folders. Raises SourceError unless there is one."""
    found = [path for path in sorted(folder.glob(f"*{INDEX_SUFFIX}")) if is_shard_index(path)]
    if len(found) == 1:
        return found[0]
    places = sorted({path.parent.name for path in folder.glob(f"*/*{INDEX_SUFFIX}")})
    hint = f"give one of its folders: {', '.join(places[:8])}" if places else "give the .dcz file itself"
    raise SourceError(f"{folder} has {'several indices' if found else 'no index'} of .dcz files", hint=hint)


class Shards:
    """The .dcz files of an index, opened: one set of tensors, and a source of them."""

    def __init__(
        self,
        index: Path,
        *,
        threads: int | None = None,
        bases: Sequence[BaseLike] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Raises SourceError if the index is not valid or a file is missing, DigestMismatch or ManifestError if files do
        not belong together, and what Reader raises."""
        data, weights = read_weight_map(index)
        pins = _pins(load_json(data), index)
        names = sorted(set(weights.values()))
        if pins is not None and set(names) != set(pins):
            odd = min(set(names) ^ set(pins))
            raise SourceError(f"{index}: its digests and its weight_map do not name the same files: {odd}")
        self._stack = ExitStack()
        self.readers: dict[str, Reader] = {}
        self._owners: dict[str, Reader] = {}
        try:
            for name in names:
                place = index.parent / name
                if not place.is_file():
                    raise SourceError(f"{index}: the file {name} is missing")
                reader = self._stack.enter_context(Reader(place, threads=threads, base=bases, limits=limits))
                self.readers[name] = reader
                if pins is not None and reader.digest != pins[name]:
                    raise DigestMismatch(
                        f"its digest is {reader.digest}, and {index.name} asks for {pins[name]}",
                        file=reader.name,
                    )
                for tensor in reader:
                    if weights.get(tensor) != name:
                        raise ManifestError(
                            f"the tensor {tensor!r} is not where {index.name} says", file=reader.name
                        )
                    self._owners[tensor] = reader
            missing = weights.keys() - self._owners.keys()
            if missing:
                raise ManifestError(f"no file has the tensor {min(missing)!r}", file=str(index))
        except BaseException:
            self._stack.close()
            raise
        self._sources = [DczSource(reader) for reader in self.readers.values()]

    # -- as a Reader has it

    def __contains__(self, name: object) -> bool:
        return name in self._owners

    def __len__(self) -> int:
        return len(self._owners)

    def keys(self) -> list[str]:
        return list(self._owners)

    def dtype(self, name: str) -> str:
        return self._owners[name].dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owners[name].shape(name)

    # -- as a source has it

    @property
    def tensor_bytes(self) -> int:
        return sum(source.tensor_bytes for source in self._sources)

    @property
    def metadata(self) -> Mapping[str, str]:
        return {key: value for source in reversed(self._sources) for key, value in source.metadata.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        for source in self._sources:
            yield from source.tensors()

    def outlines(self) -> Iterator[TensorOutline]:
        for source in self._sources:
            yield from source.outlines()

    def aliases(self) -> Mapping[str, str]:
        return {alias: name for source in self._sources for alias, name in source.aliases().items()}

    def assets(self) -> Iterator[AssetData]:
        for source in self._sources:
            yield from source.assets()

    def provenance(self) -> Provenance:
        return self._sources[0].provenance()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pins(index: Any, path: Path) -> dict[str, str] | None:
    metadata = index.get("metadata")
    pins = metadata.get("dcz") if isinstance(metadata, dict) else None
    if pins is None:
        return None
    if not isinstance(pins, dict) or not all(isinstance(value, str) for value in pins.values()):
        raise SourceError(f"{path}: its digests of .dcz files are not an object of strings")
    return pins


class ShardSink(TensorSink):
    """New .dcz files in a folder, each of at most so many bytes, named when it is known how many there are.

    A tensor that is larger alone has a file to itself. The first file holds all assets. ``stem``.dcz, or
    ``stem``-00001-of-00002.dcz and so on.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        recipe: Recipe,
        *,
        metadata: Mapping[str, str],
        tally: RecipeTally,
        max_bytes: int,
        effort: EffortName = "balanced",
        threads: int | None = None,
    ) -> None:
        self._folder, self._stem = folder, stem
        self._recipe, self._metadata, self._tally = recipe, metadata, tally
        self._effort: EffortName = effort
        self._threads = threads
        # What cannot be compressed gets a little longer: digests, and places in the manifest.
        self._most = max_bytes - max_bytes // 100
        self._sinks: list[DczSink] = []
        self._room = 0
        self._owners: dict[str, int] = {}
        self._float: str | None = None
        self.tensor_bytes = 0
        self.files: dict[str, DczSink] = {}
        """Each file by its name. Only once it is committed."""
        self._next()

    def _part(self, number: int) -> Path:
        return self._folder / f".{self._stem}-{number}.part"

    def _next(self) -> None:
        self._sinks.append(
            DczSink(
                self._part(len(self._sinks)),
                self._recipe,
                metadata=self._metadata,
                effort=self._effort,
                threads=self._threads,
                tally=self._tally,
            )
        )
        self._room = self._most

    def add_tensor(self, name: str, tensor: TensorData) -> None:
        held = held_bytes(tensor)
        if held > self._room < self._most:
            self._next()
        self._room -= held
        self.tensor_bytes += decoded_bytes(tensor)
        dtype = element_type(tensor).name
        self._float = self._float or (DTYPES[dtype].numpy.name if dtype in _FLOATS else None)
        self._sinks[-1].add_tensor(name, tensor)
        self._owners[name] = len(self._sinks) - 1

    def add_alias(self, name: str, target: str) -> None:
        self._owners[name] = self._owners[target]
        self._sinks[self._owners[target]].add_alias(name, target)

    def add_asset(self, asset: AssetData) -> None:
        self._sinks[0].add_asset(asset)

    def commit(self, provenance: Provenance) -> None:
        count = len(self._sinks)
        for number, sink in enumerate(self._sinks):
            sink.commit(provenance)
            name = f"{self._stem}.dcz" if count == 1 else f"{self._stem}-{number + 1:05}-of-{count:05}.dcz"
            self._part(number).replace(self._folder / name)
            self.files[name] = sink

    def abort(self) -> None:
        for sink in self._sinks:
            sink.abort()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for sink in self._sinks for note in sink.notes))

    def index(self) -> bytes:
        """The index of what is committed."""
        names = list(self.files)
        metadata: dict[str, Any] = {
            "total_size": self.tensor_bytes,
            "dcz": {name: sink.digest for name, sink in self.files.items()},
        }
        if self._float is not None:  # what transformers takes for dtype="auto" if config.json has none
            metadata["dtype"] = self._float
        weights = {name: names[number] for name, number in sorted(self._owners.items())}
        return json.dumps({"metadata": metadata, "weight_map": weights}, indent=2).encode() + b"\n"

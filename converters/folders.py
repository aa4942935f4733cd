"""Folders of .dcz files: a model as the Hub has it, with its weights in .dcz files instead of safetensors.

    model/                                  model-dcz/
      config.json                             config.json                     + quantization_config
      model.safetensors                       model.dcz
                                              model.safetensors.index.json    which tensor is where, and digests
      1_Dense/model.safetensors               1_Dense/model.dcz, and an index of its own
      tokenizer.json, ...                     tokenizer.json, ...             as they are
      README.md                               README.md                       + how to load it, sizes, digests

Every set of safetensors weights, in sub-folders too, becomes one .dcz file beside its place, or several. Files that are not
what they were, such as config.json and README.md, are kept as they were among the assets of the first .dcz file, so that
``hydrate`` gives back the folder that it was, each file byte for byte.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from dcz.converters.base import AssetData, Progress, TensorSource, transfer
from dcz.converters.checkpoints import QuantizedSource, unpacked
from dcz.converters.conversion import RecipeLike, SourceLike, open_source
from dcz.converters.decoding import DecodeSink, canonical_header, folder_in_place, original_headers
from dcz.converters.huggingface import FolderFiles, pick_weights
from dcz.converters.model_card import CardFacts, Loading, is_generated, merged_card
from dcz.converters.recipe_notes import RecipeTally
from dcz.converters.recipes import recipe_of_rules
from dcz.converters.safetensors import INDEX_SUFFIX, SafetensorsSource, read_weight_map
from dcz.converters.safetensors_header import load_json
from dcz.converters.shards import MAX_SHARD_BYTES, Shards, ShardSink, is_shard_index
from dcz.errors import DigestMismatch, ManifestError, SourceError, UsageError
from dcz.format import BaseLike
from dcz.format.atomic import naming
from dcz.format.effort import effort_of
from dcz.format.manifest import check_asset_paths
from dcz.format.source import check_local

if TYPE_CHECKING:
    from dcz.converters.recipes import Recipe
    from dcz.format.effort import EffortName
    from dcz.format.manifest import Provenance

__all__ = ["Hydrated", "SavedFile", "SavedFolder", "hydrate_folder", "is_dcz_folder", "save_folder"]

_CONFIG: Final = "config.json"
_MAX_CONFIG: Final = 16 << 20  # bytes
_CARD: Final = "README.md"
_SAFETENSORS: Final = ".safetensors"
_MAX_JSON: Final = 16 << 20


@dataclass(frozen=True)
class SavedFile:
    """A .dcz file of a folder: its path in it, its digest, and its bytes."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class SavedFolder:
    """What saving a folder did. Bytes are those of the tensors as they were, and of the .dcz files; ``seconds`` of wall clock.
    ``lossless``: no rule of the recipe has changed weights."""

    path: str
    dcz_files: tuple[SavedFile, ...]
    other_files: tuple[str, ...]
    recipe: str
    effort: str
    lossless: bool
    tensors: int
    tensor_bytes: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def file_bytes(self) -> int:
        return sum(file.size for file in self.dcz_files)

    @property
    def ratio(self) -> float:
        """The .dcz files' bytes for each byte of the tensors; 1 if there are none."""
        return self.file_bytes / self.tensor_bytes if self.tensor_bytes else 1.0

    def facts(self, *, loading: Loading, name: str | None = None, base_model: str | None = None) -> CardFacts:
        """What its model card tells."""
        return CardFacts(
            recipe=self.recipe,
            lossless=self.lossless,
            tensors=self.tensors,
            tensor_bytes=self.tensor_bytes,
            files=tuple((file.path, file.size, file.digest) for file in self.dcz_files),
            loading=loading,
            base_model=base_model,
            name=name,
        )


@dataclass(frozen=True)
class Hydrated:
    """What hydrating a folder did. ``original``: all safetensors files have their original headers and order."""

    path: str
    files: tuple[str, ...]
    tensors: int
    tensor_bytes: int
    original: bool
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Weights:
    """A set of tensors: in which sub-folder, under which name without its ending, and what gives them."""

    place: PurePosixPath
    stem: str
    open: Callable[[], TensorSource]


class _Input:
    """What is to be saved: weights, and files around them, read one after the other."""

    def __init__(self, source: SourceLike, threads: int | None, bases: Sequence[BaseLike]) -> None:
        self.weights: list[_Weights] = []
        self.files: dict[str, Callable[[], bytes] | Path] = {}
        self.notes: list[str] = []
        self.repository: str | None = None
        self.revision: str | None = None
        if isinstance(source, str | os.PathLike) and os.path.isdir(source):
            self._take_folder(Path(source))
        else:
            opened = open_source(source, threads=threads, bases=bases)
            self.weights.append(_Weights(PurePosixPath(), "model", lambda: opened))

    def _take_folder(self, folder: Path) -> None:
        files = FolderFiles(folder)
        self.repository, self.revision = files.repository, files.revision
        taken: set[str] = set()
        paths = list(files.walk())
        if any(path.endswith(".dcz") for path in paths):
            raise SourceError(f"{folder}: the folder has .dcz files already", hint="hydrate it first")
        for path in paths:
            if path.endswith(INDEX_SUFFIX):
                names = read_weight_map(files.folder / path)[1].values()
                taken |= {path, *(str(PurePosixPath(path).parent / name) for name in names)}
                self._add(files.folder, path, path.removesuffix(INDEX_SUFFIX), SafetensorsSource.from_index)
        for path in paths:
            if path.endswith(_SAFETENSORS) and path not in taken:
                with closing(SafetensorsSource.from_file(files.folder / path)) as opened:
                    if next(opened.outlines(), None) is None:
                        continue  # without tensors it is as small as it can be
                taken.add(path)
                self._add(files.folder, path, path.removesuffix(_SAFETENSORS), SafetensorsSource.from_file)
        if not any(weights.place == PurePosixPath() for weights in self.weights) and (
            not self.weights or (files.folder / "pytorch_model.bin").exists()
        ):
            picked, used = pick_weights(files.folder)
            taken |= used
            self.weights.insert(
                0, _Weights(PurePosixPath(), "model", lambda: self._unpacked(files.folder, picked))
            )
        for path in paths:
            if path not in taken and files.takes(path, bounded=False):
                self.files[path] = files.folder / path
        self.notes += files.notes
        self.weights.sort(key=lambda weights: (len(weights.place.parts), weights.place, weights.stem))

    def _add(self, folder: Path, path: str, stem: str, opener: Callable[[Path], TensorSource]) -> None:
        pure = PurePosixPath(stem)
        place = folder / pure.parent
        self.weights.append(
            _Weights(pure.parent, pure.name, lambda: self._unpacked(place, opener(folder / path)))
        )

    def _unpacked(self, folder: Path, weights: TensorSource) -> TensorSource:
        return unpacked(folder, weights, self.notes)


def shard_bytes(size: int | str) -> int:
    """A size in bytes, or such as ``5GB``, in powers of ten as on the Hub. Raises UsageError."""
    if isinstance(size, int) and size > 0:
        return size
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    text = str(size).strip().upper()
    number, unit = text[:-2].strip(), text[-2:]
    if unit in units and number.isascii() and number.isdigit() and int(number) > 0:
        return int(number) * units[unit]
    raise UsageError(f"{size!r} is not a size of shards", hint="such as 5GB, or a number of bytes")


def save_folder(
    source: SourceLike,
    destination: str | os.PathLike[str],
    *,
    recipe: RecipeLike = "lossless",
    effort: EffortName = "balanced",
    max_shard_size: int | str = MAX_SHARD_BYTES,
    base_model: str | None = None,
    name: str | None = None,
    card: bytes | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
    bases: Sequence[BaseLike] = (),
) -> SavedFolder:
    """Write a folder whose weights are .dcz files, which transformers loads and ``hydrate`` turns back.

    ``source``: a folder, or what dcz.convert takes. ``max_shard_size``: in bytes, or such as ``5GB``. ``base_model``: the
    repository on the Hub that the model was, for the model card; of a folder in the cache of the Hub it is known. ``name``: of the
    repository that the card is for. ``card``: the card to add to, instead of that of the source. Others as for dcz.convert. ``progress`` counts the bytes of each set of weights alone.

    Nothing appears at ``destination`` before it is whole; an existing folder must be empty. Raises as dcz.convert does,
    and UsageError if the folder is not empty.
    """
    start = time.perf_counter()
    plan, most = recipe_of_rules(recipe), shard_bytes(max_shard_size)
    effort_of(effort)
    target = Path(destination)
    check_free(target)
    given = _Input(source, threads, bases)
    saver = _Saver(given, plan, effort, most, threads, progress, metadata or {})
    with naming(os.fspath(target)), folder_in_place(target) as folder, saver:
        saver.save(folder)
        done = SavedFolder(
            path=os.fspath(destination),
            dcz_files=tuple(saver.saved),
            other_files=tuple(sorted([*saver.others, _CARD])),
            recipe=plan.name,
            effort=effort,
            lossless=saver.lossless,
            tensors=saver.tensors,
            tensor_bytes=saver.tensor_bytes,
            seconds=time.perf_counter() - start,
            notes=tuple(dict.fromkeys((*given.notes, *saver.notes))),
        )
        facts = done.facts(
            loading="transformers" if saver.loadable else "folder",
            name=name,
            base_model=base_model or given.repository,
        )
        write_new(folder / _CARD, merged_card(saver.card if card is None else card, facts))
    return done


def check_free(target: Path) -> None:
    """Raises UsageError unless ``target`` is not there, or an empty folder."""
    check_local(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder")


class _Saver:
    def __init__(
        self,
        given: _Input,
        recipe: Recipe,
        effort: EffortName,
        most: int,
        threads: int | None,
        progress: Progress | None,
        metadata: Mapping[str, str],
    ) -> None:
        self._given, self._recipe, self._tally = given, recipe, RecipeTally(recipe)
        self._effort: EffortName = effort
        self._most, self._threads, self._progress, self._metadata = most, threads, progress, metadata
        self.saved: list[SavedFile] = []
        self.others: list[str] = []
        self.notes: list[str] = []
        self.tensors = self.tensor_bytes = 0
        self.loadable = False
        self.card: bytes | None = None
        self._stack = ExitStack()

    def __enter__(self) -> None:
        """Sources stay open until everything is written: what is in a .dcz file is read from it at the end."""

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def save(self, folder: Path) -> None:
        for number, weights in enumerate(self._given.weights):
            self._save_weights(folder, weights, first=number == 0)
        for path, content in self._given.files.items():
            self._write(folder, path, content)

    @property
    def lossless(self) -> bool:
        return not self._tally.changed

    def _save_weights(self, folder: Path, weights: _Weights, *, first: bool) -> None:
        place = folder / weights.place
        place.mkdir(parents=True, exist_ok=True)
        config_path = str(weights.place / _CONFIG)
        opened = self._stack.enter_context(closing(weights.open()))
        if isinstance(opened, QuantizedSource):
            self._given.files[config_path] = functools.partial(bytes, opened.config)
        source = _WithAssets(opened, self._given)
        for asset in source.loose():  # of a .dcz file, which holds the files that it came with
            self._given.files.setdefault(str(weights.place / asset.path), asset.read)
        if first and _CARD in self._given.files:
            self.card = _content(self._given.files.pop(_CARD))
            source.keep(_CARD, self.card)
        config = None
        if weights.stem == "model" and config_path in self._given.files:
            content = _content(self._given.files[config_path])
            config = _loadable_config(content)
            if config is not None:
                source.keep(_CONFIG, content)
        sink = ShardSink(
            place,
            weights.stem,
            self._recipe,
            metadata={**source.metadata, **self._metadata},
            tally=self._tally,
            max_bytes=self._most,
            effort=self._effort,
            threads=self._threads,
        )
        done = transfer(source, sink, self._progress)
        self.notes += [*source.notes, *sink.notes]
        if not done.tensors:
            raise SourceError("there are no tensors to save")
        self.tensors += done.tensors + done.aliases
        self.tensor_bytes += done.tensor_bytes
        for name, file in sink.files.items():
            self.saved.append(SavedFile(str(weights.place / name), file.digest, file.size))
        self._write(folder, str(weights.place / f"{weights.stem}{INDEX_SUFFIX}"), sink.index)
        if config is not None:
            config["quantization_config"] = {
                "quant_method": "dcz",
                "format_version": 1,
                "shards": {name: file.digest for name, file in sink.files.items()},
            }
            del self._given.files[config_path]
            self.loadable |= config_path == _CONFIG
            self._write(
                folder, config_path, lambda: json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
            )

    def _write(self, folder: Path, path: str, content: Callable[[], bytes] | Path) -> None:
        try:
            check_asset_paths([path])
        except ValueError as exc:
            raise SourceError(f"a file cannot be written: {exc}") from exc
        write_new(folder / path, content if isinstance(content, Path) else content())
        self.others.append(path)


def _content(content: Callable[[], bytes] | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content()


def _loadable_config(content: bytes) -> dict[str, Any] | None:
    """A configuration of transformers that can be told where its weights are."""
    try:
        config = load_json(content)
    except ValueError:
        return None
    if not isinstance(config, dict) or "model_type" not in config or "quantization_config" in config:
        return None
    return config


class _WithAssets(TensorSource):
    """A source whose files are written beside the .dcz file; what the file keeps is what is given to it."""

    def __init__(self, source: TensorSource, given: _Input) -> None:
        self._source, self._given = source, given
        self._kept: list[AssetData] = []
        self._loose = [asset for asset in source.assets() if asset.role == "file"]
        self._inner = [asset for asset in self._loose if asset.path.endswith(INDEX_SUFFIX)]

    def loose(self) -> Iterator[AssetData]:
        return (asset for asset in self._loose if asset not in self._inner)

    def keep(self, path: str, content: bytes) -> None:
        self._kept.append(AssetData(path, lambda: content))

    @property
    def tensor_bytes(self) -> int:
        return self._source.tensor_bytes

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._source.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        return self._source.notes

    def tensors(self) -> Iterator[Any]:
        return self._source.tensors()

    def outlines(self) -> Iterator[Any]:
        return self._source.outlines()

    def aliases(self) -> Mapping[str, str]:
        return self._source.aliases()

    def assets(self) -> Iterator[AssetData]:
        yield from self._inner
        yield from (asset for asset in self._source.assets() if asset.role != "file")
        yield from self._kept

    def provenance(self) -> Provenance:
        known = self._source.provenance()
        if self._given.repository is None:
            return known
        return known.model_copy(update={"source": self._given.repository, "revision": self._given.revision})

    def close(self) -> None:
        self._source.close()


# -- and back


def is_dcz_folder(folder: Path) -> bool:
    """Whether there is an index of .dcz files in a folder, or one of its sub-folders."""
    return any(_indices(folder))


def _indices(folder: Path) -> Iterator[PurePosixPath]:
    for path in FolderFiles(folder).walk():
        if path.endswith(INDEX_SUFFIX) and is_shard_index(folder / path):
            yield PurePosixPath(path)


def hydrate_folder(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    bases: Sequence[BaseLike] = (),
    pins: Sequence[str] = (),
) -> Hydrated:
    """Turn a folder of .dcz files into an ordinary one, with safetensors weights, for every other tool.

    If the recipe was lossless, it is the folder that was saved, each file byte for byte. Nothing appears at
    ``destination`` before it is whole; an existing folder must be empty. ``progress`` counts the bytes of each set of
    weights alone.

    Raises SourceError if ``source`` has no .dcz files, FormatError if one of them is at fault, UsageError if the
    destination is not empty, OSError if the disk does not take the files.
    """
    start = time.perf_counter()
    files = FolderFiles(Path(source))
    target = Path(destination)
    check_free(target)
    indices = list(_indices(files.folder))
    if not indices:
        raise SourceError(f"{source}: the folder has no index of .dcz files")
    made = _Hydrator(files, threads, progress, bases, pins)
    with naming(os.fspath(target)), folder_in_place(target) as folder:
        for index in indices:
            made.hydrate(index, folder)
        made.copy_rest({str(index) for index in indices}, folder)
    return Hydrated(
        path=os.fspath(destination),
        files=tuple(sorted(made.written)),
        tensors=made.tensors,
        tensor_bytes=made.tensor_bytes,
        original=made.original,
        seconds=time.perf_counter() - start,
        notes=tuple(made.notes),
    )


class _Hydrator:
    def __init__(
        self,
        files: FolderFiles,
        threads: int | None,
        progress: Progress | None,
        bases: Sequence[BaseLike],
        pins: Sequence[str],
    ) -> None:
        self._files, self._threads, self._progress, self._bases = files, threads, progress, bases
        self._pins = pins
        self.written: set[str] = set()
        self._used: set[str] = set()
        self.notes: list[str] = []
        self.tensors = self.tensor_bytes = 0
        self.original = True

    def hydrate(self, index: PurePosixPath, folder: Path) -> None:
        place, stem = index.parent, index.name.removesuffix(INDEX_SUFFIX)
        shards = Shards(self._files.folder / index, threads=self._threads, bases=self._bases)
        try:
            for reader in shards.readers.values():
                if self._pins and reader.digest not in self._pins:
                    raise DigestMismatch(
                        f"its digest is {reader.digest}, and not what was asked for", file=reader.name
                    )
            self._check_config(place, {name: reader.digest for name, reader in shards.readers.items()})
            self._used |= {str(place / name) for name in shards.readers}
            headers = original_headers(shards, shards.assets())
            self.original &= bool(headers)
            files = headers or {f"{stem}{_SAFETENSORS}": canonical_header(shards)}
            loose = [
                asset
                for asset in shards.assets()
                if asset.role == "file" and (headers or not asset.path.endswith(INDEX_SUFFIX))
            ]
            names = [str(place / name) for name in files]
            names += [asset.path if asset.path == _CARD else str(place / asset.path) for asset in loose]
            try:
                check_asset_paths([*self.written, *names])
            except ValueError as exc:
                raise ManifestError(
                    f"the files cannot be put into one folder: {exc}", file=str(self._files.folder / index)
                ) from exc
            (folder / place).mkdir(parents=True, exist_ok=True)
            paths = {name: (folder / place / name, header) for name, header in files.items()}
            transfer(shards, DecodeSink(paths, None, shards.aliases()), self._progress)
            for asset, name in zip(loose, names[len(files) :], strict=True):
                write_new(folder / name, asset.read())
            self.written.update(names)
            self.tensors += len(shards)
            self.tensor_bytes += shards.tensor_bytes
        finally:
            shards.close()

    def _check_config(self, place: PurePosixPath, digests: dict[str, str]) -> None:
        """A config.json that names the files must name just these, as transformers would ask for. Raises DigestMismatch,
        ManifestError."""
        path = self._files.folder / place / _CONFIG
        if not path.is_file() or path.stat().st_size > _MAX_CONFIG:
            return
        try:
            config: Any = load_json(path.read_bytes())
        except ValueError:
            return  # it is nothing that we wrote
        given = config.get("quantization_config") if isinstance(config, dict) else None
        if not isinstance(given, dict) or given.get("quant_method") != "dcz":
            return
        version, shards = given.get("format_version", 1), given.get("shards", digests)
        if version != 1:
            raise ManifestError(
                f"its quantization_config has the version {version!r}, this dcz reads version 1",
                file=str(path),
            )
        if not isinstance(shards, dict) or shards != digests:
            raise DigestMismatch(
                "its quantization_config does not name the .dcz files that are there", file=str(path)
            )

    def copy_rest(self, indices: set[str], folder: Path) -> None:
        for path in self._files.walk():
            if path in self._used or path in self.written or path in indices:
                continue
            if path == _CARD and is_generated((self._files.folder / path).read_bytes()):
                self.notes.append(f"left out: {path} (it is about the .dcz files)")
            elif self._files.takes(path, bounded=False):
                write_new(folder / path, self._files.folder / path)
                self.written.add(path)
        self.notes += self._files.notes


def write_new(place: Path, content: bytes | Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        if isinstance(content, Path):
            with content.open("rb") as other:
                shutil.copyfileobj(other, file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())

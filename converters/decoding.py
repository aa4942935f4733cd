"""decode: a .dcz file becomes safetensors again, or the folder that it was."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcz.converters.base import AssetData, Progress, TensorSource, transfer
from dcz.converters.container import DczSource
from dcz.converters.gguf import gguf_original, write_gguf
from dcz.converters.safetensors import INDEX_SUFFIX, SafetensorsSink
from dcz.converters.safetensors_header import Header, build_header, parse_header
from dcz.errors import ManifestError, SourceError, UsageError
from dcz.format import DTYPES, Reader, sync_folder
from dcz.format.atomic import naming, temporary_prefix
from dcz.format.decoded import decoded
from dcz.format.manifest import check_asset_paths

if TYPE_CHECKING:
    from dcz.converters.shards import Shards
    from dcz.format.manifest import Provenance
    from dcz.format.tensors import TensorData

__all__ = ["DecodeSink", "Decoded", "canonical_header", "decode", "folder_in_place", "original_headers"]


@dataclass(frozen=True)
class Decoded:
    """What a decoding did.

    ``original``: the files of weights have their original headers and order. ``headers``: how many original headers the
    .dcz file holds; those of several files cannot be the header of one.
    """

    path: str
    files: tuple[str, ...]
    tensors: int
    tensor_bytes: int
    original: bool
    headers: int
    seconds: float


def original_headers(model: Reader | Shards, assets: Iterable[AssetData]) -> dict[str, Header]:
    """The original headers among the assets, if together they describe exactly the tensors of the model; otherwise none."""
    found: dict[str, Header] = {}
    names: list[str] = []
    for asset in assets:
        if asset.role != "safetensors-header":
            continue
        try:
            header = parse_header(asset.read(), file=asset.path)
        except SourceError:
            return {}
        for tensor in header.tensors:
            if tensor.name not in model:
                return {}
            if (tensor.dtype.name, tensor.shape) != (model.dtype(tensor.name), model.shape(tensor.name)):
                return {}
        names += [tensor.name for tensor in header.tensors]
        found[asset.path] = header
    return found if sorted(names) == sorted(model.keys()) else {}


def canonical_header(model: Reader | Shards) -> Header:
    """A header for all tensors. Tied ones stand in it once for each name, as safetensors cannot share."""
    tensors = [(name, DTYPES[model.dtype(name)], model.shape(name)) for name in list(model.keys())]
    return build_header(tensors, model.metadata)


class DecodeSink:
    """safetensors files with known headers, and, in a folder, the assets beside them."""

    def __init__(
        self, files: Mapping[str, tuple[Path, Header]], folder: Path | None, aliases: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._names: dict[str, list[str]] = {}
        for alias, target in aliases.items():
            self._names.setdefault(target, []).append(alias)
        self._sinks: list[SafetensorsSink] = []
        self.written: list[str] = []
        try:
            for name, (path, header) in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._sinks.append(SafetensorsSink(path, header))
                self.written.append(name)
        except BaseException:
            self.abort()
            raise

    def add_tensor(self, name: str, tensor: TensorData) -> None:
        array = decoded(tensor)
        for each in (name, *self._names.get(name, ())):
            for sink in self._sinks:
                if each in sink:
                    sink.add_tensor(each, array)

    def add_alias(self, name: str, target: str) -> None:
        """Already written, when its target was."""

    def add_asset(self, asset: AssetData) -> None:
        if self._folder is None or asset.role != "file":
            return
        place = self._folder / asset.path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            file.write(asset.read())
            file.flush()
            os.fsync(file.fileno())
        self.written.append(asset.path)

    def commit(self, provenance: Provenance) -> None:
        for sink in self._sinks:
            sink.commit()

    def abort(self) -> None:
        for sink in self._sinks:
            sink.abort()


def decode(
    source: str | os.PathLike[str] | Reader,
    destination: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """Write the model in a .dcz file as safetensors or, if it came from GGUF, as that: a single file if ``destination`` ends
    so, otherwise a folder.

    A folder gets the assets and the safetensors files; what came from safetensors gets the original names, headers and
    order back, and is identical byte for byte if every tensor was stored losslessly. What came from GGUF comes as that file
    (dcz.converters.gguf.write_gguf). Other tensors come as ``model.safetensors``. Memory holds one tensor. Nothing appears at the destination before it is whole; an existing
    file is replaced, an existing folder must be empty.

    Raises FormatError if the .dcz file is at fault, UsageError if the folder is not empty or there is no way to write GGUF, OSError if the disk does not
    take the files.
    """
    start = time.perf_counter()
    reader = source if isinstance(source, Reader) else Reader(source, threads=threads)
    try:
        target = os.fspath(destination)
        with naming(target):
            if target.endswith(".safetensors"):
                written, headers = _decode_file(reader, Path(target), progress)
                original = headers == 1
            elif target.endswith(".gguf"):
                original = write_gguf(reader, Path(target), progress)
                written, headers = [os.path.basename(target)], 1
            else:
                written, headers, original = _decode_folder(reader, Path(target), progress)
        return Decoded(
            path=os.fspath(destination),
            files=tuple(sorted(written)),
            tensors=len(reader),
            tensor_bytes=DczSource(reader).tensor_bytes,
            original=original,
            headers=headers,
            seconds=time.perf_counter() - start,
        )
    finally:
        if reader is not source:
            reader.close()


def _decode_file(reader: Reader, target: Path, progress: Progress | None) -> tuple[list[str], int]:
    headers = original_headers(reader, DczSource(reader).assets())
    header = next(iter(headers.values())) if len(headers) == 1 else canonical_header(reader)
    sink = DecodeSink({target.name: (target, header)}, None, reader.aliases)
    transfer(DczSource(reader), sink, progress)
    return sink.written, len(headers)


def _decode_folder(reader: Reader, target: Path, progress: Progress | None) -> tuple[list[str], int, bool]:
    """Gives the files, how many original headers there are, and whether the files of weights have them."""
    headers = original_headers(reader, DczSource(reader).assets())
    gguf = None if headers else gguf_original(reader)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder")
    source: TensorSource = DczSource(reader) if headers else _WithoutIndex(reader)
    files = headers or ({"model.safetensors": canonical_header(reader)} if len(reader) and not gguf else {})
    try:
        check_asset_paths([*files, *reader.assets(), *([gguf.name] if gguf else [])])
    except ValueError as exc:
        raise ManifestError(f"the files cannot be put into one folder: {exc}", file=reader.name) from exc
    with folder_in_place(target) as folder:
        sink = DecodeSink(
            {name: (folder / name, header) for name, header in files.items()}, folder, reader.aliases
        )
        if gguf is None:
            transfer(source, sink, progress)
            return sink.written, len(headers), bool(headers)
        original = write_gguf(reader, folder / gguf.name, progress)
        for asset in source.assets():
            if asset.path != gguf.asset:
                sink.add_asset(asset)
        return [*sink.written, gguf.name], 1, original


class _WithoutIndex(DczSource):
    """Without the index of shards, which would describe files that are not there."""

    def assets(self) -> Iterator[AssetData]:
        return (asset for asset in super().assets() if not asset.path.endswith(INDEX_SUFFIX))


@contextmanager
def folder_in_place(target: Path) -> Generator[Path]:
    """A folder beside ``target`` that takes its place when the block ends well, and goes away otherwise."""
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=temporary_prefix(target.name), suffix=".tmp", dir=parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        for base, _, _ in os.walk(folder, topdown=False):
            sync_folder(base)
        folder.replace(target.absolute())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_folder(parent)


def _umask() -> int:
    """The process's umask; there is no way to ask for it but to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

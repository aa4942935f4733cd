"""convert: whatever holds a model becomes a .dcz file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dcz.compression.torch_tensors import is_module
from dcz.converters.base import Progress, TensorSource, transfer
from dcz.converters.container import DczSink, DczSource
from dcz.converters.gguf import GgufSource
from dcz.converters.gguf_header import GGUF_MAGIC
from dcz.converters.huggingface import HuggingFaceSource
from dcz.converters.memory import MemorySource, module_source
from dcz.converters.pytorch import PyTorchSource
from dcz.converters.recipes import load_recipe, recipe_of_rules
from dcz.converters.safetensors import INDEX_SUFFIX, SafetensorsSource
from dcz.errors import SourceError, UsageError
from dcz.format import BaseLike, Reader
from dcz.format.atomic import naming
from dcz.format.effort import effort_of
from dcz.format.layout import MAGIC
from dcz.format.parallel import thread_count

if TYPE_CHECKING:
    import torch

    from dcz.converters.recipes import Recipe
    from dcz.format.effort import EffortName

__all__ = ["Converted", "RecipeLike", "SourceLike", "convert", "open_source"]

SourceLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | torch.nn.Module | Reader"
RecipeLike: TypeAlias = "str | os.PathLike[str] | Recipe"

_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = 0x80  # the opcode that starts every pickle since protocol 2


@dataclass(frozen=True)
class Converted:
    """What a conversion did. Bytes are those of the tensors as they were, and of the file; ``seconds`` of wall clock.
    ``differences``: how many tensors are stored as differences to the base."""

    path: str
    digest: str
    recipe: str
    effort: str
    tensors: int
    aliases: int
    assets: int
    tensor_bytes: int
    file_bytes: int
    seconds: float
    notes: tuple[str, ...]
    differences: int = 0

    @property
    def ratio(self) -> float:
        """The file's bytes for each byte of the tensors; 1 if there are none."""
        return self.file_bytes / self.tensor_bytes if self.tensor_bytes else 1.0


def _open_file(path: Path, threads: int | None, bases: Sequence[BaseLike]) -> TensorSource:
    """By what is in the file; its name only decides between the two kinds of index."""
    if path.name.endswith(INDEX_SUFFIX):
        return SafetensorsSource.from_index(path)
    if path.name.endswith(".index.json"):
        return PyTorchSource.from_index(path)
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise SourceError(f"{path}: the file is empty")
    # The first byte of safetensors is any, so that its "{" is looked for before the marks of others.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return SafetensorsSource.from_file(path)
    if start.startswith(MAGIC):
        return DczSource(Reader(path, threads=threads, base=bases), codes=True)
    if start.startswith(GGUF_MAGIC):
        return GgufSource(path)
    if start.startswith(_ZIP) or start[:1] == bytes([_PICKLE]):
        return PyTorchSource.from_file(path)
    raise SourceError(
        f"{path}: neither safetensors, nor a torch checkpoint, nor GGUF, nor .dcz",
        hint="a folder, a module and a dictionary of tensors can be converted too",
    )


def open_source(
    source: SourceLike, *, threads: int | None = None, bases: Sequence[BaseLike] = ()
) -> TensorSource:
    """Whatever holds a model: a file or folder, a module, a mapping of names to tensors, arrays or codes, an open .dcz.

    ``bases``: where a .dcz that holds differences finds its bases, as for dcz.format.Reader.
    Raises SourceError if it is none of these or cannot be read, UnsafePickle if reading it would run code.
    """
    if isinstance(source, Reader):
        return DczSource(source, codes=True)
    if isinstance(source, Mapping):
        return MemorySource(source)
    if is_module(source):
        return module_source(source)
    if not isinstance(source, str | os.PathLike):
        raise SourceError(f"a {type(source).__name__} is not a model that can be converted")
    if not os.fspath(source):
        raise SourceError("the source is an empty path")
    path = Path(source)
    try:
        if path.is_dir():
            return HuggingFaceSource(path)
        if path.is_file():
            return _open_file(path, threads, bases)
        if path.exists():
            raise SourceError(f"{source}: neither a regular file nor a folder")
    except OSError as exc:
        raise SourceError(f"{source}: cannot be read: {exc.strerror or exc}") from exc
    raise SourceError(f"{source}: no such file or folder")


def check_options(*, effort: str, threads: int | None, metadata: Mapping[str, str] | None) -> None:
    """What `convert` checks before anything else. Raises UsageError."""
    effort_of(effort)
    thread_count(threads)
    _check_metadata({} if metadata is None else metadata)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, Mapping):
        raise UsageError(f"metadata is a dictionary of strings, not a {type(metadata).__name__}")
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise UsageError(f"metadata is a dictionary of strings, and its key {key!r} is none")
        if not isinstance(value, str):
            raise UsageError(f"metadata is a dictionary of strings, and metadata[{key!r}] is {value!r}")
        try:
            f"{key}{value}".encode()
        except UnicodeEncodeError as exc:
            raise UsageError(f"metadata[{key!r}] holds half of a surrogate pair") from exc


def convert(
    source: SourceLike,
    path: str | os.PathLike[str],
    *,
    recipe: RecipeLike = "lossless",
    effort: EffortName = "balanced",
    threads: int | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
    base: Reader | None = None,
    base_hint: str | None = None,
    bases: Sequence[BaseLike] = (),
    trained: Mapping[str, float] | None = None,
) -> Converted:
    """Write a .dcz file from a model.

    ``source``: see open_source. ``recipe``: how to store each tensor; the name of a built-in one, the path of a TOML
    file, or a Recipe. ``effort``: what size is weighed against (docs/guides/converting.md); ``fast``, ``balanced`` or
    ``small``. ``threads``: how many encode (default: one for each core); the bytes do not depend on it. ``progress`` is
    called after each tensor. ``metadata`` is added to that of the source. ``base``: an open .dcz file,
    to whose tensors those of the same name, type and shape are stored as differences where that is smaller; ``base_hint``:
    what the new file calls it. ``bases``: where a source that holds differences itself finds its bases. ``trained``: that the
    stages of the recipe were carried out on the source, and its metrics; it is stored exactly then. Otherwise the rules of the
    recipe decide, and its stages do not matter.

    Memory holds the largest tensor, its base if there is one, and a few segments, not the model. Nothing appears at ``path`` before it is whole.

    Raises SourceError (or UnsafePickle) if the source cannot be read, RecipeError if the recipe is not valid,
    UsageError if it has stages only, if ``metadata`` is not text or there is no such effort, EncodingError if a tensor cannot be stored as the recipe says, OSError if the disk does not take the file.
    """
    start = time.perf_counter()
    plan = recipe_of_rules(recipe) if trained is None else load_recipe(recipe)
    check_options(effort=effort, threads=threads, metadata=metadata)
    opened = open_source(source, threads=threads, bases=bases)
    try:
        with naming(path):
            sink = DczSink(
                path,
                plan,
                metadata={**opened.metadata, **(metadata or {})},
                trained=trained,
                effort=effort,
                threads=threads,
                base=base,
                base_hint=base_hint,
            )
            done = transfer(opened, sink, progress)
    finally:
        if not isinstance(source, Reader):
            opened.close()
    return Converted(
        path=os.fspath(path),
        digest=sink.digest,
        recipe=plan.name,
        effort=effort,
        tensors=done.tensors,
        aliases=done.aliases,
        assets=done.assets,
        tensor_bytes=done.tensor_bytes,
        differences=sink.differences,
        file_bytes=sink.size,
        seconds=time.perf_counter() - start,
        notes=(*opened.notes, *sink.notes),
    )

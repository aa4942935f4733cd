"""save_pretrained and hydrate: folders of .dcz files, from models and back to ordinary folders."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcz.converters import decoding
from dcz.converters.folders import (
    Hydrated,
    SavedFolder,
    check_free,
    hydrate_folder,
    is_dcz_folder,
    save_folder,
    shard_bytes,
)
from dcz.converters.safetensors import INDEX_SUFFIX
from dcz.converters.shards import MAX_SHARD_BYTES
from dcz.errors import DczError, FormatError, SourceError, UsageError
from dcz.format.source import check_local, url_scheme
from dcz.runtime.loading import BasesLike, ModelLike, RegistryLike, from_hub, open_reader

if TYPE_CHECKING:
    from dcz.converters.base import Progress
    from dcz.converters.conversion import RecipeLike, SourceLike
    from dcz.format.effort import EffortName

__all__ = ["hydrate", "save_pretrained"]


def is_pretrained(source: object) -> bool:
    """Whether this is a model of transformers; without importing transformers, as without it there are none."""
    transformers = sys.modules.get("transformers")
    kind = getattr(transformers, "PreTrainedModel", None)
    return isinstance(kind, type) and isinstance(source, kind)


def save_pretrained(
    source: SourceLike,
    folder: str | os.PathLike[str],
    *,
    recipe: RecipeLike = "lossless",
    effort: EffortName = "balanced",
    max_shard_size: int | str = MAX_SHARD_BYTES,
    base_model: str | None = None,
    name: str | None = None,
    card: bytes | None = None,
    metadata: Mapping[str, str] | None = None,
    registry: RegistryLike = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> SavedFolder:
    """Write a folder with .dcz files in the place of safetensors: for the Hub, and for transformers, which loads it after
    ``import dcz.transformers``.

    ``source``: a folder as save_pretrained, or a download from the Hub, leaves it; sub-folders with weights of their own, as
    those of diffusers and sentence-transformers, included. Or a model of transformers, which is first saved as it saves
    itself, to a temporary folder beside. Or what dcz.convert takes. ``max_shard_size``: of a .dcz file, in bytes or such as
    ``5GB``. ``base_model``: for the model card, the repository on the Hub that these are the weights of. ``name``: that of the
    repository that the card is for; ``card``: one to add to, instead of that of the source. Others as for dcz.convert.

    Nothing appears at ``folder`` before it is whole; if it exists, it must be empty. Raises UsageError if it is not, and what
    dcz.convert raises.
    """
    from dcz.registry import base_sources

    def save(what: SourceLike) -> SavedFolder:
        return save_folder(
            what,
            folder,
            recipe=recipe,
            effort=effort,
            max_shard_size=max_shard_size,
            base_model=base_model,
            name=name,
            card=card,
            metadata=metadata,
            threads=threads,
            progress=progress,
            bases=base_sources(registry=registry),
        )

    check_local(folder)
    if isinstance(source, str) and url_scheme(source) == "hf":
        check_free(Path(folder))
        with from_hub(source, registry, threads, nested=True) as opened:
            return save(opened)
    if not is_pretrained(source):
        return save(source)
    shard_bytes(max_shard_size)
    check_free(Path(folder))
    model: Any = source
    beside = Path(folder).absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dcz-", suffix=".tmp", dir=beside) as ordinary:
        model.save_pretrained(ordinary)
        return save(ordinary)


def hydrate(
    source: ModelLike,
    destination: str | os.PathLike[str],
    *,
    registry: RegistryLike = None,
    threads: int | None = None,
    base: BasesLike = None,
    digests: str | Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Hydrated:
    """Make an ordinary folder, with safetensors weights, for every tool that does not know .dcz.

    ``source``: a folder that dcz.save_pretrained wrote, a repository of such files on the Hub (``hf://org/name``), or a .dcz file by its
    path, URL or a reference, as for dcz.open.
    Identical to the folder that it was made of, file by file, if the recipe was lossless. Nothing appears at ``destination``
    before it is whole; if it exists, it must be empty. ``digests``: the identities that the .dcz files must have, each of them
    one of these, as for dcz.registry.pull.

    Raises UsageError if it is not, SourceError if the folder has no .dcz files, and what dcz.open raises.
    """
    from dcz.registry import (
        HubReference,
        PathReference,
        RegistryReference,
        base_sources,
        parse_reference,
        pull,
        read_pins,
        resolve,
    )

    if os.fspath(destination).endswith(".safetensors"):
        raise UsageError("hydrate makes a folder", hint="dcz.decode makes a single safetensors file")
    check_local(destination)
    check_free(Path(destination))
    pins = read_pins(digests)
    bases = base_sources(base, registry=registry)
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return hydrate_folder(source, destination, threads=threads, progress=progress, bases=bases, pins=pins)
    if isinstance(source, str) and url_scheme(source) in (None, "hf", "oci"):
        reference = parse_reference(source)
        several = isinstance(reference, HubReference) or (
            isinstance(reference, RegistryReference)
            and any(
                layer.title.endswith(INDEX_SUFFIX)
                for layer in resolve(reference, registry=registry).manifest.layers
            )
        )
        if several and not isinstance(reference, PathReference):
            beside = Path(destination).absolute().parent
            beside.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".dcz-", suffix=".tmp", dir=beside) as folder:
                pulled = pull(reference, folder, registry=registry, digests=pins, progress=None)
                with _naming(folder, str(pulled.reference)):
                    if is_dcz_folder(Path(folder)):
                        return hydrate_folder(
                            folder, destination, threads=threads, progress=progress, bases=bases
                        )
                    files = sorted(Path(folder).glob("*.dcz"))
                    if not files:
                        raise SourceError(
                            f"{pulled.reference} has no .dcz file",
                            hint=f"`dcz convert {source}` makes one of its weights",
                        )
                    if len(files) > 1:
                        raise SourceError(
                            f"{pulled.reference} has {len(files)} .dcz files, and no index that makes one model of them",
                            hint="pull them, and hydrate each",
                        )
                    return _decoded(files[0], destination, None, threads, base, (), progress)
    return _decoded(source, destination, registry, threads, base, pins, progress)


@contextmanager
def _naming(folder: str, reference: str) -> Generator[None]:
    """Errors inside are about files of a repository, not of the folder where they are for a moment."""
    try:
        yield
    except DczError as exc:
        exc.message = exc.message.replace(folder, reference)
        if isinstance(exc, FormatError) and exc.file is not None:
            exc.file = exc.file.replace(folder, reference)
        raise


def _decoded(
    source: ModelLike,
    destination: str | os.PathLike[str],
    registry: RegistryLike,
    threads: int | None,
    base: BasesLike,
    pins: tuple[str, ...],
    progress: Progress | None,
) -> Hydrated:
    from dcz.registry import check_pinned

    with open_reader(source, registry=registry, threads=threads, base=base) as reader:
        check_pinned(pins, reader.digest, reader.name)
        done = decoding.decode(reader, destination, progress=progress)
    return Hydrated(
        path=done.path,
        files=done.files,
        tensors=done.tensors,
        tensor_bytes=done.tensor_bytes,
        original=done.original,
        seconds=done.seconds,
        notes=(),
    )

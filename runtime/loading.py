"""open, load, convert, save, load_into: between a .dcz file and tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias, overload

from dcz.compression.torch_tensors import (
    is_module,
    is_tensor,
    require_torch,
    to_numpy,
    to_torch,
    torch_dtype,
    unwrapped,
    view_key,
)
from dcz.converters import conversion
from dcz.converters.shards import Shards, index_of
from dcz.errors import ModelMismatch, UsageError
from dcz.format import DEFAULT_LIMITS, DTYPES, Limits, Reader
from dcz.format.source import url_scheme
from dcz.runtime.files import Framework, TensorFile, known_framework
from dcz.runtime.slabs import allocate

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dcz.converters.base import Progress
    from dcz.converters.conversion import Converted, RecipeLike, SourceLike
    from dcz.format import BaseLike
    from dcz.format.effort import EffortName
    from dcz.registry import Hub, Store

__all__ = [
    "BasesLike",
    "LoadedInto",
    "convert",
    "from_hub",
    "load",
    "load_into",
    "open",
    "open_parts",
    "open_reader",
    "save",
]

ModelLike: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"
RegistryLike: TypeAlias = "Store | Hub | str | os.PathLike[str] | None"
BasesLike: TypeAlias = "BaseLike | Sequence[BaseLike] | None"

_MOST_EXPANDED: Final = 8


def open_reader(
    source: ModelLike,
    *,
    registry: RegistryLike = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BasesLike = None,
    digest: str | None = None,
    whole: bool = True,
) -> Reader:
    """A file by its path or URL, bytes, a file object, or a reference such as ``minilm:1.0`` or ``hf://org/name``.

    Text is read by the rules of references (docs/guides/registry.md): what does not look like a path or a URL is the
    name of an artifact. The bases of a file are looked for among ``base``, beside it, and in the registry. A file on the
    Hub is fetched if the ``whole`` of it is to be read; otherwise, only what is asked for comes over the wire. Raises
    FormatError, OSError, InvalidReference or NotInRegistry, and RegistryCorrupt if the file has not the identity ``digest``.
    """
    from dcz.registry import check_pinned, file_hint, read_pins

    pins = read_pins(digest)
    with file_hint(source):
        reader = _open_reader(source, registry, limits, threads, base, whole)
    try:
        check_pinned(pins, reader.digest, reader.name)
    except BaseException:
        reader.close()
        raise
    return reader


def _open_reader(
    source: ModelLike,
    registry: RegistryLike,
    limits: Limits,
    threads: int | None,
    base: BasesLike,
    whole: bool,
) -> Reader:
    from dcz.registry import PathReference, base_sources, parse_reference

    bases = base_sources(base, registry=registry, limits=limits)
    if isinstance(source, str) and url_scheme(source) in (None, "hf", "oci"):
        reference = parse_reference(source)
        if not isinstance(reference, PathReference):
            from dcz.registry import open_reference  # which takes a while to import

            return open_reference(
                reference, registry=registry, threads=threads, limits=limits, base=bases, whole=whole
            )
        source = reference.path
    return Reader(source, limits=limits, threads=threads, base=bases)


@contextmanager
def open_parts(
    source: ModelLike,
    *,
    registry: RegistryLike = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BasesLike = None,
    digest: str | Iterable[str] | None = None,
) -> Generator[list[Reader]]:
    """As open_reader, but a folder, or a repository on the Hub, may have several .dcz files that an index makes one model of.
    ``digest`` may then be several, of which each file must have one."""
    from dcz.registry import base_sources, check_pinned, file_hint, read_pins

    pins = read_pins(digest)
    with file_hint(source):
        index = _index_of(source, registry)
    with ExitStack() as stack:
        if index is None:
            readers = [
                stack.enter_context(
                    open_reader(source, registry=registry, limits=limits, threads=threads, base=base)
                )
            ]
        else:
            bases = base_sources(base, registry=registry, limits=limits)
            shards = stack.enter_context(Shards(index, threads=threads, bases=bases, limits=limits))
            readers = list(shards.readers.values())
        for reader in readers:
            check_pinned(pins, reader.digest, reader.name)
        yield readers


def _index_of(source: ModelLike, registry: RegistryLike) -> Path | None:
    """The index of the .dcz files that are meant, if it is not a single one."""
    from dcz.registry import HubReference, PathReference, parse_reference

    if isinstance(source, str):
        if url_scheme(source) not in (None, "hf"):
            return None
        reference = parse_reference(source)
        if isinstance(reference, HubReference):
            from dcz.registry import fetch_shards

            return fetch_shards(reference, registry=registry)
        if not isinstance(reference, PathReference):
            return None
        source = reference.path
    return index_of(Path(source)) if isinstance(source, os.PathLike | str) and os.path.isdir(source) else None


def open(
    source: ModelLike,
    framework: Framework = "torch",
    *,
    registry: RegistryLike = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BasesLike = None,
    digest: str | None = None,
) -> TensorFile:
    """Open a .dcz file to read single tensors, or slices of them, as ``safetensors.safe_open`` does.

    ``source``: a path, a URL that fsspec knows, bytes, a binary file object, or a reference. ``framework``: what
    tensors come as, ``torch`` or ``numpy`` (with bf16 and fp8 from ml_dtypes). ``limits``: what a file may claim before it
    is refused. ``threads`` decode in parallel (default: one for each core). ``base``: of a file whose tensors are
    differences, the file that they are differences to: a path, a URL, a reference, an open Reader, or several of these. What
    is not given is looked for beside the file and in the registry. ``digest``: the identity that the file must have
    (``blake3:...``), whatever a reference stands for by now.

    Raises FormatError if the file is at fault, OSError if it cannot be read, InvalidReference or NotInRegistry for a
    reference, UsageError for an unknown framework. Reading a tensor raises BaseNotFound or WrongBase.
    """
    known_framework(framework)
    return TensorFile(
        open_reader(
            source, registry=registry, limits=limits, threads=threads, base=base, digest=digest, whole=False
        ),
        framework,
    )


@overload
def load(
    source: ModelLike,
    *,
    framework: Literal["torch", "pt"] = ...,
    registry: RegistryLike = ...,
    limits: Limits = ...,
    threads: int | None = ...,
    base: BasesLike = ...,
    digest: str | Iterable[str] | None = ...,
) -> dict[str, torch.Tensor]: ...


@overload
def load(
    source: ModelLike,
    *,
    framework: Literal["numpy", "np"],
    registry: RegistryLike = ...,
    limits: Limits = ...,
    threads: int | None = ...,
    base: BasesLike = ...,
    digest: str | Iterable[str] | None = ...,
) -> dict[str, np.ndarray]: ...


def load(
    source: ModelLike,
    *,
    framework: Framework = "torch",
    registry: RegistryLike = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BasesLike = None,
    digest: str | Iterable[str] | None = None,
) -> dict[str, torch.Tensor] | dict[str, np.ndarray]:
    """All tensors of a file, decoded in parallel straight into their memory. Tied ones share theirs.

    ``source`` can also be a folder, or a repository, of several .dcz files with their index, as dcz.save_pretrained writes;
    ``digest`` is then one or several, of which each file must have one. Other arguments and errors as for open.
    """
    as_torch = known_framework(framework)
    with open_parts(
        source, registry=registry, limits=limits, threads=threads, base=base, digest=digest
    ) as readers:
        if as_torch:
            return {name: tensor for reader in readers for name, tensor in load_tensors(reader).items()}
        return {name: array for reader in readers for name, array in load_arrays(reader).items()}


def populating_threads(reader: Reader) -> int:
    """As ``allocate`` takes it: what a file claims gets pages before it is read only in proportion to what it brings."""
    claimed = sum(geometry.nbytes for geometry in reader.geometry.tensors.values())
    return reader.threads if claimed <= _MOST_EXPANDED * reader.size else 0


def load_arrays(reader: Reader) -> dict[str, np.ndarray]:
    stored = {tensor.name: tensor for tensor in reader.manifest.tensors}
    arrays = allocate(
        ((name, DTYPES[tensor.dtype], tensor.shape) for name, tensor in stored.items()),
        populate=populating_threads(reader),
    )
    reader.read_into(arrays)
    return arrays | {alias: arrays[target].view() for alias, target in reader.aliases.items()}


def load_tensors(reader: Reader) -> dict[str, torch.Tensor]:
    arrays = load_arrays(reader)
    stored = reader.manifest.tensors
    tensors = {tensor.name: to_torch(arrays[tensor.name], DTYPES[tensor.dtype]) for tensor in stored}
    # One storage, not two on the same memory: torch finds tied weights by it.
    return tensors | {alias: tensors[target].detach() for alias, target in reader.aliases.items()}


def convert(
    source: SourceLike,
    path: str | os.PathLike[str],
    *,
    recipe: RecipeLike = "lossless",
    effort: EffortName = "balanced",
    base: ModelLike | Reader | None = None,
    registry: RegistryLike = None,
    threads: int | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Write a .dcz file from a model.

    ``source``: a file or folder, a repository on the Hub (``hf://org/name[@revision]``), a module, a mapping of names to
    tensors or arrays, or an open .dcz. ``recipe``: how to
    store each tensor; the name of a built-in one, the path of a TOML file, or a Recipe. ``base``: a .dcz file, by path, URL,
    reference or as an open Reader, to whose tensors those of the same name, type and shape are stored as differences where
    that is smaller; it is then needed to read the new file. ``effort``: what size is weighed against
    (docs/guides/converting.md); ``fast``, ``balanced`` or ``small``. ``threads``: how many encode (default: one for each core); the
    bytes do not depend on it. ``progress`` is called after each tensor with the bytes that are done and those in all.
    ``metadata`` is added to that of the source.

    Memory holds the largest tensor, its base if there is one, and a few segments, not the model. Nothing appears at
    ``path`` before it is whole.

    Raises SourceError (or UnsafePickle) if the source cannot be read, RecipeError if the recipe is not valid, UsageError if
    ``metadata`` is not text or there is no such effort, EncodingError if a tensor cannot be stored as the recipe says,
    OSError if the disk does not take the file, and for ``base`` what dcz.open raises.
    """
    from dcz.registry import base_name, base_sources

    with ExitStack() as stack:
        if isinstance(source, str) and url_scheme(source) == "hf":
            source = stack.enter_context(from_hub(source, registry, threads))
        if base is None or isinstance(base, Reader):
            opened = base
            hint = base_name(Path(base.name)) if base is not None and os.path.isfile(base.name) else None
        else:
            opened = stack.enter_context(open_reader(base, registry=registry, threads=threads))
            hint = base_name(base)
        return conversion.convert(
            source,
            path,
            recipe=recipe,
            effort=effort,
            threads=threads,
            progress=progress,
            metadata=metadata,
            base=opened,
            base_hint=hint,
            bases=base_sources(registry=registry),
        )


@contextmanager
def from_hub(
    source: str, registry: RegistryLike, threads: int | None, *, nested: bool = False
) -> Generator[Path | Reader]:
    """The weights of a repository on the Hub, if ``nested`` with those in sub-folders, else its .dcz file."""
    from dcz.registry import fetch_model, open_reference, parse_reference

    reference = parse_reference(source)
    folder = fetch_model(reference, nested=nested, registry=registry)
    if folder is not None:
        yield folder
    else:
        with open_reference(reference, registry=registry, threads=threads) as reader:
            yield reader


def save(
    tensors: Mapping[str, torch.Tensor] | Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    recipe: RecipeLike = "lossless",
    effort: EffortName = "balanced",
    base: ModelLike | Reader | None = None,
    registry: RegistryLike = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Converted:
    """Write a dictionary of tensors or arrays to a .dcz file, as ``safetensors.torch.save_file`` does.

    What shares its memory entirely is stored once. Arguments and errors as for dcz.convert.
    """
    return convert(
        tensors,
        path,
        recipe=recipe,
        effort=effort,
        base=base,
        registry=registry,
        metadata=metadata,
        threads=threads,
    )


class LoadedInto(NamedTuple):
    """Names that only one side has; both are empty if loading was strict."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_into(
    module: torch.nn.Module,
    source: ModelLike,
    *,
    strict: bool = True,
    registry: RegistryLike = None,
    threads: int | None = None,
    base: BasesLike = None,
) -> LoadedInto:
    """Read a file into the parameters and buffers of a module.

    A parameter of the stored type that is contiguous and on the CPU is decoded into in place; others are converted as
    ``load_state_dict`` would. Names and shapes are compared before the first byte is written. A damaged file is found
    while it is read, so that a module is undefined after a FormatError.

    DataParallel, DistributedDataParallel and torch.compile are looked through, as convert does. A module whose
    ``state_dict`` makes something new of its parameters gets the tensors by its own ``load_state_dict``.

    ``strict``: names that only one side has are an error; otherwise they are what is returned.

    Raises ModelMismatch with every name that does not fit, and what open raises.
    """
    require_torch("loading into a module")
    if not is_module(module):
        raise UsageError(f"a {type(module).__name__} is not a torch.nn.Module")
    module, _ = unwrapped(module)
    state = {name: value for name, value in module.state_dict().items() if is_tensor(value)}
    with open_reader(source, registry=registry, threads=threads, base=base) as reader:
        _refuse(("without memory to load into", _without_memory(state)))
        if not _is_live(module, state):
            return _load_state_dict(module, reader, strict)
        keys = set(reader)
        held = {view_key(state[name]) for name in state.keys() & keys} - {None}
        missing = tuple(name for name in state if name not in keys and view_key(state[name]) not in held)
        unexpected = tuple(name for name in reader if name not in state)
        targets = _targets(reader, state)
        if strict:
            _refuse(("missing in the file", missing), ("unexpected in the file", unexpected))
        _fill(reader, targets)
    return LoadedInto(missing, unexpected)


def _refuse(*problems: tuple[str, Iterable[str]]) -> None:
    found = [(title, list(names)) for title, names in problems]
    if any(names for _, names in found):
        raise ModelMismatch(
            "file and module do not fit: "
            + "; ".join(
                f"{len(names)} {title}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
                for title, names in found
                if names
            )
        )


def _without_memory(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The tensors that cannot be written to, element by element, and why."""
    import torch

    found = []
    for name, tensor in state.items():
        if torch.nn.parameter.is_lazy(tensor):
            found.append(f"{name} (not initialized: its shape is not known yet)")
        elif tensor.is_meta:
            found.append(f"{name} (on the meta device)")
        elif tensor.layout != torch.strided:
            found.append(f"{name} ({tensor.layout})")
        elif any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
            found.append(f"{name} (expanded: its elements share their memory)")
    return found


def _is_live(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether what ``state_dict`` gave is the memory of the parameters and buffers, and not something made of it."""
    live = {view_key(tensor) for tensors in (module.parameters(), module.buffers()) for tensor in tensors}
    return live.union([None]).issuperset(view_key(tensor) for tensor in state.values())


def _load_state_dict(module: torch.nn.Module, reader: Reader, strict: bool) -> LoadedInto:
    try:
        found = module.load_state_dict(load_tensors(reader), strict=strict)
    except RuntimeError as exc:
        raise ModelMismatch(f"{reader.name}: {exc}") from exc
    return LoadedInto(tuple(found.missing_keys), tuple(found.unexpected_keys))


def _targets(reader: Reader, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Which tensor of the file goes where: each memory once. Raises ModelMismatch."""
    digests = {tensor.name: tensor.digest for tensor in reader.manifest.tensors}
    wrong: list[str] = []
    tied: list[str] = []
    first: dict[Any, str] = {}
    targets: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name not in reader:
            continue
        if tuple(tensor.shape) != reader.shape(name):
            wrong.append(
                f"{name} ({list(tensor.shape)} in the module, {list(reader.shape(name))} in the file)"
            )
        key = view_key(tensor)
        other = first.setdefault(key, name) if key is not None else name
        if other == name:
            targets[name] = tensor
        elif digests[reader.stored_name(other)] != digests[reader.stored_name(name)]:
            tied.append(f"{other} = {name}")
    _refuse(("of another shape", wrong), ("tied in the module, but not in the file", tied))
    return targets


def _fill(reader: Reader, targets: Mapping[str, torch.Tensor]) -> None:
    import torch

    direct: dict[str, np.ndarray] = {}
    for name, tensor in targets.items():
        dtype = DTYPES[reader.dtype(name)]
        fits = tensor.dtype == torch_dtype(dtype) and tensor.is_cpu and tensor.is_contiguous()
        if fits and not tensor.is_neg():
            direct[name] = to_numpy(tensor, dtype)
    reader.read_into(direct)
    with torch.no_grad():
        for name, tensor in targets.items():
            if name not in direct:
                tensor.copy_(to_torch(reader.read(name), DTYPES[reader.dtype(name)]))

"""Checkpoints written by torch.save: zip files and the legacy pickles before them.

A pickle is a program. torch.load runs it here only with ``weights_only=True``, an interpreter that knows how to build
tensors and nothing else; a file that asks for more is refused (UnsafePickle). What is taken from a checkpoint are the
tensors of the model: optimizer state, counters and the like are left out, and the notes say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from dcz.converters.base import AssetData, sha256_of_file
from dcz.converters.memory import MemorySource
from dcz.converters.safetensors import read_weight_map
from dcz.converters.torch_tensors import is_tensor, require_torch
from dcz.errors import SourceError, UnsafePickle
from dcz.format.manifest import Provenance, SourceFile

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["PyTorchSource"]

_GLOBAL: Final = re.compile(r"GLOBAL (\S+)")
_NESTED: Final = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES: Final = ("module.", "_orig_mod.")  # DataParallel and torch.compile
_MAX_EXPANDED: Final = 1 << 26


def _zip_problem(path: Path) -> str | None:
    """Why the records of a zip checkpoint cannot be mapped. torch would map a compressed one as if it were plain."""
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                    return f"its record {record.filename!r} is compressed, which torch.save never does"
                if record.filename.endswith("/byteorder") and archive.read(record) != b"little":
                    return "it was written on a big-endian machine"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError) as exc:
        return f"it is not a valid zip file: {exc}"
    return None


def _asks_for(path: Path, mapped: bool) -> str | None:
    """Something that a pickle imports and that is not torch's, from a look at its opcodes. Nothing of it is run.

    torch gives up at the first opcode that it does not know, so that of pickles of protocol 4 and 5 it never sees more.
    """
    with contextlib.ExitStack() as stack:
        file: IO[bytes]
        if mapped:
            archive = stack.enter_context(zipfile.ZipFile(path))
            pickles = [record for record in archive.namelist() if record.endswith(".pkl")]
            if not pickles:
                return None
            file = stack.enter_context(archive.open(pickles[0]))
        else:
            file = stack.enter_context(path.open("rb"))
        strings = ["", ""]
        with contextlib.suppress(Exception):  # of a damaged pickle, what comes before the damage counts
            for opcode, argument, _ in pickletools.genops(file):
                asked = None
                if opcode.name == "GLOBAL":
                    asked = str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    asked = ".".join(strings)
                elif isinstance(argument, str):
                    strings = [strings[1], argument]
                if asked is not None and not asked.startswith(("torch.", "collections.")):
                    return asked
    return None


def _load(path: Path, name: str) -> tuple[Any, bool]:
    """The object in a checkpoint, and whether its tensors are mapped from the file."""
    require_torch("reading a torch checkpoint")
    import torch

    mapped = zipfile.is_zipfile(path)
    problem = _zip_problem(path) if mapped else None
    if problem is not None:
        raise SourceError(f"{name}: cannot be read: {problem}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and storages; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), mapped
    except pickle.UnpicklingError as exc:
        found = _GLOBAL.search(str(exc))
        asked = found[1] if found is not None else _asks_for(path, mapped)
        if asked is None:
            raise SourceError(f"{name}: not a torch checkpoint, or damaged") from exc
        raise UnsafePickle(
            f"{name}: refused, because reading it would run code: it asks for {asked}",
            hint="if you trust it, save its model.state_dict() with safetensors or torch.save, and convert that",
        ) from exc
    except (
        Exception
    ) as exc:  # a hostile pickle reaches many of torch's own checks, each with an exception of its own
        raise SourceError(f"{name}: not a torch checkpoint, or damaged: {exc}") from exc


def _state_dict(content: Any, name: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    notes: list[str] = []
    while isinstance(content, Mapping):
        nested = [key for key in _NESTED if _has_tensors(content.get(key))]
        if not nested:
            break
        notes += [f"left out of {name}: {key}" for key in content if key != nested[0]]
        content = content[nested[0]]
    if not _has_tensors(content):
        raise SourceError(f"{name}: holds no dictionary of tensors", hint="save model.state_dict()")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and is_tensor(value)}
    notes += [f"left out of {name}: {key}, which is no tensor" for key in content if key not in tensors]
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) and len(key) > len(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
            notes.append(f"the prefix {prefix!r} of all names in {name} was removed")
    for key, tensor in tensors.items():
        _check_expansion(key, tensor, name)
    return tensors, notes


def _has_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and any(
        isinstance(key, str) and (is_tensor(value) or (key in _NESTED and _has_tensors(value)))
        for key, value in content.items()
    )


def _check_expansion(key: str, tensor: torch.Tensor, name: str) -> None:
    """A few bytes with a stride of 0 can claim to be terabytes."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return  # refused later, with the reason
    size = tensor.numel() * tensor.element_size()
    if size > max(_MAX_EXPANDED, tensor.untyped_storage().nbytes()):
        raise SourceError(f"{name}: the tensor {key!r} claims {size} bytes, more than the file holds for it")


class PyTorchSource:
    """The model's tensors in one checkpoint, or in shards with an index."""

    def __init__(self, files: Sequence[tuple[str, Path]]) -> None:
        """``files``: what each is called, and where it is.

        Raises UnsafePickle if one holds code, SourceError if one cannot be read or two hold the same tensor.
        """
        self._files = list(files)
        self._parts: list[MemorySource] = []
        self._notes: list[str] = []
        owner: dict[str, str] = {}
        for name, path in self._files:
            if not path.is_file():
                raise SourceError(f"{name}: no such file")
            content, mapped = _load(path, name)
            tensors, notes = _state_dict(content, name)
            del content
            self._notes += notes
            part = MemorySource(tensors, release=_release_pages if mapped else None)
            for key in part.names():
                if owner.setdefault(key, name) != name:
                    raise SourceError(f"the tensor {key!r} stands in {owner[key]} and in {name}")
            self._parts.append(part)
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="dcz-sha256")
        self._digests: Future[list[bytes]] | None = None

    @classmethod
    def from_file(cls, path: Path) -> PyTorchSource:
        return cls([(path.name, path)])

    @classmethod
    def from_index(cls, path: Path) -> PyTorchSource:
        """Raises SourceError if a shard is missing or outside the folder, or a tensor is in none."""
        _, weights = read_weight_map(path)
        source = cls([(shard, path.parent / shard) for shard in sorted(set(weights.values()))])
        missing = weights.keys() - {name for part in source._parts for name in part.names()}
        if missing:
            raise SourceError(f"{path.name}: the tensor {min(missing)!r} is not in {weights[min(missing)]}")
        return source

    @property
    def tensor_bytes(self) -> int:
        return sum(part.tensor_bytes for part in self._parts)

    @property
    def metadata(self) -> Mapping[str, str]:
        return {
            "format": "pt"
        }  # what safetensors files of torch models say, and some of their readers ask for

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        self._digests = self._hashing.submit(self._hash)
        for part in self._parts:
            yield from part.tensors()

    def _hash(self) -> list[bytes]:
        return [sha256_of_file(path) for _, path in self._files]

    def aliases(self) -> Mapping[str, str]:
        return {alias: target for part in self._parts for alias, target in part.aliases().items()}

    def assets(self) -> Iterator[AssetData]:
        return iter(())

    def provenance(self) -> Provenance:
        try:
            digests = self._hash() if self._digests is None else self._digests.result()
        except OSError as exc:
            raise SourceError(f"a checkpoint cannot be read again for its digest: {exc}") from exc
        files = [
            SourceFile(path=name, size=path.stat().st_size, sha256=digest)
            for (name, path), digest in zip(self._files, digests, strict=True)
        ]
        return Provenance(files=tuple(files))

    def close(self) -> None:
        self._hashing.shutdown(cancel_futures=True)
        for part in self._parts:
            part.close()


def _release_pages(tensor: torch.Tensor) -> None:
    """Give back the pages of a mapped file that were read; they would count as ours until the mapping is gone.

    The pages are private and unmodified, so that who reads them again gets the file's bytes again.
    """
    storage = tensor.untyped_storage()
    start = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = storage.data_ptr() + storage.nbytes() - start
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))

"""Checkpoints written by torch.save: zip files and the legacy pickles before them.

A pickle is a program. torch.load runs it here only with ``weights_only=True``, an interpreter that knows how to build
tensors and nothing else; a file that asks for more is refused (UnsafePickle). What is taken from a checkpoint are the
tensors of the model: optimizer state, counters and the like are left out, and the notes say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from dcz.compression.torch_tensors import check_no_packed_parameters, is_tensor, require_torch
from dcz.converters.base import AssetData, TensorOutline, sha256_of_file
from dcz.converters.memory import MemorySource
from dcz.converters.safetensors import read_weight_map
from dcz.errors import SourceError, UnsafePickle
from dcz.format.manifest import Provenance, SourceFile

if TYPE_CHECKING:
    import torch

    from dcz.format.tensors import TensorData

__all__ = ["PyTorchSource"]

_ZIP: Final = b"PK\x03\x04"
_LEGACY_PICKLES: Final = 5  # the object is the fourth
_GLOBAL: Final = re.compile(r"GLOBAL (\S+)")
_PLACE_IN_TORCH: Final = re.compile(r"\[enforce fail at [^\]]*\][ .]*")
_NESTED: Final = ("state_dict", "model_state_dict", "model", "module")
_MAX_NESTED: Final = 4  # a dictionary may hold itself
_PREFIXES: Final = ("module.", "_orig_mod.")  # DataParallel and torch.compile
_MAX_EXPANDED: Final = 1 << 26
_UNREAD_PROTOCOLS: Final = (4, 5)  # torch.load(weights_only=True) knows those before
_NO_CHECKPOINT: Final = "not a torch checkpoint, or damaged"


def _check_zip(path: Path) -> None:
    """Raises SourceError unless this is a checkpoint whose records can be mapped.

    torch would map a compressed record as if it were plain.
    """
    problem = hint = None
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = {record.filename for record in records}
            root = records[0].filename.partition("/")[0] if records else ""  # as torch finds it
            if f"{root}/constants.pkl" in names:
                problem = "a TorchScript archive, which holds a program and not only weights"
                hint = (
                    "if you trust it, save torch.jit.load(...).state_dict() with torch.save, and convert that"
                )
            elif f"{root}/data.pkl" not in names:
                problem = "a zip file, but not a torch checkpoint: it has no data.pkl"
            for record in records if problem is None else ():
                if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                    problem = f"cannot be read: its record {record.filename!r} is compressed, which torch.save never does"
                elif record.filename == f"{root}/byteorder" and archive.read(record) != b"little":
                    problem = "cannot be read: it was written on a big-endian machine"
    except Exception as exc:  # zipfile lets through whatever the bytes of a damaged file make go wrong
        raise SourceError(f"{path}: cannot be read: it is not a valid zip file{_because(exc)}") from exc
    if problem is not None:
        raise SourceError(f"{path}: {problem}", hint=hint)


def _because(exc: Exception) -> str:
    """The first line of what an exception says, without the place in torch's own source."""
    lines = _PLACE_IN_TORCH.sub("", str(exc)).strip().splitlines()
    return f": {lines[0]}" if lines else ""


@dataclass
class _Opcodes:
    """What a look at the opcodes of a pickle finds. Nothing of it is run.

    torch gives up at the first opcode that it does not know, so that of pickles of protocol 4 and 5 it never sees more.
    """

    protocol: int = 0
    asked: str | None = None  # something that is imported and that is not torch's

    @classmethod
    def of(cls, path: Path, mapped: bool) -> _Opcodes:
        found = cls()
        with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
            # Of a damaged file, what comes before the damage counts.
            file: IO[bytes]
            if mapped:
                archive = stack.enter_context(zipfile.ZipFile(path))
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                file = stack.enter_context(archive.open(name))
            else:
                file = stack.enter_context(path.open("rb"))
            for _ in range(1 if mapped else _LEGACY_PICKLES):
                found._read(file)
        return found

    def _read(self, file: IO[bytes]) -> None:
        strings: list[str | None] = [None, None]  # the last two of the stack, None for what is no string
        memo: dict[Any, str | None] = {}
        for opcode, argument, _ in pickletools.genops(file):
            asked = None
            match opcode.name:
                case "PROTO":
                    self.protocol = self.protocol or int(argument or 0)
                    continue
                case "FRAME":
                    continue
                case "MEMOIZE":
                    memo[len(memo)] = strings[1]
                    continue
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = strings[1]
                    continue
                case "GET" | "BINGET" | "LONG_BINGET":
                    pushed = memo.get(argument)
                case "GLOBAL":
                    asked, pushed = str(argument).replace(" ", "."), None
                case "STACK_GLOBAL":
                    known = [part for part in strings if part is not None]
                    asked, pushed = ".".join(known) if len(known) == 2 else None, None
                case _:
                    pushed = argument if isinstance(argument, str) else None
            strings = [strings[1], pushed]
            if asked and self.asked is None and not asked.startswith(("torch.", "collections.")):
                self.asked = asked


def _load(path: Path) -> tuple[Any, bool]:
    """The object in a checkpoint, and whether its tensors are mapped from the file."""
    require_torch("reading a torch checkpoint")
    import torch

    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if not start:
        raise SourceError(f"{path}: the file is empty")
    mapped = start == _ZIP  # what torch goes by
    if mapped:
        _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and storages; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), mapped
    except pickle.UnpicklingError as exc:
        found = _GLOBAL.search(str(exc))
        opcodes = _Opcodes.of(path, mapped)
        asked = found[1] if found is not None else opcodes.asked
        if asked is not None:
            raise UnsafePickle(
                f"{path}: refused, because reading it would run code: it asks for {asked}",
                hint="if you trust it, save its model.state_dict() with safetensors or torch.save, and convert that",
            ) from exc
        if opcodes.protocol in _UNREAD_PROTOCOLS:
            raise SourceError(
                f"{path}: cannot be read: it was saved with pickle protocol {opcodes.protocol}, and what torch reads "
                "without running code is protocol 2 or 3",
                hint="if you trust it, load it with torch.load(..., weights_only=False), and save it again with "
                "torch.save, without pickle_protocol",
            ) from exc
        raise SourceError(f"{path}: {_NO_CHECKPOINT}") from exc
    except (
        Exception
    ) as exc:  # a hostile pickle reaches many of torch's own checks, each with its own exception
        raise SourceError(f"{path}: {_NO_CHECKPOINT}{_because(exc)}") from exc


def _state_dict(content: Any, name: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of the model, and notes. ``name``: the file's, for the notes. Raises SourceError without the file."""
    import torch

    notes: list[str] = []
    for _ in range(_MAX_NESTED):
        fields = _fields(content)
        nested = [key for key in _NESTED if _has_tensors(fields.get(key))]
        if not nested:
            break
        notes += [f"left out of {name}: {key}" for key in fields if key != nested[0]]
        content = fields[nested[0]]
    if not _has_tensors(content, depth=0):
        raise SourceError("holds no dictionary of tensors", hint="save model.state_dict()")
    tensors: dict[str, torch.Tensor] = {}
    for key, value in _fields(content).items():
        if not is_tensor(value):
            check_no_packed_parameters(key, value)
            notes.append(f"left out of {name}: {key}, which is no tensor")
        elif not isinstance(key, str):
            raise SourceError(f"the name {key!r} is not a string", hint="name each tensor by a string")
        else:
            # A tensor of its own: a pickle can put anything in the place of this one's methods.
            tensors[key] = torch.Tensor.detach(value)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) and len(key) > len(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
            notes.append(f"the prefix {prefix!r} of all names in {name} was removed")
    for key, tensor in tensors.items():
        _check_expansion(key, tensor)
    return tensors, notes


def _fields(content: Any) -> dict[Any, Any]:
    """What is in a dictionary; a pickle can put anything in the place of an OrderedDict's methods."""
    return dict(dict.items(content)) if isinstance(content, dict) else {}


def _has_tensors(content: Any, depth: int = _MAX_NESTED) -> bool:
    """Whether this is a dictionary with tensors, or, down to ``depth``, with a model's dictionary of them."""
    return any(
        is_tensor(value) or (depth > 0 and key in _NESTED and _has_tensors(value, depth - 1))
        for key, value in _fields(content).items()
    )


def _check_expansion(key: str, tensor: torch.Tensor) -> None:
    """A few bytes with a stride of 0 can claim to be terabytes."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return  # refused later, with the reason
    size = tensor.numel() * tensor.element_size()
    if size > max(_MAX_EXPANDED, tensor.untyped_storage().nbytes()):
        raise SourceError(f"the tensor {key!r} claims {size} bytes, more than the file holds for it")


@contextlib.contextmanager
def _in_file(path: Path) -> Generator[None]:
    """Errors about a checkpoint's tensors name the file."""
    try:
        yield
    except SourceError as exc:
        raise SourceError(f"{path}: {exc.message}", hint=exc.hint) from exc


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
                raise SourceError(f"{path}: no such file")
            content, mapped = _load(path)
            with _in_file(path):
                tensors, notes = _state_dict(content, name)
                part = MemorySource(tensors, release=_release_pages if mapped else None)
            del content, tensors
            self._notes += notes
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
            raise SourceError(f"{path}: the tensor {min(missing)!r} is not in {weights[min(missing)]}")
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

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        self._digests = self._hashing.submit(self._hash)
        for (_, path), part in zip(self._files, self._parts, strict=True):
            with _in_file(path):
                yield from part.tensors()

    def outlines(self) -> Iterator[TensorOutline]:
        return itertools.chain.from_iterable(part.outlines() for part in self._parts)

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

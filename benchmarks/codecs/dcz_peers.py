"""dcz among its peers: each effort that this version has, read as users read.

`read_into` fills arrays that are in memory already; `load` makes torch tensors of fresh memory, which is what is compared
with safetensors. Both check the BLAKE3 digest of every chunk.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import dcz
from benchmarks.codecs.peer import Decode, Peer
from benchmarks.codecs.weights import Weights
from dcz.errors import DczError
from dcz.format import Reader

__all__ = ["DCZ_PEERS", "EFFORTS", "DczBalanced", "DczFast", "DczSmall", "efforts", "encode_file"]

EFFORTS = ("fast", "balanced", "small")


def _has_effort() -> bool:
    return "effort" in inspect.signature(dcz.convert).parameters


@lru_cache
def efforts() -> tuple[str, ...]:
    """The efforts that this version offers: one, without a name in its interface, or those that it accepts."""
    if not _has_effort():
        return ("balanced",)
    accepted = []
    with tempfile.TemporaryDirectory() as folder:
        for name in EFFORTS:
            options: dict[str, Any] = {"effort": name}
            try:
                dcz.convert({"x": np.zeros(1, np.float32)}, Path(folder) / "x.dcz", **options)
            except (DczError, ValueError):
                continue
            accepted.append(name)
    return tuple(accepted)


def encode_file(weights: Weights, path: Path, effort: str, **options: Any) -> None:
    """From arrays in memory to a file, on one thread."""
    if _has_effort():
        options["effort"] = effort
    dcz.convert(weights.tensors, path, threads=1, **options)


def _file(data: bytes, suffix: str) -> Path:
    """A file with these bytes in a new folder, which goes when the benchmark's own does."""
    path = Path(tempfile.mkdtemp()) / f"file{suffix}"
    path.write_bytes(data)
    return path


class _Dcz(Peer):
    distribution = "dcz"
    effort: ClassVar[str]

    def version(self) -> str | None:
        return dcz.__version__ if self.effort in efforts() else None

    def prepare(self, weights: Weights) -> Path:
        return Path(tempfile.mkdtemp()) / "encoded.dcz"

    def recipe(self) -> dict[str, Any]:
        """What `dcz.convert` is told beyond the effort."""
        return {}

    def encode(self, data: Any, weights: Weights) -> Any:
        encode_file(weights, data, self.effort, **self.recipe())
        return data

    def stream(self, encoded: Any) -> bytes:
        path: Path = encoded
        return path.read_bytes()

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        path = _file(stream, ".dcz")
        outs = {name: np.zeros(t.shape, t.dtype) for name, t in weights.tensors.items()}

        def decode() -> Mapping[str, np.ndarray]:
            with Reader(path, threads=1) as reader:
                if set(reader) != set(outs):
                    raise ValueError("other tensors")
                reader.read_into(outs)
            return outs

        return decode

    def decoded(self, result: Any, weights: Weights) -> np.ndarray:
        return np.concatenate([result[name].reshape(-1).view(np.uint8) for name in weights.tensors])


class DczFast(_Dcz):
    name = "dcz fast"
    effort = "fast"


class DczBalanced(_Dcz):
    name = "dcz balanced"
    effort = "balanced"


class DczSmall(_Dcz):
    name = "dcz small"
    effort = "small"


DCZ_PEERS: tuple[Peer, ...] = (DczFast(), DczBalanced(), DczSmall())

"""What a peer is to the benchmark: something that makes a stream of weights and weights of a stream."""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from benchmarks.codecs.weights import Weights

__all__ = ["Decode", "Peer"]

Decode = Callable[[], Any]


class Peer(ABC):
    """One codec with one setting.

    Only `encode` and what `decoder` returns are timed. What the peer's interface allows to be made beforehand (memory for
    the result, a context) is made in `decoder`; what it does not allow is part of its time.
    """

    name: ClassVar[str]
    distribution: ClassVar[str | None] = None
    """The package on PyPI whose version is told, or None for what is part of Python or numpy."""
    modules: ClassVar[tuple[str, ...]] = ()
    """What `load` imports."""
    slow: ClassVar[bool] = False
    """Takes minutes for 50 MB: by default only the smallest model."""
    tables: ClassVar[frozenset[str]] = frozenset({"lossless", "sparse", "corruption"})
    """Where it is measured: not everywhere if another setting of the same codec stands for it."""
    compresses: ClassVar[bool] = True

    def version(self) -> str | None:
        """The installed version, or None if the peer is absent."""
        if self.distribution is None:
            return np.__version__
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def load(self) -> None:
        """Import what the codec needs, so that no figure holds it."""
        for name in self.modules:
            importlib.import_module(name)

    def prepare(self, weights: Weights) -> Any:
        """What `encode` gets: made anew before each encoding, not timed."""
        return weights.data

    @abstractmethod
    def encode(self, data: Any, weights: Weights) -> Any:
        """One encoding. Timed."""

    def stream(self, encoded: Any) -> bytes:
        """The stream or file that `encode` has made."""
        return bytes(encoded)

    @abstractmethod
    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        """A function that decodes `stream` each time that it is called. `weights` tells type and size."""

    def decoded(self, result: Any, weights: Weights) -> np.ndarray:
        """The bytes of all tensors, from what decoding has returned."""
        return np.frombuffer(result, np.uint8)

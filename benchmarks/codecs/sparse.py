"""Pruned tensors with shared values: what Deep Compression makes, here by magnitude and without retraining.

The matrices of a model lose all but the part `density` of their weights, and each matrix gets `VALUES` shared values, placed
by Lloyd's iterations. Every peer gets the dense fp32 tensors that result. The bound of a coder without context is
H(p) + p H(values) bits a weight, of each matrix by itself, and four bytes for each shared value.
"""

from __future__ import annotations

import importlib
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.codecs.dcz_peers import DczBalanced, DczFast, DczSmall
from benchmarks.codecs.peer import Decode, Peer
from benchmarks.codecs.weights import Weights, write_safetensors

__all__ = ["DENSITIES", "SPARSE_PEERS", "entropy_bound", "prune"]

DENSITIES: Final = (0.10, 0.04)
VALUES: Final = 32
_ITERATIONS: Final = 20


def _shared(values: np.ndarray) -> np.ndarray:
    """Each value replaced by the nearest of VALUES shared ones."""
    centroids = np.linspace(values.min(), values.max(), VALUES)
    for _ in range(_ITERATIONS):
        nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
        counts = np.bincount(nearest, minlength=VALUES)
        sums = np.bincount(nearest, values, minlength=VALUES)
        centroids = np.sort(np.where(counts, sums / np.maximum(counts, 1), centroids))
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
    return centroids.astype(np.float32)[nearest]


def prune(weights: Weights, density: float, path: Path) -> Weights:
    """Write the matrices of an fp32 model, pruned to `density` and with shared values."""

    def pruned() -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in weights.tensors.items():
            if tensor.ndim != 2:
                continue
            magnitudes = np.abs(tensor)
            mask = magnitudes > np.quantile(magnitudes, 1 - density)
            out = np.zeros_like(tensor)
            out[mask] = _shared(tensor[mask])
            yield name, out

    return write_safetensors(path, "fp32", pruned())


def _entropy(counts: np.ndarray) -> float:
    part = counts[counts > 0] / counts.sum()
    return float(-(part * np.log2(part)).sum())


def entropy_bound(weights: Weights) -> float:
    """Bytes of all tensors at H(p) + p H(values), with the shared values themselves."""
    total = 0.0
    for tensor in weights.tensors.values():
        values, counts = np.unique(tensor[tensor != 0], return_counts=True)
        stored = int(counts.sum())
        positions = tensor.size * _entropy(np.array([stored, tensor.size - stored]))
        total += (positions + stored * _entropy(counts)) / 8 + 4 * values.size
    return total


class Nncodec(Peer):
    """DeepCABAC, the entropy coder of ISO/IEC 15938-17, on the indices of the shared values, without any quantization.

    The coder is called by itself: the package around it needs a dozen others at import. Finding the indices is not timed,
    looking the values up is. The stream is each matrix's coded indices, their length and the shared values as fp32.
    """

    name = "nncodec"
    distribution = "nncodec"
    modules = ("nncodec.extensions.deepCABAC",)
    tables = frozenset({"sparse"})  # its own container, which finds damage, is not used

    def prepare(self, weights: Weights) -> list[tuple[np.ndarray, int, np.ndarray]]:
        out = []
        for tensor in weights.tensors.values():
            values, indices = np.unique(tensor, return_inverse=True)
            zero = int(np.searchsorted(values, 0.0))
            out.append((values, zero, (indices.reshape(tensor.shape) - zero).astype(np.int32)))
        return out

    @staticmethod
    def _options(values: int, zero: int) -> tuple[Any, ...]:
        mode = importlib.import_module("nncodec.extensions.deepCABAC").HdspMode.AlwaysOff
        return mode, np.zeros(2, np.int8), values, zero

    def encode(self, data: Any, weights: Weights) -> bytes:
        cabac = importlib.import_module("nncodec.extensions.deepCABAC")
        stream = bytearray()
        for values, zero, indices in data:
            encoder = cabac.Encoder()
            encoder.initCtxModels(11, 1)
            empty = (~indices.any(axis=1)).astype(np.int32)
            encoder.encodeLayer(indices, 0, 0, 1, 0, 1, empty, *self._options(values.size, zero))
            coded = encoder.finish().tobytes()
            stream += struct.pack("<IHH", len(coded), values.size, zero) + values.tobytes() + coded
        return bytes(stream)

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        cabac = importlib.import_module("nncodec.extensions.deepCABAC")
        outs = [np.zeros(t.shape, np.float32) for t in weights.tensors.values()]
        indices = [np.zeros(t.shape, np.int32) for t in weights.tensors.values()]

        def decode() -> list[np.ndarray]:
            at = 0
            for out, index in zip(outs, indices, strict=True):
                length, count, zero = struct.unpack_from("<IHH", stream, at)
                values = np.frombuffer(stream, np.float32, count, at + 8)
                at += 8 + 4 * count + length
                decoder = cabac.Decoder()
                decoder.setStream(np.frombuffer(stream, np.uint8, length, at - length))
                decoder.initCtxModels(11)
                index[:] = 0  # as the package does: rows that are skipped are not written
                decoder.decodeLayer(index, 0, 0, 1, 0, *self._options(count, zero))
                if decoder.finish() != length:
                    raise ValueError("the stream does not end where its last symbol does")
                index += zero
                np.take(values, index, out=out, mode="clip")
            return outs

        return decode

    def decoded(self, result: Any, weights: Weights) -> np.ndarray:
        return np.concatenate([out.reshape(-1).view(np.uint8) for out in result])


_RECIPE: Final = f"""
name = "shared-values"
[[rules]]
values = {{ kind = "codebook", size = {VALUES} }}
"""


class _Recipe:
    """dcz, told that the values are shared; what is stored is exact all the same."""

    def recipe(self) -> dict[str, Any]:
        path = Path(tempfile.mkdtemp()) / "shared-values.toml"
        path.write_text(_RECIPE)
        return {"recipe": path}


class DczFastShared(_Recipe, DczFast):
    name = "dcz fast, codebook"
    tables = frozenset({"sparse"})


class DczBalancedShared(_Recipe, DczBalanced):
    name = "dcz balanced, codebook"
    tables = frozenset({"sparse"})


class DczSmallShared(_Recipe, DczSmall):
    name = "dcz small, codebook"
    tables = frozenset({"sparse"})


SPARSE_PEERS: tuple[Peer, ...] = (
    DczFastShared(),
    DczBalancedShared(),
    DczSmallShared(),
    Nncodec(),
)

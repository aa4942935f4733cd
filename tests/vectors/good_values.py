"""The good conformance vectors, part 1: element types, shapes, layouts and values (sections 5.1 to 5.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from tests.reference.dcz_reference_coders import Coder, huffman, raw, zstd
from tests.reference.dcz_reference_values import widened
from tests.reference.dcz_reference_writer import Affine, Codebook, Draft, Exact, draft, tensor

__all__ = [
    "BITMAP",
    "DENSE",
    "MIXED_ELEMENTS",
    "affine",
    "codebooks",
    "f32",
    "f64",
    "layouts",
    "numbers",
    "product",
    "relative",
    "shapes_and_types",
]

DENSE = {"kind": "dense"}
BITMAP = {"kind": "bitmap"}


def relative(bits: int) -> dict[str, Any]:
    return {"kind": "relative-index", "bits": bits}


def numbers(count: int, below: int, seed: int = 1) -> list[int]:
    """Numbers that look random and are the same everywhere (the generator of Park and Miller)."""
    out, state = [], seed
    for _ in range(count):
        state = state * 48_271 % 0x7FFF_FFFF
        out.append(state % below)
    return out


def f32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def f64(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


# Elements that a reader must not touch: zeros of both signs, the smallest and largest numbers of either kind, infinities,
# quiet and signalling NaNs with payloads, as the integers that their bits are.
ELEMENTS: dict[str, tuple[str, Sequence[int]]] = {
    "f64": (
        "Q",
        [
            0,
            1 << 63,
            1,
            (1 << 52) - 1,
            1 << 52,
            0x7FEFFFFFFFFFFFFF,
            0x7FF0 << 48,
            0xFFF0 << 48,
            0x7FF80000DEADBEEF,
            0xFFF0000000000001,
        ],
    ),
    "f32": (
        "I",
        [
            0,
            1 << 31,
            1,
            0x807FFFFF,
            1 << 23,
            0x7F7FFFFF,
            0x7F800000,
            0xFF800000,
            0x7FC0BEEF,
            0xFF800001,
            0x3F800000,
        ],
    ),
    "f16": ("H", [0, 0x8000, 1, 0x83FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7E0F, 0xFC01, 0x3C00]),
    "bf16": ("H", [0, 0x8000, 1, 0x807F, 0x0080, 0x7F7F, 0x7F80, 0xFF80, 0x7FCF, 0xFF81, 0x3F80]),
    "f8_e4m3fn": ("B", range(256)),
    "f8_e5m2": ("B", range(256)),
    "i8": ("b", [0, 1, -1, 127, -128]),
    "i16": ("h", [0, 1, -1, 32767, -32768, 258]),
    "i32": ("i", [0, 1, -1, 2**31 - 1, -(2**31), 0x01020304]),
    "i64": ("q", [0, 1, -1, 2**63 - 1, -(2**63), 0x0102030405060708]),
    "u8": ("B", [0, 1, 128, 255]),
    "u16": ("H", [0, 1, 65535, 258]),
    "u32": ("I", [0, 1, 2**32 - 1, 0x01020304]),
    "u64": ("Q", [0, 1, 2**64 - 1, 0x0102030405060708]),
    "bool": ("B", [0, 1, 1, 0]),
}


def elements(dtype: str) -> tuple[list[int], bytes]:
    code, values = ELEMENTS[dtype]
    return [len(values)], struct.pack(f"<{len(values)}{code}", *values)


def shapes_and_types() -> Iterator[tuple[str, Draft]]:
    yield "empty", draft()
    for split in ("whole", "bytes", "rotated"):
        dtypes = [dtype for dtype in ELEMENTS if split != "rotated" or "f" in dtype]
        tensors = [
            tensor(dtype, dtype, elements(dtype)[0], Exact(elements(dtype)[1], split)) for dtype in dtypes
        ]
        yield f"dtypes-{split}", draft(tensors)
    yield (
        "dtypes-rotated-offset",
        draft(
            [
                tensor(dtype, dtype, elements(dtype)[0], Exact(elements(dtype)[1], "rotated", offset))
                for dtype, offset in (("f64", 1), ("f32", 128), ("f16", 255), ("bf16", 16))
            ]
        ),
    )
    for narrow, wide in (("f16", "f32"), ("bf16", "f32"), ("f32", "f64")):
        shape, content = elements(narrow)
        size = len(content) // shape[0]
        entries = [content[i : i + size] for i in range(0, len(content), size)]
        wider = b"".join(widened(entry, narrow, wide) for entry in entries)
        splits = {"whole": 0, "bytes": 0, "rotated": 77}
        yield (
            f"stored-{narrow}-as-{wide}",
            draft(
                [
                    tensor(
                        f"{split} {layout['kind']}",
                        wide,
                        shape,
                        Exact(wider, split, offset, narrow),
                        layout=layout,
                        segment=4,
                    )
                    for split, offset in splits.items()
                    for layout in (DENSE, BITMAP)
                ]
            ),
        )
    yield (
        "dtypes-bitmap",
        draft(
            [
                tensor(dtype, dtype, elements(dtype)[0], Exact(elements(dtype)[1]), layout=BITMAP)
                for dtype in ELEMENTS
            ]
        ),
    )
    yield "scalar", draft([tensor("scalar", "f64", [], Exact(f64(-0.0)))])
    yield "scalar-group", draft([tensor("scalar", "f32", [], affine_group(3, 1, [5], f32(0.5)))])
    yield (
        "empty-tensors",
        draft(
            [
                tensor("vector", "f32", [0], Exact(b"")),
                tensor("matrix", "bool", [3, 0, 2], Exact(b"")),
                tensor("wide", "u8", [0, 1 << 40], Exact(b"")),
            ]
        ),
    )
    yield "empty-tensor-with-segment", draft([tensor("t", "u8", [0], Exact(b""), segment=1 << 24)])
    yield (
        "ten-dimensions",
        draft([tensor("t", "u16", [1, 2, 1, 3, 1, 1, 2, 1, 2, 1], Exact(bytes(range(48))))]),
    )
    yield "sixty-four-dimensions", draft([tensor("t", "u8", [1] * 63 + [3], Exact(b"abc"))])


# Some elements are zero, so that every layout has something to leave out.
MIXED_ELEMENTS = [number if number > 5 else 0 for number in numbers(30, 12)]


def product() -> Iterator[tuple[str, Draft]]:
    """Every layout with every kind of values and every coding."""
    stored = [number > 0 for number in MIXED_ELEMENTS]
    exact = b"".join(struct.pack("<e", number / 4) for number in MIXED_ELEMENTS)
    for layout in (DENSE, relative(3), BITMAP):
        count = len(stored) if layout == DENSE else sum(stored)
        codes = numbers(count, 5)
        kinds: dict[str, Exact | Affine | Codebook] = {
            "whole": Exact(exact, "whole"),
            "bytes": Exact(exact, "bytes"),
            "rotated": Exact(exact, "rotated"),
            "affine": Affine(3, codes, f32(0.5, 0.25), [4, 3], granularity={"kind": "channel", "axis": 0}),
            "codebook": Codebook(
                3, 5, codes, bytes(range(1, 21)), granularity={"kind": "channel", "axis": 0}
            ),
        }
        for kind, values in kinds.items():
            coders: dict[str, Coder] = {
                "raw": raw,
                "huffman": huffman(packed=True),
                "aligned": huffman(),
                "zstd": zstd,
            }
            tensors = [
                tensor(
                    name,
                    "f16",
                    [2, 15],
                    values,
                    layout=layout,
                    stored=stored if layout != DENSE else None,
                    coders=coder,
                )
                for name, coder in coders.items()
            ]
            yield f"{layout['kind']}-{kind}", draft(tensors)


def layouts() -> Iterator[tuple[str, Draft]]:
    tensors = []
    for bits in range(1, 9):
        # Entries at the start, next to each other, just before, at and just behind a filler, far away, and at the end.
        filler = (1 << bits) - 1
        positions, p = [0, 1], 2
        for gap in (filler - 1, filler, filler + 1, 3 * filler, 2 * filler + 1):
            positions.append(p + gap)
            p += gap + 1
        content = bytearray(p)
        for i, position in enumerate(positions):
            content[position] = i + 1
        tensors.append(tensor(f"bits-{bits}", "u8", [p], Exact(bytes(content)), layout=relative(bits)))
    yield "relative-index-bits", draft(tensors)

    nothing = bytes(8)
    mixed = bytes([0, 0, 7, 0, 0, 0, 0, 9]) + nothing + bytes(range(1, 9)) + bytes([0, 0, 0, 0, 1]) + bytes(2)
    yield (
        "relative-index-segments",
        draft([tensor("t", "i8", [len(mixed)], Exact(mixed), layout=relative(2), segment=8)]),
    )
    yield "relative-index-nothing-stored", draft([tensor("t", "i8", [8], Exact(nothing), layout=relative(4))])
    stored_zero = [False, True, False, True]
    yield (
        "relative-index-zero-stored",
        draft([tensor("t", "i8", [4], Exact(bytes([0, 0, 0, 5])), layout=relative(4), stored=stored_zero)]),
    )

    tensors = []
    for size in (1, 7, 8, 9, 16, 17):
        some = bytes(number if number < 3 else 0 for number in numbers(size, 6, size))
        tensors.append(tensor(f"size-{size}", "u8", [size], Exact(some), layout=BITMAP))
    tensors.append(tensor("all", "u8", [11], Exact(bytes(range(1, 12))), layout=BITMAP))
    tensors.append(tensor("nothing", "u8", [11], Exact(bytes(11)), layout=BITMAP))
    tensors.append(tensor("segments", "i8", [len(mixed)], Exact(mixed), layout=BITMAP, segment=7))
    yield "bitmap-ragged", draft(tensors)


def affine_group(
    bits: int, size: int, codes: list[int], scales: bytes, zeros: list[int] | None = None
) -> Affine:
    return Affine(bits, codes, scales, zeros, granularity={"kind": "group", "size": size})


def affine() -> Iterator[tuple[str, Draft]]:
    symmetric, asymmetric = [], []
    for bits in range(1, 9):
        codes = list(range(1 << bits)) if bits < 5 else [0, 1, (1 << bits) // 2, (1 << bits) - 1]
        shape = [len(codes)]
        symmetric.append(tensor(f"bits-{bits}", "f32", shape, Affine(bits, codes, f32(0.1))))
        zero = [(1 << bits) - 1]
        asymmetric.append(tensor(f"bits-{bits}", "f32", shape, Affine(bits, codes, f32(-0.1), zero)))
    yield "affine-symmetric-bits", draft(symmetric)
    yield "affine-zero-points-bits", draft(asymmetric)

    scales = f32(*[0.5 + 0.125 * i for i in range(24)])
    codes = numbers(24, 16)
    zeros = numbers(24, 16, seed=7)
    granularities: dict[str, tuple[dict[str, Any], int]] = {
        "tensor": ({"kind": "tensor"}, 1),
        "axis-0": ({"kind": "channel", "axis": 0}, 2),
        "axis-1": ({"kind": "channel", "axis": 1}, 3),
        "axis-2": ({"kind": "channel", "axis": 2}, 4),
        "groups-of-1": ({"kind": "group", "size": 1}, 24),
        "groups-of-3": ({"kind": "group", "size": 3}, 12),
        "groups-of-4": ({"kind": "group", "size": 4}, 6),
        "groups-of-64": ({"kind": "group", "size": 64}, 6),
    }
    tensors = []
    for name, (granularity, groups) in granularities.items():
        values = Affine(4, codes, scales[: 4 * groups], zeros[:groups], granularity=granularity)
        tensors.append(tensor(name, "f32", [2, 3, 4], values))
    yield "affine-granularity", draft(tensors)
    yield (
        "affine-granularity-segments",
        draft(
            [
                tensor(
                    name,
                    "bf16",
                    [2, 3, 4],
                    Affine(4, codes, scales[: 4 * groups], granularity=granularity),
                    segment=5,
                )
                for name, (granularity, groups) in granularities.items()
            ]
        ),
    )
    stored = [number > 7 for number in numbers(24, 16, seed=3)]
    yield (
        "affine-granularity-sparse",
        draft(
            [
                tensor(
                    name,
                    "f16",
                    [2, 3, 4],
                    Affine(4, codes[: sum(stored)], scales[: 4 * groups], granularity=granularity),
                    layout=layout,
                    stored=stored,
                    segment=9,
                )
                for name, (granularity, groups) in granularities.items()
                for layout in ([relative(2)] if "-" in name else [BITMAP])
            ]
        ),
    )

    scale_bytes = {"f32": f32(0.1), "f16": struct.pack("<e", 0.1), "bf16": b"\xcd\x3d", None: f32(0.1)}
    tensors = [tensor("f64", "f64", [4], Affine(2, range(4), f64(0.1)))]
    tensors.append(tensor("f64-named", "f64", [4], Affine(2, range(4), f64(0.1), scale_dtype="f64")))
    for dtype in ("f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"):
        for scale_dtype, packed in scale_bytes.items():
            values = Affine(2, range(4), packed, [1], scale_dtype=scale_dtype)
            tensors.append(tensor(f"{dtype}-{scale_dtype or 'default'}", dtype, [4], values))
    yield "affine-scale-dtypes", draft(tensors)

    # 128 or 127 times the scale is just below, on and just above the middle between the largest number and the next.
    large = {
        "f64": [1.4e306, 1.5e306],
        "f32": [2.65e36, 2.66e36],
        "f16": [511.75, 511.8, 511.875, 512.0],
        "bf16": [2.65e36, 2.6543e36, 2.66e36],
        "f8_e4m3fn": [3.5, 3.625, 3.65625, 4.0],
        "f8_e5m2": [448.0, 479.0, 480.0, 512.0],
    }
    tensors = []
    for dtype, values_of in large.items():
        for i, scale in enumerate([*values_of, *(-value for value in values_of)]):
            packed = f64(scale) if dtype == "f64" else f32(scale)
            tensors.append(tensor(f"{dtype}-{i}", dtype, [4], Affine(8, [0, 1, 254, 255], packed)))
    yield "affine-overflow", draft(tensors)
    yield (
        "affine-underflow",
        draft(
            [
                tensor(
                    dtype,
                    dtype,
                    [6],
                    Affine(3, [0, 2, 3, 4, 5, 7], f64(scale) if dtype == "f64" else f32(scale)),
                )
                for dtype, scale in {
                    "f64": 5e-324,
                    "f32": 1.5e-45,
                    "f16": 2.0**-25,
                    "bf16": 2.0**-134,
                    "f8_e4m3fn": 2.0**-10,
                    "f8_e5m2": 2.0**-17,
                }.items()
            ]
        ),
    )
    yield (
        "affine-signed-zeros",
        draft(
            [
                tensor(
                    f"{dtype}-{name}",
                    dtype,
                    [3],
                    Affine(2, [1, 2, 3], f64(scale) if dtype == "f64" else f32(scale)),
                )
                for dtype in ("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")
                for name, scale in {"plus": 1.0, "minus": -1.0, "plus-zero": 0.0, "minus-zero": -0.0}.items()
            ]
        ),
    )
    # 1 + 2^-11 + 2^-24 times 1 .. 127: rounded to binary32 first, some products fall on a tie of binary16 or bfloat16.
    codes = list(range(129, 256))
    yield (
        "affine-rounds-twice",
        draft(
            [
                tensor(f"{dtype}-{i}", dtype, [len(codes)], Affine(8, codes, struct.pack("<I", bits)))
                for dtype in ("f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")
                for i, bits in enumerate((0x3F801001, 0x3F80CCCD, 0x3CF3FFFF))
            ]
        ),
    )


def codebooks() -> Iterator[tuple[str, Draft]]:
    many = bytes(number for number in numbers(512, 256))
    yield "codebook-size-1", draft([tensor("t", "f32", [5], Codebook(1, 1, [0] * 5, f32(-2.5)))])
    yield (
        "codebook-size-3",
        draft([tensor("t", "f32", [5], Codebook(2, 3, [0, 2, 1, 2, 0], f32(-2.5, 0, 7)))]),
    )
    yield (
        "codebook-size-3-of-8-bits",
        draft([tensor("t", "f32", [3], Codebook(8, 3, [0, 2, 1], f32(-2.5, 0, 7)))]),
    )
    yield (
        "codebook-size-256",
        draft([tensor("t", "bf16", [300], Codebook(8, 256, numbers(300, 256, seed=5), many))]),
    )
    yield (
        "codebook-bits",
        draft(
            [
                tensor(
                    f"bits-{bits}",
                    "u8",
                    [9],
                    Codebook(bits, 1 << bits, numbers(9, 1 << bits), many[: 1 << bits]),
                )
                for bits in range(1, 9)
            ]
        ),
    )
    yield (
        "codebook-dtypes",
        draft(
            [
                tensor(
                    dtype, dtype, [7], Codebook(2, 4, numbers(7, 4), (elements(dtype)[1])[: 4 * width(dtype)])
                )
                for dtype in ELEMENTS
            ]
        ),
    )
    granularities: dict[str, tuple[dict[str, Any], int]] = {
        "tensor": ({"kind": "tensor"}, 1),
        "channel": ({"kind": "channel", "axis": 1}, 5),
        "group": ({"kind": "group", "size": 2}, 6),
    }
    yield (
        "codebook-granularity",
        draft(
            [
                tensor(
                    name,
                    "u16",
                    [2, 5],
                    Codebook(2, 3, numbers(10, 3), many[: 6 * groups], granularity=granularity),
                )
                for name, (granularity, groups) in granularities.items()
            ]
        ),
    )


def width(dtype: str) -> int:
    shape, data = elements(dtype)
    return len(data) // shape[0]

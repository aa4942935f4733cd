"""The vectors of version 1.1, good and bad: what quantized checkpoints of other formats hold (sections 5.3, 5.4, 5.6 and 10.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from tests.reference.dcz_reference_coders import Coder, RangeCoder, cascade, huffman, raw, zstd
from tests.reference.dcz_reference_writer import (
    Affine,
    Codebook,
    Coded,
    Draft,
    Exact,
    ScaledCodebook,
    Tensor,
    Values,
    Vectors,
    draft,
    tensor,
)
from tests.vectors.bad_cases import CORRUPT, LIMIT, MANIFEST, VERSION, Case
from tests.vectors.good_values import BITMAP, f32, f64, numbers, relative

__all__ = ["quantized_cases", "quantized_files"]

FLOATS = ("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")
NF4 = f32(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0)
NF4 += f32(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
INFINITE = f32(float("inf"))
NAN = f32(float("nan"))
GROUPS = {"kind": "group", "size": 4}


def f16(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}e", *values)


def scales_of(dtype: str, *values: float) -> bytes:
    return f64(*values) if dtype == "f64" else f32(*values)


# Good -------------------------------------------------------------------------------------------------------------


def quantized_files() -> Iterator[tuple[str, Draft]]:
    codes = numbers(24, 16, seed=3)
    six = [0.5, -0.25, 1.5, 3.0, -2.0, 0.0]
    yield (
        "affine-minimums",
        draft(
            [
                tensor(
                    dtype,
                    dtype,
                    [3, 8],
                    Affine(
                        4,
                        codes,
                        scales_of(dtype, *six),
                        granularity=GROUPS,
                        minimums=scales_of(dtype, *reversed(six)),
                        zero_point=0,
                    ),
                )
                for dtype in FLOATS
            ]
        ),
    )
    # Each step rounds: the product, the sum, the element. Zeros that cancel, and products that are infinite.
    edges = f32(1 / 3, 3e38, -3e38, 1e-45, -0.0, 16777215.0)
    yield (
        "affine-minimums-edges",
        draft(
            [
                tensor(
                    dtype,
                    dtype,
                    [6, 4],
                    Affine(
                        4,
                        [0, 3, 8, 15] * 6,
                        edges,
                        granularity=GROUPS,
                        minimums=f32(-1.0, -3e38, 3e38, 0.0, -0.0, 1.0),
                        zero_point=3,
                    ),
                )
                for dtype in FLOATS[1:]
            ]
        ),
    )
    yield (
        "affine-zero-point",
        draft(
            [
                tensor(
                    f"{bits} {zero}",
                    "f32",
                    [5],
                    Affine(bits, numbers(5, 1 << bits), f32(0.75), zero_point=zero),
                )
                for bits, zero in ((1, 0), (1, 2), (4, 0), (4, 16), (8, 0), (8, 255))
            ]
        ),
    )
    yield (
        "affine-zero-point-bits",
        draft(
            [
                tensor(
                    f"{bits} of {code_bits}",
                    "f16",
                    [2, 3],
                    Affine(
                        code_bits,
                        numbers(6, 1 << code_bits),
                        f32(0.5, 2.0),
                        [(1 << bits) - 1, 0],
                        granularity={"kind": "channel", "axis": 0},
                        zero_point_bits=bits,
                    ),
                )
                for code_bits, bits in ((4, 5), (2, 3), (1, 8), (4, 2), (3, 3))
            ]
        ),
    )
    yield "affine-minimums-layouts", draft([*sparse(codes)])
    yield "coded-scales-affine", draft([*coded_scales()])
    yield "coded-scales-codebook", draft([*coded_by_tables()])
    yield (
        "coded-scales-and-exact-minimums",
        draft(
            [
                tensor(
                    "t",
                    "bf16",
                    [3, 8],
                    Affine(
                        4,
                        codes,
                        Coded(6, numbers(6, 64), 4, f16(0.5, -0.125), "f16"),
                        granularity=GROUPS,
                        minimums=f16(*six),
                        scale_dtype="f16",
                    ),
                ),
                tensor(
                    "u",
                    "bf16",
                    [3, 8],
                    Affine(
                        4,
                        codes,
                        f16(*six),
                        [3] * 6,
                        granularity=GROUPS,
                        minimums=Coded(6, numbers(6, 64), 4, f32(0.5, -0.125)),
                        scale_dtype="f16",
                    ),
                ),
            ]
        ),
    )
    yield "scaled-codebook-dtypes", draft([*scaled_codebooks(codes)])
    yield (
        "scaled-codebook-sizes",
        draft(
            [
                tensor(
                    f"{size} of {bits}",
                    "f32",
                    [9],
                    ScaledCodebook(
                        bits, size, numbers(9, size), f32(*(i / 8 - 1 for i in range(size))), f32(-0.5)
                    ),
                )
                for bits, size in ((1, 1), (1, 2), (2, 3), (4, 16), (5, 17), (6, 33), (8, 256), (8, 3))
            ]
        ),
    )
    yield "scaled-codebook-edges", draft([*scaled_edges()])
    yield "flat-groups", draft([*flat_groups()])
    yield "indexed-groups", draft([*indexed_groups()])
    yield "vectors", draft([*vectors()])
    yield "vectors-dtypes", draft([*vector_dtypes()])
    yield "quantized-codings", draft([*every_coding(codes)])
    # A later version may require what this one knows.
    later = draft(
        [tensor("t", "f32", [2], Affine(4, [1, 9], f32(0.5), zero_point=0))],
        version=(1, 7),
        requires=["zero-points"],
    )
    later.manifest["tensors"][0]["values"]["unknown field"] = 1
    yield "minor-version-unknown-with-features", later


def sparse(codes: list[int]) -> Iterator[Tensor]:
    stored = [number > 5 for number in numbers(24, 12)]
    kept = [code for code, keep in zip(codes, stored, strict=True) if keep]
    kinds: dict[str, Values] = {
        "affine": Affine(
            4,
            kept,
            f32(1.0, 0.5, 2.0, 4.0, -1.0, 3.0),
            [1, 2, 3, 4, 5, 6],
            granularity=GROUPS,
            minimums=f32(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        ),
        "scaled": ScaledCodebook(4, 16, kept, NF4, f32(1.0, 0.5, 2.0, 4.0, -1.0, 3.0), granularity=GROUPS),
        "indexed": Affine(
            4,
            kept,
            f32(1.0, 0.5, 2.0, 4.0, -1.0, 3.0),
            granularity={"kind": "indexed", "groups": 2},
            index=[0, 1, 1, 0, 1, 0, 0, 1],
        ),
    }
    for layout in (BITMAP, relative(3)):
        for name, values in kinds.items():
            yield tensor(
                f"{name} {layout['kind']}",
                "bf16",
                [3, 8],
                values,
                layout=layout,
                stored=stored,
                segment=10,
            )


def coded_scales() -> Iterator[Tensor]:
    """As the k-quants of GGUF."""
    for bits in (1, 4, 6, 8):
        for dtype, outer in (("f32", f32(0.5, -0.25)), ("f16", f16(0.5, -0.25)), ("bf16", b"\0\x3f\x80\xbe")):
            scales = Coded(bits, numbers(6, 1 << bits, bits), 4, outer, dtype)
            minimums = Coded(bits, numbers(6, 1 << bits, bits + 9), 3, outer, dtype, zero_point=1 << bits - 1)
            values = Affine(4, numbers(24, 16), scales, granularity=GROUPS, minimums=minimums, zero_point=0)
            yield tensor(f"{bits} {dtype}", "f32", [3, 8], values)
    signed = Coded(8, [0, 127, 128, 255], 16, f16(0.0003), "f16", zero_point=128)
    yield tensor("signed", "f16", [2, 8], Affine(6, numbers(16, 64), signed, granularity=GROUPS))


def coded_by_tables() -> Iterator[Tensor]:
    """As bitsandbytes' double quantization."""
    table = f32(*(i * i / 900 - 0.3 for i in range(30)))
    for offset in (None, f32(0.6217)):
        for group in (1, 4, 256):
            count = -(-6 // group)
            scales = Coded(
                8, numbers(6, 30), group, f32(*(0.7 + i for i in range(count))), table=table, offset=offset
            )
            name = f"{group} {offset is not None}"
            yield tensor(
                name, "f16", [3, 8], ScaledCodebook(4, 16, numbers(24, 16), NF4, scales, granularity=GROUPS)
            )
    powers = f32(*(2.0**i for i in range(-5, 3)))
    scales = Coded(3, numbers(6, 8), 6, f32(1.0), table=powers)
    yield tensor("powers of two", "f32", [3, 8], Affine(4, numbers(24, 16), scales, granularity=GROUPS))


def scaled_codebooks(codes: list[int]) -> Iterator[Tensor]:
    six = [0.5, -0.25, 1.5, 3.0, -2.0, 0.0]
    for dtype in FLOATS:
        wide = dtype == "f64"
        table = f64(*struct.unpack("<16f", NF4)) if wide else NF4
        values = ScaledCodebook(4, 16, codes, table, scales_of(dtype, *six), granularity=GROUPS)
        yield tensor(dtype, dtype, [3, 8], values)
        if not wide:
            values = ScaledCodebook(4, 16, codes, NF4, f16(*six), "f16", GROUPS)
            yield tensor(f"{dtype} f16", dtype, [3, 8], values)


def scaled_edges() -> Iterator[Tensor]:
    """Products that overflow, underflow, tie and have either sign, in every type."""
    table = f32(-3e38, 3e38, -0.0, 0.0, 1e-45, -1e-40, 1 / 3, 65519.996)
    scales = f32(1e3, -1.0, 1.0, 0.0, -0.0, 0.5)
    for dtype in FLOATS[1:]:
        values = ScaledCodebook(
            3, 8, list(range(8)) * 6, table, scales, granularity={"kind": "channel", "axis": 0}
        )
        yield tensor(dtype, dtype, [6, 8], values)


def flat_groups() -> Iterator[Tensor]:
    for size in (1, 4, 5, 7, 15, 1 << 24):
        count = -(-15 // size)
        granularity = {"kind": "flat", "size": size}
        scales = f32(*(i + 0.5 for i in range(count)))
        values: Values = Affine(4, numbers(15, 16), scales, numbers(count, 16), granularity=granularity)
        yield tensor(f"affine {size}", "f32", [3, 5], values, segment=8)
        values = ScaledCodebook(4, 16, numbers(15, 16), NF4, scales, granularity=granularity)
        yield tensor(f"scaled {size}", "f16", [5, 3], values, segment=4)
    book = Codebook(1, 2, numbers(15, 2), bytes(range(12)), {"kind": "flat", "size": 5})
    yield tensor("codebook", "i16", [3, 5], book)
    yield tensor("scalar", "f32", [], Affine(1, [1], f32(-2.0), granularity={"kind": "flat", "size": 3}))


def indexed_groups() -> Iterator[Tensor]:
    index = [2, 0, 0, 1, 2, 2, 1, 0, 2, 1]
    by_index = {"kind": "indexed", "groups": 3}
    scales = f32(*(0.25 * i - 1 for i in range(9)))
    points = numbers(9, 16)
    codes = numbers(30, 16)
    yield tensor(
        "affine",
        "f16",
        [3, 10],
        Affine(4, codes, scales, points, granularity=by_index, index=index),
        segment=7,
    )
    yield tensor(
        "minimums",
        "bf16",
        [3, 10],
        Affine(4, codes, scales, minimums=scales, granularity=by_index, index=index),
    )
    yield tensor(
        "scaled", "f32", [3, 10], ScaledCodebook(4, 16, codes, NF4, scales, granularity=by_index, index=index)
    )
    yield tensor(
        "codebook",
        "u8",
        [3, 10],
        Codebook(2, 3, numbers(30, 3), bytes(range(27)), by_index, index),
        segment=12,
    )
    # More groups than columns, and some that no column is of.
    many = {"kind": "indexed", "groups": 300}
    far = Affine(2, [0, 1, 2, 3], f32(*range(600)), granularity=many, index=[299, 256])
    yield tensor("many", "f32", [2, 2], far)
    yield tensor(
        "scalar",
        "f64",
        [],
        Affine(2, [3], f64(0.5, 8.0), granularity={"kind": "indexed", "groups": 2}, index=[1]),
    )
    yield tensor(
        "vector",
        "f32",
        [2],
        Affine(2, [3, 0], f32(0.5, 8.0), granularity={"kind": "indexed", "groups": 2}, index=[1, 0]),
    )


def vectors() -> Iterator[Tensor]:
    words = bytes(numbers(512, 256))
    for d in (1, 2, 3, 4, 6, 12):
        for per_place in (False, True):
            size = 5
            tables = 12 // d if per_place else 1
            values = Vectors(3, size, d, numbers(24 // d, size), words[: tables * size * d], per_place)
            yield tensor(f"{d} {per_place}", "i8", [2, 12], values, segment=2 * d)
    yield tensor("one segment", "u16", [2, 4], Vectors(1, 2, 4, [1, 0], words[:16]), segment=1 << 24)
    yield tensor("scalar", "u8", [], Vectors(8, 256, 1, [200], bytes(range(256)), True))


def vector_dtypes() -> Iterator[Tensor]:
    for dtype, width in (("f64", 8), ("f32", 4), ("f16", 2), ("bf16", 2), ("f8_e4m3fn", 1), ("i64", 8)):
        words = bytes(numbers(4 * 2 * width, 256, seed=width))
        yield tensor(dtype, dtype, [3, 2], Vectors(2, 4, 2, [3, 0, 2], words))
    yield tensor("bool", "bool", [4], Vectors(1, 2, 2, [1, 0], b"\1\0\1\1"))


def every_coding(codes: list[int]) -> Iterator[Tensor]:
    coders: dict[str, Coder] = {
        "raw": raw,
        "huffman": huffman(packed=True),
        "zstd": zstd,
        "cascade": cascade(),
        "range": RangeCoder(columns=4),
    }
    scales = Coded(8, numbers(6, 30), 4, f32(0.7, 1.7), table=f32(*range(30)), offset=f32(0.5))
    kinds: dict[str, Values] = {
        "affine": Affine(
            4, codes, scales, [20] * 6, None, GROUPS, Coded(6, numbers(6, 64), 4, f32(1.0, 2.0)),
            zero_point_bits=5,
        ),
        "scaled": ScaledCodebook(
            4, 16, codes, NF4, f32(*range(6)), granularity={"kind": "indexed", "groups": 2},
            index=[0, 1] * 4,
        ),
        "vectors": Vectors(4, 16, 2, codes[:12], bytes(range(256))[:64]),
    }  # fmt: skip
    for name, coder in coders.items():
        for kind, values in kinds.items():
            yield tensor(f"{kind} {name}", "f16", [3, 8], values, coders=coder, segment=12)


# Defects that are fields where there are none.
UNKNOWN_FIELDS = (
    "nested",
    "with-size",
    "with-zero-point",
    "with-minimums",
    "with-granularity",
    "codebook-with-zero-point",
    "exact-with-bits",
    "indexed-with-size",
)


# Bad --------------------------------------------------------------------------------------------------------------


def quantized_cases() -> Iterator[Case]:
    yield from requirement_cases()
    yield from field_cases()
    yield from number_cases()
    yield from size_cases()


def small() -> dict[str, Tensor]:
    """A tensor with each feature, by its name."""
    return {
        "flat-groups": tensor(
            "t", "f32", [2, 3], Affine(1, [0] * 6, f32(1.0), granularity={"kind": "flat", "size": 6})
        ),
        "indexed-groups": tensor(
            "t",
            "f32",
            [2, 2],
            Affine(1, [0] * 4, f32(1, 2), granularity={"kind": "indexed", "groups": 1}, index=[0, 0]),
        ),
        "minimums": tensor("t", "f32", [2], Affine(1, [0, 1], f32(1.0), minimums=f32(2.0))),
        "parameter-codes": tensor("t", "f32", [2], Affine(1, [0, 1], Coded(2, [3], 1, f32(1.0)))),
        "scaled-codebook": tensor("t", "f32", [2], ScaledCodebook(1, 2, [0, 1], f32(1, 2), f32(1.0))),
        "vectors": tensor("t", "f32", [2], Vectors(1, 1, 2, [0], f32(1.0, 2.0))),
        "zero-points": tensor("t", "f32", [2], Affine(1, [0, 1], f32(1.0), zero_point=0)),
    }


def requirement_cases() -> Iterator[Case]:
    for feature, one in small().items():
        yield Case(
            f"version-1.0-with-{feature}",
            {"scaled-codebook": "5.3", "vectors": "5.3", "flat-groups": "5.4", "indexed-groups": "5.4"}.get(
                feature, "10"
            ),
            4,
            (MANIFEST,),
            draft([one], requires=[], version=(1, 0)).build(),
        )
        yield Case(
            f"requires-nothing-but-has-{feature}", "10.2", 4, (MANIFEST,), draft([one], requires=[]).build()
        )
        plain = tensor("t", "u8", [1], Exact(b"x"))
        unused = draft([plain], requires=[feature], version=(1, 1))
        yield Case(f"requires-unused-{feature}", "10.2", 4, (MANIFEST,), unused.build())
        early = draft([plain], requires=[feature], version=(1, 0))
        yield Case(f"version-1.0-requires-{feature}", "10", 4, (VERSION,), early.build())
    later = draft([small()["minimums"]], requires=[], version=(1, 7))
    yield Case("unknown-minor-with-minimums-not-required", "10.2", 4, (MANIFEST,), later.build())
    other = draft([small()["minimums"]], requires=["vectors"])
    yield Case("requires-another-feature", "10.2", 4, (MANIFEST,), other.build())

    for field, value in (("minimums", False), ("zero_point", 1), ("scale_values", {"kind": "exact"})):
        file = draft([tensor("t", "f32", [2], Affine(1, [0, 1], f32(1.0)))])
        file.manifest["tensors"][0]["values"][field] = value
        name = f"version-1.0-with-default-of-{field.replace('_', '-')}"
        yield Case(name, "10", 4, (MANIFEST,), file.build())
    file = draft([small()["minimums"]])
    file.manifest["tensors"][0]["values"]["unknown"] = 1
    yield Case("unknown-field-of-affine-1.1", "10", 4, (MANIFEST,), file.build())


def changed(feature: str, **values: Any) -> Draft:
    """The small tensor with a feature, and other fields of its values; the file requires what it now has."""
    one = small()[feature]
    fields = one.fields["values"] | values
    one.fields["values"] = {name: value for name, value in fields.items() if value is not None}
    has = {
        "parameter-codes": ("scale_values", "minimum_values"),
        "minimums": ("minimums",),
        "zero-points": ("zero_point", "zero_point_bits"),
    }
    requires = {name for name, names in has.items() if any(each in one.fields["values"] for each in names)}
    requires |= {feature} - set(has)
    return described(one.fields, sorted(requires))


def described(fields: dict[str, Any], requires: list[str]) -> Draft:
    """A file of version 1.1 with one tensor, of which there is only the entry in the manifest."""
    file = draft([], version=(1, 1), requires=requires)
    file.manifest["tensors"] = [fields]
    return file


def field_cases() -> Iterator[Case]:
    def one(name: str, section: str, feature: str, **values: Any) -> Case:
        file = changed(feature, **values)
        file.chunks = [b"".join(small()[feature].parts)]
        without = any(value is None for value in values.values()) and not name.startswith("zero-point")
        return Case(name, "3" if without else section, 4, (MANIFEST,), file.build())

    both = "zero-point-for-all-and-for-each"
    yield one(both, "5.3", "zero-points", zero_points=True)
    for value in (-1, 256, True, 1.0):
        yield one(f"zero-point-{value}".replace("-1", "minus-1"), "5.3", "zero-points", zero_point=value)
    yield one("zero-point-bits-without-zero-points", "5.3", "zero-points", zero_point=None, zero_point_bits=4)
    for bits in (0, 9):
        yield one(
            f"zero-point-bits-{bits}",
            "5.3",
            "zero-points",
            zero_point=None,
            zero_points=True,
            zero_point_bits=bits,
        )
    yield one("minimums-1", "5.3", "minimums", minimums=1)
    coded = {"kind": "affine", "bits": 2, "group": 1}
    yield one("minimum-values-without-minimums", "5.6", "minimums", minimums=False, minimum_values=coded)
    hows: dict[str, Any] = {
        "not-a-map": 1,
        "without-kind": {"bits": 2, "group": 1},
        "of-unknown-kind": {"kind": "scaled-codebook", "bits": 2, "group": 1},
        "nested": coded | {"scale_values": coded},
        "without-bits": {"kind": "affine", "group": 1},
        "without-group": {"kind": "affine", "bits": 2},
        "of-9-bits": coded | {"bits": 9},
        "of-0-bits": coded | {"bits": 0},
        "in-groups-of-0": coded | {"group": 0},
        "in-groups-too-large": coded | {"group": (1 << 24) + 1},
        "of-type-f64": coded | {"dtype": "f64"},
        "of-type-f8": coded | {"dtype": "f8_e5m2"},
        "with-zero-point-256": coded | {"zero_point": 256},
        "with-size": coded | {"size": 4},
        "codebook-without-size": coded | {"kind": "codebook"},
        "codebook-of-5-in-2-bits": coded | {"kind": "codebook", "size": 5},
        "codebook-with-zero-point": coded | {"kind": "codebook", "size": 4, "zero_point": 1},
        "codebook-with-offset-1": coded | {"kind": "codebook", "size": 4, "offset": 1},
        "exact-with-bits": {"kind": "exact", "bits": 2},
    }
    for name, how in hows.items():
        section = "3" if "without" in name else "10" if name in UNKNOWN_FIELDS else "5.6"
        yield one(f"scale-values-{name}", section, "parameter-codes", scale_values=how)
    yield one("scale-dtype-of-coded-scales", "5.6", "parameter-codes", scale_dtype="f16")
    scaled: dict[str, dict[str, Any]] = {
        "size-0": {"size": 0},
        "size-257": {"size": 257, "bits": 8},
        "size-3-of-1-bits": {"size": 3},
        "without-size": {"size": None},
        "with-zero-point": {"zero_point": 0},
        "with-minimums": {"minimums": True},
        "scales-f64-of-f32": {"scale_dtype": "f64"},
    }
    for name, fields in scaled.items():
        section = "10" if name in UNKNOWN_FIELDS else "5.3"
        yield one(f"scaled-codebook-{name}", section, "scaled-codebook", **fields)
    grouped: dict[str, dict[str, Any]] = {
        "dimension-0": {"dimension": 0},
        "dimension-65537": {"dimension": 65_537},
        "dimension-3-of-2": {"dimension": 3},
        "without-dimension": {"dimension": None},
        "size-3-of-1-bits": {"size": 3},
        "per-place-1": {"per_place": 1},
        "with-granularity": {"granularity": {"kind": "tensor"}},
    }
    for name, fields in grouped.items():
        yield one(f"vectors-{name}", "10" if name in UNKNOWN_FIELDS else "5.3", "vectors", **fields)
    for feature, name, granularity in (
        ("flat-groups", "flat-of-0", {"kind": "flat", "size": 0}),
        ("flat-groups", "flat-too-large", {"kind": "flat", "size": (1 << 24) + 1}),
        ("flat-groups", "flat-without-size", {"kind": "flat"}),
        ("indexed-groups", "indexed-of-0", {"kind": "indexed", "groups": 0}),
        ("indexed-groups", "indexed-of-65537", {"kind": "indexed", "groups": 65_537}),
        ("indexed-groups", "indexed-with-size", {"kind": "indexed", "groups": 1, "size": 1}),
    ):
        section = "3" if "without" in name else "10" if name in UNKNOWN_FIELDS else "5.4"
        yield one(f"granularity-{name}", section, feature, granularity=granularity)

    f64_scales = tensor("t", "f64", [2], Affine(1, [0, 1], Coded(2, [3], 1, f32(1.0))))
    yield Case("coded-scales-of-f64", "5.6", 4, (MANIFEST,), draft([f64_scales]).build())
    for dtype in ("i8", "bool"):
        file = draft([small()["scaled-codebook"]])
        file.manifest["tensors"][0]["dtype"] = dtype
        yield Case(f"scaled-codebook-{dtype}", "5.3", 4, (MANIFEST,), file.build())
    file = draft([small()["vectors"]])
    file.manifest["tensors"][0] |= {"layout": {"kind": "bitmap"}, "entries": [2]}
    yield Case("vectors-in-a-bitmap", "5.3", 4, (MANIFEST,), file.build())
    file = draft([small()["vectors"]])
    file.manifest["tensors"][0]["segment"] = 3
    yield Case("vectors-in-segments-of-3", "5.3", 5, (MANIFEST,), file.build())


def number_cases() -> Iterator[Case]:
    """Parameters and codes that are not what they must be."""

    def one(name: str, section: str, good: Tensor, *parts: bytes) -> Case:
        if [len(part) for part in parts] != [len(part) for part in good.parts]:
            raise AssertionError(f"{name}: other parts")
        bad = Tensor(good.fields, list(parts), good.content)
        return Case(name, section, 7, (CORRUPT,), draft([bad]).build())

    # The parts of the small tensors are their parameters, and codes that are all in one byte.
    features = small()
    code = {name: each.parts[1] for name, each in features.items()}
    for name, bad in (("infinite", INFINITE), ("nan", NAN)):
        minimums = features["minimums"]
        yield one(f"minimum-{name}", "5.3", minimums, f32(1.0) + bad, code["minimums"])
        scaled = features["scaled-codebook"]
        yield one(f"table-{name}", "5.3", scaled, f32(1.0, 1.0) + bad, code["scaled-codebook"])
        yield one(
            f"scale-of-scaled-codebook-{name}", "5.3", scaled, bad + f32(1.0, 2.0), code["scaled-codebook"]
        )
        yield one(
            f"outer-scale-{name}", "5.6", features["parameter-codes"], b"\3" + bad, code["parameter-codes"]
        )
        table = Coded(1, [0], 1, f32(1.0), table=f32(1.0, 2.0), offset=f32(0.0))
        good = tensor("t", "f32", [2], Affine(1, [0, 1], table))
        yield one(f"table-of-scales-{name}", "5.6", good, b"\0" + f32(1.0) + bad + f32(1.0, 0.0), b"\2")
        yield one(f"offset-of-scales-{name}", "5.6", good, b"\0" + f32(1.0, 2.0, 1.0) + bad, b"\2")
    large = f32(3e38)
    yield one(
        "scale-from-code-infinite", "5.6", features["parameter-codes"], b"\3" + large, code["parameter-codes"]
    )
    table = Coded(1, [0], 1, f32(1.0), table=f32(1.0, 2.0), offset=f32(0.0))
    good = tensor("t", "f32", [2], Affine(1, [0, 1], table))
    yield one("scale-from-table-infinite", "5.6", good, b"\0" + large + f32(1.0, 2.0, 0.0), b"\2")
    yield one("scale-from-offset-infinite", "5.6", good, b"\0" + large + f32(1.0, 1.0) + large, b"\2")
    three = Coded(2, [2], 1, f32(1.0), table=f32(1.0, 2.0, 3.0))
    good = tensor("t", "f32", [2], Affine(1, [0, 1], three))
    yield one("code-3-of-3-scales", "5.6", good, b"\3" + f32(1.0, 2.0, 3.0, 1.0), b"\2")
    good = tensor("t", "f32", [2], ScaledCodebook(2, 3, [0, 1], f32(1, 2, 3), f32(1.0)))
    yield one("code-3-of-3-values", "5.3", good, good.parts[0], b"\x0c")
    good = tensor("t", "f32", [2], Vectors(2, 3, 2, [0], f32(*range(6))))
    yield one("code-3-of-3-codewords", "5.3", good, good.parts[0], b"\3")
    good = features["indexed-groups"]
    yield one("index-1-of-1-groups", "5.4", good, f32(1, 2) + b"\0\0\1\0", b"\0")
    yield one("index-256-of-1-groups", "5.4", good, f32(1, 2) + b"\0\1\0\0", b"\0")
    good = tensor("t", "bool", [2], Vectors(1, 2, 1, [0, 0], b"\0\1"))
    yield one("bool-2-by-codeword", "5.1", good, b"\2\1", b"\0")


def size_cases() -> Iterator[Case]:
    """Parameters that would take more than a reader allows."""

    def one(
        name: str,
        values: dict[str, Any],
        requires: list[str],
        shape: list[int],
        dtype: str,
        streams: int,
        segment: int,
    ) -> Case:
        segments = -(-shape[0] * shape[1] // segment)
        fields = {
            "name": "t",
            "dtype": dtype,
            "shape": shape,
            "digest": bytes(32),
            "values": values,
            "segment": segment,
            "codings": bytes(streams + segments),
            "lengths": [1] * (streams + segments),
        }
        file = described(fields, requires)
        file.chunks = [bytes(streams + segments)]
        return Case(name, "9", 5, (LIMIT,), file.build())

    by_index = {"kind": "affine", "bits": 1, "granularity": {"kind": "indexed", "groups": 65_536}}
    yield one("index-of-64-GiB-of-scales", by_index, ["indexed-groups"], [1 << 18, 1], "f32", 2, 1 << 18)
    places = {"kind": "vectors", "bits": 8, "size": 256, "dimension": 2, "per_place": True}
    yield one("codewords-of-4-GiB", places, ["vectors"], [1, 1 << 21], "f64", 1, 1 << 21)
    coded = {
        "kind": "affine",
        "bits": 1,
        "granularity": {"kind": "flat", "size": 1},
        "scale_values": {"kind": "affine", "bits": 1, "group": 1 << 24},
    }
    yield one(
        "coded-scales-of-1-GiB",
        coded,
        ["flat-groups", "parameter-codes"],
        [16, 1 << 24],
        "f8_e5m2",
        2,
        1 << 24,
    )

"""What hypothesis draws streams and tensors from: all that sections 5 and 6 of docs/format.md allow."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
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
from tests.reference.dcz_reference_manifest import DTYPES, FLOAT_DTYPES
from tests.reference.dcz_reference_values import widened
from tests.reference.dcz_reference_writer import (
    Affine,
    Codebook,
    Coded,
    Exact,
    ScaledCodebook,
    Tensor,
    Values,
    Vectors,
    tensor,
)

__all__ = ["NARROWER", "NUMPY", "any_tensors", "coders", "streams"]

NARROWER = {"f64": ("f32",), "f32": ("f16", "bf16")}

NUMPY = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int]:
    width = draw(st.integers(1, 8))
    few = draw(st.lists(st.integers(0, (1 << width) - 1), min_size=1, max_size=12))
    return draw(st.lists(st.sampled_from(few), min_size=1, max_size=200)), width


coders: st.SearchStrategy[Coder] = st.sampled_from(
    [raw, zstd, zstd_library, huffman(), huffman(packed=True), huffman(Block("stored")), cascade()]
) | st.builds(
    RangeCoder,
    columns=st.sampled_from([1, 2, 5, 16, 70_000]),
    resolution=st.integers(0, 3),
    raw=st.integers(1, 7),
    signs=st.booleans(),
)


@st.composite
def any_tensors(draw: st.DrawFn, name: str) -> Tensor:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    width = DTYPES[dtype]
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    count = int(np.prod(shape, dtype=int))
    layout = draw(
        st.sampled_from([{"kind": "dense"}, {"kind": "bitmap"}])
        | st.builds(lambda bits: {"kind": "relative-index", "bits": bits}, st.integers(1, 8))
    )
    dense = layout["kind"] == "dense"
    stored = [True] * count if dense else draw(st.lists(st.booleans(), min_size=count, max_size=count))
    coder = draw(coders)

    def data(elements: int) -> bytes:
        if dtype == "bool":
            return bytes(draw(st.lists(st.integers(0, 1), min_size=elements, max_size=elements)))
        return draw(st.binary(min_size=elements * width, max_size=elements * width))

    splits = ["whole", "bytes", *(["rotated"] if dtype in FLOAT_DTYPES else [])]
    scaled = ["affine", "scaled-codebook"] if dtype in FLOAT_DTYPES else []
    kind = draw(st.sampled_from([*splits, "codebook", *scaled, *(["vectors"] if dense else [])]))
    if kind in splits:
        narrow = draw(st.sampled_from([None, *NARROWER.get(dtype, ())]))
        offset = draw(st.integers(0, 255)) if kind == "rotated" and width > 1 else 0
        content = data(count)
        if narrow is not None:
            size = DTYPES[narrow]
            entries = (content[i * width : i * width + size] for i in range(count))
            content = b"".join(widened(entry, narrow, dtype) for entry in entries)
        values: Values = Exact(content, kind, offset, narrow)
    elif kind == "vectors":
        last = shape[-1] if shape else 1
        d = draw(st.sampled_from([d for d in range(1, last + 1) if last % d == 0]))
        bits, per_place = draw(st.integers(1, 8)), draw(st.booleans())
        size = draw(st.integers(1, 1 << min(bits, 4)))
        codes = draw(st.lists(st.integers(0, size - 1), min_size=count // d, max_size=count // d))
        words = data(size * (last if per_place else d))
        values = Vectors(bits, size, d, codes, words, per_place)
        segment = d * draw(st.integers(1, count // d + 2))
        return tensor(name, dtype, shape, values, segment=segment, coders=coder)
    else:
        bits = draw(st.integers(1, 8))
        granularity, groups, index = draw(granularities(shape))
        size = draw(st.integers(1, 1 << min(bits, 4)))
        below = 1 << bits if kind == "affine" else size
        codes = draw(st.lists(st.integers(0, below - 1), min_size=sum(stored), max_size=sum(stored)))
        if kind == "codebook":
            values = Codebook(bits, size, codes, data(groups * size), granularity, index)
        else:
            exact = draw(st.sampled_from(["f64"] if dtype == "f64" else ["f32", "f16", "bf16"]))
            scales = draw(parameters(groups, exact, dtype))
            minimums = draw(st.none() | parameters(groups, exact, dtype)) if kind == "affine" else None
            scale_dtype = exact if isinstance(scales, bytes) or isinstance(minimums, bytes) else None
            if kind == "affine":
                points_bits = draw(st.none() | st.integers(1, 8))
                points = draw(st.none() | numbers(groups, points_bits or bits))
                one = draw(st.none() | st.integers(0, 255)) if points is None else None
                points_bits = None if points is None else points_bits
                values = Affine(
                    bits,
                    codes,
                    scales,
                    points,
                    scale_dtype,
                    granularity,
                    minimums,
                    zero_point=one,
                    zero_point_bits=points_bits,
                    index=index,
                )
            else:
                table = draw(floats(size, "f64" if dtype == "f64" else "f32"))
                values = ScaledCodebook(bits, size, codes, table, scales, scale_dtype, granularity, index)
    segment = draw(st.integers(1, count + 2))
    return tensor(name, dtype, shape, values, layout=layout, stored=stored, segment=segment, coders=coder)


def numbers(count: int, bits: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count)


def floats(count: int, dtype: str) -> st.SearchStrategy[bytes]:
    """So many finite numbers of a type, as their bytes; zeros of both signs among them."""
    few = st.integers(-1000, 1000).map(lambda n: n / 64 if n else -0.0)
    return st.lists(few, min_size=count, max_size=count).map(
        lambda values: np.array(values).astype(NUMPY[dtype]).tobytes()
    )


@st.composite
def parameters(draw: st.DrawFn, groups: int, exact: str, dtype: str) -> bytes | Coded:
    """Scales or minimums: stored as they are, or as codes."""
    kind = draw(st.sampled_from(["exact", *(["affine", "codebook"] if dtype != "f64" else [])]))
    if kind == "exact":
        return draw(floats(groups, exact))
    bits, group = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    outer_dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    outer = draw(floats(-(-groups // group), outer_dtype))
    if kind == "affine":
        codes = draw(numbers(groups, bits))
        return Coded(bits, codes, group, outer, outer_dtype, draw(st.integers(0, 255)))
    size = draw(st.integers(1, 1 << min(bits, 3)))
    codes = draw(st.lists(st.integers(0, size - 1), min_size=groups, max_size=groups))
    offset = draw(st.none() | floats(1, "f32"))
    return Coded(bits, codes, group, outer, outer_dtype, table=draw(floats(size, "f32")), offset=offset)


@st.composite
def granularities(draw: st.DrawFn, shape: list[int]) -> tuple[dict[str, Any], int, list[int] | None]:
    """A granularity, its number of groups, and its index."""
    kind = draw(st.sampled_from(["tensor", "group", "flat", "indexed", *(["channel"] if shape else [])]))
    rows, last = int(np.prod(shape[:-1], dtype=int)), shape[-1] if shape else 1
    if kind == "tensor":
        return {"kind": kind}, 1, None
    if kind == "channel":
        axis = draw(st.integers(0, len(shape) - 1))
        return {"kind": kind, "axis": axis}, shape[axis], None
    size = draw(st.integers(1, 6))
    if kind == "flat":
        return {"kind": kind, "size": size}, -(-rows * last // size), None
    if kind == "indexed":
        index = draw(st.lists(st.integers(0, size - 1), min_size=last, max_size=last))
        return {"kind": kind, "groups": size}, rows * size, index
    return {"kind": kind, "size": size}, rows * -(-last // size), None

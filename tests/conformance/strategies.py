"""What hypothesis draws streams and tensors from: all that sections 5 and 6 of docs/format.md allow."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from tests.reference.dcz_reference import widened
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
from tests.reference.dcz_reference_writer import Affine, Codebook, Exact, Tensor, tensor

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
    kind = draw(st.sampled_from([*splits, "codebook", *(["affine"] if dtype in FLOAT_DTYPES else [])]))
    if kind in splits:
        narrow = draw(st.sampled_from([None, *NARROWER.get(dtype, ())]))
        offset = draw(st.integers(0, 255)) if kind == "rotated" and width > 1 else 0
        content = data(count)
        if narrow is not None:
            size = DTYPES[narrow]
            entries = (content[i * width : i * width + size] for i in range(count))
            content = b"".join(widened(entry, narrow, dtype) for entry in entries)
        values: Exact | Affine | Codebook = Exact(content, kind, offset, narrow)
    else:
        bits = draw(st.integers(1, 8))
        granularity, groups = draw(granularities(shape))
        size = draw(st.integers(1, 1 << min(bits, 4)))
        below = size if kind == "codebook" else 1 << bits
        codes = draw(st.lists(st.integers(0, below - 1), min_size=sum(stored), max_size=sum(stored)))
        if kind == "codebook":
            values = Codebook(bits, size, codes, data(groups * size), granularity)
        else:
            scale_dtype = draw(st.sampled_from(["f64"] if dtype == "f64" else ["f32", "f16", "bf16"]))
            scales = draw(st.lists(st.integers(-1000, 1000), min_size=groups, max_size=groups))
            packed = (np.array(scales) / 64).astype(NUMPY[scale_dtype]).tobytes()
            points = st.lists(st.integers(0, (1 << bits) - 1), min_size=groups, max_size=groups)
            values = Affine(bits, codes, packed, draw(st.none() | points), scale_dtype, granularity)
    segment = draw(st.integers(1, count + 2))
    return tensor(name, dtype, shape, values, layout=layout, stored=stored, segment=segment, coders=coder)


@st.composite
def granularities(draw: st.DrawFn, shape: list[int]) -> tuple[dict[str, Any], int]:
    kind = draw(st.sampled_from(["tensor", "group", *(["channel"] if shape else [])]))
    if kind == "tensor":
        return {"kind": kind}, 1
    if kind == "channel":
        axis = draw(st.integers(0, len(shape) - 1))
        return {"kind": kind, "axis": axis}, shape[axis]
    size = draw(st.integers(1, 6))
    rows = int(np.prod(shape[:-1], dtype=int))
    return {"kind": kind, "size": size}, rows * -(-(shape[-1] if shape else 1) // size)

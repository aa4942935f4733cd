"""Checkpoints of bitsandbytes: weights of 4 bits, NF4 or FP4, whose scales may be 8-bit codes themselves; and of 8 bits (LLM.int8).

    weight                   u8 (ceil(elements / 2), 1)   two codes in each byte, the first in its upper half
    weight.quant_map         f32 (16,)                    what a code stands for
    weight.absmax            f32 (blocks,)                a scale for each block of elements, across rows
                             u8 (blocks,)                 or its code, and then
    weight.nested_quant_map  f32 (256,)                   what that stands for, times
    weight.nested_absmax     f32 (ceil(blocks / 256),)    one of these, plus an offset
    weight.quant_state.bitsandbytes__nf4   u8             JSON: shape, dtype, blocksize, nested_blocksize, nested_offset

They decode to scale x value in binary32, rounded to the type that the state names. Those of 8 bits are of the layer ``name``

    name.weight         i8 (out, in)
    name.SCB            f32 (out,)    the largest magnitude of each row, which is 127
    name.weight_format  u8 ()         0, in rows; older versions had other orders

and decode to f32. int8_vectorwise_dequant rounds code x SCB, and that times 1 / 127; here SCB / 127 is rounded, and that times the
code: so one in five is the neighbouring number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dcz.converters.base import first_rows
from dcz.converters.checkpoint_parts import Outlines, QuantizedTensor, Unread, expect, read_whole
from dcz.converters.safetensors_header import load_json
from dcz.errors import SourceError
from dcz.format.dtypes import DTYPES
from dcz.format.layout import MAX_RANK
from dcz.format.tensors import (
    AffineTensor,
    CodebookParameters,
    PerChannel,
    PerFlat,
    ScaledCodebookTensor,
    TensorData,
)

if TYPE_CHECKING:
    from dcz.converters.base import TensorOutline

__all__ = ["bitsandbytes_tensors"]

_STATE: Final = ".quant_state.bitsandbytes__"
_KINDS: Final = ("nf4", "fp4")
_TYPES: Final = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_MAX_STATE: Final = 1 << 16  # bytes
_MAX_BLOCK: Final = 1 << 24
_ROW_SCALES: Final = ".SCB"


@dataclass(frozen=True)
class _State:
    """What stands in the JSON."""

    shape: tuple[int, ...]
    dtype: str
    block: int
    nested_block: int
    offset: float


def bitsandbytes_tensors(config: Mapping[str, Any], outlines: Outlines) -> Iterator[QuantizedTensor]:
    """The quantized weights of a checkpoint of bitsandbytes. Raises SourceError, Unread."""
    for name in outlines:
        if name.endswith(_ROW_SCALES):
            yield _rows_tensor(name.removesuffix(_ROW_SCALES), outlines)
            continue
        if _STATE not in name:
            continue
        weight, _, kind = name.rpartition(_STATE)
        expect(kind in _KINDS, weight, f"is of the unknown kind {kind!r:.100}")
        expect(weight in outlines, weight, "has a state, and no codes")
        yield _tensor(weight, name, outlines)


def _rows_tensor(layer: str, outlines: Outlines) -> QuantizedTensor:
    """A weight of 8 bits, with a scale for each row."""
    weight, scales, form = f"{layer}.weight", f"{layer}{_ROW_SCALES}", f"{layer}.weight_format"
    expect(weight in outlines, weight, "has scales, and no codes")
    shape, dtype = outlines[weight].shape, outlines[weight].dtype.name
    expect(
        dtype == "i8" and len(shape) == 2 and min(shape) > 0, weight, f"has codes of {dtype} {list(shape)}"
    )
    found = outlines[scales]
    expect(
        found.dtype.name == "f32" and found.shape == shape[:1],
        weight,
        f"has scales of {found.dtype.name} {list(found.shape)}, not of f32 {list(shape[:1])}",
    )
    parts = [weight, scales]
    if form in outlines:
        size = math.prod(outlines[form].shape)
        expect(
            outlines[form].dtype.name == "u8" and size == 1, weight, f"has a weight_format of {size} numbers"
        )
        if read_whole(outlines[form]).item() != 0:
            raise Unread(
                f"of bitsandbytes, dcz reads weights of 8 bits in rows, not in the order of {form!r:.200}"
            )
        parts.append(form)
    read = functools.partial(_read_rows, outlines[weight], found)
    return QuantizedTensor(weight, DTYPES["f32"], shape, tuple(parts), read)


def _read_rows(weight: TensorOutline, scales: TensorOutline, start: int, stop: int) -> TensorData:
    codes = weight.read(start, stop)
    assert isinstance(codes, np.ndarray)
    steps = (read_whole(scales)[start:stop].astype(np.float64) / 127).astype(np.float32)
    return AffineTensor(
        "f32", codes.shape, 8, codes.reshape(-1).view(np.uint8) ^ np.uint8(128), steps, PerChannel(axis=0)
    )


def _state(weight: str, name: str, outlines: Outlines) -> _State:
    outline = outlines[name]
    size = math.prod(outline.shape)
    expect(outline.dtype.name == "u8" and 0 < size <= _MAX_STATE, weight, f"has a state of {size} bytes")
    try:
        fields = load_json(read_whole(outline).tobytes())
    except ValueError as exc:
        raise SourceError(
            f"the quantized tensor {weight!r} has a state that is not valid JSON: {exc}"
        ) from exc
    expect(isinstance(fields, dict), weight, "has a state that is no JSON object")
    shape = fields.get("shape")
    whole = isinstance(shape, list) and all(type(each) is int and 0 < each < 1 << 48 for each in shape)
    expect(whole and 0 < len(shape) <= MAX_RANK, weight, f"has the shape {shape!r:.100}")
    dtype = fields.get("dtype")
    expect(isinstance(dtype, str) and dtype in _TYPES, weight, f"is of the type {dtype!r:.100}")
    blocks = [fields.get("blocksize"), fields.get("nested_blocksize", 1)]
    fine = all(type(each) is int and 0 < each <= _MAX_BLOCK for each in blocks)
    expect(fine, weight, f"has blocks of {blocks[0]!r:.50} and {blocks[1]!r:.50}")
    offset = fields.get("nested_offset", 0.0)
    expect(type(offset) in (int, float) and abs(offset) < 3e38, weight, f"has the offset {offset!r:.50}")
    return _State(tuple(shape), _TYPES[dtype], blocks[0], blocks[1], float(np.float32(offset)))


def _tensor(weight: str, name: str, outlines: Outlines) -> QuantizedTensor:
    state = _state(weight, name, outlines)
    packed, elements = outlines[weight], math.prod(state.shape)
    expect(
        packed.dtype.itemsize * math.prod(packed.shape) == -(-elements // 2),
        weight,
        f"has codes of the shape {list(packed.shape)} for the shape {list(state.shape)}",
    )
    blocks = -(-elements // state.block)
    wanted = {"absmax": blocks, "quant_map": 16}
    nested = f"{weight}.nested_absmax" in outlines
    if nested:
        wanted |= {"nested_absmax": -(-blocks // state.nested_block), "nested_quant_map": 256}
    for part, count in wanted.items():
        found = outlines.get(f"{weight}.{part}")
        expect(found is not None, weight, f"has no {weight}.{part}")
        assert found is not None
        kind = "u8" if nested and part == "absmax" else "f32"
        expect(
            found.dtype.name == kind and found.shape == (count,),
            weight,
            f"has a {part} of {found.dtype.name} {list(found.shape)}, not of {kind} {[count]}",
        )
    parts = (weight, name, *(f"{weight}.{part}" for part in wanted))
    read = functools.partial(_read, weight, state, nested, outlines)
    return QuantizedTensor(weight, DTYPES[state.dtype], state.shape, parts, read)


def _read(weight: str, state: _State, nested: bool, outlines: Outlines, start: int, stop: int) -> TensorData:
    """The first rows, as many as are wanted: others would begin within a block."""
    elements = math.prod(state.shape)
    octets = read_whole(outlines[weight]).reshape(-1).view(np.uint8)
    codes = np.stack([octets >> np.uint8(4), octets & np.uint8(15)], axis=1).reshape(-1)[:elements]
    scales: np.ndarray | CodebookParameters = read_whole(outlines[f"{weight}.absmax"])
    if nested:
        assert isinstance(scales, np.ndarray)
        table = read_whole(outlines[f"{weight}.nested_quant_map"])
        supers = read_whole(outlines[f"{weight}.nested_absmax"])
        scales = CodebookParameters(scales, 8, table, supers, state.nested_block, state.offset)
    tensor = ScaledCodebookTensor(
        state.dtype,
        state.shape,
        4,
        codes,
        read_whole(outlines[f"{weight}.quant_map"]),
        scales,
        PerFlat(size=state.block),
    )
    return first_rows(tensor, stop - start)

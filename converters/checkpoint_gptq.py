"""Checkpoints of GPTQ and AWQ: codes of the weights' transposed, packed into words of 32 bits.

    GPTQ    qweight  i32 (in x bits / 32, out)   a column is a sequence of bits, the codes of an output
            qzeros   i32 (groups, out x bits / 32)   a row is one; in the first version of the format, less 1
            scales   (groups, out);  g_idx  i32 (in,)   the group of each input
    AWQ     qweight  i32 (in, out / 8),  qzeros  i32 (groups, out / 8),  scales  (groups, out)
            4 bits; in each word the outputs stand in the order 0, 2, 4, 6, 1, 3, 5, 7 ("GEMM")

What both decode to is scale x (code - zero point), in the type of the scales (AutoGPTQ 0.7.1, qlinear_cuda_old; AutoAWQ 0.2.9,
packing_utils). A stored zero point that has all bits set is 0 with 2, 4 and 8 bits, and 8 with 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from dcz.converters.checkpoint_parts import (
    Outlines,
    QuantizedTensor,
    Unread,
    expect,
    field_of,
    read_whole,
    unpacked_bits,
    zero_points_of,
)
from dcz.errors import SourceError
from dcz.format.tensors import AffineTensor, Indexed, PerChannel, PerGroup

if TYPE_CHECKING:
    from dcz.format.tensors import GranularityLike, TensorData

__all__ = ["awq_tensors", "gptq_tensors"]

_WEIGHT: Final = ".qweight"
_GPTQ_BITS: Final = (2, 3, 4, 8)
_AWQ_BITS: Final = 4
_AWQ_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the outputs 0 to 7 stand
_FLOATS: Final = ("f32", "f16", "bf16")


class _Module(NamedTuple):
    """The parts of a module, and what follows from their shapes."""

    name: str
    qweight: str
    qzeros: str
    scales: str
    g_idx: str | None
    inputs: int
    outputs: int
    groups: int


def _modules(
    outlines: Outlines, pack: Callable[[str, tuple[int, ...], int], tuple[int, int, int]], bits: int
) -> Iterator[_Module]:
    """``pack``: of the shape of qweight and the bits, the inputs, the outputs, and the words of a row of zero points."""
    for qweight, outline in outlines.items():
        if not qweight.endswith(_WEIGHT):
            continue
        module = qweight.removesuffix(_WEIGHT)
        name, qzeros, scales = f"{module}.weight", f"{module}.qzeros", f"{module}.scales"
        expect(name not in outlines, name, "is there twice: as codes and as it is")
        expect(
            outline.dtype.name == "i32" and len(outline.shape) == 2, name, "has no codes in words of 32 bits"
        )
        for part in (qzeros, scales):
            expect(part in outlines, name, f"has no {part}")
        inputs, outputs, words = pack(name, outline.shape, bits)
        shape = outlines[scales].shape
        expect(
            outlines[scales].dtype.name in _FLOATS and len(shape) == 2 and shape[1] == outputs,
            name,
            f"has scales of the shape {list(shape)} for {outputs} outputs",
        )
        groups = shape[0]
        expect(min(inputs, outputs, groups) > 0, name, "is empty")
        zeros = outlines[qzeros]
        expect(
            zeros.dtype.name == "i32" and zeros.shape == (groups, words),
            name,
            f"has zero points of the shape {list(zeros.shape)}, not {[groups, words]}",
        )
        g_idx = f"{module}.g_idx"
        yield _Module(
            name, qweight, qzeros, scales, g_idx if g_idx in outlines else None, inputs, outputs, groups
        )


def _group_size(config: Mapping[str, Any]) -> int:
    size: int = field_of(config, "group_size", int)
    if size != -1 and not 1 <= size <= 1 << 24:
        raise SourceError(f"in the quantization_config, group_size is {size}")
    return size


def _granularity(module: _Module, size: int) -> GranularityLike:
    size = module.inputs if size == -1 else size
    needed = -(-module.inputs // size)
    expect(
        module.groups == needed,
        module.name,
        f"has {module.groups} groups of {size} for {module.inputs} inputs",
    )
    return PerChannel(axis=0) if needed == 1 else PerGroup(size=size)


def gptq_tensors(config: Mapping[str, Any], outlines: Outlines) -> Iterator[QuantizedTensor]:
    """The modules of a checkpoint of GPTQ. Raises SourceError, Unread."""
    bits = field_of(config, "bits", int)
    if bits not in _GPTQ_BITS:
        raise Unread(f"of GPTQ, dcz reads codes of 2, 3, 4 and 8 bits, not of {bits}")
    form = field_of(config, "checkpoint_format", str, "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise Unread(f"of GPTQ, dcz reads the checkpoint formats gptq and gptq_v2, not {form!r:.100}")
    size = _group_size(config)

    def pack(name: str, shape: tuple[int, ...], bits: int) -> tuple[int, int, int]:
        expect(shape[0] * 32 % bits == 0, name, f"has rows of {shape[0]} words for codes of {bits} bits")
        return shape[0] * 32 // bits, shape[1], -(-shape[1] * bits // 32)

    for module in _modules(outlines, pack, bits):
        indexed = module.g_idx
        if indexed is not None:
            found = outlines[indexed]
            expect(found.dtype.name == "i32", module.name, f"has a g_idx of {found.dtype.name}")
            short = len(found.shape) == 1 and module.inputs - 32 < found.shape[0] <= module.inputs
            expect(
                short, module.name, f"has a g_idx of the shape {list(found.shape)} for {module.inputs} inputs"
            )
            module = module._replace(inputs=found.shape[0])
        read = functools.partial(_gptq, module, bits, size, form == "gptq", outlines)
        dtype = outlines[module.scales].dtype
        parts = (module.qweight, module.qzeros, module.scales, *([indexed] if indexed is not None else []))
        yield QuantizedTensor(module.name, dtype, (module.outputs, module.inputs), parts, read)


def _gptq(
    module: _Module, bits: int, size: int, less_one: bool, outlines: Outlines, start: int, stop: int
) -> TensorData:
    words = read_whole(outlines[module.qweight])[:, start:stop].T
    codes = unpacked_bits(words, bits, module.inputs)
    zeros = unpacked_bits(read_whole(outlines[module.qzeros]), bits, module.outputs)[:, start:stop]
    if less_one:
        zeros = (zeros + np.uint8(1)) & np.uint8(15 if bits == 3 else (1 << bits) - 1)
    granularity = _gptq_granularity(module, size, outlines)
    return _affine(module, bits, codes, zeros, granularity, outlines, start, stop)


def _gptq_granularity(module: _Module, size: int, outlines: Outlines) -> GranularityLike:
    if module.g_idx is not None:
        index = read_whole(outlines[module.g_idx])
        expect(
            int(index.min()) >= 0 and int(index.max()) < module.groups,
            module.name,
            f"has a g_idx from {index.min()} to {index.max()} for {module.groups} groups",
        )
        step = module.inputs if size == -1 else size
        if bool((index != np.arange(module.inputs) // step).any()):
            expect(module.groups <= 1 << 16, module.name, f"has {module.groups} groups")
            return Indexed(index.astype(np.uint16), module.groups)
    return _granularity(module, size)


def _affine(
    module: _Module,
    bits: int,
    codes: np.ndarray,
    zeros: np.ndarray,
    granularity: GranularityLike,
    outlines: Outlines,
    start: int,
    stop: int,
) -> AffineTensor:
    """``codes``: (outputs, inputs); ``zeros``: (groups, outputs)."""
    scales = read_whole(outlines[module.scales])[:, start:stop]
    return AffineTensor(
        outlines[module.scales].dtype.name,
        (stop - start, module.inputs),
        bits,
        np.ascontiguousarray(codes).reshape(-1),
        np.ascontiguousarray(scales.T).reshape(-1),
        granularity,
        zero_points_of(np.ascontiguousarray(zeros.T).reshape(-1), bits),
    )


def awq_tensors(config: Mapping[str, Any], outlines: Outlines) -> Iterator[QuantizedTensor]:
    """The modules of a checkpoint of AWQ. Raises SourceError, Unread."""
    bits = field_of(config, "bits", int, config.get("w_bit"))
    if bits != _AWQ_BITS:
        raise Unread(f"of AWQ, dcz reads codes of 4 bits, not of {bits}")
    version = field_of(config, "version", str, "gemm").lower()
    if version != "gemm":
        raise Unread(f"of AWQ, dcz reads the version gemm, not {version!r:.100}")
    size = _group_size(config if "group_size" in config else {"group_size": config.get("q_group_size")})

    def pack(name: str, shape: tuple[int, ...], bits: int) -> tuple[int, int, int]:
        return shape[0], shape[1] * 32 // bits, shape[1]

    for module in _modules(outlines, pack, bits):
        granularity = _granularity(module, size)
        read = functools.partial(_awq, module, granularity, outlines)
        dtype, parts = outlines[module.scales].dtype, (module.qweight, module.qzeros, module.scales)
        yield QuantizedTensor(module.name, dtype, (module.outputs, module.inputs), parts, read)


def _awq(
    module: _Module, granularity: GranularityLike, outlines: Outlines, start: int, stop: int
) -> TensorData:
    first, last = start // 8, -(-stop // 8)  # words
    kept = slice(start - 8 * first, stop - 8 * first)
    codes = _outputs(read_whole(outlines[module.qweight])[:, first:last])[:, kept]
    zeros = _outputs(read_whole(outlines[module.qzeros])[:, first:last])[:, kept]
    return _affine(module, _AWQ_BITS, codes.T, zeros, granularity, outlines, start, stop)


def _outputs(words: np.ndarray) -> np.ndarray:
    """The codes of the outputs in their order, (rows, outputs)."""
    codes = unpacked_bits(words, _AWQ_BITS, words.shape[1] * 8).reshape(len(words), -1, 8)
    return codes[:, :, _AWQ_PLACES].reshape(len(words), -1)

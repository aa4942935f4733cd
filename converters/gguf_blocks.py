"""The types of GGUF's tensors: from their blocks to codes and parameters, and back.

A quantized tensor is a sequence of blocks of 32 or 256 elements, which lie in its rows. In a block stand the codes of its
elements, bits of them apart from others, and scales. Nothing here computes with floating-point numbers: what was a code stays
one, and what was a scale too, so that packing gives the same bytes again.

Layouts: ggml's ggml-common.h and ggml-quants.c; names and sizes: the GGUF specification (ggml/docs/gguf.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from dcz.format.dtypes import DTYPES
from dcz.format.tensors import (
    AffineParameters,
    AffineTensor,
    CodebookParameters,
    PerGroup,
    ScaledCodebookTensor,
    TensorData,
)

__all__ = ["BLOCK_TYPES", "UNSUPPORTED", "BlockType"]

Shape: TypeAlias = tuple[int, ...]
_F16: Final = np.dtype("<f2")
_SIGN: Final = np.uint8(0x80)


class _Bits(NamedTuple):
    """Some bits of a block's codes: ``size`` bytes from ``offset`` on. A run of ``run`` bytes holds the lowest ``bits`` of that many
    codes, then the next higher ones of those that follow, and so on. In a code they stand ``shift`` bits up."""

    offset: int
    size: int
    bits: int
    run: int
    shift: int = 0


def _unpack(blocks: np.ndarray, parts: Sequence[_Bits]) -> np.ndarray:
    """The codes of all blocks, (blocks x codes of one,) uint8."""
    codes: np.ndarray | None = None
    for offset, size, bits, run, shift in parts:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
        packed = blocks[:, offset : offset + size].reshape(len(blocks), -1, 1, run)
        part = packed >> shifts
        part &= np.uint8((1 << bits) - 1)
        part <<= np.uint8(shift)
        flat = part.reshape(-1)
        codes = flat if codes is None else np.bitwise_or(codes, flat, out=codes)
    assert codes is not None
    return codes


def _pack(blocks: np.ndarray, codes: np.ndarray, parts: Sequence[_Bits]) -> None:
    """Put the codes into the blocks."""
    for offset, size, bits, run, shift in parts:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
        part = codes.reshape(len(blocks), -1, 8 // bits, run) >> np.uint8(shift)
        part &= np.uint8((1 << bits) - 1)
        part <<= shifts
        blocks[:, offset : offset + size] = np.bitwise_or.reduce(part, axis=2).reshape(len(blocks), size)


class _Codes(NamedTuple):
    """How codes stand in a block."""

    bits: int
    unpack: Callable[[np.ndarray], np.ndarray]
    pack: Callable[[np.ndarray, np.ndarray], None]
    levels: int = 256
    """Codes are below this; fewer than the bits allow where bytes have several forms."""


def _in(bits: int, *parts: _Bits) -> _Codes:
    return _Codes(bits, functools.partial(_unpack, parts=parts), functools.partial(_pack, parts=parts))


def _signed(offset: int, size: int) -> _Codes:
    """Bytes of two's complement, as codes with the zero point 128."""

    def unpack(blocks: np.ndarray) -> np.ndarray:
        return np.asarray((blocks[:, offset : offset + size] ^ _SIGN).reshape(-1))

    def pack(blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[:, offset : offset + size] = codes.reshape(len(blocks), size) ^ _SIGN

    return _Codes(8, unpack, pack)


def _six_bits(offset: int, first: int) -> _Codes:
    """Eight codes of 6 bits of the k-quants: four in the low bits of the bytes from ``first`` on, four in nibbles of the last
    four bytes, with their upper two bits above those of the others. ``first``: 0 for scales, 4 for minimums."""
    low, nibbles = offset + first, offset + 8

    def unpack(blocks: np.ndarray) -> np.ndarray:
        head = blocks[:, low : low + 4]
        tail = (blocks[:, nibbles : nibbles + 4] >> np.uint8(first)) & np.uint8(15)
        return np.concatenate(
            [head & np.uint8(63), tail | ((head >> np.uint8(2)) & np.uint8(48))], axis=1
        ).reshape(-1)

    def pack(blocks: np.ndarray, codes: np.ndarray) -> None:
        head, tail = codes.reshape(-1, 2, 4).swapaxes(0, 1)
        blocks[:, low : low + 4] = head | ((tail >> np.uint8(4)) << np.uint8(6))
        blocks[:, nibbles : nibbles + 4] |= (tail & np.uint8(15)) << np.uint8(first)

    return _Codes(6, unpack, pack)


def _nibbles(offset: int, size: int, shift: int) -> _Codes:
    """One half of each byte: the lower one, or with a ``shift`` of 4 the upper one."""

    def unpack(blocks: np.ndarray) -> np.ndarray:
        return np.asarray(((blocks[:, offset : offset + size] >> np.uint8(shift)) & np.uint8(15)).reshape(-1))

    def pack(blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[:, offset : offset + size] |= codes.reshape(len(blocks), size) << np.uint8(shift)

    return _Codes(4, unpack, pack)


def _trits() -> _Codes:
    """Five codes of three values in a byte, the first in the highest place of a number in base 3, which is stored as a
    fraction of 256: a digit is what passes 256 when the fraction is multiplied by 3. (TQ1_0; the last 4 bytes hold four.)"""
    places = ((0, 32, 5), (32, 16, 5), (48, 4, 4))  # offset, bytes, codes in each

    def unpack(blocks: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = []
        for offset, size, count in places:
            fraction = blocks[:, offset : offset + size].astype(np.uint16)
            for _ in range(count):
                fraction *= np.uint16(3)
                found.append((fraction >> np.uint16(8)).astype(np.uint8))
                fraction &= np.uint16(255)
        return np.concatenate(found, axis=1).reshape(-1)

    def pack(blocks: np.ndarray, codes: np.ndarray) -> None:
        rows, at = codes.reshape(len(blocks), -1), 0
        for offset, size, count in places:
            number = np.zeros((len(blocks), size), np.uint32)
            for j in range(5):
                number *= np.uint32(3)
                if j < count:
                    number += rows[:, at : at + size]
                    at += size
            blocks[:, offset : offset + size] = (number * np.uint32(256) + np.uint32(242)) // np.uint32(243)

    return _Codes(2, unpack, pack, levels=3)


def _halves(blocks: np.ndarray, offset: int) -> np.ndarray:
    """The f16 at ``offset`` of each block, (blocks,)."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).reshape(-1).view(_F16)


def _put_halves(blocks: np.ndarray, offset: int, values: np.ndarray) -> None:
    blocks[:, offset : offset + 2] = np.ascontiguousarray(values, _F16).view(np.uint8).reshape(-1, 2)


def _negated(halves: np.ndarray) -> np.ndarray:
    """With the other sign, of any bits."""
    return (halves.view("<u2") ^ np.uint16(0x8000)).view(_F16)


@dataclass(frozen=True)
class BlockType:
    """A type of GGUF: ``elements`` of a block, and its ``size`` in bytes. ``dtype``: of the tensors that come of it."""

    name: str
    number: int
    elements: int
    size: int
    dtype: str = "f32"

    @property
    def several_forms(self) -> bool:
        """Whether different blocks may unpack to the same codes and parameters."""
        return False

    def unpack(self, data: np.ndarray, shape: Shape) -> TensorData:
        """The tensor whose blocks are ``data``: uint8, contiguous, as many as ``shape`` needs.

        Raises EncodingError if a scale is not finite.
        """
        return data.view(DTYPES[self.dtype].numpy).reshape(shape)

    def pack(self, tensor: TensorData) -> np.ndarray | None:
        """The blocks of which ``unpack`` would make this very tensor, uint8; None if there are none."""
        if not isinstance(tensor, np.ndarray) or tensor.dtype != DTYPES[self.dtype].numpy:
            return None
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


@dataclass(frozen=True, kw_only=True)
class _Quantized(BlockType):
    codes: _Codes
    scale_at: int = 0
    zero_point: int = 0
    minimum_at: int | None = None
    group: int = 0
    """Elements that share a scale; 0 for all of the block."""
    scales: _Codes | None = None
    """Of the scales of the groups, with the one at ``scale_at`` as their own scale."""
    scale_zero: int = 0
    minimums: _Codes | None = None
    table: tuple[int, ...] | None = None
    """What the codes stand for, if it is not themselves."""

    @property
    def several_forms(self) -> bool:
        return self.codes.levels < 1 << self.codes.bits

    def unpack(self, data: np.ndarray, shape: Shape) -> TensorData:
        blocks = data.reshape(-1, self.size)
        granularity = PerGroup(size=self.group or self.elements)
        codes, bits = self.codes.unpack(blocks), self.codes.bits
        scales = self._parameters(blocks, self.scales, _halves(blocks, self.scale_at), self.scale_zero)
        if self.table is not None:
            return ScaledCodebookTensor(
                "f32", shape, bits, codes, np.array(self.table, np.float32), scales, granularity
            )
        minimums = None
        if self.minimum_at is not None:
            # A minimum is added here, and subtracted there if it has a code.
            halves = _halves(blocks, self.minimum_at)
            halves = halves if self.minimums is None else _negated(halves)
            minimums = self._parameters(blocks, self.minimums, halves, 0)
        middle = self.zero_point == 1 << (bits - 1)
        return AffineTensor(
            "f32",
            shape,
            bits,
            codes,
            scales,
            granularity,
            zero_points=None if middle else self.zero_point,
            minimums=minimums,
        )

    def _parameters(
        self, blocks: np.ndarray, codes: _Codes | None, halves: np.ndarray, zero_point: int
    ) -> np.ndarray | AffineParameters:
        if codes is None:
            return halves
        return AffineParameters(
            codes.unpack(blocks), codes.bits, halves, self.elements // self.group, zero_point
        )

    def pack(self, tensor: TensorData) -> np.ndarray | None:
        granularity = PerGroup(size=self.group or self.elements)
        if isinstance(tensor, np.ndarray) or tensor.dtype != "f32" or tensor.shape[-1:] == ():
            return None
        if tensor.shape[-1] % self.elements or tensor.bits != self.codes.bits:
            return None
        if isinstance(tensor, AffineTensor):
            points = 1 << (tensor.bits - 1) if tensor.zero_points is None else tensor.zero_points
            if self.table is not None or isinstance(points, np.ndarray) or points != self.zero_point:
                return None
            minimums = tensor.minimums
        elif isinstance(tensor, ScaledCodebookTensor):
            if self.table is None or not np.array_equal(tensor.table, np.array(self.table, np.float32)):
                return None
            minimums = None
        else:
            return None
        if tensor.granularity != granularity or tensor.mask is not None:
            return None
        if (minimums is None) != (self.minimum_at is None):
            return None
        if int(tensor.codes.max()) >= self.codes.levels:
            return None
        blocks = np.zeros((tensor.codes.size // self.elements, self.size), np.uint8)
        self.codes.pack(blocks, tensor.codes.reshape(-1))
        if not self._put(blocks, self.scale_at, tensor.scales, self.scales, self.scale_zero):
            return None
        if minimums is not None:
            assert self.minimum_at is not None
            if not self._put(blocks, self.minimum_at, minimums, self.minimums, 0):
                return None
            if self.minimums is not None:
                _put_halves(blocks, self.minimum_at, _negated(_halves(blocks, self.minimum_at)))
        return blocks.reshape(-1)

    def _put(
        self,
        blocks: np.ndarray,
        at: int,
        parameters: np.ndarray | AffineParameters | CodebookParameters,
        codes: _Codes | None,
        zero_point: int,
    ) -> bool:
        """Put the parameters of all groups into the blocks; False if they are not such as stand there."""
        if codes is not None:
            if not isinstance(parameters, AffineParameters):
                return False
            kind = (parameters.bits, parameters.group, parameters.zero_point)
            if kind != (codes.bits, self.elements // self.group, zero_point):
                return False
            codes.pack(blocks, parameters.codes)
            parameters = parameters.scales
        if not isinstance(parameters, np.ndarray) or parameters.dtype != _F16:
            return False
        _put_halves(blocks, at, parameters)
        return True


@dataclass(frozen=True)
class _Microscaled(BlockType):
    """Blocks with one exponent, a byte, and a table of 16 values (OCP microscaling; the values doubled and the scale halved)."""

    def unpack(self, data: np.ndarray, shape: Shape) -> TensorData:
        blocks = data.reshape(-1, self.size)
        exponents = np.ascontiguousarray(blocks[:, 0])
        first, last = int(exponents.min()), int(exponents.max())
        scales = CodebookParameters(
            exponents - np.uint8(first),
            max(1, (last - first).bit_length()),
            _HALF_POWERS[first : last + 1],
            np.ones(-(-exponents.size // _ONE_SCALE), np.float32),
            _ONE_SCALE,
        )
        return ScaledCodebookTensor(
            "f32", shape, 4, _unpack(blocks, _MX_CODES), _MX_TABLE, scales, PerGroup(size=self.elements)
        )

    def pack(self, tensor: TensorData) -> np.ndarray | None:
        if not isinstance(tensor, ScaledCodebookTensor) or not isinstance(tensor.scales, CodebookParameters):
            return None
        scales = tensor.scales
        same = tensor.bits == 4 and np.array_equal(tensor.table, _MX_TABLE) and tensor.mask is None
        if not same or tensor.dtype != "f32" or tensor.granularity != PerGroup(size=self.elements):
            return None
        if tensor.shape[-1] % self.elements or scales.offset is not None or bool((scales.scales != 1).any()):
            return None
        exponents = np.searchsorted(_HALF_POWERS, scales.table)
        if not np.array_equal(_HALF_POWERS[np.minimum(exponents, 255)], scales.table):
            return None
        blocks = np.zeros((tensor.codes.size // self.elements, self.size), np.uint8)
        blocks[:, 0] = exponents.astype(np.uint8)[scales.codes]
        _pack(blocks, tensor.codes.reshape(-1), _MX_CODES)
        return blocks.reshape(-1)


_ONE_SCALE: Final = 1 << 24  # groups that share a scale which is 1
_HALF_POWERS: Final = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)
_MX_TABLE: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_MX_CODES: Final = (_Bits(1, 16, 4, 16),)
_NON_LINEAR: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


BLOCK_TYPES: Final[dict[int, BlockType]] = {
    row.number: row
    for row in (
        BlockType("F32", 0, 1, 4, "f32"),
        BlockType("F16", 1, 1, 2, "f16"),
        BlockType("I8", 24, 1, 1, "i8"),
        BlockType("I16", 25, 1, 2, "i16"),
        BlockType("I32", 26, 1, 4, "i32"),
        BlockType("I64", 27, 1, 8, "i64"),
        BlockType("F64", 28, 1, 8, "f64"),
        BlockType("BF16", 30, 1, 2, "bf16"),
        _Quantized("Q4_0", 2, 32, 18, codes=_in(4, _Bits(2, 16, 4, 16)), zero_point=8),
        _Quantized("Q4_1", 3, 32, 20, codes=_in(4, _Bits(4, 16, 4, 16)), minimum_at=2),
        _Quantized("Q5_0", 6, 32, 22, codes=_in(5, _Bits(6, 16, 4, 16), _Bits(2, 4, 1, 1, 4)), zero_point=16),
        _Quantized("Q5_1", 7, 32, 24, codes=_in(5, _Bits(8, 16, 4, 16), _Bits(4, 4, 1, 1, 4)), minimum_at=2),
        _Quantized("Q8_0", 8, 32, 34, codes=_signed(2, 32), zero_point=128),
        _Quantized(
            "Q2_K",
            10,
            256,
            84,
            codes=_in(2, _Bits(16, 64, 2, 32)),
            scale_at=80,
            minimum_at=82,
            group=16,
            scales=_nibbles(0, 16, 0),
            minimums=_nibbles(0, 16, 4),
        ),
        _Quantized(
            "Q3_K",
            11,
            256,
            110,
            codes=_in(3, _Bits(32, 64, 2, 32), _Bits(0, 32, 1, 32, 2)),
            scale_at=108,
            zero_point=4,
            group=16,
            scales=_in(6, _Bits(96, 8, 4, 8), _Bits(104, 4, 2, 4, 4)),
            scale_zero=32,
        ),
        _Quantized(
            "Q4_K",
            12,
            256,
            144,
            codes=_in(4, _Bits(16, 128, 4, 32)),
            minimum_at=2,
            group=32,
            scales=_six_bits(4, 0),
            minimums=_six_bits(4, 4),
        ),
        _Quantized(
            "Q5_K",
            13,
            256,
            176,
            codes=_in(5, _Bits(48, 128, 4, 32), _Bits(16, 32, 1, 32, 4)),
            minimum_at=2,
            group=32,
            scales=_six_bits(4, 0),
            minimums=_six_bits(4, 4),
        ),
        _Quantized(
            "Q6_K",
            14,
            256,
            210,
            codes=_in(6, _Bits(0, 128, 4, 64), _Bits(128, 64, 2, 32, 4)),
            scale_at=208,
            zero_point=32,
            group=16,
            scales=_signed(192, 16),
            scale_zero=128,
        ),
        _Quantized("IQ4_NL", 20, 32, 18, codes=_in(4, _Bits(2, 16, 4, 16)), table=_NON_LINEAR),
        _Quantized(
            "IQ4_XS",
            23,
            256,
            136,
            codes=_in(4, _Bits(8, 128, 4, 16)),
            group=32,
            scales=_in(6, _Bits(4, 4, 4, 1), _Bits(2, 2, 2, 1, 4)),
            scale_zero=32,
            table=_NON_LINEAR,
        ),
        _Quantized("TQ1_0", 34, 256, 54, codes=_trits(), scale_at=52, zero_point=1),
        _Quantized("TQ2_0", 35, 256, 66, codes=_in(2, _Bits(0, 64, 2, 32)), scale_at=64, zero_point=1),
        _Microscaled("MXFP4", 39, 32, 17),
    )
}

UNSUPPORTED: Final[dict[int, str]] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    40: "NVFP4",
    41: "Q1_0",
}
"""Types that have a name, for the error."""

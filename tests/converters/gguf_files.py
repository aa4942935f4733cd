"""GGUF files made by the gguf package, with blocks of any bits."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

__all__ = ["QUANTIZED", "dequantized", "random_blocks", "write_gguf_file"]

# Where the f16 of a block stand, in bytes from its start (ggml-common.h).
QUANTIZED: Final[dict[str, tuple[int, ...]]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),
}
_ODD: Final = (0.0, -0.0, 65504.0, -65504.0, 6e-8, -6e-8, 1.0)


def random_blocks(name: str, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Blocks of a tensor of (rows, columns): any codes, and scales of all magnitudes, odd ones first; (rows, bytes of a row)."""
    elements, size = gguf.GGML_QUANT_SIZES[Type[name]]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    count = rows * columns // elements
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in QUANTIZED[name]:
        scales = np.ldexp(random.standard_normal(count), random.integers(-20, 10, count)).astype("<f2")
        scales[: len(_ODD)] = random.permutation(np.array(_ODD, "<f2"))[:count]
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    if name == "TQ1_0":  # bytes as ggml writes them
        trits = random.integers(0, 243, (count, 52), dtype=np.uint16)
        trits[:, 48:] = trits[:, 48:] // 3 * 3
        blocks[:, :52] = (trits * 256 + 242) // 243
    return blocks.reshape(rows, -1)


def dequantized(name: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the gguf package makes of them, (rows, columns)."""
    with np.errstate(all="ignore"):
        found: npt.NDArray[np.float32] = gguf.dequantize(blocks, Type[name])
    return found


def write_gguf_file(
    path: Path, tensors: Mapping[str, tuple[str, np.ndarray]], values: Sequence[tuple[str, Any]] = ()
) -> None:
    """A file of the architecture ``toy``. ``tensors``: name -> type and bytes (uint8, rows of blocks) or elements.
    ``values``: keys and texts, numbers or lists."""
    writer = gguf.GGUFWriter(str(path), "toy")
    for key, value in values:
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""Memory to decode into."""

from __future__ import annotations

import numpy as np

__all__ = ["CACHE_LINE", "aligned_bytes"]

CACHE_LINE = 64  # bytes; a decoder that goes around the caches fills whole lines


def aligned_bytes(size: int, alignment: int = CACHE_LINE) -> np.ndarray:
    """``size`` uninitialized bytes (uint8) whose address is a multiple of ``alignment``."""
    memory = np.empty(size + alignment, np.uint8)
    skip = -memory.ctypes.data % alignment
    return memory[skip : skip + size]

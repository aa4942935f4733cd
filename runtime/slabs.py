"""Memory for many tensors at once.

What limits the loading of a model is often not the decoder but the kernel, which has to hand out a page for every
4 KiB that are written for the first time. numpy asks for huge pages, of 2 MiB, for allocations of 4 MiB and more; so
small tensors are put into slabs of that kind, and only large ones get an allocation of their own.

A slab lives as long as any of its tensors. It is small enough that this does not keep much alive.

Even of huge pages, all at once are had sooner than one by one between other work: where it is known that all of the
memory is going to be filled, several threads ask for it first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from dcz import _native
from dcz.format.memory import CACHE_LINE, aligned_bytes
from dcz.format.parallel import run

if TYPE_CHECKING:
    from dcz.format.dtypes import DType

__all__ = ["allocate"]

_SLAB: Final = 64 << 20
_LARGE: Final = 16 << 20
_HUGE_PAGE: Final = 2 << 20
_POPULATED_AT_ONCE: Final = 32 << 20


def allocate(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], populate: int = 0
) -> dict[str, np.ndarray]:
    """An uninitialized, contiguous, aligned array for each (name, element type, shape).

    ``populate``: the threads that give the memory its pages at once; 0 leaves that to whoever writes to it.
    """
    arrays: dict[str, np.ndarray] = {}
    whole: list[np.ndarray] = []
    waiting: list[tuple[str, DType, tuple[int, ...], int]] = []
    used = 0

    def place() -> None:
        nonlocal used
        slab = aligned_bytes(used, _HUGE_PAGE if used >= _HUGE_PAGE else CACHE_LINE)
        whole.append(slab)
        for name, dtype, shape, start in waiting:
            size = math.prod(shape) * dtype.itemsize
            arrays[name] = slab[start : start + size].view(dtype.numpy).reshape(shape)
        waiting.clear()
        used = 0

    for name, dtype, shape in tensors:
        size = math.prod(shape) * dtype.itemsize
        arrays[name] = np.empty(0)  # keeps the order; replaced below
        if size >= _LARGE:
            memory = aligned_bytes(size, _HUGE_PAGE)
            arrays[name] = memory.view(dtype.numpy).reshape(shape)
            whole.append(memory)
            continue
        if used + size > _SLAB:
            place()
        waiting.append((name, dtype, shape, used))
        used += -(-size // CACHE_LINE) * CACHE_LINE
    place()
    if populate:
        step = _POPULATED_AT_ONCE
        run(
            _populate,
            (memory[at : at + step] for memory in whole for at in range(0, memory.size, step)),
            populate,
        )
    return arrays


def _populate(memory: np.ndarray) -> int:
    _native.populate(memory)
    return memory.size

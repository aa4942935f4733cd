"""What callers mix up: tensors of torch for arrays, and numbers that are not whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcz.compression.torch_tensors import is_tensor
from dcz.errors import UsageError

__all__ = ["check_array", "is_whole"]


def check_array(values: Any, what: str) -> None:
    """Raises UsageError if this is no numpy array; says of a tensor of torch how it becomes one."""
    if not isinstance(values, np.ndarray | np.generic):
        raise UsageError(
            f"{what} are a numpy array, not a {type(values).__name__}",
            hint="tensor.detach().cpu().numpy()" if is_tensor(values) else "numpy.array(..., numpy.float32)",
        )


def is_whole(number: Any, least: int, most: int) -> bool:
    """Whether it is an integer, of Python or numpy, from ``least`` to ``most``."""
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return whole and bool(least <= number <= most)

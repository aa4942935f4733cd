"""Small real .dcz files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dcz.format import Writer

MakeDcz = Callable[..., Path]


def write_dcz(path: Path, seed: int = 0, elements: int = 2000) -> Path:
    """A small valid .dcz whose content depends on ``seed``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).standard_normal(elements).astype(np.float32)
    with Writer(path, metadata={"seed": str(seed)}, threads=1) as writer:
        writer.add_tensor("weight", values)
    return path

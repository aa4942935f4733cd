"""How progress is told. Imports nothing that is slow to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "steps"]

Progress: TypeAlias = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in total


def steps(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    """``progress`` for a job that reports how many bytes are done."""
    return None if progress is None else lambda done: progress(what, done, total)

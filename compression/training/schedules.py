"""How a quantity goes from where it is to where it shall be, in steps."""

from __future__ import annotations

__all__ = ["cubic"]


def cubic(start: float, end: float, step: int, steps: int) -> float:
    """The value after ``step`` of ``steps`` (1 to steps): fast while there is much to take, slow towards the end.

    ``end + (start - end) (1 - step / steps)^3``, equation 1 of Zhu and Gupta, "To prune, or not to prune" (2017). Exactly
    ``end`` after the last step.
    """
    return end + (start - end) * (1 - step / steps) ** 3

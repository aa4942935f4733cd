"""How a quantity goes from where it is to where it shall be, in steps."""

from __future__ import annotations

from typing import Literal, TypeAlias

from dcz.errors import UsageError

__all__ = ["Schedule", "scheduled"]

Schedule: TypeAlias = Literal["cubic", "geometric", "linear"]


def scheduled(schedule: Schedule, start: float, end: float, step: int, steps: int) -> float:
    """The value after ``step`` of ``steps`` (1 to steps); exactly ``end`` after the last one.

    - "cubic": ``end + (start - end) (1 - step / steps)^3``, equation 1 of Zhu and Gupta, "To prune, or not to prune" (2017):
      fast while there is much to take, slow towards the end.
    - "geometric": the same part of what is left in each step, as in iterative pruning; ``start`` and ``end`` above 0.
    - "linear": the same amount in each step.
    """
    if not 1 <= step <= steps:
        raise UsageError(f"step {step} of {steps}")
    left = 1 - step / steps
    if schedule == "cubic":
        return end + (start - end) * left**3
    if schedule == "geometric":
        return end * (start / end) ** left if end > 0 else end
    return end + (start - end) * left

"""The choice of least loss within a budget, as an integer programme (Yao et al., "HAWQ-V3", 2021, section 3.4):

    minimize    sum over weights i and choices c of  loss[i, c] x[i, c]
    subject to  sum over c of x[i, c] = 1            for each weight
                sum of bytes[i, c] x[i, c]   <= size
                sum of seconds[i, c] x[i, c] <= seconds
                x[i, c] in {0, 1}

That is a multiple-choice knapsack; HiGHS solves it, through scipy. Losses add up as if weights were independent of each
other, which is what makes it an integer programme, and what it takes on trust.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from dcz.compression.search.costs import Choice, Costs, total
from dcz.errors import MissingDependency, UsageError

__all__ = ["least_loss"]

# HiGHS stops when its bounds are 1e-6 apart, and takes a constraint as met if it is broken by 1e-6: so the numbers are made large.
# What is too large all the same is asked for again, within a budget that is smaller by as much.
_LOSS_RANGE: Final = 1e4
_COST_RANGE: Final = 1e6
_ATTEMPTS: Final = 20


def least_loss(costs: Costs, *, size: int | None = None, seconds: float | None = None) -> dict[str, Choice]:
    """One choice for each weight, so that their losses together are least and the budgets are kept exactly.

    ``costs``: of each weight, at least one choice with a finite loss. ``size``: bytes of all streams together. ``seconds``: of
    all latencies together. None is no budget.

    Raises UsageError if no choices are within the budgets (it says what would be the least), and MissingDependency without
    scipy.
    """
    rows = [(name, [choice for choice in costs[name] if math.isfinite(choice.loss)]) for name in costs]
    for name, choices in rows:
        if not choices:
            raise UsageError(f"there is no choice with a finite loss for {name}")
    if not rows:
        return {}
    budgets = {"bytes": size, "seconds": seconds}
    asked = {cost: float(budget) for cost, budget in budgets.items() if budget is not None}
    within = dict(asked)
    for _ in range(_ATTEMPTS):
        chosen = _solve(rows, within, "loss")
        if chosen is None:
            break
        over = {cost: getattr(total(chosen), cost) - budget for cost, budget in asked.items()}
        if all(excess <= 0 for excess in over.values()):
            return chosen
        for cost, excess in over.items():
            # Sizes are whole numbers: between two of them nothing is lost.
            within[cost] -= max(excess, 0.5 if cost == "bytes" else 1e-7 * asked[cost]) if excess > 0 else 0
    raise _infeasible(rows, asked)


def _solve(
    rows: list[tuple[str, list[Choice]]], budgets: dict[str, float], objective: str
) -> dict[str, Choice] | None:
    """The optimum, or None if there is none."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError as exc:
        raise MissingDependency("scipy", needed_for="a search within a budget", extra="scipy") from exc
    flat = [choice for _, choices in rows for choice in choices]
    owner = np.repeat(np.arange(len(rows)), [len(choices) for _, choices in rows])
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    constraints: list[Any] = [LinearConstraint(one_each, 1, 1)]
    for cost, budget in budgets.items():
        column = _column(flat, cost)
        scale = _COST_RANGE / max(float(column.max()), 1e-300)
        constraints.append(LinearConstraint(column[None] * scale, -np.inf, budget * scale))
    found = milp(
        _scaled(_column(flat, objective), owner),
        integrality=np.ones(len(flat), np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        return None
    chosen = np.rint(found.x).astype(bool)
    return dict(zip((name for name, _ in rows), (flat[i] for i in np.flatnonzero(chosen)), strict=True))


def _column(choices: list[Choice], cost: str) -> np.ndarray:
    return np.array([getattr(choice, cost) for choice in choices], np.float64)


def _scaled(objective: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The objective without what is the same for all choices of a weight."""
    least = np.full(int(owner[-1]) + 1, np.inf)
    np.minimum.at(least, owner, objective)
    above = objective - least[owner]
    largest = float(above.max())
    return np.asarray(above * (_LOSS_RANGE / largest if largest > 0 else 1.0))


def _infeasible(rows: list[tuple[str, list[Choice]]], asked: dict[str, float]) -> UsageError:
    return UsageError("; ".join(_reasons(rows, asked)))


def _reasons(rows: list[tuple[str, list[Choice]]], asked: dict[str, float]) -> Iterator[str]:
    units = {"bytes": "the weights take at least {:.0f} bytes", "seconds": "the latency is at least {:.6g} s"}
    named = {"bytes": "{:.0f} bytes", "seconds": "{:.6g} s"}
    for cost, budget in asked.items():
        least = math.fsum(min(getattr(choice, cost) for choice in choices) for _, choices in rows)
        if least > budget:
            yield f"the budget of {named[cost].format(budget)} is too small: {units[cost].format(least)}"
            return
    found = _solve(rows, {"seconds": asked["seconds"]}, "bytes") if "seconds" in asked else None
    within = "" if found is None else f": within that latency, {units['bytes'].format(total(found).bytes)}"
    yield (
        "the budgets of "
        + " and ".join(named[cost].format(budget) for cost, budget in asked.items())
        + f" cannot be kept together{within}"
    )

"""Line plots as SVG whose bytes depend on what they show and on matplotlib alone: no date, no random names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name, its points from left to right, and how it is drawn.

    Lines of one ``color`` (0, 1, 2 ...) belong together; ``dashed`` and ``marker`` tell them apart.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    dashed: bool = False
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``floor``: a level to compare with, and its name. ``bottom`` and ``top`` cut what is shown."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    level: tuple[str, float] | None = None
    bottom: float | None = None
    top: float | None = None
    ticks: Sequence[float] | None = None


_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "dcz",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
# Okabe and Ito's colours, which most colour-blind readers can tell apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def plot(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels side by side as one SVG."""
    with mpl.rc_context(_STYLE):
        drawing = Drawing(figsize=(4.8 * len(panels), 3.6), layout="constrained")
        for axes, panel in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for line in panel.lines:
                axes.plot(
                    [x for x, _ in line.points],
                    [y for _, y in line.points],
                    label=line.name,
                    color=_COLORS[line.color % len(_COLORS)],
                    linestyle="--" if line.dashed else "-",
                    marker=line.marker,
                )
            if panel.level:
                name, level = panel.level
                axes.axhline(level, color="#666666", linewidth=1, linestyle=":", label=name)
            axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
            axes.set_xscale(panel.x_scale)
            axes.set_yscale(panel.y_scale)
            for axis, scale in ((axes.xaxis, panel.x_scale), (axes.yaxis, panel.y_scale)):
                if scale == "log":
                    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    axis.set_minor_locator(NullLocator())
            if panel.ticks is not None:
                axes.set_xticks(panel.ticks)
            axes.set_ylim(panel.bottom, panel.top)
            axes.legend()
        drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})

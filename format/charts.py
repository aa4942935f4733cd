"""Small SVG charts for a page that loads nothing: stacked bars, histograms, and points.

Colours are classes of the page's style sheet (c0, c1 ...), so that they follow its dark and light schemes. Whatever a chart says by
colour or length it also says in words, in a <title> of each mark. Text is escaped here; callers pass it as it is.
"""

from __future__ import annotations

import html
import itertools
import math
import unicodedata
from collections.abc import Sequence
from typing import Final

__all__ = ["escape", "histogram", "points", "stacked_bars"]

_WIDTH: Final = 720
_BAR: Final = 16
_LABEL: Final = 232
_LABEL_CHARACTERS: Final = 30
_WIDEST: Final = 7  # of 12 pixels, the width of most small letters and digits
_TICKS: Final = 60
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"


def escape(text: str) -> str:
    """Text for HTML. What is not printable is shown escaped: an invisible or reversing character can mislead, too."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )
    return html.escape(shown, quote=True)


def _labels(names: Sequence[str], most: int) -> list[str]:
    """Names of at most ``most`` characters: their ends, which say most, or where that leaves some of them the same, what they
    differ in, and their ends. The whole names are in the titles."""
    labels = [name if len(name) <= most else _ELLIPSIS + name[len(name) - most + 1 :] for name in names]
    settled = 0
    while settled != (settled := len(set(labels))):
        groups: dict[str, list[int]] = {}
        for number, label in enumerate(labels):
            groups.setdefault(label, []).append(number)
        for group in groups.values():
            same = {names[number] for number in group}
            if len(same) > 1:
                start = sum(
                    1
                    for _ in itertools.takewhile(lambda chars: len(set(chars)) == 1, zip(*same, strict=False))
                )
                for number in group:
                    labels[number] = _around(names[number], start, most)
    return labels


def _around(name: str, place: int, most: int) -> str:
    """The name around a place, from a sixth of the room before it, and its end."""
    end = most // 3
    start = max(0, min(place - most // 6, len(name) - most + 1))
    middle = name[start : start + most - end - 2]
    return (_ELLIPSIS if start else "") + middle + _ELLIPSIS + name[len(name) - end :]


def _columns(text: str) -> int:
    """How wide a text is, about: of most small letters, 1 each."""
    wide = sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
    return wide + sum(char.isupper() or char in "mw@%" for char in text) // 2


def _text(classes: str, x: float, y: float, text: str, room: int) -> str:
    """Text that is squeezed if it may not have ``room`` pixels otherwise."""
    squeezed = (
        "" if _WIDEST * _columns(text) <= room else f' textLength="{room}" lengthAdjust="spacingAndGlyphs"'
    )
    return f'<text class="{classes}" x="{_number(x)}" y="{_number(y)}"{squeezed}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[int]]],
    parts: Sequence[str],
    unit: str,
    label: str,
    *,
    whole: bool = False,
) -> str:
    """One bar for each row, cut into its ``parts``. ``whole``: one bar over the whole width, without a name beside it."""
    most = max((sum(sizes) for _, sizes in rows), default=0)
    left = 0 if whole else _LABEL
    height = len(rows) * (_BAR + 6)
    lines = [
        f'<div class="chart"><svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {height}">'
    ]
    labels = _labels([name for name, _ in rows], _LABEL_CHARACTERS)
    for number, (name, sizes) in enumerate(rows):
        y = number * (_BAR + 6)
        if not whole:
            lines.append(_text("name", left - 8, y + 12, labels[number], left - 12))
        x = float(left)
        for part, (words, size) in enumerate(zip(parts, sizes, strict=True)):
            width = (_WIDTH - left) * size / most if most else 0.0
            if size:
                title = f"{name}: {words}, {size:,} {unit}" if not whole else f"{words}: {size:,} {unit}"
                lines.append(
                    f'<rect class="c{part}" x="{_number(x)}" y="{y}" width="{_number(max(width, 0.25))}" height="{_BAR}">'
                    f"<title>{escape(title)}</title></rect>"
                )
            x += width
    lines.append("</svg></div>")
    return "".join(lines)


def histogram(
    counts: Sequence[int], words: Sequence[float | None], label: str, symbol: str, *, more: bool = False
) -> str:
    """How often each symbol occurs (bars above the line), and the length of its code word (bars below it).

    ``words``: bits, None for a symbol without a code word. ``more``: the last bar stands for all larger ones.
    """
    used = [i for i, count in enumerate(counts) if count]
    if not used:
        return ""
    first, last = used[0], used[-1]
    count, total, most = last - first + 1, sum(counts), max(counts)
    longest = max((word for word in words if word is not None), default=0.0)
    top, below = 120, 70 if longest else 0
    step = min(24.0, (_WIDTH - _TICKS - 30) / count)
    bar = max(0.5, step * (0.86 if step > 3 else 1.0))
    height = top + below + 34
    lines = [
        f'<div class="chart"><svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {height}">'
    ]
    lines.append(f'<line class="axis" x1="{_TICKS}" x2="{_WIDTH}" y1="{top}" y2="{top}"/>')
    lines.append(f'<text class="tick" x="{_TICKS - 6}" y="20">{100 * most / total:.3g} %</text>')
    if longest:
        lines.append(f'<text class="tick" x="{_TICKS - 6}" y="{top + below}">{longest:.3g} bits</text>')
    for i in range(first, last + 1):
        if not counts[i]:
            continue
        x, tall = _TICKS + 2 + (i - first) * step, (top - 14) * counts[i] / most
        word = words[i]
        name = f"{symbol} {i}{' or more' if more and i == len(counts) - 1 else ''}"
        title = f"{name}: {counts[i]:,} ({100 * counts[i] / total:.3g} %)"
        title += "" if word is None else f", code word of {word:.3g} bits"
        marks = f'<rect class="c0" x="{_number(x)}" y="{_number(top - tall)}" width="{_number(bar)}" height="{_number(tall)}"/>'
        if word is not None and longest:
            down = (below - 6) * word / longest
            marks += f'<rect class="c1" x="{_number(x)}" y="{top + 2}" width="{_number(bar)}" height="{_number(down)}"/>'
        lines.append(f"<g>{marks}<title>{escape(title)}</title></g>")
    for i in sorted({first, (first + last) // 2, last}):
        text = f"{i}+" if more and i == len(counts) - 1 else str(i)
        x = _TICKS + 2 + (i - first) * step + bar / 2
        lines.append(f'<text class="under" x="{_number(x)}" y="{top + below + 18}">{text}</text>')
    lines.append("</svg></div>")
    return "".join(lines)


def points(places: Sequence[tuple[str, float, float]], label: str, across: str, up: str) -> str:
    """Named points: ``across`` on a logarithmic scale, ``up`` on a linear one. Those without a name are small."""
    height, left, bottom = 240, 70, 200
    xs = [math.log10(max(x, 1.0)) for _, x, _ in places]
    ys = [y for _, _, y in places]
    wide = (max(xs) - min(xs)) or 1.0
    tall = (max(ys) - min(ys)) or max(abs(ys[0]), 1.0) * 0.1
    lines = [
        f'<div class="chart"><svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {height}">'
    ]
    lines.append(f'<line class="axis" x1="{left}" x2="{_WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    lines.append(f'<line class="axis" x1="{left}" x2="{left}" y1="10" y2="{bottom}"/>')
    low, high = min(ys), max(ys)
    for tick in sorted({low, (low + high) / 2, high}):
        at = bottom - 24 - (tick - low) / tall * (bottom - 60)
        lines.append(
            f'<line class="axis" x1="{left - 4}" x2="{left}" y1="{_number(at)}" y2="{_number(at)}"/>'
        )
        lines.append(_text("tick", left - 8, at + 4, f"{tick:.5g}", left - 12))
    texts: list[str] = []  # over all points
    for (name, x, y), at in zip(places, xs, strict=True):
        px = left + 40 + (at - min(xs)) / wide * (_WIDTH - left - 260)
        py = bottom - 24 - (y - low) / tall * (bottom - 60)
        title = f"{name or 'on the way'}: {up} {y:g} at {x:,.0f} {across}"
        lines.append(
            f'<circle class="{"c0" if name else "c1"}" cx="{_number(px)}" cy="{_number(py)}" r="{6 if name else 3}">'
            f"<title>{escape(title)}</title></circle>"
        )
        if not name:
            continue
        texts.append(_text("beside", px + 11, py + 4, f"{name}: {y:.5g}", _WIDTH - int(px) - 11))
        texts.append(f'<text class="under" x="{_number(px)}" y="{bottom + 18}">{x:,.0f}</text>')
    lines += texts
    lines.append(
        f'<text class="under" x="{(left + _WIDTH) / 2}" y="{height - 4}">{escape(across)}, logarithmic</text>'
    )
    lines.append("</svg></div>")
    return "".join(lines)

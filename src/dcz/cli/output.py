"""What goes to standard output: text without surprises, tables, JSON.

Everything is written by ``emit``, so that there is one place where a closed pipe or a full disk shows.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType
    from rich.table import Table

__all__ = [
    "OutputError",
    "bits",
    "count",
    "emit",
    "emit_json",
    "fields",
    "plain",
    "plural",
    "ratio",
    "show",
    "size",
    "table",
]


def plain(text: str, *, keep: str = "") -> str:
    """``text`` with everything escaped that is not printable: names come from strangers, and terminals obey."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


class OutputError(OSError):
    """Standard output does not take what is written to it."""


def emit(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise OutputError(exc.errno, exc.strerror, "standard output") from exc


def emit_json(data: dict[str, Any]) -> None:
    """One object, and nothing but ASCII: no locale spoils it. Not a number does not exist in JSON, and is refused."""
    emit(json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False))


# -- tables


def table(*columns: str, title: str | None = None) -> Table:
    """A table without lines. A column whose name begins with ``>`` is flushed right; such columns do not wrap."""
    from rich.table import Table

    made = Table(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", header_style="bold"
    )
    for name in columns:
        right = name.startswith(">")
        made.add_column(
            name.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return made


def fields(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values below each other."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def show(*parts: RenderableType) -> None:
    """Print tables with empty lines between them, as wide as the terminal, or 80 columns if there is none."""
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    columns = os.environ.get("COLUMNS", "")
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=terminal,
        # rich would take the width of another stream's terminal for a pipe.
        width=int(columns) if columns.isdecimal() and int(columns) > 0 else None if terminal else 80,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for number, part in enumerate(parts):
        console.print(*([""] if number else []), part, sep="\n")
    emit("\n".join(line.rstrip() for line in buffer.getvalue().splitlines()))


# -- numbers and words


def count(number: int) -> str:
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``, ``2 aliases``."""
    if number == 1:
        return f"1 {noun}"
    return f"{count(number)} {noun}{'es' if noun.endswith('s') else 's'}"


def size(number: int) -> str:
    """``1,536 bytes``; from a mebibyte on also in larger units: ``90,868,480 bytes (86.7 MiB)``."""
    text = plural(number, "byte")
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB")):
        if number >= 1024**power:
            return f"{text} ({number / 1024**power:.1f} {unit})"
    return text


def ratio(value: float | None) -> str:
    """Stored bytes for each original one, such as ``0.665``; nothing where there is no original."""
    if value is None:
        return ""
    return f"{value:.3f}" if value < 9999 else f"{value:.3g}"


def bits(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 99999 else f"{value:.3g}"

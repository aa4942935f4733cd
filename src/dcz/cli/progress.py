"""What goes to standard error while one waits: bars, and only on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from typing import TypeAlias

__all__ = ["Update", "bars"]

Update: TypeAlias = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in total


@contextlib.contextmanager
def bars(*, quiet: bool = False) -> Generator[Update | None, None, None]:
    """A function that draws a bar for each job that it is told of; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from dcz.cli.output import plain

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(plain(what), total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield update

"""Jobs of several files at the same time, which stand or fall together; and how their progress is told as one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Final

from dcz.registry.progress import Progress

__all__ = ["AT_ONCE", "Abandoned", "Total", "together"]

AT_ONCE: Final = 4  # files that are transferred at the same time


class Abandoned(Exception):
    """Another job has failed; nobody waits for this one any more."""


class Total:
    """One job of several files, which threads may do at the same time; ``progress`` is told the sum of the bytes."""

    def __init__(
        self, progress: Progress | None, verb: str, sizes: Mapping[str, int], over: threading.Event
    ) -> None:
        """``sizes``: in bytes, by the names of the files. Once ``over`` is set, those who tell their progress get Abandoned."""
        self._progress, self._over = progress, over
        self._what = f"{verb} {next(iter(sizes)) if len(sizes) == 1 else f'{len(sizes)} files'}"
        self._total, self._done = sum(sizes.values()), 0
        self._lock = threading.Lock()

    def one(self) -> Progress:
        """For one of the files: it is told how much is done of that."""
        before = 0

        def update(_what: str, done: int, _size: int) -> None:
            nonlocal before
            if self._over.is_set():
                raise Abandoned
            with self._lock:
                self._done += done - before
                before = done
                if self._progress is not None:
                    self._progress(self._what, self._done, self._total)

        return update


def together(jobs: Sequence[Callable[[], None]], over: threading.Event, *, at_once: int = AT_ONCE) -> None:
    """Do all jobs, some at the same time. The first error sets ``over``, at which the others should end, and is raised."""
    if len(jobs) <= 1 or at_once == 1:
        for job in jobs:
            job()
        return
    pool = ThreadPoolExecutor(at_once)
    try:
        for done in as_completed([pool.submit(job) for job in jobs]):
            done.result()
    except BaseException:
        over.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)

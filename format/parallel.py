"""The same work for many items, on several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from dcz.errors import UsageError

__all__ = ["run", "thread_count"]

T = TypeVar("T")


def thread_count(threads: int | None) -> int:
    """``threads``; if that is None, as many as this process has cores, at most 8. Raises UsageError below 1."""
    if threads is None:
        return min(8, len(os.sched_getaffinity(0)))
    if threads < 1:
        raise UsageError(f"{threads} threads: at least 1 is needed")
    return threads


def run(
    job: Callable[[T], int],
    items: Iterable[T],
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Do the job for each item, on this thread and ``threads`` - 1 others, which take them in order.

    Of several errors, that of the first item is raised, whatever the timing; behind an error nothing is begun.
    ``progress`` is called on this thread, with what the jobs have returned since the last time.
    """
    todo = list(items)
    others = min(threads, len(todo)) - 1
    if others <= 0:
        for item in todo:
            done = job(item)
            if progress and done:
                progress(done)
        return

    lock = threading.Lock()
    failures: list[tuple[int, BaseException]] = []
    numbers = iter(range(len(todo)))
    unreported = 0

    def take() -> int | None:
        with lock:
            return None if failures else next(numbers, None)

    def report() -> None:
        nonlocal unreported
        with lock:
            done, unreported = unreported, 0
        if progress and done:
            progress(done)

    def work(reports: bool) -> None:
        nonlocal unreported
        number = None
        try:
            while (number := take()) is not None:
                done = job(todo[number])
                with lock:
                    unreported += done
                if reports:
                    report()
        except BaseException as exc:  # noqa: BLE001 (raised again by the caller's thread)
            with lock:
                failures.append((len(todo) if number is None else number, exc))

    workers = [threading.Thread(target=work, args=(False,), name=f"dcz-{i + 1}") for i in range(others)]
    for worker in workers:
        worker.start()
    work(True)
    while workers:
        try:
            workers[-1].join()
            workers.pop()
        except BaseException as exc:  # noqa: BLE001 (Ctrl-C: the others end with what they have in hand)
            failures.append((-1, exc))
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    report()

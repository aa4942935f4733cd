"""Jobs on several threads: each item once, the first error, progress on the caller's thread."""

from __future__ import annotations

import _thread
import threading
import time

import pytest

from dcz.errors import UsageError
from dcz.format.parallel import run, thread_count


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 100])
def test_each_item_once(threads: int, items: int) -> None:
    done: list[int] = []
    reported: list[int] = []
    callers: set[int] = set()

    def progress(count: int) -> None:
        reported.append(count)
        callers.add(threading.get_ident())

    def job(item: int) -> int:
        done.append(item)
        return item

    run(job, range(items), threads, progress)
    assert sorted(done) == list(range(items))
    assert sum(reported) == sum(range(items))
    assert callers <= {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_error_whatever_the_timing(threads: int) -> None:
    begun: list[int] = []

    def job(item: int) -> int:
        begun.append(item)
        if item == 10:
            time.sleep(0.05)
        if item >= 10:
            raise KeyError(item)
        return 0

    with pytest.raises(KeyError, match="10"):
        run(job, range(1000), threads)
    assert len(begun) <= 11 + threads


def test_an_error_of_the_progress_stops_all() -> None:
    def progress(_count: int) -> None:
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        run(lambda _item: 1, range(1000), 3, progress)


def test_an_interrupt_ends_all_threads() -> None:
    before = threading.active_count()
    held = threading.Event()

    def job(item: int) -> int:
        if threading.current_thread() is threading.main_thread():
            held.wait(5)
            return 0
        if not held.is_set():
            held.set()
            time.sleep(0.05)  # the main thread has nothing left to do, and waits for this one
            _thread.interrupt_main()
            time.sleep(0.05)
        return item

    with pytest.raises(KeyboardInterrupt):
        run(job, range(2), 2)
    assert threading.active_count() == before


def test_threads() -> None:
    assert thread_count(3) == 3
    assert 1 <= thread_count(None) <= 8
    with pytest.raises(UsageError):
        thread_count(0)

"""What does a decoder do with damaged input? 200 seeded mutations, each decoded in a process of its own.

    raised    an error of any kind, as it should be
    same      the weights are right all the same
    wrong     other weights, and no word about it
    crashed   the process died of a signal
    hung      not done after `TIMEOUT` seconds

A process may take up `MEMORY` bytes of address space beyond what its libraries have; what asks for more gets an error.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

__all__ = ["COUNTS", "OUTCOMES", "classify", "mutations"]

TIMEOUT: Final = 20.0
MEMORY: Final = 4 << 30
HEADER: Final = 96  # bytes
OUTCOMES: Final = ("raised", "same", "wrong", "crashed", "hung")

COUNTS: Final = {"bit": 80, "header byte": 40, "truncation": 40, "garbage": 20, "header field": 20}

# A library that ends the process by itself gives other codes than these, and counts as a crash.
_CODES: Final = {77: "raised", 78: "same", 79: "wrong"}
_EXITS: Final = {name: code for code, name in _CODES.items()}


def mutations(stream: bytes, seed: int) -> Iterator[bytes]:
    """Damaged copies of a stream, none of which equals it."""
    random = np.random.default_rng(seed)
    size, head = len(stream), min(HEADER, len(stream))

    def overwritten(at: int, data: bytes) -> bytes:
        return stream[:at] + data + stream[at + len(data) :]

    def drawn(kind: str) -> bytes:
        match kind:
            case "bit":
                at = int(random.integers(size))
                return overwritten(at, bytes([stream[at] ^ 1 << int(random.integers(8))]))
            case "header byte":
                return overwritten(int(random.integers(head)), random.bytes(1))
            case "truncation":
                return stream[: int(random.integers(size))]
            case "garbage":
                return overwritten(int(random.integers(size - 16)), random.bytes(16))
            case _:
                return overwritten(int(random.integers(head - 8)), random.bytes(8))

    for kind, count in COUNTS.items():
        for _ in range(count):
            mutation = drawn(kind)
            while mutation == stream:
                mutation = drawn(kind)
            yield mutation


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _confine() -> None:
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    faulthandler.disable()  # it may have another way to the terminal


def _forked(decode: Callable[[bytes], np.ndarray], mutation: bytes, expected: np.ndarray) -> int:
    """A process that decodes, and ends with the code of what came of it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _confine()
            code = _EXITS["raised"]  # stands if anything is raised, a panic of Rust too
            code = _EXITS["same" if np.array_equal(decode(mutation), expected) else "wrong"]
        finally:
            os._exit(code)
    return pid


def _outcome(status: int) -> str:
    return _CODES.get(os.WEXITSTATUS(status), "crashed") if os.WIFEXITED(status) else "crashed"


def classify(
    decode: Callable[[bytes], np.ndarray],
    inputs: Iterable[bytes],
    expected: np.ndarray,
    *,
    timeout: float = TIMEOUT,
    workers: int = 2,
) -> dict[str, int]:
    """How many of `inputs` came to which outcome. `decode` returns the bytes of the tensors, or raises."""
    outcomes: Counter[str] = Counter()
    running: dict[int, float] = {}  # process -> when its time is over

    def collect(most: int) -> None:
        while len(running) > most:
            for pid, deadline in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    outcomes[_outcome(status)] += 1
                    del running[pid]
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    outcomes["hung"] += 1
                    del running[pid]
            if len(running) > most:
                time.sleep(0.001)

    for mutation in inputs:
        collect(workers - 1)
        running[_forked(decode, mutation, expected)] = time.monotonic() + timeout
    collect(0)
    return {name: outcomes[name] for name in OUTCOMES}

"""What can go wrong between a client and the Hub, on purpose, and a log of what went over the wire."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["Fault", "Faults", "Kind", "Log", "Record"]

Kind = Literal["status", "reset", "fin", "stall", "flip", "short", "lost", "no-ranges"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, for the next ``times`` requests that match.

    status     answered with ``status`` and ``headers``, and nothing done
    reset      the connection is reset: at once, or, of a body, after ``after`` bytes
    fin        the connection is closed in order, but after ``after`` bytes of the body
    stall      nothing comes for ``seconds`` after ``after`` bytes of the body; then the connection is closed
    flip       the byte of the file at ``after`` is another one
    short      the answer claims, and has, only ``after`` bytes of the body
    lost       the request is carried out, and the connection reset instead of an answer
    no-ranges  the header Range is ignored
    """

    kind: Kind
    path: str = ""  # a regular expression that the path (with its query) is searched for
    method: str | None = None
    times: int = 1
    after: int | None = None
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 60.0

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in (None, method) and re.search(self.path, path) is not None


class Faults:
    """The faults that are still to come. Each request meets at most one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._draw: Callable[[str, str], Fault | None] | None = None

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._faults += faults

    def at_random(self, share: float, *, seed: int, path: str = "", size: int = 1 << 20) -> None:
        """Let a ``share`` of the requests that match meet some fault, drawn from ``seed``."""
        draw = random.Random(seed)
        pattern = re.compile(path)

        def one(method: str, target: str) -> Fault | None:
            if draw.random() >= share or pattern.search(target) is None:
                return None
            kinds: list[Kind] = ["status", "reset", "lost"]
            if method == "GET":
                kinds += ["fin", "stall", "flip", "short", "reset"]
            kind = draw.choice(kinds)
            after = draw.randrange(size) if kind in ("fin", "stall", "flip", "short") else None
            if kind == "reset" and method == "GET" and draw.random() < 0.5:
                after = draw.randrange(size)
            status = draw.choice((429, 500, 502, 503, 504))
            headers = {"Retry-After": "0"} if status == 429 else {}
            return Fault(kind, after=after, status=status, headers=headers, seconds=0.3)

        with self._lock:
            self._draw = one

    def clear(self) -> None:
        with self._lock:
            self._faults, self._draw = [], None

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for number, fault in enumerate(self._faults):
                if fault.matches(method, path):
                    self._faults[number] = replace(fault, times=fault.times - 1)
                    return fault
            return None if self._draw is None else self._draw(method, path)


@dataclass(slots=True)
class Record:
    """One request: ``sent`` and ``received`` are bytes of bodies, without headers."""

    origin: str  # hub or cdn
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    status: int = 0  # 0: the connection ended without an answer
    sent: int = 0
    received: int = 0


class Log:
    """Every request since the last ``clear``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)

    def clear(self) -> None:
        with self._lock:
            self._records = []

    def all(self, path: str = "", method: str | None = None) -> list[Record]:
        """Those whose path holds the regular expression."""
        with self._lock:
            return [
                record
                for record in self._records
                if method in (None, record.method) and re.search(path, record.path) is not None
            ]

    def sent(self, path: str = "", method: str | None = None) -> int:
        """Bytes of all their answers' bodies."""
        return sum(record.sent for record in self.all(path, method))

    def received(self, path: str = "", method: str | None = None) -> int:
        """Bytes of all their requests' bodies."""
        return sum(record.received for record in self.all(path, method))

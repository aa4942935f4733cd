"""The whole run: which parts there are, each in a process of its own with a time limit, and what came of them."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.codecs.cells import ALL_PEERS
from benchmarks.codecs.dcz_peers import DCZ_PEERS, EFFORTS, efforts
from benchmarks.codecs.peer import Peer
from benchmarks.codecs.peers import PEERS
from benchmarks.codecs.sparse import DENSITIES, SPARSE_PEERS, entropy_bound, prune
from benchmarks.codecs.weights import MODELS, Weights, origin, prepare, write_safetensors
from benchmarks.common import processor

__all__ = ["Choice", "limited", "run"]

LARGE: Final = "minilm-x3"
SAMPLE: Final = "sample"
QUICK: Final = ((SAMPLE, "bf16"), (SAMPLE, "fp32"))
LIMIT: Final = 900.0  # seconds for one part
SLOW_LIMIT: Final = 5400.0
FOR_SPEED: Final = ("fast", "balanced")  # `small` is for size
KERNELS: Final = ("avx512", "avx2", "portable")
_LOADED: Final = ((LARGE, "bf16"), ("minilm", "fp32"))
# One thread in every library, so that what is measured on one core did not prepare for more.
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")


@dataclass(frozen=True)
class Choice:
    """What to measure. Empty: everything there is; `everything`: the slow peers on every model, too."""

    models: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    peers: Sequence[str] = ()
    quick: bool = False
    everything: bool = False

    @property
    def arguments(self) -> list[str]:
        """As on the command line."""
        listed = (("--models", self.models), ("--dtypes", self.dtypes), ("--peers", self.peers))
        out = [word for option, names in listed if names for word in (option, *names)]
        return out + ["--quick"] * self.quick + ["--all"] * self.everything

    @property
    def whole(self) -> bool:
        """Whether nothing was left out that a table needs."""
        return not (self.models or self.dtypes or self.peers or self.quick)

    def pairs(self) -> list[tuple[str, str]]:
        """Models and types."""
        if self.quick:
            return list(QUICK)
        return [
            (name, dtype)
            for name, model in MODELS.items()
            for dtype in model.dtypes
            if (not self.models or name in self.models) and (not self.dtypes or dtype in self.dtypes)
        ]

    def wants_peer(self, name: str) -> bool:
        """By the beginning of the name: "zstd" is all of them."""
        return not self.peers or any(name.startswith(peer) for peer in self.peers)


@dataclass(frozen=True)
class Cell:
    """One part: a function of `cells`, its peer and its weights."""

    table: str
    kind: str
    peer: str
    weights: Weights
    row: dict[str, Any]
    environment: dict[str, str]


def _cell(
    table: str, kind: str, peer: str, weights: Weights, environment: dict[str, str] | None = None, **row: Any
) -> Cell:
    shown = {"peer": peer, "model": weights.model, "dtype": weights.dtype, **row}
    return Cell(table, kind, peer, weights, shown, environment or {})


def _part(weights: Weights, path: Path) -> Weights:
    """The first attention block of a transformer: a megabyte to be damaged."""
    chosen = [(k, v) for k, v in weights.tensors.items() if k.startswith("encoder.layer.0.attention.")]
    return write_safetensors(path, weights.dtype, chosen or list(weights.tensors.items()))


def _cells(made: Sequence[Weights], present: Sequence[str], choice: Choice, folder: Path) -> Iterator[Cell]:
    by_key = {(w.model, w.dtype): w for w in made}

    def in_time(name: str, weights: Weights) -> bool:
        if not ALL_PEERS[name].slow:
            return True
        return weights.model != LARGE if choice.everything else weights.model == SAMPLE and not choice.quick

    def peers(table: str, *more: Peer) -> list[str]:
        chosen = (p for p in (*more, *DCZ_PEERS, *PEERS) if p.name in present and table in p.tables)
        return [p.name for p in chosen]

    for weights in made:
        for name in peers("lossless"):
            if in_time(name, weights):
                yield _cell("lossless", "speed", name, weights)

    chosen = [effort for effort in FOR_SPEED if f"dcz {effort}" in present]
    for key in QUICK if choice.quick else _LOADED:
        if key in by_key:
            for effort in chosen:
                for threads in (1, 2):
                    yield _cell(
                        "loading",
                        "loading",
                        f"{effort},{threads}",
                        by_key[key],
                        effort=effort,
                        threads=threads,
                    )
    large = by_key.get(QUICK[0] if choice.quick else (LARGE, "bf16"))
    if large is not None:
        for effort in chosen:
            for kernel in KERNELS:
                forced = {"DCZ_KERNEL": kernel}
                yield _cell("kernels", "speed", f"dcz {effort}", large, forced, kernel=kernel)

    wide = by_key.get(QUICK[1] if choice.quick else ("minilm", "fp32"))
    if wide is not None:
        for density in DENSITIES:
            pruned = prune(wide, density, folder / f"pruned {density:.0%}-fp32.safetensors")
            bound = entropy_bound(pruned) / pruned.data.size
            for name in peers("sparse", *SPARSE_PEERS):
                if ALL_PEERS[name].compresses and (choice.everything or not ALL_PEERS[name].slow):
                    yield _cell("sparse", "speed", name, pruned, density=density, bound=bound)

    narrow = by_key.get(QUICK[0] if choice.quick else ("minilm", "bf16"))
    if narrow is not None:
        part = _part(narrow, folder / "part-bf16.safetensors")
        for name in peers("corruption"):
            if choice.everything or not ALL_PEERS[name].slow:
                yield _cell("corruption", "corruption", name, part)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal that killed it; None if its time was over."""

    code: int | None
    out: str
    error: str


def limited(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Ended:
    """Run a program; when its time is over, it goes, and all processes that it started."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate(timeout=seconds)
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                return Ended(None, "", "")
            raise
        return Ended(process.returncode, out, error)


def _measured(cell: Cell, quick: bool) -> dict[str, Any]:
    """Run a part; a failure is a result, too."""
    command = [sys.executable, "-m", "benchmarks.codecs", "--cell", cell.kind, cell.peer]
    command += [str(cell.weights.path), cell.weights.model, cell.weights.dtype]
    command += ["--quick"] if quick else []
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **cell.environment}
    slow = cell.peer in ALL_PEERS and ALL_PEERS[cell.peer].slow
    ended = limited(command, SLOW_LIMIT if slow else LIMIT, environment)
    if ended.code == 0:
        return {**cell.row, **json.loads(ended.out.splitlines()[-1])}
    if ended.code is None:
        why = "not done in time"
    elif ended.code < 0:
        why = f"killed by {signal.Signals(-ended.code).name}"
    else:
        why = (ended.error.strip().splitlines() or [f"exit code {ended.code}"])[-1]
    return {**cell.row, "failed": why}


def _absent(names: Iterable[str]) -> list[str]:
    return [
        f"{name} (package {ALL_PEERS[name].distribution})"
        if not name.startswith("dcz")
        else f"{name} (no such effort)"
        for name in names
    ]


def run(choice: Choice, options: Sequence[str] = ()) -> dict[str, Any]:
    """Measure; returns what the tables are made of, ready for JSON. `options`: what else stood on the command line."""
    from dcz._native import active_isa

    wanted = [name for name in ALL_PEERS if choice.wants_peer(name)]
    versions = {name: ALL_PEERS[name].version() for name in wanted}
    present = [name for name, version in versions.items() if version is not None]
    started = time.monotonic()
    results: dict[str, Any] = {
        "made": {
            "command": f'make bench-codecs ARGS="{" ".join([*options, *choice.arguments])}"',
            "processor": processor(),
            "kernel": active_isa(),
            "python": platform.python_version(),
            "quick": choice.quick,
            "everything": choice.everything,
        },
        "versions": {ALL_PEERS[n].distribution or n: versions[n] for n in present},
        "efforts": [effort for effort in EFFORTS if effort in efforts()],
        "absent": _absent(name for name in wanted if name not in present),
        "models": [],
        **{table: [] for table in ("lossless", "loading", "kernels", "sparse", "corruption")},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # of the parts: goes with all that they leave
        made, missing = prepare(Path(folder), choice.pairs())
        results["absent"] += missing
        results["models"] = [
            {
                "model": w.model,
                "title": MODELS[w.model].title,
                "dtype": w.dtype,
                "origin": origin(w.model, w.dtype),
                "bytes": int(w.data.size),
            }
            for w in made
        ]
        for cell in _cells(made, present, choice, Path(folder)):
            what = f"{cell.table}: {cell.peer}, {cell.weights.model} {cell.weights.dtype} ..."
            print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)
            results[cell.table].append(_measured(cell, choice.quick))
    results["made"]["minutes"] = round((time.monotonic() - started) / 60, 1)
    return results

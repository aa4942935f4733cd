"""The long run: ``python tests/fuzz/long.py --mutations 100000 --seed 0``, which is ``make fuzz``.

Mutants are made and checked in other processes, so that a crash or a hang is seen from outside: the process says which
mutant comes next, and is started again behind the one that ended it. Each failure is printed with the name that makes it
again (``--replay symbols:17``), and its file is kept in build/fuzz. The exit code is 1 if there was any.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fuzz.mutations import MUTATORS, Mutant, mutate
from tests.fuzz.target import check_by_number

from dcz import _native

__all__ = ["Result", "main", "results", "table"]

_PER_SEED: Final = 1_000_000  # mutants of one mutator
_BUSY: Final = 60.0  # seconds of processor time, after which a mutant's process is ended by SIGPROF, ...
_HANG: Final = 900.0  # ... and seconds after which it gives up even if it does nothing
_ADDRESS_SPACE: Final = 1 << 30  # bytes, beyond what a process has when it begins
_KEPT: Final = ROOT / "build" / "fuzz"
_FAILED: Final = "FAILED"


@dataclass(frozen=True)
class Result:
    """What became of a mutant; ``outcome`` is FAILED if the invariant did not hold, and ``detail`` then says how."""

    mutant: str
    outcome: str
    detail: str = ""


def _name(index: int, seed: int, mutators: Sequence[str]) -> str:
    """Which mutant is number ``index`` of a run: the mutators take turns."""
    return f"{mutators[index % len(mutators)]}:{seed * _PER_SEED + index // len(mutators)}"


def _mutant(name: str) -> Mutant:
    mutator, _, number = name.rpartition(":")
    return mutate(mutator, int(number))


def _check(name: str, folder: Path) -> Result:
    try:
        outcome = check_by_number(_mutant(name), folder)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is a failure
        last = traceback.extract_tb(exc.__traceback__)[-1]
        detail = f"{type(exc).__name__} in {last.name} of {Path(last.filename).name}:{last.lineno}: {exc}"
        return Result(name, _FAILED, " ".join(detail.split()))
    return Result(name, outcome.error or outcome.kind)


# The process that does it


def _work(args: argparse.Namespace, mutators: Sequence[str]) -> None:
    """Says ``> mutant`` before each mutant and its result afterwards, a line each."""
    warnings.simplefilter("error")
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    mutate("bytes-zero", 0)  # what is loaded once does not count
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        for index in range(*args.worker):
            name = _name(index, args.seed, mutators)
            print(f"> {name}", flush=True)
            faulthandler.dump_traceback_later(_HANG, exit=True)
            signal.setitimer(signal.ITIMER_PROF, _BUSY)
            result = _check(name, Path(folder))
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            print(f"{result.outcome}\t{result.detail}", flush=True)


# The process that watches


def results(command: Sequence[str], first: int, last: int) -> Iterator[Result]:
    """The results of the mutants from ``first`` up to ``last``, from processes that run ``command FIRST LAST``."""
    while first < last:
        with subprocess.Popen(
            [*command, str(first), str(last)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            mutant = ""
            for line in process.stdout:
                if line.startswith("> "):
                    mutant = line[2:].strip()
                else:
                    outcome, _, detail = line.strip().partition("\t")
                    yield Result(mutant, outcome, detail)
                    mutant = ""
                    first += 1
        if process.returncode == 0 and not mutant:
            return
        if not mutant:
            raise RuntimeError(f"a process ended with {process.returncode} outside of a mutant")
        yield Result(mutant, _FAILED, _ending(process.returncode))
        first += 1


def _ending(code: int) -> str:
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with {code}; above is where it was, perhaps after {_HANG:.0f} seconds"


def _keep(result: Result) -> None:
    print(f"{result.mutant}: {result.detail}", flush=True)
    path = _KEPT / f"{result.mutant.replace(':', '-')}.dcz"
    _KEPT.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Exception):  # if the mutant cannot be made, that is what the detail says
        path.write_bytes(_mutant(result.mutant).data)
        print(f"    kept as {path.relative_to(ROOT)}; --replay {result.mutant}", flush=True)


def table(counts: Counter[tuple[str, str]]) -> str:
    """Mutators down, outcomes across, as a table of Markdown."""
    outcomes = sorted({outcome for _, outcome in counts}, key=lambda one: (" " in one, one))
    totals = Counter[str]()
    rows: list[list[str | int]] = []
    for mutator in [one for one in MUTATORS if any(one == name for name, _ in counts)]:
        row = [counts[mutator, outcome] for outcome in outcomes]
        totals.update(dict(zip(outcomes, row, strict=True)))
        rows.append([mutator, sum(row), *row])
    rows.append(["all", totals.total(), *(totals[outcome] for outcome in outcomes)])
    head: list[list[str | int]] = [
        ["mutator", "mutants", *outcomes],
        ["---", *["---:"] * (len(outcomes) + 1)],
    ]
    shown = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in head + rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def _run(args: argparse.Namespace, mutators: Sequence[str]) -> int:
    command = [sys.executable, __file__, "--seed", str(args.seed), "--only", *mutators]
    command += ["--kernel", args.kernel] if args.kernel else []
    command.append("--worker")
    edges = [args.mutations * job // args.jobs for job in range(args.jobs + 1)]
    counts: Counter[tuple[str, str]] = Counter()

    def run(job: int) -> None:
        for result in results(command, edges[job], edges[job + 1]):
            counts[result.mutant.rpartition(":")[0], result.outcome] += 1
            if result.outcome == _FAILED:
                _keep(result)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, range(args.jobs)))
    failed = sum(count for (_, outcome), count in counts.items() if outcome == _FAILED)
    print(table(counts))
    print(f"\n{counts.total():,} mutants, {failed} failed (kernels: {args.kernel or _native.active_isa()})")
    return 1 if failed or counts.total() != args.mutations else 0


def _replay(name: str) -> int:
    mutant = _mutant(name)
    print(f"{name}, made from {mutant.original.name}, {len(mutant.data)} bytes")
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        outcome = check_by_number(mutant, Path(folder))
    print(f"{outcome.kind} {outcome.error}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzz whole .dcz files.")
    parser.add_argument("--mutations", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another one gives other mutants")
    parser.add_argument("--kernel", choices=_native.available_isas(), help="force an instruction set")
    parser.add_argument(
        "--only", nargs="+", choices=list(MUTATORS), metavar="MUTATOR", default=list(MUTATORS)
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--replay", metavar="MUTATOR:NUMBER", help="check one mutant again, in this process")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.kernel:
        _native.force_isa(args.kernel)
    if args.replay:
        return _replay(args.replay)
    if args.worker:
        with contextlib.suppress(BrokenPipeError):
            _work(args, args.only)
        return 0
    return _run(args, args.only)


if __name__ == "__main__":
    sys.exit(main())

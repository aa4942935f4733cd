"""`python -m benchmarks [NAME ...] [--write FILE]`: runs the measurements, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import Figure, between_markers, figures_table, processor

NAMES = (
    "sizes",
    "delta",
    "load",
    "convert",
    "memory",
    "pretrained",
    "overhead",
    "startup",
    "clustering",
    "range_coder",
    "quantization.speed",
    "hub",
)


_PREFACE = """\
Each figure is the result of a program in [`benchmarks/`](../benchmarks), which checks its result before it measures, and
compares within one run where speed is meant: other machines give other seconds, and much the same ratios. Figures of
speed are taken on one core, from the page cache.

Two of them depend on more than dcz. Loading is compared with a copy into fresh memory: where the system is slow to hand out
pages, both sides wait for it, and the ratio comes nearer to 1. A conversion spends a fifth of its time on the SHA-256 of its
source ([why](decisions/0008-sources-are-named-by-sha-256.md)) and a tenth on BLAKE3 (0.23 to 0.41 GB/s were seen on one
machine).
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="which ones (default: all)")
    parser.add_argument("--write", type=Path, help="also write it to this page, between its markers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        module = importlib.import_module(f"benchmarks.{options.one}")
        print("\n" + json.dumps([asdict(figure) for figure in module.run()]))
        return 0
    figures: list[Figure] = []
    for name in options.names or NAMES:
        print(f"measuring: {name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", "--one", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures += [Figure(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    from dcz._native import active_isa

    names = " ".join(options.names)
    text = (
        f"Made by `{f'python -m benchmarks {names}' if names else 'make bench'}` on {processor()} with "
        f"{active_isa()}, Python {platform.python_version()}.\n\n{figures_table(figures)}\n"
    )
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(between_markers(page, "figures", f"{_PREFACE}\n{text}"), encoding="utf-8")
    return 0 if all(figure.met is not False for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())

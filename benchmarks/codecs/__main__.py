"""`python -m benchmarks.codecs [--write] [--models ...] [--dtypes ...] [--peers ...] [--quick] [--all]`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.codecs.cells import CELLS
from benchmarks.codecs.run import Choice, run
from benchmarks.codecs.tables import page, readme
from benchmarks.codecs.weights import DTYPES, MODELS, Weights
from benchmarks.common import between_markers

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "codecs" / "results.json"


def write_pages(results: dict[str, Any]) -> None:
    """The tables into docs/benchmarks.md and README.md, between their markers."""
    for path, text in (
        (ROOT / "docs" / "benchmarks.md", page(results)),
        (ROOT / "README.md", readme(results)),
    ):
        path.write_text(between_markers(path.read_text(encoding="utf-8"), "codecs", text), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[], help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], default=[], help="default: all")
    parser.add_argument(
        "--peers", nargs="+", default=[], help="beginnings of names, such as dcz zstd; default: all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one repetition, the smallest model: to try it out"
    )
    parser.add_argument(
        "--all", action="store_true", help="the slowest settings on every model, too (an hour)"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write {RESULTS.relative_to(ROOT)}, docs/benchmarks.md and README.md",
    )
    parser.add_argument(
        "--render", action="store_true", help="measure nothing: write the pages of the results"
    )
    parser.add_argument("--cell", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        kind, peer, path, model, dtype = options.cell
        print(json.dumps(CELLS[kind](peer, Weights(model, dtype, Path(path)), quick=options.quick)))
        return 0
    if options.render:
        write_pages(json.loads(RESULTS.read_text(encoding="utf-8")))
        return 0
    choice = Choice(options.models, options.dtypes, options.peers, options.quick, options.all)
    if options.write and not choice.whole:
        parser.error("--write is for a whole run: the pages show all peers on all models")
    results = run(choice, ["--write"] if options.write else [])
    text = json.dumps(results, indent=1) + "\n"
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
        write_pages(results)
    print(page(results))
    ours = [row for row in results["corruption"] if row["peer"].startswith("dcz ")]
    return 0 if all(not row.get(o) for row in ours for o in ("wrong", "crashed", "hung")) else 1


if __name__ == "__main__":
    raise SystemExit(main())

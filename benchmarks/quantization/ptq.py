"""Quality against file size for every post-training method, of dcz, torchao and optimum-quanto, 8 to 2 bits.

`make bench-ptq` quantizes all-MiniLM-L6-v2 and g2p-en with each method, writes a complete file, reads it back and scores what
was read. Sizes of dcz are those at effort `small`, those of others of their safetensors file or of the same file through
zstd, whichever is smaller: with parameters that suit codes of few bits, where it comes out as at level 19 in a tenth of the
time. Everything is deterministic; a point that is in the results already is not measured again without `--again`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import zstandard

from benchmarks.common import Figure, figures_table, markdown
from benchmarks.deep_compression.plots import Line, Panel, plot
from benchmarks.deep_compression.study import write_json
from benchmarks.quantization.ptq_methods import METHODS, Method, Tensors
from benchmarks.quantization.ptq_networks import SUBJECTS, Arrays, Subject
from dcz.format import Reader, Writer
from dcz.format.decoded import decoded

Row = dict[str, Any]

COMMAND: Final = "make bench-ptq"
RESULTS: Final = Path(__file__).parent / "results"
OURS: Final = "dcz"
# Bits of the file for each weight: "no more than".
CLASSES: Final = (8.5, 8.0, 7.0, 6.0, 5.5, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0)
# Codes repeat by chance only: long matches alone, and good entropy coding of the rest.
_ZSTD: Final = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_BTULTRA, min_match=6, hash_log=8, chain_log=8, search_log=1, target_length=999
)


# -- measuring


def measured(subject: Subject, method: Method, folder: Path) -> Row:
    """One of our methods: written at two efforts, read back, compared bit for bit, and scored."""
    tensors = method.quantize(subject)
    sizes = {effort: _written(folder / f"{effort}.dcz", tensors, effort) for effort in ("small", "balanced")}
    with Reader(folder / "small.dcz") as reader:
        found = {name: reader.read(name) for name in reader}
    for name, tensor in tensors.items():
        if found[name].tobytes() != decoded(tensor).tobytes():
            raise AssertionError(f"{method.name}, {method.bits} bits: {name} did not come back as it was")
    return _row(subject, OURS, method.name, method.bits, sizes, found)


def _written(path: Path, tensors: Tensors, effort: Any) -> int:
    with Writer(path, effort=effort) as writer:
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
    return path.stat().st_size


def measured_peer(subject: Subject, peer: Any, folder: Path) -> Row:
    """A method of a library: saved, loaded and scored."""
    path = folder / "peer.safetensors"
    peer.save(subject, path)
    compressed = zstandard.ZstdCompressor(compression_params=_ZSTD).compress(path.read_bytes())
    sizes = {"zstd": len(compressed), "as saved": path.stat().st_size}
    return _row(subject, peer.library, peer.name, peer.bits, sizes, peer.load(subject, path))


def _row(subject: Subject, who: str, name: str, bits: float, sizes: dict[str, int], arrays: Arrays) -> Row:
    scores = subject.score(arrays)
    return {
        "who": who,
        "method": name,
        "bits": bits,
        "bytes": min(sizes.values()),
        "files": sizes,
        "scores": {measure.key: round(scores[measure.key], measure.digits) for measure in subject.measures},
    }


def measure(path: Path, names: Sequence[str], *, again: bool, only: str | None) -> None:
    """Add what is missing to the results at this path, each point as soon as it is there."""
    results: Row = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"networks": {}}
    for name in names:
        subject = SUBJECTS[name]()
        entry = results["networks"].setdefault(name, {})
        dense = subject.score(subject.arrays)
        entry |= {
            "title": subject.title,
            "bytes": subject.bytes,
            "measures": [vars(measure) for measure in subject.measures],
            "dense": {measure.key: round(dense[measure.key], measure.digits) for measure in subject.measures},
        }
        rows = {(row["who"], row["method"], row["bits"]): row for row in entry.get("rows", [])}
        for key, point in _points(subject, only, results):
            if key in rows and not again:
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows[key] = point(Path(folder))
            print(json.dumps(rows[key]), file=sys.stderr, flush=True)
            entry["rows"] = list(rows.values())
            write_json(path, COMMAND, results)


def _points(
    subject: Subject, only: str | None, results: Row
) -> Iterator[tuple[tuple[str, str, float], Callable[[Path], Row]]]:
    """What there is to measure, ours and theirs, by name."""
    if only != "peers":
        for method in METHODS:
            yield (OURS, method.name, method.bits), partial(measured, subject, method)
    if only != "ours":
        if find_spec("torchao") is None:
            raise SystemExit(f"torchao and optimum-quanto are not installed: run `{COMMAND}`")
        from benchmarks.quantization.ptq_peers import PEERS, VERSIONS

        results["versions"] = VERSIONS
        for peer in PEERS:
            yield (peer.library, peer.name, peer.bits), partial(measured_peer, subject, peer)


# -- what comes of it


def best(rows: Sequence[Row], measure: Row, size: float) -> Row | None:
    """The row of the best measure among those of no more than so many bytes; of equally good ones the smallest."""
    fitting = [row for row in rows if row["bytes"] <= size]
    sign = 1 if measure["more"] else -1
    return max(fitting, key=lambda row: (sign * row["scores"][measure["key"]], -row["bytes"]), default=None)


def shortfall(ours: Row | None, theirs: Row, measure: Row, dense: float) -> float:
    """By how much a row of ours is worse than one of theirs; infinite if there is none. Nobody is better than the dense
    network: where a quantized one has the better score, it is by chance, and the dense network's is to be reached."""
    if ours is None:
        return np.inf
    sign = 1 if measure["more"] else -1
    wanted = min(sign * theirs["scores"][measure["key"]], sign * dense)
    return float(max(0.0, wanted - sign * ours["scores"][measure["key"]]))


def figures(results: Row, *, data: bool = True) -> list[Figure]:
    """The claim, for each network and measure: at the size of each peer's file, the best of ours is as good or better.
    ``data``: among all of ours, or only those that need no calibration inputs."""
    left_out = {(method.name, method.bits) for method in METHODS if method.data and not data}
    found = []
    for entry in results["networks"].values():
        ours = [
            row
            for row in entry["rows"]
            if row["who"] == OURS and (row["method"], row["bits"]) not in left_out
        ]
        theirs = [row for row in entry["rows"] if row["who"] != OURS]
        for measure in entry["measures"]:
            behind = {
                f"{row['who']} {row['method']}, {row['bits']:g} bits": shortfall(
                    best(ours, measure, row["bytes"]), row, measure, entry["dense"][measure["key"]]
                )
                for row in theirs
            }
            missed = [f"{name} (by {by:.2g})" for name, by in behind.items() if by > 0]
            seen = f"{len(behind) - len(missed)} of {len(behind)}"
            found.append(
                Figure(
                    f"{entry['title']}: {measure['what']}",
                    "as good at every peer's size",
                    f"{seen}: not {'; '.join(missed)}" if missed else seen,
                    bool(behind) and not missed,
                )
            )
    return found


def draw(name: str, entry: Row, folder: Path) -> None:
    """The frontier of each party for each measure."""
    panels = []
    for measure in entry["measures"]:
        lines = []
        for place, who in enumerate(dict.fromkeys(row["who"] for row in entry["rows"])):
            points = [
                (row["bytes"] / 1e6, _drawn(measure, row["scores"])) for row in _frontier(entry, who, measure)
            ]
            lines.append(Line(who, points, place))
        dense = entry["dense"][measure["key"]]
        panels.append(
            Panel(
                f"{entry['title']}: {measure['key']}",
                "complete file, MB",
                _label(measure),
                lines,
                x_scale="log",
                y_scale="log" if _is_distance(measure) else "linear",
                level=None if _is_distance(measure) else ("dense", dense),
            )
        )
    plot(folder / f"{name}.svg", panels)


def _is_distance(measure: Row) -> bool:
    """Whether a measure is that of agreement, which is drawn as the distance from the dense network."""
    return bool(measure["key"] in ("agreement", "divergence"))


def _drawn(measure: Row, scores: Row) -> float:
    value: float = scores[measure["key"]]
    return max(1 - value, 1e-5) if measure["key"] == "agreement" else value


def _label(measure: Row) -> str:
    return f"1 - {measure['what']}" if measure["key"] == "agreement" else str(measure["what"])


def _frontier(entry: Row, who: str, measure: Row) -> list[Row]:
    """From small to large, the rows of one party that are better than all that are smaller."""
    found: list[Row] = []
    sign = 1 if measure["more"] else -1
    for row in sorted((row for row in entry["rows"] if row["who"] == who), key=lambda row: row["bytes"]):
        if not found or sign * row["scores"][measure["key"]] > sign * found[-1]["scores"][measure["key"]]:
            found.append(row)
    return found


def tables(results: Row) -> str:
    """The results in Markdown."""
    pages = [
        "# Post-training quantization: quality against file size",
        f"Made by `{results['command']}`; peers: "
        + ", ".join(f"{name} {number}" for name, number in results.get("versions", {}).items())
        + ".",
        figures_table(figures(results)),
        "The same without ours that look at calibration inputs, as the peers do not:",
        figures_table(figures(results, data=False)),
    ]
    for entry in results["networks"].values():
        weights = entry["bytes"] // 4
        keys = [measure["key"] for measure in entry["measures"]]
        heads = [f"{measure['what']}" for measure in entry["measures"]]
        dense = [f"{entry['dense'][key]:g}" for key in keys]
        pages.append(f"## {entry['title']}: {weights:,} weights, {entry['bytes']:,} bytes in fp32")
        pages.append(
            "The dense network: "
            + "; ".join(f"{head} {value}" for head, value in zip(heads, dense, strict=True))
            + "."
        )
        pages.append(_classes(entry))
        pages.append("All points, from small to large:")
        rows = [
            (
                row["who"],
                row["method"],
                f"{row['bits']:g}",
                f"{row['bytes']:,}",
                f"{8 * row['bytes'] / weights:.2f}",
                ", ".join(f"{what} {size:,}" for what, size in row["files"].items() if size != row["bytes"]),
                *(f"{row['scores'][key]:g}" for key in keys),
            )
            for row in sorted(entry["rows"], key=lambda row: row["bytes"])
        ]
        pages.append(
            markdown(("", "method", "bits", "file, bytes", "bits a weight", "otherwise", *keys), rows)
        )
    return "\n\n".join(pages) + "\n"


def _classes(entry: Row) -> str:
    """For each size, the best of each party by agreement, and its scores."""
    parties = list(dict.fromkeys(row["who"] for row in entry["rows"]))
    measure = entry["measures"][0]
    keys = [one["key"] for one in entry["measures"]]
    rows = []
    for bits in CLASSES:
        found = {
            who: best(
                [row for row in entry["rows"] if row["who"] == who], measure, bits * entry["bytes"] / 32
            )
            for who in parties
        }
        present = [row for row in found.values() if row is not None]
        if not present:
            continue
        first = best(present, measure, np.inf)
        for who, row in found.items():
            if row is not None:
                rows.append(
                    (
                        f"{bits:g}",
                        f"**{who}**" if row is first else who,
                        f"{row['method']}, {row['bits']:g} bits",
                        f"{row['bytes']:,}",
                        *(f"{row['scores'][key]:g}" for key in keys),
                    )
                )
    head = ("bits a weight, at most", "", f"best by {measure['key']}", "file, bytes", *keys)
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=tuple(SUBJECTS), default=tuple(SUBJECTS))
    parser.add_argument(
        "--only", choices=("ours", "peers"), help="measure a part, and keep the other results"
    )
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--draw", action="store_true", help="only make tables and plots of the results again")
    options = parser.parse_args()
    path = RESULTS / "ptq.json"
    if not options.draw:
        torch.set_num_threads(1)
        RESULTS.mkdir(exist_ok=True)
        measure(path, options.networks, again=options.again, only=options.only)
    results = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in results["networks"].items():
        draw(name, entry, RESULTS)
    path.with_suffix(".md").write_text(tables(results), encoding="utf-8")
    print(figures_table(figures(results)))


if __name__ == "__main__":
    main()

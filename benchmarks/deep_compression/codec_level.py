"""AlexNet and VGG-16 as Deep Compression leaves them, at codec level: what do real files of such tensors take?

    python -m benchmarks.deep_compression.codec_level            # sizes: writes them to codec_level.json and codec_level.md
    python -m benchmarks.deep_compression.codec_level --speed    # measures encoding and decoding of AlexNet, and adds that

The networks are not trained here, and no accuracy is claimed: the tensors have the shapes of the two networks, and the
statistics that the rows of the paper's tables 4 and 5 imply (synthetic.py). From the files, the paper's accounting is made
again (dcz.format.paper), which shows how near the tensors are to the paper's; then the complete files count, biases included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.common import markdown, processor, run_python
from benchmarks.deep_compression.paper_tables import ALEXNET, VGG16, Network, Row
from benchmarks.deep_compression.synthetic import make_tensor, source_bytes
from dcz._native import active_isa
from dcz.format import CodebookTensor, Reader, Writer
from dcz.format.effort import EffortName
from dcz.format.layers import LayerTable, layer_table
from dcz.format.paper import PaperTable, paper_table

FOLDER: Final = Path(__file__).parent
EFFORTS: Final[tuple[EffortName, ...]] = ("fast", "balanced", "small")
WANTED: Final[dict[str, tuple[int, int | None]]] = {
    "AlexNet": (38, None),
    "VGG-16": (55, 64),
}  # at least, at best
SEED: Final = 20160503
_ROUNDS: Final = 21


def tensors(network: Network) -> Iterator[tuple[Row, CodebookTensor, np.ndarray]]:
    """Each layer's weights and biases, always the same ones."""
    for number, row in enumerate(network.rows):
        rng = np.random.default_rng([SEED, network.weights, number])
        yield (
            row,
            make_tensor(row, network.index_bits, rng),
            rng.standard_normal(row.shape[0]).astype(np.float32),
        )


def check(reader: Reader, name: str, tensor: CodebookTensor) -> None:
    """The file gives back what was put in."""
    assert tensor.mask is not None
    wanted = np.where(tensor.mask, tensor.centroids[0][tensor.codes], np.float32(0)).reshape(tensor.shape)
    if not np.array_equal(reader.read(name), wanted):
        raise SystemExit(f"{name} came back different")


@dataclass(frozen=True)
class Result:
    """A network: the paper's accounting, and for each effort the table of the file."""

    network: Network
    paper: PaperTable
    files: dict[EffortName, LayerTable]

    @property
    def source(self) -> float:
        """The entropy of what was drawn, codebooks and biases included, in bytes."""
        biases = sum(4 * row.shape[0] for row in self.network.rows)
        return sum(source_bytes(row, self.network.index_bits) for row in self.network.rows) + biases

    def rows(self) -> Iterator[dict[str, Any]]:
        for row, made in zip(self.network.rows, self.paper.rows, strict=True):
            yield {
                "layer": row.name,
                "weights": row.weights,
                "density": [row.density, 100 * made.density],
                "fillers_for_each_kept": made.fillers / made.kept,
                "coded_weight_bits": [row.coded_weight_bits, made.coded_weight_bits],
                "coded_index_bits": [row.coded_index_bits, made.coded_index_bits],
                "rate": [row.rate, 100 * made.rate],
                "coded_rate": [row.coded_rate, 100 * made.coded_rate],
            }

    def to_dict(self) -> dict[str, Any]:
        assert self.paper.rate is not None
        assert self.paper.coded_rate is not None
        return {
            "network": self.network.name,
            "paper_claims": self.network.claimed,
            "rows": list(self.rows()),
            "source_bytes": self.source,
            "dense_bytes": self.files["small"].total.dense,
            "rate": [self.network.rate, 100 * self.paper.rate],
            "coded_rate": [self.network.coded_rate, 100 * self.paper.coded_rate],
            "files": {
                effort: {"size": table.size, "compression": table.compression, "bytes": table.parts.to_dict()}
                for effort, table in self.files.items()
            },
        }


def measure(network: Network, folder: Path) -> Result:
    paths = {effort: folder / f"{network.name}-{effort}.dcz" for effort in EFFORTS}
    writers = {effort: Writer(path, effort=effort) for effort, path in paths.items()}
    for row, tensor, bias in tensors(network):
        for writer in writers.values():
            writer.add_tensor(f"{row.name}.weight", tensor)
            writer.add_tensor(f"{row.name}.bias", bias)
        print(f"  {network.name} {row.name}", file=sys.stderr, flush=True)
    for writer in writers.values():
        writer.close()
    tables: dict[EffortName, LayerTable] = {}
    for effort, path in paths.items():
        with Reader(path) as reader:
            tables[effort] = layer_table(reader)
    with Reader(paths["balanced"]) as reader, Reader(paths["small"]) as small:
        paper = paper_table(reader, network.index_bits)
        for row, tensor, _ in tensors(network):
            check(reader, f"{row.name}.weight", tensor)
            check(small, f"{row.name}.weight", tensor)
    return Result(network, paper, tables)


# -- speed, each in a process of its own


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def encode_speed(path: str, effort: EffortName) -> dict[str, float]:
    """Seconds in which two threads write AlexNet, from tensors in memory, and the peak of memory beyond them, in MB."""
    made = [(row.name, tensor, bias) for row, tensor, bias in tensors(ALEXNET)]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is in use now
    before = _megabytes("VmHWM")
    start = time.perf_counter()
    with Writer(path, effort=effort, threads=2) as writer:
        for name, tensor, bias in made:
            writer.add_tensor(f"{name}.weight", tensor)
            writer.add_tensor(f"{name}.bias", bias)
    taken = time.perf_counter() - start
    return {"seconds": taken, "megabytes_beyond_the_tensors": _megabytes("VmHWM") - before}


def decode_speed(path: str) -> dict[str, float]:
    """Seconds in which one core decodes AlexNet into memory that is there already, and in which dcz.load makes new tensors; and
    what copying the dense tensors takes, in the same rounds. Medians."""
    from benchmarks.common import alternate, median_ratio, one_core

    one_core()
    import dcz

    with Reader(path, threads=1) as reader:
        outs = {name: np.zeros(reader.shape(name), np.float32) for name in reader.keys()}  # noqa: SIM118
        copies = {name: np.ones(out.shape, np.float32) for name, out in outs.items()}

        def copy() -> None:
            for name, out in outs.items():
                np.copyto(copies[name], out)

        into, copied, loaded = alternate(
            [lambda: reader.read_into(outs), copy, lambda: dcz.load(path, threads=1)], _ROUNDS
        )
    return {
        "read_into_seconds": statistics.median(into),
        "copy_seconds": statistics.median(copied),
        "load_seconds": statistics.median(loaded),
        "best_read_into_seconds": min(into),
        "best_copy_seconds": min(copied),
        "best_load_seconds": min(loaded),
        "read_into_over_copy": median_ratio(into, copied),
        "peak_megabytes": _megabytes("VmHWM"),
    }


def _apart(call: str) -> dict[str, float]:
    code = f"import json; from benchmarks.deep_compression import codec_level as c; print(json.dumps({call}))"
    found: dict[str, float] = json.loads(run_python(code).splitlines()[-1])
    return found


def speed(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "processor": processor(),
        "isa": active_isa(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    for effort in EFFORTS:
        path = str(folder / f"speed-{effort}.dcz")
        found[effort] = {"encode": _apart(f"c.encode_speed({path!r}, {effort!r})")}
        if effort != "small":  # range coding is for size
            found[effort]["decode"] = _apart(f"c.decode_speed({path!r})")
    return found


# -- the page

_PREFACE: Final = """\
# AlexNet and VGG-16 at codec level

Made by `python -m benchmarks.deep_compression.codec_level`.

**No accuracy is claimed.** Nothing was trained. The tensors have the shapes of the two networks and the statistics of the rows of
tables 4 and 5 of Han, Mao and Dally 2016. What is *fitted*, for each row: the density, the runs of zeros (a mixture of two
geometric distributions, and for fc6 and fc7 empty rows, so that fillers and index bits are the paper's), and the spread of the
codes (so that their bits are the paper's). What is *measured*: everything in the tables below, from the files. Successive runs
and codes are independent, so a coder that looks for structure beyond the paper's figures finds hardly any here: the gain of `small` over
`balanced` is what remains, and a trained network gives it more.

In each pair, the first number is the paper's cell, the second one the same accounting of our tensors (`dcz.format.paper`): filler
zeros are entries, a codebook is 2^bits values of 32 bits, and nothing else is counted. `off by` is the larger deviation of both rates.
All rows are within 2 % but conv1_1 of VGG-16, whose cells contradict each other: its rate before coding asks for 0.620 entries for each
weight, that after coding for 0.571, and its density is 0.58.
"""


def _deviation(pair: list[float]) -> float:
    return pair[1] / pair[0] - 1


def page(results: list[dict[str, Any]], speeds: dict[str, Any] | None) -> str:
    parts = [_PREFACE]
    for result in results:
        header = (
            "layer",
            "weights",
            "density %",
            "weight bits P+Q+H",
            "index bits P+Q+H",
            "rate % P+Q",
            "rate % P+Q+H",
            "off by",
        )
        rows = []
        for row in result["rows"]:
            off = max(abs(_deviation(row["rate"])), abs(_deviation(row["coded_rate"])))
            rows.append(
                (
                    *(row["layer"], f"{row['weights']:,}", f"{row['density'][0]}, {row['density'][1]:.2f}"),
                    *(
                        f"{row[name][0]}, {row[name][1]:.2f}"
                        for name in ("coded_weight_bits", "coded_index_bits")
                    ),
                    *(f"{row[name][0]}, {row[name][1]:.2f}" for name in ("rate", "coded_rate")),
                    f"{100 * off:.1f} %",
                )
            )
        off = max(abs(_deviation(result["rate"])), abs(_deviation(result["coded_rate"])))
        totals = [f"{result[name][0]:.3f}, {result[name][1]:.3f}" for name in ("rate", "coded_rate")]
        rows.append(
            (
                "rows together",
                f"{sum(row['weights'] for row in result['rows']):,}",
                "",
                "",
                "",
                *totals,
                f"{100 * off:.1f} %",
            )
        )
        parts.append(f"## {result['network']}\n\n{markdown(header, rows)}\n")
        files = [
            (
                effort,
                f"{file['size']:,}",
                f"**{file['compression']:.2f}x**",
                *(f"{file['bytes'][part]:,}" for part in ("weights", "indices", "codebooks", "tables")),
                f"{file['bytes']['manifest'] + file['bytes']['digests']:,}",
                f"{sum(file['bytes'][part] for part in ('header', 'padding', 'footer')):,}",
            )
            for effort, file in result["files"].items()
        ]
        columns = (
            "complete file, effort",
            "bytes",
            "ratio",
            "weights",
            "indices",
            "codebooks",
            "tables",
            "manifest",
            "rest",
        )
        implied = 100 / result["coded_rate"][0]
        best = max(file["compression"] for file in result["files"].values())
        least, aim = WANTED[result["network"]]
        source = result["source_bytes"]
        parts.append(
            f"The paper claims {result['paper_claims']}x; its own rows add up to {implied:.1f}x. The files hold the biases, too (fp32).\n\n"
            f"{markdown(columns, files)}\n\n"
            f"Wanted: at least {least}x{'' if aim is None else f', at best {aim}x'}; seen {best:.2f}x. The entropy of what was drawn, with "
            f"codebooks and biases, is {source:,.0f} bytes, which would be {result['dense_bytes'] / source:.2f}x without any manifest: with the "
            f"statistics of the paper's rows and nothing else to find, no coder makes it smaller, and a ratio above that is not to be had "
            f"here. The smallest file is {100 * (min(file['size'] for file in result['files'].values()) / source - 1):.2f} % larger.\n"
        )
    if speeds is not None:
        parts.append(_speed_part(speeds))
    return "\n".join(parts)


def _speed_part(speeds: dict[str, Any]) -> str:
    rows = []
    for effort in EFFORTS:
        encode, decode = speeds[effort]["encode"], speeds[effort].get("decode")
        row = [effort, f"{encode['seconds']:.2f} s", f"{encode['megabytes_beyond_the_tensors']:.0f} MB"]
        if decode is None:
            row += ["", "", "", "", ""]
        else:
            row += [
                f"{decode[f'{name}_seconds']:.3f} s, {decode[f'best_{name}_seconds']:.3f} s"
                for name in ("read_into", "copy", "load")
            ]
            row += [f"{decode['read_into_over_copy']:.2f}", f"{decode['peak_megabytes']:.0f} MB"]
        rows.append(row)
    header = (
        *("effort", "encode", "memory beyond the tensors", "`read_into`: median, best", "copy: median, best"),
        *("`dcz.load`: median, best", "`read_into` / copy, median", "peak memory, decoding"),
    )
    return (
        f"## Speed: the AlexNet file, 61 M weights\n\nMade by `python -m benchmarks.deep_compression.codec_level --speed` on "
        f"{speeds['processor']} with {speeds['isa']}, Python {speeds['python']}; {speeds['load']:.0f} other programs were waiting for "
        f"its {speeds['cores']} cores, so the best round says more than the median.\n\nWanted: encoded in less than 15 s on two cores, "
        f"decoded in less than 0.1 s on one. Encoding, on two threads, starts from codes and masks in memory and ends with a file that is "
        f"on the disk (one run). Decoding, on one core, {_ROUNDS} rounds, reads the page cache and compares the digest of every chunk: "
        f"`read_into` decodes to dense fp32 (244 MB) in memory that was touched before, which is what the figure is about; `dcz.load` opens the "
        f"file and makes new torch tensors, and so waits for fresh pages; the copy is of the dense tensors, from warm memory to warm memory. The "
        f"process that decodes holds the dense tensors three times, to compare. `fast` and `balanced` make the same choices here.\n\n"
        f"{markdown(header, rows)}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deep_compression.codec_level")
    parser.add_argument("--speed", action="store_true", help="measure encoding and decoding, not sizes")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="where codec_level.json and codec_level.md are"
    )
    options = parser.parse_args()
    place = options.out / "codec_level.json"
    data: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if options.speed:
            data["speed"] = speed(Path(folder))
        else:
            data["seed"] = SEED
            data["networks"] = [measure(network, Path(folder)).to_dict() for network in (ALEXNET, VGG16)]
    place.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = page(data.get("networks", []), data.get("speed"))
    (options.out / "codec_level.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""LeNet-300-100 and LeNet-5 on full MNIST: error against the bytes of complete files.

    python -m benchmarks.deep_compression.lenet --data mnist.npz --network lenet-300-100 --seeds 3

Without --data, MNIST is fetched through the Hub. What is trained is kept in --work, and a run that is there already is
not made again. The operating point is chosen on the validation split, the last 10,000 images of the training set: the
smallest file whose validation error is not above the target. The test error of that file is reported, whatever it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import dcz
from benchmarks.common import markdown
from benchmarks.deep_compression.lenet_training import (
    SETTINGS,
    finishing_run,
    plain_run,
    rate_aware_run,
)
from benchmarks.deep_compression.mnist import Mnist, error_percent, lessons, load_mnist

RESULTS = Path(__file__).with_name("lenet.json")
TABLE = Path(__file__).with_name("lenet.md")
TARGETS = {
    "lenet-300-100": ((1.64, 55, 80), (1.95, 110, 150)),
    "lenet-5": ((0.80, 60, 150), (1.00, 162, 600)),
}
# The parts of a run, each kept under its name once it is there.
VARIANTS = {
    "plain": {"candidates": plain_run},
    "rate-aware": {"candidates": rate_aware_run, "finishing": finishing_run},
}


def run_of(data: Mnist, network: str, variant: str, seed: int, work: Path) -> list[dict[str, Any]]:
    """The candidates of one run, with their files in a folder of it."""
    folder = work / network / variant / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    candidates: list[dict[str, Any]] = []
    for name, part in VARIANTS[variant].items():
        kept = folder / f"{name}.json"
        if not kept.exists():
            taught = lessons(data, work / "lessons.npy")
            found: list[dict[str, Any]] = []
            unfinished = folder / "unfinished.json"
            unfinished.write_text("[]\n")
            for candidate in part(SETTINGS[network], data, taught, seed, folder):
                found.append(asdict(candidate))
                unfinished.write_text(json.dumps(found, indent=1) + "\n")
            unfinished.replace(kept)
        candidates += json.loads(kept.read_text())
    return candidates


def chosen(candidates: Sequence[dict[str, Any]], target: float) -> dict[str, Any] | None:
    """The smallest file that is good enough on the validation split."""
    good = [one for one in candidates if one["validation_error"] <= target + 1e-9]
    return min(good, key=lambda one: int(one["bytes"]), default=None)


def point(
    data: Mnist, network: str, variant: str, target: float, seeds: int, work: Path
) -> list[dict[str, Any]]:
    """What was chosen for each seed, read back from its file, and its test error."""
    rows = []
    for seed in range(seeds):
        candidate = chosen(run_of(data, network, variant, seed, work), target)
        if candidate is None:
            continue
        path = work / network / variant / str(seed) / candidate["file"]
        module = SETTINGS[network].make()
        module.load_state_dict(dcz.load(path))
        dense = sum(4 * parameter.numel() for parameter in module.parameters())
        size = path.stat().st_size
        rows.append(
            {
                "seed": seed,
                "stage": candidate["stage"],
                "bytes": size,
                "payload": size - _beside(path),
                "ratio": dense / size,
                "validation_error": candidate["validation_error"],
                "test_error": error_percent(module, *data.test),
                "densities": candidate["densities"],
            }
        )
    return rows


def _beside(path: Path) -> int:
    """Bytes of the manifest, header, padding and footer."""
    with dcz.open(path) as file:
        return file.reader.size - sum(file.reader.manifest.chunks.lengths)


def summary(results: dict[str, Any]) -> str:
    """The table of all results."""
    rows = []
    for network, variants in results["networks"].items():
        for target, least, aim in TARGETS[network]:
            for variant, points in variants.items():
                seen = points.get(f"{target:.2f}", [])
                if not seen:
                    continue
                rows.append(
                    (
                        network,
                        f"{target:.2f} %",
                        variant,
                        _spread([row["ratio"] for row in seen], 1, "x"),
                        f"{least}x, {aim}x",
                        _spread([row["test_error"] for row in seen], 2, " %"),
                        _spread([row["validation_error"] for row in seen], 2, " %"),
                        _spread([row["bytes"] for row in seen], 0, ""),
                        _spread([row["payload"] for row in seen], 0, ""),
                        str(len(seen)),
                    )
                )
    header = (
        "network",
        "target error",
        "variant",
        "ratio, whole file",
        "at least, aim",
        "test error",
        "validation error",
        "bytes",
        "of them streams",
        "seeds",
    )
    return markdown(header, rows)


def _spread(values: Sequence[float], digits: int, unit: str) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.fmean(values):,.{digits}f}{unit}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


_PAGE = """# LeNet-300-100 and LeNet-5 on MNIST

Complete files, everything counted: mean and standard deviation over the seeds; ratios to the fp32 parameters, 1,066,440 and
1,724,320 bytes. Made by

    python -m benchmarks.deep_compression.lenet --data mnist.npz --seeds 3

Operating points are chosen on a validation split, the last 10,000 images of the training set, on which nothing was trained:
the smallest file whose validation error is not above the target. The test error of that file is then reported, whatever it
is. A seed without such a file is left out, and `seeds` says how many there are.

`plain`: pruned by magnitude in steps and retrained, 8 shared weights a layer, centroids trained, biases exact. `rate-aware`:
one run with a rate that grows from stage to stage (`dcz.compression.training.rate`), biases included. Both see half of the
images slightly distorted, and no other network. LeNet-5's last stage begins from the file of the one before, with a tenth of the
images distorted.

{table}
"""


def page(results: dict[str, Any]) -> str:
    """What is committed beside the results."""
    return _PAGE.format(table=summary(results))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an .npz of MNIST; without it, fetched through the Hub")
    parser.add_argument("--network", choices=(*SETTINGS, "both"), default="both")
    parser.add_argument("--variant", choices=(*VARIANTS, "both"), default="both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to share the runs among processes")
    parser.add_argument(
        "--runs-only", action="store_true", help="make the runs, and leave the table as it is"
    )
    parser.add_argument("--work", type=Path, default=Path("build/lenet"), help="where runs are kept")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_mnist(options.data)
    networks = list(SETTINGS) if options.network == "both" else [options.network]
    variants = list(VARIANTS) if options.variant == "both" else [options.variant]
    for network in networks:
        for variant in variants:
            for seed in range(options.first_seed, options.seeds):
                run_of(data, network, variant, seed, options.work)
    if options.runs_only:
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    for network in networks:
        for variant in variants:
            results["networks"].setdefault(network, {})[variant] = {
                f"{target:.2f}": point(data, network, variant, target, options.seeds, options.work)
                for target, _, _ in TARGETS[network]
            }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text(page(results))
    print(summary(results))


if __name__ == "__main__":
    main()

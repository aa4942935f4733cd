"""How fast and how good is the codebook of ten million weights?  python -m benchmarks.clustering [FILE.safetensors]

Weights: a deterministic mix with heavy tails, or all float32 tensors of a file. Before anything is timed, the results
are checked: the codes against numpy's search, the cost against the codes, and every cost against the exact optimum
(all distinct weights; on a sample kmeans1d must agree). One thread; CPU time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import kmeans1d
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from benchmarks.common import Figure
from dcz.compression.clustering import Clustering, Init, assign, kmeans

T = TypeVar("T")
Weights = npt.NDArray[np.float32]

MAX_SECONDS = 0.2
MAX_EXCESS = 1e-4
SAMPLE = 100_000
INITS: tuple[Init, ...] = ("linear", "density", "forgy")


def synthetic(n: int) -> Weights:
    """Layers of different scales, one in ten weights from a distribution with heavy tails."""
    random = np.random.RandomState(0)
    values = random.standard_normal(n).astype(np.float32)
    tails = random.random_sample(n) < 0.1
    values[tails] = random.standard_t(3, int(tails.sum())).astype(np.float32)
    scales = np.repeat(random.uniform(0.01, 0.06, n // 500_000 + 1), 500_000)[:n]
    return values * scales.astype(np.float32)


def from_file(path: str, n: int) -> Weights:
    from safetensors.numpy import load_file

    tensors = [tensor for tensor in load_file(path).values() if tensor.dtype == np.float32]
    return np.concatenate([tensor.reshape(-1) for tensor in tensors])[:n]


def cost_of(values: Weights, centroids: npt.NDArray[np.float64], codes: npt.NDArray[np.uint8]) -> float:
    return float(((values - centroids[codes]) ** 2).sum())


def timed(run: Callable[[], T], rounds: int) -> tuple[float, T]:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return float(np.median(times)), result


def run() -> list[Figure]:
    values, k = synthetic(10_000_000), 32

    def codebook() -> Clustering:
        found = kmeans(values, k)
        assign(values, found.centroids)
        return found

    seconds, found = timed(codebook, 5)
    excess = found.cost / kmeans(values, k, method="exact").cost - 1
    return [
        Figure(
            "codebook of 10 M weights, k = 32, one core, seconds; cost over the optimum",
            f"below {MAX_SECONDS}; below {MAX_EXCESS:.0e}",
            f"{seconds:.3f}; {excess:.1e}",
            seconds < MAX_SECONDS and excess < MAX_EXCESS,
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", help="a safetensors file whose weights to use")
    parser.add_argument("-n", type=int, default=10_000_000, help="at most so many weights")
    parser.add_argument("-k", type=int, default=32, help="centroids")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of each measurement (median)")
    parser.add_argument("--no-sklearn", action="store_true", help="leave scikit-learn out: it takes long")
    options = parser.parse_args()
    values = from_file(options.file, options.n) if options.file else synthetic(options.n)
    k = options.k

    def codebook() -> tuple[Clustering, npt.NDArray[np.uint8]]:
        found = kmeans(values, k)
        return found, assign(values, found.centroids)

    # The results first.
    optimal, codes = codebook()
    halfway = (optimal.centroids[1:] + optimal.centroids[:-1]) / 2
    assert np.array_equal(codes, np.searchsorted(halfway, values.astype(np.float64)))
    assert np.isclose(optimal.cost, cost_of(values, optimal.centroids, codes), rtol=1e-9, atol=0)
    seconds_exact, exact = timed(lambda: kmeans(values, k, method="exact"), 1)
    sample = values[:: max(1, values.size // SAMPLE)].copy()
    peer = np.unique(kmeans1d.cluster(sample.astype(np.float64), k).centroids)
    peer_cost = cost_of(sample, peer, assign(sample, peer))
    assert np.isclose(kmeans(sample, k, method="exact").cost, peer_cost, rtol=1e-9, atol=0)

    table = Table(title=f"{values.size:,} weights, k = {k}, one thread, CPU time")
    for column in ("", "seconds", "cost / optimum - 1"):
        table.add_column(column, justify="right" if column else "left")

    def row(name: str, seconds: float, cost: float) -> None:
        table.add_row(name, f"{seconds:.4f}", f"{cost / exact.cost - 1:.2e}")

    seconds, _ = timed(codebook, options.rounds)
    row("dcz: codebook and codes", seconds, optimal.cost)
    row("  kmeans", timed(lambda: kmeans(values, k), options.rounds)[0], optimal.cost)
    row("  assign", timed(lambda: assign(values, optimal.centroids), options.rounds)[0], optimal.cost)
    row("dcz, all distinct weights: kmeans", seconds_exact, exact.cost)
    for init in INITS:
        seconds_lloyd, lloyd = timed(partial(kmeans, values, k, method="lloyd", init=init), 1)
        row(f"dcz, Lloyd, {init}: kmeans ({lloyd.iterations} iterations)", seconds_lloyd, lloyd.cost)
    if not options.no_sklearn:
        column_of_values = values.reshape(-1, 1)
        seconds_peer, fitted = timed(lambda: KMeans(k, n_init=1, random_state=0).fit(column_of_values), 1)
        centroids = np.sort(fitted.cluster_centers_[:, 0].astype(np.float64))
        row(
            "scikit-learn, k-means++, n_init=1",
            seconds_peer,
            cost_of(values, centroids, assign(values, centroids)),
        )
    console = Console()
    console.print(table)

    excess = optimal.cost / exact.cost - 1
    met = seconds < MAX_SECONDS and excess < MAX_EXCESS
    console.print(
        f"{'met' if met else 'MISSED'}: {seconds:.3f} s (limit {MAX_SECONDS} s), "
        f"{excess:.1e} over the optimum (limit {MAX_EXCESS:.0e})"
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure a latency table of a network on this machine (dcz.compression.search.latency says what it holds).

    python -m benchmarks.quantization.latency --network g2p-en -o table.json

One thread; nothing else should run. At the end the table is checked against the whole way: a file with all weights stored alike is
fetched at a bandwidth, loaded into the network, and run once. The table's sums and what that took are written
into it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dcz
from benchmarks.common import markdown, one_core, processor
from benchmarks.quantization.subjects import SUBJECTS, Subject
from dcz.compression.search.costs import Option, total
from dcz.compression.search.latency import LatencyCheck, LatencyModel, LatencyTable, save_table
from dcz.compression.search.sensitivity import choices
from dcz.compression.search.timing import measure_latency
from dcz.compression.training.weights import Weight, find_weights
from dcz.converters.bit_allocation import options_of, recipe_of, uniform_values
from dcz.format import Reader

__all__ = ["BANDWIDTHS", "BATCHES", "BITS", "measured_table", "search_options"]

BITS = range(2, 9)
BATCHES = (1, 16, 256)
BANDWIDTHS = (1_000_000, 10_000_000, 100_000_000)
"""Bytes a second: a phone, a home, a data centre."""
CHECKED_BITS = (2, 4, 8)
ROUNDS = 5
PIECE = 1 << 16


def search_options(weights: Sequence[Weight]) -> tuple[dict[str, tuple[Option, ...]], dict[str, Any]]:
    """2 to 8 bits and exact, for each weight; and what the options' names stand for."""
    by_name: dict[str, Any] = {}
    options = {weight.name: options_of(uniform_values(weight, BITS), by_name) for weight in weights}
    return options, by_name


def fetched(data: bytes, bandwidth: float) -> bytes:
    """A copy that comes no faster than the bandwidth allows."""
    pieces: list[bytes] = []
    start, came = time.perf_counter(), 0
    for place in range(0, len(data), PIECE):
        pieces.append(data[place : place + PIECE])
        came += len(pieces[-1])
        time.sleep(max(0.0, start + came / bandwidth - time.perf_counter()))
    return b"".join(pieces)


def measured_table(
    subject: Subject, batches: Sequence[int] = BATCHES, bandwidths: Sequence[int] = BANDWIDTHS
) -> LatencyTable:
    """Measure, and check the sums against the whole way."""
    weights = find_weights(subject.network)
    options, by_name = search_options(weights)
    table = measure_latency(
        subject.network, weights, options, subject.run, batches, network=subject.name, processor=processor()
    )
    costs = choices(weights, options, lambda *_: 0.0)
    checks: list[LatencyCheck] = []
    for bits in CHECKED_BITS:
        chosen = {name: next(choice for choice in row if choice.bits == bits) for name, row in costs.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.dcz"
            dcz.convert(
                subject.network, path, recipe=recipe_of(weights, chosen, by_name=by_name, name="uniform")
            )
            data = path.read_bytes()
        for batch, bandwidth in [(batches[0], speed) for speed in (None, *bandwidths)] + [
            (batches[-1], None)
        ]:
            speed = float("inf") if bandwidth is None else bandwidth
            model = LatencyModel(table, bandwidth=speed, batch=batch)
            row = model.costs(costs)
            parts = {name: next(choice for choice in row[name] if choice.bits == bits) for name in row}
            checks.append(
                LatencyCheck(
                    option=f"{bits} bits",
                    batch=batch,
                    bandwidth=bandwidth,
                    predicted=total(parts).seconds + model.beside(len(data) - total(parts).bytes),
                    measured=min(_whole_way(subject, data, batch, speed) for _ in range(ROUNDS)),
                )
            )
    return table.model_copy(update={"checks": tuple(checks)})


def _whole_way(subject: Subject, data: bytes, batch: int, bandwidth: float) -> float:
    """Seconds from the closed file to the first output."""
    parameters = {name: value.detach() for name, value in subject.network.state_dict().items()}
    kept = {name: value.clone() for name, value in parameters.items()}
    start = time.perf_counter()
    with Reader(fetched(data, bandwidth), threads=1) as reader:
        for name, value in parameters.items():
            reader.read(name, value.numpy())
    with torch.no_grad():
        subject.run(batch)
    taken = time.perf_counter() - start
    for name, value in parameters.items():
        value.copy_(kept[name])
    return taken


def summary(table: LatencyTable) -> str:
    """The table for people: microseconds of each weight, and how well the sums agree with the whole way."""
    batches = table.batches
    header = [
        "weight",
        "shape",
        "decode 2, 4, 8 bits, us",
        *(f"{kind}, batch {', '.join(map(str, batches))}, us" for kind in ("f32", "bf16", "int8")),
    ]
    rows = []
    for weight in table.weights:
        decoding = [
            f"{1e6 * seconds:.0f}"
            for name, seconds in weight.decode.items()
            if any(f"-{bits}," in name for bits in CHECKED_BITS)
        ]
        rows.append(
            [
                weight.name,
                " x ".join(map(str, weight.shape)),
                ", ".join(decoding),
                *(
                    ", ".join(f"{1e6 * one:.0f}" for one in weight.compute.get(kind, ())) or "-"
                    for kind in ("f32", "bf16", "int8")
                ),
            ]
        )
    checks = [
        (
            check.option,
            str(check.batch),
            "memory" if check.bandwidth is None else f"{check.bandwidth / 1e6:g} MB/s",
            f"{1e3 * check.predicted:.2f}",
            f"{1e3 * check.measured:.2f}",
            f"{check.predicted / check.measured:.2f}",
        )
        for check in table.checks
    ]
    return (
        f"{table.network}, {table.processor}, torch {table.torch}, {table.threads} thread\n\n"
        + markdown(header, rows)
        + "\n\n"
        + markdown(("all weights in", "batch", "bandwidth", "predicted, ms", "measured, ms", "ratio"), checks)
        + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=SUBJECTS, default="g2p-en")
    parser.add_argument("--data", type=Path, help="MNIST as .npz, for lenet-5; fetched if it is not given")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dcz-quantization")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    one_core()
    os.makedirs(given.work, exist_ok=True)
    made = measured_table(SUBJECTS[given.network](given.data, given.work))
    save_table(made, given.output)
    print(summary(made))

"""The study of mixed precision, on scikit-learn's digits; and the latency tables that are committed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.quantization import subjects
from benchmarks.quantization.mixed_precision import Study, latency_table, size_table
from benchmarks.quantization.subjects import digits

from dcz.compression.search.agent import Settings
from dcz.compression.search.latency import LatencyModel, LatencyTable, WeightLatency, load_table

RESULTS = Path(subjects.__file__).with_name("results")
TABLES = sorted(RESULTS.glob("latency-*.json"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_study_of_digits() -> None:
    study = Study(digits(), probes=2)
    error, divergence = study.subject.score(study.subject.network)
    assert error < 12
    assert divergence == pytest.approx(0, abs=1e-6)
    rows = [study.by_size(bits) for bits in (3, 4)]
    for row in rows:
        for way in ("trace", "measured"):
            assert row[way]["file_bytes"] <= row["uniform"]["file_bytes"]
            # It is worth something on data that nothing was chosen by.
            assert row[way]["divergence"] < 0.8 * row["uniform"]["divergence"]
    table = LatencyTable(
        version=1,
        network="digits",
        processor="",
        torch="",
        threads=1,
        batches=(1,),
        open=0.0,
        rest=(0.0,),
        weights=tuple(
            WeightLatency(
                name=name,
                shape=(1,),
                decode={choice.name: 1e-5 for choice in row},
                compute={"f32": (1e-4,)},
            )
            for name, row in study.measured.items()
        ),
    )
    settings = Settings(episodes=25, warmup=20, hidden=(16, 16))
    found = study.by_latency(LatencyModel(table, bandwidth=1e6), 0.3, settings)
    for who in ("programme", "agent"):
        assert found[who]["seconds"] <= found["budget"] * (1 + 1e-12)
    assert 1 < found["networks judged"] <= 25
    result = {"dense error": error, "dense bytes": 1, "size": rows, "latency": [found]}
    assert size_table("digits", result).count("\n| ") == 3
    assert latency_table("digits", result).count("\n| ") == 2


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_committed_tables_are_monotone_where_physics_says_so(path: Path) -> None:
    table = load_table(path)
    assert table.threads == 1
    assert table.checks
    for weight in table.weights:
        assert all(seconds > 0 for seconds in weight.decode.values())
        for row in weight.compute.values():
            # More rows are never quicker, but for the noise of what does not depend on the batch.
            assert all(after > 0.5 * before for before, after in itertools.pairwise(row))
        if weight.compute["f32"][-1] > 1e-3:
            assert weight.compute["f32"][-1] > 2 * weight.compute["f32"][0]
    slow = [check for check in table.checks if check.bandwidth == 1_000_000]
    assert slow
    for check in slow:
        assert check.predicted == pytest.approx(check.measured, rel=0.25)

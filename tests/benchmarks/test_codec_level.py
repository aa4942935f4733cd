"""The tensors of the codec-level runs: do they have the statistics that they are said to have?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.deep_compression.paper_tables import ALEXNET, VGG16, Network
from benchmarks.deep_compression.synthetic import Runs, make_tensor, source_bytes

from dcz.format import Reader, Writer
from dcz.format.paper import paper_table


def test_the_rows_add_up_as_they_should() -> None:
    """The shapes against the sizes of the networks without biases, the rates against sums that were made by hand."""
    assert (ALEXNET.weights, VGG16.weights) == (60_954_656, 138_344_128)
    assert ALEXNET.rate == pytest.approx(3.71, abs=0.005)
    assert 100 / ALEXNET.coded_rate == pytest.approx(34.5, abs=0.05)
    assert VGG16.rate == pytest.approx(3.00, abs=0.005)
    assert 100 / VGG16.coded_rate == pytest.approx(52.7, abs=0.05)


def test_closed_forms_of_runs() -> None:
    """Against a long draw."""
    runs = Runs(short=0.8, long=20.0, part=0.2)
    mask = runs.draw(3_000_000, np.random.default_rng(0))
    gaps = np.diff(np.flatnonzero(mask)) - 1
    assert gaps.mean() == pytest.approx(0.8 * 0.8 + 0.2 * 20, rel=0.01)
    assert (gaps >> 4).mean() == pytest.approx(runs.fillers(4), rel=0.02)
    counts = np.bincount(gaps & 15, minlength=16)
    counts[15] += (gaps >> 4).sum()
    assert counts / gaps.size == pytest.approx(runs.indices(4), abs=0.003)
    shares = np.bincount(gaps) / gaps.size
    shares = shares[shares > 0]
    assert -(shares * np.log2(shares)).sum() == pytest.approx(runs.entropy(), rel=0.01)


@pytest.mark.parametrize(("network", "name"), [(ALEXNET, "conv4"), (VGG16, "conv2_1")])
def test_a_row(tmp_path: Path, network: Network, name: str) -> None:
    row = next(row for row in network.rows if row.name == name)
    tensor = make_tensor(row, network.index_bits, np.random.default_rng(3))
    again = make_tensor(row, network.index_bits, np.random.default_rng(3))
    assert np.array_equal(tensor.codes, again.codes)
    with Writer(tmp_path / "m.dcz", effort="small") as writer:
        writer.add_tensor("w", tensor)
    with Reader(tmp_path / "m.dcz") as reader:
        (made,) = paper_table(reader, network.index_bits).rows
        stored = sum(reader.geometry.tensors["w"].tensor.lengths)
    assert 100 * made.density == pytest.approx(row.density, abs=0.6)
    assert made.coded_weight_bits == pytest.approx(row.coded_weight_bits, abs=0.08)
    assert made.coded_index_bits == pytest.approx(row.coded_index_bits, abs=0.08)
    assert 100 * made.rate == pytest.approx(row.rate, rel=0.02)
    assert 100 * made.coded_rate == pytest.approx(row.coded_rate, rel=0.02)
    # Nobody takes less than the entropy of the source, but for the luck of one draw.
    assert 0.99 < stored / source_bytes(row, network.index_bits) < 1.05

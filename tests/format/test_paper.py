"""The paper's own accounting, against a relative index made position by position and Huffman codes made by the book."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcz.errors import UsageError
from dcz.format import AffineTensor, CodebookTensor, PerChannel, PerTensor, Reader, Writer
from dcz.format.paper import huffman_bits, paper_table
from dcz.format.statistics import LONGEST_RUN, tensor_statistics


def code_lengths(counts: list[int]) -> list[int]:
    """Huffman's algorithm on a tree that is kept whole."""
    order = itertools.count()
    heap = [(count, next(order), [i]) for i, count in enumerate(counts) if count]
    lengths = [0] * len(counts)
    heapq.heapify(heap)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        for i in a[2] + b[2]:
            lengths[i] += 1
        heapq.heappush(heap, (a[0] + b[0], next(order), a[2] + b[2]))
    return lengths


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_huffman_bits(counts: list[int]) -> None:
    assert huffman_bits(counts) == sum(c * n for c, n in zip(counts, code_lengths(counts), strict=True))


def relative_index(mask: np.ndarray, bits: int) -> tuple[list[int], int]:
    """All indices, row by row, fillers included; and how many fillers (figure 2 of the paper)."""
    span, indices, fillers = 1 << bits, [], 0
    for row in mask.reshape(mask.shape[0], -1).tolist():
        waiting, zeros = 0, 0
        for kept in row:
            if kept:
                indices += [span - 1] * waiting + [zeros]
                fillers += waiting
                waiting = zeros = 0
            elif zeros == span - 1:
                waiting, zeros = waiting + 1, 0
            else:
                zeros += 1
    return indices, fillers


def write(
    path: Path, shape: tuple[int, ...], density: float, layout: str, coding: str
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    mask = rng.random(shape) < density
    mask[1] = False
    codes = rng.binomial(14, 0.4, shape).astype(np.uint8)
    tensor = CodebookTensor(
        "f32", shape, 4, codes, np.arange(15, dtype=np.float32)[None] + 1, PerTensor(), mask
    )
    with Writer(path) as writer:
        writer.add_tensor("w", tensor, layout=layout, coding=coding)  # type: ignore[arg-type]
        writer.add_tensor("b", rng.standard_normal(5).astype(np.float32))
    return mask, codes


@pytest.mark.parametrize(("layout", "coding"), [("bitmap", "range"), ("relative-index", "huffman")])
@pytest.mark.parametrize(("shape", "density"), [((40, 3, 50), 0.1), ((600, 1000), 0.02), ((5, 7), 0.9)])
def test_a_row(tmp_path: Path, shape: tuple[int, ...], density: float, layout: str, coding: str) -> None:
    mask, codes = write(tmp_path / "m.dcz", shape, density, layout, coding)
    with Reader(tmp_path / "m.dcz") as reader:
        for bits in (1, 4, 5, 8):
            table = paper_table(reader, bits)
            (row,) = table.rows
            indices, fillers = relative_index(mask, bits)
            kept = int(mask.sum())
            assert (row.weights, row.kept, row.fillers) == (mask.size, kept, fillers)
            assert len(indices) == row.entries
            symbols = [*np.bincount(codes[mask], minlength=16).tolist(), fillers]
            assert row.huffman_codes == sum(
                c * n for c, n in zip(symbols, code_lengths(symbols), strict=True)
            )
            counts = np.bincount(indices, minlength=1 << bits).tolist()
            assert row.huffman_indices == sum(
                c * n for c, n in zip(counts, code_lengths(counts), strict=True)
            )
            assert row.rate == ((kept + fillers) * (4 + bits) + 16 * 32) / (32 * mask.size)
            assert row.coded_rate == (row.huffman_codes + row.huffman_indices + 512) / (32 * mask.size)
            assert table.left_out == ("b",)
            assert (table.rate, table.coded_rate, table.density) == (row.rate, row.coded_rate, row.density)
            assert len(table.text().splitlines()) == 7
        runs = tensor_statistics(reader, "w").runs
        assert runs is not None
        gaps = relative_index(mask, 16)[0]
        assert np.array_equal(
            runs.counts, np.bincount(np.minimum(gaps, LONGEST_RUN), minlength=LONGEST_RUN + 1)
        )


def test_dense_and_affine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (8, 100), dtype=np.uint8)
    with Writer(tmp_path / "m.dcz") as writer:
        writer.add_tensor(
            "w", AffineTensor("f32", (8, 100), 4, codes, np.ones(8, np.float32), PerChannel(axis=0))
        )
    with Reader(tmp_path / "m.dcz") as reader:
        (row,) = paper_table(reader, 5).rows
        with pytest.raises(UsageError, match="1 to 8"):
            paper_table(reader, 9)
    assert (row.kept, row.fillers, row.index_bits, row.huffman_indices) == (800, 0, 0, 0)
    assert row.rate == (800 * 4 + 8 * 32) / (32 * 800)

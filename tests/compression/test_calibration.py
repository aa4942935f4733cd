"""Ranges against numpy's quantiles, a histogram written out in loops, and scipy's relative entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from tests.compression.oracles import decode_affine, group_numbers

from dcz.compression import groups as groups_module
from dcz.compression.calibration import HISTOGRAM_RATIOS, quantile_of_rows
from dcz.compression.groups import GroupedTensor
from dcz.compression.quantizers import Scheme, quantize_affine
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor

Array = np.ndarray[Any, np.dtype[Any]]
GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerGroup(size=8),
    PerGroup(size=5),
]


def heavy(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def kept_part(shape: tuple[int, ...], density: float, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).random(shape) < density)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(7, 18), (3, 4, 5), (40, 1), (13,)])
@pytest.mark.parametrize("block", [11, 1 << 17])
def test_rows_are_whole_groups(
    granularity: Granularity, shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(granularity, PerChannel) and granularity.axis >= len(shape):
        pytest.skip("no such axis")
    monkeypatch.setattr(groups_module, "BLOCK_ELEMENTS", block)
    weights = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1
    mask = np.random.default_rng(0).random(shape) < 0.5
    numbers = group_numbers(shape, granularity)
    for kept in (None, mask):
        grouped = GroupedTensor(weights, granularity, kept)
        seen = []
        for rows in grouped.rows():
            assert (rows.kept is None) == (kept is None)
            for i, group in enumerate(rows.groups):
                chosen = numbers == group
                wanted = weights[chosen] if kept is None else np.where(kept, weights, 0)[chosen]
                np.testing.assert_array_equal(rows.values[i], wanted)
                if kept is not None:
                    assert rows.kept is not None
                    np.testing.assert_array_equal(rows.kept[i], kept[chosen])
                seen.append(int(group))
        assert sorted(seen) == list(range(grouped.count))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(7, 18), (3, 4, 5), (13,)])
def test_positions_do_not_depend_on_the_blocks(
    granularity: Granularity, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(granularity, PerChannel) and granularity.axis >= len(shape):
        pytest.skip("no such axis")
    weights = heavy(shape)
    found = []
    for size in (1 << 17, 6):
        monkeypatch.setattr(groups_module, "BLOCK_ELEMENTS", size)
        grouped = GroupedTensor(weights, granularity)
        positions = np.zeros(shape, dtype=np.uint64)
        for block in grouped.blocks():
            numbers = grouped.positions(block)
            assert numbers.shape == grouped.load(block).shape
            grouped.store(block, numbers, positions)
        assert np.unique(positions).size == weights.size
        found.append(positions)
    np.testing.assert_array_equal(found[0], found[1])


@given(
    rows=st.integers(1, 4),
    elements=st.integers(1, 30),
    q=st.floats(0, 1),
    density=st.sampled_from([None, 0.0, 0.4, 1.0]),
    seed=st.integers(0, 5),
)
def test_quantiles_are_those_of_numpy(
    rows: int, elements: int, q: float, density: float | None, seed: int
) -> None:
    values = heavy((rows, elements), seed)
    kept = None if density is None else kept_part(values.shape, density, seed)
    found = quantile_of_rows(values, kept, q)
    for i, row in enumerate(values.astype(np.float64)):
        chosen = row if kept is None else row[kept[i]]
        expected = np.quantile(chosen, q) if chosen.size else 0.0
        assert found[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("percentile", [90, 99.9])
def test_the_percentile_is_the_range(granularity: Granularity, percentile: float) -> None:
    weights = heavy((30, 40))
    numbers = group_numbers(weights.shape, granularity)
    symmetric, asymmetric = (
        quantize_affine(
            weights,
            bits=6,
            scheme=scheme,
            granularity=granularity,
            calibration="percentile",
            percentile=percentile,
        )
        for scheme in ("symmetric", "asymmetric")
    )
    for group in range(symmetric.scales.size):
        chosen = weights[numbers == group].astype(np.float64)
        reach = np.quantile(np.abs(chosen), percentile / 100)
        assert symmetric.scales[group] == pytest.approx(reach / 31, rel=1e-6)
        low, high = np.quantile(chosen, [1 - percentile / 100, percentile / 100])
        width = max(high, 0) - min(low, 0)
        assert asymmetric.scales[group] == pytest.approx(width / 63, rel=1e-6)
        clipped = np.clip(chosen, -reach, reach)
        error = decode_affine(symmetric)[numbers == group] - clipped
        assert (np.abs(error) <= symmetric.scales[group] / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("scheme", ["symmetric", "symmetric-full", "asymmetric"])
def test_the_hundredth_percentile_is_min_max(scheme: Scheme) -> None:
    weights = heavy((20, 30))
    plain, full = (
        quantize_affine(weights, scheme=scheme, granularity=PerGroup(size=8), **more)
        for more in ({"calibration": "min-max"}, {"calibration": "percentile", "percentile": 100.0})
    )
    np.testing.assert_array_equal(plain.codes, full.codes)
    np.testing.assert_array_equal(plain.scales, full.scales)


def test_a_percentile_counts_what_is_kept() -> None:
    weights = heavy((1, 1000))
    mask = kept_part(weights.shape, 0.1, 3)
    tensor = quantize_affine(weights, calibration="percentile", percentile=95, mask=mask)
    assert tensor.scales[0] == pytest.approx(np.quantile(np.abs(weights[mask]), 0.95) / 127, rel=1e-6)


@pytest.mark.parametrize("percentile", [50, 100.1, -1, float("nan")])
def test_other_percentiles_are_refused(percentile: float) -> None:
    with pytest.raises(EncodingError, match="percentile"):
        quantize_affine(heavy((4, 4)), calibration="percentile", percentile=percentile)


def divergence(values: Array, ratio: float, bits: int, scheme: Scheme) -> float:
    """The Kullback-Leibler divergence of one clipping ratio, from loops over bins."""
    bins = min(2048, max(64, values.size // 8))
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values[values != 0], bins, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    if scheme == "symmetric":
        scale = np.float32(max(-low, high) * ratio / ((1 << (bits - 1)) - 1))
        zero, least = 1 << (bits - 1), 1
    else:
        scale = np.float32((max(high, 0) - min(low, 0)) * ratio / ((1 << bits) - 1))
        zero, least = round(-min(low, 0) * ratio / float(scale)), 0
    cells: dict[int, list[int]] = {}
    below, above = 0, 0
    for i, centre in enumerate(centres):
        code = int(np.rint(centre / np.float64(scale))) + zero
        if code < least:
            below += counts[i]
        elif code > (1 << bits) - 1:
            above += counts[i]
        else:
            cells.setdefault(code, []).append(i)
    inside = sorted(i for cell in cells.values() for i in cell)
    wanted = counts.astype(np.float64)
    inside = [i for i in inside if counts[i]]
    if not inside:
        return np.inf
    wanted[inside[0]] += below
    wanted[inside[-1]] += above
    spread = np.zeros(bins)
    for cell in cells.values():
        alive = [i for i in cell if counts[i]]
        if alive:
            spread[alive] = counts[cell].sum() / len(alive)
    return float(entropy(wanted[inside], spread[inside]))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shift", [0.0, 1.5, 20.0])
def test_kl_takes_the_least_divergence(bits: int, scheme: Scheme, shift: float) -> None:
    weights = heavy((3, 4000), seed=bits) + np.float32(shift)
    weights[:, ::7] = 0
    tensor = quantize_affine(
        weights, bits=bits, scheme=scheme, granularity=PerChannel(axis=0), calibration="kl"
    )
    full = quantize_affine(weights, bits=bits, scheme=scheme, granularity=PerChannel(axis=0))
    for row in range(3):
        costs = [
            divergence(weights[row].astype(np.float64), ratio, bits, scheme) for ratio in HISTOGRAM_RATIOS
        ]
        chosen = int(np.argmin(np.abs(tensor.scales[row] / full.scales[row] - np.array(HISTOGRAM_RATIOS))))
        assert costs[chosen] <= min(costs) * 1.02 + 1e-4  # a value at an edge may be in either bin


def test_kl_clips_an_outlier() -> None:
    weights = np.random.default_rng(0).standard_normal((1, 20_000)).astype(np.float32)
    weights[0, 0] = 60
    tensor = quantize_affine(weights, bits=8, calibration="kl")
    assert tensor.scales[0] * 127 < 12
    # Where nothing sticks out, next to nothing is clipped.
    uniform = np.random.default_rng(0).uniform(-1, 1, (1, 20_000)).astype(np.float32)
    assert quantize_affine(uniform, bits=8, calibration="kl").scales[0] * 127 > 0.96


def test_kl_of_groups_that_are_zero_or_equal_takes_everything() -> None:
    weights = np.zeros((3, 100), dtype=np.float32)
    weights[1] = 3
    weights[2, 5] = -1
    tensor = quantize_affine(weights, granularity=PerChannel(axis=0), calibration="kl")
    np.testing.assert_allclose(decode_affine(tensor), weights, rtol=2e-7)

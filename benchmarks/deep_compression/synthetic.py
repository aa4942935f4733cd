"""Tensors with the statistics of a row of the paper's tables: its density, fillers, and bits of codes and indices.

Each run of zeros between two stored entries is drawn by itself, from one of two geometric distributions, a short and a long
one. Where the paper has fewer fillers than any such masks of its density need (fc6 and fc7), a part of the rows is empty: empty
rows need none, as the relative index begins anew in each. Each code is drawn by itself from a two-sided exponential
distribution over the shared values. There are no other dependencies: nothing between a run and the next, between columns, or
between codes. A trained network has some, so a coder that looks for them finds less here than there.

These few numbers are fitted to the row with closed forms; everything else is measured on what is drawn.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.deep_compression.paper_tables import Row
from dcz.format import CodebookTensor, PerTensor
from dcz.format.paper import huffman_bits

_COUNTS: Final = 1e9  # a distribution as counts, for a Huffman code
_ROUNDING: Final = 0.045  # of a cell that is printed with one digit behind the point
_FEWEST_FILLERS: Final = 0.002  # for each kept weight
_GRID: Final = 24
_ROUNDS: Final = 5
_NEAR: Final = 0.005
_DRAWS: Final = 40
_EMPTY: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


@dataclass(frozen=True)
class Target:
    """What a row asks for: the part of the weights that is kept, fillers for each of them, bits of codes and indices."""

    density: float
    fillers: float
    weight_bits: float
    index_bits: float


def target_of(row: Row, index_bits: int) -> Target:
    """The printed cells, made to agree with each other within their rounding.

    The rates before and after coding each say how many entries there are, fillers included; taken is their geometric mean. Then
    the bits of codes and indices are moved by up to _ROUNDING, so that the rate after coding is the printed one.
    """
    before = (32 * row.rate / 100 - row.codebook) / (row.weight_bits + index_bits)
    bits = row.coded_weight_bits + row.coded_index_bits
    after = (32 * row.coded_rate / 100 - row.codebook) / bits
    entries = (before * after) ** 0.5
    density = min(row.density / 100, entries / (1 + _FEWEST_FILLERS))
    moved = ((32 * row.coded_rate / 100 - row.codebook) / entries - bits) / 2
    moved = max(-_ROUNDING, min(_ROUNDING, moved))
    return Target(density, entries / density - 1, row.coded_weight_bits + moved, row.coded_index_bits + moved)


@dataclass(frozen=True)
class Runs:
    """Runs of zeros before an entry: ``part`` of them of the mean length ``long``, the others of the mean length ``short``."""

    short: float
    long: float
    part: float

    def _parts(self) -> tuple[tuple[float, float], ...]:
        return ((1 - self.part, self.short / (1 + self.short)), (self.part, self.long / (1 + self.long)))

    def fillers(self, bits: int) -> float:
        """Fillers for each entry: the expected run // 2^bits."""
        return sum(
            part * ratio**span / (1 - ratio**span) for part, ratio in self._parts() for span in (1 << bits,)
        )

    def indices(self, bits: int) -> np.ndarray:
        """How often each index occurs for each entry, fillers included."""
        span = 1 << bits
        counts = np.zeros(span)
        for part, ratio in self._parts():
            counts += part * (1 - ratio) * ratio ** np.arange(span) / (1 - ratio**span)
        counts[-1] += self.fillers(bits)
        return counts

    def index_bits(self, bits: int) -> float:
        counts = self.indices(bits)
        return (
            huffman_bits(np.rint(counts * _COUNTS).astype(np.int64).tolist()) / _COUNTS / float(counts.sum())
        )

    def entropy(self) -> float:
        """Bits of a run, at the least."""
        lengths = np.arange(int(60 * max(self.long, self.short, 1)))
        shares = np.zeros(lengths.size)
        for part, ratio in self._parts():
            shares += part * (1 - ratio) * ratio**lengths
        found = shares[shares > 0]
        return float(-(found * np.log2(found)).sum())

    def draw(self, elements: int, rng: np.random.Generator) -> np.ndarray:
        """A mask of so many elements."""
        mean = (1 - self.part) * self.short + self.part * self.long + 1
        at, found = 0, []
        while at < elements:
            count = int((elements - at) / mean * 1.02) + 1000
            means = np.where(rng.random(count) < self.part, self.long, self.short)
            places = at + np.cumsum(rng.geometric(1 / (1 + means)))
            found.append(places)
            at = int(places[-1])
        mask = np.zeros(elements, np.bool_)
        positions = np.concatenate(found) - 1
        mask[positions[positions < elements]] = True
        return mask


@dataclass(frozen=True)
class Fit:
    """The runs in rows that are not empty, the part of the rows that is, and how far that is from the target, relatively."""

    runs: Runs
    density: float
    empty: float
    error: float

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """A mask of this shape, flat. In a small layer the density depends on luck: the first of a few masks whose density is
        near enough, or else the nearest."""
        rows, columns = shape[0], math.prod(shape[1:])
        filled = np.sort(rng.permutation(rows)[round(self.empty * rows) :])
        best, best_off = np.empty(0, np.bool_), math.inf
        for _ in range(_DRAWS):
            drawn = self.runs.draw(filled.size * columns, rng)
            off = abs(float(drawn.sum()) / (self.density * rows * columns) - 1)
            if off < best_off:
                best, best_off = drawn, off
            if off < _NEAR:
                break
        mask = np.zeros((rows, columns), np.bool_)
        mask[filled] = best.reshape(filled.size, -1)
        return mask.reshape(-1)


def _fit(target: Target, index_bits: int, density: float, empty: float) -> Fit:
    """The runs whose density is exact, and whose entries and index bits come nearest to the target's."""
    mean = (1 - density / (1 - empty)) / (density / (1 - empty))
    wanted = target.density * (1 + target.fillers)

    def error(runs: Runs) -> float:
        entries = density * (1 + runs.fillers(index_bits)) / wanted - 1
        bits = (runs.index_bits(index_bits) - target.index_bits) / (target.weight_bits + target.index_bits)
        return max(abs(entries), abs(bits), abs(entries + bits))

    def runs_of(short: float, part: float) -> Runs:
        return Runs(short * mean, (mean - (1 - part) * short * mean) / part, part)

    shorts, parts = (1e-3, 1.0), (1e-4, 1.0)
    best = runs_of(1.0, 1.0)
    for _ in range(_ROUNDS):
        grid = itertools.product(np.linspace(*shorts, _GRID).tolist(), np.geomspace(*parts, _GRID).tolist())
        short, part = min(grid, key=lambda at: error(runs_of(*at)))
        best = min(best, runs_of(short, part), key=error)
        width, times = (shorts[1] - shorts[0]) / 6, (parts[1] / parts[0]) ** (1 / 6)
        shorts = max(1e-6, short - width), min(1.0, short + width)
        parts = max(1e-6, part / times), min(1.0, part * times)
    return Fit(best, density, empty, error(best))


@functools.cache
def fit_masks(target: Target, index_bits: int) -> Fit:
    """Without empty rows, at the printed density or another one that is printed so, if that comes near enough; otherwise with
    as few empty rows as do."""
    tries = [(target.density + moved, 0.0) for moved in (0.0, -0.0025, 0.0025, -0.0045, 0.0045)]
    tries += [(target.density, empty) for empty in _EMPTY]
    best: Fit | None = None
    for density, empty in tries:
        found = _fit(target, index_bits, density, empty)
        if best is None or found.error < best.error:
            best = found
        if best.error < _NEAR:
            break
    assert best is not None
    return best


def code_shares(row: Row, target: Target) -> np.ndarray:
    """How often each of the 2^bits - 1 shared values that are not zero occurs, so that a Huffman code of them and the fillers'
    zero takes the target's bits."""
    values = (1 << row.weight_bits) - 1
    away = np.abs(np.arange(values) - (values - 1) / 2)
    low, high = 1e-2, 1e4
    shares = np.empty(0)
    for _ in range(60):
        scale = (low * high) ** 0.5
        shares = np.exp(-away / scale)
        shares /= shares.sum()
        counts = np.append(shares, target.fillers) / (1 + target.fillers) * _COUNTS
        bits = huffman_bits(np.rint(counts).astype(np.int64).tolist()) / _COUNTS
        low, high = (scale, high) if bits < target.weight_bits else (low, scale)
    return shares


def source_bytes(row: Row, index_bits: int) -> float:
    """The entropy of what make_tensor draws: no coder that knows the distributions, and nothing else of the tensor, takes less on
    average. Codebook included, as 32-bit values."""
    target = target_of(row, index_bits)
    fit = fit_masks(target, index_bits)
    shares = code_shares(row, target)
    codes = float(-(shares * np.log2(shares)).sum())
    bits = fit.density * row.weights * (fit.runs.entropy() + codes)
    if fit.empty:
        bits -= row.shape[0] * (fit.empty * math.log2(fit.empty) + (1 - fit.empty) * math.log2(1 - fit.empty))
    return bits / 8 + 4 * shares.size


def make_tensor(row: Row, index_bits: int, rng: np.random.Generator) -> CodebookTensor:
    """A pruned and clustered tensor with the statistics of the row."""
    target = target_of(row, index_bits)
    mask = fit_masks(target, index_bits).draw(row.shape, rng)
    shares = code_shares(row, target)
    kept = int(mask.sum())
    codes = np.zeros(row.weights, np.uint8)
    codes[mask] = np.searchsorted(np.cumsum(shares)[:-1], rng.random(kept), side="right").astype(np.uint8)
    centroids = np.sort(rng.standard_normal((1, shares.size)) * 0.05).astype(np.float32)
    return CodebookTensor("f32", row.shape, row.weight_bits, codes, centroids, PerTensor(), mask)

"""The integer programme finds what exhaustive search finds, keeps budgets exactly, and says what would be possible."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from dcz.compression.quantizers import quantize_affine
from dcz.compression.search.costs import Choice, Option, stored, total
from dcz.compression.search.integer_programme import least_loss
from dcz.errors import MissingDependency, UsageError
from dcz.format import PerChannel, Reader, Writer

Rows = dict[str, list[Choice]]

# Losses of eight orders of magnitude, as between 1 and 8 bits.
LOSSES = st.one_of(
    st.just(0.0),
    st.builds(lambda digits, power: digits * 10.0**power, st.integers(-9, 99), st.integers(-8, 0)),
)
CHOICES = st.builds(
    Choice,
    st.just("c"),
    st.integers(1, 8),
    st.integers(0, 10**8),
    LOSSES,
    st.integers(0, 10**6).map(lambda n: n / 1e9),
)
TABLES = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda rows: {str(number): row for number, row in enumerate(rows)}
)


def exhaustive(rows: Rows, size: float, seconds: float) -> float | None:
    """The least loss of all combinations within the budgets."""
    losses = [
        math.fsum(choice.loss for choice in combination)
        for combination in itertools.product(*rows.values())
        if sum(choice.bytes for choice in combination) <= size
        and math.fsum(choice.seconds for choice in combination) <= seconds
    ]
    return min(losses, default=None)


@settings(max_examples=150)
@given(
    rows=TABLES,
    part=st.floats(0, 1),
    quick=st.floats(0, 1),
    which=st.sampled_from(["size", "seconds", "both"]),
)
def test_it_is_the_optimum_of_all_combinations(rows: Rows, part: float, quick: float, which: str) -> None:
    def between(cost: str, where: float) -> float:
        least = math.fsum(min(getattr(choice, cost) for choice in row) for row in rows.values())
        most = math.fsum(max(getattr(choice, cost) for choice in row) for row in rows.values())
        return least + where * (most - least)

    size = int(between("bytes", part)) if which != "seconds" else None
    seconds = between("seconds", quick) if which != "size" else None
    expected = exhaustive(rows, math.inf if size is None else size, math.inf if seconds is None else seconds)
    if expected is None:
        with pytest.raises(UsageError, match="cannot be kept together"):
            least_loss(rows, size=size, seconds=seconds)
        return
    found = total(least_loss(rows, size=size, seconds=seconds))
    assert size is None or found.bytes <= size
    assert seconds is None or found.seconds <= seconds
    largest = max(abs(choice.loss) for row in rows.values() for choice in row)
    assert found.loss == pytest.approx(expected, abs=1e-9 * largest)


def test_many_weights_against_the_bound_of_linear_programming() -> None:
    random = np.random.default_rng(0)
    rows = {
        str(number): [
            Choice(str(bits), bits, int(scale * bits / 8) + 40, weight * 4.0**-bits) for bits in range(1, 9)
        ]
        for number, (scale, weight) in enumerate(
            zip(random.integers(10**3, 10**6, 80), random.lognormal(0, 3, 80), strict=True)
        )
    }
    flat = [choice for row in rows.values() for choice in row]
    for mean_bits in (2, 3, 5):
        size = sum(row[mean_bits - 1].bytes for row in rows.values())
        found = total(least_loss(rows, size=size))
        bound = linprog(
            [choice.loss for choice in flat],
            A_ub=[[choice.bytes for choice in flat]],
            b_ub=[size],
            A_eq=np.repeat(np.eye(80), 8, axis=1),
            b_eq=np.ones(80),
        )
        least = float(bound.fun or math.nan)
        uniform = math.fsum(row[mean_bits - 1].loss for row in rows.values())
        assert found.bytes <= size
        assert least * (1 - 1e-9) <= found.loss < 0.5 * uniform
        # The relaxation splits the choice of one weight only: it cannot be far from whole numbers.
        assert found.loss < 1.1 * least


def test_budgets_are_kept_to_the_byte() -> None:
    rows = {
        "a": [Choice("1", 1, 10**9, 1.0), Choice("2", 2, 2 * 10**9 + 1, 0.5)],
        "b": [Choice("1", 1, 7, 1.0)],
    }
    assert least_loss(rows, size=2 * 10**9 + 8)["a"].bits == 2
    assert least_loss(rows, size=2 * 10**9 + 7)["a"].bits == 1
    assert least_loss(rows, size=10**9 + 7)["a"].bits == 1
    assert least_loss(rows)["a"].bits == 2
    assert least_loss({}) == {}


def test_what_is_not_possible() -> None:
    rows = {
        "a": [Choice("1", 1, 10, 1.0, 0.3), Choice("2", 2, 20, 0.5, 0.1)],
        "b": [Choice("1", 1, 7, 1.0, 0.2)],
    }
    with pytest.raises(UsageError, match="of 16 bytes is too small: the weights take at least 17 bytes"):
        least_loss(rows, size=16)
    with pytest.raises(UsageError, match=r"of 0.29 s is too small: the latency is at least 0.3 s"):
        least_loss(rows, seconds=0.29)
    with pytest.raises(
        UsageError, match=r"26 bytes and 0.4 s cannot be .*: within that latency, .* at least 27 bytes"
    ):
        least_loss(rows, size=26, seconds=0.4)
    with pytest.raises(UsageError, match="no choice with a finite loss for a"):
        least_loss({"a": [Choice("1", 1, 1, math.nan)]}, size=10)


def test_what_is_not_finite_is_not_chosen() -> None:
    row = [Choice("1", 1, 1, math.nan), Choice("2", 2, 2, math.inf), Choice("3", 3, 3, 5.0)]
    assert least_loss({"a": row}, size=10)["a"].bits == 3


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependency, match="scipy"):
        least_loss({"a": [Choice("1", 1, 1, 1.0)]}, size=1)


@pytest.mark.parametrize("bits", [1, 4, 8, 32])
def test_stored_is_what_a_file_holds(bits: int, tmp_path: Any) -> None:
    weights = np.random.default_rng(1).standard_normal((600, 1000)).astype(np.float32)

    def quantize(array: Any) -> Any:
        if bits == 32:
            return array
        return quantize_affine(array, bits=bits, scheme="asymmetric", granularity=PerChannel(axis=0))

    found = stored(weights, Option("o", bits, quantize))
    with Writer(tmp_path / "w.dcz") as writer:
        writer.add_tensor("w", quantize(weights))
    with Reader(tmp_path / "w.dcz") as reader:
        assert found.bytes == sum(reader.manifest.tensors[0].lengths)
        np.testing.assert_array_equal(found.values, reader.read("w"))

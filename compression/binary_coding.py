"""Binary-coding quantization: sums of scaled binaries (survey, section III-F).

A weight becomes a_1 b_1 + ... + a_q b_q with b_i = -1 or 1 and scales a_i of its group. Greedy (Guo et al., "Network
Sketching", 2017): b_i are the signs of what is left, a_i its mean magnitude. Alternating (Xu et al., "Alternating Multi-bit
Quantization for Recurrent Neural Networks", 2018): by turns the best scales for the codes (least squares), and the best
codes for the scales (the nearest of the 2^q sums), from the greedy solution until no code changes. Neither step can increase
the squared error.

The 2^q sums are stored as a codebook. All sums run in a fixed order, without BLAS, so that every machine finds the same.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dcz.compression.arguments import is_whole
from dcz.compression.codebooks import share_weights
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity
from dcz.format.tensors import CodebookTensor

__all__ = ["binary_scales", "binary_sums", "quantize_binary_coding"]

_Doubles = npt.NDArray[np.float64]

_MAX_BITS = 6


def quantize_binary_coding(
    weights: np.ndarray,
    *,
    bits: int,
    granularity: Granularity | None = None,
    iterations: int = 15,
    mask: np.ndarray | None = None,
) -> CodebookTensor:
    """Replace weights by sums of ``bits`` (1 to 6) scaled binaries.

    ``weights``: f64, f32, f16, bf16 or fp8, any shape, not empty. ``granularity``: what shares the scales; None is the whole
    tensor. ``iterations``: of the alternating search at most; 0 is the greedy solution. ``mask``: bool, True where a weight
    is kept; weights that are not kept become 0.

    Raises EncodingError if a weight is not finite, or if the arguments do not fit together.
    """
    _check(bits, iterations)
    return share_weights(
        weights,
        lambda values: binary_sums(binary_scales(values, bits, iterations)),
        granularity=granularity,
        mask=mask,
    )


def binary_scales(values: npt.NDArray[np.generic], bits: int, iterations: int = 15) -> _Doubles:
    """The scales of a group of weights, (values,), finite: float64 (bits,), not negative."""
    _check(bits, iterations)
    if values.size == 0:
        return np.zeros(bits)
    unit = float(np.abs(values.astype(np.float64)).max()) or 1.0
    # Rearranged weights have the same scales but for rounding; sorted ones are looked up faster.
    ordered = np.sort(values.astype(np.float64) / unit)
    scales, rest = np.empty(bits), ordered.copy()
    for i in range(bits):
        scales[i] = np.abs(rest).mean()
        rest -= np.where(rest < 0, -scales[i], scales[i])
    last = _codes(ordered, scales)
    for _ in range(iterations):
        fitted = _least_squares(ordered, last, bits)
        if fitted is None:
            break
        # A binary with a negative scale is its negative with the positive one: the sums are the same.
        scales = np.abs(fitted)
        codes = _codes(ordered, scales)
        if np.array_equal(codes, last):
            break
        last = codes
    return scales * unit


def binary_sums(scales: _Doubles) -> _Doubles:
    """The sums of all choices of signs, float64 (2**bits,): bit i of the index says whether scale i is added."""
    sums = np.zeros(1)
    for scale in scales:
        sums = np.concatenate([sums - scale, sums + scale])
    return sums


def _codes(values: _Doubles, scales: _Doubles) -> npt.NDArray[np.int64]:
    """The index of the nearest sum for each value; of equally near ones the lower sum."""
    sums = binary_sums(scales)
    order = np.argsort(sums, kind="stable")
    ascending = sums[order]
    return np.asarray(order[np.searchsorted((ascending[:-1] + ascending[1:]) / 2, values)])


def _least_squares(values: _Doubles, codes: npt.NDArray[np.int64], bits: int) -> _Doubles | None:
    """The scales that solve the normal equations for given codes; None if they have no single solution."""
    # Values with the same code act by their sum and count alone.
    counts = np.bincount(codes, minlength=1 << bits).astype(np.float64)
    totals = np.bincount(codes, weights=values, minlength=1 << bits)
    signs = np.array([[1.0 if code >> i & 1 else -1.0 for code in range(1 << bits)] for i in range(bits)])
    matrix = [[math.fsum(signs[i] * signs[j] * counts) for j in range(bits)] for i in range(bits)]
    right = [math.fsum(signs[i] * totals) for i in range(bits)]
    return _solve(matrix, right)


def _solve(matrix: list[list[float]], right: list[float]) -> _Doubles | None:
    """Gaussian elimination with pivots, in plain arithmetic; the matrix is positive semidefinite with integer entries."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) < 1e-9 * matrix[0][0]:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, size):
            factor = rows[row][column] / rows[column][column]
            rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    solution = [0.0] * size
    for row in range(size - 1, -1, -1):
        known = math.fsum(rows[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (rows[row][size] - known) / rows[row][row]
    return np.array(solution)


def _check(bits: int, iterations: int) -> None:
    if not is_whole(bits, 1, _MAX_BITS):
        raise EncodingError(f"sums of {bits!r} binaries: 1 to {_MAX_BITS} are possible")
    if iterations < 0:
        raise EncodingError(f"{iterations} iterations are not possible")

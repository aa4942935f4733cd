"""Second-order rounding of a weight matrix, given what its inputs look like (GPTQ: Frantar et al. 2023; OBQ: Frantar and
Alistarh 2022).

The error of a linear layer's outputs over its calibration inputs x is tr(dW H dW^T) with H = sum x x^T. Columns are rounded one
after the other, and each time the error is made up for, as well as it can be, by the columns to come:

    dW[:, j:] = -(w_j - q_j) / [H^-1]_jj  x  [H^-1]_j,j:        (H restricted to the columns from j on)

All rows of the inverses that this takes are those of the upper Cholesky factor of H^-1. With H = I nothing is made up for, and
the result is that of rounding to nearest.

Where the layers before are quantized already, their errors are among the inputs; `refitted` first changes the weights so
that the outputs come as near as they can to what they were (a least-squares form of GPTAQ: Li et al. 2025).

What the matrix becomes is a tensor like any other; how it was rounded is not to be seen. The sums are those of the
machine's BLAS, so another machine may round a weight differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from dcz.compression.quantizers import Calibration, ScaleDType, Scheme, quantize_affine
from dcz.compression.scales import least_code
from dcz.errors import EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import CodebookTensor, ScaledCodebookTensor, UniformTensor, parameter_values

__all__ = [
    "AffineRounder",
    "LevelRounder",
    "Order",
    "Rounder",
    "output_error",
    "quantize_gptq",
    "refitted",
    "round_second_order",
]

Order: TypeAlias = Literal["given", "activation"]

_Doubles = npt.NDArray[np.float64]
Rounder: TypeAlias = Callable[[_Doubles, int], tuple[_Doubles, _Doubles]]

_BLOCK: Final = 128  # columns whose effect on the others is computed at once


def quantize_gptq(
    weights: np.ndarray,
    hessian: np.ndarray,
    *,
    bits: int = 4,
    scheme: Scheme = "asymmetric",
    granularity: Granularity | None = None,
    calibration: Calibration = "min-max",
    percentile: float = 99.9,
    scale_dtype: ScaleDType | None = None,
    damping: float = 0.01,
    order: Order = "given",
) -> UniformTensor:
    """Quantize a weight matrix so that its outputs change little.

    ``weights``: f64, f32, f16, bf16 or fp8 (out, in), finite. A convolution's are (out, in x height x width), with the Hessian
    of its patches. ``hessian``: (in, in), symmetric, positive semidefinite: the sum or mean of x x^T. ``granularity``: tensor,
    channel on axis 0, or groups; None is channel on axis 0. ``damping``: this part of the mean of H's diagonal is added to
    it, 0 or more. ``order``: "activation" rounds the columns with the greatest diagonal entries first, where there are more
    columns left to make up for them. The scales are those of `quantize_affine`, from the weights as they were.

    Columns whose inputs are all zero, if H says so, have no effect on the outputs, and are rounded to nearest. Raises
    EncodingError as `quantize_affine` does, or if the Hessian does not fit.
    """
    granularity = granularity or PerChannel(axis=0)
    if weights.ndim != 2:
        raise EncodingError(f"weights of {weights.ndim} dimensions: a matrix (out, in) is needed")
    if isinstance(granularity, PerChannel) and granularity.axis != 0:
        raise EncodingError("scales along the inputs are those of groups: channel on axis 0 is possible")
    nearest = quantize_affine(
        weights,
        bits=bits,
        scheme=scheme,
        granularity=granularity,
        calibration=calibration,
        percentile=percentile,
        scale_dtype=scale_dtype,
    )
    codes = round_second_order(
        weights, hessian, AffineRounder(nearest, scheme).round, damping=damping, order=order
    )
    return UniformTensor(
        dtype=nearest.dtype,
        shape=nearest.shape,
        bits=bits,
        codes=codes,
        scales=nearest.scales,
        granularity=granularity,
        zero_points=nearest.zero_points,
    )


def round_second_order(
    weights: np.ndarray,
    hessian: np.ndarray,
    rounder: Rounder,
    *,
    damping: float = 0.01,
    order: Order = "given",
) -> npt.NDArray[np.uint8]:
    """The codes of a matrix, for any levels: uint8 (out, in).

    ``rounder(values, column)``: codes and decoded values, float64 (out,) both, of float64 (out,). The other arguments and errors are
    those of `quantize_gptq`.
    """
    if order not in get_args(Order):
        raise EncodingError(f"unknown order {order!r}", hint=f"allowed: {', '.join(get_args(Order))}")
    if not 0 <= damping < np.inf:
        raise EncodingError(f"a damping of {damping}: 0 and more are possible")
    columns = weights.shape[1]
    damped = _checked_hessian(hessian, columns)
    diagonal: _Doubles = np.diagonal(damped).copy()
    damped[np.diag_indices(columns)] += damping * diagonal.mean()
    dead = diagonal == 0
    damped[dead, dead] = 1
    chosen = np.argsort(-diagonal, kind="stable") if order == "activation" else np.arange(columns)
    factor = _inverse_factor(damped[np.ix_(chosen, chosen)])
    codes = np.empty(weights.shape, np.uint8)
    codes[:, chosen] = _round_columns(weights.astype(np.float64)[:, chosen], factor, chosen, rounder)
    return codes


def refitted(
    weights: np.ndarray, hessian: np.ndarray, cross: np.ndarray, *, damping: float = 0.01
) -> npt.NDArray[np.float64]:
    """The weights whose outputs for the inputs of now are nearest to those that the layer had for the inputs of before.

    ``weights``: (out, in), finite. ``hessian``: (in, in), the sum of y y^T over the inputs y of now; ``cross``: (in, in), the
    sum of x y^T over those of before and of now. Of all W' this one, float64 (out, in), has the least

        sum |W x - W' y|^2 + damping x mean of the Hessian's diagonal x |W - W'|^2

    which for x = y is W. ``damping``: above 0 if the Hessian may be singular. Raises EncodingError if the arguments do not fit
    together.
    """
    if weights.ndim != 2:
        raise EncodingError(f"weights of {weights.ndim} dimensions: a matrix (out, in) is needed")
    if not 0 <= damping < np.inf:
        raise EncodingError(f"a damping of {damping}: 0 and more are possible")
    damped = _checked_hessian(hessian, weights.shape[1])
    if cross.shape != damped.shape or not np.isfinite(cross).all():
        raise EncodingError(
            f"a sum of products of shape {cross.shape} for {weights.shape[1]} inputs, or not finite"
        )
    both = cross.astype(np.float64)
    strength = damping * np.diagonal(damped).mean()
    for sums in (damped, both):
        sums[np.diag_indices(len(sums))] += strength
    try:
        return np.asarray(np.linalg.solve(damped, both.T @ weights.astype(np.float64).T).T, np.float64)
    except np.linalg.LinAlgError as exc:
        raise _singular() from exc


def output_error(change: np.ndarray, hessian: np.ndarray) -> float:
    """tr(dW H dW^T): the sum of the squared changes of the outputs. ``change``: (out, in); ``hessian``: (in, in)."""
    wide = change.astype(np.float64)
    return float(((wide @ hessian.astype(np.float64)) * wide).sum())


class AffineRounder:
    """Codes and values of one column, given the scales of all groups."""

    def __init__(self, nearest: UniformTensor, scheme: Scheme) -> None:
        rows, columns = nearest.shape
        scales = nearest.scales.astype(np.float64)
        if nearest.zero_points is None:
            zeros = np.full(scales.shape, 1 << (nearest.bits - 1), dtype=np.float64)
        else:
            zeros = nearest.zero_points.astype(np.float64)
        self._least, self._most = least_code(scheme), (1 << nearest.bits) - 1
        # One row of scales for each output, one column for each group of inputs.
        groups, self._size = 1, columns
        if isinstance(nearest.granularity, PerGroup):
            self._size = nearest.granularity.size
            groups = -(-columns // self._size)
        if isinstance(nearest.granularity, PerTensor):
            scales, zeros = (np.broadcast_to(part, rows) for part in (scales, zeros))
        self._scales, self._zeros = scales.reshape(rows, groups), zeros.reshape(rows, groups)

    def round(self, values: _Doubles, column: int) -> tuple[_Doubles, _Doubles]:
        """Codes and decoded values, float64 (rows,) both."""
        group = column // self._size
        scales, zeros = self._scales[:, group], self._zeros[:, group]
        codes = np.rint(values / np.where(scales == 0, 1, scales)) + zeros
        np.clip(codes, self._least, self._most, out=codes)
        return codes, scales * (codes - zeros)


class LevelRounder:
    """Codes and values of one column, given the levels of all groups: shared weights, or a table and scales.

    ``nearest``: (out, in, ...), for the tensor, channel on axis 0, or groups of a matrix, without a mask. Raises EncodingError for
    others.
    """

    def __init__(self, nearest: CodebookTensor | ScaledCodebookTensor) -> None:
        granularity = nearest.granularity
        if nearest.mask is not None or not (
            isinstance(granularity, PerTensor | PerGroup) or granularity == PerChannel(axis=0)
        ):
            raise EncodingError(
                "second-order rounding needs levels for the tensor, axis 0 or groups, and no mask"
            )
        if isinstance(nearest, ScaledCodebookTensor):
            products = parameter_values(nearest.scales)[:, None] * nearest.table
            levels = products.astype(DTYPES[nearest.dtype].numpy).astype(np.float64)
        else:
            levels = nearest.centroids.astype(np.float64)
        self._size = granularity.size if isinstance(granularity, PerGroup) else nearest.codes.size
        rows = 1 if isinstance(granularity, PerTensor) else nearest.shape[0]
        self._levels = levels.reshape(rows, -1, levels.shape[1])

    def round(self, values: _Doubles, column: int) -> tuple[_Doubles, _Doubles]:
        """Codes and decoded values, float64 (rows,) both; of equally near levels the first."""
        levels = self._levels[:, column // self._size]
        codes = np.abs(values[:, None] - levels).argmin(axis=1)
        return codes.astype(np.float64), levels[np.arange(len(levels)) if len(levels) > 1 else 0, codes]


def _checked_hessian(hessian: np.ndarray, columns: int) -> _Doubles:
    if hessian.shape != (columns, columns):
        raise EncodingError(f"a Hessian of shape {hessian.shape} for {columns} inputs")
    wide = hessian.astype(np.float64)
    if not np.isfinite(wide).all() or not np.allclose(
        wide, wide.T, rtol=1e-4, atol=1e-6 * np.abs(wide).max()
    ):
        raise EncodingError("the Hessian is not finite and symmetric")
    if (np.diagonal(wide) < 0).any():
        raise EncodingError("the Hessian is not positive semidefinite: its diagonal has negative entries")
    return (wide + wide.T) / 2


def _inverse_factor(hessian: _Doubles) -> _Doubles:
    """U, upper triangular, with U^T U = H^-1: row j is the j-th row of the inverse of H from j on, over the root of its
    diagonal entry."""
    try:
        lower = np.linalg.cholesky(hessian)
        inverse = np.linalg.inv(lower)
        return np.asarray(np.linalg.cholesky(inverse.T @ inverse).T, dtype=np.float64)
    except np.linalg.LinAlgError as exc:
        raise _singular() from exc


def _singular() -> EncodingError:
    return EncodingError("the Hessian is singular", hint="use more calibration data, or a greater damping")


def _round_columns(
    left: _Doubles, factor: _Doubles, numbers: npt.NDArray[np.int64], rounder: Rounder
) -> _Doubles:
    """Codes of all columns, in the order of ``left``, which is used up; ``numbers``: which column of the matrix each is."""
    codes = np.empty_like(left)
    columns = left.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((left.shape[0], end - start))
        for j in range(start, end):
            codes[:, j], decoded = rounder(left[:, j], int(numbers[j]))
            error = (left[:, j] - decoded) / factor[j, j]
            left[:, j + 1 : end] -= error[:, None] * factor[j, j + 1 : end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return codes

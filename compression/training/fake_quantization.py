"""Simulated quantization of weights: computing with rounded values, training those beneath (survey, section III-G).

In the forward pass a weight is what dcz.compression.quantizers makes of it, to the bit. In the backward pass rounding is
passed straight through (Bengio, Leonard and Courville 2013): with b bits and the codes of that module's table,

    forward     S (clamp(rne(w / S) + Z, least, most) - Z)
    gradient    1 where least <= rne(w / S) + Z <= most, 0 outside

    fake_quantize(find_weights(module), bits=4, granularity=PerChannel(axis=0))
    ...                                    # train the module
    remove_parametrizations(module)        # plain Parameters that hold the quantized weights

Ranges follow the weights, from the least to the greatest, as they are trained. With another calibration they are what it
gives at the beginning, and held: what grows beyond them is clipped, and gets no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from dcz.compression.calibration import Calibration, full_ranges, ranges
from dcz.compression.groups import GroupedTensor, not_finite
from dcz.compression.quantizers import ScaleDType, Scheme, affine_parameters
from dcz.compression.scales import (
    check_not_too_small,
    kept_finite,
    least_code,
    stored_dtype,
)
from dcz.compression.torch_tensors import check_tensor
from dcz.compression.training.masks import array_of
from dcz.compression.training.quantized_weights import (
    Bits,
    UniformWeight,
    bits_of,
    oriented,
    put_under,
)
from dcz.compression.training.torch_groups import check_granularity, rows_of, spread
from dcz.compression.training.weights import Weight
from dcz.errors import EncodingError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import UniformTensor

__all__ = ["FakeQuantizedWeight", "fake_quantize", "fake_quantized"]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        scales: torch.Tensor,
        zero_points: torch.Tensor,
        least: int,
        most: int,
    ) -> torch.Tensor:
        codes = _codes(values, scales, zero_points)
        ctx.save_for_backward((codes >= least) & (codes <= most))
        return (scales * (codes.clamp_(least, most) - zero_points)).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the names
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (inside,), (gradient,) = ctx.saved_tensors, grad_outputs
        return gradient * inside, None, None, None, None


def _codes(values: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor) -> torch.Tensor:
    """rne(x / S) + Z, not clamped."""
    return torch.round(values.to(scales.dtype) / torch.where(scales == 0, 1, scales)) + zero_points


def fake_quantized(
    values: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, *, bits: int, scheme: Scheme
) -> torch.Tensor:
    """Quantized and decoded again, in the values' own type; the gradient passes straight through inside the range.

    ``values``: floating-point, any shape. ``scales``: not negative, of the type in which is computed; ``zero_points``: integers
    as floats of that type. Both of a shape that broadcasts to that of the values.
    """
    found: torch.Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
        values, scales, zero_points, least_code(scheme), (1 << bits) - 1
    )
    return found


class FakeQuantizedWeight(UniformWeight):
    """The weight as uniform codes give it.

    ``bits``, ``scheme``, ``granularity``, ``scale_dtype``: as for dcz.compression.quantizers.quantize_affine. ``held``: the
    ranges that the codes cover, float64 (2, groups); None for those of the weights at any time.
    """

    held: torch.Tensor | None

    def __init__(
        self,
        bits: int,
        scheme: Scheme = "symmetric",
        granularity: Granularity | None = None,
        scale_dtype: ScaleDType | None = None,
        mask: torch.Tensor | None = None,
        held: torch.Tensor | None = None,
    ) -> None:
        super().__init__(bits, scheme, granularity, scale_dtype, mask)
        self.register_buffer("held", held)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        kept = self.kept(original)
        steps, zeros = self._spread(kept, *self.parameters_of(kept))
        return fake_quantized(kept, steps, zeros, bits=self.bits, scheme=self.scheme)

    def _spread(
        self, kept: torch.Tensor, scales: np.ndarray, zero_points: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of each weight, in the type in which is computed."""
        compute = torch.float64 if kept.dtype == torch.float64 else torch.float32
        if zero_points is None:
            zero_points = np.full(scales.shape, 1 << (self.bits - 1), np.uint8)
        steps, zeros = (
            torch.from_numpy(part.astype(np.float64)).to(kept.device, compute)
            for part in (scales, zero_points)
        )
        shape = tuple(kept.shape)
        return spread(steps, shape, self.granularity), spread(zeros, shape, self.granularity)

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        return cls(**cls.arguments(settings), mask=state.get("mask"), held=state.get("held"))

    def parameters_of(self, kept: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Scales (groups,) in the type in which they are stored, and uint8 zero points or None. ``kept``: after the mask.

        Raises EncodingError if a weight is not finite, or a scale does not fit its type.
        """
        dtype = check_tensor("weight", kept)
        stored = stored_dtype(self.scale_dtype, dtype)
        if self.held is None:
            with torch.no_grad():
                rows = rows_of(kept, self.granularity)
                low, high = torch.stack(rows.aminmax(dim=1)).to("cpu", torch.float64).numpy()
        else:
            low, high = self.held.cpu().numpy()
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise EncodingError("a weight that is quantized while it is trained is not finite any more")
        if self.held is None:
            check_not_too_small(low, high, self.bits, self.scheme, stored)
        scales, zero_points = affine_parameters(
            low, high, bits=self.bits, scheme=self.scheme, scale_dtype=stored
        )
        return kept_finite(scales, zero_points, self.bits, self.scheme, dtype), zero_points

    def stored(self, original: torch.Tensor) -> UniformTensor:
        kept = self.kept(original.detach())
        scales, zero_points = self.parameters_of(kept)
        steps, zeros = self._spread(kept, scales, zero_points)
        return self.coded(kept, _codes(kept, steps, zeros), zeros, scales, zero_points)


def fake_quantize(
    weights: Sequence[Weight],
    bits: Bits = 8,
    *,
    scheme: Scheme = "symmetric",
    granularity: Granularity | None = None,
    calibration: Calibration = "min-max",
    percentile: float = 99.9,
    scale_dtype: ScaleDType | None = None,
) -> list[Weight]:
    """Let each weight be what its codes give, from now on; the weights beneath are trained.

    ``bits``: one for all, or by the first name of each weight; a weight without them is left as it is. The other arguments
    are those of dcz.compression.quantizers.quantize_affine; a channel of axis 0 is an output of the layer also where a
    matrix is stored transposed. ``calibration``: other ranges than ``min-max`` are found once, and held.

    What was pruned stays pruned, and zero. Returns the weights that are quantized now. Raises EncodingError, which names
    the weight, if it is not finite or the arguments do not fit it; UsageError for one that is shared.
    """

    def make(weight: Weight, mask: torch.Tensor | None) -> FakeQuantizedWeight | None:
        wanted = bits_of(bits, weight)
        if wanted is None:
            return None
        chosen = oriented(granularity or PerTensor(), weight)
        check_granularity(chosen, tuple(weight.parameter.shape))
        made = FakeQuantizedWeight(wanted, scheme, chosen, scale_dtype, mask)
        if calibration != "min-max":
            made.held = _calibrated(weight, made, calibration, percentile)
        made.parameters_of(made.kept(weight.parameter.detach()))
        return made

    return put_under(weights, make)


def _calibrated(
    weight: Weight, made: FakeQuantizedWeight, calibration: Calibration, percentile: float
) -> torch.Tensor:
    grouped = GroupedTensor(
        array_of(weight.parameter),
        made.granularity,
        None if made.mask is None else array_of(made.mask),
    )
    low, high = full_ranges(grouped)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(array_of(weight.parameter))
    low, high = ranges(
        grouped,
        low,
        high,
        bits=made.bits,
        scheme=made.scheme,
        scale_dtype=stored_dtype(made.scale_dtype, grouped.dtype),
        calibration=calibration,
        percentile=percentile,
    )
    return torch.from_numpy(np.stack([low, high]))

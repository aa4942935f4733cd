"""Training with 8-bit weights: between two steps of the optimizer there are only codes (survey, section IV-D; Li et al.,
"Training Quantized Nets: A Deeper Understanding", 2017).

After each step the new weights are rounded to codes of their group again:

    w_t+1 = S round((w_t + update) / S)

An update that is smaller than S / 2 is lost by rounding to nearest, each time anew, and training stalls. Rounded
stochastically, up with the probability of the fraction, it is kept on average. The scale of a group stays what it is until a
weight would be clipped; then it grows to hold it.

    codes = QuantizedTraining(find_weights(module), bits=8, granularity=PerChannel(axis=0))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with codes.after_each_step_of(optimizer):
        ...                                  # any training loop
    tensors = codes.tensors()                # what is stored

The random bits depend on the seed, the weight, its position, and the number of the step, and on nothing else.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from dcz.compression.quantizers import Rounding, ScaleDType
from dcz.compression.scales import check_bits, stored_dtype
from dcz.compression.stochastic import check_seed, round_stochastically
from dcz.compression.torch_tensors import check_tensor
from dcz.compression.training.masks import naming
from dcz.compression.training.quantized_weights import oriented
from dcz.compression.training.torch_groups import check_granularity, rows_of, spread
from dcz.compression.training.weights import Weight
from dcz.errors import EncodingError, UsageError
from dcz.format.manifest import Granularity, PerTensor
from dcz.format.tensors import UniformTensor

if TYPE_CHECKING:
    from dcz.format.tensors import TensorData

__all__ = ["QuantizedTraining"]

_ROUNDING: Final = 2.0**-20


class _Codes:
    """The codes and scales of one weight."""

    def __init__(self, weight: Weight, bits: int, granularity: Granularity, stored: np.dtype[Any]) -> None:
        self.weight = weight
        self.granularity = granularity
        self.most = (1 << (bits - 1)) - 1
        self.stored = stored
        values = weight.parameter.detach()
        self.compute = torch.float64 if values.dtype == torch.float64 else torch.float32
        self.scales = torch.zeros(len(rows_of(values, granularity)), dtype=self.compute)
        self.codes = torch.zeros(values.shape, dtype=torch.int8)

    def _each(self, parameters: torch.Tensor) -> torch.Tensor:
        return spread(parameters, tuple(self.codes.shape), self.granularity)

    def _cover(self, values: torch.Tensor) -> None:
        """Let the scales grow where a weight would be clipped."""
        reach = rows_of(values, self.granularity).abs().amax(1).to(torch.float64)
        wanted = (reach / self.most).numpy()
        found = wanted.astype(self.stored)
        low = found.astype(np.float64) < wanted
        found[low] = np.nextafter(found[low], np.asarray(np.inf, self.stored))
        # The value of the last code may be above the last multiple of the scale, by the rounding of the product.
        clipped = reach > self.scales.double() * self.most * (1 + _ROUNDING)
        grown = torch.from_numpy(found.astype(np.float64)).to(self.compute)
        self.scales = torch.where(clipped, grown, self.scales)

    @torch.no_grad()
    def take(self, rounding: Rounding, seed: int, step: int) -> None:
        """What the Parameter holds becomes codes, and their values."""
        parameter = self.weight.parameter
        values = parameter.detach().to("cpu", self.compute)
        if not bool(torch.isfinite(values).all()):
            raise EncodingError(f"{self.weight.name} is not finite any more, after {step} steps")
        # Half precision rounds the value of a code; that is no update.
        before = self._each(self.scales) * self.codes.to(self.compute)
        values = before + (values - before.to(parameter.dtype).to(self.compute))
        self._cover(values)
        steps = self._each(torch.where(self.scales == 0, 1, self.scales))
        exact = values / steps
        if rounding == "nearest":
            rounded = torch.round(exact)
        else:
            positions = np.arange(exact.numel(), dtype=np.uint64).reshape(exact.shape)
            positions += np.uint64(step) * np.uint64(exact.numel())
            rounded = torch.from_numpy(round_stochastically(exact.numpy(), seed, positions))
        self.codes = rounded.clamp_(-self.most, self.most).to(torch.int8)
        parameter.copy_((steps * self.codes.to(self.compute)).to(parameter.dtype))

    def tensor(self, bits: int) -> UniformTensor:
        return UniformTensor(
            dtype=check_tensor(self.weight.name, self.weight.parameter).name,
            shape=tuple(self.codes.shape),
            bits=bits,
            codes=(self.codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8).numpy(),
            scales=self.scales.numpy().astype(self.stored),
            granularity=self.granularity,
        )


class QuantizedTraining:
    """Keeps weights as codes while they are trained.

    ``bits``: 2 to 8. ``granularity``: what shares a scale; a channel of axis 0 is an output of the layer also where a matrix is
    stored transposed. ``rounding``, ``seed``: of each new weight; 0 to 2**32 - 1. ``scale_dtype``: how scales are stored.

    From now on each Parameter holds the values of its codes. Raises UsageError for a weight under a parametrization;
    EncodingError, which names the weight, if it is not finite or the arguments do not fit it.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        bits: int = 8,
        *,
        granularity: Granularity | None = None,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        scale_dtype: ScaleDType | None = None,
    ) -> None:
        check_bits(bits, "symmetric")
        check_seed(seed)
        if rounding not in ("nearest", "stochastic"):
            raise EncodingError(f"unknown rounding {rounding!r}", hint="allowed: nearest, stochastic")
        self.bits = bits
        self.rounding: Rounding = rounding
        self.steps = 0
        """How often the weights were rounded after a step."""
        self._seed = seed
        self._all: list[_Codes] = []
        for weight in weights:
            if weight.parametrization is not None:
                raise UsageError(
                    f"{weight.name} cannot be kept as codes: it is under {type(weight.parametrization).__name__}"
                )
            with naming(weight):
                chosen = oriented(granularity or PerTensor(), weight)
                check_granularity(chosen, tuple(weight.parameter.shape))
                stored = stored_dtype(scale_dtype, check_tensor(weight.name, weight.parameter))
                if not bool(torch.isfinite(weight.parameter).all()):
                    raise EncodingError("a weight is not finite")
            self._all.append(_Codes(weight, bits, chosen, stored))
        for codes in self._all:
            codes.take("nearest", 0, 0)

    def requantize(self) -> None:
        """Round what the Parameters hold to codes again: after each step of an optimizer."""
        self.steps += 1
        for codes in self._all:
            # Two weights of one shape are not rounded alike.
            seed = self._seed ^ zlib.crc32(codes.weight.name.encode())
            codes.take(self.rounding, seed, self.steps)

    @contextlib.contextmanager
    def after_each_step_of(self, optimizer: torch.optim.Optimizer) -> Generator[None]:
        """Do so by itself until the end of the block."""

        def after(*_: object) -> None:
            self.requantize()

        hook = optimizer.register_step_post_hook(after)
        try:
            yield
        finally:
            hook.remove()

    def codes(self) -> dict[str, torch.Tensor]:
        """int8, of the shape of each weight, by its first name: the value of a weight is its scale times its code."""
        return {codes.weight.name: codes.codes for codes in self._all}

    def tensors(self) -> dict[str, TensorData]:
        """What is stored of the weights, by their first names."""
        return {codes.weight.name: codes.tensor(self.bits) for codes in self._all}

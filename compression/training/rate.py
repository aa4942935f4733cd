"""Training against the size of the file: what a weight costs in the coded file is part of the loss.

Each weight is quantized to a uniform grid while it is trained, with one learned step for each tensor, and rounded in the
forward pass only (Bengio, Leonard and Courville 2013; the step as in Esser et al., "Learned Step Size Quantization",
2020). Its rate is the code length under a model of the coder, held while the gradients are taken: the entropy-penalized
training of Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization" (2020), with rows and
columns as contexts, as the range coding has them. Rows and columns that hold little cost more for each weight, so whole
inputs and units go.

    rate = RateAware(model)
    optimizer = torch.optim.Adam(rate.parameter_groups(lr=1e-3))
    for inputs, targets in data:
        loss = task_loss(model(inputs), targets) + strength * rate.bits()
        ...
    tensors = rate.tensors()

A training loop that knows nothing of it trains against the size as well: ``rate.penalize(strength)`` adds the gradient of
the rate to each backward pass.

``strength`` is in units of the loss for each bit. The larger, the smaller the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import ml_dtypes
import numpy as np
import torch
from torch import nn

from dcz.compression.torch_tensors import check_tensor
from dcz.compression.training.code_length import CodeLengthModel
from dcz.compression.training.weights import Weight, WeightParametrization, find_weights
from dcz.errors import UsageError
from dcz.format.manifest import PerTensor
from dcz.format.tensors import UniformTensor

if TYPE_CHECKING:
    from dcz.format.tensors import TensorData

__all__ = ["RateAware", "UniformGrid", "find_biases"]

_MOST: Final = 127  # steps, in either direction: what codes of 8 bits hold


class UniformGrid(WeightParametrization):
    """The weight, rounded to multiples of a learned step.

    ``step``: the first one, above 0. It is stored as bfloat16, and used so.
    """

    def __init__(self, step: float, like: torch.Tensor) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(math.log(step), dtype=torch.float32, device=like.device))

    def step(self) -> torch.Tensor:
        """The step as it is stored, which passes its gradient on."""
        exact = self.log_step.exp()
        return exact + (exact.to(torch.bfloat16).to(exact.dtype) - exact).detach()

    def steps(self, original: torch.Tensor) -> torch.Tensor:
        """The weight in units of the step, float32."""
        # As clamp, whose gradient is far slower.
        return nn.functional.hardtanh(original.to(self.log_step.dtype) / self.step(), -_MOST, _MOST)

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        steps = self.steps(original)
        rounded = steps + (steps.round() - steps).detach()
        return (self.step() * rounded).to(original.dtype)

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        """So that weights can be assigned while they are trained."""
        return value

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        del settings
        return cls(1.0, state["log_step"])

    @torch.no_grad()
    def codes(self, original: torch.Tensor) -> torch.Tensor:
        """The multiples of the step, integers as float32."""
        return self.steps(original).round()

    def stored(self, original: torch.Tensor) -> UniformTensor:
        codes = self.codes(original).to("cpu").numpy().astype(np.int16)
        bits = 1
        while codes.min() < -(1 << (bits - 1)) or codes.max() >= 1 << (bits - 1):
            bits += 1
        dtype = check_tensor("weight", original).name
        scale = np.float64 if dtype == "f64" else np.dtype(ml_dtypes.bfloat16)
        return UniformTensor(
            dtype=dtype,
            shape=tuple(original.shape),
            bits=bits,
            codes=(codes + (1 << (bits - 1))).astype(np.uint8),
            scales=np.array([self.step().item()], dtype=scale),
            granularity=PerTensor(),
            mask=codes != 0,
        )


class RateAware:
    """Quantizes the weights of a module while they are trained, and says what they cost.

    ``weights``: which; None for all of ``find_weights`` and the biases of the same modules. ``levels``: the largest
    magnitude of each weight is so many steps at first, above 0; the steps are learned. ``refit``: the model of the coder
    is fitted to the codes again each time that ``bits()`` was called so often.

    From now on the module computes with quantized weights, and trains those beneath them, which are the same Parameters.
    A weight that is quantized so already keeps its step. Raises UsageError if a weight is under another parametrization, or
    is not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Sequence[Weight] | None = None,
        *,
        levels: float = 16,
        refit: int = 8,
    ) -> None:
        if not 0 < levels <= _MOST:
            raise UsageError(f"{levels} levels: above 0 and at most {_MOST} are possible")
        if refit < 1:
            raise UsageError(f"a model that is fitted every {refit} calls")
        chosen = list(weights) if weights is not None else [*find_weights(module), *find_biases(module)]
        for weight in chosen:
            if not isinstance(weight.parametrization, UniformGrid | None):
                raise UsageError(
                    f"{weight.name} is under {type(weight.parametrization).__name__} already",
                    hint="remove it first; what was pruned is zero, and is not likely to come back",
                )
            if not bool(torch.isfinite(weight.parameter).all()):
                raise UsageError(f"{weight.name} is not finite")
        self._refit = refit
        self._calls = 0
        self._grids: list[tuple[Weight, UniformGrid]] = []
        self._models: list[CodeLengthModel] = []
        # Of a tensor of zeros, such as fresh biases, the others say how large weights are.
        largest = [float(weight.parameter.detach().abs().max()) for weight in chosen]
        instead = max(largest, default=0.0) or 1.0
        for weight, magnitude in zip(chosen, largest, strict=True):
            grid = weight.parametrization
            if not isinstance(grid, UniformGrid):
                grid = UniformGrid((magnitude or instead) / levels, weight.parameter)
                weight.parametrize(grid)
            self._grids.append((weight, grid))
            self._models.append(CodeLengthModel(_matrix(grid.codes(weight.parameter))))

    def parameter_groups(self, lr: float, *, step_lr: float | None = None) -> list[dict[str, Any]]:
        """The weights and the steps, for an optimizer; the rest of the module's parameters is not among them.

        ``step_lr``: the rate at which the logarithms of the steps learn; None for three times ``lr``. Steps are not
        subject to weight decay.
        """
        steps = 3 * lr if step_lr is None else step_lr
        return [
            {"params": [weight.parameter for weight, _ in self._grids], "lr": lr},
            {"params": [grid.log_step for _, grid in self._grids], "lr": steps, "weight_decay": 0.0},
        ]

    def bits(self) -> torch.Tensor:
        """What the weights cost, a scalar in bits, to be added to the loss times a strength.

        Without what a file of zeros would take. For its gradient: ``code_length()`` is nearer to the size of the file.
        """
        if self._calls % self._refit == 0:
            self.fit()
        self._calls += 1
        costs = [
            model.marginal_bits(_matrix(grid.steps(weight.parameter)))
            for (weight, grid), model in zip(self._grids, self._models, strict=True)
        ]
        return torch.stack(costs).sum()

    def penalize(self, strength: float) -> Callable[[], None]:
        """Let each backward pass add the gradient of ``strength`` times the rate, as if bits() were part of the loss.

        Gradients are added once for each time that a weight gets one, so that several backward passes for one step of the
        optimizer count several times. Returns what ends it.
        """
        hooks = [
            weight.parameter.register_post_accumulate_grad_hook(_Penalty(grid, model, strength, self._refit))
            for (weight, grid), model in zip(self._grids, self._models, strict=True)
            if weight.parameter.requires_grad
        ]

        def end() -> None:
            for hook in hooks:
                hook.remove()

        return end

    def fit(self) -> None:
        """Fit the model of the coder to the codes as they are."""
        for (weight, grid), model in zip(self._grids, self._models, strict=True):
            model.fit(_matrix(grid.codes(weight.parameter)))

    def code_length(self) -> dict[str, float]:
        """The expected bits of the codes and their positions for each weight, by its first name."""
        self.fit()
        return {
            weight.name: model.bits(_matrix(grid.codes(weight.parameter)))
            for (weight, grid), model in zip(self._grids, self._models, strict=True)
        }

    def tensors(self) -> dict[str, TensorData]:
        """The weights as they are written to a file, by their first names."""
        return {weight.name: grid.stored(weight.parameter.detach()) for weight, grid in self._grids}

    def densities(self) -> Mapping[str, float]:
        """The part of each weight that is not zero, by its first name."""
        return {
            weight.name: float(torch.count_nonzero(grid.codes(weight.parameter))) / weight.parameter.numel()
            for weight, grid in self._grids
        }

    def remove(self) -> None:
        """Leave plain Parameters that hold the quantized weights."""
        for weight, _ in self._grids:
            weight.unparametrize()


class _Penalty:
    """Adds the gradient of the rate of one weight to its own."""

    def __init__(self, grid: UniformGrid, model: CodeLengthModel, strength: float, refit: int) -> None:
        self._grid = grid
        self._model = model
        self._strength = strength
        self._refit = refit
        self._calls = 0

    def __call__(self, parameter: torch.Tensor) -> None:
        grid = self._grid
        if self._calls % self._refit == 0:
            self._model.fit(_matrix(grid.codes(parameter)))
        self._calls += 1
        with torch.enable_grad():
            original = parameter.detach().requires_grad_()
            cost = self._strength * self._model.marginal_bits(_matrix(grid.steps(original)))
            of_weight, of_step = torch.autograd.grad(cost, [original, grid.log_step])
        assert parameter.grad is not None
        parameter.grad.add_(of_weight)
        if grid.log_step.grad is None:
            grid.log_step.grad = of_step
        else:
            grid.log_step.grad.add_(of_step)


def find_biases(module: nn.Module) -> list[Weight]:
    """The biases that stand beside the weights of a module: floating-point Parameters of one dimension with the same owner."""
    found: list[Weight] = []
    seen: set[nn.Parameter] = set()
    for weight in find_weights(module):
        for owner, attribute in weight.owners:
            prefix = next(name for name in weight.names if name.rpartition(".")[2] == attribute)
            prefix = prefix[: len(prefix) - len(attribute)]
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter in seen or parameter.ndim != 1 or parameter.numel() == 0:
                    continue
                if not parameter.is_floating_point():
                    continue
                seen.add(parameter)
                found.append(Weight((prefix + name,), weight.kind, ((owner, name),), parameter))
    return found


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """Outputs by everything else, as the range coding sees it."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)

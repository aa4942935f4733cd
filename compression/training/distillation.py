"""Distillation: a network that is compressed learns what the dense one says (Hinton, Vinyals and Dean 2015; survey, section
IV-C). With the scores z of the network, v of its teacher, and a temperature T:

    loss = a CE(z, targets) + (1 - a) T^2 KL(softmax(v / T) || softmax(z / T)) + b sum over layers of MSE(features)

The factor T^2 keeps the size of the gradient of the second term, which is in proportion to 1 / T^2. Inside of a training
loop of one's own:

    teacher = Teacher(dense, features=["blocks.2"])
    with teacher.watching(network) as watched:
        for inputs, targets in data:
            loss = watched.loss(network(inputs), inputs, targets)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dcz.compression.torch_tensors import unwrapped
from dcz.errors import UsageError

__all__ = ["Teacher", "Watched", "distillation_loss", "divergence"]


def divergence(scores: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(scores / T)), nats, the mean over all but the last dimension: a scalar.

    ``scores``, ``teacher``: unnormalized, (..., classes), of the same shape. Raises UsageError if the temperature is not above 0.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"a temperature of {temperature}: above 0 is possible")
    classes = scores.shape[-1]
    own, wanted = (
        functional.log_softmax(part.reshape(-1, classes) / temperature, 1) for part in (scores, teacher)
    )
    found = functional.kl_div(own, wanted, log_target=True, reduction="batchmean")
    return found * temperature**2


def distillation_loss(
    scores: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor | None = None,
    *,
    alpha: float = 0.1,
    temperature: float = 4.0,
    hard: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = functional.cross_entropy,
) -> torch.Tensor:
    """a CE(scores, targets) + (1 - a) T^2 KL: a scalar.

    ``scores``, ``teacher``: (..., classes). ``alpha``: the part of the loss of ``targets``, 0 to 1; without targets there is only
    the teacher. ``hard(scores, targets)``: another loss than the cross-entropy.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"an alpha of {alpha}: 0 to 1 are possible")
    if targets is None:
        return divergence(scores, teacher, temperature)
    if alpha == 1:
        return hard(scores, targets)
    return alpha * hard(scores, targets) + (1 - alpha) * divergence(scores, teacher, temperature)


class Teacher:
    """A network that is not trained, and what is to be learned from it.

    ``features``: names of modules whose outputs are compared, too; as a mapping, from names in the network that learns to
    those in the teacher. ``alpha``, ``temperature``: as for `distillation_loss`; ``feature_weight``: of the squared errors.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        features: Iterable[str] | Mapping[str, str] = (),
        alpha: float = 0.1,
        temperature: float = 4.0,
        feature_weight: float = 1.0,
    ) -> None:
        self.network = network
        self.features = dict(features) if isinstance(features, Mapping) else {name: name for name in features}
        self.alpha, self.temperature, self.feature_weight = alpha, temperature, feature_weight
        _submodules(network, self.features.values())

    @contextlib.contextmanager
    def watching(self, network: nn.Module) -> Generator[Watched]:
        """What the chosen modules of both networks put out is seen from now on, until the end of the block.

        Raises UsageError if one of them has no such module.
        """
        seen: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        hooks = []
        try:
            for which, (module, names) in enumerate(
                ((network, [*self.features]), (self.network, [*self.features.values()]))
            ):
                for name, part in _submodules(module, names).items():
                    hooks.append(part.register_forward_hook(_keep(seen[which], name)))
            yield Watched(self, *seen)
        finally:
            for hook in hooks:
                hook.remove()


class Watched:
    """A network and its teacher while a training loop runs."""

    def __init__(self, teacher: Teacher, own: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> None:
        self._teacher = teacher
        self._own, self._its = own, its

    def loss(
        self, scores: torch.Tensor, inputs: Any, targets: torch.Tensor | None = None, **further: Any
    ) -> torch.Tensor:
        """The loss of the scores that the network has just given for ``inputs``: a scalar.

        ``inputs``: what the teacher is called with: a tensor, or a tuple or mapping of arguments. ``further``: as for
        `distillation_loss`, in place of what the teacher says. The teacher is in evaluation while it is asked.

        Raises UsageError if a module whose output is compared was not called, or gave something else than a tensor.
        """
        teacher = self._teacher
        modes = [(part, part.training) for part in teacher.network.modules()]
        teacher.network.eval()
        try:
            with torch.no_grad():
                if isinstance(inputs, Mapping):
                    said = teacher.network(**inputs)
                else:
                    said = (
                        teacher.network(*inputs)
                        if isinstance(inputs, tuple | list)
                        else teacher.network(inputs)
                    )
        finally:
            for part, training in modes:
                part.training = training
        options: dict[str, Any] = {"alpha": teacher.alpha, "temperature": teacher.temperature, **further}
        loss = distillation_loss(scores, said, targets, **options)
        for name, its in teacher.features.items():
            if name not in self._own or its not in self._its:
                raise UsageError(f"the module {name!r} has put out no tensor that could be compared")
            difference = functional.mse_loss(self._own[name], self._its[its].to(self._own[name].dtype))
            loss = loss + teacher.feature_weight * difference
        return loss


def _submodules(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    inner, _ = unwrapped(module)
    parts = dict(inner.named_modules())
    for name in names:
        if name not in parts:
            raise UsageError(f"there is no module {name!r} in the {type(inner).__name__}")
    return {name: parts[name] for name in names}


def _keep(seen: dict[str, torch.Tensor], name: str) -> Callable[[nn.Module, object, Any], None]:
    def hook(module: nn.Module, inputs: object, output: Any) -> None:
        del module, inputs
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, torch.Tensor):
            seen[name] = first
        else:
            seen.pop(name, None)

    return hook

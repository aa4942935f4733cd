"""The weights of a module that can be compressed, and how they are replaced while they are trained.

A *weight* is one Parameter, however many modules use it and under however many names (tied weights). While it is
compressed, a parametrization (torch.nn.utils.parametrize) stands between the Parameter and all its owners:

    Parameter  --forward-->  what the owners see as ``.weight``

The Parameter object stays the same all the time, what it holds changes: the weights themselves under a pruning mask, the
shared weights under weight sharing. So ``module.parameters()`` always gives what is to be trained, and a training loop
needs no change. Once the parametrization is removed, the same Parameter holds the result.
"""

# How torch keeps parameters, modules, hooks and the weights of recurrent layers has no public access that is complete.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import abc
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

import torch
from torch import nn
from torch.nn.utils import parametrize

from dcz.compression.torch_tensors import unwrapped
from dcz.errors import UsageError

__all__ = ["Kind", "Weight", "WeightParametrization", "find_weights", "remove_parametrizations"]

Kind: TypeAlias = Literal["linear", "conv", "embedding", "attention", "recurrent", "other"]

_TRAINABLE: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CONVOLUTIONS: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS: Final = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
# The order of a module's parameters before one of them was parametrized: an optimizer's state goes by it.
_ORDER: Final = "_dcz_parameter_order"
_NORM_NAMES: Final = re.compile(r"norm(\dd)?$")
_KINDS: Final[tuple[tuple[Kind, tuple[type[nn.Module], ...]], ...]] = (
    ("linear", (nn.Linear, nn.Bilinear)),
    ("conv", _CONVOLUTIONS),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("attention", (nn.MultiheadAttention,)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
)


class WeightParametrization(nn.Module, abc.ABC):
    """What stands between a Parameter and the weight that its owners see."""

    @abc.abstractmethod
    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """The weight, in its own shape and type. ``original``: what the Parameter holds."""

    def settings(self) -> dict[str, Any]:
        """What `restored` needs beside the state_dict: names to numbers, strings, None and dictionaries of them."""
        return {}

    @classmethod
    @abc.abstractmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        """One whose ``settings()`` and ``state_dict()`` have these names and shapes; the values of the state may differ."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One Parameter of a module, by all its names.

    ``names``: as in ``state_dict()`` without parametrizations; the first one stands for the weight. ``kind``: of layer, by its
    first owner. ``owners``: modules and the attribute under which each holds it. ``transposed``: the first dimension is of
    inputs and the second of outputs, as in transposed convolutions and the Conv1D of transformers.
    """

    names: tuple[str, ...]
    kind: Kind
    owners: tuple[tuple[nn.Module, str], ...]
    parameter: nn.Parameter
    transposed: bool = False

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def parametrization(self) -> WeightParametrization | None:
        """What is registered now."""
        module, attribute = self.owners[0]
        if not parametrize.is_parametrized(module, attribute):
            return None
        found = module.parametrizations[attribute][0]  # type: ignore[index]
        assert isinstance(found, WeightParametrization)
        return found

    def value(self) -> torch.Tensor:
        """The weight that the owners see in evaluation: without a graph; not to be written to."""
        parametrization = self.parametrization
        with torch.no_grad():
            if parametrization is None:
                return self.parameter.detach()
            training = parametrization.training
            try:
                value: torch.Tensor = parametrization.eval()(self.parameter).detach()
            finally:
                parametrization.train(training)
            return value

    def parametrize(
        self, parametrization: WeightParametrization, original: torch.Tensor | None = None
    ) -> None:
        """Register a parametrization with all owners, in place of the one that there is.

        ``original``: what the Parameter is to hold from now on, of its type and device and any shape; None leaves what it
        holds. A change of shape drops the gradient, and an optimizer's state for the Parameter does not fit any more.
        """
        if self.parametrization is not None:
            self._remove()
        if original is not None:
            self._set(original)
        for module, attribute in self.owners:
            module.__dict__.setdefault(_ORDER, list(module._parameters))
            parametrize.register_parametrization(module, attribute, parametrization, unsafe=True)
            if isinstance(module, nn.RNNBase):
                _watch(module)

    def unparametrize(self) -> None:
        """Remove the parametrization; the Parameter holds the weight that it gave."""
        if self.parametrization is None:
            return
        value = self.value()
        self._remove()
        self._set(value)

    def _set(self, value: torch.Tensor) -> None:
        parameter = self.parameter
        if parameter.shape != value.shape:
            parameter.grad = None
        parameter.data = value.detach().clone(memory_format=torch.preserve_format)

    def _remove(self) -> None:
        for module, attribute in self.owners:
            _own_class(module)
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
            if not parametrize.is_parametrized(module):
                order: list[str] = module.__dict__.pop(_ORDER)
                module._parameters = {name: module._parameters[name] for name in order}
            if isinstance(module, nn.RNNBase):
                _unwatch(module)


def find_weights(module: nn.Module) -> list[Weight]:
    """The weights of a module that can be pruned and shared, in the order of its parameters.

    That is every floating-point Parameter of two and more dimensions that does not belong to a normalization: of linear
    layers, convolutions, embeddings, attention, recurrent layers, and what modules of one's own hold. Biases and the
    parameters of norms are not among them. DataParallel and torch.compile are looked through.

    Raises UsageError if something else than dcz has parametrized one of them, or if it cannot be trained through a
    parametrization; it says which, and what to do.
    """
    module, _ = unwrapped(module)
    found: dict[nn.Parameter, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
    for prefix, owner in _modules(module, ""):
        _check_owner(owner, prefix)
        for attribute, parameter in _parameters(owner, prefix):
            if not _is_weight(owner, attribute, parameter):
                continue
            names, owners = found.setdefault(parameter, ([], []))
            names.append(prefix + attribute)
            if (owner, attribute) not in owners:
                owners.append((owner, attribute))
    weights = [
        Weight(tuple(names), _kind(owners[0][0]), tuple(owners), parameter, _is_transposed(owners[0][0]))
        for parameter, (names, owners) in found.items()
    ]
    _check(weights)
    return weights


def remove_parametrizations(module: nn.Module) -> None:
    """Leave plain Parameters that hold the weights as they were compressed."""
    for weight in find_weights(module):
        weight.unparametrize()


def _modules(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """All modules under all their names, but not what parametrizations add."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None and not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield from _modules(child, f"{prefix}{name}.")


def _parameters(owner: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The module's own parameters, by the names that they have without parametrizations."""
    for attribute, parameter in owner._parameters.items():
        if parameter is not None:
            yield attribute, parameter
    if not parametrize.is_parametrized(owner):
        return
    for attribute, stack in owner.parametrizations.items():  # type: ignore[operator, union-attr]
        if isinstance(stack[0], WeightParametrization) and len(stack) == 1:
            yield attribute, stack.original
        elif any(value.ndim >= 2 for value in stack.parameters(recurse=False)):
            raise UsageError(
                f"{prefix}{attribute} has a parametrization already: "
                + ", ".join(type(item).__name__ for item in stack),
                hint="torch.nn.utils.parametrize.remove_parametrizations(module, "
                f"{attribute!r}) makes a plain parameter of it",
            )


def _check_owner(owner: nn.Module, prefix: str) -> None:
    """Refuse what replaces weights in other ways, in which a parametrization would be lost."""
    parameters = owner._parameters.keys()
    for attribute in sorted(parameters):
        name = attribute.removesuffix("_orig")
        if name != attribute and f"{name}_mask" in owner._buffers:
            raise UsageError(
                f"{prefix}{name} is pruned by torch.nn.utils.prune",
                hint=f"torch.nn.utils.prune.remove(module, {name!r}) makes a plain parameter of it; its zeros stay",
            )
        name = attribute.removesuffix("_g")
        if name != attribute and f"{name}_v" in parameters and name not in parameters:
            raise UsageError(
                f"{prefix}{name} is normalized by the hooks of torch.nn.utils.weight_norm",
                hint=f"torch.nn.utils.remove_weight_norm(module, {name!r}) makes a plain parameter of it",
            )
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        if owner.sparse:
            raise UsageError(
                f"{prefix}weight has sparse gradients, which cannot pass through a parametrization",
                hint="set sparse=False",
            )
        if owner.max_norm is not None:
            raise UsageError(
                f"{prefix}weight is renormalized in place while it is used (max_norm), and could not be shared",
                hint="set max_norm=None",
            )


def _is_weight(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> bool:
    if torch.nn.parameter.is_lazy(parameter):
        raise UsageError(
            f"the {type(owner).__name__} has a {attribute} whose shape is not known yet",
            hint="call the module once, then compress it",
        )
    if isinstance(owner, _NORMS) or _NORM_NAMES.search(type(owner).__name__.lower()):
        return False
    current = owner.parametrizations[attribute][0] if parametrize.is_parametrized(owner, attribute) else None  # type: ignore[index]
    return current is not None or (
        parameter.ndim >= 2 and parameter.numel() > 0 and parameter.dtype in _TRAINABLE
    )


def _kind(owner: nn.Module) -> Kind:
    if _is_conv1d_of_transformers(owner):
        return "linear"
    for kind, types in _KINDS:
        if isinstance(owner, types):
            return kind
    return "other"


def _is_transposed(owner: nn.Module) -> bool:
    return isinstance(owner, _TRANSPOSED) or _is_conv1d_of_transformers(owner)


def _is_conv1d_of_transformers(owner: nn.Module) -> bool:
    """A linear layer with its matrix transposed, of GPT-2; asked without importing transformers."""
    kinds = type(owner).__mro__
    return any((kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") for kind in kinds)


def _check(weights: Sequence[Weight]) -> None:
    memory: dict[tuple[str, int], str] = {}
    for weight in weights:
        parameter = weight.parameter
        reason = hint = None
        if parameter.is_meta:
            reason, hint = "has no memory", "load the model first"
        elif type(parameter) is not nn.Parameter or type(parameter.data) is not torch.Tensor:
            kind = type(parameter if type(parameter) is not nn.Parameter else parameter.data).__name__
            reason, hint = f"is a {kind}", "compress the model before it is wrapped, sharded or quantized"
        elif parameter.layout != torch.strided:
            reason, hint = f"is sparse ({parameter.layout})", "to_dense() first"
        elif parameter.is_inference():
            reason, hint = "was made in inference mode", "make or load the model outside of it"
        if reason is None:
            place = str(parameter.device), parameter.untyped_storage().data_ptr()
            other = memory.setdefault(place, weight.name)
            if other != weight.name:
                reason = f"shares its memory with {other}, and is not the same Parameter"
                hint = "assign the Parameter itself to tie weights, and clone() to part them"
        if reason is not None:
            raise UsageError(f"{weight.name} cannot be compressed: it {reason}", hint=hint)


def _own_class(module: nn.Module) -> None:
    """torch removes the attribute from the module's class, which deep copies share: their weights would be gone, too."""
    shared = type(module)
    own: Any = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    object.__setattr__(module, "__class__", own)


# A recurrent layer keeps a list of its weights, and reads that instead of its attributes.


def _before(module: nn.Module, _: object) -> None:
    assert isinstance(module, nn.RNNBase)
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _after(module: nn.Module, _: object, __: object) -> None:
    # What was computed belongs to a graph: a module that holds it cannot be copied.
    assert isinstance(module, nn.RNNBase)
    held = dict(_parameters(module, ""))
    module._flat_weights = [held.get(name) for name in module._flat_weights_names]


def _watch(module: nn.RNNBase) -> None:
    if _before not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_before)
        module.register_forward_hook(_after, always_call=True)
    _after(module, None, None)


def _unwatch(module: nn.RNNBase) -> None:
    if parametrize.is_parametrized(module):
        _after(module, None, None)
        return
    for hooks, function in ((module._forward_pre_hooks, _before), (module._forward_hooks, _after)):
        for key in [key for key, hook in hooks.items() if hook is function]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)
    _before(module, None)

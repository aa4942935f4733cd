"""A module as a graph of operations, each of a kind of a small vocabulary.

torch.fx follows the module with stand-ins for tensors, so its forward pass may not depend on their values. Linear layers,
convolutions, norms and so on stay what they are, whatever class is derived from them as long as it computes the same; all
other modules are looked into. What has no kind here is `other`, and nothing is assumed of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from dcz.compression.torch_tensors import is_module, is_tensor
from dcz.errors import UsageError

__all__ = [
    "LAYERS",
    "ChannelClamp",
    "Kind",
    "Layer",
    "Moments",
    "Network",
    "Operation",
    "check_network",
    "kept_batches",
    "trace",
]

Kind: TypeAlias = Literal[
    "input",
    "linear",
    "convolution",
    "transposed-convolution",
    "batch-norm",
    "relu",
    "relu6",
    "channel-clamp",
    "max-pool",
    "average-pool",
    "adaptive-average-pool",
    "flatten",
    "add",
    "concatenate",
    "identity",
    "output",
    "other",
]
Layer: TypeAlias = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
)

LAYERS: Final[tuple[Kind, ...]] = ("linear", "convolution", "transposed-convolution")


class ChannelClamp(nn.Module):
    """min(max(x, 0), ceiling) with a ceiling for each channel: what a ReLU6 becomes between layers that are equalized.

    ``ceilings``: (channels,). ``axis``: that of the channels; 1 behind a convolution, -1 behind a linear layer.
    """

    ceilings: torch.Tensor

    def __init__(self, ceilings: torch.Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("ceilings", ceilings)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shape = [1] * inputs.ndim
        shape[self.axis] = -1
        return torch.minimum(torch.relu(inputs), self.ceilings.view(shape))


_MODULES: Final[dict[type[nn.Module], Kind]] = {
    nn.Linear: "linear",
    nn.Conv1d: "convolution",
    nn.Conv2d: "convolution",
    nn.Conv3d: "convolution",
    nn.ConvTranspose1d: "transposed-convolution",
    nn.ConvTranspose2d: "transposed-convolution",
    nn.ConvTranspose3d: "transposed-convolution",
    nn.BatchNorm1d: "batch-norm",
    nn.BatchNorm2d: "batch-norm",
    nn.BatchNorm3d: "batch-norm",
    nn.ReLU6: "relu6",
    nn.ReLU: "relu",
    ChannelClamp: "channel-clamp",
    nn.MaxPool1d: "max-pool",
    nn.MaxPool2d: "max-pool",
    nn.AvgPool1d: "average-pool",
    nn.AvgPool2d: "average-pool",
    nn.AdaptiveAvgPool1d: "adaptive-average-pool",
    nn.AdaptiveAvgPool2d: "adaptive-average-pool",
    nn.Flatten: "flatten",
    nn.Identity: "identity",
    nn.Dropout: "identity",
    nn.Dropout1d: "identity",
    nn.Dropout2d: "identity",
}
_POOLS: Final[dict[Kind, tuple[str, ...]]] = {
    "max-pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "average-pool": (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    "adaptive-average-pool": ("output_size",),
    "flatten": ("start_dim", "end_dim"),
}
_DEFAULTS: Final[dict[str, Any]] = {
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
    "count_include_pad": True,
    "divisor_override": None,
    "start_dim": 0,
    "end_dim": -1,
    "alpha": 1,
    "dim": 0,
}
# Functions and methods of tensors by their names: in torch, in torch.nn.functional and as methods these are the same.
_NAMES: Final[dict[str, Kind]] = {
    "relu": "relu",
    "relu_": "relu",
    "relu6": "relu6",
    "max_pool1d": "max-pool",
    "max_pool2d": "max-pool",
    "avg_pool1d": "average-pool",
    "avg_pool2d": "average-pool",
    "adaptive_avg_pool1d": "adaptive-average-pool",
    "adaptive_avg_pool2d": "adaptive-average-pool",
    "flatten": "flatten",
    "add": "add",
    "add_": "add",
    "cat": "concatenate",
    "concat": "concatenate",
    "contiguous": "identity",
}


def _functions() -> dict[Callable[..., Any], Kind]:
    found: dict[Callable[..., Any], Kind] = {
        operator.add: "add",
        operator.iadd: "add",
        functional.dropout: "identity",
    }
    for name, kind in _NAMES.items():
        for home in (torch, functional):
            function = getattr(home, name, None)
            if function is not None:
                found[function] = kind
    return found


_FUNCTIONS: Final = _functions()


@dataclass(frozen=True, eq=False)
class Operation:
    """One step of a network.

    ``name``: of the module, as in ``named_modules``; of a function, as torch.fx calls the step. ``inputs``: the steps
    whose outputs it takes. ``options``: of pooling, flatten, add and concatenate, by the names that torch gives them.
    """

    kind: Kind
    name: str
    node: fx.Node
    inputs: tuple[fx.Node, ...]
    module: nn.Module | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def layer(self) -> Layer:
        """The module of a linear layer or a convolution."""
        assert isinstance(self.module, Layer)
        return self.module


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and standard deviations of the outputs of a layer's channels, before the activation: float64 (channels,)."""

    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(eq=False)
class Network:
    """A module in evaluation mode, and how data flows through it.

    ``operations``: in the order in which they are carried out. ``moments``: what is known of the outputs of layers from the
    BatchNorms that were folded into them, by the layers' names.
    """

    module: nn.Module
    operations: dict[fx.Node, Operation]
    moments: dict[str, Moments] = field(default_factory=dict[str, Moments])

    def layers(self) -> list[Operation]:
        """Linear layers and convolutions, in order; each once, however often it is used."""
        found = {id(one.module): one for one in reversed(self.operations.values()) if one.kind in LAYERS}
        return list(reversed(found.values()))

    def uses(self, module: nn.Module) -> int:
        """How many steps a module takes part in, those that only read its parameters included."""
        return sum(one.module is module for one in self.operations.values())

    def only_user(self, operation: Operation) -> Operation | None:
        """The step that takes what this one gives, if it is the only one and takes it once."""
        users = [user for user in operation.node.users if operation.node in self.operations[user].inputs]
        if len(operation.node.users) != 1 or len(users) != 1:
            return None
        user = self.operations[users[0]]
        return user if user.inputs.count(operation.node) == 1 else None

    def replace(self, modules: Mapping[str, nn.Module]) -> None:
        """Put other modules in the place of some, given by their names, under all of their names."""
        there = {id(self.module.get_submodule(name)): module for name, module in modules.items()}
        for parent in list(self.module.modules()):
            for child, found in list(parent.named_children()):
                if id(found) in there:
                    setattr(parent, child, there[id(found)])
        self.operations = _operations(self.module)


def trace(module: nn.Module) -> Network:
    """Follow a module. It is put into evaluation mode, and shared with what is returned.

    Raises UsageError if that is not possible, and says why.
    """
    if not is_module(module):
        raise UsageError(f"a {type(module).__name__} is not a torch.nn.Module")
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            raise UsageError(
                f"{name or 'the module'} has parametrizations",
                hint="torch.nn.utils.parametrize.remove_parametrizations makes plain parameters of them",
            )
    if isinstance(module, tuple(_MODULES)):
        raise UsageError(f"a single {type(module).__name__} is no network", hint="put it into nn.Sequential")
    module.eval()
    return Network(module, _operations(module))


def check_network(network: object) -> None:
    """Raises UsageError if this is a module that was not followed yet, or something else."""
    if not isinstance(network, Network):
        raise UsageError(
            f"a {type(network).__name__} is not a network that was followed",
            hint="fold_batch_norms(module), or trace(module) without folding",
        )


def kept_batches(batches: Iterable[object]) -> list[torch.Tensor]:
    """Calibration batches of a network, which has one input, to go through more than once.

    Raises UsageError if there are none, or if they are something else, such as the pairs of a loader with labels.
    """
    kept: list[torch.Tensor] = []
    for batch in batches:
        if not is_tensor(batch):
            raise UsageError(
                f"calibration batches are tensors of inputs, not {type(batch).__name__}s",
                hint="[inputs for inputs, _ in loader]",
            )
        kept.append(batch)
    if not kept:
        raise UsageError("there are no calibration batches", hint="give at least one batch of inputs")
    return kept


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _kind_of_module(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _kind_of_module(module: nn.Module) -> Kind | None:
    for base, kind in _MODULES.items():
        if isinstance(module, base):
            # A class of one's own that computes something else is looked into.
            same = type(module).forward is base.forward
            inner = "_conv_forward"
            if hasattr(base, inner):
                same = same and getattr(type(module), inner) is getattr(base, inner)
            return kind if same else None
    return None


def _operations(module: nn.Module) -> dict[fx.Node, Operation]:
    try:
        graph = _Tracer().trace(module)
    except Exception as exc:
        # torch.fx raises what the module's own code raises when it meets a stand-in: anything.
        raise UsageError(
            f"the {type(module).__name__} cannot be followed: {exc}",
            hint="its forward pass must not depend on values or shapes of tensors",
        ) from exc
    for node in list(graph.nodes):
        _respell(node, graph, module)
    return {node: _operation(node, module) for node in graph.nodes}


def _respell(node: fx.Node, graph: fx.Graph, root: nn.Module) -> None:
    """Put functions that have a kind in the place of other ways to write them: x.view(x.size(0), -1) is flatten(x, 1), and
    x.mean((2, 3)) the average of two axes and, unless they are kept, a flatten."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function") or target not in ("view", "reshape", "mean"):
        return
    first, *rest = node.args or (None,)
    if not isinstance(first, fx.Node):
        return
    named = dict(node.kwargs)
    if target == "mean":
        named |= dict(zip(("dim", "keepdim"), rest, strict=False))
        axes, keep = named.pop("dim", None), named.pop("keepdim", False)
        if not isinstance(axes, list | tuple) or set(axes) != {2, 3} or len(rest) > 2 or named:
            return
        with graph.inserting_before(node):
            made = graph.call_function(functional.adaptive_avg_pool2d, (first, 1))
            if not keep:
                made = graph.call_function(torch.flatten, (made, 1))
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        return
    shape = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    if named or len(shape) != 2 or shape[1] != -1 or not isinstance(size := shape[0], fx.Node):
        return
    source = _batch_of(size)
    if source is None or not _has_batch_of(first, source, root):
        return
    with graph.inserting_before(node):
        made = graph.call_function(torch.flatten, (first, 1))
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    unused: fx.Node | None = size
    while unused is not None and not unused.users and unused is not source:
        size, unused = unused, unused.args[0]  # type: ignore[assignment]
        graph.erase_node(size)


def _batch_of(size: fx.Node) -> fx.Node | None:
    """The value of which this is the length of the first axis: x.size(0), x.shape[0] or x.size()[0]."""
    if size.target == "size" and size.args[1:] == (0,):
        inner: Any = size
    elif size.target is operator.getitem and size.args[1] == 0:
        inner = size.args[0]
        if not (isinstance(inner, fx.Node) and (inner.target == "size" or inner.args[1:] == ("shape",))):
            return None
    else:
        return None
    source = inner.args[0]
    return source if isinstance(source, fx.Node) else None


def _has_batch_of(node: fx.Node, source: fx.Node, root: nn.Module) -> bool:
    """Whether all that a value is made of comes from another, by steps that leave the first axis alone."""
    waiting, seen = [node], {source}
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        step = _classified(at, root)
        axis = {"flatten": "start_dim", "concatenate": "dim"}.get(step.kind)
        if step.kind in ("other", "input", "output") or (axis is not None and step.options[axis] < 1):
            return False
        waiting.extend(step.inputs)
    return True


def _operation(node: fx.Node, root: nn.Module) -> Operation:
    found = _classified(node, root)
    if _is_in_place(found) and len(found.inputs[0].users) > 1:
        # What others take from its input depends on when they do.
        return replace(found, kind="other")
    return found


def _is_in_place(operation: Operation) -> bool:
    node = operation.node
    if not operation.inputs:
        return False
    return (
        node.target is operator.iadd
        or str(getattr(node.target, "__name__", node.target)).endswith("_")
        or bool(getattr(operation.module, "inplace", node.kwargs.get("inplace", False)))
    )


def _classified(node: fx.Node, root: nn.Module) -> Operation:
    inputs = tuple(node.all_input_nodes)
    if node.op == "placeholder":
        return Operation("input", node.name, node, ())
    if node.op == "output":
        return Operation("output", node.name, node, inputs)
    if node.op == "call_module":
        name = str(node.target)
        module = root.get_submodule(name)
        kind = _kind_of_module(module) or "other"
        if len(node.args) != 1 or node.kwargs:
            kind = "other"
        return Operation(kind, name, node, inputs, module, _module_options(kind, module))
    if node.op == "get_attr":
        # Who reads a layer's parameters by its own takes part in what becomes of them.
        owner = root.get_submodule(str(node.target).rpartition(".")[0])
        return Operation("other", node.name, node, inputs, owner)
    kind = "other"
    if node.op == "call_function":
        kind = _FUNCTIONS.get(node.target, "other")  # type: ignore[arg-type]
    elif node.op == "call_method":
        kind = _NAMES.get(str(node.target), "other")
    return _function(kind, node, inputs)


def _module_options(kind: Kind, module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name, _DEFAULTS.get(name)) for name in _POOLS.get(kind, ())}


def _function(kind: Kind, node: fx.Node, inputs: tuple[fx.Node, ...]) -> Operation:
    """A function's step, or `other` if it is called in a way that is not that of its kind."""
    args, kwargs = list(node.args), dict(node.kwargs)
    first = kwargs.pop("tensors", kwargs.pop("input", args.pop(0) if args else None))
    options: dict[str, Any] = {}
    if kind == "add":
        second = kwargs.pop("other", args.pop(0) if args else None)
        if isinstance(first, fx.Node) and isinstance(second, fx.Node) and kwargs.get("alpha", 1) == 1:
            return Operation(kind, node.name, node, (first, second))
        return Operation("other", node.name, node, inputs)
    if kind == "concatenate":
        axis = kwargs.get("dim", kwargs.get("axis", args[0] if args else 0))
        items = list(first) if isinstance(first, list | tuple) else [None]
        parts = [item for item in items if isinstance(item, fx.Node)]
        if len(parts) < len(items):
            return Operation("other", node.name, node, inputs)
        return Operation(kind, node.name, node, tuple(parts), options={"dim": axis})
    if not isinstance(first, fx.Node):
        return Operation("other", node.name, node, inputs)
    if node.target is functional.dropout and kwargs.get("training") is not False:
        kind = "other"
    if kind in _POOLS:
        names = _POOLS[kind]
        options = {name: _DEFAULTS.get(name) for name in names}
        options |= dict(zip(names, args, strict=False)) | {n: v for n, v in kwargs.items() if n in names}
    return Operation(kind, node.name, node, (first,), options=options)

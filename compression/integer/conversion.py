"""A float network becomes one of integers (Jacob et al. 2018, sections 2 and 3).

    BatchNorm        folded into the layer before it (dcz.compression.networks.folding)
    activations      8 bits, asymmetric, one step for a tensor, from calibration batches or as they were learned
    weights          2 to 8 bits, symmetric, one step for each output channel
    biases           int32 in units of input step x weight step
    ReLU, ReLU6      bounds of the codes of what is before them; alone if that has other users, too
    max-pooling, flatten
                     the codes as they are

What else there is, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn

from dcz.compression.integer.description import (
    AddStep,
    AveragePoolStep,
    ClampStep,
    ConcatenateStep,
    ConvolutionStep,
    Description,
    FlattenStep,
    LinearStep,
    MaxPoolStep,
    Step,
)
from dcz.compression.integer.network import INPUT_BOUNDS, SCALES, ZERO_POINTS, IntegerNetwork
from dcz.compression.integer.requantization import fixed_point, shared_fixed_point
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.networks.graph import ChannelClamp, Layer, Network, Operation, kept_batches
from dcz.compression.observers import MinMaxObserver, Observer, Parameters
from dcz.compression.quantizers import quantize_affine
from dcz.compression.scales import check_bits, least_code
from dcz.errors import EncodingError, UsageError
from dcz.format.manifest import PerChannel, PerTensor
from dcz.format.tensors import UniformTensor

__all__ = ["integer_network"]

_ACTIVATIONS: Final = ("relu", "relu6", "channel-clamp")
_SAME_CODES: Final = ("max-pool", "flatten", "identity")
_MOST_BIAS: Final = 2.0**30  # leaves the products as much of an accumulator


def integer_network(
    module: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    bits: int = 8,
    activation_bits: int = 8,
    multiplier_bits: int = 31,
    observer: Callable[[], Observer] = MinMaxObserver,
    ranges: Mapping[str, Parameters] | None = None,
    weights: Mapping[str, UniformTensor] | None = None,
) -> IntegerNetwork:
    """A network that computes the same with integers only, as nearly as its bits allow.

    ``module``: of linear layers, 1-D and 2-D convolutions, BatchNorms behind these, ReLU and ReLU6, max-, average and
    adaptive average pooling, flatten, also as x.view(x.size(0), -1) and x.mean((2, 3)), sums and concatenations; one input and
    one output. It is copied, and computes in evaluation mode. ``batches``: of inputs, at least one, all of one shape but for the batch. ``bits``,
    ``activation_bits``: 2 to 8. ``multiplier_bits``: of the factors between two steps, 2 to 31. ``observer``: makes what
    chooses the range of an activation.

    ``ranges``: of the inputs of layers, by the layers' names, where they were learned
    (dcz.compression.training.activations.activation_parameters); all others are observed. ``weights``: already quantized, by
    the names of the tensors (``conv1.weight``), symmetric, of one step or one for each output: of GPTQ or of quantized
    training. Both belong to a module whose BatchNorms are folded already.

    Raises UsageError if the module cannot be followed, has something that is not in the list, or there are no batches;
    EncodingError if values are not finite, or an accumulator could overflow.
    """
    check_bits(bits, "symmetric")
    check_bits(activation_bits, "symmetric")
    network = fold_batch_norms(module)
    kept = kept_batches(batches)
    if not all(batch.is_floating_point() for batch in kept):
        raise UsageError("calibration batches are floating-point tensors")
    if len({tuple(batch.shape[1:]) for batch in kept}) > 1:
        raise UsageError("the calibration batches have different shapes")
    plan = _plan(network)
    values = _observe(network, plan, kept, observer, ranges or {}, activation_bits)
    builder = _Builder(network, values, bits, multiplier_bits, dict(weights or {}))
    for operation in plan.steps:
        builder.add(operation, plan)
    return builder.build(tuple(kept[0].shape[1:]), plan)


@dataclass(frozen=True)
class _Value:
    """What codes mean: step, zero point among int8 codes, and the codes that there are."""

    scale: float
    zero: int
    least: int
    most: int

    @classmethod
    def of(cls, parameters: Parameters) -> _Value:
        if parameters.axis is not None or parameters.scales.shape != (1,):
            raise UsageError("activations of an integer network have one range for the tensor")
        middle = 1 << (parameters.bits - 1)
        return cls(
            float(parameters.scales[0]) or 1.0,  # nothing but zeros was seen
            int(parameters.zero_points[0]) - middle,
            least_code(parameters.scheme) - middle,
            middle - 1,
        )


@dataclass(eq=False)
class _Plan:
    """Steps in order; what they give after their activation; and whose codes each value has."""

    steps: list[Operation] = field(default_factory=list[Operation])
    fused: dict[fx.Node, Operation] = field(default_factory=dict[fx.Node, Operation])
    owner: dict[fx.Node, fx.Node] = field(default_factory=dict[fx.Node, fx.Node])
    source: fx.Node | None = None
    output: fx.Node | None = None


def _plan(network: Network) -> _Plan:
    plan = _Plan()
    inputs = [one for one in network.operations.values() if one.kind == "input"]
    outputs = [one for one in network.operations.values() if one.kind == "output"]
    if len(inputs) != 1 or len(outputs[0].inputs) != 1 or not isinstance(outputs[0].node.args[0], fx.Node):
        raise UsageError("an integer network has one input and one output")
    plan.source, plan.output = inputs[0].node, outputs[0].inputs[0]
    needed = _needed(network, plan.output)
    activations: set[fx.Node] = set()
    for node, operation in network.operations.items():
        if node not in needed or node in activations or operation.kind == "output":
            continue
        if operation.kind == "input":
            plan.owner[node] = node
            continue
        _check_kind(operation)
        if operation.kind in _SAME_CODES or operation.kind in _ACTIVATIONS:
            plan.owner[node] = plan.owner[operation.inputs[0]]
        else:
            after = _activation_after(network, operation)
            result = node if after is None else after.node
            if after is not None:
                plan.fused[node] = after
                activations.add(after.node)
            plan.owner[node] = plan.owner[result] = result
        if operation.kind != "identity":
            plan.steps.append(operation)
    if not plan.steps:
        raise UsageError("the network has nothing to compute")
    return plan


def _activation_after(network: Network, operation: Operation) -> Operation | None:
    """What gives a step's codes other bounds, if nothing else takes them."""
    after = network.only_user(operation)
    while after is not None and after.kind == "identity":
        after = network.only_user(after)
    return after if after is not None and after.kind in _ACTIVATIONS else None


def _needed(network: Network, output: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(network.operations[node].inputs)
    return found


def _check_kind(operation: Operation) -> None:
    reason = None
    match operation.kind:
        case "other":
            what = type(operation.module).__name__ if operation.module is not None else operation.node.target
            reason = f"there is no integer form of {getattr(what, '__name__', what)}"
        case "batch-norm":
            reason = "a BatchNorm can only be folded into a layer before it whose output goes nowhere else"
        case "transposed-convolution":
            reason = "there is no integer form of transposed convolutions"
        case "convolution":
            layer = operation.layer
            if isinstance(layer, nn.Conv3d):
                reason = "there is no integer form of 3-D convolutions"
            elif getattr(layer, "padding_mode", "zeros") != "zeros":
                reason = "its padding is not zeros"
        case "max-pool" | "average-pool":
            options = operation.options
            if options["ceil_mode"] or options.get("return_indices"):
                reason = "ceil_mode and return_indices have no integer form"
            elif options.get("divisor_override"):
                reason = "divisor_override has no integer form"
            elif not options.get("count_include_pad", True) and any(_pair(options["padding"])):
                reason = "averages that leave out the padding have no integer form"
        case "flatten":
            if (operation.options["start_dim"], operation.options["end_dim"]) != (1, -1):
                reason = "only all axes behind the batch can be flattened"
        case "concatenate":
            if operation.options["dim"] != 1:
                reason = "only channels (axis 1) can be concatenated"
        case _:
            pass
    if reason is not None:
        raise UsageError(f"{operation.name}: {reason}")


class _Watcher(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, see: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(fx.GraphModule(module, graph))
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        self._see(n, found)
        return found


def _observe(
    network: Network,
    plan: _Plan,
    batches: list[torch.Tensor],
    observer: Callable[[], Observer],
    ranges: Mapping[str, Parameters],
    bits: int,
) -> dict[fx.Node, _Value]:
    """What the codes of each value mean that has its own; and by the way the shapes that pooling has to know."""
    known = _learned(network, plan, ranges)
    watched = {node: observer() for node in set(plan.owner.values()) - known.keys()}
    assert plan.source is not None
    graph = plan.source.graph
    names = {node.name: node for node in graph.nodes}

    def see(node: fx.Node, value: Any) -> None:
        original = names[node.name]
        if isinstance(value, torch.Tensor):
            original.meta["shape"] = tuple(value.shape)
            if original in watched:
                try:
                    watched[original].observe(value.detach().float().cpu().numpy())
                except EncodingError as exc:
                    raise EncodingError(f"{network.operations[original].name}: {exc.message}") from exc

    watcher = _Watcher(network.module, graph, see)
    with torch.no_grad():
        for batch in batches:
            watcher.run(batch)
    seen = {node: _Value.of(one.parameters(bits=bits, scheme="asymmetric")) for node, one in watched.items()}
    return known | seen


def _learned(network: Network, plan: _Plan, ranges: Mapping[str, Parameters]) -> dict[fx.Node, _Value]:
    layers = {operation.name: operation for operation in network.layers()}
    found: dict[fx.Node, _Value] = {}
    for name, parameters in ranges.items():
        if name not in layers:
            raise UsageError(f"there is no layer {name!r} for the range of an input")
        owner, value = plan.owner[layers[name].inputs[0]], _Value.of(parameters)
        if found.setdefault(owner, value) != value:
            raise UsageError(f"{name} takes the same value as another layer, with another range")
    return found


class _Builder:
    def __init__(
        self,
        network: Network,
        values: dict[fx.Node, _Value],
        bits: int,
        multiplier_bits: int,
        weights: dict[str, UniformTensor],
    ) -> None:
        self._network, self._values = network, values
        self._bits, self._multiplier_bits = bits, multiplier_bits
        self._weights = weights
        self._tensors: dict[str, torch.Tensor] = {}
        self._weight_scales: dict[str, torch.Tensor] = {}
        self._steps: list[Step] = []
        self._means: list[_Value] = []
        self._numbers: dict[fx.Node, int] = {}

    def add(self, operation: Operation, plan: _Plan) -> None:
        if not self._means:
            assert plan.source is not None
            self._numbers[plan.source] = 0
            self._means.append(self._values[plan.source])
        after = plan.fused.get(operation.node)
        result = operation.node if after is None else after.node
        inputs = tuple(self._number(node, plan) for node in operation.inputs)
        before = [self._means[number] for number in inputs]
        out = self._values[plan.owner[result]]
        self._steps.append(self._step(operation, inputs, before, out, after))
        self._means.append(out)
        self._numbers[result] = len(self._steps)

    def _number(self, node: fx.Node, plan: _Plan) -> int:
        """The value of a node, looking through what changes nothing."""
        while self._network.operations[node].kind == "identity":
            node = self._network.operations[node].inputs[0]
        return self._numbers[node]

    def _step(
        self,
        operation: Operation,
        inputs: tuple[int, ...],
        before: list[_Value],
        out: _Value,
        after: Operation | None,
    ) -> Step:
        name, single = self._name(operation), (inputs[0],)
        options = operation.options
        ratios = np.array([value.scale / out.scale for value in before])
        match operation.kind:
            case "linear":
                self._product(name, operation, before[0], out, after)
                return LinearStep(name=name, inputs=single)
            case "convolution":
                self._product(name, operation, before[0], out, after)
                layer = operation.layer
                assert isinstance(layer, nn.Conv1d | nn.Conv2d)
                return ConvolutionStep(
                    name=name,
                    inputs=single,
                    stride=tuple(layer.stride),
                    padding=_padding(layer),
                    dilation=tuple(layer.dilation),
                    groups=layer.groups,
                )
            case "max-pool":
                rank = len(operation.node.meta["shape"]) - 2
                kernel = _pair(options["kernel_size"], rank)
                return MaxPoolStep(
                    name=name,
                    inputs=single,
                    kernel=kernel,
                    stride=_pair(options["stride"], rank) if options["stride"] else kernel,
                    padding=tuple((pad, pad) for pad in _pair(options["padding"], rank)),
                    dilation=_pair(options["dilation"], rank),
                )
            case "average-pool" | "adaptive-average-pool":
                kernel, stride, padding = _window(operation)
                self._factors(name, fixed_point, ratios / np.prod(kernel))
                self._bounds(name, out, after)
                return AveragePoolStep(
                    name=name, inputs=single, kernel=kernel, stride=stride, padding=padding
                )
            case "flatten":
                return FlattenStep(name=name, inputs=single)
            case "add":
                self._factors(name, shared_fixed_point, ratios)
                self._bounds(name, out, after)
                return AddStep(name=name, inputs=inputs)
            case "concatenate":
                self._factors(name, fixed_point, ratios)
                self._bounds(name, out, after)
                return ConcatenateStep(name=name, inputs=inputs)
            case _:
                self._bounds(name, out, operation)
                return ClampStep(name=name, inputs=single)

    def _name(self, operation: Operation) -> str:
        """A module that is used again gets a name for each use."""
        taken = {step.name for step in self._steps}
        name, number = operation.name, 1
        while name in taken:
            number += 1
            name = f"{operation.name}#{number}"
        return name

    def _factors(self, name: str, method: Callable[..., Any], ratios: np.ndarray) -> None:
        multipliers, shifts = method(ratios, bits=self._multiplier_bits)
        self._tensors[f"{name}.multiplier"] = torch.from_numpy(multipliers)
        self._tensors[f"{name}.shift"] = torch.from_numpy(shifts)

    def _bounds(self, name: str, out: _Value, activation: Operation | None) -> None:
        low, high = np.array([out.least]), np.array([out.most])
        if activation is not None:
            low = np.array([max(out.least, out.zero)])
            ceilings = np.array([6.0 if activation.kind == "relu6" else np.inf])
            if isinstance(activation.module, ChannelClamp):
                ceilings = activation.module.ceilings.double().cpu().numpy()
            # min before rint: infinity has no code.
            high = np.rint(np.minimum(ceilings / out.scale, 255)) + out.zero
            high = np.clip(high, low, out.most)
        bounds = np.stack(np.broadcast_arrays(low, high)).astype(np.int8)
        self._tensors[f"{name}.bounds"] = torch.from_numpy(bounds)

    def _product(
        self, name: str, operation: Operation, before: _Value, out: _Value, after: Operation | None
    ) -> None:
        layer = operation.layer
        given = self._weights.get(f"{operation.name}.weight")
        bias = np.zeros(layer.weight.shape[0])
        if layer.bias is not None:
            bias = layer.bias.detach().double().cpu().numpy()
        if not np.isfinite(bias).all():
            raise EncodingError(f"{operation.name}: a bias is not finite")
        if given is None:
            codes, scales = _quantized(layer, bias, before.scale, self._bits)
        else:
            codes, scales = _given(operation.name, layer, given)
        steps = before.scale * scales.astype(np.float64)
        sums = codes.astype(np.int64).reshape(len(codes), -1).sum(axis=1)
        folded = np.rint(bias / steps) - before.zero * sums
        if (np.abs(folded) >= 2.0**31).any():
            raise EncodingError(f"{operation.name}: a bias does not fit int32 in units of its weights' step")
        self._tensors[f"{name}.weight"] = torch.from_numpy(codes)
        self._tensors[f"{name}.bias"] = torch.from_numpy(folded.astype(np.int32))
        self._weight_scales[name] = torch.from_numpy(scales)
        self._factors(name, fixed_point, steps / out.scale)
        self._bounds(name, out, after)

    def build(self, shape: tuple[int, ...], plan: _Plan) -> IntegerNetwork:
        assert plan.output is not None
        if self._number(plan.output, plan) != len(self._steps):
            raise UsageError("the network ends with nothing that it computes")
        scales = np.array([value.scale for value in self._means], np.float32)
        zeros = np.array([value.zero for value in self._means], np.int8)
        bounds = torch.tensor([self._means[0].least, self._means[0].most], dtype=torch.int8)
        self._tensors |= {
            SCALES: torch.from_numpy(scales),
            ZERO_POINTS: torch.from_numpy(zeros),
            INPUT_BOUNDS: bounds,
        }
        description = Description(input=shape, steps=tuple(self._steps))
        return IntegerNetwork(description, self._tensors, self._weight_scales)


def _quantized(
    layer: Layer, bias: np.ndarray, input_scale: float, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and float32 scales (out,) that the bias fits, too."""
    weight = layer.weight.detach().float().cpu().numpy()
    tensor = quantize_affine(weight, bits=bits, scheme="symmetric", granularity=PerChannel(axis=0))
    scales = tensor.scales.astype(np.float32)
    middle = 1 << (bits - 1)
    codes = tensor.codes.reshape(weight.shape).astype(np.int16) - middle
    # A channel with tiny weights beside its bias, as a dead one has: the bias would not fit in units of their step.
    least = np.maximum(np.abs(bias) / (input_scale * _MOST_BIAS), np.finfo(np.float32).tiny)
    coarse = scales < least
    if coarse.any():
        scales = np.where(coarse, least.astype(np.float32), scales)
        divisors = scales.reshape(-1, *[1] * (weight.ndim - 1))
        again = np.clip(np.rint(weight / divisors), 1 - middle, middle - 1)
        codes = np.where(coarse.reshape(divisors.shape), again, codes)
    return codes.astype(np.int8), scales


def _given(name: str, layer: Layer, tensor: UniformTensor) -> tuple[np.ndarray, np.ndarray]:
    middle = 1 << (tensor.bits - 1)
    shape = tuple(layer.weight.shape)
    if tensor.shape != shape:
        raise UsageError(f"{name}.weight has the shape {shape}, its codes {tensor.shape}")
    if tensor.zero_points is not None and (tensor.zero_points != middle).any():
        raise UsageError(f"{name}.weight is not quantized symmetrically", hint='scheme="symmetric"')
    if tensor.granularity not in (PerTensor(), PerChannel(axis=0)):
        raise UsageError(f"{name}.weight has neither one step nor one for each output")
    codes = tensor.codes.reshape(shape).astype(np.int16) - middle
    if tensor.mask is not None:
        codes = np.where(tensor.mask.reshape(shape), codes, 0)
    if (codes == -128).any():
        raise UsageError(f"{name}.weight uses the code -128", hint='scheme="symmetric" has -127 to 127')
    scales = np.broadcast_to(tensor.scales.astype(np.float32), (shape[0],)).copy()
    scales[scales == 0] = np.finfo(np.float32).tiny
    return codes.astype(np.int8), scales


def _pair(value: Any, rank: int = 2) -> tuple[int, ...]:
    found = tuple(int(item) for item in value) if isinstance(value, tuple | list) else (int(value),) * rank
    return found * rank if len(found) == 1 else found


def _padding(layer: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, int], ...]:
    if layer.padding == "valid":
        return ((0, 0),) * len(layer.stride)
    if isinstance(layer.padding, str):
        totals = [by * (size - 1) for by, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((pad, pad) for pad in layer.padding)


def _window(
    operation: Operation,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Kernel, stride and padding of an average."""
    extents = operation.inputs[0].meta["shape"][2:]
    rank = len(extents)
    options = operation.options
    if operation.kind == "average-pool":
        kernel = _pair(options["kernel_size"], rank)
        stride = _pair(options["stride"], rank) if options["stride"] else kernel
        return kernel, stride, tuple((pad, pad) for pad in _pair(options["padding"], rank))
    size = options["output_size"]
    wanted = [
        extent if out is None else int(out)
        for extent, out in zip(
            extents, size if isinstance(size, tuple | list) else [size] * rank, strict=True
        )
    ]
    if any(extent % out for extent, out in zip(extents, wanted, strict=True)):
        raise UsageError(
            f"{operation.name}: averages over windows of different sizes ({extents} to {tuple(wanted)})"
        )
    kernel = tuple(extent // out for extent, out in zip(extents, wanted, strict=True))
    return kernel, kernel, ((0, 0),) * rank

"""Simulated quantization of activations: what goes into or comes out of chosen layers is rounded (survey, section III-B).

    static      a range for all inputs, from calibration batches (dcz.compression.observers)
    dynamic     the range of each input, when it comes

    names = quantize_activations(module, bits=8)           # the inputs of all layers with weights
    calibrate(module, batches)                             # only for static ones
    ...                                                    # train, evaluate
    parameters = activation_parameters(module)             # scales and zero points, by the name of the layer
    remove_activation_quantizers(module)

A quantizer is a submodule of its layer, so that what it learns is among the module's parameters; a hook lets it do its
work. What is learned: dcz.compression.training.learned_step and clipping.
"""

# How torch keeps submodules has no public access that is complete.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import numpy as np
import torch
from torch import nn

from dcz.compression.groups import not_finite
from dcz.compression.observers import MinMaxObserver, Observer, Parameters, parameters_of_ranges
from dcz.compression.scales import Scheme, check_bits
from dcz.compression.torch_tensors import check_tensor, to_numpy, unwrapped
from dcz.compression.training.fake_quantization import fake_quantized
from dcz.compression.training.torch_groups import rows_of, spread
from dcz.compression.training.weights import find_weights
from dcz.errors import EncodingError, UsageError
from dcz.format.manifest import Granularity, PerChannel, PerTensor
from dcz.format.tensors import group_count

__all__ = [
    "ActivationQuantizer",
    "DynamicQuantizer",
    "Layers",
    "Side",
    "StaticQuantizer",
    "activation_parameters",
    "activation_quantizers",
    "add_activation_quantizers",
    "calibrate",
    "put_on",
    "quantize_activations",
    "remove_activation_quantizers",
    "run_batch",
]

Side: TypeAlias = Literal["inputs", "outputs"]
Layers: TypeAlias = "Iterable[str] | Callable[[str, nn.Module], bool] | None"

_NAMES: Final[dict[Side, str]] = {"inputs": "input_quantizer", "outputs": "output_quantizer"}
_WITHOUT_INPUTS: Final = (nn.Embedding, nn.EmbeddingBag)  # their inputs are numbers of rows
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ActivationQuantizer(nn.Module, abc.ABC):
    """Floating-point activations of any shape -> their quantized values, of the same shape and type."""

    def __init__(self, bits: int = 8, scheme: Scheme = "asymmetric") -> None:
        super().__init__()
        check_bits(bits, scheme)
        self.bits: int = bits
        self.scheme: Scheme = scheme
        self.observing = False
        self.place = "an activation"  # where it is, for messages

    @abc.abstractmethod
    def forward(self, values: torch.Tensor) -> torch.Tensor: ...

    @abc.abstractmethod
    def parameters_of(self) -> Parameters | None:
        """Scales and zero points; None if they are not known before the activations are."""

    def finish(self) -> None:
        """Quantize by what was seen while ``observing``, from now on."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restored` needs beside the state_dict: names to numbers, strings and None."""

    @classmethod
    @abc.abstractmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        """One whose ``settings()`` and ``state_dict()`` have these names and shapes; the values of the state may differ."""


class DynamicQuantizer(ActivationQuantizer):
    """By the least and the greatest value of the tensor that comes.

    ``axis``: of whose positions each has a range of its own; None for one range. It may be negative.
    """

    def __init__(self, bits: int = 8, scheme: Scheme = "asymmetric", *, axis: int | None = None) -> None:
        super().__init__(bits, scheme)
        self.axis = axis

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.observing:
            return values
        granularity = _along(self.axis, values.ndim)
        with torch.no_grad():
            rows = rows_of(values, granularity)
            low, high = torch.stack(rows.aminmax(dim=1)).to("cpu", torch.float64).numpy()
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise not_finite(to_numpy(values, check_tensor("activation", values)), what="activations")
            scales, zero_points = parameters_of_ranges(low, high, bits=self.bits, scheme=self.scheme)
            parameters = [
                spread(
                    torch.from_numpy(part.astype(np.float32)).to(values.device),
                    tuple(values.shape),
                    granularity,
                )
                for part in (scales, zero_points)
            ]
        return fake_quantized(values, parameters[0], parameters[1], bits=self.bits, scheme=self.scheme)

    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "scheme": self.scheme, "axis": self.axis}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        del state
        return cls(settings["bits"], settings["scheme"], axis=settings["axis"])

    def parameters_of(self) -> Parameters | None:
        return None


class StaticQuantizer(ActivationQuantizer):
    """By scales and zero points that are known: those of an observer, once it has seen enough.

    ``observer``: what observes; None if the parameters are given otherwise. ``scales``: float32 (groups,), ``zero_points``:
    uint8 (groups,); empty as long as nothing was observed.
    """

    scales: torch.Tensor
    zero_points: torch.Tensor

    def __init__(
        self, bits: int = 8, scheme: Scheme = "asymmetric", *, observer: Observer | None = None
    ) -> None:
        super().__init__(bits, scheme)
        self.observer = observer
        self.axis = None if observer is None else observer.axis
        self._seen = False
        self.register_buffer("scales", torch.zeros(0))
        self.register_buffer("zero_points", torch.zeros(0, dtype=torch.uint8))

    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "scheme": self.scheme, "axis": self.axis}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Self:
        """Without an observer: it observes nothing any more."""
        made = cls(settings["bits"], settings["scheme"])
        made.axis, made.scales, made.zero_points = settings["axis"], state["scales"], state["zero_points"]
        return made

    @classmethod
    def of(cls, parameters: Parameters) -> Self:
        """With known parameters."""
        made = cls(parameters.bits, parameters.scheme)
        made.set(parameters)
        return made

    def set(self, parameters: Parameters) -> None:
        """Take scales and zero points, of the same bits and scheme."""
        device = self.scales.device
        self.axis = parameters.axis
        self.scales = torch.from_numpy(parameters.scales.astype(np.float32)).to(device)
        self.zero_points = torch.from_numpy(parameters.zero_points.copy()).to(device)

    def finish(self) -> None:
        if self.observer is not None and self._seen:
            self.set(self.observer.parameters(bits=self.bits, scheme=self.scheme))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.observing and self.observer is not None:
            self.observer.observe(to_numpy(values, check_tensor("activation", values)))
            self._seen = True
            return values
        if not self.scales.numel():
            raise UsageError(
                "the range of an activation is not known", hint="calibrate(module, batches) observes it"
            )
        granularity, shape = _along(self.axis, values.ndim), tuple(values.shape)
        groups = group_count(granularity, shape)
        if groups != self.scales.numel():
            raise EncodingError(
                f"{self.scales.numel()} scales for {groups} positions on the axis {self.axis}"
            )
        return fake_quantized(
            values,
            spread(self.scales, shape, granularity),
            spread(self.zero_points.to(self.scales.dtype), shape, granularity),
            bits=self.bits,
            scheme=self.scheme,
        )

    def parameters_of(self) -> Parameters | None:
        if not self.scales.numel():
            return None
        return Parameters(
            self.bits, self.scheme, self.scales.cpu().numpy(), self.zero_points.cpu().numpy(), self.axis
        )


def _along(axis: int | None, rank: int) -> Granularity:
    if axis is None:
        return PerTensor()
    if not -rank <= axis < rank:
        raise EncodingError(f"axis {axis} of an activation with {rank} dimensions")
    return PerChannel(axis=axis % rank)


def quantize_activations(
    module: nn.Module,
    bits: int = 8,
    *,
    scheme: Scheme = "asymmetric",
    mode: Literal["static", "dynamic"] = "static",
    observer: Callable[[], Observer] = MinMaxObserver,
    axis: int | None = None,
    layers: Layers = None,
    side: Side = "inputs",
) -> list[str]:
    """Quantize what goes into chosen layers, or comes out of them, from now on.

    ``bits``: 1 to 8; the symmetric schemes need 2. ``observer``: makes the observer of each layer, for ``static``; `calibrate`
    has to follow. ``axis``: for ``dynamic``, as in `DynamicQuantizer`. ``layers``: patterns of names as in recipes, or what
    says of a name and a module whether it is one; None for all that have weights. ``side``: of the first positional argument,
    or of the output, if that is a tensor or begins with one.

    Returns the names of the layers. Raises UsageError if no layer is chosen or one has a quantizer on this side already;
    EncodingError if there is no such quantizer.
    """

    def make(name: str, layer: nn.Module) -> ActivationQuantizer:
        del name, layer
        if mode == "dynamic":
            return DynamicQuantizer(bits, scheme, axis=axis)
        return StaticQuantizer(bits, scheme, observer=observer())

    if mode not in ("static", "dynamic"):
        raise UsageError(f"no mode {mode!r}", hint="allowed: static, dynamic")
    return add_activation_quantizers(module, make, layers=layers, side=side)


def add_activation_quantizers(
    module: nn.Module,
    make: Callable[[str, nn.Module], ActivationQuantizer],
    *,
    layers: Layers = None,
    side: Side = "inputs",
) -> list[str]:
    """The same with any quantizer, which ``make`` makes for the name of a layer and the layer."""
    if side not in get_args(Side):
        raise UsageError(f"no side {side!r}", hint=f"allowed: {', '.join(get_args(Side))}")
    inner, _ = unwrapped(module)
    is_chosen = _chooser(inner, layers)
    chosen = [(name, layer) for name, layer in inner.named_modules() if is_chosen(name, layer)]
    if not chosen:
        raise UsageError("no layer is chosen whose activations could be quantized")
    for name, layer in chosen:
        if isinstance(layer, _CONTAINERS):
            raise UsageError(f"{name or 'the module'} is a {type(layer).__name__}: choose the layers in it")
        if _NAMES[side] in layer._modules:
            raise UsageError(
                f"the {side} of {name or 'the module'} are quantized already",
                hint="remove_activation_quantizers(module) first",
            )
    for name, layer in chosen:
        _put(name, layer, side, make(name, layer))
    return [name for name, _ in chosen]


def put_on(module: nn.Module, layer: str, side: Side, quantizer: ActivationQuantizer) -> None:
    """Put a quantizer on the layer of this name. Raises UsageError if there is none."""
    inner, _ = unwrapped(module)
    layers = dict(inner.named_modules())
    if layer not in layers or isinstance(layers[layer], _CONTAINERS):
        raise UsageError(f"the {type(inner).__name__} has no layer {layer!r} whose {side} could be quantized")
    _put(layer, layers[layer], side, quantizer)


def _put(name: str, layer: nn.Module, side: Side, quantizer: ActivationQuantizer) -> None:
    quantizer.place = f"the {side} of {name or 'the module'}"
    device = next((part.device for part in layer.parameters()), torch.device("cpu"))
    layer.add_module(_NAMES[side], quantizer.to(device))
    if side == "inputs":
        layer.register_forward_pre_hook(_quantize_inputs, with_kwargs=True)
    else:
        layer.register_forward_hook(_quantize_outputs)


def _chooser(module: nn.Module, layers: Layers) -> Callable[[str, nn.Module], bool]:
    owners = {id(owner) for weight in find_weights(module) for owner, _ in weight.owners}
    patterns = (
        [layers] if isinstance(layers, str) else [] if layers is None or callable(layers) else [*layers]
    )

    def chosen(name: str, layer: nn.Module) -> bool:
        if isinstance(layer, ActivationQuantizer) or ".parametrizations." in f".{name}.":
            return False
        if callable(layers):
            return layers(name, layer)
        if layers is None:
            return id(layer) in owners and not isinstance(layer, (*_WITHOUT_INPUTS, *_CONTAINERS))
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return chosen


def _quantize_inputs(
    module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = module._modules[_NAMES["inputs"]]
    assert quantizer is not None
    if arguments:
        return (_through(quantizer, arguments[0]), *arguments[1:]), named
    first = next(iter(named), None)
    if first is not None:
        named = {**named, first: _through(quantizer, named[first])}
    return arguments, named


def _quantize_outputs(module: nn.Module, _: object, output: Any) -> Any:
    quantizer = module._modules[_NAMES["outputs"]]
    assert quantizer is not None
    if isinstance(output, tuple) and output:
        return (_through(quantizer, output[0]), *output[1:])
    return _through(quantizer, output)


def _through(quantizer: nn.Module, value: Any) -> Any:
    if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0):
        return value
    try:
        return quantizer(value)
    except EncodingError as exc:
        raise EncodingError(f"{getattr(quantizer, 'place', '')}: {exc.message}", hint=exc.hint) from exc


def activation_quantizers(module: nn.Module) -> Iterator[tuple[str, nn.Module, Side, ActivationQuantizer]]:
    """All that there are: name of the layer, the layer, the side, the quantizer."""
    inner, _ = unwrapped(module)
    for name, layer in inner.named_modules():
        for side, attribute in _NAMES.items():
            quantizer = layer._modules.get(attribute)
            if isinstance(quantizer, ActivationQuantizer):
                yield name, layer, side, quantizer


def calibrate(
    module: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], object] | None = None
) -> None:
    """Let the static quantizers of a module observe batches, and quantize by all that they ever saw from then on.

    ``batches``: of inputs: a tensor, or a tuple or mapping of arguments, each. ``run(module, batch)``: if they are something
    else; None calls the module. While it observes, the module computes in evaluation and with its activations as they are.

    Raises UsageError if there is no batch or nothing to calibrate; EncodingError if an activation is not finite.
    """
    quantizers = [quantizer for _, _, _, quantizer in activation_quantizers(module)]
    if not quantizers:
        raise UsageError("the module has no quantizers of activations", hint="quantize_activations(module)")
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    for quantizer in quantizers:
        quantizer.observing = True
    seen = 0
    try:
        with torch.no_grad():
            for batch in batches:
                (run or run_batch)(module, batch)
                seen += 1
        if not seen:
            raise UsageError("there is no batch to calibrate with")
        for quantizer in quantizers:
            quantizer.finish()
    finally:
        for quantizer in quantizers:
            quantizer.observing = False
        for part, training in modes:
            part.training = training


def run_batch(module: nn.Module, batch: Any) -> object:
    """Call a module with a batch of inputs: a tensor, or a tuple or mapping of arguments. Raises UsageError if the module does not
    take as many, as from a loader that gives labels, too."""
    arguments = batch if isinstance(batch, tuple | list) else () if isinstance(batch, Mapping) else (batch,)
    named = batch if isinstance(batch, Mapping) else {}
    inner, _ = unwrapped(module)
    try:
        inspect.signature(inner.forward).bind(*arguments, **named)
    except TypeError as exc:
        raise UsageError(
            f"a batch is no set of arguments of the {type(inner).__name__}: {exc}",
            hint="give inputs only, [inputs for inputs, _ in loader], or run=lambda module, batch: module(...)",
        ) from exc
    return module(*arguments, **named)


def activation_parameters(module: nn.Module, side: Side = "inputs") -> dict[str, Parameters]:
    """Scales and zero points by the name of the layer; without those that are dynamic or not calibrated."""
    found = (
        (name, quantizer.parameters_of())
        for name, _, its, quantizer in activation_quantizers(module)
        if its == side
    )
    return {name: parameters for name, parameters in found if parameters is not None}


def remove_activation_quantizers(module: nn.Module) -> None:
    """Let all activations be as they are, and leave nothing behind."""
    for _, layer, side, _ in list(activation_quantizers(module)):
        del layer._modules[_NAMES[side]]
        hooks: Any = layer._forward_pre_hooks if side == "inputs" else layer._forward_hooks
        function = _quantize_inputs if side == "inputs" else _quantize_outputs
        for key in [key for key, hook in hooks.items() if hook is function]:
            del hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)

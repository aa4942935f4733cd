"""The weights of a whole module after training, layer by layer, with calibration data (survey, section III-F).

    1   BatchNorms are folded, ranges between layers equalized (folding, equalization)
    2   for each layer in order: what goes into it once the layers before it are quantized gives the Hessian of its
        outputs; its weights are rounded so that these change little (dcz.compression.gptq), to uniform codes or to
        shared weights; or just to nearest
    3   biases take up the mean change of the outputs (bias_correction)

    network = fold_batch_norms(module)
    tensors = quantize_network(network, batches, bits=4)     # network.module has the decoded weights
    dcz.convert(tensors, "model.dcz")

AdaRound, which trains for each layer, has a driver of its own (dcz.compression.training.learned_rounding); it takes
``network.module`` after step 1.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from dcz.compression.arguments import is_whole
from dcz.compression.calibration import Calibration
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.gptq import AffineRounder, LevelRounder, Order, Rounder, round_second_order
from dcz.compression.networks.bias_correction import correct_biases
from dcz.compression.networks.equalization import equalize as equalize_ranges
from dcz.compression.networks.graph import Layer, Network, Operation, check_network, kept_batches, trace
from dcz.compression.quantizers import ScaleDType, Scheme, quantize_affine
from dcz.compression.torch_tensors import check_tensor, to_numpy, view_key
from dcz.errors import EncodingError, UsageError
from dcz.format.decoded import decoded
from dcz.format.manifest import PerChannel, PerTensor
from dcz.format.tensors import CodebookTensor, TensorData, UniformTensor

__all__ = ["LayerMethod", "Levels", "Rounding", "hessians_of", "quantize_network"]

Levels: TypeAlias = Literal["affine", "codebook"]
Rounding: TypeAlias = Literal["nearest", "second-order"]
Doubles: TypeAlias = npt.NDArray[np.float64]
LayerMethod: TypeAlias = Callable[[npt.NDArray[Any], "Doubles | None"], "UniformTensor | CodebookTensor"]
"""From a weight (out, in / groups, ...) and the Hessians of its groups (groups, n, n), n = in / groups x places of the
kernel, to what is stored; there are no Hessians for transposed convolutions."""

_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def quantize_network(
    network: Network,
    batches: Iterable[torch.Tensor],
    *,
    bits: int = 4,
    levels: Levels = "affine",
    rounding: Rounding = "second-order",
    method: LayerMethod | None = None,
    scheme: Scheme = "symmetric",
    granularity: PerTensor | PerChannel | None = None,
    calibration: Calibration = "mse",
    scale_dtype: ScaleDType | None = None,
    damping: float = 0.01,
    order: Order = "activation",
    equalize: bool = True,
    correct: bool = True,
) -> dict[str, TensorData]:
    """Quantize the weights of all layers of a network, in place: afterwards, they are what the file will give.

    ``batches``: of inputs, gone through several times for each layer. ``bits``: 1 to 8. ``levels``: uniform codes, or
    2^bits shared weights for the tensor by k-means. ``rounding``: to the nearest level, or by second order. ``method``:
    another one, for each layer; the arguments from ``bits`` to ``order`` then have no effect. ``scheme`` ...
    ``scale_dtype``: of uniform codes, as for quantize_affine; the granularity is the tensor or channel on axis 0, which
    is the default. ``damping``, ``order``: as for quantize_gptq. ``equalize``, ``correct``: whether to do steps 1 (of
    folding, that is up to the caller) and 3.

    Returns all entries of the module's ``state_dict``: quantized weights, and all others as they are. Those that are one tensor
    in the module, as of a layer under two names, are one object. Transposed convolutions are rounded to nearest. Raises UsageError if there are no batches or a weight is shared, EncodingError if
    the arguments do not fit together.
    """
    check_network(network)
    kept = kept_batches(batches)
    if levels not in get_args(Levels) or rounding not in get_args(Rounding):
        raise EncodingError(f"no levels {levels!r} with rounding {rounding!r}")
    if granularity not in (None, PerTensor(), PerChannel(axis=0)):
        raise EncodingError("scales of a network's weights are those of the tensor or of channels on axis 0")
    if not is_whole(bits, 1, 8):
        raise EncodingError(f"codes of {bits!r} bits: 1 to 8 are possible")
    owners = Counter(id(operation.layer.weight) for operation in network.layers())
    for operation in network.layers():
        if owners[id(operation.layer.weight)] > 1:
            raise UsageError(f"{operation.name}.weight belongs to another layer, too")
    if equalize:
        equalize_ranges(network)
    original = trace(copy.deepcopy(network.module))

    def built_in(weight: npt.NDArray[Any], hessians: Doubles | None) -> UniformTensor | CodebookTensor:
        if levels == "codebook":
            shared = quantize_codebook(weight, size=1 << bits)
            if rounding == "nearest" or hessians is None:
                return shared
            return _with_codes(shared, weight, hessians, damping, order, [LevelRounder(shared).round])
        tensor = quantize_affine(
            weight,
            bits=bits,
            scheme=scheme,
            granularity=granularity or PerChannel(axis=0),
            calibration=calibration,
            scale_dtype=scale_dtype,
        )
        if rounding == "nearest" or hessians is None:
            return tensor
        rounders: list[Rounder] = [
            AffineRounder(part, scheme).round for part in _parts(tensor, len(hessians))
        ]
        return _with_codes(tensor, weight, hessians, damping, order, rounders)

    # A method of one's own may always want them.
    needs = method is not None or rounding == "second-order"
    found: dict[str, TensorData] = {}
    for operation in network.layers():
        layer = operation.layer
        hessians = (
            hessians_of(network, operation, kept) if needs and not isinstance(layer, _TRANSPOSED) else None
        )
        weight = to_numpy(layer.weight, check_tensor(operation.name, layer.weight))
        tensor = (method or built_in)(weight, hessians)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(_decoded(tensor)))
        found[f"{operation.name}.weight"] = tensor
    if correct:
        correct_biases(network, original, kept)
    state = {
        name: value for name, value in network.module.state_dict().items() if isinstance(value, torch.Tensor)
    }
    keys: dict[str, Hashable] = {
        name: name if (key := view_key(value)) is None else key for name, value in state.items()
    }
    made = {keys[name]: tensor for name, tensor in found.items()}
    for name, value in state.items():
        key = keys[name]
        if key not in made:
            made[key] = to_numpy(value, check_tensor(name, value)).copy()
        found[name] = made[key]
    return {name: found[name] for name in state}


def hessians_of(network: Network, operation: Operation, batches: Iterable[torch.Tensor]) -> Doubles:
    """The mean of x x^T over all places of a layer's inputs, for each of its groups: (groups, n, n).

    x are the values under the kernel, of the channels of the group, in the order of the weights.
    """
    layer = operation.layer
    total: list[torch.Tensor] = []
    count = 0

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal count
        rows = _patches(layer, args[0].detach()).double()
        total.append(rows.transpose(1, 2) @ rows)
        count += rows.shape[1]

    handle = layer.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            for batch in batches:
                network.module(batch)
    finally:
        handle.remove()
    return np.asarray((torch.stack(total).sum(0) / count).cpu().numpy(), dtype=np.float64)


def _patches(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """(groups, places of all inputs, n)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kernel, rank = layer.kernel_size, len(layer.kernel_size)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    sides = layer._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]
    view = functional.pad(inputs, sides, mode=mode)
    for axis in range(rank):
        view = view.unfold(2 + axis, layer.dilation[axis] * (kernel[axis] - 1) + 1, layer.stride[axis])
    for axis in range(rank):
        width = view.shape[2 + rank + axis]
        chosen = torch.arange(0, width, layer.dilation[axis], device=view.device)
        view = view.index_select(2 + rank + axis, chosen)
    batch, channels = view.shape[:2]
    inputs_of_group = channels // layer.groups
    places = view.shape[2 : 2 + rank]
    rows = view.reshape(batch, layer.groups, inputs_of_group, math.prod(places), -1)
    # (batch, groups, channels, places, kernel) -> (groups, batch x places, channels x kernel)
    return rows.permute(1, 0, 3, 2, 4).reshape(layer.groups, batch * math.prod(places), -1)


def _with_codes(
    tensor: UniformTensor | CodebookTensor,
    weight: npt.NDArray[Any],
    hessians: Doubles,
    damping: float,
    order: Order,
    rounders: list[Rounder],
) -> UniformTensor | CodebookTensor:
    """The tensor with codes that are rounded by second order, group by group."""
    matrix = weight.reshape(len(hessians), -1, hessians.shape[-1])
    codes = [
        round_second_order(rows, hessian, rounders[i % len(rounders)], damping=damping, order=order)
        for i, (rows, hessian) in enumerate(zip(matrix, hessians, strict=True))
    ]
    changed: dict[str, Any] = vars(tensor) | {"codes": np.stack(codes).reshape(weight.shape)}
    return type(tensor)(**changed)


def _parts(tensor: UniformTensor, groups: int) -> list[UniformTensor]:
    """The rows of each group as a matrix of its own."""
    rows = tensor.shape[0] // groups
    parts = []
    for i in range(groups):
        at = slice(i * rows, (i + 1) * rows)
        per_row = tensor.granularity == PerChannel(axis=0)
        codes = tensor.codes.reshape(tensor.shape[0], -1)[at]
        zero_points = tensor.zero_points
        parts.append(
            UniformTensor(
                dtype=tensor.dtype,
                shape=codes.shape,
                bits=tensor.bits,
                codes=codes,
                scales=tensor.scales[at] if per_row else tensor.scales,
                granularity=tensor.granularity,
                zero_points=zero_points[at] if per_row and zero_points is not None else zero_points,
            )
        )
    return parts


def _decoded(tensor: UniformTensor | CodebookTensor) -> npt.NDArray[np.float32]:
    """What the format makes of it, of one group or one for each output."""
    if tensor.granularity not in (PerTensor(), PerChannel(axis=0)):
        raise EncodingError("scales of a network's weights are those of the tensor or of channels on axis 0")
    return decoded(tensor).astype(np.float32, copy=False)

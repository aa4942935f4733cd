"""Half precision for what is still stored number by number once weights are shared: shared values, biases, norms.

The parameters keep their type. Only their values become such as a shorter type has, which the encoder sees, so that each takes
half of the bytes. In a network that is compressed 40 times, biases as they were would be a tenth of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import torch
from torch import nn

from dcz.compression.torch_tensors import unwrapped
from dcz.compression.training.activations import activation_quantizers
from dcz.compression.training.masks import PruningMask
from dcz.compression.training.weight_sharing import SharedWeights
from dcz.compression.training.weights import find_weights
from dcz.errors import EncodingError

__all__ = ["Short", "round_parameters"]

Short: TypeAlias = Literal["bf16", "f16"]

_TYPES: Final = {"bf16": torch.bfloat16, "f16": torch.float16}


def round_parameters(
    module: nn.Module, dtype: Short, takes: Callable[[tuple[str, ...], int], bool] | None = None
) -> tuple[str, ...]:
    """Round what the f32 and f64 Parameters of a module hold to the nearest values of ``dtype``, in place.

    A weight that is shared holds its shared values. What is trained against its size is left as it is: it has few values
    already. ``takes(names, elements)``: for which, by their names without
    parametrizations; None for all. Returns the first names of those that were rounded.

    Raises EncodingError, before anything is changed, if a value is not finite or too large for the type.
    """
    inner, _ = unwrapped(module)
    weights = find_weights(inner)
    # What another parametrization makes of a Parameter need not follow it.
    others = {
        id(weight.parameter)
        for weight in weights
        if not isinstance(weight.parametrization, PruningMask | SharedWeights | None)
    }
    # Nor are the scales of activations, which are not stored with the weights.
    others |= {
        id(parameter)
        for _, _, _, quantizer in activation_quantizers(inner)
        for parameter in quantizer.parameters()
    }
    names = {id(weight.parameter): weight.names for weight in weights}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        if ".parametrizations." not in f".{name}":
            all_names = names.get(id(parameter), ())
            names[id(parameter)] = all_names if name in all_names else (*all_names, name)
    rounded: list[tuple[str, nn.Parameter, torch.Tensor]] = []
    for parameter in inner.parameters():
        found = names.get(id(parameter))
        if found is None or id(parameter) in others or parameter.dtype not in (torch.float32, torch.float64):
            continue
        if takes is not None and not takes(found, parameter.numel()):
            continue
        value = parameter.detach().to(_TYPES[dtype]).to(parameter.dtype)
        if not bool(torch.isfinite(value).all()):
            raise EncodingError(
                f"{found[0]} holds a value that {dtype} does not have", hint="bf16 has the range of f32"
            )
        rounded.append((found[0], parameter, value))
    for _, parameter, value in rounded:
        parameter.data.copy_(value)
    return tuple(name for name, _, _ in rounded)

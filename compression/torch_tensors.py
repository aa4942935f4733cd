"""Between torch tensors and numpy arrays: the same memory where possible, bf16 and fp8 included.

torch is imported by the functions that need it, never by importing this module.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from dcz.errors import MissingDependency, SourceError
from dcz.format.dtypes import DTYPES, DType
from dcz.format.layout import MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Hashable

    import torch

__all__ = [
    "check_no_packed_parameters",
    "check_tensor",
    "is_module",
    "is_tensor",
    "require_torch",
    "to_numpy",
    "to_torch",
    "torch_dtype",
    "unwrapped",
    "view_key",
]


def require_torch(needed_for: str) -> None:
    """Raises MissingDependency if torch cannot be imported."""
    try:
        importlib.import_module("torch")
    except ImportError as exc:
        raise MissingDependency("torch", needed_for=needed_for, extra="torch") from exc


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether this is a torch tensor; without importing torch, as without it there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_module(value: object) -> TypeGuard[torch.nn.Module]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def unwrapped(module: torch.nn.Module) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The module inside of DataParallel, DistributedDataParallel and torch.compile, and the prefixes of its names that
    come from these, the outermost first."""
    import torch

    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    prefixes: list[str] = []
    while True:
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            prefix = "module"
        elif isinstance(module, compiled):
            prefix = "_orig_mod"
        else:
            return module, tuple(prefixes)
        prefixes.append(f"{prefix}.")
        module = getattr(module, prefix)


def check_no_packed_parameters(name: Any, value: object) -> None:
    """Raises SourceError if something that is no tensor holds weights, as modules do that torch has quantized."""
    import torch

    def packed(value: object) -> bool:
        if isinstance(value, list | tuple):
            return any(is_tensor(item) and item.is_quantized for item in value)
        return isinstance(value, torch.ScriptObject)

    if packed(value):
        raise SourceError(
            f"{name!r} holds weights that torch has quantized and packed, which .dcz cannot store",
            hint="convert the model as it was before torch quantized it, with a recipe that quantizes",
        )


@functools.cache
def torch_dtype(dtype: DType) -> torch.dtype:
    """Both sides use the same names, and torch has every type that the format has."""
    require_torch("torch tensors")
    import torch

    found: torch.dtype = getattr(torch, dtype.numpy.name)
    return found


def check_tensor(name: str, tensor: torch.Tensor) -> DType:
    """The element type of a tensor that can be stored as it is.

    Raises SourceError for sparse, quantized, nested and complex tensors, for those without memory, and for those of more
    than 64 dimensions.
    """
    import torch

    reason = hint = None
    if tensor.layout != torch.strided:
        reason, hint = (
            f"is sparse ({tensor.layout})",
            "convert tensor.to_dense(); recipes store zeros cheaply",
        )
    elif tensor.is_quantized:
        reason, hint = "is quantized by torch", "convert tensor.dequantize(), with a recipe that quantizes"
    elif tensor.is_nested:
        reason = "is a nested tensor"
    elif tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
        reason, hint = "has no memory", "load or initialize the model first"
    elif tensor.ndim > MAX_RANK:
        reason = f"has {tensor.ndim} dimensions, more than {MAX_RANK}"
    else:
        for row in DTYPES.values():
            if tensor.dtype == torch_dtype(row):
                return row
        reason = f"has the type {tensor.dtype}, which .dcz does not have"
    raise SourceError(f"the tensor {name!r} {reason}", hint=hint)


def to_numpy(tensor: torch.Tensor, dtype: DType) -> np.ndarray:
    """The elements in C order, in the tensor's own memory if it is contiguous and on the CPU."""
    import torch

    if tensor.numel() == 0:
        return np.empty(tuple(tensor.shape), dtype.numpy)
    flat = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1)
    data: np.ndarray = flat.view(torch.uint8).numpy()
    return data.view(dtype.numpy).reshape(tuple(tensor.shape))


def to_torch(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """A tensor on the memory of a C-contiguous, writable array."""
    element = torch_dtype(dtype)
    import torch

    if array.size == 0:  # torch gives it a stride that it cannot view
        return torch.empty(array.shape, dtype=element)
    flat = torch.from_numpy(array.reshape(-1).view(np.uint8)).view(element)
    return flat if array.ndim == 1 else flat.view(array.shape)


def view_key(tensor: Any) -> Hashable | None:
    """Equal for two tensors or arrays exactly if they show the same elements of the same memory in the same way.

    None if there is no memory to share.
    """
    if is_tensor(tensor):
        if tensor.numel() == 0 or tensor.is_meta:
            return None
        return (
            str(tensor.device),
            tensor.data_ptr(),
            tuple(tensor.shape),
            tensor.stride(),
            str(tensor.dtype),
        )
    if isinstance(tensor, np.ndarray) and tensor.size:
        return (
            "numpy",
            tensor.__array_interface__["data"][0],
            tensor.shape,
            tensor.strides,
            str(tensor.dtype),
        )
    return None

"""What torchao and optimum-quanto make of the same networks: weights alone, saved as they save, and loaded again.

torchao replaces the weights of modules (`quantize_`), of embeddings as well if it is told to, and saves with its own
safetensors helpers. Its codes of 1 to 8 bits take a byte each, so its files need zstd to get small. Its HQQ with zero
points between the codes and its NF4 have no place in those helpers; their parts are saved under names of ours. Its packed
int4 needs a GPU.

optimum-quanto quantizes linear layers, not embeddings; so all matrices go through the functions that its linear layers
call, in the group sizes that these take.

Where a library can store scales in bf16, groups do. Which matrices are quantized is the same for everybody
(`ptq_networks.is_quantized`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
import torchao.quantization as ao
from optimum import quanto
from optimum.quanto.library.extensions.cpp import ext as quanto_kernels
from optimum.quanto.tensor.weights.qbits import WeightQBitsTensor
from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchao.prototype.safetensors.safetensors_support import (
    flatten_tensor_state_dict,
    unflatten_tensor_state_dict,
)
from torchao.quantization import MappingType
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq
from torchao.quantization.quantize_.workflows.intx.intx_choose_qparams_algorithm import (
    IntxChooseQParamsAlgorithm,
)
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor

from benchmarks.quantization.ptq_networks import Arrays, Subject, is_quantized

Parts = dict[str, torch.Tensor]


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of so many bits, the first ones in the lowest bits of all bytes, and so on."""
    return torch.cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])


# optimum-quanto would call a compiler for this function when it is first needed.
quanto_kernels._lib = SimpleNamespace(unpack=_unpack)

VERSIONS: Final = {name: version(name) for name in ("torchao", "optimum-quanto")}


@dataclass(frozen=True)
class Peer:
    """A method of a library. ``save`` writes a network to a file, ``load`` gives its parameters from there."""

    library: str
    name: str
    bits: int
    save: Callable[[Subject, Path], None]
    load: Callable[[Subject, Path], Arrays]


def _configured(name: str, bits: int, config: Any) -> Peer:
    """A configuration of torchao's `quantize_`."""

    def save(subject: Subject, path: Path) -> None:
        network = copy.deepcopy(subject.network)
        ao.quantize_(network, config, lambda module, _: _is_layer(module))
        parts, metadata = flatten_tensor_state_dict(
            {key: value for key, value in network.state_dict().items() if key in subject.arrays}
        )
        save_file(parts, path, metadata)

    def load(subject: Subject, path: Path) -> Arrays:
        with safe_open(path, "pt") as file:
            parts = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            found, rest = unflatten_tensor_state_dict(parts, file.metadata())
        assert not rest
        return {
            key: (value if type(value) is torch.Tensor else value.dequantize()).float().numpy()
            for key, value in found.items()
        }

    return Peer("torchao", name, bits, save, load)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) and is_quantized(module.weight.detach().numpy())


def _in_parts(
    library: str,
    name: str,
    bits: int,
    encode: Callable[[torch.Tensor], Parts],
    decode: Callable[[Parts, torch.Size], torch.Tensor],
) -> Peer:
    """A function that makes parts of a matrix, and one that makes the matrix of the parts."""

    def save(subject: Subject, path: Path) -> None:
        found: Parts = {}
        for key, array in subject.arrays.items():
            if is_quantized(array):
                parts = encode(torch.from_numpy(array))
                found |= {f"{key}.{part}": value.detach().contiguous() for part, value in parts.items()}
            else:
                found[key] = torch.from_numpy(array)
        save_file(found, path)

    def load(subject: Subject, path: Path) -> Arrays:
        stored = load_file(path)
        found = {}
        for key, array in subject.arrays.items():
            if is_quantized(array):
                parts = {part[len(key) + 1 :]: stored[part] for part in stored if part.startswith(f"{key}.")}
                found[key] = decode(parts, torch.Size(array.shape)).float().numpy()
            else:
                found[key] = stored[key].numpy()
        return found

    return Peer(library, name, bits, save, load)


def _intx(bits: int, group: int | None, **options: Any) -> Any:
    return ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(group) if group else PerAxis(0),
        scale_dtype=torch.bfloat16 if group else None,
        **options,
    )


def _hqq(bits: int, group: int) -> Peer:
    def encode(weight: torch.Tensor) -> Parts:
        codes, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
            weight, bits, group, compute_dtype=torch.bfloat16, device="cpu", raw_output=True
        )
        return {"codes": codes, "scale": scale, "zero": zero}

    def decode(parts: Parts, shape: torch.Size) -> torch.Tensor:
        codes = parts["codes"].float().reshape(*parts["scale"].shape, group)
        return ((codes - parts["zero"].float()[..., None]) * parts["scale"].float()[..., None]).reshape(shape)

    return _in_parts("torchao", f"HQQ, groups of {group}", bits, encode, decode)


def _nf4() -> Peer:
    def made(weight: torch.Tensor) -> NF4Tensor:
        # The scales of so many blocks share a scale of their own; the library wants their number to be a multiple.
        return NF4Tensor.from_tensor(weight, 64, math.gcd(weight.numel() // 64, 256))

    names = ("quantized_scalers", "quantization_factor", "scaler_mean", "quantized_data", "nf4")

    def encode(weight: torch.Tensor) -> Parts:
        tensor = made(weight)
        return {name: getattr(tensor, name) for name in names}

    def decode(parts: Parts, shape: torch.Size) -> torch.Tensor:
        tensor = made(torch.zeros(shape))
        for name in names:
            setattr(tensor, name, parts[name])
        found: torch.Tensor = tensor.get_original_weight()
        return found

    return _in_parts("torchao", "NF4, groups of 64", 4, encode, decode)


def _qint8() -> Peer:
    def encode(weight: torch.Tensor) -> Parts:
        scale = quanto.AbsmaxOptimizer()(weight, quanto.qint8, axis=0)
        return _state(quanto.quantize_weight(weight, quanto.qint8, 0, scale))

    def decode(parts: Parts, shape: torch.Size) -> torch.Tensor:
        loaded = WeightQBytesTensor.load_from_state_dict(
            dict(parts), "", quanto.qint8, 0, shape, _strides(shape), None, missing_keys=[]
        )
        found: torch.Tensor = loaded.dequantize()
        return found

    return _in_parts("optimum-quanto", "absmax, channel", 8, encode, decode)


def _qbits(bits: int, group: int, optimizer: Any, name: str) -> Peer:
    kind = {4: quanto.qint4, 2: quanto.qint2}[bits]

    def encode(weight: torch.Tensor) -> Parts:
        weight = weight.bfloat16()
        scale, shift = optimizer(weight, kind, axis=0, group_size=group)
        return _state(quanto.quantize_weight(weight, kind, 0, scale, shift, group, optimized=False))

    def decode(parts: Parts, shape: torch.Size) -> torch.Tensor:
        loaded = WeightQBitsTensor.load_from_state_dict(
            dict(parts), "", kind, 0, group, shape, _strides(shape), missing_keys=[]
        )
        found: torch.Tensor = loaded.dequantize()
        return found

    return _in_parts("optimum-quanto", f"{name}, groups of {group}", bits, encode, decode)


def _state(tensor: Any) -> Parts:
    state: Parts = {}
    tensor.save_to_state_dict(state, "", keep_vars=False)
    return state


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _peers() -> list[Peer]:
    asymmetric = {"mapping_type": MappingType.ASYMMETRIC}
    scale_only = {"intx_choose_qparams_algorithm": IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY}
    found = [_configured("int8, channel", 8, ao.Int8WeightOnlyConfig(set_inductor_config=False))]
    for bits in (8, 6, 5, 4, 3, 2):
        found.append(_configured("asymmetric, channel", bits, _intx(bits, None, **asymmetric)))
        found.append(_configured("asymmetric, groups of 64", bits, _intx(bits, 64, **asymmetric)))
    for bits in (6, 5, 4, 3, 2):
        found.append(_hqq(bits, 64))
    for bits in (4, 3, 2):
        found.append(_configured("asymmetric, groups of 32", bits, _intx(bits, 32, **asymmetric)))
        found.append(_configured("asymmetric, groups of 128", bits, _intx(bits, 128, **asymmetric)))
        found.append(_configured("symmetric HQQ, groups of 64", bits, _intx(bits, 64, **scale_only)))
        found.append(_hqq(bits, 32))
        found.append(_hqq(bits, 128))
    found += [_nf4(), _qint8()]
    for bits in (4, 2):
        for group in (128, 64, 32):
            found.append(_qbits(bits, group, quanto.MaxOptimizer(), "min-max"))
            found.append(_qbits(bits, group, quanto.HqqOptimizer(), "HQQ"))
    return found


PEERS: Final = _peers()

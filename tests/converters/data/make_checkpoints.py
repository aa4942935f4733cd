"""Makes the quantized tensors beside it, with the libraries whose formats they are:

    pip install --no-deps auto-gptq==0.7.1 bitsandbytes==0.50.2 compressed-tensors==0.20.0 loguru
    python tests/converters/data/make_checkpoints.py

``checkpoints.safetensors`` has the tensors of each case under its name; ``checkpoints.json`` has its quantization_config, and the
shape, type and SHA-256 of what the library itself decodes it to.
"""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def _described(weight: torch.Tensor) -> dict[str, Any]:
    data = weight.contiguous().view(torch.uint8).numpy().tobytes()
    return {
        "shape": list(weight.shape),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _bitsandbytes(cases: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    from bitsandbytes import functional

    for kind in ("nf4", "fp4"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for nested in (False, True):
                shape = (132, 128) if nested and dtype == torch.float16 else (12, 64)
                weight = torch.randn(*shape).to(dtype)
                codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
                name = f"bitsandbytes {kind} {str(dtype).removeprefix('torch.')}{' nested' if nested else ''}"
                found = {"layer.weight": codes}
                found |= {f"layer.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
                tensors |= {f"{name}/{key}": value for key, value in found.items()}
                config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
                cases[name] = {"config": config, **_described(functional.dequantize_4bit(codes, state))}


def _bitsandbytes_rows(cases: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """As Linear8bitLt saves itself."""
    from bitsandbytes import functional

    codes, scales, _ = functional.int8_vectorwise_quant(torch.randn(20, 50).to(torch.float16))
    name = "bitsandbytes int8"
    found = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    tensors |= {f"{name}/layer.{key}": value for key, value in found.items()}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    cases[name] = {"config": config, **_described(functional.int8_vectorwise_dequant(codes, scales))}


def _compressed_tensors(cases: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    packed = [
        {"num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": 32}
        for bits in (3, 4, 8)
        for symmetric in (True, False)
    ]
    packed += [
        {"num_bits": 4, "symmetric": False, "strategy": strategy} for strategy in ("channel", "tensor")
    ]
    naive = [
        {"num_bits": 8, "symmetric": symmetric, "strategy": strategy}
        for strategy in ("channel", "tensor")
        for symmetric in (True, False)
    ]
    floats = [{"num_bits": 8, "symmetric": True, "strategy": strategy} for strategy in ("channel", "tensor")]
    floats.append({"num_bits": 8, "symmetric": True, "strategy": "block", "block_structure": [16, 32]})
    plans = [("pack-quantized", PackedQuantizationCompressor, "int", each) for each in packed]
    plans += [("int-quantized", NaiveQuantizationCompressor, "int", each) for each in naive]
    plans += [("float-quantized", NaiveQuantizationCompressor, "float", each) for each in floats]
    for number, (form, compressor, kind, fields) in enumerate(plans):
        dtype = (torch.bfloat16, torch.float16, torch.float32)[number % 3]
        rows, columns = (20, 50) if fields["strategy"] in ("channel", "tensor") else (16, 96)
        arguments = QuantizationArgs(type=kind, **fields)
        weight = torch.randn(rows, columns).to(dtype)
        if fields["strategy"] == "group":
            parts, axes = weight.unflatten(-1, (-1, 32)), (-1,)
        elif fields["strategy"] == "block":
            parts, axes = weight.reshape(rows // 16, 16, columns // 32, 32), (1, 3)
        elif fields["strategy"] == "channel":
            parts, axes = weight.unsqueeze(1), (2,)
        else:
            parts, axes = weight.reshape(1, -1), (1,)
        scale, zero = calculate_qparams(parts.amin(axes), parts.amax(axes), arguments)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        given = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        found = compressor.compress(given, scheme)
        name = f"{form} {kind}{fields['num_bits']} {fields['strategy']}{'' if fields['symmetric'] else ' asymmetric'}"
        config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": json.loads(arguments.model_dump_json())}
            },
        }
        tensors |= {f"{name}/layer.{key}": value for key, value in found.items()}
        cases[name] = {"config": config, **_described(compressor.decompress(found, scheme)["weight"])}


def _auto_gptq(file: str) -> Any:
    """A module of its layers alone: the whole package imports what is not needed."""
    folder = Path(importlib.util.find_spec("auto_gptq").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(file, folder / "nn_modules" / "qlinear" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gptq(cases: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """As its layers pack themselves, and as they compute with the identity. Of 2, 4 and 8 bits its kernels do not agree on zero points
    of 0 and 2**bits; of 3 bits they do."""
    inputs, outputs, group = 96, 32, 32
    for bits in (2, 3, 4, 8):
        for ordered in (False, True):
            kind = "qlinear_cuda" if ordered else "qlinear_cuda_old"
            layer = _auto_gptq(kind).QuantLinear(bits, group, inputs, outputs, bias=False)
            index = torch.arange(inputs, dtype=torch.int32) // group
            index = index[torch.randperm(inputs)] if ordered else index
            scales = (torch.rand(outputs, inputs // group) + 0.5).half()
            zeros = torch.randint(1, (1 << bits) + (bits == 3), scales.shape).float()
            codes = torch.randint(0, 1 << bits, (outputs, inputs))
            groups = index.long()
            linear = torch.nn.Linear(inputs, outputs, bias=False).half()
            linear.weight.data = (scales[:, groups].float() * (codes - zeros[:, groups])).half()
            layer.pack(linear, scales.float(), zeros.clone(), index)
            layer.g_idx = index
            name = f"gptq {bits} bits{', act-order' if ordered else ''}"
            tensors |= {f"{name}/layer.{key}": value for key, value in layer.state_dict().items()}
            config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered}
            weight = layer(torch.eye(inputs, dtype=torch.float16)).T
            cases[name] = {"config": config, **_described(weight)}


def main() -> None:
    torch.manual_seed(0)
    cases: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    _bitsandbytes(cases, tensors)
    _compressed_tensors(cases, tensors)
    _bitsandbytes_rows(cases, tensors)
    _gptq(cases, tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, HERE / "checkpoints.safetensors")
    (HERE / "checkpoints.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()

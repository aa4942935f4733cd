"""Quantized checkpoints: what comes out is what their libraries decode to; and what is refused.

Of GPTQ and AWQ the oracle is plain arithmetic from the published layout (quantized_checkpoints.py), of AutoGPTQ, bitsandbytes and
compressed-tensors what those libraries gave for tensors that they made (data/make_checkpoints.py).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.converters.quantized_checkpoints import (
    Checkpoint,
    awq_checkpoint,
    gptq_checkpoint,
    write_checkpoint,
)
from transformers import BertConfig, BertModel

import dcz
from dcz.compression.torch_tensors import check_tensor, to_numpy
from dcz.converters.checkpoint_parts import Unread
from dcz.converters.checkpoints import QuantizedSource
from dcz.converters.conversion import open_source
from dcz.converters.folders import hydrate_folder, save_folder
from dcz.converters.memory import MemorySource
from dcz.errors import SourceError
from dcz.format import DTYPES, Reader, decoded, verify
from dcz.format.manifest import Affine, PerChannel, PerIndex, ScaledCodebook

DATA = Path(__file__).parent / "data"
CASES: dict[str, Any] = json.loads((DATA / "checkpoints.json").read_text())


def library_checkpoint(case: str) -> Checkpoint:
    with safe_open(DATA / "checkpoints.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{case}/")]  # noqa: SIM118 - it is no dictionary
        return Checkpoint(
            copy.deepcopy(CASES[case]["config"]),
            {name.removeprefix(f"{case}/"): file.get_tensor(name) for name in names},
        )


GPTQ = {
    **{
        f"{bits} bits, {form}": gptq_checkpoint(bits, form=form)
        for bits in (2, 3, 4, 8)
        for form in ("gptq", "gptq_v2")
    },
    **{f"{bits} bits, act-order": gptq_checkpoint(bits, act_order=True) for bits in (2, 3, 4, 8)},
    "symmetric": gptq_checkpoint(symmetric=True),
    "a group a row": gptq_checkpoint(group=-1),
    "without g_idx": gptq_checkpoint(indexed=False),
}
ARITHMETIC = {
    **{f"gptq {name}": made for name, made in GPTQ.items()},
    "awq": awq_checkpoint(),
    "awq, rows": awq_checkpoint(-1),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_codes_stand_for_what_the_layout_says(case: str, tmp_path: Path) -> None:
    checkpoint = ARITHMETIC[case]
    done = dcz.convert(write_checkpoint(tmp_path / "model", checkpoint), tmp_path / "x.dcz")
    assert any("stored as the codes" in note for note in done.notes)
    verify(tmp_path / "x.dcz", deep=True)
    with Reader(tmp_path / "x.dcz") as reader:
        others = {name for name in checkpoint.tensors if name.endswith("bias")}
        assert set(reader) == {"layer.weight"} | others
        expected = checkpoint.weights["layer.weight"]
        assert reader.shape("layer.weight") == expected.shape
        assert reader.read("layer.weight").tobytes() == np.ascontiguousarray(expected).tobytes()
        values = next(each for each in reader.manifest.tensors if each.name == "layer.weight").values
    assert isinstance(values, Affine)
    assert values.bits == checkpoint.config["bits"]
    assert isinstance(values.granularity, PerIndex) == ("act-order" in case)
    assert values.zero_points == ("symmetric" not in case)


INT8 = "bitsandbytes int8"


@pytest.mark.parametrize("case", [case for case in CASES if case != INT8])
def test_codes_stand_for_what_the_library_says(case: str, tmp_path: Path) -> None:
    expected = CASES[case]
    dcz.convert(write_checkpoint(tmp_path / "model", library_checkpoint(case)), tmp_path / "x.dcz")
    with Reader(tmp_path / "x.dcz") as reader:
        assert list(reader) == ["layer.weight"]
        weight = reader.read("layer.weight")
        values = reader.manifest.tensors[0].values
    assert list(weight.shape) == expected["shape"]
    assert weight.dtype.name == expected["dtype"]
    assert hashlib.sha256(weight.tobytes()).hexdigest() == expected["sha256"]
    shared = case.startswith(("bitsandbytes", "float"))
    assert isinstance(values, ScaledCodebook if shared else Affine)


def test_the_configuration_is_that_of_plain_weights(tmp_path: Path) -> None:
    checkpoint = gptq_checkpoint()
    folder = write_checkpoint(tmp_path / "model", checkpoint, {"hidden_size": 3})
    dcz.convert(folder, tmp_path / "x.dcz")
    with Reader(tmp_path / "x.dcz") as reader:
        assert json.loads(reader.read_asset("config.json")) == {"model_type": "toy", "hidden_size": 3}
        assert json.loads(reader.metadata["quantization_config"]) == checkpoint.config
        (read,) = reader.manifest.provenance.files
        assert read.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
        assert reader.assets() == ["config.json"]
    dcz.decode(tmp_path / "x.dcz", tmp_path / "back")
    with safe_open(tmp_path / "back" / "model.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("layer.weight"), checkpoint.weights["layer.weight"])


def test_a_folder_of_dcz_files_is_one_of_plain_weights(tmp_path: Path) -> None:
    checkpoint = gptq_checkpoint(act_order=True)
    save_folder(write_checkpoint(tmp_path / "model", checkpoint), tmp_path / "dcz")
    config = json.loads((tmp_path / "dcz" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "dcz"
    hydrate_folder(tmp_path / "dcz", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {"model_type": "toy"}
    with safe_open(tmp_path / "back" / "model.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("layer.weight"), checkpoint.weights["layer.weight"])


def test_parts_that_modules_share(tmp_path: Path) -> None:
    """As a checkpoint of torch.save holds them; the modules of one layer have the same order of inputs."""
    one, other = gptq_checkpoint(3, act_order=True), gptq_checkpoint(3, act_order=True)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in one.tensors.items()}
    for name, value in other.tensors.items():
        shared = name == "layer.g_idx"
        tensors[f"other.{name}"] = tensors[name] if shared else torch.from_numpy(np.array(value))
    norm = torch.ones(3)
    tensors |= {"norm": norm, "tied": norm}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"quantization_config": one.config}))
    torch.save(tensors, tmp_path / "model" / "pytorch_model.bin")
    dcz.convert(tmp_path / "model", tmp_path / "x.dcz")
    with Reader(tmp_path / "x.dcz") as reader:
        assert dict(reader.aliases) == {"tied": "norm"}
        for name in ("layer.weight", "other.layer.weight"):
            assert np.array_equal(reader.read(name), one.weights["layer.weight"])


def test_another_dcz_file_keeps_the_codes(tmp_path: Path) -> None:
    for case in ("bitsandbytes nf4 float16 nested", "pack-quantized int3 group asymmetric"):
        dcz.convert(write_checkpoint(tmp_path / case, library_checkpoint(case)), tmp_path / "x.dcz")
        dcz.convert(tmp_path / "x.dcz", tmp_path / "y.dcz")
        with Reader(tmp_path / "x.dcz") as one, Reader(tmp_path / "y.dcz") as other:
            assert one.manifest.tensors == other.manifest.tensors


TRANSFORMS = {
    "config_groups": {"R1": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}
}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, "codes of 2, 3, 4 and 8 bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparse",
        ),
        ({"quant_method": "compressed-tensors", "transform_config": TRANSFORMS}, "turn activations"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "is_marlin_format": True}, "no tensor"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "no tensor"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "no tensor"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "no tensor"),
    ],
)
def test_what_is_not_read_is_kept_as_it_lies_there(
    case: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tensors: dict[str, Any] = gptq_checkpoint().tensors
    if message == "no tensor":
        # The names and types of AutoGPTQ's marlin layout.
        tensors = {"l.B": np.arange(96, dtype=np.int32).reshape(6, 16), "l.s": np.ones((1, 8), np.float16)}
    folder = write_checkpoint(tmp_path / "model", Checkpoint(case, tensors))
    done = dcz.convert(folder, tmp_path / "x.dcz")
    assert len(done.notes) == 1
    assert message in done.notes[0]
    assert "as they lie there" in done.notes[0]
    dcz.decode(tmp_path / "x.dcz", tmp_path / "back")
    for path in folder.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_weights_of_8_bits_of_bitsandbytes(tmp_path: Path) -> None:
    """Codes and scales as they are, and values within one unit in the last place of those of the library, which rounds twice:
    https://arxiv.org/abs/2208.07339, and int8_vectorwise_dequant, whose formula its own digest confirms."""
    checkpoint = library_checkpoint(INT8)
    scales, codes = (checkpoint.tensors[f"layer.{name}"].numpy() for name in ("SCB", "weight"))
    theirs = codes.astype(np.float32) * scales[:, None] * np.float32(7.874015718698502e-3)
    assert hashlib.sha256(theirs.tobytes()).hexdigest() == CASES[INT8]["sha256"]
    dcz.convert(write_checkpoint(tmp_path / "model", checkpoint), tmp_path / "x.dcz")
    with Reader(tmp_path / "x.dcz") as reader:
        assert list(reader) == ["layer.weight"]
        ours, values = reader.read("layer.weight"), reader.manifest.tensors[0].values
    assert isinstance(values, Affine)
    assert (values.bits, values.granularity) == (8, PerChannel(axis=0))
    assert (np.abs(ours.view(np.int32) - theirs.view(np.int32)) <= 1).all()
    assert ours.astype(np.float16).tobytes() == theirs.astype(np.float16).tobytes()
    exact = codes * scales.astype(np.float64)[:, None] / 127
    assert np.abs(ours - exact).max() <= 2**-23 * np.abs(exact).max()
    assert np.array_equal(np.rint(ours / np.abs(ours).max(axis=1, keepdims=True) * 127), codes)


def test_weights_of_8_bits_in_another_order_are_kept_as_they_lie_there(tmp_path: Path) -> None:
    checkpoint = library_checkpoint(INT8)
    checkpoint.tensors["layer.weight_format"] = np.array(1, np.uint8)
    done = dcz.convert(write_checkpoint(tmp_path / "model", checkpoint), tmp_path / "x.dcz")
    assert any("in rows" in note and "as they lie there" in note for note in done.notes)
    with Reader(tmp_path / "x.dcz") as reader:
        assert set(reader) == set(checkpoint.tensors)


def test_rows_of_an_outline_are_rows_of_the_tensor(tmp_path: Path) -> None:
    for case, made in {
        **ARITHMETIC,
        "ct": library_checkpoint("pack-quantized int4 channel asymmetric"),
        "rows": library_checkpoint(INT8),
    }.items():
        source = open_source(write_checkpoint(tmp_path / case, made))
        try:
            outlines = {outline.name: outline for outline in source.outlines()}
            whole = decoded(dict(source.tensors())["layer.weight"])
            rows = decoded(outlines["layer.weight"].read(5, 14))
            assert np.array_equal(rows, whole[5:14]), case
        finally:
            source.close()
    nested = "bitsandbytes nf4 float16 nested"
    source = open_source(write_checkpoint(tmp_path / nested, library_checkpoint(nested)))
    (outline,) = source.outlines()
    whole = decoded(dict(source.tensors())["layer.weight"])
    assert np.array_equal(decoded(outline.read(5, 14)), whole[:9])
    source.close()


def test_estimates_know_of_codes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", gptq_checkpoint())
    done = dcz.convert(folder, tmp_path / "x.dcz")
    found = dcz.estimate(folder, recipes=["lossless"], efforts=["balanced"])
    assert found.tensor_bytes == done.tensor_bytes
    assert found.estimates[0].file_bytes == pytest.approx(done.file_bytes, abs=400)
    again = dcz.estimate(tmp_path / "x.dcz", recipes=["lossless"], efforts=["balanced"])
    assert again.estimates[0].file_bytes == pytest.approx(done.file_bytes, abs=400)


def test_tensors_about_activations_are_left_out(tmp_path: Path) -> None:
    checkpoint = library_checkpoint("int-quantized int8 channel")
    checkpoint.tensors |= {"layer.input_scale": np.ones(1, np.float32), "layer.bias": np.ones(20, np.float32)}
    done = dcz.convert(write_checkpoint(tmp_path / "model", checkpoint), tmp_path / "x.dcz")
    assert any("layer.input_scale" in note for note in done.notes)
    with Reader(tmp_path / "x.dcz") as reader:
        assert set(reader) == {"layer.weight", "layer.bias"}


# What is refused

Change = Callable[[Checkpoint], None]


def _config(**fields: Any) -> Change:
    return lambda checkpoint: checkpoint.config.update(fields)


def _without(name: str) -> Change:
    return lambda checkpoint: checkpoint.tensors.pop(name)


def _with(name: str, value: np.ndarray) -> Change:
    return lambda checkpoint: checkpoint.tensors.update({name: value})


def _index(last: int) -> np.ndarray:
    index = np.zeros(96, np.int32)
    index[-1] = last
    return index


def _state(**fields: Any) -> np.ndarray:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [12, 64], **fields}
    return np.frombuffer(bytearray(json.dumps(state).encode()), np.uint8)


NF4 = "layer.weight.quant_state.bitsandbytes__nf4"
HOSTILE: dict[str, tuple[str, Change, str]] = {
    "bits of another type": ("gptq", _config(bits="4"), "bits is '4'"),
    "no bits": ("gptq", _config(bits=None), "bits is missing"),
    "more bits than there are codes": ("gptq", _config(bits=8), "zero points of the shape"),
    "groups of none": ("gptq", _config(group_size=0), "group_size is 0"),
    "groups of a negative size": ("gptq", _config(group_size=-2), "group_size is -2"),
    "huge groups": ("gptq", _config(group_size=1 << 60), "group_size is"),
    "groups of another size": ("gptq without g_idx", _config(group_size=48), "groups of 48"),
    "no scales": ("gptq", _without("layer.scales"), "has no layer.scales"),
    "no zero points": ("gptq", _without("layer.qzeros"), "has no layer.qzeros"),
    "few scales": ("gptq", _with("layer.scales", np.ones((3, 32), np.float16)), "scales of the shape"),
    "scales of integers": ("gptq", _with("layer.scales", np.ones((3, 64), np.int32)), "scales of the shape"),
    "infinite scales": ("gptq", _with("layer.scales", np.full((3, 64), np.inf, np.float16)), "not finite"),
    "codes of bytes": ("gptq", _with("layer.qweight", np.ones((12, 64), np.int8)), "words of 32 bits"),
    "codes of one dimension": ("gptq", _with("layer.qweight", np.ones(12, np.int32)), "words of 32 bits"),
    "no codes": ("gptq", _with("layer.qweight", np.ones((0, 64), np.int32)), "is empty|g_idx of the shape"),
    "a group beyond the last": ("gptq", _with("layer.g_idx", _index(3)), "g_idx from 0 to 3"),
    "a negative group": ("gptq", _with("layer.g_idx", _index(-1)), "g_idx from -1"),
    "a short index": ("gptq", _with("layer.g_idx", np.zeros(12, np.int32)), "g_idx of the shape"),
    "an index of floats": ("gptq", _with("layer.g_idx", np.zeros(96, np.float32)), "g_idx of f32"),
    "the weight twice": ("gptq", _with("layer.weight", np.zeros((64, 96), np.float16)), "twice"),
    "awq of other bits": (
        "awq",
        _with("layer.qzeros", np.ones((3, 4), np.int32)),
        "zero points of the shape",
    ),
    "awq in other groups": ("awq", _config(group_size=48), "groups of 48"),
    "a state that is no JSON": ("nf4", _with(NF4, np.zeros(4, np.uint8)), "not valid JSON"),
    "a state that is no object": ("nf4", _with(NF4, np.array([91, 93], np.uint8)), "no JSON object"),
    "no state": ("nf4", _with(NF4, np.zeros(0, np.uint8)), "state of 0 bytes"),
    "a shape that lies": ("nf4", _with(NF4, _state(shape=[12, 65])), "codes of the shape"),
    "a huge shape": ("nf4", _with(NF4, _state(shape=[1 << 40, 1 << 40])), "codes of the shape"),
    "a negative shape": ("nf4", _with(NF4, _state(shape=[-12, -64])), "has the shape"),
    "no shape": ("nf4", _with(NF4, _state(shape=None)), "has the shape"),
    "blocks of none": ("nf4", _with(NF4, _state(blocksize=0)), "blocks of 0"),
    "blocks of half": ("nf4", _with(NF4, _state(blocksize=128)), "absmax of f32"),
    "another type": ("nf4", _with(NF4, _state(dtype="int8")), "type 'int8'"),
    "a type that is code": ("nf4", _with(NF4, _state(dtype="load")), "type 'load'"),
    "no absmax": ("nf4", _without("layer.weight.absmax"), "has no layer.weight.absmax"),
    "no map": ("nf4", _without("layer.weight.quant_map"), "has no layer.weight.quant_map"),
    "no codes of nf4": ("nf4", _without("layer.weight"), "no codes"),
    "a map that is not finite": (
        "nf4",
        _with("layer.weight.quant_map", np.full(16, np.nan, np.float32)),
        "not finite",
    ),
    "bits that do not fit": (
        "ct",
        _config(config_groups={"a": {"weights": {"num_bits": 8}}}),
        "no number of bits",
    ),
    "no bits at all": ("ct", _config(config_groups={"a": {"weights": {"num_bits": 0}}}), "num_bits is 0"),
    "no groups": ("ct", _config(config_groups={}), "no number of bits"),
    "groups that are none": ("ct", _config(config_groups=[]), "config_groups is"),
    "weights that are none": ("ct", _config(config_groups={"a": {"weights": 3}}), "no object"),
    "a lying shape": ("ct", _with("layer.weight_shape", np.array([16, 97])), "no number of bits|fits no"),
    "a lying number of rows": ("ct", _with("layer.weight_shape", np.array([17, 96])), "has the shape"),
    "a shape of none": ("ct", _with("layer.weight_shape", np.array([16, 0])), "has the shape"),
    "a shape of three": ("ct", _with("layer.weight_shape", np.array([16, 96, 1])), "two dimensions"),
    "a shape too many": ("ct", _without("layer.weight_shape"), "has no layer.weight_shape"),
    "few groups": ("ct", _with("layer.weight_scale", np.ones((16, 2), np.float16)), "fits no configuration"),
    "packed zeros too few": (
        "ct",
        _with("layer.weight_zero_point", np.ones((1, 3), np.int32)),
        "packed zero points",
    ),
    "an index of groups": ("ct", _with("layer.weight_g_idx", np.full(96, 3, np.int32)), "weight_g_idx"),
    "no packed codes": ("ct", _without("layer.weight_packed"), "not at all"),
    "zero points that do not fit": (
        "int8",
        _with("layer.weight_zero_point", np.zeros((3, 1), np.int8)),
        "zero points of i8",
    ),
    "a weight of floats": ("int8", _with("layer.weight", np.ones((20, 50), np.float32)), "is of f32"),
    "rows without codes": ("rows", _without("layer.weight"), "has scales, and no codes"),
    "rows of floats": ("rows", _with("layer.weight", np.ones((20, 50), np.float32)), "codes of f32"),
    "rows of no matrix": ("rows", _with("layer.weight", np.ones((20, 5, 10), np.int8)), "codes of i8"),
    "too few rows": ("rows", _with("layer.SCB", np.ones(19, np.float32)), r"scales of f32 \[19\]"),
    "rows of infinite scales": ("rows", _with("layer.SCB", np.full(20, np.inf, np.float32)), "not finite"),
    "two orders": ("rows", _with("layer.weight_format", np.zeros(2, np.uint8)), "weight_format of 2"),
    "weights that are no numbers": (
        "fp8",
        _with("layer.weight", np.full((20, 50), 0x7F, np.uint8)),
        "no numbers|is of u8",
    ),
}
ORIGINALS: dict[str, Callable[[], Checkpoint]] = {
    "gptq": gptq_checkpoint,
    "gptq without g_idx": lambda: gptq_checkpoint(indexed=False),
    "awq": awq_checkpoint,
    "nf4": lambda: library_checkpoint("bitsandbytes nf4 float32"),
    "ct": lambda: library_checkpoint("pack-quantized int4 group asymmetric"),
    "int8": lambda: library_checkpoint("int-quantized int8 channel asymmetric"),
    "fp8": lambda: library_checkpoint("float-quantized float8 channel"),
    "rows": lambda: library_checkpoint(INT8),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_is_refused(case: str, tmp_path: Path) -> None:
    original, change, message = HOSTILE[case]
    checkpoint = ORIGINALS[original]()
    change(checkpoint)
    folder = write_checkpoint(tmp_path / "model", checkpoint)
    with pytest.raises(SourceError, match=message):
        dcz.convert(folder, tmp_path / "x.dcz")
    assert not (tmp_path / "x.dcz").exists()


def _numbers(random: np.random.Generator) -> Any:
    odd = [
        0,
        -1,
        1,
        2,
        3,
        31,
        4,
        8,
        9,
        255,
        1 << 20,
        1 << 31,
        1 << 60,
        -(1 << 63),
        0.5,
        "4",
        None,
        [],
        {},
        True,
    ]
    return odd[random.integers(len(odd))]


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else to_numpy(value, check_tensor("part", value))


@pytest.mark.parametrize("original", ORIGINALS)
def test_mutated_checkpoints_are_read_or_refused(original: str, tmp_path: Path) -> None:
    """Parts that are missing, of other shapes, types and values, and numbers of the configuration: read or SourceError."""
    random = np.random.default_rng(sum(original.encode()))
    types, refused = [row.numpy for row in DTYPES.values()], 0
    for _ in range(150):
        checkpoint = ORIGINALS[original]()
        tensors = {name: _array(value) for name, value in checkpoint.tensors.items()}
        for _ in range(random.integers(1, 3)):
            name = list(tensors)[random.integers(len(tensors))]
            value = tensors[name]
            match random.integers(6):
                case 0 if len(tensors) > 1:
                    del tensors[name]
                case 1:
                    tensors[name] = value.reshape(-1)[: random.integers(value.size + 1)]
                case 2:
                    tensors[name] = np.ascontiguousarray(value.T)
                case 3:
                    tensors[name] = np.zeros(value.shape, types[random.integers(len(types))])
                case 4 if value.size:
                    octets = np.frombuffer(bytearray(value.tobytes()), np.uint8)
                    octets[random.integers(0, octets.size, 3)] = random.integers(256)
                    tensors[name] = octets.view(value.dtype).reshape(value.shape)
                case _:
                    fields = checkpoint.config
                    if isinstance(fields.get("config_groups"), dict) and random.integers(2):
                        fields = fields["config_groups"]["group_0"]
                        fields = fields["weights"] if isinstance(fields["weights"], dict) else fields
                    fields[list(fields)[random.integers(len(fields))]] = _numbers(random)
        config = {**checkpoint.config, "quant_method": ORIGINALS[original]().config["quant_method"]}
        try:
            source = QuantizedSource(MemorySource(tensors), {"quantization_config": config})
            for _, tensor in source.tensors():
                decoded(tensor)
        except (SourceError, Unread):
            refused += 1
    assert 0 < refused < 150


def test_the_model_runs_as_its_library_has_it(tmp_path: Path) -> None:
    """A BERT whose linear layers are NF4, in blocks that cross rows; the oracle is torch with what the codes stand for."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=40, num_hidden_layers=1, num_attention_heads=4, intermediate_size=56
    )
    model = BertModel(config).eval()
    table = library_checkpoint("bitsandbytes nf4 float32").tensors["layer.weight.quant_map"]
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if weight.ndim != 2 or "embeddings" in name:
            tensors[name] = weight
            continue
        blocks = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 64)).reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        codes = (
            (blocks[:, :, None] / absmax[:, None, None] - table).abs().argmin(2).reshape(-1)[: weight.numel()]
        )
        values = table[codes] * absmax.repeat_interleave(64)[: weight.numel()]
        weight.copy_(values.reshape(weight.shape))
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
        tensors |= {
            name: (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
            f"{name}.absmax": absmax,
            f"{name}.quant_map": table,
            f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
                list(json.dumps(state).encode()), dtype=torch.uint8
            ),
        }
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    given = json.loads(config.to_json_string(use_diff=False))
    given |= {"architectures": ["BertModel"], "dtype": "float32"}
    folder = write_checkpoint(tmp_path / "model", Checkpoint(method, dict(tensors)), given)
    dcz.convert(folder, tmp_path / "x.dcz")
    loaded = dcz.load_model(tmp_path / "x.dcz")
    words = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        assert torch.equal(loaded(words).last_hidden_state, model(words).last_hidden_state)

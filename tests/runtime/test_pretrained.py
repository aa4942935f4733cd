"""from_pretrained of transformers on folders of .dcz files. transformers, loading plain safetensors, is the oracle."""

from __future__ import annotations

import filecmp
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tests.converters.test_huggingface_folders import minilm

import dcz
import dcz.transformers
from dcz.errors import DczError, DigestMismatch, ManifestError, SourceError, UnsupportedVersion, UsageError
from dcz.transformers import DczQuantizer

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", False)


def llama(**options: Any) -> Any:
    config = transformers.LlamaConfig(**SMALL, intermediate_size=32, tie_word_embeddings=True, **options)
    return transformers.LlamaForCausalLM(config).bfloat16()


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        **SMALL, intermediate_size=32, num_local_experts=3, num_key_value_heads=1
    )
    return transformers.MixtralForCausalLM(config)


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, intermediate_size=16))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def t5() -> Any:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


MODELS = [llama, mixtral, bert, gpt2, t5]


def made(make: Callable[[], Any], folder: Path, **how: Any) -> Path:
    """A plain folder of a model, ``folder``/plain, and one of .dcz files, ``folder``/dcz, which is returned."""
    torch.manual_seed(0)
    make().save_pretrained(folder / "plain")
    dcz.save_pretrained(folder / "plain", folder / "dcz", **how)
    return folder / "dcz"


def load(folder: Path | str, make: Callable[[], Any], **options: Any) -> Any:
    kind: Any = {
        llama: transformers.AutoModelForCausalLM,
        mixtral: transformers.AutoModelForCausalLM,
        bert: transformers.AutoModelForMaskedLM,
        gpt2: transformers.AutoModelForCausalLM,
        t5: transformers.AutoModelForSeq2SeqLM,
    }[make]
    return kind.from_pretrained(folder, **options)


def logits(model: Any) -> torch.Tensor:
    inputs = {"input_ids": torch.arange(8).reshape(1, 8)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def assert_same(model: Any, expected: Any) -> None:
    assert type(model) is type(expected)
    assert not model.training
    a, b = model.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name])
    for name, buffer in expected.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)
    assert torch.equal(logits(model), logits(expected))
    tied = expected.get_input_embeddings().weight is expected.get_output_embeddings().weight
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert all(
        parameter.requires_grad == other.requires_grad
        for parameter, other in zip(model.parameters(), expected.parameters(), strict=True)
    )


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("shards", ["one file", "shards"])
def test_loads_as_before(tmp_path: Path, make: Callable[[], Any], shards: str) -> None:
    folder = made(make, tmp_path, max_shard_size="5GB" if shards == "one file" else "10KB")
    names = {path.name for path in folder.glob("*.dcz")}
    assert (names == {"model.dcz"}) == (shards == "one file")
    assert not list(folder.glob("*.safetensors"))
    model, info = load(folder, make, output_loading_info=True)
    expected, expected_info = load(tmp_path / "plain", make, output_loading_info=True)
    assert_same(model, expected)
    assert info == expected_info


@pytest.mark.parametrize("make", MODELS)
def test_saves_as_an_ordinary_model(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = load(made(make, tmp_path), make)
    model.save_pretrained(tmp_path / "again")
    load(tmp_path / "plain", make).save_pretrained(tmp_path / "expected")
    for path in (tmp_path / "expected").iterdir():
        assert filecmp.cmp(path, tmp_path / "again" / path.name, shallow=False), path.name
    assert not hasattr(model.config, "quantization_config")
    assert "quantization_config" not in model.config.to_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, "bfloat16", "auto"])
@pytest.mark.parametrize("make", [llama, mixtral, t5])
def test_types(tmp_path: Path, make: Callable[[], Any], dtype: Any) -> None:
    folder = made(make, tmp_path)
    assert_same(load(folder, make, dtype=dtype), load(tmp_path / "plain", make, dtype=dtype))


def test_the_type_of_weights_without_one_in_the_configuration(tmp_path: Path) -> None:
    """transformers would look into the first file for it, which it cannot read."""
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    dcz.save_pretrained(tmp_path / "plain", tmp_path / "dcz")
    model = load(tmp_path / "dcz", llama, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert_same(model, load(tmp_path / "plain", llama, dtype="auto"))


def test_one_model_of_another(tmp_path: Path) -> None:
    """The plain model out of one with a head, and one with a new head out of it."""
    folder = made(bert, tmp_path)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    expected = transformers.BertModel.from_pretrained(tmp_path / "plain", add_pooling_layer=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    torch.manual_seed(1)
    kind: Any = transformers.BertForSequenceClassification
    new, info = kind.from_pretrained(folder, output_loading_info=True)
    torch.manual_seed(1)
    expected, expected_info = kind.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert info == expected_info
    assert "classifier.weight" in info["missing_keys"]
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), expected.parameters(), strict=True))


def test_sub_folders_and_sequential_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "plain" / "sub")
    dcz.save_pretrained(tmp_path / "plain", tmp_path / "dcz")
    expected = load(tmp_path / "plain", llama, subfolder="sub")
    assert_same(load(tmp_path / "dcz", llama, subfolder="sub"), expected)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    assert_same(load(tmp_path / "dcz", llama, subfolder="sub"), expected)


def test_a_lossy_recipe(tmp_path: Path) -> None:
    folder = made(llama, tmp_path, recipe="int8")
    model = load(folder, llama)
    expected = dcz.load(folder / "model.dcz")
    assert all(
        torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items() if name in expected
    )
    assert torch.nn.functional.mse_loss(logits(model), logits(load(tmp_path / "plain", llama))) < 1e-2


def test_weights_of_torch_save(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert()
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "plain" / "pytorch_model.bin")
    dcz.save_pretrained(tmp_path / "plain", tmp_path / "dcz")
    assert_same(load(tmp_path / "dcz", bert), load(tmp_path / "plain", bert))


def test_a_model_in_memory_is_saved_as_it_saves_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mixtral().eval()
    done = dcz.save_pretrained(model, tmp_path / "dcz")
    assert [file.path for file in done.dcz_files] == ["model.dcz"]
    assert [path.name for path in tmp_path.iterdir()] == ["dcz"]
    assert_same(load(tmp_path / "dcz", mixtral), model)


def test_training_goes_on(tmp_path: Path) -> None:
    """What was decoded is memory that can be written, each parameter its own."""
    model = load(made(llama, tmp_path), llama)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    pointers = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_device_maps(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", exc_type=ImportError)
    folder = made(llama, tmp_path)
    expected = load(tmp_path / "plain", llama)
    for place in ("cpu", "auto", {"": "cpu"}):
        assert_same(load(folder, llama, device_map=place), expected)
    for options in (
        {"device_map": {"model": "cpu", "lm_head": "disk"}},
        {"device_map": "auto", "max_memory": {"cpu": "5KB"}},
    ):
        with pytest.raises(UsageError, match="cannot stay on the disk"):
            load(folder, llama, offload_folder=str(tmp_path / "offload"), **options)


def test_sentence_transformers(tmp_path: Path) -> None:
    """Which loads its model through transformers, and so from .dcz files, too."""
    library = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    source = minilm()
    dcz.save_pretrained(source, tmp_path / "dcz")
    words = ["a small model runs"]
    a, b = (library.SentenceTransformer(str(place)).encode(words) for place in (source, tmp_path / "dcz"))
    assert (a == b).all()


# -- what is not right


def test_without_dcz_it_fails_loudly(tmp_path: Path) -> None:
    folder = made(llama, tmp_path)
    code = (
        "import sys, transformers\n"
        "model = transformers.AutoModel.from_pretrained(sys.argv[1])\n"
        "print('loaded', model)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Unknown quantization type, got dcz" in done.stderr
    assert done.stdout == ""


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("make", [llama, mixtral])
@pytest.mark.parametrize("lenient", [False, True])
def test_damage_stops_loading_with_an_error_of_dcz(
    tmp_path: Path, make: Callable[[], Any], lenient: bool
) -> None:
    folder = made(make, tmp_path, max_shard_size="10KB")
    shards = sorted(folder.glob("*.dcz"))
    for shard in (shards[0], shards[-1]):
        whole = shard.read_bytes()
        damage(shard, 100)
        with pytest.raises(DigestMismatch):
            load(folder, make, ignore_mismatched_sizes=lenient)
        shard.write_bytes(whole)
    assert_same(load(folder, make), load(tmp_path / "plain", make))


def test_damage_anywhere(tmp_path: Path) -> None:
    """In the middle of merging experts, too. What lies between chunks is in no digest, and changes nothing."""
    folder = made(mixtral, tmp_path)
    expected = load(tmp_path / "plain", mixtral)
    whole = (folder / "model.dcz").read_bytes()
    refused = 0
    for at in range(1009, len(whole), 4001):
        damage(folder / "model.dcz", at)
        try:
            found = load(folder, mixtral)
        except DczError:
            refused += 1
        else:
            assert_same(found, expected)
        (folder / "model.dcz").write_bytes(whole)
    assert refused > 8


def test_files_of_another_version(tmp_path: Path) -> None:
    folder = made(llama, tmp_path)
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    llama().save_pretrained(tmp_path / "other" / "plain")
    dcz.save_pretrained(tmp_path / "other" / "plain", tmp_path / "other" / "dcz")
    (folder / "model.dcz").write_bytes((tmp_path / "other" / "dcz" / "model.dcz").read_bytes())
    with pytest.raises(DigestMismatch, match=r"config\.json asks for"):
        load(folder, llama)
    with pytest.raises(DigestMismatch, match="asks for"):
        dcz.hydrate(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_index_with_fewer_files(tmp_path: Path) -> None:
    folder = made(llama, tmp_path, max_shard_size="10KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    last = max(content["weight_map"].values())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != last}
    index.write_text(json.dumps(content))
    with pytest.raises(DigestMismatch, match="do not belong together"):
        load(folder, llama)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    folder = made(llama, tmp_path)
    (folder / "twin.dcz").write_bytes((folder / "model.dcz").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    shards = config["quantization_config"]["shards"]
    shards["twin.dcz"] = shards["model.dcz"]
    (folder / "config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["more"] = "twin.dcz"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ManifestError, match=r"stands in model\.dcz, too"):
        load(folder, llama)


def test_a_newer_folder(tmp_path: Path) -> None:
    folder = made(llama, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format_version"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedVersion, match="a newer dcz reads it"):
        load(folder, llama)


def test_a_version_that_is_none() -> None:
    with pytest.raises(ManifestError, match="not a whole number"):
        dcz.transformers.DczConfig(format_version="1")  # type: ignore[arg-type]


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    """Without a quantization_config, transformers would take the .dcz files for pickles; load_state_dict is asked first."""
    folder = made(llama, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "plain")
    typeless = transformers.AutoConfig.from_pretrained(tmp_path / "plain")
    typeless.dtype = None
    for given in (config, typeless):
        with pytest.raises(UsageError, match=r"no quantization_config.*DczConfig"):
            transformers.AutoModelForCausalLM.from_pretrained(folder, config=given)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, quantization_config=dcz.transformers.DczConfig()
    )
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    expected = plain.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.parametrize(
    "index",
    [
        b"[]",
        b'{"metadata": {}, "weight_map": []}',
        b'{"metadata": {}, "weight_map": {"a": 7}}',
        b'{"weight_map": {"a": "model.dcz"}}',
        b'{"metadata": 7, "weight_map": {"a": "model.dcz"}}',
        b'{"metadata": {}, "weight_map": {"a": "../model.dcz"}}',
        b'{"weight_map": ' + b"[" * 200_000,
        b'{"metadata": {"\xff": 1}, "weight_map": {"a": "model.dcz"}}',
    ],
    ids=["list", "list of files", "number", "no metadata", "metadata", "elsewhere", "nested", "not UTF-8"],
)
def test_an_index_that_is_none(tmp_path: Path, index: bytes) -> None:
    folder = made(llama, tmp_path)
    (folder / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(SourceError, match="not a valid index of shards"):
        load(folder, llama)


@pytest.mark.parametrize("shards", [7, ["model.dcz"], {"model.dcz": 7}])
def test_digests_that_are_none(tmp_path: Path, shards: Any) -> None:
    folder = made(llama, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["shards"] = shards
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ManifestError, match="not an object of digests"):
        load(folder, llama)


@pytest.mark.parametrize("module", ["transformers", "transformers.core_model_loading", "torch"])
def test_without_what_is_needed(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nimport dcz\ntry: import dcz.transformers\nexcept dcz.MissingDependency as exc: print(exc)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    package = "torch" if module == "torch" else "transformers>=5"
    assert f"the package {package!r}, which is not installed" in done.stdout
    assert "(pip install 'dcz[transformers]')" in done.stdout


def test_what_dcz_cannot_do(tmp_path: Path) -> None:
    made(llama, tmp_path)
    quantizer: Any = DczQuantizer(dcz.transformers.DczConfig(), pre_quantized=True)
    with pytest.raises(UsageError, match="hydrate"):
        quantizer.validate_environment(device_map={"": "disk"})
    with pytest.raises(UsageError, match="has none"):
        transformers.AutoModel.from_pretrained(
            tmp_path / "plain", quantization_config=dcz.transformers.DczConfig()
        )


def test_a_configuration_that_is_quantized_already_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file({"w": torch.ones(4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}'
    )
    dcz.save_pretrained(folder, tmp_path / "dcz")
    assert (tmp_path / "dcz" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


# -- what is taken for granted of transformers


def test_assumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runtime/pretrained.py builds upon. Each failing here would make loading fail, not load something else."""
    folder = made(mixtral, tmp_path, max_shard_size="10KB")
    seen: dict[str, Any] = {"names": 0}
    conversions: Any = importlib.import_module("transformers.conversion_mapping")
    before = DczQuantizer._process_model_before_weight_loading

    def start(self: Any, model: Any, checkpoint_files: Any = None, **rest: Any) -> Any:
        assert isinstance(checkpoint_files, list)
        assert [os.path.basename(path) for path in checkpoint_files] == sorted(
            path.name for path in folder.glob("*.dcz")
        )
        assert all(parameter.is_meta for parameter in model.parameters())
        seen["list"] = checkpoint_files
        return before(self, model, checkpoint_files=checkpoint_files, **rest)

    load_weights = transformers.PreTrainedModel._load_pretrained_model

    def load_pretrained(model: Any, state: Any, checkpoint_files: Any, *rest: Any) -> Any:
        assert checkpoint_files is seen["list"]  # the same list, so that changing it has an effect
        assert len(checkpoint_files) == 1
        assert checkpoint_files[0].endswith(".safetensors")
        seen["outline"] = Path(checkpoint_files[0])
        assert seen["outline"].stat().st_size < 8192
        return load_weights(model, state, checkpoint_files, *rest)

    new_dtype = DczQuantizer.get_new_dtype

    def asked(self: Any, converter: Any, param: Any, dtype: Any) -> Any:
        seen["names"] += 1
        assert param.get_shape()[0] == 0
        found = new_dtype(self, converter, param, dtype)
        kind = transformers.core_model_loading.WeightConverter
        if isinstance(converter, kind):
            assert type(converter.operations[0]).__name__ == "_Decode"
            # A copy: what transformers keeps, to save the model, does not have it.
            assert all(
                type(operation).__name__ != "_Decode"
                for original in conversions.get_checkpoint_conversion_mapping("mixtral")
                if isinstance(original, kind)
                for operation in original.operations
            )
        else:
            assert type(converter.quantization_operation).__name__ == "_Decode"
        return found

    monkeypatch.setattr(DczQuantizer, "_process_model_before_weight_loading", start)
    monkeypatch.setattr(DczQuantizer, "get_new_dtype", asked)
    monkeypatch.setattr(transformers.PreTrainedModel, "_load_pretrained_model", staticmethod(load_pretrained))
    model = load(folder, mixtral)
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert seen["names"] == len(weights)
    assert not seen["outline"].exists()
    assert not hasattr(model, "hf_quantizer")


def test_if_the_hook_were_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(llama, tmp_path)
    monkeypatch.delattr(DczQuantizer, "get_new_dtype")
    with pytest.raises((RuntimeError, DczError)):
        load(folder, llama)
    with pytest.raises(DczError, match="not one that dcz knows"):
        load(folder, llama, ignore_mismatched_sizes=True)

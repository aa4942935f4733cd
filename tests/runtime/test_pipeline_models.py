"""dcz.compress on the models that people have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import transformers
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import dcz
from dcz.converters.recipes import Recipe
from dcz.errors import UsageError

SMALL: dict[str, Any] = {"vocab_size": 60, "max_position_embeddings": 32}
STAGES: list[dict[str, Any]] = [
    {"kind": "prune", "densities": {"kind": "uniform", "density": 0.3}, "steps": 2, "min_elements": 0},
    {"kind": "share", "bits": {"kind": "fixed", "conv": 4, "other": 3}, "min_elements": 0},
]


def recipe(*stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"name": "small", "stages": list(stages) or STAGES})


class Speech(nn.Module):
    """A recurrent network with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12, padding_idx=0)
        self.rnn = nn.GRU(12, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.rnn(self.embed(x))[0])
        return found


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def shared_layer() -> nn.Module:
    layer = nn.Linear(10, 10)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(10, 4))


def half_frozen() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    module[0].requires_grad_(False)
    return module


VECTORS = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(40).reshape(4, 10) % 20
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "images": (images, IMAGES),
    "recurrent, tied": (Speech, TOKENS),
    "a layer used twice": (shared_layer, VECTORS),
    "half frozen": (half_frozen, VECTORS),
    "frozen": (lambda: half_frozen().requires_grad_(False), VECTORS),
    "bf16": (lambda: half_frozen().to(torch.bfloat16), VECTORS.to(torch.bfloat16)),
    "f16": (lambda: half_frozen().to(torch.float16), VECTORS.to(torch.float16)),
    "f64": (lambda: half_frozen().to(torch.float64), VECTORS.to(torch.float64)),
    "data parallel": (lambda: nn.DataParallel(half_frozen()), VECTORS),
    "compiled": (lambda: torch.compile(half_frozen(), backend="eager"), VECTORS),  # type: ignore[dict-item, return-value]
}


def training(x: torch.Tensor) -> Callable[[nn.Module], None]:
    def train(model: nn.Module) -> None:
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not learned:
            return
        optimizer = torch.optim.AdamW(learned, lr=1e-3, eps=1e-4)  # f16 has no 1e-8
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(model(x).float().square().mean())
            optimizer.step()

    return train


def plain(model: nn.Module) -> nn.Module:
    found = model
    while isinstance(inner := getattr(found, "_orig_mod", getattr(found, "module", None)), nn.Module):
        found = inner
    return found


@pytest.mark.parametrize(
    "name",
    # Of what torch.compile does by itself.
    [
        pytest.param(name, marks=pytest.mark.filterwarnings("ignore") if name == "compiled" else ())
        for name in MODELS
    ],
)
def test_the_file_gives_what_the_model_holds(name: str, tmp_path: Path) -> None:
    make, x = MODELS[name]
    torch.manual_seed(0)
    model = make()
    model.eval()
    inner = plain(model)
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    before = {key: value.clone() for key, value in inner.state_dict().items()}
    done = dcz.compress(model, tmp_path / "m.dcz", train=training(x), recipe=recipe())

    assert not any(parametrize.is_parametrized(part) for part in inner.modules())
    assert not any(part.training for part in inner.modules())
    now = dict(inner.named_parameters(remove_duplicate=False))
    assert list(now) == list(parameters)
    for key, parameter in parameters.items():
        assert now[key] is parameter
        assert parameter.dtype == before[key].dtype
        assert parameter.shape == before[key].shape
    state = inner.state_dict()
    assert list(state) == list(before)
    loaded = dcz.load(tmp_path / "m.dcz")
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key
        if key.endswith("weight") and value.ndim > 1:
            assert torch.count_nonzero(value) <= 0.31 * value.numel() + 1
            assert len(value.unique()) <= (17 if value.ndim == 4 else 9)
    other = plain(make())
    dcz.load_into(other, tmp_path / "m.dcz")
    other.eval()
    assert torch.equal(other(x), inner(x))
    assert done.notes == () or name in ("data parallel", "compiled")


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def bert() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, **sizes))


def llama() -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **sizes, tie_word_embeddings=True))


@pytest.mark.parametrize("make", [gpt2, bert, llama])
def test_models_of_transformers_run_from_the_file(make: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make()
    model.eval()

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.autograd.backward(model(input_ids=TOKENS, labels=TOKENS).loss)
        optimizer.step()

    vocabulary = {"[UNK]": 0, "[PAD]": 1, "a": 2}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_word_level(vocabulary), unk_token="[UNK]", pad_token="[PAD]"
    )
    done = dcz.compress(model, tmp_path / "m.dcz", train=train, recipe=recipe(), tokenizer=tokenizer)
    loaded = dcz.load_model(tmp_path / "m.dcz")
    assert type(loaded) is type(model)
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert dcz.load_tokenizer(tmp_path / "m.dcz")("a")["input_ids"] == [2]
    assert done.compression > 1
    again = dcz.compress(model, train=lambda model: None, recipe=recipe(), tokenizer=tokenizer)
    assert (
        again.digest
        == dcz.compress(model, train=lambda model: None, recipe=recipe(), tokenizer=tokenizer).digest
    )


def _word_level(vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_sensitivity_scan_decides(tmp_path: Path) -> None:
    """The last layer decides about the quality alone, so it keeps all, and the others give what is asked for."""
    torch.manual_seed(0)
    model = half_frozen()
    first, last = model[0], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    before = last.weight.detach().clone()

    def evaluate(model: nn.Module) -> float:
        return -float((last.weight.detach() - before).abs().sum())

    stage = {
        "kind": "prune",
        "densities": {"kind": "sensitivity", "density": 0.5, "scanned": [0.5, 0.25, 0.1]},
        "steps": 3,
        "schedule": "geometric",
        "min_elements": 0,
        "epochs": 0,
        "last_epochs": 0,
    }
    done = dcz.compress(model, train=training(VECTORS), evaluate=evaluate, recipe=recipe(stage), tolerance=0)
    assert torch.equal(last.weight, before)
    assert int(torch.count_nonzero(first.weight)) == 112 - 64
    assert [round(step.density, 2) for step in done.steps] == [1.0, 0.76, 0.61, 0.5]
    with pytest.raises(UsageError, match="needs evaluate"):
        dcz.compress(half_frozen(), train=training(VECTORS), recipe=recipe(stage))


def test_wrong_use() -> None:
    normed = nn.Sequential(nn.Linear(4, 4), weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UsageError, match=r"1\.weight has a parametrization already: _WeightNorm"):
        dcz.compress(normed, train=training(VECTORS))
    with pytest.raises(UsageError, match="a tokenizer travels with a model of transformers"):
        dcz.compress(half_frozen(), train=training(VECTORS), tokenizer=object())


def test_distributed_models_are_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/met", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
        with pytest.raises(UsageError, match=r"compress model\.module"):
            dcz.compress(model, train=training(VECTORS))
    finally:
        torch.distributed.destroy_process_group()

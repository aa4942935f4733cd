"""The study of post-training quantization: what its layers see, that files give back what was quantized, and who wins."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.deep_compression.g2p_network import START, G2p, as_letters
from benchmarks.deep_compression.g2p_training import Teacher
from benchmarks.quantization import ptq
from benchmarks.quantization.ptq_methods import METHODS, Method, by_gptq, by_refitting, groups, uniform_layer
from benchmarks.quantization.ptq_networks import (
    Arrays,
    Measure,
    Rows,
    SentenceInputs,
    Subject,
    inputs_of_words,
)
from torch import nn

from dcz.compression.gptq import output_error
from dcz.format import PerGroup
from dcz.format.decoded import decoded


@pytest.fixture
def subject() -> Subject:
    """An embedding and a linear layer whose inputs, mixtures of it, hang together. The error is that of the outputs for the
    inputs as they were; the difference is that of what the whole network gives."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"embedding": nn.Embedding(40, 128), "linear": nn.Linear(128, 32)})
    parameters = dict(network.named_parameters())
    parameters["embedding.weight"].data = torch.randn(40, 8) @ torch.randn(8, 128) + 0.1 * torch.randn(
        40, 128
    )
    weight = parameters["linear.weight"].detach().clone()
    mixing = torch.randn(500, 40)
    inputs = mixing @ parameters["embedding.weight"].detach()
    hessian = (inputs.T @ inputs).double().numpy()

    def score(arrays: Mapping[str, Any]) -> dict[str, float]:
        found = {name: torch.from_numpy(array) for name, array in arrays.items()}
        outputs = mixing @ found["embedding.weight"] @ found["linear.weight"].T + found["linear.bias"]
        wanted = inputs @ weight.T + parameters["linear.bias"].detach()
        return {
            "error": output_error((found["linear.weight"] - weight).numpy(), hessian),
            "difference": float((outputs - wanted).square().sum()),
        }

    def rows(part: nn.Module, names: Collection[str]) -> Rows:
        assert set(names) == {"linear.weight"}
        return {"linear.weight": mixing @ part.get_parameter("embedding.weight").detach()}

    return Subject(
        "small",
        "a small network",
        (
            Measure("error", "squared error of the outputs", 6, more=False),
            Measure("difference", "squared difference of the outputs", 6, more=False),
        ),
        network,
        frozenset({"embedding.weight"}),
        score,
        rows,
        (("linear.weight",),),
    )


# One of each kind of values, with the ways of GPTQ.
CHOSEN = [
    method
    for method in METHODS
    if method.bits in (1, 1.6, 3) or (method.name == "affine, symmetric, tensor" and method.bits == 8)
]


@pytest.mark.parametrize("method", CHOSEN, ids=lambda method: method.name)
def test_every_kind_of_values_comes_back(subject: Subject, method: Method, tmp_path: Path) -> None:
    row = ptq.measured(subject, method, tmp_path)
    assert row["who"] == "dcz"
    assert row["bytes"] == (tmp_path / "small.dcz").stat().st_size
    assert row["files"]["balanced"] == (tmp_path / "balanced.dcz").stat().st_size
    assert row["scores"]["error"] > 0


def test_a_file_that_gives_back_something_else_is_noticed(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "decoded", lambda tensor: -decoded(tensor))
    with pytest.raises(AssertionError, match="did not come back"):
        ptq.measured(subject, CHOSEN[0], tmp_path)


def test_gptq_gets_the_hessians(subject: Subject, tmp_path: Path) -> None:
    """At the same bits and groups, the outputs are nearer than with rounding to nearest."""
    layer = uniform_layer(3, granularity=PerGroup(size=64), calibration="mse", scale_dtype="bf16")
    second = ptq.measured(subject, by_gptq("GPTQ", 3, groups(3, 64), layer), tmp_path)
    (plain,) = (m for m in METHODS if (m.name, m.bits) == ("affine, asymmetric, mse, groups of 64", 3))
    assert second["scores"]["error"] < 0.5 * ptq.measured(subject, plain, tmp_path)["scores"]["error"]


def test_refitting_makes_up_for_what_came_before(subject: Subject, tmp_path: Path) -> None:
    """With the same coarse embeddings, what the network gives is nearer."""
    layer = uniform_layer(4, granularity=PerGroup(size=64), calibration="mse", scale_dtype="bf16")
    plain, fitted = (
        ptq.measured(subject, by("", 4, groups(2, 64), layer), tmp_path)["scores"]["difference"]
        for by in (by_gptq, by_refitting)
    )
    assert fitted < 0.8 * plain


# -- what layers see


def test_inputs_of_words_one_step_at_a_time() -> None:
    torch.manual_seed(0)
    network, words = G2p(width=8), ["abc", "xyz", "compress", "a"]
    found = {
        name: rows.T @ rows for name, rows in inputs_of_words(network, Teacher.ask(network, words)).items()
    }
    wanted = {name: torch.zeros(8, 8) for name in found}

    def add(name: str, row: torch.Tensor) -> None:
        wanted[name] += torch.outer(row, row)

    with torch.no_grad():
        for word in words:
            state = torch.zeros(8)
            parts: list[tuple[str, list[int]]] = [("encoder", as_letters([word])[0].tolist())]
            said = network.spell(as_letters([word]))[0]
            ended = len(said) < 20
            parts.append(("decoder", [START, *said][: len(said) + ended]))
            for name, tokens in parts:
                part = getattr(network, name)
                for token in tokens:
                    add(f"{name}.input.weight", part.embedding.weight[token])
                    add(f"{name}.hidden.weight", state)
                    state = part.stepper()(state[None], torch.tensor([token]))[0]
                    if name == "decoder":
                        add("output.weight", state)
    assert set(found) == {name for name, value in network.named_parameters() if value.ndim == 2} - {
        "encoder.embedding.weight",
        "decoder.embedding.weight",
    }
    for name, sums in wanted.items():
        np.testing.assert_allclose(found[name].detach(), sums.numpy(), rtol=1e-3, atol=1e-4)


class _Texts(nn.Module):
    """Tokens are the lengths of words; one linear layer sees their embeddings, another the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.linear = nn.Linear(6, 3)
        self.pooler = nn.Linear(6, 2)
        self.last = 0

    def tokens(self, texts: list[str], longest: int) -> dict[str, torch.Tensor]:
        rows = [[len(word) for word in text.split()][:longest] for text in texts]
        width = max(len(row) for row in rows)
        return {
            "ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }

    def forward(self, tokens: dict[str, torch.Tensor]) -> None:
        each = self.embedding(tokens["ids"])
        self.linear(each)
        self.last += 1
        self.pooler(each[:, 0])


def test_padding_is_not_an_input() -> None:
    torch.manual_seed(0)
    network = _Texts()
    texts = ["one", "three words here", "a much longer line of seven words"]
    found = {
        name: inputs.T @ inputs
        for name, inputs in SentenceInputs(texts)(network, ["linear.weight", "pooler.weight"]).items()
    }
    rows = network.embedding.weight.detach().numpy()[[len(word) for text in texts for word in text.split()]]
    np.testing.assert_allclose(found["linear.weight"], rows.T @ rows, rtol=1e-5)
    first = network.embedding.weight.detach().numpy()[[len(text.split()[0]) for text in texts]]
    np.testing.assert_allclose(found["pooler.weight"], first.T @ first, rtol=1e-5)


def test_nothing_is_computed_behind_the_last_layer_that_is_watched() -> None:
    network = _Texts()
    texts = ["some words"] * 70
    assert SentenceInputs(texts)(network, ["linear.weight"])["linear.weight"].shape == (140, 6)
    assert network.last == 0
    assert SentenceInputs(texts)(network, ["pooler.weight"])["pooler.weight"].shape == (70, 6)
    assert network.last == 3


class _Encoder(nn.Module):
    """A small BERT without a tokenizer: tokens are the lengths of words."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        shape = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 3}
        config = transformers.BertConfig(vocab_size=20, attn_implementation="eager", **shape)
        self.encoder = transformers.BertModel(config).eval()

    def tokens(self, texts: list[str], longest: int) -> dict[str, torch.Tensor]:
        found = _Texts().tokens(texts, longest)
        return {"input_ids": found["ids"], "attention_mask": found["attention_mask"]}

    def forward(self, tokens: dict[str, torch.Tensor]) -> None:
        self.encoder(**tokens)


def test_layer_by_layer_is_as_from_the_beginning() -> None:
    """While what comes before is changed between the layers."""
    torch.manual_seed(0)
    network = _Encoder()
    texts = [" ".join(["word", "of", "texts"] * (1 + n % 3)) for n in range(40)]
    block = "encoder.encoder.layer"
    inputs = SentenceInputs(texts)
    for name in (
        f"{block}.0.attention.self.query.weight",
        f"{block}.0.output.dense.weight",
        f"{block}.2.attention.output.dense.weight",
        f"{block}.1.intermediate.dense.weight",
        "encoder.pooler.dense.weight",
    ):
        found, wanted = (look(network, [name])[name] for look in (inputs, SentenceInputs(texts)))
        assert torch.equal(found, wanted)
        network.get_parameter(name).data.mul_(1.5)


# -- who wins


def _row(who: str, size: int, agreement: float) -> ptq.Row:
    return {
        "who": who,
        "method": f"of {size}",
        "bits": 4,
        "bytes": size,
        "files": {"small": size, "other": size + 1},
        "scores": {"agreement": agreement},
    }


def _results(rows: list[ptq.Row]) -> ptq.Row:
    measure = vars(Measure("agreement", "mean cosine", 5))
    entry = {"title": "net", "bytes": 400, "measures": [measure], "dense": {"agreement": 1.0}, "rows": rows}
    return {"networks": {"net": entry}, "command": "make it", "versions": {"peer": "1.0"}}


def test_the_claim() -> None:
    ours = [_row("dcz", 50, 0.9), _row("dcz", 90, 0.95)]
    (figure,) = ptq.figures(_results([*ours, _row("peer", 60, 0.9), _row("peer", 95, 0.94)]))
    assert figure.met
    (figure,) = ptq.figures(_results([*ours, _row("peer", 60, 0.91), _row("peer", 40, 0.1)]))
    assert not figure.met
    assert figure.seen == "0 of 2: not peer of 60, 4 bits (by 0.01); peer of 40, 4 bits (by inf)"
    (figure,) = ptq.figures(_results([*ours, _row("dcz", 99, 1.0), _row("peer", 100, 1.01)]))
    assert figure.met, "a peer that is better than the dense network is so by chance"
    (figure,) = ptq.figures(_results(ours))
    assert not figure.met


def test_the_claim_without_data() -> None:
    with_data = next(method for method in METHODS if method.data)
    second = {**_row("dcz", 50, 0.95), "method": with_data.name, "bits": with_data.bits}
    results = _results([_row("dcz", 50, 0.9), second, _row("peer", 60, 0.95)])
    (figure,), (without,) = ptq.figures(results), ptq.figures(results, data=False)
    assert figure.met
    assert not without.met


def test_tables_and_plots(tmp_path: Path) -> None:
    results = _results([_row("dcz", 50, 0.9), _row("peer", 45, 0.95), _row("peer", 80, 0.95)])
    page = ptq.tables(results)
    assert "| peer | of 45 | 4 | 45 | 3.60 | other 46 | 0.95 |" in page
    assert "| 4 | **peer** | of 45, 4 bits | 45 | 0.95 |" in page
    assert "| 4 | dcz | of 50, 4 bits | 50 | 0.9 |" in page
    ptq.draw("net", results["networks"]["net"], tmp_path)
    assert (tmp_path / "net.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_run_adds_what_is_missing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And measures again what is there when it is told to, and nothing of the peers is lost."""
    monkeypatch.setattr(ptq, "SUBJECTS", {"small": lambda: subject})
    path = tmp_path / "ptq.json"

    def run(count: int, *, again: bool) -> list[ptq.Row]:
        monkeypatch.setattr(ptq, "METHODS", CHOSEN[:count])
        ptq.measure(path, ["small"], again=again, only="ours")
        rows: list[ptq.Row] = json.loads(path.read_text(encoding="utf-8"))["networks"]["small"]["rows"]
        return rows

    (first,) = run(1, again=False)
    results = json.loads(path.read_text(encoding="utf-8"))
    results["networks"]["small"]["rows"] = [{**first, "bytes": 1}, {**first, "who": "peer"}]
    path.write_text(json.dumps(results), encoding="utf-8")
    rows = run(2, again=False)
    assert [(row["who"], row["method"]) for row in rows] == [
        ("dcz", CHOSEN[0].name),
        ("peer", CHOSEN[0].name),
        ("dcz", CHOSEN[1].name),
    ]
    assert rows[0]["bytes"] == 1
    assert run(2, again=True)[:2] == [first, {**first, "who": "peer"}]


# -- the libraries, where they are installed


def test_peers_save_what_they_load(subject: Subject, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from benchmarks.quantization.ptq_peers import PEERS

    for peer in PEERS:
        loaded: dict[str, Arrays] = {}
        row = ptq.measured_peer(subject, peer, tmp_path)
        loaded[peer.name] = peer.load(subject, tmp_path / "peer.safetensors")
        assert row["bytes"] <= row["files"]["as saved"]
        assert {key: array.shape for key, array in loaded[peer.name].items()} == {
            key: array.shape for key, array in subject.arrays.items()
        }
        assert np.array_equal(loaded[peer.name]["linear.bias"], subject.arrays["linear.bias"])

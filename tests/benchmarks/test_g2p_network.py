"""The torch module of g2p-en against the package's own numpy code."""

from __future__ import annotations

import ast
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.deep_compression.g2p_network import (
    GRAPHEMES,
    PHONEMES,
    START,
    Score,
    Word,
    as_letters,
    distance,
    folded,
    pretrained,
    score,
    spell,
    split,
)

WORDS = [
    "compression",
    "a",
    "queue",
    "naive",
    "zxqj",
    "it's",
    "deep",
    "pneumonoultramicroscopic",
    "mnemonic",
    "huffman",
]


@pytest.fixture(scope="module")
def source() -> tuple[Path, ast.Module]:
    """The package's folder and its code, unrun: its front end for text (nltk ...) would fetch data from the network."""
    found = importlib.util.find_spec("g2p_en")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an escape in a string of its front end
        return package, ast.parse((package / "g2p.py").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def original(source: tuple[Path, ast.Module]) -> Any:
    """The package's network: its class, run without its other imports, with its weights."""
    package, tree = source
    (network_class,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    names: dict[str, Any] = {"np": np, "os": os, "dirname": str(package)}
    exec(compile(ast.Module([network_class], []), "g2p.py", "exec"), names)  # noqa: S102  it is a pinned package
    network = names["G2p"].__new__(names["G2p"])
    network.g2idx = {grapheme: index for index, grapheme in enumerate(GRAPHEMES)}
    network.idx2p = dict(enumerate(PHONEMES))
    network.load_variables()
    return network


def test_says_what_the_original_says(original: Any) -> None:
    said = [[PHONEMES[index] for index in row] for row in spell(pretrained(), WORDS)]
    assert said == [original.predict(word) for word in WORDS]
    assert said[0] == ["K", "AH0", "M", "P", "R", "EH1", "SH", "AH0", "N"]


def test_scores_of_each_step_are_those_of_the_original(original: Any) -> None:
    word, phonemes = "compress", ["K", "AH0", "M", "P", "R", "EH1", "S"]
    tokens = [START, *map(PHONEMES.index, phonemes)]
    encoder = [getattr(original, f"enc_{name}") for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    decoder = [getattr(original, f"dec_{name}") for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    state = original.gru(original.encode(word), len(word) + 1, *encoder)[:, -1]
    states = original.gru(original.dec_emb[tokens][None], len(tokens), *decoder, h0=state)
    wanted = states @ original.fc_w.T + original.fc_b
    with torch.no_grad():
        seen = pretrained()(as_letters([word]), torch.tensor([tokens])).numpy()
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=2e-4)


def test_the_package_has_the_same_tokens(source: tuple[Path, ast.Module]) -> None:
    lists = {}
    for node in ast.walk(source[1]):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "self.graphemes",
            "self.phonemes",
        ):
            lists[ast.unparse(node.targets[0])] = eval(ast.unparse(node.value))
    assert lists == {"self.graphemes": list(GRAPHEMES), "self.phonemes": list(PHONEMES)}


@pytest.mark.parametrize(
    ("said", "wanted", "edits"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abcdef", "azced", 3), ("flaw", "lawn", 2)],
)
def test_distance(said: str, wanted: str, edits: int) -> None:
    assert distance(said, wanted) == distance(wanted, said) == edits


def test_the_nearest_pronunciation_counts() -> None:
    network = pretrained()
    right = tuple(PHONEMES[index] for index in spell(network, ["deep"])[0])
    words = [Word("deep", (("Z",), right)), Word("compress", (("K", "AH0", "M", "P", "R", "EH1", "S", "T"),))]
    assert score(network, words) == Score(100 / (len(right) + 8), 50.0)


def test_what_is_tested_with_is_not_trained_with() -> None:
    words = [Word(f"w{index}", (("W",),)) for index in range(5000)]
    training, choosing, testing = split(words)
    assert (len(training), len(choosing), len(testing)) == (1000, 2000, 2000)
    assert {word.letters for part in (training, choosing, testing) for word in part} == {
        word.letters for word in words
    }


def test_folding_changes_nothing_but_the_weights() -> None:
    network = pretrained()
    generator = torch.Generator().manual_seed(0)
    importance = {
        "encoder": torch.rand(len(GRAPHEMES), generator=generator) + 0.01,
        "decoder": torch.rand(len(PHONEMES), generator=generator) + 0.01,
    }
    other = folded(network, importance)
    letters = as_letters(["compress", "spelling"])
    phonemes = torch.randint(2, len(PHONEMES), (2, 9), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(other(letters, phonemes), network(letters, phonemes), rtol=0, atol=2e-4)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in other.state_dict().items()} == shapes
    assert torch.count_nonzero(other.encoder.input.weight) == 768 * len(GRAPHEMES)
    assert torch.count_nonzero(other.decoder.embedding.weight) == len(PHONEMES)
    assert not other.encoder.input.bias.any()


def test_folding_drops_tokens_that_never_occur() -> None:
    importance = {"encoder": torch.ones(len(GRAPHEMES)), "decoder": torch.ones(len(PHONEMES))}
    importance["encoder"][GRAPHEMES.index("z")] = 0
    other = folded(pretrained(), importance)
    assert not other.encoder.input.weight[:, GRAPHEMES.index("z")].any()
    assert other.encoder.input.weight[:, GRAPHEMES.index("y")].any()

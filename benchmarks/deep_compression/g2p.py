"""g2p-en compressed: phoneme errors against the size of the file, with and without training.

`python -m benchmarks.deep_compression.g2p` compresses the network that the package g2p-en carries, and lets it learn from
what the dense network says of 113,000 words of CMUdict; 2,000 others choose, and 2,000 more are tested with once.

- *shared, untrained*: shared weights by k-means, 3 to 6 bits;
- *folded, untrained*: the same after the embeddings were multiplied into the input gates (`g2p_network.folded`), which
  changes nothing that the network says and leaves zeros where 41 % of the weights were;
- *pruned and shared*, untrained and trained: folded, pruned to a part of all weights by one threshold, and 5 bits of shared
  weights for the rest; trained after each of the two, as in the paper;
- *rate-aware*: folded, and trained against the size of the file (dcz.compression.training.rate), one line for each
  strength, in nats of divergence for each kilobit.

Sizes are those of complete .dcz files, effort `small`, against the dense parameters in fp32.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

import dcz
from benchmarks.common import markdown
from benchmarks.deep_compression.g2p_network import (
    IGNORED,
    G2p,
    Word,
    dictionary,
    folded,
    pretrained,
    read_words,
    score,
    split,
)
from benchmarks.deep_compression.g2p_training import Teacher, distil, training_words
from benchmarks.deep_compression.plots import Line, Panel, plot
from benchmarks.deep_compression.study import RESULTS, write_file, write_json
from dcz.compression.clustering import assign, kmeans
from dcz.compression.training.masks import array_of, global_densities, prune
from dcz.compression.training.rate import RateAware, UniformGrid, find_biases
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights
from dcz.format.manifest import PerTensor
from dcz.format.tensors import CodebookTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dcz.format.tensors import TensorData

METHODS: Final = (
    "shared, untrained",
    "folded, untrained",
    "pruned and shared, untrained",
    "pruned and shared",
    "rate-aware",
)
COMMAND: Final = "python -m benchmarks.deep_compression.g2p --test words.tsv"
BITS: Final = (5, 4, 6, 3)
BIAS_BITS: Final = 5
# Of all weights, of which 59 % are not zero once the network is folded.
DENSITIES: Final = (0.45, 0.35)
PRUNED_BITS: Final = 5
_FLOOR: Final = 0.01  # of each matrix, that no threshold takes
# Nats of divergence for each kilobit of the file; STEP is the first step of the grids at the first of them.
STRENGTHS: Final = (1.4e-5, 2e-5)
_REFERENCE: Final = 4e-5  # the strength for which the first step was found
RATE: Final = 2.5e-4
STEP: Final = 0.06
STEP_RATE: Final = 1.5e-3
DENSE: Final = 4 * 834_890


def shared_tensors(network: G2p, bits: int) -> dict[str, TensorData]:
    """Every tensor by k-means on what is not zero: matrices with ``bits``, biases with no more than BIAS_BITS."""
    return {
        name: clustered(parameter.detach().numpy(), bits if parameter.ndim == 2 else min(bits, BIAS_BITS))
        for name, parameter in network.named_parameters()
    }


def clustered(array: np.ndarray, bits: int) -> TensorData:
    """Shared weights for what is not zero."""
    mask = array != 0
    if not mask.any():
        return array
    centroids = kmeans(array[mask], 1 << bits).centroids.astype(np.float32)
    codes = np.zeros(array.shape, np.uint8)
    codes[mask] = assign(array[mask], centroids)
    return CodebookTensor(
        "f32", array.shape, bits, codes, centroids[None], PerTensor(), None if mask.all() else mask
    )


def through_a_file(tensors: Mapping[str, TensorData]) -> tuple[int, G2p]:
    """The bytes of the complete file, and the network as it is read from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.dcz")
        size = write_file(path, tensors)
        network = G2p()
        network.load_state_dict(dcz.load(path))
    return size, network.eval()


def importance(network: G2p, teacher: Teacher, batches: int = 100) -> dict[str, torch.Tensor]:
    """For `folded`: roots of the diagonal of Fisher's information, a mean for each token's column over that of the encoder's
    hidden matrix. Zero for tokens that do not occur."""
    plain = folded(network, {"encoder": torch.ones(29), "decoder": torch.ones(74)})
    generator = torch.Generator().manual_seed(0)
    matrices = {
        name: parameter
        for name, parameter in plain.named_parameters()
        if name.endswith(("input.weight", "hidden.weight"))
    }
    squares = {name: torch.zeros_like(parameter) for name, parameter in matrices.items()}
    for _, batch in zip(range(batches), teacher.shuffled(generator), strict=False):
        counts = batch.says != IGNORED
        said = torch.multinomial(batch.scores[counts].softmax(1), 1, generator=generator)[:, 0]
        loss = nn.functional.cross_entropy(plain(batch.letters, batch.before)[counts], said)
        for (name, _), gradient in zip(
            matrices.items(), torch.autograd.grad(loss, list(matrices.values())), strict=True
        ):
            squares[name] += gradient.square()
    level = squares["encoder.hidden.weight"].mean()
    return {
        part: (
            squares[f"{part}.input.weight"].mean(0)[: getattr(plain, part).embedding.num_embeddings] / level
        ).sqrt()
        for part in ("encoder", "decoder")
    }


def pruned_and_shared(
    dense: G2p, teacher: Teacher, density: float, seed: int, epochs: float
) -> dict[str, TensorData]:
    """Folded, pruned and shared, and trained for ``epochs`` after each of the two: the tensors of the file."""
    network = folded(dense, importance(dense, teacher))
    for part in (network.encoder, network.decoder):
        part.embedding.weight.requires_grad_(False)
        part.input.bias.requires_grad_(False)  # all zero
    weights = [weight for weight in find_weights(network) if weight.kind != "embedding"]
    # Folding has made an error of any weight cost the same.
    prune(weights, global_densities(weights, density, floor=_FLOOR))
    if epochs:
        distil(network, teacher, epochs, rate=RATE, seed=seed)
    share(weights, PRUNED_BITS)
    if epochs:
        distil(network, teacher, epochs, rate=RATE, seed=seed)
    matrices = {weight.name: array_of(weight.value()) for weight in weights}
    rest = {
        name: clustered(value.numpy(), BIAS_BITS)
        for name, value in network.state_dict().items()
        if name in dict(dense.named_parameters()) and name not in matrices
    }
    return {**matrices, **rest}


def rate_aware(
    dense: G2p, teacher: Teacher, strength: float, seed: int, epochs: float
) -> dict[str, TensorData]:
    """Folded, and trained against the coded size: the tensors of the file."""
    network = folded(dense, importance(dense, teacher))
    weights = [weight for weight in find_weights(network) if weight.kind != "embedding"]
    embeddings = {
        name: clustered(parameter.detach().numpy(), 4)  # powers of two: of so few kinds that none is rounded
        for name, parameter in network.named_parameters()
        if "embedding" in name
    }
    for part in (network.encoder, network.decoder):
        part.embedding.weight.requires_grad_(False)
    chosen = [*weights, *(bias for bias in find_biases(network) if bool(bias.parameter.any()))]
    zeros = {
        name: parameter.detach().numpy()
        for name, parameter in network.named_parameters()
        if not bool(parameter.any())
    }
    rate = RateAware(network, chosen, refit=16)
    step = STEP * math.sqrt(
        strength / _REFERENCE
    )  # the distortion that a bit is worth grows with the square of the step
    for weight in weights:
        if isinstance(weight.parametrization, UniformGrid):
            # Folding has made an error of any weight cost the same.
            nn.init.constant_(weight.parametrization.log_step, math.log(step))
    distil(
        network,
        teacher,
        epochs,
        rate=RATE,
        seed=seed,
        groups=rate.parameter_groups(RATE, step_lr=STEP_RATE),
        penalty=lambda: rate.bits() * (strength / 1000),
    )
    return {**embeddings, **zeros, **rate.tensors()}


def row(
    method: str, setting: float, seed: int, tensors: Mapping[str, TensorData], sets: Sequence[Sequence[Word]]
) -> dict[str, Any]:
    """One line of the results."""
    size, network = through_a_file(tensors)
    scores = [score(network, words) for words in sets]
    found = {
        "method": method,
        "setting": setting,
        "seed": seed,
        "bytes": size,
        "ratio": round(DENSE / size, 2),
        "scores": [[round(one.phoneme_error, 3), round(one.word_accuracy, 3)] for one in scores],
    }
    print(found, file=sys.stderr, flush=True)
    return found


def draw(results: dict[str, Any], folder: Path) -> None:
    """The plot."""
    lines = []
    for place, method in enumerate(METHODS):
        rows = [one for one in results["rows"] if one["method"] == method]
        settings = {one["setting"] for one in rows}
        lines.append(
            Line(
                method,
                sorted(
                    (
                        statistics.mean(one["ratio"] for one in rows if one["setting"] == setting),
                        statistics.mean(one["scores"][1][0] for one in rows if one["setting"] == setting),
                    )
                    for setting in settings
                ),
                place,
            )
        )
    dense = results["dense"][1][0]
    plot(
        folder / "g2p.svg",
        [
            Panel(
                "g2p-en: phoneme error against size",
                "dense fp32 parameters / complete file",
                "phoneme error on held-out words, %",
                lines,
                level=("dense", dense),
                bottom=dense - 0.5,
                top=dense + 6,
            )
        ],
    )


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    sets = results["sets"]
    header: tuple[str, ...] = ("method", "setting", "seeds", "file, bytes", "ratio")
    header += tuple(f"{what}, {one}" for one in sets for what in ("phoneme error, %", "word accuracy, %"))
    rows = [
        (
            "dense fp32",
            "",
            "",
            f"{DENSE:,}",
            "1x",
            *(f"{value:.2f}" for pair in results["dense"] for value in pair),
        )
    ]
    kinds = sorted({(METHODS.index(one["method"]), one["setting"]) for one in results["rows"]})
    for place, setting in kinds:
        same = [
            one for one in results["rows"] if (one["method"], one["setting"]) == (METHODS[place], setting)
        ]
        scores = np.array([one["scores"] for one in same]).reshape(len(same), -1)
        rows.append(
            (
                METHODS[place],
                f"{setting:g}",
                str(len(same)),
                _spread([one["bytes"] for one in same], ",.0f"),
                _spread([one["ratio"] for one in same], ".1f") + "x",
                *(_spread(column.tolist(), ".2f") for column in scores.T),
            )
        )
    note = (
        "A deviation over the seeds follows the mean. Operating points were chosen on the validation words. The setting is the bits of\n"
        f"shared weights; for what is pruned, to {PRUNED_BITS} bits, the part of all weights that is kept; for what is rate-aware, the\n"
        "strength. What is trained sees each word once: pruned and shared, half of the words after each of the two.\n"
    )
    return f"# g2p-en\n\nMade by `{results['command']}`.\n\n{markdown(header, rows)}\n\n{note}"


def _spread(values: Sequence[float], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "--test", type=Path, help="more words to test with, and not to train with (g2p_network.read_words)"
    )
    parser.add_argument("--cache", type=Path, help="a file for what the dense network says")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument(
        "--only",
        choices=("untrained", "pruned", "rate-aware"),
        help="measure a part, and keep the other results",
    )
    parser.add_argument("--draw", action="store_true", help="only draw the committed results again")
    options = parser.parse_args()
    path = RESULTS / "g2p.json"
    if not options.draw:
        torch.set_num_threads(1)
        measure(options, path)
    results = json.loads(path.read_text(encoding="utf-8"))
    draw(results, RESULTS)
    path.with_suffix(".md").write_text(tables(results), encoding="utf-8")


def measure(options: argparse.Namespace, path: Path) -> None:
    """Add to the results at this path, each line as soon as it is there."""
    dense = pretrained()
    training, choosing, testing = split(dictionary())
    sets, names = [choosing, testing], ["validation", "test"]
    if options.test:
        sets.append(read_words(options.test))
        names.append("other words")
    held_out = [word for words in sets for word in words]
    teacher = Teacher.cached(options.cache, dense, training_words(training, held_out))
    first = {
        "command": COMMAND,
        "sets": names,
        "dense": [
            [round(one.phoneme_error, 3), round(one.word_accuracy, 3)]
            for one in (score(dense, words) for words in sets)
        ],
    }

    def add(found: dict[str, Any]) -> None:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        key = ("method", "setting", "seed")
        kept = [one for one in rows if any(one[name] != found[name] for name in key)]
        path.parent.mkdir(exist_ok=True)
        write_json(path, COMMAND, {**first, "rows": [*kept, found]})

    if options.only in (None, "untrained"):
        tables_first = folded(dense, importance(dense, teacher))
        for bits in BITS:
            add(row("shared, untrained", bits, 0, shared_tensors(dense, bits), sets))
            add(row("folded, untrained", bits, 0, shared_tensors(tables_first, bits), sets))
    if options.only in (None, "pruned"):
        for density in DENSITIES:
            tensors = pruned_and_shared(dense, teacher, density, 0, 0.0)
            add(row("pruned and shared, untrained", density, 0, tensors, sets))
            for seed in options.seeds:
                tensors = pruned_and_shared(dense, teacher, density, seed, options.epochs / 2)
                add(row("pruned and shared", density, seed, tensors, sets))
    if options.only in (None, "rate-aware"):
        for strength in options.strengths:
            for seed in options.seeds:
                tensors = rate_aware(dense, teacher, strength, seed, options.epochs)
                add(row("rate-aware", strength, seed, tensors, sets))


if __name__ == "__main__":
    main()

"""How pruning and weight sharing work together, and where the shared weights begin: the paper's figures 6, 7 and 8.

`python -m benchmarks.deep_compression.coupled --data mnist.npz` trains LeNet-300-100, then

- prunes it, shares its weights, does both, or cuts its matrices to a lower rank by SVD, each to several sizes, and trains
  what is left (figure 6);
- shares the weights of the dense and of the pruned network at 8 to 1 bits (figure 7);
- does that from each initialization, before and after the shared weights are trained (figure 8); and once more with
  g2p-en, which feels it more.

Sizes are those of complete .dcz files, effort `small`. Results and plots go to `results/`; `--draw` only draws them again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from benchmarks.common import markdown
from benchmarks.deep_compression import g2p_network
from benchmarks.deep_compression.g2p_training import Teacher, distil, training_words
from benchmarks.deep_compression.mnist import error_percent, load_mnist, normalized
from benchmarks.deep_compression.networks import LeNet300
from benchmarks.deep_compression.plots import Line, Panel, plot
from benchmarks.deep_compression.study import RESULTS, Point, Subject, curve, measured, points, write_json
from dcz.compression.training.masks import global_densities, prune
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dcz.compression.clustering import Init

COMMAND: Final = "python -m benchmarks.deep_compression.coupled --data mnist.npz"
STUDIES: Final = ("coupled", "initializations-lenet", "initializations-g2p")
DENSITIES: Final = (0.4, 0.2, 0.12, 0.08, 0.05, 0.03, 0.018)
PRUNED: Final = 0.08
BITS: Final = (8, 5, 4, 3, 2, 1)
START_BITS: Final = (2, 3, 4, 5, 6, 8)
COUPLED_BITS: Final = 4
RANKS: Final = (0.5, 0.25, 0.12, 0.06, 0.03)
STARTS: Final[tuple[Init | None, ...]] = (None, "linear", "density", "forgy")


def lenet_300_100(data: Path | None, epochs: int = 8) -> Subject:
    """The network, trained with a fixed seed, and MNIST: all but the validation split to train it with."""
    mnist = load_mnist(data)
    images, labels = normalized(mnist.train[0]), mnist.train[1]

    def train(module: nn.Module, epochs: float, rate: float = 5e-4) -> None:
        optimizer = torch.optim.Adam([value for value in module.parameters() if value.requires_grad], lr=rate)
        batches = math.ceil(len(labels) / 128)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, round(epochs) * batches)
        generator = torch.Generator().manual_seed(0)
        module.train()
        for _ in range(round(epochs)):
            order = torch.randperm(len(labels), generator=generator)
            for start in range(0, len(order), 128):
                part = order[start : start + 128]
                loss: torch.Tensor = nn.functional.cross_entropy(module(images[part]), labels[part])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()

    torch.manual_seed(0)
    network = LeNet300()
    train(network, epochs, rate=1e-3)
    return Subject(
        "LeNet-300-100", "test error, %", network, train, lambda module: error_percent(module, *mnist.test)
    )


def g2p_en(cache: Path | None) -> Subject:
    """The network as the package carries it; it learns from itself, and phoneme errors are counted on held-out words."""
    network = g2p_network.pretrained()
    training, _, testing = g2p_network.split(g2p_network.dictionary())
    teacher = Teacher.cached(cache, network, training_words(training, ()))
    return Subject(
        "g2p-en",
        "phoneme error, %",
        network,
        lambda module, epochs: _distil(module, teacher, epochs),
        lambda module: g2p_network.score(module, testing).phoneme_error,
    )


def _distil(module: nn.Module, teacher: Teacher, epochs: float) -> None:
    distil(module, teacher, epochs, rate=3e-4)


def pruned(subject: Subject, epochs: float) -> Iterator[tuple[float, nn.Module]]:
    """The network at falling densities, each pruned from the last and trained. Not to be changed."""
    module = subject.fresh()
    weights = find_weights(module)
    for density in DENSITIES:
        prune(weights, global_densities(weights, density, floor=0.01, scale="std"))
        subject.train(module, epochs)
        yield density, module


def shared(
    subject: Subject, module: nn.Module, method: str, bits: int, epochs: float, start: Init | None = None
) -> list[Point]:
    """A copy of the module with shared weights, before and after these are trained. ``start``: None for the optimum."""
    module = copy.deepcopy(module)
    _share(module, bits, start)
    before = measured(subject, f"{method}, untrained", bits, module)
    subject.train(module, epochs)
    return [before, measured(subject, method, bits, module)]


def _share(module: nn.Module, bits: int, start: Init | None) -> None:
    if start is None:
        share(find_weights(module), bits)
    else:
        share(find_weights(module), bits, method="lloyd", init=start)


def truncated(subject: Subject, part: float, epochs: float) -> Point:
    """Each matrix as a product of two, of ``part`` of its rank, where these are smaller; trained."""
    module = subject.fresh()
    for name, layer in list(module.named_children()):
        if (
            isinstance(layer, nn.Linear) and layer.out_features > 10
        ):  # not the classes: each needs a direction
            rank = max(1, round(part * min(layer.weight.shape)))
            if rank * sum(layer.weight.shape) < layer.weight.numel():
                setattr(module, name, _factors(layer, rank))
    subject.train(module, epochs)
    return measured(subject, "SVD", part, module)


@torch.no_grad()
def _factors(layer: nn.Linear, rank: int) -> nn.Sequential:
    left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features)
    root = values[:rank].sqrt()
    first.weight.copy_(root[:, None] * right[:rank])
    second.weight.copy_(left[:, :rank] * root)
    second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)


def couple(subject: Subject, epochs: float) -> Iterator[Point]:
    """Figures 6 and 7."""
    yield measured(subject, "dense", 32, subject.fresh())
    for bits in BITS:
        yield from shared(subject, subject.network, "sharing", bits, epochs)
    for density, module in pruned(subject, epochs):
        yield measured(subject, "pruning", density, module)
        yield replace(shared(subject, module, "both", COUPLED_BITS, epochs)[1], setting=density)
        if density == PRUNED:
            for bits in BITS:
                yield from shared(subject, module, "sharing after pruning", bits, epochs)
    for part in RANKS:
        yield truncated(subject, part, epochs)


def initialize(subject: Subject, epochs: float) -> Iterator[Point]:
    """Figure 8."""
    yield measured(subject, "dense", 32, subject.fresh())
    for bits in START_BITS:
        for method in STARTS:
            yield from shared(subject, subject.network, method or "optimal", bits, epochs, method)


def draw(results: dict[str, Any], folder: Path) -> None:
    """The plots, from the results alone."""
    coupled = results["coupled"]
    rows, dense, name = points(coupled["points"]), coupled["dense"], coupled["network"]
    methods = ("both", "pruning", "sharing", "SVD")
    names = {
        "both": f"pruning and sharing ({COUPLED_BITS} bits)",
        "pruning": "pruning alone",
        "sharing": "sharing alone",
        "SVD": "SVD",
    }
    level = ("dense", rows[0].error)
    plot(
        folder / "coupled.svg",
        [
            Panel(
                f"{name}: error against size",
                "complete file, % of the dense fp32 parameters",
                coupled["measure"],
                [
                    Line(names[method], curve(rows, method, dense), place)
                    for place, method in enumerate(methods)
                ],
                x_scale="log",
                y_scale="log",
                level=level,
            ),
            Panel(
                f"{name}: error against bits",
                "bits of a shared weight",
                coupled["measure"],
                [
                    Line(f"{label}, {when}", by_bits(rows, method + suffix), place, dashed=bool(suffix))
                    for place, (method, label) in enumerate(
                        (
                            ("sharing", "all weights"),
                            ("sharing after pruning", f"{PRUNED:.0%} of the weights"),
                        )
                    )
                    for suffix, when in (("", "trained"), (", untrained", "untrained"))
                ],
                y_scale="log",
                level=level,
                ticks=sorted(BITS),
            ),
        ],
    )
    panels = []
    for study in (study for name, study in results.items() if name != "coupled"):
        rows = points(study["points"])
        for suffix, when in ((", untrained", "before"), ("", "after")):
            panels.append(
                Panel(
                    f"{study['network']}: {when} training",
                    "bits of a shared weight",
                    study["measure"],
                    [
                        Line(method or "optimal", by_bits(rows, (method or "optimal") + suffix), place)
                        for place, method in enumerate(STARTS)
                    ],
                    y_scale="log",
                    level=("dense", rows[0].error),
                    ticks=sorted(START_BITS),
                )
            )
    plot(folder / "initializations.svg", panels)


def by_bits(rows: Sequence[Point], method: str) -> list[tuple[float, float]]:
    """What to plot: bits, and the error."""
    return sorted((row.setting, row.error) for row in rows if row.method == method)


def tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    parts = [f"# The coupled study\n\nMade by `{results['coupled']['command']}`.\n"]
    for study in results.values():
        parts.append(f"## {study['network']}, {study['dense']:,} bytes in fp32\n")
        rows = [
            (row.method, f"{row.setting:g}", f"{row.bytes:,}", f"{row.ratio:.1f}x", f"{row.error:.2f}")
            for row in points(study["points"])
        ]
        parts.append(
            markdown(("method", "density, bits or rank", "file", "ratio", study["measure"]), rows) + "\n"
        )
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data", type=Path, help="mnist.npz (default: fetched from the Hub)")
    parser.add_argument("--epochs", type=int, default=1, help="of training after each step, LeNet-300-100")
    parser.add_argument("--g2p-epochs", type=float, default=0.1, help="the same for g2p-en")
    parser.add_argument("--cache", type=Path, help="a file for what the dense g2p-en says")
    parser.add_argument("--only", choices=STUDIES, nargs="+", default=STUDIES, help="some of the studies")
    parser.add_argument("--draw", action="store_true", help="only draw the committed results again")
    options = parser.parse_args()
    if not options.draw:
        torch.set_num_threads(1)
        subject = None
        for name in options.only:
            if name == "initializations-g2p":
                subject, epochs = g2p_en(options.cache), options.g2p_epochs
            else:
                subject = subject or lenet_300_100(options.data)
                epochs = options.epochs
            study = couple if name == "coupled" else initialize
            head = {
                "network": subject.name,
                "measure": subject.what,
                "dense": subject.bytes,
                "epochs": epochs,
            }
            rows: list[Point] = []
            RESULTS.mkdir(exist_ok=True)
            for point in study(subject, epochs):
                rows.append(point)
                print(point, file=sys.stderr, flush=True)
                write_json(RESULTS / f"{name}.json", COMMAND, {**head, "points": rows})
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in STUDIES
        if (path := RESULTS / f"{name}.json").exists()
    }
    draw(found, RESULTS)
    (RESULTS / "coupled.md").write_text(tables(found), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Uniform bits against mixed precision in files of the same size, and the integer programme against HAQ's agent within the same latency.

    python -m benchmarks.quantization.latency --network g2p-en -o benchmarks/quantization/results/latency-g2p-en.json
    python -m benchmarks.quantization.mixed_precision --networks g2p-en lenet-5 --data mnist.npz

*Size*: all weights in the same number of bits make a file; that file's bytes are the budget for bits by weight, chosen by Hessian traces and
by measured divergence. *Latency*: the budget lies between the quickest choice and 8 bits, for each batch size and bandwidth of the table; what the
agent is rewarded with is the divergence that a whole network has. Choices are made on one set, and the score is that on another.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import dcz
from benchmarks.common import markdown, one_core
from benchmarks.quantization.latency import BANDWIDTHS, search_options
from benchmarks.quantization.subjects import SUBJECTS, Subject
from dcz.compression.search.agent import Settings, layer_features, search
from dcz.compression.search.costs import Choice, Costs, Option, stored, total
from dcz.compression.search.integer_programme import least_loss
from dcz.compression.search.latency import LatencyModel, LatencyTable, load_table
from dcz.compression.search.sensitivity import choices, hessian_traces, measured_loss, second_order_loss
from dcz.compression.torch_tensors import check_tensor, to_numpy, to_torch
from dcz.compression.training.weights import find_weights
from dcz.converters.bit_allocation import recipe_of

__all__ = ["Study", "tables"]

RESULTS: Final = Path(__file__).with_name("results")
COMMAND: Final = "python -m benchmarks.quantization.mixed_precision"
UNIFORM_BITS: Final = (3, 4, 5, 6)
PROBES: Final = 4
WITHIN: Final = (0.3,)
"""Where between the quickest choice and 8 bits a budget of latency lies."""


class Study:
    """One network with the costs of its choices, and whole networks by what was chosen."""

    def __init__(self, subject: Subject, *, probes: int = PROBES) -> None:
        self.subject = subject
        self.weights = find_weights(subject.network)
        self.options, self.by_name = search_options(self.weights)
        self._known: dict[tuple[str, ...], float] = {}
        self._stored: dict[tuple[str, str], torch.Tensor] = {}
        self.seconds: dict[str, float] = {}
        evaluate = functools.partial(subject.closeness, subject.network)
        self.measured = self._timed(
            "measured", lambda: choices(self.weights, self.options, measured_loss(evaluate))
        )

        def second_order() -> Costs:
            loss = functools.partial(subject.loss, subject.network)
            traces = hessian_traces(self.weights, loss, subject.batches, probes=probes)
            return choices(self.weights, self.options, second_order_loss(traces))

        self.traced = self._timed("trace", second_order)

    def _timed(self, what: str, action: Callable[[], Costs]) -> Costs:
        start = time.process_time()
        found = action()
        self.seconds[what] = round(time.process_time() - start, 1)
        return found

    def uniform(self, bits: int) -> dict[str, Choice]:
        """The same bits for all weights."""
        return {
            name: next(choice for choice in row if choice.bits == bits) for name, row in self.measured.items()
        }

    def apply(self, chosen: Mapping[str, Choice]) -> nn.Module:
        """The network with its weights as they would come back from a file."""
        for weight in self.weights:
            key = weight.name, chosen[weight.name].name
            if key not in self._stored:
                self._stored[key] = self._decoded(weight.name, key[1])
        network: nn.Module = self.subject.fresh()
        for weight in find_weights(network):
            weight.parameter.data = self._stored[weight.name, chosen[weight.name].name]
        return network

    def _decoded(self, name: str, option_name: str) -> torch.Tensor:
        option: Option = next(option for option in self.options[name] if option.name == option_name)
        value = next(weight for weight in self.weights if weight.name == name).value()
        dtype = check_tensor(name, value)
        return to_torch(stored(to_numpy(value, dtype), option).values, dtype)

    def quality(self, chosen: Mapping[str, Choice]) -> float:
        """What the agent is rewarded with; remembered."""
        key = tuple(choice.name for choice in chosen.values())
        if key not in self._known:
            self._known[key] = self.subject.closeness(self.apply(chosen))
        return self._known[key]

    def file_bytes(self, chosen: Mapping[str, Choice]) -> int:
        """Of the complete file."""
        recipe = recipe_of(self.weights, chosen, by_name=self.by_name, name="mixed")
        with tempfile.TemporaryDirectory() as folder:
            return dcz.convert(self.subject.network, Path(folder) / "model.dcz", recipe=recipe).file_bytes

    def within_file(self, costs: Costs, size: int) -> dict[str, Choice]:
        """The least loss in a complete file of this size."""
        beside = 0
        while True:
            chosen = least_loss(costs, size=size - beside)
            over = self.file_bytes(chosen) - size
            if over <= 0:
                return chosen
            beside += over

    def row(self, chosen: Mapping[str, Choice]) -> dict[str, Any]:
        """What a choice is worth on data that nothing was chosen by."""
        error, divergence = self.subject.score(self.apply(chosen))
        return {
            "file_bytes": self.file_bytes(chosen),
            "error": round(error, 3),
            "divergence": round(divergence, 6),
            "bits": {name: choice.bits for name, choice in chosen.items()},
        }

    def by_size(self, bits: int) -> dict[str, Any]:
        """All weights in so many bits, and the two searches in a file of that size."""
        uniform = self.uniform(bits)
        size = self.file_bytes(uniform)
        return {
            "uniform bits": bits,
            "uniform": self.row(uniform),
            "trace": self.row(self.within_file(self.traced, size)),
            "measured": self.row(self.within_file(self.measured, size)),
        }

    def by_latency(self, model: LatencyModel, within: float, settings: Settings) -> dict[str, Any]:
        """The integer programme and the agent within the same seconds for the weights."""
        costs = model.costs(self.measured)
        quickest = sum(min(choice.seconds for choice in row) for row in costs.values())
        eight = sum(next(choice for choice in row if choice.bits == 8).seconds for row in costs.values())
        seconds = quickest + within * (eight - quickest)
        programme = least_loss(costs, seconds=seconds)
        agent = search(costs, layer_features(self.weights), self.quality, seconds=seconds, settings=settings)
        found = {"programme": programme, "agent": agent.best.choices}
        beside = model.beside(0)
        return {
            "batch": model.batch,
            "bandwidth": model.bandwidth,
            "precision": model.precision,
            "budget": seconds + beside,
            "networks judged": len({tuple(c.name for c in one.choices.values()) for one in agent.episodes}),
            **{
                who: {
                    **self.row(chosen),
                    "seconds": total(chosen).seconds + beside,
                    "chosen by": -self.quality(chosen),
                }
                for who, chosen in found.items()
            },
        }


def run(subject: Subject, table: LatencyTable | None, episodes: int) -> dict[str, Any]:
    """All rows of one network."""
    study = Study(subject)
    error, _ = subject.score(subject.network)
    result: dict[str, Any] = {
        "dense error": round(error, 3),
        "dense bytes": sum(4 * value.numel() for value in subject.network.parameters()),
        "cpu seconds": study.seconds,
        "size": [study.by_size(bits) for bits in UNIFORM_BITS],
        "latency": [],
    }
    print(size_table(subject.name, result), flush=True)
    if table is not None:
        settings = Settings(episodes=episodes)
        slow, fast = BANDWIDTHS[0], BANDWIDTHS[-1]
        places = [(table.batches[0], slow), (table.batches[0], fast), (table.batches[-1], fast)]
        for batch, speed in places:
            for precision in ("f32", "int8") if batch > 1 else ("f32",):
                model = LatencyModel(table, bandwidth=speed, batch=batch, precision=precision)
                result["latency"] += [study.by_latency(model, within, settings) for within in WITHIN]
        print(latency_table(subject.name, result), flush=True)
    return result


def size_table(name: str, result: Mapping[str, Any]) -> str:
    """Error and divergence at each size."""
    rows = [
        (
            str(row["uniform bits"]),
            f"{row['uniform']['file_bytes']:,}",
            *(
                f"{row[way]['error']:.2f} / {row[way]['divergence']:.4f}"
                for way in ("uniform", "trace", "measured")
            ),
        )
        for row in result["size"]
    ]
    header = (
        "bits",
        "bytes, at most",
        "uniform: error, % / divergence, nats",
        "mixed, by traces",
        "mixed, by measuring",
    )
    return f"{name}: dense {result['dense error']:.2f} %, {result['dense bytes']:,} bytes\n\n{markdown(header, rows)}\n"


def latency_table(name: str, result: Mapping[str, Any]) -> str:
    """The two searches at each latency."""
    rows = [
        (
            str(row["batch"]),
            f"{row['bandwidth'] / 1e6:g} MB/s",
            row["precision"],
            f"{1e3 * row['budget']:.2f}",
            *(f"{row[who]['error']:.2f} / {row[who]['divergence']:.4f}" for who in ("programme", "agent")),
            *(f"{row[who]['chosen by']:.4f}" for who in ("programme", "agent")),
            str(row["networks judged"]),
        )
        for row in result["latency"]
    ]
    header = (
        "batch",
        "bandwidth",
        "computed in",
        "latency, ms, at most",
        "programme: error, % / divergence",
        "agent",
        "programme: divergence it was chosen by",
        "agent's",
        "networks the agent tried",
    )
    return f"{name}\n\n{markdown(header, rows)}\n"


def tables(results: Mapping[str, Any]) -> str:
    """The committed page."""
    parts = [
        "# Mixed precision",
        f"`{results['command']}`",
        (
            "Files of at most the bytes that uniform bits take; errors on data that nothing was chosen by (images, phonemes), and the divergence "
            "from the dense network's outputs there."
        ),
        *(size_table(name, result) for name, result in results["networks"].items()),
        "## Latency",
        (
            "The integer programme, by the measured losses of single weights, and the agent of HAQ, by whole networks, with the same latency tables "
            "(`latency-*.json`) and budgets."
        ),
        *(latency_table(name, result) for name, result in results["networks"].items() if result["latency"]),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Divergence against file size."""
    from benchmarks.deep_compression.plots import Line, Panel, plot

    panels = [
        Panel(
            name,
            "file, per cent of fp32",
            "divergence from the dense network, nats",
            [
                Line(
                    way,
                    sorted(
                        (
                            100 * row[way]["file_bytes"] / result["dense bytes"],
                            max(1e-7, row[way]["divergence"]),
                        )
                        for row in result["size"]
                    ),
                    color,
                )
                for color, way in enumerate(("uniform", "trace", "measured"))
            ],
            y_scale="log",
        )
        for name, result in results["networks"].items()
    ]
    plot(path, panels)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=["g2p-en"])
    parser.add_argument("--data", type=Path, help="MNIST as .npz, for lenet-5; fetched if it is not given")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dcz-quantization")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument(
        "--draw", action="store_true", help="only make page and plot of the committed results again"
    )
    given = parser.parse_args()
    path = RESULTS / "mixed_precision.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"networks": {}}
    if not given.draw:
        one_core()
        given.work.mkdir(parents=True, exist_ok=True)
        for name in given.networks:
            kept = RESULTS / f"latency-{name}.json"
            table = load_table(kept) if kept.exists() else None
            results["networks"][name] = run(SUBJECTS[name](given.data, given.work), table, given.episodes)
            results["command"] = f"{COMMAND} --networks {' '.join(results['networks'])}"
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(tables(results), encoding="utf-8")
    draw(results, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()

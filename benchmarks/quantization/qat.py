"""Quantization-aware training of LeNet-5 and a small ResNet on full MNIST: error against the bytes of complete files.

    python -m benchmarks.quantization.qat --data mnist.npz

Without --data, MNIST is fetched through the Hub. A network is trained in fp32; from there it is trained on for as many epochs with
quantized weights, and, to compare with, without. The epoch is chosen on the validation split, the last 10,000
images of the training set, on which nothing is trained; the test error of that epoch's file is reported, whatever it is.
What is trained is kept in --work, and a run that is there already is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dcz
from benchmarks.common import markdown
from benchmarks.deep_compression.mnist import Lessons, Mnist, error_percent, lessons, load_mnist
from benchmarks.deep_compression.plots import Line, Panel, plot
from benchmarks.quantization.qat_networks import NETWORKS, Network, epochs_of
from dcz.compression.quantizers import Scheme
from dcz.compression.training.activation_metadata import (
    ACTIVATIONS,
    describe_activations,
    restore_activations,
)
from dcz.compression.training.extreme import ExtremeMethod, use_few_values
from dcz.compression.training.learned_step import learn_activation_steps, learn_steps
from dcz.compression.training.weights import Weight, find_weights
from dcz.format.manifest import Granularity, PerChannel, PerTensor

RESULTS = Path(__file__).with_name("results")
FIRST_EPOCHS = 4
EPOCHS = 3
NONE = "[]"
"""The description of no activations."""
LEAST_ROW = 16
"""Outputs of fewer weights share a scale."""

Quantize = Callable[[nn.Module], object]


def by_channel(network: nn.Module, quantize: Callable[[list[Weight], Granularity], object]) -> None:
    """A scale for each output of a layer, where it has enough weights."""
    weights = find_weights(network)
    long = [weight for weight in weights if weight.parameter[0].numel() >= LEAST_ROW]
    quantize(long, PerChannel(axis=0))
    quantize([weight for weight in weights if weight not in long], PerTensor())


def learned(bits: int, scheme: Scheme = "symmetric-full", *, activations: int | None = None) -> Quantize:
    """Learned steps; of ``activations``, too, with so many bits, but for the images, which have eight."""

    def quantize(network: nn.Module) -> None:
        by_channel(
            network,
            lambda some, granularity: learn_steps(
                some, bits, scheme=scheme, granularity=granularity, scale_dtype="bf16"
            ),
        )
        if activations is not None:
            first = find_weights(network)[0].owners[0][0]
            learn_activation_steps(network, 8, layers=lambda _, layer: layer is first)
            owners = [weight.owners[0][0] for weight in find_weights(network)[1:]]
            learn_activation_steps(network, activations, layers=lambda _, layer: layer in owners)

    return quantize


def few(method: ExtremeMethod) -> Quantize:
    return lambda network: by_channel(
        network,
        lambda some, granularity: use_few_values(some, method, granularity=granularity, scale_dtype="bf16"),
    )


# What may be lost, in points, and how the network is quantized.
METHODS: dict[str, tuple[float, Quantize | None]] = {
    "fp32": (0.0, None),
    "4 bits": (0.1, learned(4)),
    "3 bits": (0.2, learned(3)),
    "2 bits": (0.4, learned(2)),
    "ternary": (0.5, few("twn")),
    "ternary, learned step": (0.5, learned(2, "symmetric")),
    "binary": (1.0, few("binary")),
    "4 bits, activations 4": (0.1, learned(4, activations=4)),
}


def tensors_of(network: nn.Module, *, exact: bool) -> dict[str, torch.Tensor]:
    """What the network computes with; unless ``exact``, biases, norms and statistics with the values of bf16."""
    values = {weight.name: weight.value() for weight in find_weights(network)}
    rest = {
        name: value
        for name, value in network.state_dict().items()
        if name not in values and "parametrizations" not in name and "quantizer" not in name
    }
    if not exact:
        rest = {
            name: value.bfloat16().to(value.dtype) if value.is_floating_point() else value
            for name, value in rest.items()
        }
    return {name: value.detach().clone() for name, value in (rest | values).items()}


def loaded(make: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor], activations: str) -> nn.Module:
    """A new network with these weights, whose activations are quantized as they were."""
    network = make()
    network.load_state_dict(tensors)
    restore_activations(network, activations)
    return network.eval()


def file_name(method: str) -> str:
    return method.replace(",", "").replace(" ", "-")


def first_network(settings: Network, data: Mnist, taught: Lessons, path: Path, epochs: int) -> nn.Module:
    """The network in fp32 from which all others begin."""
    torch.manual_seed(0)
    network = settings.make()
    if not path.exists():
        generator = torch.Generator().manual_seed(0)
        for epoch in epochs_of(network, taught, generator, lr=settings.lr, epochs=epochs):
            print(f"first, epoch {epoch}: {error_percent(network, *data.validation):.2f} %", flush=True)
        dcz.save(network.state_dict(), path)
    network.load_state_dict(dcz.load(path))
    return network


def run(
    settings: Network, method: str, first: nn.Module, data: Mnist, taught: Lessons, folder: Path, epochs: int
) -> dict[str, Any]:
    """One method: the validation error after each epoch, and the file of the best one, the latest of equal ones."""
    kept = folder / f"{file_name(method)}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    _, quantize = METHODS[method]
    network = copy.deepcopy(first)
    if quantize is not None:
        quantize(network)
    generator = torch.Generator().manual_seed(1)
    errors: list[float] = []
    path = kept.with_suffix(".dcz")
    for epoch in epochs_of(network, taught, generator, lr=settings.quantized_lr, epochs=epochs):
        tensors, activations = tensors_of(network, exact=quantize is None), describe_activations(network)
        errors.append(error_percent(loaded(settings.make, tensors, activations), *data.validation))
        print(f"{method}, epoch {epoch}: {errors[-1]:.2f} %", flush=True)
        if errors[-1] <= min(errors):
            metadata = {ACTIVATIONS: activations} if activations != NONE else {}
            dcz.save(tensors, path, effort="small", threads=1, metadata=metadata)
    found = {"validation_errors": errors, "epoch": len(errors) - errors[::-1].index(min(errors))}
    kept.write_text(json.dumps(found) + "\n")
    return found


def row(
    settings: Network, method: str, found: Mapping[str, Any], data: Mnist, folder: Path
) -> dict[str, Any]:
    """The file of a run, read back, and its test error."""
    path = folder / f"{file_name(method)}.dcz"
    with dcz.open(path) as file:
        activations = file.metadata().get(ACTIVATIONS, NONE)
    network = loaded(settings.make, dcz.load(path), activations)
    parameters = sum(parameter.numel() for parameter in settings.make().parameters())
    size = path.stat().st_size
    return {
        "method": method,
        "epoch": found["epoch"],
        "validation_error": round(min(found["validation_errors"]), 3),
        "test_error": round(error_percent(network, *data.test), 3),
        "bytes": size,
        "bits": round(8 * size / parameters, 3),
        "ratio": round(4 * parameters / size, 2),
    }


def table(results: Mapping[str, Any]) -> str:
    rows = []
    for network, found in results["networks"].items():
        dense = next(one["test_error"] for one in found if one["method"] == "fp32")
        for one in found:
            allowed = METHODS[one["method"]][0]
            lost = one["test_error"] - dense
            rows.append(
                (
                    network,
                    one["method"],
                    f"{one['test_error']:.2f} %",
                    "" if one["method"] == "fp32" else f"{lost:+.2f}",
                    "" if one["method"] == "fp32" else f"{allowed:.1f}",
                    "" if one["method"] == "fp32" else "yes" if lost <= allowed + 1e-9 else "NO",
                    f"{one['validation_error']:.2f} %",
                    f"{one['epoch']}",
                    f"{one['bytes']:,}",
                    f"{one['bits']:.2f}",
                    f"{one['ratio']:.1f}x",
                )
            )
    header = (
        "network",
        "weights",
        "test error",
        "points lost",
        "allowed",
        "met",
        "validation error",
        "epoch",
        "bytes of the file",
        "bits a parameter",
        "ratio",
    )
    return markdown(header, rows)


_PAGE = """# Quantization-aware training on MNIST

LeNet-5 (Caffe's, 431,080 parameters) and a ResNet of eight layers with BatchNorm (77,562). Complete files, everything
counted. Made by

    python -m benchmarks.quantization.qat --data mnist.npz

Each network is trained in fp32 for {first} epochs; from there for {epochs} more, with quantized weights and, as the row `fp32`, without. Every
weight is quantized, those of the first and the last layer too, with a scale for each output: 4, 3 and 2 bits with learned
steps (LSQ), `ternary` as ternary weight networks and, in the row below it, as learned steps of which only -1, 0 and 1 are used, `binary`
as XNOR-Net. In the last row what goes into each layer is quantized with learned steps, too; the images have 8 bits. Biases,
norms and their statistics have the values of bf16. Half of the images are slightly distorted. The epoch is chosen on the last 10,000 images of the training set, on
which nothing is trained; the test error of that epoch's file is reported, whatever it is. One seed: the test error of two
equally good networks differs by about 0.05 points.

{table}
"""


def page(results: Mapping[str, Any]) -> str:
    """What is committed beside the results."""
    return _PAGE.format(table=table(results), first=results["first_epochs"], epochs=results["epochs"])


def write(results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "qat.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "qat.md").write_text(page(results))
    panels = [
        Panel(
            title=network,
            x="bytes of the file, % of fp32 parameters",
            y="test error, %",
            lines=[
                Line(
                    "quantized while trained",
                    sorted(
                        (100 / one["ratio"], one["test_error"]) for one in found if one["method"] != "fp32"
                    ),
                    0,
                )
            ],
            level=("fp32", next(one["test_error"] for one in found if one["method"] == "fp32")),
            bottom=0,
        )
        for network, found in results["networks"].items()
    ]
    plot(RESULTS / "qat.svg", panels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an .npz of MNIST; without it, fetched through the Hub")
    parser.add_argument("--network", choices=(*NETWORKS, "both"), default="both")
    parser.add_argument("--work", type=Path, default=Path("build/qat"), help="where runs are kept")
    parser.add_argument(
        "--runs-only", action="store_true", help="make the runs, and leave the table as it is"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_mnist(options.data)
    results: dict[str, Any] = {"first_epochs": FIRST_EPOCHS, "epochs": EPOCHS, "networks": {}}
    for name in NETWORKS if options.network == "both" else [options.network]:
        settings, folder = NETWORKS[name], options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        taught = lessons(data, options.work / "lessons.npy")
        first = first_network(settings, data, taught, folder / "first.dcz", FIRST_EPOCHS)
        runs = {method: run(settings, method, first, data, taught, folder, EPOCHS) for method in METHODS}
        if not options.runs_only:
            results["networks"][name] = [
                row(settings, method, found, data, folder) for method, found in runs.items()
            ]
    if not options.runs_only:
        write(results)
        print(table(results))


if __name__ == "__main__":
    main()

"""A depthwise-separable BatchNorm network on MNIST: integer-only inference, and 4-, 3- and 2-bit weights after training.

    python -m benchmarks.quantization.integer --data mnist.npz

Without --data, MNIST is fetched through the Hub. The network is trained on the first 50,000 images. Nothing is trained
after that. Of the post-training methods, which one is best is chosen on the validation split, the last 10,000 images of
the training set; the error on the test set is reported for all. Sizes are those of complete files. What is trained is
kept in --work.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dcz
from benchmarks.common import markdown
from benchmarks.deep_compression.mnist import Mnist, load_mnist, normalized
from benchmarks.quantization.depthwise import Depthwise, arrange, train
from dcz.compression.integer.conversion import integer_network
from dcz.compression.networks.bias_correction import correct_biases_without_data
from dcz.compression.networks.equalization import absorb_high_biases, equalize
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.networks.graph import Network, trace
from dcz.compression.networks.quantization import quantize_network
from dcz.compression.zero_shot import distill, noise
from dcz.format import Writer
from dcz.format.tensors import TensorData
from dcz.runtime.integer import load_integer_network, save_integer_network

RESULTS = Path(__file__).with_name("results")
EPOCHS = 8
CALIBRATION = 512
BITS = (4, 3, 2)
WANTED_INTEGER = 0.5
WANTED_RECOVERY = 0.8
BASELINE = "k-means"

Tensors = dict[str, TensorData]
Method = Callable[[nn.Module, int, "Calibration"], tuple[Network, Tensors]]


@dataclass(frozen=True)
class Calibration:
    """Inputs by where they come from, float32 (n, 1, height, width)."""

    data: torch.Tensor
    distilled: torch.Tensor
    natural: torch.Tensor
    white: torch.Tensor


def calibration(module: nn.Module, data: Mnist, *, count: int = CALIBRATION, steps: int = 200) -> Calibration:
    real = normalized(data.train[0][:count])
    shape = tuple(real.shape[1:])
    # Of the inputs, only what preprocessing says is known: mean 0, deviation 1, and what black and white become.
    low, high = (float(normalized(torch.tensor([[[value]]], dtype=torch.uint8))) for value in (0, 255))
    return Calibration(
        real,
        distill(module, shape, count=min(count, 128), steps=steps).inputs,
        noise(shape, count=count, spectrum="natural", low=low, high=high),
        noise(shape, count=count, low=low, high=high),
    )


def second_order(source: str, *, levels: str = "codebook", **options: Any) -> Method:
    """Equalization, second-order rounding, bias correction."""

    def method(module: nn.Module, bits: int, inputs: Calibration) -> tuple[Network, Tensors]:
        network = fold_batch_norms(module)
        batches = getattr(inputs, source).split(256)
        return network, quantize_network(network, batches, bits=bits, levels=levels, **options)  # type: ignore[arg-type]

    return method


def without_data(module: nn.Module, bits: int, inputs: Calibration) -> tuple[Network, Tensors]:
    """Equalization, high biases absorbed, k-means, biases corrected by what BatchNorm knew."""
    network = fold_batch_norms(module)
    equalize(network)
    absorb_high_biases(network)
    original = trace(copy.deepcopy(network.module))
    original.moments.update(network.moments)
    # The batches are of no effect: nothing but the shape of the inputs is taken from them.
    tensors = quantize_network(
        network,
        [inputs.white[:2]],
        bits=bits,
        levels="codebook",
        rounding="nearest",
        equalize=False,
        correct=False,
    )
    correct_biases_without_data(network, original, input_mean=torch.zeros(1))
    state = network.module.state_dict()
    return network, tensors | {name: state[name].numpy() for name in tensors if name.endswith("bias")}


_PLAIN: dict[str, Any] = {"rounding": "nearest", "equalize": False, "correct": False}
METHODS: dict[str, Method] = {
    BASELINE: second_order("data", **_PLAIN),
    "k-means, equalized": second_order("data", **_PLAIN | {"equalize": True}),
    "k-means, biases corrected": second_order("data", **_PLAIN | {"correct": True}),
    "k-means, second order": second_order("data", **_PLAIN | {"rounding": "second-order"}),
    "k-means, second order, biases corrected": second_order("data", equalize=False),
    "k-means, all three": second_order("data"),
    "by channel, to nearest": second_order("data", levels="affine", scale_dtype="bf16", **_PLAIN),
    "by channel, second order, biases corrected": second_order(
        "data", levels="affine", scale_dtype="bf16", equalize=False
    ),
    "by channel, all three": second_order("data", levels="affine", scale_dtype="bf16"),
    "zero-shot, distilled inputs": second_order("distilled", equalize=False),
    "zero-shot, natural noise": second_order("natural", equalize=False),
    "zero-shot, white noise": second_order("white", equalize=False),
    "zero-shot, no inputs": without_data,
}
ZERO_SHOT = "zero-shot"
# What is calibrated with data, and may be chosen.
CANDIDATES = [name for name in METHODS if name != BASELINE and not name.startswith(ZERO_SHOT)]
SAME_SIZE = 1.02
"""Times the size of the baseline, at most, for a file of the same size. Ceilings of equalized ReLU6 take more."""


def error_percent(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> float:
    with torch.no_grad():
        outputs = torch.cat([network(normalized(part)) for part in images.split(500)])
    return 100 * int((outputs.argmax(1) != labels).sum()) / len(labels)


def trained(data: Mnist, seed: int, work: Path, epochs: int, network: Depthwise | None = None) -> Depthwise:
    torch.manual_seed(seed)
    network = Depthwise() if network is None else network
    kept = work / f"{seed}.dcz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        images, labels = data.train
        batch, reach = min(256, len(images) // 20), images.shape[-1] // 14
        train(network, normalized(images), labels, epochs=epochs, seed=seed, batch=batch, reach=reach)
        dcz.save(network.state_dict(), kept)
    dcz.load_into(network, kept)
    return network.eval()


def size_of(tensors: Tensors, path: Path) -> int:
    with Writer(path) as writer:
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
    return path.stat().st_size


def integers(module: nn.Module, data: Mnist, inputs: Calibration, work: Path) -> list[dict[str, Any]]:
    """int8 throughout, from each kind of calibration data, read back from a file."""
    rows = []
    for source in ("data", "distilled", "natural", "white"):
        path = work / "integer.dcz"
        save_integer_network(integer_network(module, getattr(inputs, source).split(256)), path)
        network = load_integer_network(path)
        rows.append(
            {
                "calibration": source,
                "bytes": path.stat().st_size,
                "test_error": error_percent(network, *data.test),
            }
        )
    return rows


def weights(
    module: nn.Module, data: Mnist, inputs: Calibration, work: Path, widths: Sequence[int] = BITS
) -> list[dict[str, Any]]:
    """Every method at every width."""
    rows = []
    for bits in widths:
        for name, method in METHODS.items():
            network, tensors = method(module, bits, inputs)
            size = size_of(tensors, work / "weights.dcz")
            arrange(network.module, torch.channels_last)
            rows.append(
                {
                    "bits": bits,
                    "method": name,
                    "bytes": size,
                    "validation_error": error_percent(network.module, *data.validation),
                    "test_error": error_percent(network.module, *data.test),
                }
            )
    return rows


def recovered(seed: dict[str, Any], bits: int, largest: float) -> tuple[str, float, float]:
    """The best method on the validation split, its test error, and which part it recovers of what k-means loses on the
    test set.

    ``largest``: times the size of k-means' file, at most.
    """
    rows = {row["method"]: row for row in seed["weights"] if row["bits"] == bits}
    names = [name for name in CANDIDATES if rows[name]["bytes"] <= largest * rows[BASELINE]["bytes"]]
    best = min(names, key=lambda name: float(rows[name]["validation_error"]))
    lost = rows[BASELINE]["test_error"] - seed["test_error"]
    gained = rows[BASELINE]["test_error"] - rows[best]["test_error"]
    return best, float(rows[best]["test_error"]), gained / lost if lost > 0 else float("nan")


def _lost(seed: dict[str, Any], bits: int) -> float:
    """Images of 10,000 that k-means loses."""
    row = next(row for row in seed["weights"] if (row["bits"], row["method"]) == (bits, BASELINE))
    return 100 * float(row["test_error"] - seed["test_error"])


def study(
    module: nn.Module, data: Mnist, inputs: Calibration, work: Path, widths: Sequence[int] = BITS
) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "validation_error": error_percent(module, *data.validation),
        "test_error": error_percent(module, *data.test),
        "integer": integers(module, data, inputs, work),
        "weights": weights(module, data, inputs, work, widths),
    }


def _spread(values: Sequence[float], digits: int = 2) -> str:
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


_PAGE = """# Integer-only inference and post-training quantization of a depthwise-separable network

{parameters:,} parameters, convolutions of 3 x 3 for each channel and 1 x 1 between channels, BatchNorm and ReLU6, on
MNIST. {seeds} seed(s); errors are in percent of the 10,000 test images, sizes in bytes of complete files. fp32: {fp32} %
(validation {fp32_validation} %). Made by

    python -m benchmarks.quantization.integer --data mnist.npz --seeds {seeds}

## int8, integers only

Weights, activations and everything between input and output are integers. Ranges are the least and greatest values over
the calibration inputs: {calibration} training images, 128 images distilled from the statistics of BatchNorm, or noise of
the mean, deviation and limits that the preprocessing gives, with the spectrum of photographs or white.

{integer}

Wanted: within {wanted_integer} points of fp32, calibrated with data.

## Weights of few bits

All layers, activations in fp32. `k-means`: 2^b shared weights a tensor, each weight to the nearest. The steps: ranges of
channels equalized; rounding by second order (GPTQ, in its own blocks for each channel of depthwise layers); biases
corrected on the calibration images. `by channel`: uniform codes with a bf16 scale for each output. Where ReLU6 layers are
equalized, a ceiling for each channel is stored, too, which makes these files larger. The zero-shot rows have seen no
image: they are the same second-order rounding and bias correction on distilled inputs or noise; `no inputs` is
equalization, absorbed high biases, k-means, and biases corrected in closed form.

{weights}

## How much comes back of what k-means loses

The best method is chosen on the validation split, for each seed; wanted at 4 bits: {wanted_recovery:.0f} %. At 4 bits k-means
loses {lost} of 10,000 images, so that a few images are many percent; 3 and 2 bits say more.

{recovery}
"""


def page(results: dict[str, Any]) -> str:
    seeds = list(results["seeds"].values())
    integer = [
        (
            row["calibration"],
            _spread([seed["integer"][i]["test_error"] for seed in seeds]),
            _spread([seed["integer"][i]["test_error"] - seed["test_error"] for seed in seeds]),
            _spread([seed["integer"][i]["bytes"] for seed in seeds], 0),
        )
        for i, row in enumerate(seeds[0]["integer"])
    ]
    table = [
        (
            str(row["bits"]),
            row["method"],
            _spread([seed["weights"][i]["test_error"] for seed in seeds]),
            _spread([seed["weights"][i]["validation_error"] for seed in seeds]),
            _spread([seed["weights"][i]["bytes"] for seed in seeds], 0),
        )
        for i, row in enumerate(seeds[0]["weights"])
    ]
    recovery = []
    for bits in sorted({row["bits"] for row in seeds[0]["weights"]}, reverse=True):
        for title, largest in (("any size", float("inf")), ("files of the size of k-means'", SAME_SIZE)):
            found = [recovered(seed, bits, largest) for seed in seeds]
            recovery.append(
                (
                    str(bits),
                    title,
                    "; ".join(dict.fromkeys(best for best, _, _ in found)),
                    _spread([error for _, error, _ in found]),
                    _spread([100 * part for _, _, part in found], 0) + " %",
                )
            )
    return _PAGE.format(
        parameters=seeds[0]["parameters"],
        seeds=len(seeds),
        fp32=_spread([seed["test_error"] for seed in seeds]),
        fp32_validation=_spread([seed["validation_error"] for seed in seeds]),
        calibration=CALIBRATION,
        integer=markdown(("calibration", "test error", "above fp32", "bytes"), integer),
        weights=markdown(("bits", "method", "test error", "validation error", "bytes"), table),
        recovery=markdown(("bits", "among", "chosen", "test error", "recovered"), recovery),
        lost=_spread([_lost(seed, 4) for seed in seeds if seed["weights"][0]["bits"] == 4] or [0.0], 0),
        wanted_integer=WANTED_INTEGER,
        wanted_recovery=100 * WANTED_RECOVERY,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an .npz of MNIST; without it, fetched through the Hub")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/depthwise"), help="where networks are kept")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_mnist(options.data)
    results: dict[str, Any] = {"epochs": options.epochs, "seeds": {}}
    for seed in range(options.seeds):
        module = trained(data, seed, options.work, options.epochs)
        inputs = calibration(module, data)
        results["seeds"][str(seed)] = study(module, data, inputs, options.work)
        print(json.dumps(results["seeds"][str(seed)], indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "integer.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "integer.md").write_text(page(results))


if __name__ == "__main__":
    main()

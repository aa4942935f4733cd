"""How fast are 100 million fp32 weights quantized to 4 bits in groups of 64, and how fast do they come back?

One core, CPU time. Quantizing: `quantize_affine`, from weights in memory to codes, scales and zero points. Coming back: a .dcz file
in the page cache, digests checked, into memory that is there already, against a copy of the decoded weights there, in turns.
Before anything is timed, codes, scales and decoded weights are compared with numpy's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import Figure, figures_table, median_ratio, one_core
from dcz.compression.quantizers import quantize_affine
from dcz.format import PerGroup, Reader, UniformTensor, Writer
from dcz.format.coding import CodingChoice
from dcz.format.memory import aligned_bytes

ROWS, COLUMNS, GROUP = 24_576, 4_096, 64
ROUNDS = 5
FASTEST_QUANTIZE, FASTEST_DECODE = 0.5, 1.0

Weights = npt.NDArray[np.float32]
METHODS: dict[str, dict[str, Any]] = {
    "symmetric": {"scheme": "symmetric"},
    "asymmetric": {"scheme": "asymmetric"},
    "asymmetric, bf16 scales": {"scheme": "asymmetric", "scale_dtype": "bf16"},
    "asymmetric, least squared error": {"scheme": "asymmetric", "calibration": "mse"},
}
DECODED = ("symmetric", "asymmetric, bf16 scales")
CODINGS: dict[CodingChoice, str] = {"raw": "as they are", "auto": "entropy-coded"}


def synthetic(rows: int, columns: int) -> Weights:
    """Normal weights, each row of a scale of its own."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((rows, columns), dtype=np.float32)
    weights *= random.uniform(0.01, 0.06, (rows, 1)).astype(np.float32)
    return weights


def quantize(weights: Weights, method: str) -> UniformTensor:
    return quantize_affine(weights, bits=4, granularity=PerGroup(size=GROUP), **METHODS[method])


def check(weights: Weights) -> None:
    """The first rows against the formulas of the quantizer's documentation, all groups of 64 but the rows' last."""
    rows = weights[:50]
    grouped = rows[:, : COLUMNS // GROUP * GROUP].reshape(50, -1, GROUP)
    full = -(-COLUMNS // GROUP)
    for method in ("symmetric", "asymmetric"):
        tensor = quantize(rows, method)
        scales = tensor.scales.reshape(50, full)[:, : grouped.shape[1]]
        if tensor.zero_points is None:
            wanted = np.abs(grouped).max(axis=2) / np.float32(7)
            zeros = np.full(scales.shape, 8)
        else:
            wanted = (grouped.max(axis=2) - grouped.min(axis=2)) / np.float32(15)
            zeros = tensor.zero_points.reshape(50, full)[:, : grouped.shape[1]]
            np.testing.assert_array_equal(zeros, np.rint(-grouped.min(axis=2) / scales))
        np.testing.assert_allclose(scales, wanted, rtol=1e-6)
        codes = np.clip(np.rint(grouped / scales[..., None]) + zeros[..., None], 0, 15)
        np.testing.assert_array_equal(
            tensor.codes.reshape(rows.shape)[:, : grouped.shape[1] * GROUP].reshape(grouped.shape), codes
        )


def decoded(tensor: UniformTensor) -> Weights:
    scales = np.repeat(tensor.scales.astype(np.float32).reshape(len(tensor.codes), -1), GROUP, axis=1)
    zeros = 8 if tensor.zero_points is None else tensor.zero_points.reshape(len(tensor.codes), -1)
    shifts = np.repeat(np.broadcast_to(zeros, (len(tensor.codes), scales.shape[1] // GROUP)), GROUP, axis=1)
    columns = tensor.codes.shape[1]
    return scales[:, :columns] * (tensor.codes.astype(np.int16) - shifts[:, :columns].astype(np.int16))


def in_turns(actions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of CPU time of each action, taken in turns; the first of more than one round is not counted."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds + (rounds > 1)):
        for taken, action in zip(times, actions, strict=True):
            start = time.process_time()
            action()
            taken.append(time.process_time() - start)
    return [taken[-rounds:] for taken in times]


def run() -> list[Figure]:
    one_core()
    weights = synthetic(ROWS, COLUMNS)
    check(weights)
    size = weights.nbytes / 1e9
    figures = []
    copy = np.empty_like(weights)
    for method in METHODS:
        rounds = 1 if "squared" in method else ROUNDS
        times = in_turns([partial(quantize, weights, method), partial(np.copyto, copy, weights)], rounds)
        speed = size / statistics.median(times[0])
        figures.append(
            Figure(
                f"int4 in groups of 64, {method}: quantizing 100 M weights, one core",
                "" if "squared" in method else f"{FASTEST_QUANTIZE} GB/s of fp32",
                f"{speed:.2f} GB/s ({median_ratio(times[1], times[0]):.3f} x memcpy)",
                None if "squared" in method else speed >= FASTEST_QUANTIZE,
            )
        )
    del copy
    tensors = {method: quantize(weights, method) for method in DECODED}
    del weights
    for method, tensor in tensors.items():
        figures += decoding(method, tensor)
    return figures


def decoding(method: str, tensor: UniformTensor) -> list[Figure]:
    """From a file to fp32, with codes as they are and entropy-coded."""
    figures = []
    expected = decoded(tensor)
    out, target = (aligned_bytes(expected.nbytes).view(np.float32).reshape(expected.shape) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        for coding, effort in CODINGS.items():
            path = Path(folder) / f"{coding}.dcz"
            with Writer(path) as writer:
                writer.add_tensor("w", tensor, coding=coding)
            out.fill(np.nan)
            with Reader(path, threads=1) as reader:
                reader.read("w", out)
                np.testing.assert_array_equal(out, expected)
            decode, plain = partial(_read, path, out), partial(np.copyto, target, expected)
            times = in_turns([decode, plain], ROUNDS)
            ratio = median_ratio(times[1], times[0])
            bits = 8 * path.stat().st_size / expected.size
            figures.append(
                Figure(
                    f"int4 in groups of 64, {method}, codes {effort} ({bits:.2f} bits a weight): file to fp32 / memcpy",
                    f"{FASTEST_DECODE}",
                    f"{ratio:.2f} ({expected.nbytes / 1e9 / statistics.median(times[0]):.2f} GB/s)",
                    ratio >= FASTEST_DECODE,
                )
            )
    return figures


def _read(path: Path, out: Weights) -> None:
    with Reader(path, threads=1) as reader:
        reader.read("w", out)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(figures_table(run()))

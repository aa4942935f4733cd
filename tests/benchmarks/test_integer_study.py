"""The study of integer-only inference in small: every method on a network for scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from benchmarks.deep_compression.mnist import Mnist
from benchmarks.quantization import integer
from benchmarks.quantization.depthwise import Depthwise
from sklearn.datasets import load_digits


def _digits() -> Mnist:
    images, target = load_digits(return_X_y=True)
    small = torch.from_numpy((images.reshape(-1, 8, 8) * 15.9).astype(np.uint8))
    labels = torch.from_numpy(target.astype(np.int64))
    parts = [(small[part], labels[part]) for part in (slice(1200), slice(1200, 1400), slice(1400, None))]
    return Mnist(*parts)


def test_the_study(tmp_path: Path) -> None:
    data = _digits()
    torch.manual_seed(0)
    network = Depthwise((8, 16, 32), (1, 2), stem_stride=1)
    again = Depthwise((8, 16, 32), (1, 2), stem_stride=1)
    module = integer.trained(data, 0, tmp_path, 12, network)
    kept = integer.trained(data, 0, tmp_path, 0, again)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in kept.state_dict().items())
    inputs = integer.calibration(module, data, count=64, steps=20)
    seed = integer.study(module, data, inputs, tmp_path, widths=(3,))
    assert seed["test_error"] < 15
    by_source = {row["calibration"]: row["test_error"] for row in seed["integer"]}
    assert by_source["data"] < seed["test_error"] + 1.5
    rows = {row["method"]: row for row in seed["weights"]}
    assert list(rows) == list(integer.METHODS)
    assert rows["by channel, all three"]["test_error"] < rows["by channel, to nearest"]["test_error"]
    same = rows["k-means, second order, biases corrected"]["bytes"]
    assert same <= integer.SAME_SIZE * rows[integer.BASELINE]["bytes"]
    text = integer.page({"seeds": {"0": seed, "1": seed}})
    assert text.count("| 3 |") == len(integer.METHODS) + 2


def test_what_is_recovered() -> None:
    rows = [
        {"bits": 4, "method": name, "validation_error": 5.0, "test_error": 6.0, "bytes": 1000}
        for name in integer.METHODS
    ]
    rows[0]["test_error"] = 9.0
    rows[3] |= {"validation_error": 2.0, "test_error": 2.0}
    rows[4] |= {"validation_error": 3.0, "test_error": 1.5}
    rows[4]["bytes"] = 1030
    rows[-1] |= {"validation_error": 0.0, "test_error": 0.0}
    seed = {"test_error": 1.0, "weights": rows}
    assert integer.recovered(seed, 4, integer.SAME_SIZE) == ("k-means, second order", 2.0, 7 / 8)
    rows[4]["validation_error"] = 1.0
    assert integer.recovered(seed, 4, 2.0) == ("k-means, second order, biases corrected", 1.5, 7.5 / 8)

"""The reproduction on MNIST, in small: both variants on scikit-learn's digits, and what is chosen and reported of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.deep_compression import lenet
from benchmarks.deep_compression.lenet_training import SETTINGS, Settings
from benchmarks.deep_compression.mnist import Mnist, distorted, error_percent, normalized
from sklearn.datasets import load_digits

import dcz


def _digits() -> Mnist:
    """Enlarged to 28 x 28."""
    images, target = load_digits(return_X_y=True)
    small = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    large = torch.from_numpy(np.pad(np.kron(small, np.ones((1, 3, 3), np.uint8)), ((0, 0), (2, 2), (2, 2))))
    labels = torch.from_numpy(target.astype(np.int64))
    parts = [(large[part], labels[part]) for part in (slice(1000), slice(1000, 1400), slice(1400, None))]
    return Mnist(*parts)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    short = dataclasses.replace(
        SETTINGS["lenet-300-100"],
        batch=32,
        dense_epochs=2,
        epochs=2,
        strengths=(0.002, 0.02),
        cluster_densities=(0.1,),
        finish_from=0.002,
        finishing=(0.03,),
    )
    monkeypatch.setitem(SETTINGS, "lenet-300-100", short)
    return short


@pytest.mark.parametrize("variant", ["plain", "rate-aware"])
def test_a_run_gives_files_that_are_what_the_table_says(
    tmp_path: Path, settings: Settings, variant: str
) -> None:
    data = _digits()
    candidates = lenet.run_of(data, "lenet-300-100", variant, 0, tmp_path)
    assert candidates == lenet.run_of(data, "lenet-300-100", variant, 0, tmp_path)  # not made again
    assert candidates[-1]["bytes"] < 1_066_440 / 20
    (row,) = lenet.point(data, "lenet-300-100", variant, 100.0, 1, tmp_path)
    path = tmp_path / "lenet-300-100" / variant / "0" / candidates[-1]["file"]
    assert row["bytes"] == path.stat().st_size == min(one["bytes"] for one in candidates)
    assert row["ratio"] == 1_066_440 / path.stat().st_size
    assert 0 < row["payload"] < row["bytes"]
    module = settings.make()
    module.load_state_dict(dcz.load(path))
    assert row["validation_error"] == error_percent(module, *data.validation)
    images, labels = data.test
    assert row["test_error"] == pytest.approx(
        100 * float((module(normalized(images)).argmax(1) != labels).double().mean())
    )
    assert row["test_error"] < 35
    density = float(torch.count_nonzero(dcz.load(path)["fc1.weight"])) / (784 * 300)
    assert row["densities"]["fc1.weight"] == pytest.approx(density)


def test_the_smallest_file_that_is_good_enough_is_chosen() -> None:
    candidates = [
        {"bytes": 900, "validation_error": 1.0},
        {"bytes": 500, "validation_error": 1.64},
        {"bytes": 400, "validation_error": 1.65},
    ]
    assert lenet.chosen(candidates, 1.64) is candidates[1]
    assert lenet.chosen(candidates, 2.0) is candidates[2]
    assert lenet.chosen(candidates, 0.9) is None


def test_the_table_holds_means_and_deviations() -> None:
    row = {"ratio": 100.0, "test_error": 1.5, "validation_error": 1.6, "bytes": 1000, "payload": 300}
    other = row | {"ratio": 110.0, "bytes": 1200}
    table = lenet.summary({"networks": {"lenet-5": {"plain": {"0.80": [row, other], "1.00": []}}}})
    assert "| lenet-5 | 0.80 % | plain | 105.0x ± 7.1 | 60x, 150x | 1.50 % ± 0.00 |" in table
    assert "1,100 ± 141" in table
    assert "1.00 %" not in table


def test_the_committed_table_is_that_of_the_results() -> None:
    assert lenet.TABLE.read_text() == lenet.page(json.loads(lenet.RESULTS.read_text()))


def test_distorted_images_are_near_the_originals() -> None:
    images = _digits().train[0][:200]
    moved = distorted(images, torch.Generator().manual_seed(1))
    assert torch.equal(moved, distorted(images, torch.Generator().manual_seed(1)))
    assert moved.dtype == torch.uint8
    assert moved.shape == images.shape
    # Ink is neither made nor lost beyond what scaling does, and most of it stays within two pixels.
    assert float(moved.float().mean() / images.float().mean()) == pytest.approx(1, abs=0.1)
    near = torch.nn.functional.max_pool2d(images.float(), 7, 1, 3)
    assert float((moved.float() * (near > 0)).sum() / moved.float().sum()) > 0.95

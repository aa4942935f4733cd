"""The study of quantization-aware training, in small: on scikit-learn's digits, and what is reported of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.deep_compression.mnist import Lessons, error_percent, normalized
from benchmarks.quantization import qat
from benchmarks.quantization.qat_networks import NETWORKS
from tests.benchmarks.test_lenet import _digits

import dcz
from dcz.compression.training.activations import activation_quantizers


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all methods find the network from which they begin."""
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("method", ["2 bits", "binary", "4 bits, activations 4"])
def test_a_run_gives_a_file_that_is_what_the_table_says(method: str, work: Path, tmp_path: Path) -> None:
    data, settings = _digits(), NETWORKS["resnet"]
    taught = Lessons(torch.stack([data.train[0]] * 2), data.train[1])
    first = qat.first_network(settings, data, taught, work / "first.dcz", epochs=3)
    again = qat.first_network(settings, data, taught, work / "first.dcz", epochs=3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    found = qat.run(settings, method, first, data, taught, tmp_path, epochs=2)
    assert found == qat.run(settings, method, first, data, taught, tmp_path, epochs=2)  # not made again
    row = qat.row(settings, method, found, data, tmp_path)
    path = tmp_path / f"{qat.file_name(method)}.dcz"
    parameters = sum(parameter.numel() for parameter in settings.make().parameters())
    assert row["bytes"] == path.stat().st_size
    assert row["bits"] == pytest.approx(8 * path.stat().st_size / parameters, abs=1e-3)
    assert row["validation_error"] == min(found["validation_errors"])
    tensors = dcz.load(path)
    if "activations" not in method:
        module = settings.make()
        module.load_state_dict(tensors)
        assert row["test_error"] == round(error_percent(module, *data.test), 3)
        images, labels = data.test
        wrong = (module(normalized(images)).argmax(1) != labels).double().mean()
        assert row["test_error"] == pytest.approx(100 * float(wrong), abs=1e-3)
    assert row["test_error"] < 40
    most = {"2 bits": 4, "binary": 2, "4 bits, activations 4": 16}[method]
    for name, value in tensors.items():
        if value.ndim > 1:
            rows = value.reshape(len(value), -1)
            rows = rows if rows.shape[1] >= qat.LEAST_ROW else rows.reshape(1, -1)
            assert all(len(torch.unique(row)) <= most for row in rows), name
        elif value.is_floating_point():
            assert torch.equal(value, value.bfloat16().float())


def test_the_images_have_eight_bits_and_what_follows_fewer() -> None:
    network = NETWORKS["lenet-5"].make()
    _, quantize = qat.METHODS["4 bits, activations 4"]
    assert quantize is not None
    quantize(network)
    bits = {name: quantizer.bits for name, _, _, quantizer in activation_quantizers(network)}
    assert bits == {"conv1": 8, "conv2": 4, "fc1": 4, "fc2": 4}


def test_what_is_too_much_is_said_so() -> None:
    row = {"epoch": 1, "validation_error": 0.7, "bytes": 1000, "bits": 2.0, "ratio": 16.0}
    found = [
        row | {"method": "fp32", "test_error": 0.6},
        row | {"method": "4 bits", "test_error": 0.7},
        row | {"method": "3 bits", "test_error": 0.81},
    ]
    table = qat.table({"networks": {"resnet": found}})
    assert "| resnet | 4 bits | 0.70 % | +0.10 | 0.1 | yes |" in table
    assert "| resnet | 3 bits | 0.81 % | +0.21 | 0.2 | NO |" in table


def test_the_committed_page_is_that_of_the_results() -> None:
    results = json.loads((qat.RESULTS / "qat.json").read_text())
    assert (qat.RESULTS / "qat.md").read_text() == qat.page(results)

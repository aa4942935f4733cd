"""From training to integers: a network whose steps and clipping levels were learned runs on the codes that it was trained with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.digits_training import data, evaluate, train
from torch import nn

from dcz.compression.integer.conversion import integer_network
from dcz.compression.integer.network import SCALES, ZERO_POINTS
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.observers import HistogramObserver
from dcz.compression.training.activations import (
    activation_parameters,
    calibrate,
    quantize_activations,
    remove_activation_quantizers,
)
from dcz.compression.training.clipping import clip_activations
from dcz.compression.training.fake_quantization import fake_quantize
from dcz.compression.training.learned_step import learn_activation_steps, learn_steps
from dcz.compression.training.quantized_weights import quantized_tensors
from dcz.compression.training.weights import Weight, find_weights, remove_parametrizations
from dcz.format import PerChannel, PerTensor
from dcz.runtime.integer import load_integer_network, save_integer_network

TRAIN_X, _, TEST_X, _ = data()
LAYERS = ("0", "3", "8")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(108, 10),
    )


@pytest.fixture(scope="module")
def folded() -> nn.Module:
    """Trained in floating point, then without BatchNorms: what integers are trained from."""
    torch.manual_seed(0)
    module = network()
    for _ in range(4):
        train(module)
    return fold_batch_norms(module.eval()).module


def _learned(module: nn.Module, weights: list[Weight]) -> None:
    learn_steps(weights, bits=8, granularity=PerChannel(axis=0), scheme="symmetric")
    learn_activation_steps(module, bits=8)


def _learned_narrow(module: nn.Module, weights: list[Weight]) -> None:
    learn_steps(weights, bits=4, granularity=PerTensor(), scheme="symmetric")
    learn_activation_steps(module, bits=5)


def _clipped(module: nn.Module, weights: list[Weight]) -> None:
    fake_quantize(weights, bits=6, granularity=PerChannel(axis=0))
    quantize_activations(module, bits=8, observer=lambda: HistogramObserver("mse"), layers=["0"])
    clip_activations(module, bits=4, layers=LAYERS[1:])


@torch.no_grad()
def _layer(module: nn.Module, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """From the input of a layer to that of the next, in floating point, the quantizers of inputs aside."""
    steps = list(module.children())
    end = next((int(other) for other in LAYERS if int(other) > int(name)), len(steps))
    for step in steps[int(name) : end]:
        inputs = step(inputs)
    return inputs


@pytest.mark.parametrize("method", [_learned, _learned_narrow, _clipped])
def test_integers_as_they_were_trained(
    method: Callable[[nn.Module, list[Weight]], None], folded: nn.Module, tmp_path: Path
) -> None:
    module = copy.deepcopy(folded)
    weights = find_weights(module)
    method(module, weights)
    calibrate(module, [TRAIN_X[:256]])
    starts = activation_parameters(module)
    torch.manual_seed(1)
    for _ in range(2):
        train(module)
    module.eval()
    ranges, stored = activation_parameters(module), quantized_tensors(weights)
    assert set(ranges) == set(LAYERS)
    assert any((ranges[name].scales != starts[name].scales).any() for name in LAYERS)  # something was learned
    simulated, right = module(TEST_X).detach(), evaluate(module)
    remove_activation_quantizers(module)
    remove_parametrizations(module)
    integers = integer_network(module, [TRAIN_X[:256]], ranges=ranges, weights=stored)

    # The weights are the codes of training, the ranges the learned ones.
    for name in LAYERS:
        tensor, codes = stored[f"{name}.weight"], integers.tensors[f"{name}.weight"].numpy()
        np.testing.assert_array_equal(
            codes, tensor.codes.reshape(codes.shape).astype(int) - (1 << (tensor.bits - 1))
        )
        layer: Any = module.get_submodule(name)
        scales = integers.weight_scales[name].reshape(-1, *[1] * (codes.ndim - 1))
        assert torch.equal(torch.from_numpy(codes).float() * scales, layer.weight)
    names = [step.name for step in integers.description.steps]
    assert names == ["0", "3", "6", "7", "8"]
    before = dict(zip(LAYERS, (0, 1, 4), strict=True))  # the value that each layer takes
    for name, number in before.items():
        assert float(integers.tensors[SCALES][number]) == float(ranges[name].scales[0])
        middle = 1 << (ranges[name].bits - 1)
        assert int(integers.tensors[ZERO_POINTS][number]) == int(ranges[name].zero_points[0]) - middle

    # Each layer gives what it gives in floating point, within one step of what the next one was trained to take; and the same
    # if its bias is rounded as an integer network rounds it.
    values = integers.values(integers.quantize(TEST_X))
    outputs = integers(TEST_X)
    ends = integers.dequantize(torch.tensor([-128, 127], dtype=torch.int8)).tolist()
    for rounded in (False, True):
        equal = total = 0
        for name, number in before.items():
            parameters = ranges[name]
            layer = module.get_submodule(name)
            if rounded:
                units = parameters.scales[0] * integers.weight_scales[name]
                with torch.no_grad():
                    layer.bias.copy_(torch.round(layer.bias / units) * units)
            middle = 1 << (parameters.bits - 1)
            codes = (values[number].numpy().astype(int) + middle).astype(np.uint8)
            if number == 0:
                np.testing.assert_array_equal(codes, parameters.quantize(TEST_X.numpy()))
            exact = _layer(module, name, torch.from_numpy(parameters.dequantize(codes)))
            if name == LAYERS[-1]:
                step = float(integers.tensors[SCALES][-1])
                assert float((outputs - exact.clamp(*ends)).abs().max()) <= step
                break
            after = LAYERS[LAYERS.index(name) + 1]
            wanted = ranges[after].quantize(exact.numpy()).astype(int) - (1 << (ranges[after].bits - 1))
            found = values[before[after]].numpy().astype(int).reshape(wanted.shape)
            assert abs(found - wanted).max() <= 1
            equal, total = equal + int((found == wanted).sum()), total + wanted.size
        assert equal >= (0.999 if rounded else 0.9) * total

    # And so the whole network does what was trained, from a file too.
    assert float((outputs.argmax(1) == simulated.argmax(1)).float().mean()) >= 0.99
    assert evaluate(integers) >= right - 0.6  # type: ignore[arg-type]
    assert right > 90
    save_integer_network(integers, tmp_path / "integers.dcz")
    again = load_integer_network(tmp_path / "integers.dcz")
    assert torch.equal(again.run(again.quantize(TEST_X)), values[-1])

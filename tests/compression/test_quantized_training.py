"""Training with weights that are codes: it goes on where rounding to nearest stalls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compression.oracles import decode_affine
from tests.runtime.digits_training import Net, data, evaluate
from torch import nn

import dcz
from dcz.compression.quantizers import Rounding, quantize_affine
from dcz.compression.training.masks import array_of, prune
from dcz.compression.training.quantized_training import QuantizedTraining
from dcz.compression.training.weights import find_weights
from dcz.errors import EncodingError, UsageError
from dcz.format import Reader
from dcz.format.manifest import Affine, Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import UniformTensor


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=0), PerGroup(size=7)], ids=str)
@pytest.mark.parametrize("bits", [2, 8])
def test_at_first_they_are_rounded_to_nearest(bits: int, granularity: Granularity) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 6)
    expected = quantize_affine(array_of(layer.weight), bits=bits, granularity=granularity)
    training = QuantizedTraining(find_weights(layer), bits, granularity=granularity)
    assert array_of(layer.weight).tobytes() == decode_affine(expected).tobytes()
    tensor = training.tensors()["weight"]
    assert isinstance(tensor, UniformTensor)
    assert np.array_equal(tensor.codes, expected.codes)
    assert np.array_equal(tensor.scales, expected.scales)


def convex(rounding: Rounding, seed: int = 0, steps: int = 1500) -> tuple[float, float, QuantizedTraining]:
    """Gradient descent on half the squared distance to a target: distances at first and at the end, in steps of the codes."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 32, bias=False)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1)
        layer.weight[0, 0] = 1.27
    target = torch.empty(32, 32).uniform_(-1, 1)
    training = QuantizedTraining(find_weights(layer), rounding=rounding, seed=seed)
    step = 0.01
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=0.002
    )  # moves at most 0.0046 at once: less than half a step

    def distance() -> float:
        return float((layer.weight.detach() - target)[1:].abs().mean()) / step

    before = distance()
    with training.after_each_step_of(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * (layer.weight - target).square().sum()).backward()
            optimizer.step()
    return before, distance(), training


def test_small_updates_are_lost_by_rounding_to_nearest_only() -> None:
    before, stalled, _ = convex("nearest", steps=20)
    assert stalled == before
    _, converged, training = convex("stochastic")
    # In the end each weight wanders between neighbours of its target.
    assert converged < 0.1 * before
    assert converged < 4
    assert training.steps == 1500


def test_unbiased_and_decided_by_the_seed() -> None:
    layer = nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0] = 127.0
    training = QuantizedTraining(find_weights(layer))
    with torch.no_grad():
        layer.weight[1:] = 0.3
    training.requantize()
    codes = training.codes()["weight"][1:].clone()
    assert set(codes.unique().tolist()) == {0, 1}
    # Within four standard deviations of what is to be expected.
    assert abs(float(codes.float().mean()) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / codes.numel())
    with torch.no_grad():
        layer.weight[1:] = 0.3
    training.requantize()
    other = training.codes()["weight"][1:]
    assert 0.3 < float((other != codes).float().mean()) < 0.55  # 0.42: independent of the step before
    ends = [convex("stochastic", seed, 20)[2].codes()["weight"] for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_scales_grow_with_the_weights() -> None:
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1, 0.5, 0], [2, 0, 0, 0]]))
    training = QuantizedTraining(find_weights(layer), granularity=PerChannel(axis=0))
    with torch.no_grad():
        layer.weight[0, 0] = 12.7
        layer.weight[1, 0] = 0.5
    training.requantize()
    tensor = training.tensors()["weight"]
    assert isinstance(tensor, UniformTensor)
    np.testing.assert_allclose(tensor.scales, [0.1, 2 / 127], rtol=1e-6)
    assert layer.weight[0, 0].item() == pytest.approx(12.7)
    assert decode_affine(tensor).tobytes() == array_of(layer.weight).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_does_not_move_stays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 20).to(dtype)
    training = QuantizedTraining(find_weights(layer), granularity=PerChannel(axis=0))
    before, codes = layer.weight.detach().clone(), training.codes()["weight"].clone()
    for _ in range(50):
        training.requantize()
    assert torch.equal(training.codes()["weight"], codes)
    assert torch.equal(layer.weight, before)
    tensor = training.tensors()["weight"]
    assert isinstance(tensor, UniformTensor)
    assert decode_affine(tensor).tobytes() == array_of(layer.weight).tobytes()


def test_a_network(tmp_path: Path) -> None:
    """With steps of descent so small that rounding to nearest keeps it from learning."""
    x, y, _, _ = data()
    qualities: dict[str, float] = {}
    for rounding in ("nearest", "stochastic"):
        torch.manual_seed(0)
        model = Net()
        training = QuantizedTraining(
            find_weights(model), granularity=PerChannel(axis=0), rounding=rounding, seed=3
        )
        # What is not kept as codes is not trained, so that it makes up for nothing.
        optimizer = torch.optim.SGD([weight.parameter for weight in find_weights(model)], lr=0.003)
        with training.after_each_step_of(optimizer):
            for _ in range(10):
                for batch in torch.randperm(len(y)).split(64):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()
        qualities[rounding] = evaluate(model.eval())
    assert qualities["stochastic"] > 80
    assert qualities["stochastic"] > qualities["nearest"] + 15
    dcz.convert(model, tmp_path / "m.dcz")
    with Reader(tmp_path / "m.dcz") as reader:
        for name, tensor in training.tensors().items():
            assert isinstance(tensor, UniformTensor)
            assert reader.read(name).tobytes() == decode_affine(tensor).tobytes()
        values = next(tensor.values for tensor in reader.manifest.tensors if tensor.name == "hidden.weight")
        assert isinstance(values, Affine)
        assert values.bits <= 8


def test_wrong_use() -> None:
    layer = nn.Linear(4, 4)
    weights = find_weights(layer)
    with pytest.raises(EncodingError, match="no room for both signs"):
        QuantizedTraining(weights, 1)
    with pytest.raises(EncodingError, match="not a seed"):
        QuantizedTraining(weights, seed=-1)
    with pytest.raises(EncodingError, match="unknown rounding"):
        QuantizedTraining(weights, rounding="up")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match=r"weight: axis 5"):
        QuantizedTraining(weights, granularity=PerChannel(axis=5))
    training = QuantizedTraining(weights)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(EncodingError, match="weight is not finite any more, after 1 steps"):
        training.requantize()
    with pytest.raises(EncodingError, match="weight: a weight is not finite"):
        QuantizedTraining(weights)
    with torch.no_grad():
        layer.weight[0, 0] = 1
    prune(weights, 0.5)
    with pytest.raises(UsageError, match="is under PruningMask"):
        QuantizedTraining(weights)

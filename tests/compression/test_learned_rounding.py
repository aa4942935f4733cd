"""Learned rounding: never worse than rounding to nearest on the calibration set, and near to the best of all roundings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from tests.compression.oracles import decode_affine
from torch import nn

from dcz.compression.quantizers import Scheme, quantize_affine
from dcz.compression.training.learned_rounding import learn_rounding, rectified_sigmoid, undecided
from dcz.compression.training.masks import array_of, prune
from dcz.compression.training.weights import find_weights
from dcz.errors import EncodingError, UsageError
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def correlated(count: int, features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features // 4, features, generator=generator)
    return torch.randn(count, features // 4, generator=generator) @ mixing + 0.3


@pytest.mark.parametrize("scheme", ["symmetric", "symmetric-full", "asymmetric"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=0), PerGroup(size=8)], ids=str)
def test_never_worse_than_the_nearest(scheme: Scheme, granularity: Granularity) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 6)
    weight, x = layer.weight.detach().clone(), correlated(128, 24)
    nearest = quantize_affine(
        weight.numpy(), bits=3, scheme=scheme, granularity=granularity, calibration="mse"
    )
    found = learn_rounding(layer, x.split(32), 3, scheme=scheme, granularity=granularity, steps=150)
    rounded, learned = found.errors["weight"]
    # Both errors by hand.
    outputs = x.numpy() @ weight.numpy().T
    for codes, error in ((nearest, rounded), (found.tensors["weight"], learned)):
        expected = np.square(x.numpy() @ decode_affine(codes).T - outputs).mean()
        assert error == pytest.approx(expected, rel=1e-3)
    assert learned < 0.7 * rounded
    stored = found.tensors["weight"]
    assert decode_affine(stored).tobytes() == array_of(layer.weight).tobytes()
    # The same scales, and each code one of the two neighbours.
    assert np.array_equal(stored.scales, nearest.scales)
    apart = np.abs(stored.codes.astype(int) - nearest.codes.astype(int))
    assert apart.max() == 1


def test_near_the_best_of_all_roundings() -> None:
    """A row of eight weights: all 256 ways to round it."""
    torch.manual_seed(2)
    layer = nn.Linear(8, 1, bias=False)
    weight, x = layer.weight.detach().clone(), correlated(64, 8, seed=3)
    nearest = quantize_affine(weight.numpy(), bits=4)
    scale, zero = float(nearest.scales[0]), 8
    outputs = x.double().numpy() @ weight.double().numpy()[0]
    below = np.floor(weight.double().numpy()[0] / scale)
    errors = sorted(
        np.square(x.double().numpy() @ (scale * np.clip(below + up, 1 - zero, 7)) - outputs).mean()
        for up in product((0, 1), repeat=8)
    )
    found = learn_rounding(layer, [x], 4, calibration="min-max", steps=300)
    rounded, learned = found.errors["weight"]
    assert rounded > 3 * errors[0]
    assert learned <= errors[12] * 1.01  # among the best 5 %


def test_a_network_layer_by_layer() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    x = correlated(96, 36).reshape(-1, 1, 6, 6)
    module.train()
    with torch.no_grad():
        module(x)
    dense = module.eval()(x).detach()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    found = learn_rounding(module, [x], 3, granularity=PerChannel(axis=0), steps=200)
    assert all(part.training for part in module.modules())
    assert list(found.errors) == ["0.weight", "4.weight"]
    assert all(learned <= rounded for rounded, learned in found.errors.values())
    learned = (module.eval()(x) - dense).square().mean().item()
    for name, value in module.state_dict().items():
        assert (name in found.tensors) != torch.equal(value, state[name]), name
    for name in found.tensors:
        codes = quantize_affine(
            state[name].numpy(), bits=3, granularity=PerChannel(axis=0), calibration="mse"
        )
        state[name] = torch.from_numpy(decode_affine(codes))
    module.load_state_dict(state)
    assert learned < 0.8 * (module(x) - dense).square().mean().item()


def test_the_seed_decides() -> None:
    codes = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        layer = nn.Linear(24, 30)
        torch.manual_seed(seed + 5)  # of no matter
        found = learn_rounding(layer, [correlated(64, 24)], 3, steps=60, seed=seed)
        codes.append(found.tensors["weight"].codes)
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


def test_the_rectified_sigmoid_and_its_regularizer() -> None:
    v = torch.linspace(-6, 6, 101, dtype=torch.float64)
    h = rectified_sigmoid(v)
    expected = np.clip(1.2 / (1 + np.exp(-v.numpy())) - 0.1, 0, 1)
    np.testing.assert_allclose(h.numpy(), expected)
    assert h.min() == 0
    assert h.max() == 1
    assert undecided(torch.tensor([0.0, 1.0]), 2.0) == 0
    assert undecided(torch.tensor([0.5]), 20.0) == 1
    inner = v[(h > 0.01) & (h < 0.99)].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: undecided(rectified_sigmoid(v), 3.0), (inner,))


def test_exact_weights_are_left_alone() -> None:
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-7.0, 1, 2, 3], [4, 5, 6, 7]]) / 8)
    before = layer.weight.detach().clone()
    found = learn_rounding(layer, [torch.randn(8, 4)], 4, calibration="min-max", steps=5)
    assert max(found.errors["weight"]) == 0
    assert torch.equal(layer.weight, before)


def test_wrong_use() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    x = torch.randn(8, 4)
    with pytest.raises(EncodingError, match=r"0\.weight: codes of 9 bits"):
        learn_rounding(module, [x], 9)
    with pytest.raises(UsageError, match=r"layer of 1\.weight was not called"):
        learn_rounding(module, [x], run=lambda net, batch: net[0](batch))  # type: ignore[index]
    with pytest.raises(UsageError, match="there are no batches"):
        learn_rounding(module, [])
    with pytest.raises(EncodingError, match=r"layer of 0\.weight, or comes out of it, is not finite"):
        learn_rounding(module, [x * float("nan")], steps=2)
    with pytest.raises(UsageError, match="no set of arguments"):
        learn_rounding(module, [(x, torch.zeros(8))])
    prune(find_weights(module), 0.5)
    with pytest.raises(UsageError, match=r"rounding of 0\.weight cannot be learned"):
        learn_rounding(module, [x])

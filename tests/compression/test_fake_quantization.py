"""Simulated quantization of weights: forward against dcz's own decoded codes, backward against torch's operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compression.oracles import decode_affine
from torch import nn

import dcz
from dcz.compression.quantizers import ScaleDType, Scheme, quantize_affine
from dcz.compression.training.fake_quantization import FakeQuantizedWeight, fake_quantize, fake_quantized
from dcz.compression.training.masks import array_of, prune
from dcz.compression.training.quantized_weights import quantized_tensors
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.errors import EncodingError, UsageError
from dcz.format import Reader, Writer
from dcz.format.manifest import Affine, Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import UniformTensor

SCHEMES: tuple[Scheme, ...] = ("symmetric", "symmetric-full", "asymmetric")
GRANULARITIES: tuple[Granularity, ...] = (
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerGroup(size=8),
    PerGroup(size=7),
    PerGroup(size=100),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def linear(seed: int = 0, dtype: torch.dtype = torch.float32, shift: float = 0.0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(24, 10).to(dtype)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(10, 24) * torch.rand(10, 1) + shift).to(dtype))
    return layer


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_forward_is_what_the_quantizer_decodes_to(
    bits: int, scheme: Scheme, granularity: Granularity
) -> None:
    if bits == 1 and scheme != "asymmetric":
        return
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shift in (0.0, 0.3, 5.0):
            layer = linear(1, dtype, shift)
            expected = quantize_affine(
                array_of(layer.weight), bits=bits, scheme=scheme, granularity=granularity
            )
            fake_quantize(find_weights(layer), bits, scheme=scheme, granularity=granularity)
            same_bits(array_of(layer.weight), decode_affine(expected))
            (stored,) = quantized_tensors(find_weights(layer)).values()
            assert np.array_equal(stored.codes, expected.codes)
            assert np.array_equal(stored.scales, expected.scales)


@pytest.mark.parametrize("calibration", ["percentile", "mse", "kl"])
@pytest.mark.parametrize("scale_dtype", [None, "bf16", "f16"])
def test_ranges_that_are_held(calibration: Any, scale_dtype: ScaleDType | None) -> None:
    layer = linear(2)
    arguments: dict[str, Any] = {
        "granularity": PerChannel(axis=0),
        "calibration": calibration,
        "percentile": 95.0,
        "scale_dtype": scale_dtype,
    }
    expected = quantize_affine(array_of(layer.weight), bits=3, **arguments)
    fake_quantize(find_weights(layer), 3, **arguments)
    same_bits(array_of(layer.weight), decode_affine(expected))
    with torch.no_grad():
        find_weights(layer)[0].parameter.mul_(1e4)
    (stored,) = quantized_tensors(find_weights(layer)).values()
    assert np.array_equal(stored.scales, expected.scales)
    assert set(np.unique(stored.codes)) == {1, 7}  # all clipped


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.floats(2.0**-10, 4.0, width=32),
    st.integers(1, 8),
    st.integers(0, 255),
)
def test_torch_has_the_same_codes_and_gradients(
    values: list[float], scale: float, bits: int, zero: int
) -> None:
    most, zero = (1 << bits) - 1, zero % (1 << bits)
    x = torch.tensor(values, requires_grad=True)
    found = fake_quantized(
        x, torch.tensor([scale]), torch.tensor([float(zero)]), bits=bits, scheme="asymmetric"
    )
    found.sum().backward()
    other = x.detach().clone().requires_grad_()
    torch.fake_quantize_per_tensor_affine(other, scale, zero, 0, most).sum().backward()
    expected = torch.fake_quantize_per_tensor_affine(x.detach(), scale, zero, 0, most)
    # torch multiplies by 1 / S: at a tie, or next to it, it may take the neighbour.
    steps = x.detach().double() / scale
    tie = ((steps - steps.floor() - 0.5).abs() <= 1e-5 * steps.abs().clamp(min=1)).numpy()
    difference = (found.detach() - expected).abs().numpy()
    assert (difference <= np.where(tie, scale * 1.001, scale * 1e-4)).all()
    assert x.grad is not None
    assert other.grad is not None
    assert ((x.grad == other.grad).numpy() | tie).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_torch_has_the_same_gradients_by_channel(axis: int) -> None:
    torch.manual_seed(3)
    x = (3 * torch.randn(6, 50)).requires_grad_()
    shape = [1, 1]
    shape[axis] = -1
    scales, zeros = torch.rand(x.shape[axis]) + 0.1, torch.randint(0, 16, (x.shape[axis],))
    weights = torch.randn(6, 50)
    found = fake_quantized(
        x, scales.reshape(shape), zeros.float().reshape(shape), bits=4, scheme="asymmetric"
    )
    (found * weights).sum().backward()
    other = x.detach().clone().requires_grad_()
    expected = torch.fake_quantize_per_channel_affine(other, scales, zeros.int(), axis, 0, 15)
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    assert other.grad is not None
    assert x.grad is not None
    assert torch.equal(x.grad, other.grad)
    clipped = x.grad == 0
    assert 0 < int(clipped.sum()) < clipped.numel()


def test_ties_go_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    found = fake_quantized(x, torch.ones(1), torch.full((1,), 128.0), bits=8, scheme="symmetric")
    assert found.tolist() == [0, 2, 2, 0, -2, -2]
    assert not torch.signbit(found[3])


def test_a_loop_of_ones_own_trains_what_is_beneath() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 24) @ torch.randn(24, 24)
    y = x @ torch.randn(24, 10)
    layer = nn.Linear(24, 10)
    layer.load_state_dict({"weight": torch.linalg.lstsq(x, y).solution.T, "bias": torch.zeros(10)})
    fake_quantize(find_weights(layer), 3, granularity=PerChannel(axis=0))
    rounded = (layer(x) - y).square().mean().item()
    steps = 150
    optimizer = torch.optim.Adam(layer.parameters(), 0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
    assert min(losses) < 0.75 * rounded
    value = layer.weight.detach().clone()
    remove_parametrizations(layer)
    assert torch.equal(layer.weight, value)
    assert all(len(torch.unique(row)) <= 7 for row in layer.weight)


def test_what_was_pruned_stays_zero() -> None:
    layer = linear()
    prune(find_weights(layer), 0.3)
    mask = layer.weight != 0
    expected = quantize_affine(
        array_of(layer.weight), bits=4, granularity=PerChannel(axis=0), mask=mask.numpy()
    )
    fake_quantize(find_weights(layer), 4, granularity=PerChannel(axis=0))
    same_bits(array_of(layer.weight), decode_affine(expected))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 24)).square().sum().backward()
        optimizer.step()
    assert bool((layer.weight[~mask] == 0).all())
    (stored,) = quantized_tensors(find_weights(layer)).values()
    assert isinstance(stored, UniformTensor)
    assert stored.mask is not None
    assert not stored.mask[~mask.numpy()].any()
    same_bits(array_of(layer.weight), decode_affine(stored))
    fake_quantize(find_weights(layer), 2)
    assert bool((layer.weight[~mask] == 0).all())


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(axis=0), PerGroup(size=32)], ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_file_of_the_plain_weights_holds_codes(bits: int, granularity: Granularity, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 64)
    fake_quantize(find_weights(layer), bits, granularity=granularity, scale_dtype="bf16")
    (stored,) = quantized_tensors(find_weights(layer)).values()
    expected = layer.weight.detach().numpy().copy()
    remove_parametrizations(layer)
    dcz.convert(layer, tmp_path / "plain.dcz")
    with Writer(tmp_path / "codes.dcz") as writer:
        writer.add_tensor("weight", stored)
    for name in ("plain", "codes"):
        with Reader(tmp_path / f"{name}.dcz") as reader:
            same_bits(reader.read("weight"), expected)
            entry = next(tensor for tensor in reader.manifest.tensors if tensor.name == "weight")
            assert isinstance(entry.values, Affine) or bits < 8
            groups = stored.scales.size
            assert entry.values.bits <= bits  # type: ignore[union-attr]
        assert (tmp_path / f"{name}.dcz").stat().st_size < 64 * 256 * bits / 8 + 2 * groups + 800


def test_bits_by_name_and_transposed_matrices() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose2d(2, 3, 2), nn.Linear(4, 2))
    taken = fake_quantize(
        find_weights(module), {"0.weight": 2, "1.weight": 5}, granularity=PerChannel(axis=0)
    )
    assert [weight.name for weight in taken] == ["0.weight", "1.weight"]
    tensors = quantized_tensors(find_weights(module))
    assert {name: (tensor.bits, tensor.granularity.axis) for name, tensor in tensors.items()} == {
        "0.weight": (2, 0),
        "1.weight": (5, 1),
    }
    assert tensors["1.weight"].scales.shape == (3,)


def test_wrong_use() -> None:
    layer = linear()
    with pytest.raises(EncodingError, match="codes of 9 bits"):
        fake_quantize(find_weights(layer), 9)
    with pytest.raises(EncodingError, match="no room for both signs"):
        fake_quantize(find_weights(layer), 1)
    with pytest.raises(EncodingError, match="axis 2 of a tensor with 2"):
        fake_quantize(find_weights(layer), 4, granularity=PerChannel(axis=2))
    assert find_weights(layer)[0].parametrization is None
    share(find_weights(layer), 2)
    with pytest.raises(UsageError, match="is under SharedWeights"):
        fake_quantize(find_weights(layer), 4)
    broken = linear()
    with torch.no_grad():
        broken.weight[1, 2] = float("inf")
    for calibration in ("min-max", "mse"):
        with pytest.raises(EncodingError, match=r"^weight: .*not finite"):
            fake_quantize(find_weights(broken), 4, calibration=calibration)


def test_weights_that_grow_beyond_all_bounds_are_named() -> None:
    layer = linear()
    fake_quantize(find_weights(layer), 4)
    with torch.no_grad():
        find_weights(layer)[0].parameter[0, 0] = float("nan")
    with pytest.raises(EncodingError, match="not finite any more"):
        layer(torch.zeros(1, 24))


def test_the_largest_weights_stay_finite() -> None:
    layer = linear()
    with torch.no_grad():
        layer.weight.fill_(0)
        layer.weight[0, 0] = torch.finfo(torch.float32).max
    expected = quantize_affine(array_of(layer.weight), bits=4, scheme="symmetric-full")
    fake_quantize(find_weights(layer), 4, scheme="symmetric-full")
    same_bits(array_of(layer.weight), decode_affine(expected))
    assert isinstance(find_weights(layer)[0].parametrization, FakeQuantizedWeight)

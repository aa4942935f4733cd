"""Learned steps against torch's own operator, finite differences, and the paper's formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compression.oracles import decode_affine
from torch import nn

import dcz
from dcz.compression.training.activations import (
    activation_parameters,
    activation_quantizers,
    calibrate,
    remove_activation_quantizers,
)
from dcz.compression.training.fake_quantization import fake_quantize
from dcz.compression.training.learned_step import (
    LearnedStepQuantizer,
    LearnedStepWeight,
    learn_activation_steps,
    learn_steps,
    stepped,
)
from dcz.compression.training.masks import array_of, prune
from dcz.compression.training.quantized_weights import quantized_tensors
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.errors import EncodingError
from dcz.format import Reader
from dcz.format.manifest import Affine, Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import UniformTensor


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def the_only(layer: nn.Module) -> LearnedStepWeight:
    (weight,) = find_weights(layer)
    assert isinstance(weight.parametrization, LearnedStepWeight)
    return weight.parametrization


@pytest.mark.parametrize("zero", [0, 8])
@pytest.mark.parametrize("bits", [2, 4])
def test_torch_has_the_same_gradients(bits: int, zero: int) -> None:
    torch.manual_seed(bits)
    zero = min(zero, 1 << (bits - 1))
    x = (2 * torch.randn(300)).requires_grad_()
    step = torch.tensor([0.37], requires_grad=True)
    weights = torch.randn(300)
    found = stepped(x, step, torch.tensor([float(zero)]), bits=bits, scheme="asymmetric", gradient_scale=0.25)
    (found * weights).sum().backward()
    other, scale = x.detach().clone().requires_grad_(), torch.tensor([0.37], requires_grad=True)
    expected = torch._fake_quantize_learnable_per_tensor_affine(
        other, scale, torch.tensor([float(zero)]), 0, (1 << bits) - 1, 0.25
    )
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(step.grad, scale.grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_step_where_the_codes_do_not_change() -> None:
    """With the codes held, s q has the derivative q; rounding passed straight through takes x / s from it."""
    torch.manual_seed(0)
    x, step = torch.randn(50, dtype=torch.float64), 0.2

    def loss(step: float) -> float:
        codes = torch.clamp(torch.round(x / step), -8, 7)
        inside = codes == torch.round(x / step)
        # What is passed straight through: x / s itself in place of its rounding, beside a constant.
        return float(torch.where(inside, step * (codes_at - x / step_at + x / step), step * codes).sum())

    step_at = step
    codes_at = torch.clamp(torch.round(x / step), -8, 7)
    numeric = (loss(step + 1e-7) - loss(step - 1e-7)) / 2e-7
    learned = torch.tensor([step], dtype=torch.float64, requires_grad=True)
    zero = torch.tensor([8.0], dtype=torch.float64)
    stepped(x, learned, zero, bits=4, scheme="symmetric-full").sum().backward()
    assert learned.grad is not None
    assert math.isclose(float(learned.grad), numeric, rel_tol=1e-5)


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(axis=0), PerChannel(axis=1), PerGroup(size=8)], ids=str
)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_first_steps_and_gradients_by_group(bits: int, granularity: Granularity) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(16, 6)
    weights, most = layer.weight.detach().clone(), 2 ** (bits - 1) - 1
    learn_steps(find_weights(layer), bits, granularity=granularity)
    steps = the_only(layer).steps
    match granularity:
        case PerTensor():
            rows = weights.reshape(1, -1)
        case PerChannel(axis=axis):
            rows = weights if axis == 0 else weights.T
        case PerGroup():
            rows = weights.reshape(12, 8)
    torch.testing.assert_close(steps.first, 2 * rows.abs().mean(1) / math.sqrt(most))
    # The gradient of descent on the steps: what torch says of each row, times 1 / sqrt(N p).
    upstream = torch.randn(6, 16)
    (layer.weight * upstream).sum().backward()
    match granularity:
        case PerTensor():
            ups = upstream.reshape(1, -1)
        case PerChannel(axis=axis):
            ups = upstream if axis == 0 else upstream.T
        case PerGroup():
            ups = upstream.reshape(12, 8)
    expected: list[torch.Tensor] = []
    for row, up, first in zip(rows, ups, steps.first, strict=True):
        scale = first.reshape(1).clone().requires_grad_()
        fake = torch._fake_quantize_learnable_per_tensor_affine(
            row, scale, torch.zeros(1), -most - 1, most, 1 / math.sqrt(row.numel() * most)
        )
        (fake * up).sum().backward()
        assert scale.grad is not None
        expected.append(scale.grad)
    assert steps.relative.grad is not None
    torch.testing.assert_close(steps.relative.grad * steps.first, torch.cat(expected), rtol=1e-4, atol=1e-6)


def test_descent_moves_the_step_as_in_the_paper() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(30, 4, bias=False)
    learn_steps(find_weights(layer), 3)
    steps = the_only(layer).steps
    x = torch.randn(20, 30)
    step = steps.first.clone()
    original = find_weights(layer)[0].parameter.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        # The same by hand.
        own, scale = original.clone().requires_grad_(), step.clone().requires_grad_()
        fake = torch._fake_quantize_learnable_per_tensor_affine(
            own, scale, torch.zeros(1), -4, 3, 1 / math.sqrt(120 * 3)
        )
        (x @ fake.T).square().sum().backward()
        assert own.grad is not None
        assert scale.grad is not None
        original, step = original - 0.01 * own.grad, step - 0.01 * scale.grad
    torch.testing.assert_close(steps(), step, rtol=1e-4, atol=1e-6)
    assert not torch.equal(steps(), steps.first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale_dtype", [None, "bf16"])
def test_what_is_stored_decodes_to_the_weight(
    dtype: torch.dtype, scale_dtype: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).to(dtype)
    if dtype == torch.float64 and scale_dtype is not None:
        with pytest.raises(EncodingError, match="scales of bf16"):
            learn_steps(find_weights(layer), 3, scale_dtype="bf16")
        return
    learn_steps(
        find_weights(layer),
        3,
        granularity=PerChannel(axis=0),
        scale_dtype=scale_dtype,  # type: ignore[arg-type]
    )
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 64).to(dtype)).square().sum().backward()
        optimizer.step()
    (stored,) = quantized_tensors(find_weights(layer)).values()
    assert isinstance(stored, UniformTensor)
    expected = array_of(layer.weight)
    assert decode_affine(stored).tobytes() == expected.tobytes()
    remove_parametrizations(layer)
    dcz.convert(layer, tmp_path / "m.dcz")
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.read("weight").tobytes() == expected.tobytes()
        entry = next(tensor for tensor in reader.manifest.tensors if tensor.name == "weight")
    if dtype == torch.float32:
        assert isinstance(entry.values, Affine)
        assert entry.values.bits == 3


def test_learned_steps_come_nearer_than_ranges() -> None:
    """To weights with a few large ones, at 2 bits: the step learns to clip."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight[torch.rand(64, 64) < 0.005] *= 4
    target = layer.weight.detach().clone()
    ranged = nn.Linear(64, 64, bias=False)
    ranged.weight.data.copy_(target)
    fake_quantize(find_weights(ranged), 2)
    rounded = (ranged.weight - target).square().mean().item()
    learn_steps(find_weights(layer), 2)
    first = (layer.weight - target).square().mean().item()
    optimizer = torch.optim.Adam(the_only(layer).parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (layer.weight - target).square().mean().backward()
        optimizer.step()
    learned = (layer.weight - target).square().mean().item()
    assert learned < first
    assert learned < 0.7 * rounded


def test_what_was_pruned_stays_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 20)
    prune(find_weights(layer), 0.25)
    mask = layer.weight != 0
    kept = layer.weight[mask].detach()
    learn_steps(find_weights(layer), 4)
    torch.testing.assert_close(the_only(layer).steps.first, (2 * kept.abs().mean() / math.sqrt(7)).reshape(1))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
    assert bool((layer.weight[~mask] == 0).all())
    (stored,) = quantized_tensors(find_weights(layer)).values()
    assert isinstance(stored, UniformTensor)
    assert decode_affine(stored).tobytes() == array_of(layer.weight).tobytes()


@pytest.mark.parametrize("calibrated", [True, False])
def test_activations(calibrated: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(40, 10)
    hidden = torch.relu(module[0](x)).detach()
    assert learn_activation_steps(module, 3) == ["0", "2"]
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    if calibrated:
        calibrate(module, [x[:20], x[20:]])
        parameters = activation_parameters(module)
        assert parameters["0"].zero_points.tolist() == [4]
        assert parameters["2"].zero_points.tolist() == [0]
        np.testing.assert_allclose(parameters["0"].scales, 2 * x.abs().mean() / math.sqrt(3), rtol=1e-6)
        np.testing.assert_allclose(parameters["2"].scales, 2 * hidden.mean() / math.sqrt(7), rtol=1e-6)
    else:
        assert activation_parameters(module) == {}
    before = module(x).square().mean().item()
    for _ in range(30):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    assert module(x).square().mean().item() < before
    after = activation_parameters(module)["0"]
    codes = after.quantize(x.numpy())
    quantizer = module[0].input_quantizer
    assert isinstance(quantizer, nn.Module)
    assert quantizer(x).detach().numpy().tobytes() == after.dequantize(codes).tobytes()
    assert not math.isclose(float(after.scales[0]), float(2 * x.abs().mean() / math.sqrt(3)), rel_tol=1e-3)
    remove_activation_quantizers(module)
    assert len(list(module.parameters())) == 4


def test_the_activations_step_has_the_papers_gradient() -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 2)
    learn_activation_steps(module, 2)
    x, upstream = torch.randn(7, 5), torch.randn(7, 2)
    (module(x) * upstream).sum().backward()
    ((_, _, _, quantizer),) = activation_quantizers(module)
    assert isinstance(quantizer, LearnedStepQuantizer)
    steps = quantizer.steps
    assert steps.relative.grad is not None
    scale = steps.first.clone().requires_grad_()
    fake = torch._fake_quantize_learnable_per_tensor_affine(
        x, scale, torch.zeros(1), -2, 1, 1 / math.sqrt(5 * 1)
    )
    (nn.functional.linear(fake, module.weight.detach()) * upstream).sum().backward()
    torch.testing.assert_close(steps.relative.grad * steps.first, scale.grad)


def test_wrong_use() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(EncodingError, match=r"weight: .*symmetric"):
        learn_steps(find_weights(layer), 4, scheme="asymmetric")
    with pytest.raises(EncodingError, match="no room for both signs"):
        learn_steps(find_weights(layer), 1)
    with torch.no_grad():
        layer.weight.mul_(1e-9)
    with pytest.raises(EncodingError, match="too small for float16"):
        learn_steps(find_weights(layer), 4, scale_dtype="f16")
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(EncodingError, match="not finite"):
        learn_steps(find_weights(layer), 4)
    learn_activation_steps(layer, 4)
    with pytest.raises(EncodingError, match="not finite"):
        layer(torch.full((2, 4), float("inf")))

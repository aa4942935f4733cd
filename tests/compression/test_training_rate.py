"""Rate-aware training: its model of the coder against real streams and closed forms, its gradients, and what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import dcz
from dcz.compression.training.code_length import CodeLengthModel
from dcz.compression.training.masks import prune
from dcz.compression.training.rate import RateAware, UniformGrid, find_biases
from dcz.compression.training.weights import find_weights
from dcz.errors import UsageError
from dcz.format.manifest import PerTensor
from dcz.format.tensors import AffineTensor
from dcz.format.writer import Writer


def _stream_bytes(path: Path, tensor: AffineTensor) -> int:
    with Writer(path, effort="small", threads=1) as writer:
        writer.add_tensor("weight", tensor)
    with dcz.open(path) as file:
        return sum(file.reader.manifest.chunks.lengths)


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(counts[counts > 0] * np.log2(share)).sum())


@pytest.mark.parametrize(
    ("density", "spread"),
    [(0.08, 0.0), (0.02, 0.0), (0.08, 1.5), (0.02, 1.5), (0.01, 2.5)],
)
def test_the_code_length_is_that_of_the_stream(tmp_path: Path, density: float, spread: float) -> None:
    generator = np.random.default_rng(7)
    rows, columns = 300, 784
    # Rows and columns of unlike densities, in the proportions of a log-normal distribution.
    factor = np.exp(spread * generator.standard_normal((rows, 1)) / 2) * np.exp(
        spread * generator.standard_normal((1, columns)) / 2
    )
    stored = generator.random((rows, columns)) < np.minimum(density * factor / factor.mean(), 0.9)
    codes = stored * generator.choice(
        [-3, -2, -1, 1, 2, 3], (rows, columns), p=[0.05, 0.1, 0.35, 0.3, 0.15, 0.05]
    )
    tensor = AffineTensor(
        "f32",
        codes.shape,
        3,
        (codes + 4).astype(np.uint8),
        np.ones(1, np.float32),
        PerTensor(),
        mask=codes != 0,
    )
    seen = 8 * _stream_bytes(tmp_path / "x.dcz", tensor)
    matrix = torch.from_numpy(codes).float()
    assert CodeLengthModel(matrix).bits(matrix) == pytest.approx(seen, rel=0.04)


def test_the_code_length_without_contexts_is_the_entropy() -> None:
    codes = torch.zeros(1, 10_000)
    codes[0, :500] = 1
    codes[0, 500:600] = -2
    expected = _entropy(np.array([9400, 600])) + _entropy(np.array([500, 100]))
    assert CodeLengthModel(codes).bits(codes) == pytest.approx(expected, rel=1e-4)


def test_marginal_bits_has_the_gradient_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    codes = (torch.randn(12, 30, generator=generator) * 1.5).round()
    model = CodeLengthModel(codes * (torch.rand(12, 30, generator=generator) < 0.3))
    steps = (torch.randn(12, 30, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(model.marginal_bits, (steps,))


def test_one_weight_more_costs_what_marginal_bits_says() -> None:
    generator = torch.Generator().manual_seed(5)
    codes = (torch.rand(200, 300, generator=generator) < 0.03).float()
    model = CodeLengthModel(codes)
    row, column = (codes == 0).nonzero()[1234].tolist()
    more = codes.clone()
    more[row, column] = 1
    said = float(model.marginal_bits(more) - model.marginal_bits(codes))
    assert said == pytest.approx(
        CodeLengthModel(more).bits(more) - CodeLengthModel(codes).bits(codes), rel=0.1
    )


def test_rows_that_hold_little_cost_more() -> None:
    codes = torch.zeros(20, 100)
    codes[:4, ::5] = 1
    model = CodeLengthModel(codes)
    steps = torch.zeros(20, 100, requires_grad=True)
    model.marginal_bits(steps + 0.25).backward()
    gradient = cast("torch.Tensor", steps.grad)
    assert float(gradient[4:].min()) > float(gradient[:4].max()) > 0


def test_nothing_that_is_useless_stays() -> None:
    """Also where all is dense and large, and a zero would cost more than a weight does."""
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(-1.0)
    rate = RateAware(layer, levels=8)
    optimizer = torch.optim.Adam(rate.parameter_groups(0.02, step_lr=0))
    for _ in range(200):
        optimizer.zero_grad()
        (rate.bits() * 1e-3).backward()
        optimizer.step()
    assert rate.densities() == {"weight": 0.0, "bias": 0.0}
    rate.remove()
    assert not layer.weight.any()


def test_a_weight_stays_where_it_is_worth_more_than_its_bits() -> None:
    """Of a quadratic loss h/2 (w - t)^2 the slope at zero is h t: what pulls less than the rate goes, what pulls more stays."""
    layer = nn.Linear(100, 1, bias=False)
    target = torch.linspace(0, 1, 100)[None]
    step = 1 / 8
    with torch.no_grad():
        layer.weight.fill_(0.9 * step)  # codes of 1, from where each finds its way
    rate = RateAware(layer, levels=0.9, refit=10**9)  # the costs stay those of the first codes
    (weight,) = find_weights(layer)
    model_slope = float(torch.autograd.grad(rate.bits(), weight.parameter)[0][0, 0])
    strength = 0.3 / model_slope  # a pull of 0.3 towards zero
    optimizer = torch.optim.SGD([weight.parameter], 0.01)
    for _ in range(2000):
        loss = ((layer.weight - target) ** 2).sum() / 2 + strength * rate.bits()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = layer.weight.detach()[0] != 0
    assert not kept[target[0] < 0.3 - step].any()
    assert kept[target[0] > 0.3 + step].all()


def test_what_is_written_is_what_the_module_computes_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(30, 4))
    inputs = torch.randn(7, 3, 8)
    rate = RateAware(module, levels=5.5)
    expected = module(inputs)
    with Writer(tmp_path / "x.dcz", effort="small") as writer:
        for name, tensor in rate.tensors().items():
            writer.add_tensor(name, tensor)
    rate.remove()
    state = dcz.load(tmp_path / "x.dcz")
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert torch.equal(module(inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_written_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    layer = nn.Linear(20, 10).to(dtype)
    rate = RateAware(layer, levels=100)
    with Writer(tmp_path / "x.dcz") as writer:
        for name, tensor in rate.tensors().items():
            writer.add_tensor(name, tensor)
    rate.remove()
    state = dcz.load(tmp_path / "x.dcz")
    assert state["weight"].dtype == dtype
    assert torch.equal(state["weight"], layer.weight)
    assert torch.equal(state["bias"], layer.bias)


def test_codes_take_the_fewest_bits_that_hold_them() -> None:
    grid = UniformGrid(1.0, torch.zeros(()))
    for values, bits in (([0, -1], 1), ([1, -1], 2), ([1, -2], 2), ([2], 3), ([127, -127], 8), ([1000], 8)):
        assert grid.stored(torch.tensor(values, dtype=torch.float32)).bits == bits


def test_the_gradient_of_the_step_is_that_of_lsq() -> None:
    """Equation 3 of Esser et al. (2020): round(w / s) - w / s within the grid; the largest code beyond it."""
    weights = torch.tensor([0.0, 0.2, 0.5, -1.3, 40.0, -40.0])
    grid = UniformGrid(0.25, weights)
    expected = (weights / 0.25).round() - weights / 0.25
    expected[-2:] = torch.tensor([127.0, -127.0])
    for i, wanted in enumerate(expected):
        (gradient,) = torch.autograd.grad(grid(weights)[i], grid.log_step)
        assert float(gradient) == pytest.approx(0.25 * float(wanted), abs=1e-5)


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    return torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target).long()


def _trained(strength: float, path: Path, epochs: int) -> tuple[float, int, bytes]:
    """Accuracy on a third of the digits, bytes of the codes, and the file."""
    torch.manual_seed(1)
    inputs, labels = _digits()
    module = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    rate = RateAware(module)
    optimizer = torch.optim.Adam(rate.parameter_groups(8e-3))
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(100):
            loss = nn.functional.cross_entropy(module(inputs[batch]), labels[batch]) + strength * rate.bits()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    tensors = rate.tensors()
    with Writer(path, effort="small", threads=1) as writer:
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
    accuracy = (module(inputs[1200:]).argmax(1) == labels[1200:]).float().mean().item()
    with dcz.open(path) as file:
        size = sum(file.reader.manifest.chunks.lengths)
    heads = 10 * len(tensors)  # of streams, tables of codes, steps
    assert sum(rate.code_length().values()) / 8 == pytest.approx(size - heads, rel=0.06)
    return accuracy, size, path.read_bytes()


def test_digits_become_small_and_stay_good(tmp_path: Path) -> None:
    free, plain, _ = _trained(0.0, tmp_path / "free.dcz", 12)
    priced, small, _ = _trained(1e-4, tmp_path / "priced.dcz", 12)
    assert small < plain / 8
    assert priced > free - 0.02


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    first, again = (_trained(1e-4, tmp_path / f"{name}.dcz", 2)[2] for name in "ab")
    assert first == again


def test_biases_are_those_of_the_layers_with_weights() -> None:
    module = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(1, 2, 3), nn.LSTM(2, 3), nn.Linear(3, 3, bias=False)
    )
    assert [weight.name for weight in find_biases(module)] == [
        "0.bias",
        "2.bias",
        "3.bias_ih_l0",
        "3.bias_hh_l0",
    ]


def test_tied_weights_are_counted_once() -> None:
    module = nn.Module()
    module.a, module.b = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    module.b.weight = module.a.weight
    rate = RateAware(module)
    assert list(rate.tensors()) == ["a.weight"]
    assert module.a.weight is not None
    assert torch.equal(module.a.weight, module.b.weight)


def test_fresh_biases_of_zero_can_be_learned() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.bias)
    rate = RateAware(layer)
    optimizer = torch.optim.Adam(rate.parameter_groups(0.01))
    for _ in range(100):
        optimizer.zero_grad()
        ((layer(torch.ones(1, 4)) - 2) ** 2).sum().backward()
        optimizer.step()
    assert layer.bias.detach().min() > 0


def test_what_is_quantized_already_keeps_its_step() -> None:
    layer = nn.Linear(3, 3)
    first = RateAware(layer, levels=4).tensors()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(0.5)  # type: ignore[union-attr, operator]
    second = RateAware(layer, levels=4).tensors()
    assert list(second) == list(first) == ["weight", "bias"]
    for name in first:
        before, after = cast("AffineTensor", first[name]), cast("AffineTensor", second[name])
        assert before.scales == after.scales


def test_impossible_requests() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(UsageError, match="levels"):
        RateAware(layer, levels=200)
    with pytest.raises(UsageError, match="every 0 calls"):
        RateAware(layer, refit=0)
    prune(find_weights(layer), 0.5)
    with pytest.raises(UsageError, match="PruningMask already"):
        RateAware(layer)
    broken = nn.Linear(2, 2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        RateAware(broken)

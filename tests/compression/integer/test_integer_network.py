"""Integer networks against exact integer arithmetic, against their float simulation, and against torch's quantized
operators."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tests.compression.networks.zoo import Residual, batch, mobile, networks, seeded
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcz.compression.gptq import quantize_gptq
from dcz.compression.integer.conversion import integer_network
from dcz.compression.integer.description import AddStep, ClampStep, ConvolutionStep, Description, LinearStep
from dcz.compression.integer.network import INPUT_BOUNDS, SCALES, ZERO_POINTS, IntegerNetwork
from dcz.compression.networks.equalization import equalize
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.observers import HistogramObserver, MinMaxObserver
from dcz.compression.quantizers import quantize_affine
from dcz.errors import EncodingError, UsageError
from dcz.format import PerChannel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch, about its speed


class Everything(nn.Module):
    """Strides, dilation, groups, uneven padding, pools of all kinds, an activation that others see, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, (3, 4), padding="same", dilation=(1, 2))
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False)
        self.conv3 = nn.Conv2d(6, 4, 3, padding=(2, 1), dilation=(2, 1), groups=2)
        self.pool = nn.MaxPool2d(3, 1, padding=1, dilation=1)
        self.average = nn.AvgPool2d((2, 2), 1, padding=1)
        self.relu6 = nn.ReLU6()
        self.drop = nn.Dropout()
        self.fc = nn.Linear(20, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(images))
        x = F.relu(x) + x
        x = self.conv2(x)
        y = self.relu6(self.drop(self.conv3(x)))
        z = F.max_pool2d(self.average(torch.cat([self.pool(y), x], 1)), (3, 6))
        outputs: torch.Tensor = self.fc(F.relu(z).flatten(1))
        return outputs


def everything() -> tuple[nn.Module, tuple[int, ...]]:
    return seeded(Everything()), (2, 11, 10)


CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{name: networks()[name] for name in ("conv1d", "linear", "mobile", "residual")},
    "everything": everything(),
}


@torch.no_grad()
def simulated(
    network: IntegerNetwork, values: list[torch.Tensor], folded: nn.Module, *, exact_biases: bool
) -> list[torch.Tensor]:
    """What each step would give if it computed with the numbers that the codes stand for, float64, and rounded at the end.

    The weights are those of the float network, rounded; so are its biases, unless they are to be exact.
    """
    scales, zeros = network.tensors[SCALES].double(), network.tensors[ZERO_POINTS].double()
    reals = [scales[i] * (value.double() - zeros[i]) for i, value in enumerate(values)]
    found = [values[0].double()]
    for number, step in enumerate(network.description.steps):
        inputs = [reals[i] for i in step.inputs]
        x = inputs[0]
        if step.op in ("linear", "convolution"):
            layer: Any = folded.get_submodule(step.name)
            step_sizes = network.weight_scales[step.name].double().reshape(-1, *[1] * (layer.weight.ndim - 1))
            codes = torch.round(layer.weight.double() / step_sizes)
            assert torch.equal(codes.char(), network.tensors[f"{step.name}.weight"])
            weight = codes * step_sizes
            bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.double()
            if not exact_biases:
                units = scales[step.inputs[0]] * step_sizes.reshape(-1)
                bias = torch.round(bias / units) * units
            if step.op == "linear":
                y = F.linear(x, weight, bias)
            else:
                if isinstance(layer.padding, str):
                    assert isinstance(step, ConvolutionStep)
                    x = F.pad(x, [side for pair in reversed(step.padding) for side in pair])
                convolve: Any = F.conv1d if x.ndim == 3 else F.conv2d
                padding = 0 if isinstance(layer.padding, str) else layer.padding
                y = convolve(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
        elif step.op == "max-pool":
            y = F.max_pool2d(x, step.kernel, step.stride, [pad for pad, _ in step.padding], step.dilation)
        elif step.op == "average-pool":
            y = F.avg_pool2d(x, step.kernel, step.stride, [pad for pad, _ in step.padding])
        elif step.op == "add":
            y = inputs[0] + inputs[1]
        elif step.op == "concatenate":
            y = torch.cat(inputs, 1)
        else:
            y = x.flatten(1) if step.op == "flatten" else x
        codes = torch.round(y / scales[number + 1]) + zeros[number + 1]
        bounds = network.tensors.get(f"{step.name}.bounds", torch.tensor([[-128], [127]])).double()
        low, high = (bound.reshape(1, -1, *[1] * (y.ndim - 2)) for bound in bounds)
        found.append(torch.minimum(torch.maximum(codes, low), high))
    return found


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", sorted(CASES))
def test_each_output_is_within_one_step_of_the_simulation(name: str, bits: int) -> None:
    module, shape = CASES[name]
    network = integer_network(module, [batch(shape, 32)], bits=bits)
    folded = fold_batch_norms(module).module
    values = network.values(network.quantize(batch(shape, 8, seed=2)))
    equal = total = 0
    exact, rounded = (simulated(network, values, folded, exact_biases=exact) for exact in (True, False))
    for ours, first, second in zip(values, exact, rounded, strict=True):
        assert float((ours.double() - first).abs().max()) <= 1
        assert float((ours.double() - second).abs().max()) <= 1
        equal, total = equal + int((ours == second).sum()), total + ours.numel()
    assert equal >= 0.9999 * total


@pytest.mark.parametrize("name", sorted(CASES))
def test_outputs_are_near_those_of_the_float_network(name: str) -> None:
    module, shape = CASES[name]
    inputs = batch(shape, 64)
    exact = module(inputs).detach()
    for multiplier_bits, most in ((31, 0.05), (8, 0.06)):
        found = integer_network(module, [inputs], multiplier_bits=multiplier_bits)(inputs)
        assert float((found - exact).abs().max() / exact.abs().max()) < most


class _Types(TorchDispatchMode):
    """Collects the types of all tensors that any operation takes or gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs or {}, result))
        self.seen |= {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)}
        assert not any(isinstance(leaf, float) for leaf in leaves), func
        return result


@pytest.mark.parametrize("name", sorted(CASES))
def test_nothing_between_input_and_output_is_floating_point(name: str) -> None:
    module, shape = CASES[name]
    network = integer_network(module, [batch(shape)])
    codes = network.quantize(batch(shape))
    with _Types() as types:
        outputs = network.run(codes)
    assert torch.int8 in types.seen
    assert torch.int32 in types.seen
    assert not any(dtype.is_floating_point or dtype.is_complex for dtype in types.seen), types.seen
    assert outputs.dtype == torch.int8


def slow_convolution(network: IntegerNetwork, codes: np.ndarray, step: ConvolutionStep) -> np.ndarray:
    """Loops over everything, Python's integers, one exact rounding."""
    parts = {
        key: network.tensors[f"{step.name}.{key}"].tolist()
        for key in ("weight", "bias", "multiplier", "shift")
    }
    bounds = network.tensors[f"{step.name}.bounds"].expand(2, len(parts["bias"])).tolist()
    before, after = (int(network.tensors[ZERO_POINTS][i]) for i in (0, 1))
    weight = np.array(parts["weight"])
    (top, bottom), (left, right) = step.padding
    padded = np.pad(
        codes.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=before
    )
    kernel = weight.shape[2:]
    reach = [d * (k - 1) + 1 for d, k in zip(step.dilation, kernel, strict=True)]
    places = [(padded.shape[2 + i] - reach[i]) // step.stride[i] + 1 for i in (0, 1)]
    found = np.zeros((len(codes), len(weight), *places), np.int64)
    per_group = len(weight) // step.groups
    for n, o, y, x in itertools.product(*map(range, found.shape)):
        total = parts["bias"][o]
        for c, i, j in itertools.product(range(weight.shape[1]), *map(range, kernel)):
            channel = o // per_group * weight.shape[1] + c
            row = y * step.stride[0] + i * step.dilation[0]
            column = x * step.stride[1] + j * step.dilation[1]
            total += int(weight[o, c, i, j]) * int(padded[n, channel, row, column])
        code = round(Fraction(total * parts["multiplier"][o], 2 ** parts["shift"][o])) + after
        found[n, o, y, x] = min(max(code, bounds[0][o]), bounds[1][o])
    return found


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 8, (2, 3), padding=(0, 2), dilation=(2, 1), groups=4),
        nn.Conv2d(4, 3, 2, padding="same", bias=False),
    ],
    ids=["strided", "depthwise", "same"],
)
def test_a_convolution_to_the_bit(layer: nn.Conv2d) -> None:
    module = seeded(nn.Sequential(layer, nn.ReLU6()))
    network = integer_network(module, [batch((4, 6, 5)) + 0.5])
    codes = network.quantize(batch((4, 6, 5), 2, seed=3) * 2)
    assert codes.abs().max() >= 127
    step = network.description.steps[0]
    assert isinstance(step, ConvolutionStep)
    np.testing.assert_array_equal(network.run(codes).numpy(), slow_convolution(network, codes.numpy(), step))


@pytest.mark.skipif(not hasattr(torch.ops.quantized, "conv2d"), reason="torch.ao is gone")
@pytest.mark.filterwarnings("ignore")
def test_torch_quantized_operators_give_the_same_within_one_step() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    module = seeded(nn.Sequential(conv, nn.Flatten(), nn.Linear(8 * 4 * 4, 5)))
    inputs = batch((3, 8, 8), 32)
    network = integer_network(module, [inputs])
    scales = [float(scale) for scale in network.tensors[SCALES]]
    zeros = [int(zero) + 128 for zero in network.tensors[ZERO_POINTS]]
    values = network.values(network.quantize(inputs))

    def weight(name: str) -> torch.Tensor:
        return torch._make_per_channel_quantized_tensor(
            network.tensors[f"{name}.weight"],
            network.weight_scales[name].double(),
            torch.zeros(len(network.weight_scales[name]), dtype=torch.long),
            0,
        )

    linear: Any = module[2]
    quantized = torch.quantize_per_tensor(inputs, scales[0], zeros[0], torch.quint8)
    assert int((quantized.int_repr().int() - 128 - values[0].int()).abs().max()) <= 1
    exact = torch._make_per_tensor_quantized_tensor((values[0].int() + 128).byte(), scales[0], zeros[0])
    packed = torch.ops.quantized.conv2d_prepack(weight("0"), conv.bias, [2, 2], [1, 1], [1, 1], 1)
    theirs = torch.ops.quantized.conv2d(exact, packed, scales[1], zeros[1])
    assert int((theirs.int_repr().int() - 128 - values[1].int()).abs().max()) <= 1
    exact = torch._make_per_tensor_quantized_tensor((values[2].int() + 128).byte(), scales[2], zeros[2])
    packed = torch.ops.quantized.linear_prepack(weight("2"), linear.bias)
    theirs = torch.ops.quantized.linear(exact, packed, scales[3], zeros[3])
    assert int((theirs.int_repr().int() - 128 - values[3].int()).abs().max()) <= 1


def test_ceilings_of_channels_become_bounds() -> None:
    network = fold_batch_norms(seeded(mobile(nn.ReLU6)))
    equalize(network)
    inputs = batch((3, 8, 8), 64) * 3
    integers = integer_network(network.module, [inputs])
    assert [step.op for step in integers.description.steps].count("clamp") == 0
    bounds = integers.tensors["3.bounds"]
    assert bounds.shape == (2, 8)
    exact = network.module(inputs).detach()
    assert float((integers(inputs) - exact).abs().max() / exact.abs().max()) < 0.05


def test_learned_ranges_and_weights_are_taken_as_they_are() -> None:
    module = seeded(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)))
    inputs = batch((12,), 64)
    observer = MinMaxObserver()
    observer.observe(np.array([0.0, 1.5], np.float32))
    learned = observer.parameters(bits=4)
    first: Any = module[0]
    hessian = (inputs.T @ inputs).double().numpy()
    gptq = quantize_gptq(first.weight.detach().numpy(), hessian, bits=3, scheme="symmetric")
    network = integer_network(
        module,
        [inputs],
        ranges={"2": learned},
        weights={"0.weight": gptq},
        observer=lambda: HistogramObserver("mse"),
    )
    assert network.tensors[SCALES][1] == learned.scales[0]
    assert (network.tensors["0.weight"].numpy() == gptq.codes.reshape(8, 12).astype(int) - 4).all()
    codes = network.values(network.quantize(inputs))[1]
    assert (int(codes.min()), int(codes.max())) == (-8, 7)
    asymmetric = quantize_affine(first.weight.detach().numpy(), scheme="asymmetric")
    wide = quantize_affine(first.weight.detach().numpy(), granularity=PerChannel(axis=1))
    lowest = quantize_affine(first.weight.detach().numpy(), scheme="symmetric-full")
    lowest.codes.reshape(-1)[0] = 0
    for wrong in (asymmetric, wide, lowest):
        with pytest.raises(UsageError, match=r"0\.weight"):
            integer_network(module, [inputs], weights={"0.weight": wrong})
    with pytest.raises(UsageError, match="no layer"):
        integer_network(module, [inputs], ranges={"1": learned})


def test_activations_of_few_bits() -> None:
    module, inputs = seeded(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))), batch((12,), 64)
    network = integer_network(module, [inputs], activation_bits=4)
    for codes in network.values(network.quantize(10 * inputs)):
        assert (int(codes.min()), int(codes.max())) == (-8, 7)


def test_dead_channels_with_biases() -> None:
    module = seeded(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    first: Any = module[0]
    with torch.no_grad():
        first.weight[1] = 0
        first.weight[2] *= 1e-12
        first.bias.copy_(torch.tensor([0.1, 3.0, -2.0, 0.0, 1.0]))
    inputs = batch((6,), 64)
    exact = module(inputs).detach()
    found = integer_network(module, [inputs])(inputs)
    assert float((found - exact).abs().max() / exact.abs().max()) < 0.03
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert integer_network(module, [inputs])(inputs).abs().max() == 0


def test_a_module_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.fc(torch.relu(self.fc(x)))
            return outputs

    module, inputs = seeded(Twice()), batch((5,), 64)
    network = integer_network(module, [inputs])
    assert [step.name for step in network.description.steps] == ["fc", "fc#2"]
    exact = module(inputs).detach()
    assert float((network(inputs) - exact).abs().max() / exact.abs().max()) < 0.03


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), "1: there is no integer form of Sigmoid"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)), "0: a BatchNorm"),
        (nn.Sequential(nn.ConvTranspose1d(4, 4, 1)), "transposed"),
        (nn.Sequential(nn.Conv1d(4, 4, 1, padding=1, padding_mode="circular")), "not zeros"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.MaxPool1d(2, ceil_mode=True)), "ceil_mode"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.AvgPool1d(2, 1, 1, count_include_pad=False)), "leave out"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.AdaptiveAvgPool1d(2)), "different sizes"),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten(0)), "flattened"),
        (nn.Sequential(nn.Identity()), "nothing to compute"),
    ],
)
def test_what_has_no_integer_form(module: nn.Module, message: str) -> None:
    inputs = batch((4,) if isinstance(module[0], nn.Linear | nn.BatchNorm1d) else (4, 5))  # type: ignore[index]
    with pytest.raises(UsageError, match=message):
        integer_network(module, [inputs])


def test_calibration_has_to_fit() -> None:
    module = seeded(Residual())
    with pytest.raises(UsageError, match="no calibration batches"):
        integer_network(module, [])
    with pytest.raises(UsageError, match="different shapes"):
        integer_network(module, [batch((2, 8, 8)), batch((2, 6, 6))])
    with pytest.raises(UsageError, match="tensors of inputs"):
        integer_network(module, [(batch((2, 8, 8)), torch.zeros(2))])  # type: ignore[list-item]
    with pytest.raises(EncodingError, match=r"activations are not finite"):
        integer_network(module, [batch((2, 8, 8)) * torch.nan])
    with pytest.raises(EncodingError, match="bits"):
        integer_network(module, [batch((2, 8, 8))], bits=9)
    network = integer_network(module, [batch((2, 8, 8))])
    with pytest.raises(UsageError, match="int8"):
        network.run(batch((2, 8, 8)))
    with pytest.raises(UsageError, match="what this network takes"):
        network.run(torch.zeros(1, 2, 8, 9, dtype=torch.int8))
    with pytest.raises(EncodingError, match="not a number"):
        network(batch((2, 8, 8)) * torch.nan)


def test_an_empty_batch() -> None:
    module = seeded(Residual())
    network = integer_network(module, [batch((2, 8, 8))])
    assert network(torch.zeros(0, 2, 8, 8)).shape == module(torch.zeros(0, 2, 8, 8)).shape


def linear_network(inputs: int, weight: int, bias: int) -> IntegerNetwork:
    tensors = {
        SCALES: torch.ones(2),
        ZERO_POINTS: torch.zeros(2, dtype=torch.int8),
        INPUT_BOUNDS: torch.tensor([-128, 127], dtype=torch.int8),
        "fc.weight": torch.full((1, inputs), weight, dtype=torch.int8),
        "fc.bias": torch.tensor([bias], dtype=torch.int32),
        "fc.multiplier": torch.tensor([2**30], dtype=torch.int32),
        "fc.shift": torch.tensor([31], dtype=torch.uint8),
        "fc.bounds": torch.tensor([[-128], [127]], dtype=torch.int8),
    }
    description = Description(input=(inputs,), steps=(LinearStep(name="fc", inputs=(0,)),))
    return IntegerNetwork(description, tensors, {"fc": torch.ones(1)})


def test_accumulators_stay_within_int32() -> None:
    inputs = 132_104  # 128 * 127 * 132,104 + 4,000 < 2^31
    most = 2**31 - 1 - 128 * 127 * inputs
    network = linear_network(inputs, 127, most)
    extreme = torch.full((1, inputs), 127, dtype=torch.int8)
    assert int(network.run(extreme)) == 127
    assert int(network.run(-extreme)) == -128
    for bias in (most + 1, -most - 1):
        with pytest.raises(EncodingError, match="past the range of int32"):
            linear_network(inputs, -127, bias)


def test_sums_are_rounded_once() -> None:
    steps = (AddStep(name="add", inputs=(0, 0, 0)), ClampStep(name="clamp", inputs=(1,)))
    tensors = {
        SCALES: torch.tensor([1.0, 2.0, 2.0]),
        ZERO_POINTS: torch.tensor([3, -1, -1], dtype=torch.int8),
        INPUT_BOUNDS: torch.tensor([-128, 127], dtype=torch.int8),
        "add.multiplier": torch.full((3,), 2**30, dtype=torch.int32),
        "add.shift": torch.tensor([31], dtype=torch.uint8),
        "add.bounds": torch.tensor([[-128], [127]], dtype=torch.int8),
        "clamp.bounds": torch.tensor([[-1], [5]], dtype=torch.int8),
    }
    network = IntegerNetwork(Description(input=(5,), steps=steps), tensors, {})
    codes = torch.tensor([[4, 2, 6, 8, 0]], dtype=torch.int8)
    values = network.values(codes)
    # 3 (q - 3) / 2, ties to even, minus 1.
    assert values[1].tolist() == [[1, -3, 3, 7, -5]]
    assert values[2].tolist() == [[1, -1, 3, 5, -1]]

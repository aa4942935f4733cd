"""Quantized activations: static and dynamic, put in and taken out again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcz.compression.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
    dynamic_parameters,
)
from dcz.compression.quantizers import Scheme
from dcz.compression.training.activation_metadata import describe_activations, restore_activations
from dcz.compression.training.activations import (
    StaticQuantizer,
    activation_parameters,
    activation_quantizers,
    add_activation_quantizers,
    calibrate,
    quantize_activations,
    remove_activation_quantizers,
)
from dcz.compression.training.clipping import clip_activations
from dcz.compression.training.fake_quantization import fake_quantize
from dcz.compression.training.learned_step import learn_activation_steps
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.errors import EncodingError, UsageError

SCHEMES: tuple[Scheme, ...] = ("symmetric", "symmetric-full", "asymmetric")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    ).eval()


def images(seed: int, count: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_static_is_dynamic_when_it_is_calibrated_with_the_same_batch(bits: int, scheme: Scheme) -> None:
    x = images(1)
    # One layer: behind it, what is calibrated has seen activations as they are.
    static, dynamic = network(), network()
    quantize_activations(static, bits, scheme=scheme, layers=["0"])
    quantize_activations(dynamic, bits, scheme=scheme, mode="dynamic", layers=["0"])
    calibrate(static, [x])
    found, expected = static(x), dynamic(x)
    assert torch.equal(found, expected)
    assert not torch.equal(found, network()(x))
    other = images(2) * 3
    assert not torch.equal(static(other), dynamic(other))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_dynamic_ranges_are_the_observers(scheme: Scheme, axis: int | None) -> None:
    layer = nn.Linear(5, 3)
    quantize_activations(layer, 4, scheme=scheme, mode="dynamic", axis=axis)
    x = torch.randn(7, 5) + 0.5
    seen: list[torch.Tensor] = []
    for _, _, _, quantizer in activation_quantizers(layer):
        quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    layer(x)
    parameters = dynamic_parameters(x.numpy(), bits=4, scheme=scheme, axis=axis)
    expected = parameters.dequantize(parameters.quantize(x.numpy()))
    assert seen[0].numpy().tobytes() == expected.tobytes()
    torch.testing.assert_close(
        layer(x), nn.functional.linear(torch.tensor(expected), layer.weight, layer.bias)
    )


@pytest.mark.parametrize(
    "make",
    [
        MinMaxObserver,
        lambda: MinMaxObserver(axis=1),
        lambda: MovingAverageObserver(0.5),
        lambda: HistogramObserver("kl"),
        lambda: HistogramObserver("percentile", percentile=99),
    ],
    ids=["min-max", "by channel", "moving average", "kl", "percentile"],
)
def test_static_ranges_are_the_observers(make: Callable[[], Observer]) -> None:
    module = network()
    names = quantize_activations(module, 6, observer=make)
    assert names == ["0", "4", "6"]
    batches = [images(seed) for seed in range(3)]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    plain = network()
    for name in names:
        plain.get_submodule(name).register_forward_pre_hook(
            lambda layer, arguments, name=name: seen[name].append(arguments[0].detach())
        )
    for batch in batches:
        plain(batch)
    calibrate(module, batches)
    for name, parameters in activation_parameters(module).items():
        observer = make()
        for values in seen[name]:
            observer.observe(values.numpy())
        expected = observer.parameters(bits=6, scheme="asymmetric")
        assert np.array_equal(parameters.scales, expected.scales)
        assert np.array_equal(parameters.zero_points, expected.zero_points)
        quantizer = StaticQuantizer.of(expected)
        values = seen[name][0]
        found = quantizer(values).numpy()
        assert found.tobytes() == expected.dequantize(expected.quantize(values.numpy())).tobytes()


def test_removed_without_a_trace() -> None:
    module = network()
    keys, expected = list(module.state_dict()), module(images(0))
    quantize_activations(module, 4)
    quantize_activations(module, 4, side="outputs", mode="dynamic", layers=lambda name, layer: name == "2")
    calibrate(module, [images(0)])
    copied = copy.deepcopy(module)
    assert torch.equal(copied(images(1)), module(images(1)))
    assert len(list(activation_quantizers(module))) == 4
    assert not torch.equal(module(images(0)), expected)
    remove_activation_quantizers(module)
    assert list(activation_quantizers(module)) == []
    assert torch.equal(module(images(0)), expected)
    assert list(module.state_dict()) == keys
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())
    assert len(list(activation_quantizers(copied))) == 4


def test_with_quantized_weights_in_a_loop_of_ones_own() -> None:
    module = network().train()
    fake_quantize(find_weights(module), 4)
    quantize_activations(module, 4)
    calibrate(module, [images(0, 64)])
    assert module.training
    target = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(images(0, 64)), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert len(find_weights(module)) == 3
    remove_parametrizations(module)
    remove_activation_quantizers(module)
    assert list(module.state_dict()) == list(network().state_dict())


def test_the_gradient_is_cut_where_the_range_ends() -> None:
    layer = nn.Linear(3, 1, bias=False)
    nn.init.ones_(layer.weight)
    quantize_activations(layer, 8, scheme="symmetric")
    calibrate(layer, [torch.tensor([[-1.0, 0.0, 1.0]])])
    x = torch.tensor([[0.3, 2.0, -5.0]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 0, 0]]


def test_batches_of_several_arguments() -> None:
    module = nn.Bilinear(3, 4, 2)
    quantize_activations(module, 8)
    first, second = torch.randn(5, 3), torch.randn(5, 4)
    calibrate(module, [(first, second), {"input1": first * 2, "input2": second}])
    calibrate(module, [(first * 3, second, "label")], lambda net, batch: net(*batch[:2]))
    scales = activation_parameters(module)[""].scales
    expected = 3 * (max(0, float(first.max())) - min(0, float(first.min()))) / 255
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    named = module(input1=first, input2=second)
    assert torch.equal(named, module(first, second))


def test_half_precision_and_tokens() -> None:
    module = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 2)).to(torch.bfloat16)
    assert quantize_activations(module, 8) == ["1"]
    calibrate(module, [torch.arange(10)])
    assert module(torch.arange(10)).dtype == torch.bfloat16


def test_wrong_use() -> None:
    module = network()
    with pytest.raises(UsageError, match="no quantizers of activations"):
        calibrate(module, [images(0)])
    with pytest.raises(UsageError, match="no layer is chosen"):
        quantize_activations(module, 8, layers=["nothing"])
    with pytest.raises(UsageError, match="Sequential: choose the layers in it"):
        quantize_activations(nn.Sequential(module), 8, layers=["0"])
    with pytest.raises(UsageError, match="no mode 'later'"):
        quantize_activations(module, 8, mode="later")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no side 'weights'"):
        quantize_activations(module, 8, side="weights")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="codes of 0 bits"):
        quantize_activations(module, 0)
    assert list(activation_quantizers(module)) == []
    quantize_activations(module, 8)
    with pytest.raises(UsageError, match="inputs of 0 are quantized already"):
        quantize_activations(module, 8)
    with pytest.raises(UsageError, match="range of an activation is not known"):
        module(images(0))
    with pytest.raises(UsageError, match="no batch"):
        calibrate(module, [])
    with pytest.raises(EncodingError, match=r"the inputs of 0: \d+ of \d+ activations are not finite"):
        calibrate(module, [images(0) * float("nan")])
    with pytest.raises(UsageError, match="no set of arguments of the Sequential: too many") as caught:
        calibrate(module, [(images(0), torch.zeros(4))])
    assert "for inputs, _ in loader" in str(caught.value.hint)
    with pytest.raises(UsageError, match="range of an activation is not known"):
        module(images(0))
    remove_activation_quantizers(module)
    quantize_activations(module, 8, mode="dynamic", axis=7)
    with pytest.raises(EncodingError, match="the inputs of 0: axis 7"):
        module(images(0))
    remove_activation_quantizers(module)
    quantize_activations(module, 8, mode="dynamic", layers=["4"])
    with pytest.raises(EncodingError, match="the inputs of 4: 1 of 24 activations"):
        module[4](torch.tensor([[float("inf")] + [0.0] * 23]))


def test_layers_that_are_not_called_do_not_matter() -> None:
    module = network()
    module.add_module("unused", nn.Linear(3, 3))
    quantize_activations(module, 8, layers=["0", "4"])
    learn_activation_steps(module, 8, layers=["6"])
    quantize_activations(module, 8, layers=["unused"])
    calibrate(module, [images(0)], lambda net, batch: nn.Sequential(*list(net.children())[:5])(batch))
    assert sorted(activation_parameters(module)) == ["0", "4"]


def test_they_travel_as_text() -> None:
    module = network()
    quantize_activations(module, 4, layers=["0"], observer=lambda: MinMaxObserver(axis=1))
    quantize_activations(module, 5, layers=["4"], mode="dynamic", scheme="symmetric")
    learn_activation_steps(module, 3, layers=["6"])
    clip_activations(module, 6, layers=["2"], side="outputs", level=2.0)
    with pytest.raises(UsageError, match="range of the inputs of 0 is not known"):
        describe_activations(module)
    calibrate(module, [images(0)])
    described = describe_activations(module)
    other = network()
    assert sorted(restore_activations(other, described)) == ["0", "2", "4", "6"]
    assert torch.equal(other(images(3)), module(images(3)))
    assert json.loads(describe_activations(other)) == json.loads(described)


@pytest.mark.parametrize(
    "described",
    [
        "",
        "{}[",
        "3",
        "[3]",
        "[{}]",
        '[{"layer":"0","side":"inputs","bits":9,"scheme":"symmetric","axis":null}]',
        '[{"layer":"0","side":"inputs","bits":1,"scheme":"symmetric","axis":null}]',
        '[{"layer":"0","side":"inputs","bits":4,"scheme":"symmetric","axis":null,"scales":[NaN],"zero_points":[0]}]',
        '[{"layer":"0","side":"inputs","bits":4,"scheme":"symmetric","axis":null,"scales":[1.0]}]',
        '[{"layer":"0","side":"inputs","bits":4,"scheme":"symmetric","axis":null},{"layer":"0","side":"inputs","bits":5,"scheme":"symmetric","axis":null}]',
        '[{"layer":"9","side":"inputs","bits":4,"scheme":"symmetric","axis":null}]',
    ],
)
def test_text_of_something_else(described: str) -> None:
    with pytest.raises(UsageError):
        restore_activations(network(), described)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 2, "zero_points": [200]}, "zero point"),
        ({"bits": 4, "scheme": "symmetric", "zero_points": [7]}, "zero point"),
        ({"scales": [1.0, 1.0], "zero_points": [0, 0]}, "2 scales, and no axis"),
        ({"scales": [1e300]}, "too large for binary32"),
        ({"scales": [-1.0]}, "scales"),
        ({"axis": 1 << 70}, "axis"),
    ],
)
def test_numbers_that_are_none_of_a_quantizer(fields: dict[str, Any], message: str) -> None:
    entry = {"layer": "0", "side": "inputs", "bits": 8, "scheme": "asymmetric", "axis": None}
    entry |= {"scales": [1.0], "zero_points": [0], **fields}
    with pytest.raises(UsageError, match=message):
        restore_activations(network(), json.dumps([entry]))


def test_text_of_many_brackets() -> None:
    for described in ("[" * 100_000, '{"a":' * 100_000, "[" + "9" * 5000 + "]"):
        with pytest.raises(UsageError, match="not a description"):
            restore_activations(network(), described)


def test_scales_have_to_be_as_many_as_positions() -> None:
    module = network()
    entry = {"layer": "0", "side": "inputs", "bits": 8, "scheme": "asymmetric", "axis": 1}
    restore_activations(module, json.dumps([{**entry, "scales": [1.0, 2.0], "zero_points": [0, 0]}]))
    with pytest.raises(
        EncodingError, match=f"the inputs of 0: 2 scales for {images(0).shape[1]} positions on the axis 1"
    ):
        module(images(0))


def test_a_quantizer_of_ones_own() -> None:
    class Halves(StaticQuantizer):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values / 2

    def make(name: str, layer: nn.Module) -> Any:
        assert isinstance(layer, nn.Linear)
        return Halves()

    module = network()
    assert add_activation_quantizers(module, make, layers=["6"], side="outputs") == ["6"]
    torch.testing.assert_close(module(images(0)), network()(images(0)) / 2)

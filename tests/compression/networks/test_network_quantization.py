"""Whole networks quantized layer by layer: Hessians from a plain unfolding, and what a file gives is what the module has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compression.networks.zoo import Residual, batch, mobile, part, seeded
from torch import nn
from torch.nn import functional as F

import dcz
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.networks.graph import Network, trace
from dcz.compression.networks.quantization import hessians_of, quantize_network
from dcz.compression.quantizers import quantize_affine
from dcz.errors import EncodingError, UsageError
from dcz.format import CodebookTensor, PerChannel, PerGroup, PerTensor, Reader, UniformTensor, Writer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 9, (3, 2), stride=(2, 1), padding=(1, 2), groups=3),
        nn.Conv2d(4, 4, 3, dilation=(1, 2), groups=4, padding="same"),
        nn.Conv1d(4, 2, 3, padding=1),
        nn.Conv3d(2, 3, 2),
        nn.Linear(5, 3),
    ],
    ids=["grouped", "depthwise", "conv1d", "conv3d", "linear"],
)
def test_hessians_predict_changes_of_the_outputs(layer: Any) -> None:
    """tr(dW H dW^T) is the mean over all places of the squared change of the outputs, whatever dW is."""
    into = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (into, *[6] * (layer.weight.ndim - 2))
    network = trace(nn.Sequential(seeded(layer)))
    inputs = batch(shape, 8).double()
    layer.double()
    hessians = hessians_of(network, network.layers()[0], inputs.split(3))
    change = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)).double()
    before = layer(inputs).detach()
    with torch.no_grad():
        layer.weight.add_(change)
    difference = (layer(inputs).detach() - before).movedim(1, 0).flatten(1)
    rows = change.reshape(len(hessians), -1, hessians.shape[-1]).numpy()
    predicted = np.einsum("goi,gij,goj->go", rows, hessians, rows).reshape(-1)
    np.testing.assert_allclose(difference.square().mean(1).numpy(), predicted, rtol=1e-9)


def outputs_error(network: Network, exact: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((network.module(inputs).detach() - exact).square().mean())


@pytest.mark.parametrize("levels", ["affine", "codebook"])
@pytest.mark.parametrize("name", ["mobile", "residual"])
def test_second_order_and_corrections_change_the_outputs_least(
    name: str, levels: Any, tmp_path: Path
) -> None:
    module, shape = (mobile(), (3, 8, 8)) if name == "mobile" else (Residual(), (2, 8, 8))
    seeded(module)
    inputs = batch(shape, 64)
    exact = module(inputs).detach()
    errors = {}
    for rounding in ("nearest", "second-order"):
        network = fold_batch_norms(module)
        best = rounding == "second-order"
        tensors = quantize_network(
            network,
            inputs.split(32),
            bits=4,
            levels=levels,
            rounding=rounding,
            equalize=best,
            correct=best,
        )
        errors[rounding] = outputs_error(network, exact, inputs)
        path = tmp_path / f"{rounding}.dcz"
        with Writer(path) as writer:
            for key, tensor in tensors.items():
                writer.add_tensor(key, tensor)
        state = network.module.state_dict()
        loaded = dcz.load(path)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert errors["second-order"] < 0.7 * errors["nearest"]


def test_without_corrections_the_weights_are_those_of_the_methods() -> None:
    module = seeded(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose1d(6, 3, 2)))
    weights = {name: part(module, name).weight.detach().numpy().copy() for name in "01"}
    for granularity in (PerTensor(), PerChannel(axis=0)):
        network = trace(module)
        found = quantize_network(
            network, [batch((4, 9))], bits=3, rounding="nearest", granularity=granularity, calibration="min-max",
            equalize=False, correct=False,
        )  # fmt: skip
        for name in "01":
            expected = quantize_affine(weights[name], bits=3, granularity=granularity)
            ours: Any = found[f"{name}.weight"]
            np.testing.assert_array_equal(ours.codes, expected.codes)
            np.testing.assert_array_equal(ours.scales, expected.scales)
            part(module, name).weight.data.copy_(torch.from_numpy(weights[name]))


def test_a_method_of_ones_own() -> None:
    seen = []

    def method(weight: np.ndarray, hessians: np.ndarray | None) -> CodebookTensor:
        seen.append((weight.shape, None if hessians is None else hessians.shape))
        return quantize_codebook(weight, size=2)

    network = fold_batch_norms(seeded(mobile()))
    found = quantize_network(network, [batch((3, 8, 8))], method=method)
    assert seen[:2] == [((8, 3, 1, 1), (1, 3, 3)), ((8, 1, 3, 3), (8, 9, 9))]
    assert len(np.unique(part(network.module, "3").weight.detach().numpy())) == 2
    assert isinstance(found["3.weight"], CodebookTensor)


def test_a_method_with_a_codebook_for_each_output(tmp_path: Path) -> None:
    network = fold_batch_norms(seeded(mobile()))

    def method(weight: np.ndarray, _: np.ndarray | None) -> CodebookTensor:
        return quantize_codebook(weight, size=3, granularity=PerChannel(axis=0))

    found = quantize_network(network, [batch((3, 8, 8))], method=method, correct=False)
    with Writer(tmp_path / "model.dcz") as writer:
        writer.add_tensor("3.weight", found["3.weight"])
    loaded = dcz.load(tmp_path / "model.dcz")["3.weight"]
    assert torch.equal(loaded, part(network.module, "3").weight)


def test_rows_of_a_codebook_are_rounded_as_affine_ones_where_the_levels_are_the_same() -> None:
    """Two routes through the same mathematics: levels -7 .. 7 as codes, and as centroids."""
    module = seeded(nn.Sequential(nn.Linear(12, 6)))
    layer = part(module, "0")
    layer.weight.data.copy_(torch.randint(-7, 8, (6, 12), generator=torch.Generator().manual_seed(0)).float())
    layer.weight.data[0, :2] = torch.tensor([7.0, -7.0])
    exact = layer.weight.detach().clone()
    quantize_network(
        trace(module),
        [batch((12,), 64)],
        bits=4,
        granularity=PerTensor(),
        calibration="min-max",
        correct=False,
    )
    assert torch.equal(layer.weight, exact)
    quantize_network(trace(module), [batch((12,), 64)], bits=4, levels="codebook", correct=False)
    torch.testing.assert_close(layer.weight, exact)
    assert F.mse_loss(layer.weight, exact) < 1e-10


def test_a_layer_under_two_names_is_one_tensor(tmp_path: Path) -> None:
    shared = seeded(nn.Linear(16, 16))
    network = trace(nn.Sequential(shared, nn.ReLU(), shared))
    found = quantize_network(network, [batch((16,), 64)], bits=4)
    assert isinstance(found["0.weight"], UniformTensor)
    assert found["2.weight"] is found["0.weight"]
    assert found["2.bias"] is found["0.bias"]
    dcz.convert(found, tmp_path / "m.dcz")
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.aliases == {"2.weight": "0.weight", "2.bias": "0.bias"}
    loaded = dcz.load(tmp_path / "m.dcz")
    state = network.module.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_what_does_not_fit() -> None:
    network = fold_batch_norms(seeded(mobile()))
    inputs = [batch((3, 8, 8))]
    with pytest.raises(UsageError, match="no calibration batches"):
        quantize_network(network, [])
    with pytest.raises(UsageError, match="tensors of inputs, not tuples") as caught:
        quantize_network(network, [(inputs[0], torch.zeros(1))])  # type: ignore[list-item]
    assert caught.value.hint == "[inputs for inputs, _ in loader]"
    with pytest.raises(UsageError, match="Sequential is not a network") as caught:
        quantize_network(network.module, inputs)  # type: ignore[arg-type]
    assert "fold_batch_norms" in str(caught.value.hint)
    with pytest.raises(EncodingError, match="levels"):
        quantize_network(network, inputs, levels="ternary")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="axis 0"):
        quantize_network(network, inputs, granularity=PerGroup(size=8))  # type: ignore[arg-type]
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(UsageError, match="another layer"):
        quantize_network(trace(tied), [batch((4,))])
    with pytest.raises(EncodingError, match="bits"):
        quantize_network(network, inputs, bits=9)

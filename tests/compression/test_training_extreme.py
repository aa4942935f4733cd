"""Binary and ternary weights that are trained: values against dcz.compression.extreme, gradients against the papers'
formulas written out, and the bits of the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compression.oracles import decode_affine, decode_codebook, group_numbers
from torch import nn

import dcz
from dcz.compression.extreme import quantize_binary, quantize_ternary
from dcz.compression.quantizers import ScaleDType
from dcz.compression.training.extreme import ExtremeMethod, LearnedTernaryWeight, use_few_values
from dcz.compression.training.masks import array_of, prune
from dcz.compression.training.quantized_weights import quantized_tensors
from dcz.compression.training.weights import find_weights, remove_parametrizations
from dcz.errors import EncodingError
from dcz.format import Reader
from dcz.format.manifest import Granularity, PerChannel, PerGroup, PerTensor
from dcz.format.tensors import UniformTensor

METHODS: tuple[ExtremeMethod, ...] = ("binary", "twn", "ttq")
GRANULARITIES: tuple[Granularity, ...] = (
    PerTensor(),
    PerChannel(axis=0),
    PerChannel(axis=1),
    PerGroup(size=7),
)
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(24, 10).to(dtype)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(10, 24) * torch.rand(10, 1)).to(dtype))
        layer.weight[0, 0] = 0
    return layer


def decoded(tensor: Any) -> Array:
    return np.asarray(decode_affine(tensor) if isinstance(tensor, UniformTensor) else decode_codebook(tensor))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("method", ["binary", "twn"])
def test_values_are_the_quantizers(method: Any, granularity: Granularity) -> None:
    layer = linear()
    array = array_of(layer.weight).copy()
    use_few_values(find_weights(layer), method, granularity=granularity)
    quantize: Any = quantize_binary if method == "binary" else quantize_ternary
    further = {} if method == "binary" else {"method": "twn"}
    expected = decoded(quantize(array, granularity=granularity, **further))
    np.testing.assert_allclose(array_of(layer.weight), expected, rtol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_the_papers(method: ExtremeMethod, granularity: Granularity) -> None:
    layer = linear(torch.float64)
    with torch.no_grad():
        layer.weight[1] *= 3  # some beyond 1
    w = array_of(layer.weight).copy()
    (weight,) = find_weights(layer)
    use_few_values([weight], method, granularity=granularity)
    upstream = torch.randn(10, 24, dtype=torch.float64)
    (layer.weight * upstream).sum().backward()
    found, g, numbers = weight.parameter.grad, upstream.numpy(), group_numbers(w.shape, granularity)
    assert found is not None
    for group in range(int(numbers.max()) + 1):
        at = numbers == group
        if method == "twn":
            expected = g[at]
        elif method == "binary":
            signs = np.where(w[at] > 0, 1, -1)
            expected = g[at] * np.abs(w[at]).mean() * (np.abs(w[at]) <= 1)
            expected += np.sign(w[at]) / at.sum() * (g[at] * signs).sum()
        else:
            limit = 0.05 * np.abs(w[at]).max()
            above, below = w[at] > limit, w[at] < -limit
            p, n = (np.abs(w[at][side]).mean() if side.any() else 1.0 for side in (above, below))
            np.testing.assert_allclose(
                array_of(layer.weight)[at], np.where(above, p, np.where(below, -n, 0)), rtol=1e-12
            )
            expected = g[at] * np.where(above, p, np.where(below, n, 1))
            current = weight.parametrization
            assert isinstance(current, LearnedTernaryWeight)
            for steps, sums in ((current.above, g[at][above].sum()), (current.below, -g[at][below].sum())):
                # What is trained is relative: descent on it moves the value by its gradient.
                gradient = steps.relative.grad
                assert gradient is not None
                assert float(gradient[group] * steps.first[group]) == pytest.approx(sums)
        np.testing.assert_allclose(found.numpy()[at], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_stored_decodes_to_the_weight(method: ExtremeMethod, dtype: torch.dtype) -> None:
    scale_dtypes: tuple[ScaleDType | None, ...] = (None,) if dtype == torch.float64 else (None, "bf16")
    for scale_dtype in scale_dtypes:
        for pruned in (False, True):
            layer = linear(dtype)
            weights = find_weights(layer)
            if pruned:
                prune(weights, 0.4)
            mask = layer.weight != 0
            use_few_values(weights, method, granularity=PerChannel(axis=0), scale_dtype=scale_dtype)
            optimizer = torch.optim.Adam(layer.parameters(), 0.01)
            for _ in range(3):
                optimizer.zero_grad()
                layer(torch.randn(8, 24).to(dtype)).square().sum().backward()
                optimizer.step()
            (stored,) = quantized_tensors(weights).values()
            assert decoded(stored).tobytes() == array_of(layer.weight).tobytes()
            assert not pruned or bool((layer.weight[~mask] == 0).all())
            if method == "binary" and pruned:
                assert bool((layer.weight[mask] != 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_bits_in_the_file(method: ExtremeMethod, tmp_path: Path) -> None:
    """Of the plain weights, which the encoder recognizes: one bit, and under 1.6, with scales and all."""
    torch.manual_seed(0)
    layer = nn.Linear(1024, 128, bias=False)
    with torch.no_grad():
        layer.weight.normal_()
    use_few_values(find_weights(layer), method, scale_dtype="bf16")
    expected = array_of(layer.weight).copy()
    remove_parametrizations(layer)
    dcz.convert(layer, tmp_path / "m.dcz", effort="small")
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.read("weight").tobytes() == expected.tobytes()
        chunks = sum(reader.manifest.chunks.lengths)
    bits = 8 * chunks / expected.size
    assert bits < (1.02 if method == "binary" else 1.6)
    # Not by chance: the entropy of what is there.
    _, counts = np.unique(np.sign(expected), return_counts=True)
    parts = counts / counts.sum()
    assert bits > -(parts * np.log2(parts)).sum() * 0.999


@pytest.mark.parametrize("method", METHODS)
def test_they_learn(method: ExtremeMethod) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    y = (x[:, :8].sum(1) > x[:, 8:].sum(1)).long()
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    use_few_values(find_weights(module), method)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    remove_parametrizations(module)
    assert all(len(torch.unique(row)) <= 3 for row in find_weights(module)[0].parameter)


def test_wrong_use() -> None:
    layer = linear()
    with pytest.raises(EncodingError, match="unknown method 'quaternary'"):
        use_few_values(find_weights(layer), "quaternary")  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match=r"weight: axis 3"):
        use_few_values(find_weights(layer), "binary", granularity=PerChannel(axis=3))
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    for method in METHODS:
        with pytest.raises(EncodingError, match="weight: a weight is not finite"):
            use_few_values(find_weights(layer), method)

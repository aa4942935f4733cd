"""Each kind of values on a network that was trained: converted by a recipe, or by second-order rounding with data, loaded and run.

That what is loaded is what the method made, tests/converters/test_recipe_methods.py says; here it has to be small and right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.digits_training import Net, data, evaluate, trained

import dcz
from dcz.compression.networks.folding import fold_batch_norms
from dcz.compression.networks.quantization import quantize_network
from dcz.format import decoded
from dcz.format.tensors import UniformTensor

CHANNEL = "granularity = { kind = 'channel', axis = 0 }"
GROUPS = "granularity = { kind = 'group', size = 32 }"
# The rule, how many bits a quantized weight may take with all that the file holds, and how many points it may lose.
RECIPES: Mapping[str, tuple[str, float, float]] = {
    "affine": (f"values = {{ kind = 'affine', bits = 4, {CHANNEL} }}", 4.0, 1.0),
    "asymmetric": (
        f"values = {{ kind = 'affine', bits = 4, scheme = 'asymmetric', calibration = 'mse', {GROUPS}, scale_dtype = 'bf16' }}",
        4.9,
        1.0,
    ),
    "stochastic": (f"values = {{ kind = 'affine', bits = 5, rounding = 'stochastic', {CHANNEL} }}", 5.1, 1.0),
    "codebook": ("values = { kind = 'codebook', size = 16 }", 4.4, 1.0),
    "vectors": ("values = { kind = 'vector-codebook', dimension = 2, size = 128 }", 4.9, 1.0),
    "product": (
        "values = { kind = 'vector-codebook', dimension = 2, size = 9, product = true }",
        9.0,
        3.0,
    ),
    "normal-float": (f"values = {{ kind = 'table', table = 'normal-float', {GROUPS} }}", 5.4, 1.0),
    "double": (f"values = {{ kind = 'affine', bits = 4, {GROUPS}, scale_bits = 6 }}", 4.3, 1.0),
    "power-of-two": ("values = { kind = 'table', table = 'power-of-two' }", 4.0, 2.0),
    "binary-coding": (f"values = {{ kind = 'binary-coding', bits = 3, {CHANNEL} }}", 4.4, 1.0),
    "binary": (f"values = {{ kind = 'binary', {CHANNEL} }}", 1.7, 25.0),
    "ternary": (f"values = {{ kind = 'ternary', {CHANNEL} }}", 2.1, 2.0),
    "coupled": (
        "pruning = { kind = 'magnitude', density = 0.6 }\nvalues = { kind = 'codebook', size = 16 }",
        3.9,
        2.0,
    ),
}


@pytest.fixture(scope="module")
def network() -> Net:
    return trained(4).eval()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str, network: Net, tmp_path: Path) -> None:
    rule, bits, loss = RECIPES[name]
    recipe, path = tmp_path / "mine.toml", tmp_path / "model.dcz"
    recipe.write_text(f"[[rules]]\n{rule}\n", encoding="utf-8")
    done = dcz.convert(network, path, recipe=recipe)
    assert done.notes == ()
    state: dict[str, Any] = dict(dcz.load(path))
    others = quantized = 0
    for key, tensor in state.items():
        original = network.state_dict()[key]
        if key in ("hidden.weight", "last.weight"):
            assert not torch.equal(tensor, original)
            quantized += tensor.numel()
        else:
            assert torch.equal(tensor, original)
            others += tensor.nbytes
    assert 8 * (done.file_bytes - others) <= bits * quantized
    other = Net().eval()
    other.load_state_dict(state)
    assert evaluate(other) >= evaluate(network) - loss


def test_second_order_rounding(network: Net, tmp_path: Path) -> None:
    """Codes of all layers, with corrected biases, are a dictionary that convert takes beside what is not quantized."""
    images = data()[0][:256]
    folded = fold_batch_norms(network)
    quantized = quantize_network(fold_batch_norms(network), [images], bits=3)
    done = dcz.convert({**folded.module.state_dict(), **quantized}, tmp_path / "model.dcz")
    assert done.notes == ()
    state: dict[str, Any] = dict(dcz.load(tmp_path / "model.dcz"))
    for key, tensor in quantized.items():
        assert state[key].numpy().tobytes() == np.ascontiguousarray(decoded(tensor)).tobytes()
    codes = [tensor for tensor in quantized.values() if isinstance(tensor, UniformTensor)]
    assert len(codes) == 3
    weights = sum(tensor.codes.size for tensor in codes)
    others = sum(tensor.nbytes for key, tensor in state.items() if key.endswith("bias"))
    assert 8 * (done.file_bytes - others) <= 3.6 * weights
    folded.module.load_state_dict(state)
    assert evaluate(folded.module) >= evaluate(network) - 2.0

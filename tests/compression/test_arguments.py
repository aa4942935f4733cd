"""What callers mix up is refused by name, by every quantizer: tensors of torch, lists, numbers that are not whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dcz.compression.binary_coding import quantize_binary_coding
from dcz.compression.clustering import kmeans
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.extreme import quantize_binary, quantize_ternary
from dcz.compression.observers import MinMaxObserver
from dcz.compression.quantizers import double_quantize, quantize_affine
from dcz.compression.tables import quantize_table
from dcz.compression.training.fake_quantization import fake_quantize
from dcz.compression.training.weight_sharing import share
from dcz.compression.training.weights import find_weights
from dcz.compression.vector_codebooks import quantize_vectors
from dcz.errors import EncodingError, UsageError
from dcz.format.manifest import PerChannel

# With the argument that is a whole number, if there is one.
QUANTIZERS: dict[str, tuple[Callable[..., Any], str | None, dict[str, Any]]] = {
    "affine": (quantize_affine, "bits", {}),
    "double": (double_quantize, "scale_bits", {}),
    "codebook": (quantize_codebook, "size", {}),
    "table": (quantize_table, "bits", {"table": "normal-float"}),
    "binary": (quantize_binary, None, {}),
    "ternary": (quantize_ternary, None, {}),
    "binary coding": (quantize_binary_coding, "bits", {}),
    "vectors": (quantize_vectors, "dimension", {"size": 4}),
    "vectors, size": (quantize_vectors, "size", {"dimension": 4}),
}
WEIGHTS = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_is_no_array_is_refused(name: str) -> None:
    quantize, whole, options = QUANTIZERS[name]
    options = options if whole is None else {**options, whole: 4}
    with pytest.raises(UsageError, match="a numpy array, not a Tensor") as caught:
        quantize(torch.from_numpy(WEIGHTS), **options)
    assert "numpy()" in str(caught.value.hint)
    with pytest.raises(UsageError, match="a numpy array, not a list"):
        quantize(WEIGHTS.tolist(), **options)
    if not name.startswith("vectors"):
        for wrong in ("channel", PerChannel):
            with pytest.raises(UsageError, match="is not a granularity"):
                quantize(WEIGHTS, granularity=wrong, **options)
        with pytest.raises(UsageError, match="masks are a numpy array, not a list"):
            quantize(WEIGHTS, mask=[True], **options)


@pytest.mark.parametrize("number", [4.0, 2.5, True, "4", None, np.float32(4), -1])
@pytest.mark.parametrize("name", [name for name, (_, whole, _) in QUANTIZERS.items() if whole is not None])
def test_numbers_that_are_not_whole_are_refused(name: str, number: Any) -> None:
    quantize, whole, options = QUANTIZERS[name]
    if whole == "scale_bits" and number is None:
        pytest.skip("none at all")
    assert whole is not None
    expected = quantize(WEIGHTS, **options, **{whole: 4})
    assert np.array_equal(quantize(WEIGHTS, **options, **{whole: np.int64(4)}).codes, expected.codes)
    with pytest.raises(EncodingError, match=str(number)):
        quantize(WEIGHTS, **options, **{whole: number})


@pytest.mark.parametrize("number", [4.0, True, "4"])
def test_and_so_do_observers_and_training(number: Any) -> None:
    observer = MinMaxObserver()
    observer.observe(WEIGHTS)
    layer = torch.nn.Linear(8, 8)
    for attempt in (
        lambda: observer.parameters(bits=number),
        lambda: fake_quantize(find_weights(layer), number),
        lambda: share(find_weights(layer), number),
        lambda: kmeans(WEIGHTS, number),
        lambda: quantize_affine(WEIGHTS, rounding="stochastic", seed=number),
    ):
        with pytest.raises(EncodingError, match=str(number)):
            attempt()
    with pytest.raises(UsageError, match="a numpy array, not a Tensor"):
        observer.observe(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a numpy array, not a Tensor"):
        kmeans(torch.ones(3), 2)  # type: ignore[arg-type]

"""Each block type against the gguf package, bit for bit, and back."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tests.converters.gguf_files import QUANTIZED, dequantized, random_blocks

from dcz.converters.gguf_blocks import BLOCK_TYPES, UNSUPPORTED
from dcz.errors import EncodingError
from dcz.format import decoded
from dcz.format.tensors import AffineTensor

BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}


def test_names_numbers_and_sizes_are_those_of_the_gguf_package() -> None:
    for kind in BLOCK_TYPES.values():
        theirs = gguf.GGMLQuantizationType(kind.number)
        assert theirs.name == kind.name
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.elements, kind.size)
    assert {theirs.value for theirs in gguf.GGMLQuantizationType} == set(BLOCK_TYPES) | set(UNSUPPORTED)
    for number, name in UNSUPPORTED.items():
        assert gguf.GGMLQuantizationType(number).name == name


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_stand_for_what_the_gguf_package_says(name: str) -> None:
    blocks = random_blocks(name, 8, 1024)
    tensor = BY_NAME[name].unpack(blocks.reshape(-1), (2, 4, 1024))
    expected = dequantized(name, blocks)
    assert decoded(tensor).shape == (2, 4, 1024)
    assert np.array_equal(decoded(tensor).reshape(8, 1024).view("u4"), expected.view("u4"))


@pytest.mark.parametrize("name", QUANTIZED)
def test_blocks_come_back(name: str) -> None:
    blocks = random_blocks(name, 8, 1024).reshape(-1)
    tensor = BY_NAME[name].unpack(blocks, (8, 1024))
    packed = BY_NAME[name].pack(tensor)
    assert packed is not None
    assert np.array_equal(packed, blocks)


@pytest.mark.parametrize("name", QUANTIZED)
def test_no_other_type_takes_them_for_its_own(name: str) -> None:
    tensor = BY_NAME[name].unpack(random_blocks(name, 8, 1024).reshape(-1), (8, 1024))
    taken = {kind.name for kind in BLOCK_TYPES.values() if kind.pack(tensor) is not None}
    # The ternary types have the same values; of four values TQ2_0 alone has the fourth.
    assert taken == ({"TQ1_0", "TQ2_0"} if name == "TQ1_0" else {name})


def test_bytes_of_trits_that_ggml_does_not_write_mean_the_same() -> None:
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (16, 54), dtype=np.uint8)
    blocks[:, 52:] = np.full(16, 0.5, "<f2").view(np.uint8).reshape(-1, 2)
    kind = BY_NAME["TQ1_0"]
    tensor = kind.unpack(blocks.reshape(-1), (16, 256))
    assert np.array_equal(decoded(tensor), dequantized("TQ1_0", blocks))
    packed = kind.pack(tensor)
    assert packed is not None
    assert not np.array_equal(packed.reshape(16, -1), blocks)
    assert np.array_equal(dequantized("TQ1_0", packed.reshape(16, -1)), decoded(tensor))
    assert kind.several_forms
    assert not any(other.several_forms for other in BLOCK_TYPES.values() if other is not kind)


@pytest.mark.parametrize("name", [name for name, places in QUANTIZED.items() if places])
@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_scales_that_are_not_finite_are_refused(name: str, scale: float) -> None:
    for at in QUANTIZED[name]:
        blocks = random_blocks(name, 1, 1024).reshape(-1, BY_NAME[name].size)
        blocks[1, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
        with pytest.raises(EncodingError, match="not finite"):
            BY_NAME[name].unpack(blocks.reshape(-1), (1, 1024))


def test_what_does_not_fit_is_not_packed() -> None:
    kind = BY_NAME["Q4_1"]
    tensor = kind.unpack(random_blocks("Q4_1", 2, 64).reshape(-1), (2, 64))
    assert isinstance(tensor, AffineTensor)
    assert isinstance(tensor.scales, np.ndarray)
    assert kind.pack(tensor) is not None
    masked = AffineTensor(
        "f32",
        (2, 64),
        4,
        tensor.codes,
        tensor.scales,
        tensor.granularity,
        0,
        np.ones(128, bool),
        tensor.minimums,
    )
    assert kind.pack(masked) is None
    wider = AffineTensor(
        "f32",
        (2, 64),
        4,
        tensor.codes,
        tensor.scales.astype(np.float32),
        tensor.granularity,
        0,
        minimums=np.zeros(4, np.float32),
    )
    assert kind.pack(wider) is None
    assert kind.pack(decoded(tensor)) is None
    assert BY_NAME["F32"].pack(tensor) is None
    assert BY_NAME["F16"].pack(decoded(tensor)) is None

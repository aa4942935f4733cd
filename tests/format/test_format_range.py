"""What the encoder makes of ``coding="range"``: which layouts and segments, and that it is the smallest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dcz.format import CodebookTensor, PerTensor, Reader, Writer
from dcz.format.layout import HUFFMAN, RANGE, RAW
from dcz.format.manifest import Bitmap, Tensor


def stored(tensor: Any, path: Path, coding: Any = "range") -> Tensor:
    """The entry of a tensor in the manifest, once both its elements and their digest have been read back."""
    with Writer(path) as writer:
        entry = writer.add_tensor("t", tensor, coding=coding)
    with Reader(path) as reader:
        reader.read("t")
        if isinstance(tensor, np.ndarray):
            assert reader.read("t").tobytes() == tensor.tobytes()
    return entry


def scaled(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Weights whose rows and columns have sizes of their own."""
    random = np.random.default_rng(seed)
    rows, columns = np.exp(random.normal(size=shape[0])), np.exp(random.normal(size=shape[1:]))
    return (random.normal(size=shape) * rows.reshape(-1, *[1] * (len(shape) - 1)) * columns).astype(
        np.float32
    )


def pruned(shape: tuple[int, ...], density: float) -> CodebookTensor:
    weights = np.abs(scaled(shape))
    mask = weights > np.quantile(weights, 1 - density)
    codes = np.minimum(7, weights / weights.max() * 20).astype(np.uint8)
    return CodebookTensor("f32", shape, 3, codes, np.arange(8, dtype=np.float32)[None], PerTensor(), mask)


def test_pruned_tensors_are_bitmaps_in_large_segments(tmp_path: Path) -> None:
    tensor = pruned((600, 500), 0.05)
    small = stored(tensor, tmp_path / "range.dcz")
    assert small.layout == Bitmap()
    assert small.segment == 300_000  # above 1 MiB of f32
    assert small.codings[1:] == bytes([RANGE, RANGE])
    assert sum(small.lengths) < 0.8 * sum(stored(tensor, tmp_path / "huffman.dcz", "huffman").lengths)


@pytest.mark.parametrize(
    ("dtype", "most"), [(np.float32, 0.98), (np.float16, 0.97), (ml_dtypes.bfloat16, 0.95)]
)
def test_floats_use_rows_and_columns(dtype: Any, most: float, tmp_path: Path) -> None:
    array = scaled((400, 300)).astype(dtype)
    entry = stored(array, tmp_path / "range.dcz")
    assert entry.codings[-1] == RANGE
    assert sum(entry.lengths) < most * sum(stored(array, tmp_path / "huffman.dcz", "huffman").lengths)


def test_signs_are_predicted_where_their_column_knows_them(tmp_path: Path) -> None:
    signs = np.random.default_rng(1).choice([-1, 1], 200)
    array = (np.abs(scaled((300, 200))) * signs).astype(ml_dtypes.bfloat16)
    mixed = (np.abs(array) * np.random.default_rng(2).choice([-1, 1], array.shape)).astype(ml_dtypes.bfloat16)
    known, unknown = (stored(one, tmp_path / "t.dcz").lengths[0] for one in (array, mixed))
    assert known < unknown - 0.9 * array.size / 8


def test_convolutions_are_matrices_of_outputs(tmp_path: Path) -> None:
    array = scaled((64, 32, 3, 3))
    as_matrix = stored(array.reshape(64, -1), tmp_path / "matrix.dcz")
    assert stored(array, tmp_path / "range.dcz").lengths == as_matrix.lengths


def test_noise_is_stored_raw(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, 5000, np.uint8)
    assert stored(noise, tmp_path / "t.dcz").codings == bytes([RAW])


def test_what_has_no_context_may_stay_with_huffman(tmp_path: Path) -> None:
    few = np.random.default_rng(4).choice([3, 9, 200], 12, p=[0.6, 0.3, 0.1]).astype(np.uint8)
    assert set(stored(few, tmp_path / "t.dcz").codings) <= {RAW, HUFFMAN, RANGE}
    assert sum(stored(few, tmp_path / "t.dcz").lengths) <= len(few)


def test_codes_of_several_segments_come_back(tmp_path: Path) -> None:
    tensor = pruned((2100, 2048), 0.02)
    assert tensor.mask is not None
    with Writer(tmp_path / "t.dcz") as writer:
        entry = writer.add_tensor("t", tensor, coding="range")
    assert len(entry.entries) == 2
    with Reader(tmp_path / "t.dcz") as reader:
        assert np.array_equal(reader.read("t"), np.where(tensor.mask, tensor.codes, 0).astype(np.float32))

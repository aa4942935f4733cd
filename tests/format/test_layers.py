"""The table of Deep Compression, against a count of its own from the stored manifest and against closed forms."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from tests.format.test_report import GOOD, walk

from dcz.format import CodebookTensor, PerTensor, Reader, RelativeIndex, Writer
from dcz.format.layers import LayerTable, layer_table

BYTES = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f8_e4m3fn": 1,
    "f8_e5m2": 1,
    "bool": 1,
    **{f"{sign}{8 * size}": size for sign in "iu" for size in (1, 2, 4, 8)},
}


def manifest_of(data: bytes) -> dict[str, Any]:
    offset, length = struct.unpack_from("<QI", data, len(data) - 64)
    manifest: dict[str, Any] = msgpack.unpackb(
        zstandard.ZstdDecompressor().decompress(data[offset : offset + length])
    )
    return manifest


def packed_bits(tensor: dict[str, Any]) -> tuple[int, int, int]:
    """Stored entries, bits of their values and bits of their positions before coding (docs/format.md, section 5)."""
    elements = math.prod(tensor["shape"])
    layout = tensor.get("layout", {"kind": "dense"})
    values = tensor.get("values", {"kind": "exact"})
    entries = elements if layout["kind"] == "dense" else sum(tensor["entries"])
    if values["kind"] == "exact":
        width = 8 * BYTES[values.get("stored_dtype", tensor["dtype"])]
    else:
        width = values["bits"]
    positions = {
        "dense": 0,
        "bitmap": elements,
        "relative-index": layout.get("bits", 0) * sum(tensor.get("gaps", ())),
    }
    return entries, width * entries // values.get("dimension", 1), positions[layout["kind"]]


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_every_vector(path: Path) -> None:
    data = path.read_bytes()
    manifest, walked = manifest_of(data), walk(data)
    with Reader(path) as reader:
        table, without = layer_table(reader), layer_table(reader, tables=False)
    assert table.parts.total == without.parts.total == table.size == len(data)
    assert sum(table.parts.to_dict().values()) == len(data)
    assert without.parts.tables == 0
    assert (table.parts.weights, table.parts.indices) == (walked["values"], walked["positions"])
    assert (table.parts.codebooks, table.parts.tables) == (walked["parameters"], walked["tables"])
    assert table.parts.manifest + table.parts.digests == walked["manifest"]
    stored = manifest.get("tensors", [])
    assert [layer.name for layer in table.layers] == [tensor["name"] for tensor in stored]
    for layer, tensor in zip(table.layers, stored, strict=True):
        counts = layer.counts
        entries, weights, positions = packed_bits(tensor)
        assert (counts.entries, counts.packed_weights, counts.packed_indices) == (entries, weights, positions)
        assert counts.weights == math.prod(tensor["shape"])
        assert counts.dense == counts.weights * BYTES[tensor["dtype"]]
        assert counts.stored == sum(tensor.get("lengths", ()))
        aliases = {alias for alias, name in manifest.get("aliases", {}).items() if name == tensor["name"]}
        assert set(layer.aliases) == aliases
    for total, one in ((table.total, without.total), (table.weights, without.weights)):
        assert total.stored == one.stored
    parts = table.parts
    assert table.total.stored == parts.weights + parts.indices + parts.codebooks + parts.tables
    assert (table.weights + table.others) == table.total
    json.dumps(table.to_dict(), allow_nan=False)
    assert table.text().splitlines()[-1]


@pytest.fixture
def lenet(tmp_path: Path) -> tuple[LayerTable, dict[str, np.ndarray], int]:
    """LeNet-300-100, pruned and clustered, stored with 5 bits of gap and codes by Huffman; its masks; bytes of the file."""
    rng = np.random.default_rng(0)
    path = tmp_path / "model.dcz"
    masks: dict[str, np.ndarray] = {}
    with Writer(path) as writer:
        for name, shape, density in (
            ("ip1", (300, 784), 0.08),
            ("ip2", (100, 300), 0.09),
            ("ip3", (10, 100), 0.26),
        ):
            mask = masks[name] = rng.random(shape) < density
            codes = rng.binomial(31, 0.5, shape).astype(np.uint8)
            centroids = np.sort(rng.standard_normal((1, 32)).astype(np.float32))
            shared = CodebookTensor("f32", shape, 5, codes, centroids, PerTensor(), mask)
            writer.add_tensor(f"{name}.weight", shared, layout=RelativeIndex(bits=5), coding="huffman")
            writer.add_tensor(f"{name}.bias", rng.standard_normal(shape[0]).astype(np.float32), coding="raw")
        writer.add_alias("tied", "ip3.weight")
    with Reader(path) as reader:
        return layer_table(reader), masks, path.stat().st_size


def fillers(mask: np.ndarray, bits: int) -> int:
    """How many fillers the relative index needs, one position after the other (docs/format.md, section 5.2)."""
    found = zeros = 0
    for kept in mask.reshape(-1).tolist():
        if kept:
            zeros = 0
            continue
        zeros += 1
        if zeros == (1 << bits) - 1:
            found, zeros = found + 1, 0
    # Those behind the last entry are not written.
    rest = int(mask.size - 1 - np.flatnonzero(mask.reshape(-1)).max())
    return found - rest // ((1 << bits) - 1)


def test_the_columns_of_a_pruned_network(lenet: tuple[LayerTable, dict[str, np.ndarray], int]) -> None:
    table, masks, size = lenet
    weights = [layer for layer in table.layers if layer.is_weight]
    assert [layer.name for layer in weights] == ["ip1.weight", "ip2.weight", "ip3.weight"]
    assert weights[2].aliases == ("tied",)
    for layer, mask in zip(weights, masks.values(), strict=True):
        counts, kept = layer.counts, int(mask.sum())
        symbols = kept + fillers(mask, 5)
        assert counts.density == kept / mask.size
        assert counts.weight_bits == 5
        assert counts.index_bits == 5 * symbols / kept
        assert counts.packed_codebooks == 128
        assert 128 <= counts.codebooks < 140  # Huffman was insisted on: with its table
        assert counts.rate == (5 * kept / 8 + 5 * symbols / 8 + 128) / (4 * mask.size)
        assert counts.coded_rate == counts.stored / (4 * mask.size)
        assert counts.coded_weight_bits is not None
        assert counts.coded_index_bits is not None
        # The binomial distribution of 31 throws has 3.5 bits of entropy, which a Huffman code comes close to.
        assert 3.45 < counts.coded_weight_bits < (3.7 if kept > 1000 else 4.2)
        assert counts.coded_index_bits < 5 * symbols / kept
    biases = table.others
    assert (biases.weights, biases.stored, biases.density, biases.weight_bits) == (410, 1640, 1, 32)
    assert biases.coded_rate == 1
    assert table.compression == 4 * 266_610 / size
    assert table.total.weights == 266_610
    ints = ("weights", "entries", "dense_bytes", "stored_bytes")
    rows = [layer.to_dict() for layer in table.layers]
    totals = table.to_dict()["totals"]["all"]
    assert {name: sum(row[name] for row in rows) for name in ints} == {name: totals[name] for name in ints}


def test_the_text(lenet: tuple[LayerTable, dict[str, np.ndarray], int]) -> None:
    table, masks, size = lenet
    text = table.text().splitlines()
    assert max(map(len, text)) <= 80
    row = next(line for line in text if line.endswith("ip1.weight")).split()
    assert row[0] == "235,200"
    assert float(row[1]) == pytest.approx(100 * masks["ip1"].mean(), abs=0.005)
    assert float(row[2]) == 5
    assert text[-1].endswith(f"{size:,} bytes of file = {4 * 266_610 / size:.2f}x")
    taken = {
        line.split()[-1]: int(line.split()[0].replace(",", "")) for line in text[text.index("") + 2 : -2]
    }
    assert taken.pop("all") == sum(taken.values()) == size


def test_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model.dcz"
    with Writer(path) as writer:
        writer.add_tensor("a\n\x1b[31m\u202eb", np.ones((2, 2), np.float32))
    with Reader(path) as reader:
        text = layer_table(reader).text()
    assert "a\\n\\u001b[31m\\u202eb" in text
    assert "\x1b" not in text

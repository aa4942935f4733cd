"""The lengths of code words in a stream, against the examples of docs/format.md (sections 6.2 and 6.5) and a count of bits."""

from __future__ import annotations

import numpy as np
import pytest

from dcz import _native
from dcz.errors import CorruptStream

NO_CODE = 255
HUFFMAN = bytes.fromhex("06 05 02 06 F1 59 03 54 99")
CASCADE = bytes.fromhex("06 01 02 06 91 01 04 54 01 09 04")


def lengths(found: bytes) -> list[dict[int, int]]:
    """For each block, the symbols that have a code and its bits."""
    blocks = np.frombuffer(found, np.uint8).reshape(-1, 256)
    return [{s: int(bits) for s, bits in enumerate(block) if bits != NO_CODE} for block in blocks]


def test_the_examples_of_the_specification() -> None:
    assert lengths(_native.huffman_code_lengths(HUFFMAN, 3, 10)) == [{2: 1, 3: 3, 5: 2, 6: 3}]
    assert lengths(_native.cascade_code_lengths(CASCADE, 3, 10)) == [{2: 1, 3: 3, 5: 3, 6: 3}]


@pytest.mark.parametrize("coding", ["huffman", "cascade"])
def test_blocks_of_all_modes(coding: str) -> None:
    """A block with a code, one of a single symbol, one that no code makes smaller, and the bits of all of them."""
    rng = np.random.default_rng(0)
    skewed = np.minimum(rng.geometric(0.4, 65_536) - 1, 31).astype(np.uint8)
    blocks = [skewed, np.full(65_536, 3, np.uint8), rng.integers(0, 256, 65_536, np.uint8), skewed[:1000]]
    symbols = np.concatenate(blocks)
    if coding == "huffman":
        stream = _native.huffman_encode(symbols, 8, 1 << 40)
        found = lengths(_native.huffman_code_lengths(stream or b"", 8, symbols.size))
    else:
        encoded = _native.cascade_encode(symbols, 8, 1 << 40)
        stream = encoded[0] if encoded else b""
        found = lengths(_native.cascade_code_lengths(stream, 8, symbols.size))
    assert stream is not None
    assert found[1] == {3: 0}
    assert set(found[2].values()) == {8}
    assert len(found[2]) == 256
    for block in (found[0], found[3]):
        assert block[0] < 4 <= max(block.values())
    bits = sum(each[s] for each, block in zip(found, blocks, strict=True) for s in block.tolist())
    data = len(stream) - _native.table_bytes(stream)
    assert bits / 8 <= data < bits / 8 + 200  # nodes and planes are filled up to whole bytes


def test_what_is_not_a_stream() -> None:
    with pytest.raises(CorruptStream):
        _native.huffman_code_lengths(b"\x7f", 3, 10)
    with pytest.raises(CorruptStream):
        _native.cascade_code_lengths(CASCADE[:-1], 3, 10)
    with pytest.raises(ValueError, match="without symbols"):
        _native.huffman_code_lengths(HUFFMAN, 3, 0)

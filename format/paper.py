"""The accounting of Deep Compression itself (Han, Mao and Dally, ICLR 2016, tables 2 to 5), from what a file holds.

The paper counts bits for each stored entry, where filler zeros of the relative index are entries too: each has a code and an
index. The index begins anew in each row (the first dimension), as in the compressed sparse rows that it compresses. A codebook is 2^bits values of 32 bits. Biases, headers, the pointers to rows, the tables of the Huffman
codes and whatever else a reader needs are not counted. So

    entries = kept + fillers
    rate = (entries x (code bits + index bits) + codebook bits) / (32 x weights)

It is an account of what an encoder would write, not of a file: dcz.format.layers has that. With it, rows can be compared with
the paper's own.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dcz.errors import UsageError
from dcz.format.geometry import packed_bytes
from dcz.format.layers import printable, text_table
from dcz.format.manifest import Codebook, Exact, Vectors
from dcz.format.statistics import WIDTHS, tensor_statistics
from dcz.format.tensors import group_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dcz.format.geometry import TensorGeometry
    from dcz.format.manifest import Values
    from dcz.format.reader import Reader

__all__ = ["PaperRow", "PaperTable", "huffman_bits", "paper_table"]

_WEIGHT_BITS: Final = 32  # of a dense weight, and of a shared one


def huffman_bits(counts: Iterable[int]) -> int:
    """The bits of all symbols together under a Huffman code of their counts; none if there is one symbol only."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        bits += both
        heapq.heappush(heap, both)
    return bits


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A layer with codes. ``code_bits`` and ``index_bits`` are the fixed widths; ``huffman_codes`` and ``huffman_indices``
    the bits of all entries, fillers included, under a Huffman code each; ``codebook_bits`` those of the shared values."""

    name: str
    weights: int
    kept: int
    fillers: int
    code_bits: int
    index_bits: int
    huffman_codes: int
    huffman_indices: int
    codebook_bits: int

    @property
    def entries(self) -> int:
        return self.kept + self.fillers

    @property
    def density(self) -> float:
        return self.kept / self.weights

    @property
    def coded_weight_bits(self) -> float | None:
        return self.huffman_codes / self.entries if self.entries else None

    @property
    def coded_index_bits(self) -> float | None:
        return self.huffman_indices / self.entries if self.entries else None

    @property
    def packed(self) -> int:
        """Bits of the layer before Huffman coding (P+Q)."""
        return self.entries * (self.code_bits + self.index_bits) + self.codebook_bits

    @property
    def coded(self) -> int:
        """Bits of the layer after it (P+Q+H)."""
        return self.huffman_codes + self.huffman_indices + self.codebook_bits

    @property
    def rate(self) -> float:
        return self.packed / (_WEIGHT_BITS * self.weights)

    @property
    def coded_rate(self) -> float:
        return self.coded / (_WEIGHT_BITS * self.weights)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.weights,
            "kept": self.kept,
            "fillers": self.fillers,
            "density": self.density,
            "weight_bits": self.code_bits,
            "coded_weight_bits": self.coded_weight_bits,
            "index_bits": self.index_bits,
            "coded_index_bits": self.coded_index_bits,
            "rate": self.rate,
            "coded_rate": self.coded_rate,
        }


@dataclass(frozen=True, slots=True)
class PaperTable:
    """The rows, and the names of the tensors that the paper has no row for: those without a code for each weight."""

    rows: tuple[PaperRow, ...]
    left_out: tuple[str, ...]

    def _mean(self, part: Callable[[PaperRow], int], of: Callable[[PaperRow], int]) -> float | None:
        below = sum(map(of, self.rows))
        return sum(map(part, self.rows)) / below if below else None

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def density(self) -> float | None:
        return self._mean(lambda row: row.kept, lambda row: row.weights)

    @property
    def weight_bits(self) -> float | None:
        """Before Huffman coding, the mean over all entries."""
        return self._mean(lambda row: row.entries * row.code_bits, lambda row: row.entries)

    @property
    def coded_weight_bits(self) -> float | None:
        return self._mean(lambda row: row.huffman_codes, lambda row: row.entries)

    @property
    def index_bits(self) -> float | None:
        return self._mean(lambda row: row.entries * row.index_bits, lambda row: row.entries)

    @property
    def coded_index_bits(self) -> float | None:
        return self._mean(lambda row: row.huffman_indices, lambda row: row.entries)

    @property
    def rate(self) -> float | None:
        return self._mean(lambda row: row.packed, lambda row: _WEIGHT_BITS * row.weights)

    @property
    def coded_rate(self) -> float | None:
        return self._mean(lambda row: row.coded, lambda row: _WEIGHT_BITS * row.weights)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [row.to_dict() for row in self.rows],
            "total": {
                "weights": self.weights,
                "density": self.density,
                "weight_bits": self.weight_bits,
                "coded_weight_bits": self.coded_weight_bits,
                "index_bits": self.index_bits,
                "coded_index_bits": self.coded_index_bits,
                "rate": self.rate,
                "coded_rate": self.coded_rate,
            },
            "left_out": list(self.left_out),
        }

    def text(self) -> str:
        """The table for people."""
        rows = [_cells(row, printable(row.name)) for row in self.rows]
        lines = text_table(_HEADER, [*rows, _cells(self, "all")])
        lines += [
            "",
            "Counted as in the paper: filler zeros are entries; biases, code tables and the file are not counted.",
        ]
        if self.left_out:
            lines.append(f"Without a row, because they have no code for each weight: {len(self.left_out)}.")
        return "\n".join(lines)


_HEADER: Final = [
    ("", "weights", "weight", "bits", "index", "bits", "rate %", "rate %", ""),
    ("weights", "%", "P+Q", "P+Q+H", "P+Q", "P+Q+H", "P+Q", "P+Q+H", "layer"),
]


def _cells(row: PaperRow | PaperTable, name: str) -> Sequence[str]:
    bits = row.code_bits if isinstance(row, PaperRow) else row.weight_bits
    numbers = (
        *(
            row.density and 100 * row.density,
            bits,
            row.coded_weight_bits,
            row.index_bits,
            row.coded_index_bits,
        ),
        *(row.rate and 100 * row.rate, row.coded_rate and 100 * row.coded_rate),
    )
    return (f"{row.weights:,}", *("-" if number is None else f"{number:.2f}" for number in numbers), name)


def paper_table(reader: Reader, index_bits: int) -> PaperTable:
    """The paper's table of an opened file with relative indices of ``index_bits`` bits, 1 to 8 (the paper: 5, and 4 for
    AlexNet), whichever way the positions are stored.

    All codes and positions are decoded. One of the 2^bits shared values is taken to be the zero of the fillers, as in the
    paper's own files. Dense tensors have no index. Scales and whatever else the codes are multiplied by or added to count as a codebook.

    Raises UsageError, FormatError, OSError.
    """
    if index_bits not in WIDTHS:
        raise UsageError(f"an index of {index_bits} bits: 1 to 8 are possible")
    rows: list[PaperRow] = []
    left_out: list[str] = []
    for name, geometry in reader.geometry.tensors.items():
        values = geometry.tensor.values
        if isinstance(values, Exact | Vectors) or not geometry.elements:
            left_out.append(name)
            continue
        statistics = tensor_statistics(reader, name)
        runs = statistics.runs
        counts = statistics.values[0].counts
        fillers = 0 if runs is None else runs.fillers(index_bits)
        rows.append(
            PaperRow(
                name=name,
                weights=geometry.elements,
                kept=int(counts.sum()),
                fillers=fillers,
                code_bits=values.bits,
                index_bits=0 if runs is None else index_bits,
                huffman_codes=huffman_bits([*counts.tolist(), fillers]),
                huffman_indices=0 if runs is None else huffman_bits(runs.indices(index_bits).tolist()),
                codebook_bits=_codebook_bits(geometry, values),
            )
        )
    return PaperTable(tuple(rows), tuple(left_out))


def _codebook_bits(geometry: TensorGeometry, values: Values) -> int:
    if isinstance(values, Codebook):
        return _WEIGHT_BITS * group_count(values.granularity, geometry.tensor.shape) << values.bits
    return 8 * sum(packed_bytes(each.symbols, each.width) for each in geometry.parameters)

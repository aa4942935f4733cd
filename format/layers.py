"""The table of Deep Compression for any file: per layer, what is kept, its bits before and after coding, and its rate.

The columns are those of tables 2 to 5 of Han, Mao and Dally, "Deep Compression", ICLR 2016. Everything here is what lies
in the file, and adds up to it byte by byte. The paper counts in another way; dcz.format.paper does as it does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from dcz.format import layout as spec
from dcz.format.dtypes import DTYPES
from dcz.format.geometry import packed_bytes
from dcz.format.manifest import Bitmap, Exact, RelativeIndex
from dcz.format.report import account

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dcz.format.geometry import TensorGeometry
    from dcz.format.reader import Reader
    from dcz.format.report import Report, TensorReport

__all__ = ["FileParts", "Layer", "LayerCounts", "LayerTable", "layer_table", "printable", "text_table"]


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """What a layer is and takes, in numbers that add up over layers.

    ``weights``: its elements, zeros included. ``entries``: how many of them are stored. ``dense``: bytes of all elements in
    the tensor's own type. Before entropy coding (P+Q, "pruned and quantized"): ``packed_weights`` and ``packed_indices``
    are the bits of all codes and of all positions, ``packed_codebooks`` the bytes of the parameters. On disk (P+Q+H,
    "Huffman-coded" in the paper; here by any coding): bytes of ``coded_weights``, ``coded_indices``, ``codebooks`` (all
    parameters) and ``tables``. The code tables of Huffman and cascade streams stand apart, as far as
    they were looked at; range and zstd streams are counted with whatever they begin with.

    The columns make sense for all layouts and values:

    - a dense layout stores every element: density 1, no index bits;
    - a bitmap has one bit for each element, that is weights / entries for each stored one;
    - a relative index has its width for each gap symbol, fillers included: their cost is the stored entries', so before
      coding the index bits are a little above the width;
    - codes have their bits, of vectors each element its part of them; scales, minimums, zero points and tables count as
      codebooks;
    - exact values have the bits of their type as it is stored (f32 as bf16 has 16), and no codebook; so have differences to
      a base.

    What is None has no entries, or no bytes, to be divided by.
    """

    weights: int = 0
    entries: int = 0
    dense: int = 0
    packed_weights: int = 0
    packed_indices: int = 0
    packed_codebooks: int = 0
    coded_weights: int = 0
    coded_indices: int = 0
    codebooks: int = 0
    tables: int = 0

    def __add__(self, other: LayerCounts) -> LayerCounts:
        return LayerCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def sum(cls, items: Iterable[LayerCounts]) -> Self:
        """All of them together."""
        rows = [astuple(item) for item in items]
        return cls(*(sum(column) for column in zip(*rows, strict=True)))

    @property
    def density(self) -> float | None:
        """The part of the weights that is stored ("weights %" in the paper)."""
        return _ratio(self.entries, self.weights)

    @property
    def weight_bits(self) -> float | None:
        """Bits of a stored entry's value before coding."""
        return _ratio(self.packed_weights, self.entries)

    @property
    def index_bits(self) -> float | None:
        """Bits of a stored entry's position before coding."""
        return _ratio(self.packed_indices, self.entries)

    @property
    def coded_weight_bits(self) -> float | None:
        """Bits on disk of a stored entry's value, without code tables."""
        return _ratio(8 * self.coded_weights, self.entries)

    @property
    def coded_index_bits(self) -> float | None:
        """Bits on disk of a stored entry's position, without code tables."""
        return _ratio(8 * self.coded_indices, self.entries)

    @property
    def rate(self) -> float | None:
        """Bytes before coding for each byte of the dense tensor, codebooks included."""
        packed = (self.packed_weights + self.packed_indices) / 8 + self.packed_codebooks
        return _ratio(packed, self.dense)

    @property
    def stored(self) -> int:
        """Bytes on disk, except what the manifest says of the layer."""
        return self.coded_weights + self.coded_indices + self.codebooks + self.tables

    @property
    def coded_rate(self) -> float | None:
        """Bytes on disk for each byte of the dense tensor, codebooks and code tables included."""
        return _ratio(self.stored, self.dense)

    def to_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "entries": self.entries,
            "density": self.density,
            "weight_bits": self.weight_bits,
            "coded_weight_bits": self.coded_weight_bits,
            "index_bits": self.index_bits,
            "coded_index_bits": self.coded_index_bits,
            "rate": self.rate,
            "coded_rate": self.coded_rate,
            "dense_bytes": self.dense,
            "stored_bytes": self.stored,
            "bytes": {
                "weights": self.coded_weights,
                "indices": self.coded_indices,
                "codebooks": self.codebooks,
                "tables": self.tables,
            },
        }


@dataclass(frozen=True, slots=True)
class Layer:
    """One stored tensor; ``aliases`` are its further names. ``is_weight``: a floating-point tensor of at least two
    dimensions. What is not (biases, norms, counters) is in the table of the paper only as bytes."""

    name: str
    aliases: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    stored_as: str
    counts: LayerCounts

    @property
    def is_weight(self) -> bool:
        return len(self.shape) >= 2 and DTYPES[self.dtype].is_float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "dtype": self.dtype,
            "shape": list(self.shape),
            "is_weight": self.is_weight,
            "stored_as": self.stored_as,
            **self.counts.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class FileParts:
    """Where the bytes of a file went, in the paper's words and a few more. Their sum is the size of the file, exactly.

    ``tables``: 0 if they were not looked at; then they are in ``weights`` and ``indices``. ``digests`` and ``manifest`` are
    together the stored manifest: digests do not compress, so each that is not the same as another is counted with its 32 bytes.
    """

    weights: int
    indices: int
    codebooks: int
    tables: int
    assets: int
    manifest: int
    digests: int
    header: int
    padding: int
    footer: int

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LayerTable:
    """All layers of a file, in its order. ``size``: bytes of the file."""

    layers: tuple[Layer, ...]
    parts: FileParts
    size: int
    needs_base: bool = False
    """Whether the file holds differences: then ``compression`` counts none of the bytes that they are differences to."""

    @property
    def weights(self) -> LayerCounts:
        """All weights together (Layer.is_weight)."""
        return LayerCounts.sum(layer.counts for layer in self.layers if layer.is_weight)

    @property
    def others(self) -> LayerCounts:
        """All other tensors together."""
        return LayerCounts.sum(layer.counts for layer in self.layers if not layer.is_weight)

    @property
    def total(self) -> LayerCounts:
        """All tensors together."""
        return LayerCounts.sum(layer.counts for layer in self.layers)

    @property
    def compression(self) -> float | None:
        """Bytes of all tensors, dense and in their own types, for each byte of the complete file: "40x" is 40."""
        return self.total.dense / self.size if self.layers else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "totals": {
                "weights": self.weights.to_dict(),
                "others": self.others.to_dict(),
                "all": self.total.to_dict(),
            },
            "bytes": self.parts.to_dict(),
            "size": self.size,
            "compression": self.compression,
            "needs_base": self.needs_base,
        }

    def text(self) -> str:
        """The table for people. Names stand last and are not cut; what is not printable in them is escaped."""
        rows = [_row(layer.counts, printable(layer.name)) for layer in self.layers if layer.is_weight]
        others = sum(not layer.is_weight for layer in self.layers)
        if others:
            rows.append(_row(self.others, f"({others} other tensor{'s' if others > 1 else ''})"))
        rows.append(_row(self.total, "all"))
        parts = [
            (f"{taken:,}", f"{100 * taken / self.size:.2f}", name) for name, taken in self._named_parts()
        ]
        lines = [*text_table(_HEADER, rows), "", *text_table([("bytes", "%", "part")], parts)]
        if self.compression is not None:
            base = ", and it needs its base, which is not counted" if self.needs_base else ""
            lines += [
                "",
                f"{self.total.dense:,} bytes dense / {self.size:,} bytes of file = {self.compression:.2f}x{base}",
            ]
        return "\n".join(lines)

    def _named_parts(self) -> list[tuple[str, int]]:
        parts = self.parts.to_dict()
        shown = [(name, taken) for name, taken in parts.items() if taken]
        return [*shown, ("all", self.parts.total)]


_HEADER: Final = [
    ("", "weights", "weight", "bits", "index", "bits", "rate %", "rate %", ""),
    ("weights", "%", "P+Q", "P+Q+H", "P+Q", "P+Q+H", "P+Q", "P+Q+H", "layer"),
]


def _row(counts: LayerCounts, name: str) -> tuple[str, ...]:
    return (
        f"{counts.weights:,}",
        _shown(counts.density, 100),
        _shown(counts.weight_bits),
        _shown(counts.coded_weight_bits),
        _shown(counts.index_bits),
        _shown(counts.coded_index_bits),
        _shown(counts.rate, 100),
        _shown(counts.coded_rate, 100),
        name,
    )


def _shown(value: float | None, times: int = 1) -> str:
    return "-" if value is None else f"{value * times:.2f}"


def text_table(header: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, all flushed right but the last."""
    lines = [*header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return [
        "  ".join(
            [*(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]]
        ).rstrip()
        for line in lines
    ]


def printable(name: str) -> str:
    """The name, with everything escaped if something in it is not printable."""
    return name if name.isprintable() else json.dumps(name)[1:-1]


def _ratio(above: float, below: int) -> float | None:
    return above / below if below else None


def layer_table(reader: Reader, *, tables: bool = True, report: Report | None = None) -> LayerTable:
    """The table of an opened file. ``report``: what ``account`` says of it, if that is known already.

    Nothing is decoded. ``tables``: as in ``account``. Raises CorruptStream, TruncatedFile, OSError.
    """
    report = report or account(reader, tables=tables)
    aliases: dict[str, list[str]] = {}
    for alias, stored in report.aliases.items():
        aliases.setdefault(stored, []).append(alias)
    layers = tuple(
        Layer(
            name=tensor.name,
            aliases=tuple(aliases.get(tensor.name, ())),
            dtype=tensor.dtype,
            shape=tensor.shape,
            stored_as=tensor.stored_as,
            counts=_counts(reader.geometry.tensors[tensor.name], tensor),
        )
        for tensor in report.tensors
    )
    bytes_ = report.bytes
    digests = min(bytes_.manifest, spec.DIGEST_BYTES * _distinct_digests(reader))
    return LayerTable(
        layers=layers,
        parts=FileParts(
            weights=bytes_.values,
            indices=bytes_.positions,
            codebooks=bytes_.parameters,
            tables=bytes_.tables or 0,
            assets=bytes_.assets,
            manifest=bytes_.manifest - digests,
            digests=digests,
            header=bytes_.header,
            padding=bytes_.padding,
            footer=bytes_.footer,
        ),
        size=report.size,
        needs_base=bool(report.bases),
    )


def _distinct_digests(reader: Reader) -> int:
    manifest, size = reader.manifest, spec.DIGEST_BYTES
    chunks = manifest.chunks.digests
    found = {chunks[at : at + size] for at in range(0, len(chunks), size)}
    found |= {tensor.digest for tensor in manifest.tensors} | {asset.digest for asset in manifest.assets}
    return len(found)


def _counts(geometry: TensorGeometry, tensor: TensorReport) -> LayerCounts:
    entries = sum(geometry.tensor.entries) if geometry.position_streams else geometry.elements
    values = tensor.encoding
    codes = entries // geometry.dimension
    packed = 8 * geometry.entry_size * entries if isinstance(values, Exact) else values.bits * codes
    match tensor.layout:
        case RelativeIndex(bits=bits):
            indices = bits * sum(geometry.tensor.gaps)
        case Bitmap():
            indices = geometry.elements
        case _:
            indices = 0
    return LayerCounts(
        weights=geometry.elements,
        entries=entries,
        dense=geometry.nbytes,
        packed_weights=packed,
        packed_indices=indices,
        packed_codebooks=sum(packed_bytes(each.symbols, each.width) for each in geometry.parameters),
        coded_weights=tensor.values,
        coded_indices=tensor.positions,
        codebooks=tensor.parameters,
        tables=tensor.tables or 0,
    )

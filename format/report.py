"""What is in a file, how each tensor is stored, and where the bytes went: the parts add up to the file, byte by byte."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dcz.errors import CorruptStream
from dcz.format import layout as spec
from dcz.format.digests import digest_name
from dcz.format.manifest import (
    Affine,
    AffineCoded,
    Bitmap,
    CodebookCoded,
    Exact,
    PerChannel,
    PerFlat,
    PerGroup,
    PerIndex,
    PerTensor,
    RelativeIndex,
    ScaledCodebook,
    Vectors,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dcz.format.bases import BaseReference
    from dcz.format.geometry import PartPlace, Stream, TensorGeometry
    from dcz.format.manifest import Asset, Layout, Parameters, Provenance, StoredGranularity, Tensor, Values
    from dcz.format.reader import Reader

__all__ = ["DENSE", "STEP", "AssetReport", "FileBytes", "Report", "TensorReport", "account"]

DENSE: Final = ".dense"
"""Ends the name of a metric that was measured on the dense model."""
STEP: Final = ".step."
"""Stands between a metric's name, or ``bytes``, and the number of the step of a compression after which it was measured."""

_VARINT_BYTES: Final = 5
_WITH_TABLES: Final = frozenset({spec.HUFFMAN, spec.CASCADE})


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One stored tensor. All sizes are in bytes.

    ``values`` and ``positions`` are what the streams of the segments take, without their code tables; ``tables`` is
    None where those were not looked at and are still in the two others. ``parameters``: codebooks, scales, zero points.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    content: int
    digest: str
    layout: Layout
    encoding: Values
    codings: Mapping[str, int]
    segments: int
    values: int
    positions: int
    tables: int | None
    parameters: int

    @property
    def stored(self) -> int:
        return self.values + self.positions + (self.tables or 0) + self.parameters

    @property
    def ratio(self) -> float | None:
        """Stored bytes for each byte of the tensor itself; None for a tensor without elements."""
        return self.stored / self.content if self.content else None

    @property
    def bits_per_element(self) -> float | None:
        return 8 * self.stored / self.elements if self.elements else None

    @property
    def stored_as(self) -> str:
        """Layout x values x coding, in words."""
        codings = "+".join(sorted(self.codings)) or "nothing"
        return f"{_layout_words(self.layout)} x {_values_words(self.encoding)} x {codings}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "elements": self.elements,
            "content_bytes": self.content,
            "stored_bytes": self.stored,
            "ratio": self.ratio,
            "bits_per_element": self.bits_per_element,
            "layout": self.layout.model_dump(mode="json"),
            "values": self.encoding.model_dump(mode="json", exclude_none=True),
            "codings": dict(self.codings),
            "segments": self.segments,
            "bytes": {
                "values": self.values,
                "positions": self.positions,
                "tables": self.tables,
                "parameters": self.parameters,
            },
            "digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class AssetReport:
    """One file that travels with the tensors. ``size`` is its own, ``stored`` what it takes; both in bytes."""

    path: str
    role: str
    size: int
    stored: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "role": self.role,
            "size": self.size,
            "stored_bytes": self.stored,
            "digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Where the bytes of a file went. ``total`` is the size of the file, exactly.

    ``tables`` are code tables of tensors; None: not looked at, and still in ``values`` and ``positions``.
    """

    values: int
    positions: int
    tables: int | None
    parameters: int
    assets: int
    manifest: int
    padding: int
    header: int = spec.HEADER.size
    footer: int = spec.FOOTER.size

    @property
    def total(self) -> int:
        return sum(size or 0 for size in self.to_dict().values())

    def to_dict(self) -> dict[str, int | None]:
        return {
            "values": self.values,
            "positions": self.positions,
            "tables": self.tables,
            "parameters": self.parameters,
            "assets": self.assets,
            "manifest": self.manifest,
            "header": self.header,
            "padding": self.padding,
            "footer": self.footer,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A whole file. ``size`` is that of the file, ``content`` that of all stored tensors decoded; both in bytes."""

    file: str
    digest: str
    bases: tuple[BaseReference, ...]
    size: int
    content: int
    version: tuple[int, int]
    requires: tuple[str, ...]
    producer: str
    provenance: Provenance
    metadata: Mapping[str, str]
    tensors: tuple[TensorReport, ...]
    aliases: Mapping[str, str]
    assets: tuple[AssetReport, ...]
    bytes: FileBytes

    @property
    def ratio(self) -> float | None:
        """Bytes of the file for each byte of its tensors, decoded; None if there are none."""
        return self.size / self.content if self.content else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. What is not a number, in the metrics of the provenance, becomes None."""
        return {
            "file": self.file,
            "digest": self.digest,
            "bases": [{"digest": base.digest, "hint": base.hint} for base in self.bases],
            "size": self.size,
            "content_bytes": self.content,
            "ratio": self.ratio,
            "version": list(self.version),
            "requires": list(self.requires),
            "producer": self.producer,
            "provenance": _provenance_dict(self.provenance),
            "metadata": dict(self.metadata),
            "bytes": self.bytes.to_dict(),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "aliases": dict(self.aliases),
            "assets": [asset.to_dict() for asset in self.assets],
        }


def account(reader: Reader, *, tables: bool = True) -> Report:
    """Account for every byte of an opened file.

    All of it follows from the manifest, except the length of code tables, which stands in the first bytes of each
    Huffman or cascade stream. ``tables`` reads those: a small read for each stream, quick in a local file and not elsewhere. They
    are not compared with a digest, for which the whole file would have to be read.

    Raises CorruptStream if a table is longer than its stream, TruncatedFile, OSError.
    """
    geometry, manifest = reader.geometry, reader.manifest
    tensors = tuple(
        _tensor_report(reader, geometry.tensors[tensor.name], tensor, tables) for tensor in manifest.tensors
    )
    assets = tuple(_asset_report(asset) for asset in manifest.assets)
    padding = sum(length for _, length in geometry.padding)
    chunks = sum(geometry.chunk_lengths)
    return Report(
        file=reader.name,
        digest=reader.digest,
        bases=reader.bases,
        size=reader.size,
        content=sum(tensor.content for tensor in tensors),
        version=manifest.version,
        requires=manifest.requires,
        producer=manifest.producer,
        provenance=manifest.provenance,
        metadata=manifest.metadata,
        tensors=tensors,
        aliases=manifest.aliases,
        assets=assets,
        bytes=FileBytes(
            values=sum(tensor.values for tensor in tensors),
            positions=sum(tensor.positions for tensor in tensors),
            tables=sum(tensor.tables or 0 for tensor in tensors) if tables else None,
            parameters=sum(tensor.parameters for tensor in tensors),
            assets=sum(asset.stored for asset in assets),
            # Step 5 of the verification has shown that the manifest stands between the last chunk and the footer.
            manifest=reader.size - spec.HEADER.size - padding - chunks - spec.FOOTER.size,
            padding=padding,
        ),
    )


def _tensor_report(reader: Reader, geometry: TensorGeometry, tensor: Tensor, tables: bool) -> TensorReport:
    sizes = {"values": 0, "positions": 0}
    found = 0
    for segment in range(geometry.segments):
        place = reader.geometry.segment_place(tensor.name, segment)
        at = place.start
        for index, stream in enumerate(geometry.segment_part(segment)):
            table = 0
            if tables and stream.coding in _WITH_TABLES and stream.length:
                table = _table_bytes(reader, tensor.name, _offset(reader, place, at), stream)
            sizes["positions" if index < geometry.position_streams else "values"] += stream.length - table
            found += table
            at += stream.length
    return TensorReport(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        elements=geometry.elements,
        content=geometry.nbytes,
        digest=digest_name(tensor.digest),
        layout=tensor.layout,
        encoding=tensor.values,
        codings=_codings(geometry, tensor),
        segments=geometry.segments,
        tables=found if tables else None,
        parameters=sum(stream.length for stream in geometry.parameter_part()),
        **sizes,
    )


def _offset(reader: Reader, place: PartPlace, start: int) -> int:
    return reader.geometry.chunk_offsets[place.chunk] + start


def _table_bytes(reader: Reader, tensor: str, offset: int, stream: Stream) -> int:
    """The length of all tables of a stream and of the varint before them (docs/format.md, sections 6.2 and 6.5)."""
    length = 0
    for index, byte in enumerate(reader.read_stored(offset, min(_VARINT_BYTES, stream.length))):
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if index + 1 + length > stream.length:
                break
            return index + 1 + length
    raise CorruptStream(
        "the tables of a stream are longer than the stream",
        file=reader.name,
        tensor=tensor,
        offset=offset,
        hint="`dcz verify` tells what is damaged",
    )


def _codings(geometry: TensorGeometry, tensor: Tensor) -> dict[str, int]:
    """How many streams of the segments have which coding, by its name. Empty streams have none."""
    first = len(geometry.parameters)
    counts = Counter(
        coding
        for coding, length in zip(tensor.codings[first:], tensor.lengths[first:], strict=True)
        if length
    )
    return {spec.CODING_NAMES[coding]: counts[coding] for coding in sorted(counts)}


def _asset_report(asset: Asset) -> AssetReport:
    return AssetReport(asset.path, asset.role, asset.size, sum(asset.lengths), digest_name(asset.digest))


def _layout_words(layout: Layout) -> str:
    match layout:
        case RelativeIndex(bits=bits):
            return f"relative-index ({bits} bits)"
        case Bitmap():
            return "bitmap"
        case _:
            return "dense"


def _granularity_words(granularity: StoredGranularity) -> Iterable[str]:
    match granularity:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (f"axis {axis}",)
        case PerGroup(size=size):
            return (f"groups of {size}",)
        case PerFlat(size=size):
            return (f"groups of {size} across rows",)
        case PerIndex(groups=groups):
            return (f"{groups} groups by an index",)


def _parameter_words(what: str, how: Parameters) -> Iterable[str]:
    return (f"{what} of {how.bits} bits",) if isinstance(how, AffineCoded | CodebookCoded) else ()


def _values_words(values: Values) -> str:
    if isinstance(values, Exact):
        details: list[str] = [] if values.delta is None else [f"{values.delta.operation} to the base"]
        details += [] if values.stored_dtype is None else [values.stored_dtype]
        details += [] if values.split == "whole" else [values.split]
        return f"exact ({', '.join(details)})" if details else "exact"
    details = [f"{values.bits} bits" if isinstance(values, Affine) else f"{values.size} shared"]
    if isinstance(values, Vectors):
        details.append(f"{values.dimension} at a time")
        return f"{values.kind} ({', '.join(details)})"
    details += _granularity_words(values.granularity)
    if isinstance(values, Affine | ScaledCodebook):
        details += _parameter_words("scales", values.scale_values)
    if isinstance(values, Affine) and values.minimums:
        details += _parameter_words("minimums", values.minimum_values) or ("minimums",)
    return f"{values.kind} ({', '.join(details)})"


def _provenance_dict(provenance: Provenance) -> dict[str, Any]:
    return {
        "source": provenance.source,
        "revision": provenance.revision,
        "files": [
            {"path": file.path, "size": file.size, "sha256": file.sha256.hex()} for file in provenance.files
        ],
        "recipe": _finite(provenance.recipe),
        "effort": provenance.effort,
        "metrics": _finite(provenance.metrics),
    }


def _finite(value: Any) -> Any:
    """JSON has no infinities and no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

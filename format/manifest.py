"""The manifest: strict models, canonical encoding, bounded decoding (docs/format.md, section 3).

A model that exists is valid in itself: types, ranges, names, paths, uniqueness (step 4 of the verification). Whether
its numbers agree with each other and with the file is for geometry.py (step 5).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar, cast

import msgpack
import zstandard
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    model_validator,
)

from dcz import _native
from dcz.errors import CorruptStream, EncodingError, LimitExceeded, ManifestError, UnsupportedVersion
from dcz.format import layout as spec
from dcz.format.dtypes import DTYPES, NARROWER, DType
from dcz.format.layout import DEFAULT_LIMITS, Limits

__all__ = [
    "Affine",
    "AffineCoded",
    "Asset",
    "Base",
    "Bitmap",
    "Chunks",
    "Codebook",
    "CodebookCoded",
    "Delta",
    "Dense",
    "Exact",
    "ExactParameters",
    "Granularity",
    "Layout",
    "Manifest",
    "Parameters",
    "PerChannel",
    "PerFlat",
    "PerGroup",
    "PerIndex",
    "PerTensor",
    "Provenance",
    "RelativeIndex",
    "ScaledCodebook",
    "SourceFile",
    "StoredGranularity",
    "Tensor",
    "Values",
    "Vectors",
    "check_asset_paths",
    "check_name",
    "decode_manifest",
    "describe",
    "encode_manifest",
    "features_of",
    "needed_features",
]

Uint = Annotated[int, Field(ge=0, lt=1 << 63)]
Digest = Annotated[bytes, Field(min_length=spec.DIGEST_BYTES, max_length=spec.DIGEST_BYTES)]
Bits = Annotated[int, Field(ge=1, le=8)]


# pydantic collects every error that it finds, a kilobyte each: a manifest of a megabyte that is wrong everywhere would
# take gigabytes. So arrays and maps of any length are given up at their first fault, and others are kept short.
_MAX_FIELDS: Final = 256
_Item = TypeVar("_Item")
Array = Annotated[tuple[_Item, ...], FailFast()]


def _map_of(kind: type) -> Callable[[Any], Any]:
    """str -> ``kind``. pydantic also takes an int for a float, where the format has one form for a number."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            for key, item in value.items():
                if type(key) is not str or type(item) is not kind:
                    raise ValueError(f"{str(key)[:80]!r}: not a {kind.__name__}")
        return value

    return check


def _json(value: Any) -> Any:
    """Arrays are unpacked as tuples, but JSON has lists."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    if not isinstance(value, str | int | float):
        raise ValueError(f"a {type(value).__name__} is not allowed here")  # noqa: TRY004 - pydantic takes no other
    return value


Strings: TypeAlias = Annotated[dict[str, str], BeforeValidator(_map_of(str))]
Floats: TypeAlias = Annotated[dict[str, float], BeforeValidator(_map_of(float))]
Json: TypeAlias = Annotated[dict[str, Any], BeforeValidator(_json)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=False)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise ValueError(f"a map of {len(value)} fields")
        return value


class Dense(_Model):
    kind: Literal["dense"] = "dense"


class RelativeIndex(_Model):
    kind: Literal["relative-index"] = "relative-index"
    bits: Bits


class Bitmap(_Model):
    kind: Literal["bitmap"] = "bitmap"


Layout: TypeAlias = Annotated[Dense | RelativeIndex | Bitmap, Field(discriminator="kind")]


class PerTensor(_Model):
    """One group for the whole tensor."""

    kind: Literal["tensor"] = "tensor"


class PerChannel(_Model):
    """One group for each index of ``axis``."""

    kind: Literal["channel"] = "channel"
    axis: Annotated[int, Field(ge=0, lt=spec.MAX_RANK)]


class PerGroup(_Model):
    """Groups of ``size`` elements along the last axis; the last group of a row may be shorter."""

    kind: Literal["group"] = "group"
    size: Annotated[int, Field(ge=1, le=spec.MAX_GROUP)]


class PerFlat(_Model):
    """Groups of ``size`` elements in C order, across rows; the last group of the tensor may be shorter."""

    kind: Literal["flat"] = "flat"
    size: Annotated[int, Field(ge=1, le=spec.MAX_GROUP)]


class PerIndex(_Model):
    """``groups`` groups in each row; a parameter stream says which one a column belongs to."""

    kind: Literal["indexed"] = "indexed"
    groups: Annotated[int, Field(ge=1, le=spec.MAX_INDEXED_GROUPS)]


Granularity: TypeAlias = Annotated[PerTensor | PerChannel | PerGroup, Field(discriminator="kind")]
"""How weights are quantized here."""

StoredGranularity: TypeAlias = Annotated[
    PerTensor | PerChannel | PerGroup | PerFlat | PerIndex, Field(discriminator="kind")
]
"""How whatever is stored may have been quantized."""


class ExactParameters(_Model):
    """Scales or minimums are stored as they are."""

    kind: Literal["exact"] = "exact"


class AffineCoded(_Model):
    """Scales or minimums are scales of their own times codes (docs/format.md, section 5.6)."""

    kind: Literal["affine"] = "affine"
    bits: Bits
    group: Annotated[int, Field(ge=1, le=spec.MAX_GROUP)]
    zero_point: Annotated[int, Field(ge=0, le=255)] = 0
    dtype: Literal["f32", "f16", "bf16"] = "f32"


class CodebookCoded(_Model):
    """Scales or minimums are scales of their own times shared values (docs/format.md, section 5.6)."""

    kind: Literal["codebook"] = "codebook"
    bits: Bits
    size: Annotated[int, Field(ge=1, le=256)]
    group: Annotated[int, Field(ge=1, le=spec.MAX_GROUP)]
    offset: bool = False
    dtype: Literal["f32", "f16", "bf16"] = "f32"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_size(self.size, self.bits)
        return self


Parameters: TypeAlias = Annotated[ExactParameters | AffineCoded | CodebookCoded, Field(discriminator="kind")]


def _check_size(size: int, bits: int) -> None:
    if size > 1 << bits:
        raise ValueError(f"{size} centroids do not fit in {bits} bits")


class Delta(_Model):
    """The stored values are differences to a tensor of a base (docs/format.md, section 5.5)."""

    base: Annotated[int, Field(ge=0, lt=spec.MAX_BASES)] = 0
    tensor: str | None = None  # None: the same name
    operation: Literal["xor", "difference"]

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.tensor is not None:
            check_name(self.tensor)
        return self


class Exact(_Model):
    kind: Literal["exact"] = "exact"
    split: Literal["whole", "bytes", "rotated"]
    offset: Annotated[int, Field(ge=0, le=255)] = 0
    stored_dtype: Literal["f32", "f16", "bf16"] | None = None  # None: the tensor's type
    delta: Delta | None = None

    @model_validator(mode="after")
    def _integers(self) -> Self:
        if self.delta is not None and self.split == "rotated":
            raise ValueError("the split 'rotated' is not for differences")
        if self.delta is not None and self.stored_dtype is not None:
            raise ValueError("differences are not stored in a narrower type")
        return self


ScaleType: TypeAlias = Literal["f64", "f32", "f16", "bf16"]


class Affine(_Model):
    kind: Literal["affine"] = "affine"
    bits: Bits
    granularity: StoredGranularity = PerTensor()
    zero_points: bool = False
    zero_point: Annotated[int, Field(ge=0, le=255)] | None = None  # None: 2^(bits-1)
    zero_point_bits: Bits | None = None  # None: as many as a code has
    minimums: bool = False
    scale_dtype: ScaleType | None = None  # None: the default for the tensor's type
    scale_values: Parameters = ExactParameters()
    minimum_values: Parameters = ExactParameters()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.zero_points and self.zero_point is not None:
            raise ValueError("one zero point for all, and one for each group")
        if self.zero_point_bits is not None and not self.zero_points:
            raise ValueError("the bits of zero points that are not there")
        if not self.minimums and self.minimum_values != ExactParameters():
            raise ValueError("the values of minimums that are not there")
        return self


class Codebook(_Model):
    kind: Literal["codebook"] = "codebook"
    bits: Bits
    size: Annotated[int, Field(ge=1, le=256)]
    granularity: StoredGranularity = PerTensor()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_size(self.size, self.bits)
        return self


class ScaledCodebook(_Model):
    """Values that all groups share, times a scale of each group (docs/format.md, section 5.3)."""

    kind: Literal["scaled-codebook"] = "scaled-codebook"
    bits: Bits
    size: Annotated[int, Field(ge=1, le=256)]
    granularity: StoredGranularity = PerTensor()
    scale_dtype: ScaleType | None = None
    scale_values: Parameters = ExactParameters()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_size(self.size, self.bits)
        return self


class Vectors(_Model):
    """``dimension`` neighbours of a row share a code (docs/format.md, section 5.3). ``per_place``: each place of a row has
    a codebook of its own."""

    kind: Literal["vectors"] = "vectors"
    bits: Bits
    size: Annotated[int, Field(ge=1, le=256)]
    dimension: Annotated[int, Field(ge=1, le=spec.MAX_DIMENSION)]
    per_place: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_size(self.size, self.bits)
        return self


Values: TypeAlias = Annotated[
    Exact | Affine | Codebook | ScaledCodebook | Vectors, Field(discriminator="kind")
]


class Tensor(_Model):
    """One stored tensor (docs/format.md, section 5)."""

    name: str
    dtype: str
    shape: Annotated[tuple[Uint, ...], FailFast(), Field(max_length=spec.MAX_RANK)]
    digest: Digest
    layout: Layout = Dense()
    values: Values = Exact(split="whole")
    segment: Annotated[int, Field(ge=1, le=spec.MAX_SEGMENT_ELEMENTS)] = 1
    entries: Array[Uint] = ()
    gaps: Array[Uint] = ()
    codings: bytes = b""
    lengths: Array[Uint] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_name(self.name)
        row = DTYPES.get(self.dtype)
        if row is None:
            raise ValueError(f"unknown element type {self.dtype!r}")
        if math.prod(size for size in self.shape if size) * row.itemsize >= 1 << 63:
            raise ValueError(f"the shape {self.shape} is too large")
        values = self.values
        if isinstance(values, Exact):
            if values.split == "rotated" and not row.is_float:
                raise ValueError(f"the split 'rotated' is for floating-point types, not for {self.dtype}")
            if values.offset and (values.split != "rotated" or row.itemsize == 1):
                raise ValueError(f"an offset is for rotated elements of several bytes, not for {self.dtype}")
            if values.stored_dtype not in (None, *NARROWER.get(self.dtype, ())):
                raise ValueError(f"elements of {self.dtype} are not stored as {values.stored_dtype}")
            if values.delta is not None and values.delta.operation == "difference" and self.dtype == "bool":
                raise ValueError("the operation 'difference' is not for bool")
        elif isinstance(values, Vectors):
            if not isinstance(self.layout, Dense):
                raise ValueError(f"vectors are stored dense, not as {self.layout.kind}")  # noqa: TRY004 - pydantic takes no other
            if (self.shape[-1] if self.shape else 1) % values.dimension:
                raise ValueError(f"vectors of {values.dimension} elements in a tensor of shape {self.shape}")
        else:
            granularity = values.granularity
            if isinstance(granularity, PerChannel) and granularity.axis >= len(self.shape):
                raise ValueError(f"axis {granularity.axis} of a tensor with {len(self.shape)} dimensions")
        if isinstance(values, Affine | ScaledCodebook):
            self._check_scales(values, row)
        return self

    def _check_scales(self, values: Affine | ScaledCodebook, row: DType) -> None:
        if not row.is_float:
            raise ValueError(f"{values.kind} values are for floating-point types, not for {self.dtype}")
        if values.scale_dtype is not None and (values.scale_dtype == "f64") != (self.dtype == "f64"):
            raise ValueError(f"scales of {values.scale_dtype} for a tensor of {self.dtype}")
        exact = [isinstance(values.scale_values, ExactParameters)]
        if isinstance(values, Affine) and values.minimums:
            exact.append(isinstance(values.minimum_values, ExactParameters))
        if values.scale_dtype is not None and not any(exact):
            raise ValueError("the type of scales and minimums, of which none are stored as they are")
        if self.dtype == "f64" and not all(exact):
            raise ValueError("scales and minimums of f64 tensors are stored as they are")

    @property
    def stored_dtype(self) -> str:
        """The type of exact entries in the streams: narrower than the tensor's if all elements fit."""
        return (isinstance(self.values, Exact) and self.values.stored_dtype) or self.dtype

    @property
    def scale_dtype(self) -> str:
        """The type of scales and minimums that are stored as they are."""
        given = self.values.scale_dtype if isinstance(self.values, Affine | ScaledCodebook) else None
        return given or ("f64" if self.dtype == "f64" else "f32")


class Asset(_Model):
    """One file that travels with the tensors (docs/format.md, section 7)."""

    path: str
    size: Uint
    digest: Digest
    role: Literal["file", "safetensors-header"] = "file"
    codings: bytes = b""
    lengths: Array[Uint] = ()


class Chunks(_Model):
    """Stored length and BLAKE3 digest of every chunk."""

    lengths: Array[Annotated[int, Field(ge=1, lt=1 << 63)]]
    digests: bytes

    @model_validator(mode="after")
    def _one_digest_each(self) -> Self:
        if len(self.digests) != spec.DIGEST_BYTES * len(self.lengths):
            raise ValueError(f"{len(self.digests)} bytes of digests for {len(self.lengths)} chunks")
        return self


class SourceFile(_Model):
    """A file that was read for the conversion."""

    path: str
    size: Annotated[int, Field(ge=0, lt=1 << 64)]
    sha256: Digest


class Provenance(_Model):
    """Where the content comes from (docs/format.md, section 3.1). Informs; nothing is decided by it."""

    source: str | None = None
    revision: str | None = None
    files: Array[SourceFile] = ()
    recipe: Json = Field(default_factory=dict)
    effort: str | None = None
    metrics: Floats = Field(default_factory=dict)


class Base(_Model):
    """An artifact that is needed to read this one (docs/format.md, section 3.2)."""

    digest: Digest
    hint: str | None = None

    @model_validator(mode="after")
    def _short_hint(self) -> Self:
        if self.hint is not None and not 1 <= len(self.hint.encode()) <= spec.MAX_HINT_BYTES:
            raise ValueError(f"a hint has 1 to {spec.MAX_HINT_BYTES} bytes of UTF-8")
        return self


class Manifest(_Model):
    """Everything that a reader knows of a file before it touches its data."""

    version: tuple[Uint, Uint] = (spec.MAJOR, 0)
    requires: Array[str] = ()
    producer: str
    tensors: Array[Tensor] = ()
    aliases: Strings = Field(default_factory=dict)
    assets: Array[Asset] = ()
    bases: Annotated[Array[Base], Field(max_length=spec.MAX_BASES)] = ()
    chunks: Chunks = Chunks(lengths=(), digests=b"")
    metadata: Strings = Field(default_factory=dict)
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _names(self) -> Self:
        names: set[str] = set()
        for tensor in self.tensors:
            if tensor.name in names:
                raise ValueError(f"the tensor name {tensor.name!r} is given twice")
            names.add(tensor.name)
        for alias, target in self.aliases.items():
            check_name(alias)
            if alias in names:
                raise ValueError(f"the alias {alias!r} is also the name of a tensor")
            if target not in names:
                raise ValueError(f"the alias {alias!r} names {target!r}, which is not a stored tensor")
        check_asset_paths([asset.path for asset in self.assets])
        if list(self.requires) != sorted(set(self.requires)):
            raise ValueError("`requires` is not in ascending order")
        self._check_bases()
        return self

    def _check_bases(self) -> None:
        if len({base.digest for base in self.bases}) < len(self.bases):
            raise ValueError("a base is given twice")
        used: set[int] = set()
        for tensor in self.tensors:
            if isinstance(tensor.values, Exact) and tensor.values.delta is not None:
                used.add(tensor.values.delta.base)
        if used != set(range(len(self.bases))):
            raise ValueError(f"{len(self.bases)} bases, and tensors use {sorted(used) or 'none'}")


_NOT_IN_NAMES: Final = re.compile("[\0\ud800-\udfff]")


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` may be a tensor's name."""
    if name.isascii():  # as nearly all are
        fits = 1 <= len(name) <= spec.MAX_NAME_BYTES and "\0" not in name
    else:
        size = len(name.encode(errors="surrogatepass"))
        fits = size <= spec.MAX_NAME_BYTES and not _NOT_IN_NAMES.search(name)
    if not fits:
        raise ValueError(
            f"a tensor name has 1 to {spec.MAX_NAME_BYTES} bytes of UTF-8 without NUL, not {name[:80]!r}"
        )


def _check_path(path: str) -> None:
    if not 1 <= len(path.encode()) <= spec.MAX_PATH_BYTES:
        raise ValueError(f"an asset path has 1 to {spec.MAX_PATH_BYTES} bytes, not {path[:80]!r}")
    for part in path.split("/"):
        if part in ("", ".", "..") or part[-1] in " ." or any(c < " " or c in "\x7f\\:" for c in part):
            raise ValueError(f"the asset path {path!r} is not a plain relative path")


def check_asset_paths(paths: list[str]) -> None:
    """Raise ValueError unless the paths are safe, distinct (also in another case) and none is another's folder."""
    files: set[str] = set()
    for path in paths:
        _check_path(path)
        folded = path.casefold()
        if folded in files:
            raise ValueError(f"the asset path {path!r} is given twice")
        files.add(folded)
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in files:
                raise ValueError(f"the asset {'/'.join(parts[:depth])!r} is also a folder")


_ALWAYS: Final = object()


@functools.cache
def _fields_of(model: type[BaseModel]) -> list[tuple[str, object]]:
    """The fields of a model in the order of the manifest, each with the value at which it is left out."""
    return [
        (name, _ALWAYS if name in ("kind", "version") else field.get_default(call_default_factory=True))
        for name, field in sorted(model.model_fields.items())
    ]


def _plain(value: Any) -> Any:
    """What msgpack packs: fields with their default left out, maps in order of their keys."""
    if isinstance(value, BaseModel):
        items = ((name, getattr(value, name), default) for name, default in _fields_of(type(value)))
        return {name: _plain(item) for name, item, default in items if item != default}
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


# The manifest is small, and at 40x it is a part of the file that shows; of a large one, the highest level saves a thousandth
# more, in ten times the time.
_LEVEL: Final = 19
_LEVEL_OF_LARGE: Final = 15
_LARGE: Final = 16 << 10


def encode_manifest(manifest: Manifest) -> tuple[bytes, int]:
    """The stored bytes of a manifest, and how many they are when decoded.

    Raises EncodingError if a value cannot be written.
    """
    try:
        plain = cast("bytes", msgpack.packb(_plain(manifest), use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as exc:
        raise EncodingError(f"the manifest cannot be encoded: {exc}") from exc
    level = _LEVEL if len(plain) < _LARGE else _LEVEL_OF_LARGE
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(plain), len(plain)


_LONGEST_MESSAGE: Final = 300


def _printable(text: str) -> str:
    """Text that may hold parts of a file, for a message: cut, and without control characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:_LONGEST_MESSAGE])
    return f"{shown} ..." if len(text) > _LONGEST_MESSAGE else shown


def describe(exc: ValidationError) -> str:
    """The first fault, and how many more there are, in one line."""
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "manifest"
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return _printable(f"{where}: {message}") + more


def _fault(exc: ValidationError, tree: dict[str, Any]) -> ManifestError:
    first = exc.errors(include_url=False, include_input=False)[0]
    tensor = None
    if len(first["loc"]) > 1 and first["loc"][0] == "tensors":
        fields = tree["tensors"][first["loc"][1]]
        name = fields.get("name") if isinstance(fields, dict) else None
        tensor = name if isinstance(name, str) and len(name) <= spec.MAX_NAME_BYTES else None
    return ManifestError(describe(exc), tensor=tensor)


def decode_manifest(
    stored: bytes, decoded_length: int, version: tuple[int, int], limits: Limits = DEFAULT_LIMITS
) -> Manifest:
    """Step 4 of the verification: from the stored bytes to a valid model.

    ``version`` is what the footer says. Raises LimitExceeded, UnsupportedVersion or ManifestError.
    """
    if decoded_length > min(
        limits.manifest_bytes, limits.manifest_slack + limits.manifest_ratio * len(stored)
    ):
        raise LimitExceeded(f"a manifest of {decoded_length} bytes, stored in {len(stored)}")
    try:
        if zstandard.frame_content_size(stored) != decoded_length:
            raise ManifestError(
                f"the manifest's frame does not say {decoded_length} bytes, as the footer does"
            )
        plain = zstandard.ZstdDecompressor().decompress(
            stored, max_output_size=decoded_length, allow_extra_data=False
        )
    except zstandard.ZstdError as exc:
        raise ManifestError(f"the manifest is not a Zstandard frame: {exc}") from exc
    if len(plain) != decoded_length:
        raise ManifestError(f"the manifest has {len(plain)} bytes, not {decoded_length}")
    try:
        containers, items = _native.check_messagepack(plain, spec.MAX_DEPTH)
    except CorruptStream as exc:
        raise ManifestError(f"the manifest is not canonical MessagePack: {exc.message}") from exc
    if containers > limits.manifest_containers or items > limits.manifest_items:
        raise LimitExceeded(
            f"a manifest of {containers} maps and arrays and {items} other items, at most "
            f"{limits.manifest_containers} and {limits.manifest_items} are allowed"
        )
    tree = msgpack.unpackb(plain, use_list=False, raw=False, strict_map_key=True)
    return _validate(tree, version, limits)


def _validate(tree: dict[str, Any], version: tuple[int, int], limits: Limits) -> Manifest:
    if tree.get("version") != version:
        said = _printable(str(tree.get("version")))
        raise ManifestError(f"the manifest's version is {said}, the footer's {version}")
    unknown = set(_strings(tree.get("requires"))) - (spec.FEATURES if version[1] else frozenset())
    if unknown:
        raise UnsupportedVersion(
            f"the file needs {_printable(', '.join(sorted(unknown)))}, which this version of dcz does not have",
            hint=f"it was written as format {version[0]}.{version[1]}; a newer dcz reads it",
        )
    tensors, assets = _count(tree, "tensors") + _count(tree, "aliases"), _count(tree, "assets")
    if tensors > limits.tensors:
        raise LimitExceeded(f"{tensors} tensors and aliases, at most {limits.tensors} are allowed")
    if assets > limits.assets:
        raise LimitExceeded(f"{assets} assets, at most {limits.assets} are allowed")
    # A file of a later minor version that requires nothing may hold fields that nobody needs to know, whoever defined them.
    known = version[1] == 0 or (version[1] <= spec.MINOR and bool(tree.get("requires")))
    try:
        manifest = Manifest.model_validate(tree, extra="forbid" if known else "ignore")
    except ValidationError as exc:
        raise _fault(exc, tree) from exc
    _check_features(manifest)
    return manifest


_FIELDS_OF_FEATURES: Final = {
    "zero_point": spec.ZERO_POINTS,
    "zero_point_bits": spec.ZERO_POINTS,
    "minimums": spec.MINIMUMS,
    "scale_values": spec.PARAMETER_CODES,
    "minimum_values": spec.PARAMETER_CODES,
}


def features_of(values: Values, present: Callable[[Values], Iterable[str]]) -> set[str]:
    """The features beyond version 1.0 that values use (docs/format.md, section 10.2). ``present``: which of their fields are
    there."""
    if isinstance(values, Exact):
        return set()
    if isinstance(values, Vectors):
        return {spec.VECTORS}
    used = set[str]()
    if isinstance(values.granularity, PerFlat):
        used.add(spec.FLAT_GROUPS)
    if isinstance(values.granularity, PerIndex):
        used.add(spec.INDEXED_GROUPS)
    if isinstance(values, ScaledCodebook):
        used.add(spec.SCALED_CODEBOOK)
    if isinstance(values, Affine | ScaledCodebook):
        used |= {_FIELDS_OF_FEATURES[name] for name in present(values) if name in _FIELDS_OF_FEATURES}
    return used


def needed_features(values: Values) -> set[str]:
    """The features of values that are going to be written, where fields with their default are left out."""

    def present(values: Values) -> Iterable[str]:
        return (name for name, default in _fields_of(type(values)) if getattr(values, name) != default)

    return features_of(values, present)


def _check_features(manifest: Manifest) -> None:
    """Each feature that a tensor uses is required, so that a reader that does not know it need not find out; and no other is."""
    required, used = set(manifest.requires), set[str]()
    for tensor in manifest.tensors:
        found = features_of(tensor.values, lambda values: values.model_fields_set)
        if not found <= required:
            raise ManifestError(
                f"it uses {min(found - required)}, which the file does not say it requires",
                tensor=tensor.name,
            )
        used |= found
    if required != used:
        raise ManifestError(f"the file requires {min(required - used)}, which no tensor uses")


def _count(tree: dict[str, Any], field: str) -> int:
    items = tree.get(field)
    return len(items) if isinstance(items, tuple | dict) else 0


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, tuple) else []

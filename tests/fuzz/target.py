"""The invariant. For any bytes, and whichever way they come in, reading them ends in one of two ways:

1. a FormatError that names the file, the place in it (unless it is the decoded content that has another digest), and the
   tensor, if it was one that was being read; its text is short and printable;
2. content. Of a mutant whose digests were left alone: exactly that of the file with this identity, and only if the mutant
   *is* that file can a deep verification succeed. Of a sealed mutant: what the reference reader finds in it, bit for bit;
   and what one of the two refuses, the other refuses too. A base that is not among those of the seed files is not there.

Slices, sparse forms and the account of the bytes agree with the whole. No other exception, no warning, no more time than
``SECONDS``, and no more memory than ``memory_bound`` says.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias, TypeVar, cast

import numpy as np
import zstandard
from blake3 import blake3
from tests.fuzz.limits import LIMITS, ReferenceLimits
from tests.fuzz.mutations import Mutant
from tests.fuzz.seeds import BASES
from tests.fuzz.tree_mutations import pack
from tests.reference.dcz_reference import ReferenceFile, Refused, read
from tests.reference.dcz_reference_manifest import unpack

from dcz.errors import BaseNotFound, DigestMismatch, FormatError, ManifestError
from dcz.format import BaseReference, CompressedSparse, Reader, verify
from dcz.format.coding import decode_stream
from dcz.format.manifest import Codebook, Vectors
from dcz.format.page import html_page
from dcz.format.report import account
from dcz.format.source import SourceLike

__all__ = [
    "SECONDS",
    "WAYS",
    "Outcome",
    "Violation",
    "Way",
    "check",
    "check_by_number",
    "memory_bound",
    "observe",
]

SECONDS: Final = 20.0
"""Of processor time, for everything that is done with one mutant. Hundreds of times what it should take."""

Way: TypeAlias = Literal["bytes", "path", "file object", "short reads"]
WAYS: Final[tuple[Way, ...]] = ("bytes", "path", "file object", "short reads")

_LONGEST_TEXT: Final = 20_000  # characters of an error
_COMPARED: Final = 100_000  # decoded bytes: more are compared with the slow reader only ...
_COMPARED_ONE_IN: Final = 10  # ... in one of so many mutants
_T = TypeVar("_T")


class Violation(AssertionError):
    """The invariant does not hold."""


@dataclass(frozen=True)
class Outcome:
    """``kind`` says how it ended; ``error`` is the class of the error, if there was one."""

    kind: Literal["refused", "same content", "other content, agreed", "other content, not compared"]
    error: str = ""


@dataclass
class Observed:
    """What the native reader made of some bytes: contents, or errors, of everything that there is to read."""

    opening: FormatError | None = None
    identity: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes] | FormatError] = field(default_factory=dict)
    assets: dict[str, bytes | FormatError] = field(default_factory=dict)
    decoded_assets: dict[str, bytes] = field(default_factory=dict)  # also of those whose digest is another
    shared_bools: set[str] = field(default_factory=set)
    deep: FormatError | None = None
    claimed: int = 0

    def errors(self) -> Iterator[FormatError]:
        for one in (self.opening, self.deep, *self.tensors.values(), *self.assets.values()):
            if isinstance(one, FormatError):
                yield one


def memory_bound(data: bytes) -> int:
    """Bytes that reading may take: so many for each byte of the file, of the manifest and of the largest tensor.

    The manifest's are many, because a byte of it can become an object of Python.
    """
    decoded = int.from_bytes(data[-52:-48], "little") if len(data) >= 80 else 0
    manifest = decoded if decoded <= LIMITS.manifest_bytes else 0
    return (2 << 20) + 16 * len(data) + 256 * manifest + 4 * LIMITS.tensor_bytes


def require(condition: object, what: str) -> None:
    if not condition:
        raise Violation(what)


# Ways in


class _ShortReads(io.BytesIO):
    """A file that gives a few bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1000, size) if size is not None and size >= 0 else 1000)


@contextlib.contextmanager
def opened(data: bytes, way: Way, folder: Path) -> Iterator[tuple[SourceLike, str]]:
    """The bytes as something to read from, and the name that errors have to give it."""
    match way:
        case "bytes":
            yield data, "<bytes>"
        case "path":
            path = folder / "mutant.dcz"
            path.write_bytes(data)
            yield path, str(path)
        case "file object":
            yield cast("BinaryIO", io.BytesIO(data)), "<file object>"
        case "short reads":
            yield cast("BinaryIO", _ShortReads(data)), "<file object>"


# Reading everything


def find_base(reference: BaseReference) -> Reader | None:
    data = BASES.get(reference.digest)
    return None if data is None else Reader(data, limits=LIMITS, threads=1)


def observe(data: bytes, way: Way, folder: Path, *, threads: int = 1) -> Observed:
    """Read all that there is, in every manner, and hold each error to the first half of the invariant."""
    seen = Observed()
    with opened(data, way, folder) as (source, name):

        def attempt(read: Callable[[], _T], tensor: str | None = None) -> _T | FormatError:
            try:
                return read()
            except FormatError as exc:
                check_error(exc, name, len(data), tensor)
                return exc
            except BaseNotFound as exc:  # for which the file is not at fault; to what follows, it is refused
                require(exc.message.startswith(f"{name} needs its base blake3:"), f"{exc.message}")
                return ManifestError(exc.message, file=name, tensor=tensor, offset=0)

        reader = attempt(lambda: Reader(source, limits=LIMITS, threads=threads, base=find_base))
        if isinstance(reader, FormatError):
            seen.opening = reader
        else:
            with reader:
                _read_all(reader, seen, attempt)
                report = attempt(lambda: account(reader))
                if not isinstance(report, FormatError):
                    require(report.bytes.total == len(data), "the account does not add up to the file")
                page = attempt(lambda: html_page(reader))
                if isinstance(page, str):
                    require("<script" not in page, "a page holds markup of the file")
        deep = attempt(lambda: verify(source, deep=True, limits=LIMITS, threads=threads, base=find_base))
        if isinstance(deep, FormatError):
            seen.deep = deep
        else:
            require(deep.digest == seen.identity, "verify and the reader name two identities")
        require((seen.opening is None) or (seen.deep is not None), "verify accepts what cannot be opened")
    return seen


_Attempt: TypeAlias = Callable[..., Any]


def _read_all(reader: Reader, seen: Observed, attempt: _Attempt) -> None:
    seen.identity = reader.digest
    seen.aliases, seen.metadata = dict(reader.aliases), dict(reader.metadata)
    seen.shared_bools = {
        one.name
        for one in reader.manifest.tensors
        if one.dtype == "bool" and isinstance(one.values, Codebook | Vectors)
    }
    seen.claimed = sum(one.nbytes for one in reader.geometry.tensors.values())
    seen.claimed += sum(one.asset.size for one in reader.geometry.assets)
    for key in reader.keys():  # noqa: SIM118  (the API is not a mapping's)
        stored = reader.stored_name(key)
        array = attempt(lambda key=key: reader.read(key), stored)
        if isinstance(array, FormatError):
            seen.tensors[key] = array
        else:
            require(array.shape == reader.shape(key), f"{key!r} has another shape than it says")
            seen.tensors[key] = (reader.dtype(key), array.shape, array.tobytes())
        if key == stored:
            _check_slice(reader, key, array, attempt)
            _check_sparse(reader, key, array, attempt)
    for index, asset in enumerate(reader.manifest.assets):
        seen.assets[asset.path] = attempt(lambda path=asset.path: reader.read_asset(path))
        decoded = attempt(lambda index=index: _decoded_asset(reader, index))
        if not isinstance(decoded, FormatError):
            seen.decoded_assets[asset.path] = decoded


def _check_slice(reader: Reader, key: str, whole: np.ndarray | FormatError, attempt: _Attempt) -> None:
    """A slice is the part of the whole that numpy takes; it decodes less, so it may succeed where the whole does not."""
    shape = reader.shape(key)
    if not shape:
        return
    index = (slice(shape[0] // 2, shape[0] // 2 + 2), *(slice(None, None, -1),) * (len(shape) > 1))
    piece = attempt(lambda: reader.tensor(key)[index], key)
    if not isinstance(whole, FormatError):
        if isinstance(piece, FormatError):
            raise Violation(f"{key!r} is read, but not a slice of it: {piece}")
        require(piece.tobytes() == whole[index].tobytes(), f"a slice of {key!r} is not that of the whole")


def _check_sparse(reader: Reader, key: str, whole: np.ndarray | FormatError, attempt: _Attempt) -> None:
    if len(reader.shape(key)) != 2:
        return
    for sparse in (attempt(reader.tensor(key).csr, key), attempt(reader.tensor(key).csc, key)):
        if isinstance(whole, FormatError):
            require(
                isinstance(sparse, FormatError), f"{key!r} is read as rows or columns, but not as a whole"
            )
        elif not isinstance(sparse, FormatError):
            require(_dense(sparse).tobytes() == whole.tobytes(), f"{key!r} is another as {sparse.kind}")
        else:
            # A tensor without elements may still have more rows than there is memory for.
            require(not whole.size, f"{key!r} is read, but not as rows or columns: {sparse}")


def _dense(sparse: CompressedSparse) -> np.ndarray:
    out = np.zeros(sparse.shape, sparse.data.dtype)
    major = np.repeat(np.arange(len(sparse.indptr) - 1), np.diff(sparse.indptr))
    out[(major, sparse.indices) if sparse.kind == "csr" else (sparse.indices, major)] = sparse.data
    return out


def _decoded_asset(reader: Reader, index: int) -> bytes:
    """What the streams of an asset hold, whatever its digest says."""
    geometry, content = reader.geometry.assets[index], b""
    for segment in range(geometry.segments):
        place = reader.geometry.asset_place(index, segment)
        offset = reader.geometry.chunk_offsets[place.chunk] + place.start if place.chunk >= 0 else 0
        try:
            content += decode_stream(
                reader.read_stored(offset, place.length), geometry.stream(segment)
            ).tobytes()
        except FormatError as exc:
            exc.locate(file=reader.name, offset=offset)
            raise
    return content


# Errors

_CONTENT = re.compile("the decoded content|the asset ['\"]")


def check_error(exc: FormatError, name: str, size: int, tensor: str | None) -> None:
    text = str(exc)
    require(type(exc) is not FormatError, f"an error of no kind: {text}")
    require(exc.file == name, f"an error names the file {exc.file!r}, not {name!r}: {text}")
    if not (isinstance(exc, DigestMismatch) and _CONTENT.match(exc.message)):
        require(exc.offset is not None, f"an error without an offset: {type(exc).__name__}: {text}")
    require(exc.offset is None or 0 <= exc.offset <= size, f"an offset outside of the file: {text}")
    require(
        tensor is None or exc.tensor == tensor, f"an error in the tensor {tensor!r} does not name it: {text}"
    )
    require(len(text) <= _LONGEST_TEXT, f"an error of {len(text)} characters: {text[:300]}")
    require(text.isprintable(), f"an error that is not printable: {text!r}")


# Judging


def check(
    mutant: Mutant, folder: Path, *, way: Way = "bytes", threads: int = 1, memory: bool = False
) -> Outcome:
    """Hold one mutant to the invariant. Raises Violation, or whatever a reader should not have raised.

    ``folder`` takes the file of the way in that is a path. ``memory`` measures what Python and numpy allocate.
    """
    began = time.process_time()
    if memory:
        tracemalloc.start()
    try:
        seen = observe(mutant.data, way, folder, threads=threads)
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
    finally:
        tracemalloc.stop()
    took = time.process_time() - began
    require(took < SECONDS, f"{took:.1f} seconds")
    require(peak <= memory_bound(mutant.data), f"{peak >> 20} MiB of memory")
    return _judge_sealed(mutant, seen) if mutant.sealed else _judge_bytes(mutant, seen)


def check_by_number(mutant: Mutant, folder: Path) -> Outcome:
    """The same; the mutant's number says which way it comes in, whether with several threads, and what is measured."""
    number = mutant.number
    way = WAYS[number % 16] if number % 16 < len(WAYS) else "bytes"
    return check(mutant, folder, way=way, threads=3 if number % 10 == 7 else 1, memory=number % 40 == 5)


def _refused(seen: Observed) -> Outcome:
    return Outcome("refused", type(next(seen.errors())).__name__)


def _judge_bytes(mutant: Mutant, seen: Observed) -> Outcome:
    """Every byte is covered by the identity."""
    if seen.opening:
        return _refused(seen)
    files = [one for one in (mutant.original, mutant.donor) if one.content.identity == seen.identity]
    require(files, f"the identity {seen.identity} is nobody's")
    _compare(seen, files[0].content, whole=False)
    require(
        (seen.deep is None) == (mutant.data == files[0].data), f"deep verification: {seen.deep or 'passed'}"
    )
    return _refused(seen) if seen.deep else Outcome("same content")


def _compare(seen: Observed, expected: ReferenceFile, *, whole: bool) -> None:
    """What was read is what is expected; ``whole``: all of it was read."""
    require(sorted(seen.tensors) == sorted(expected.tensors), "other tensors")
    require(sorted(seen.assets) == sorted(expected.assets), "other assets")
    require(seen.aliases == expected.manifest.get("aliases", {}), "other aliases")
    require(seen.metadata == expected.manifest.get("metadata", {}), "other metadata")
    for name, got in seen.tensors.items():
        if not isinstance(got, FormatError):
            one = expected.tensors[name]
            require(got == (one.dtype, one.shape, one.data), f"wrong weights: tensor {name!r}")
    for path, content in seen.assets.items():
        if not isinstance(content, FormatError):
            require(content == expected.assets[path], f"wrong content: asset {path!r}")
    if whole:
        require(not list(seen.errors()), f"the reference reader reads it: {next(seen.errors(), None)}")


def _judge_sealed(mutant: Mutant, seen: Observed) -> Outcome:
    if seen.claimed > _COMPARED and mutant.number % _COMPARED_ONE_IN:
        return _refused(seen) if seen.deep else Outcome("other content, not compared")
    data = mutant.data if seen.opening else resealed(mutant.data, seen)
    reference = _reference(data)
    if seen.opening:
        require(isinstance(reference, Refused), f"only the native reader refuses it: {seen.opening}")
        return _refused(seen)
    if data != mutant.data:
        before, seen = seen, observe(data, "bytes", Path())
        same = all(
            isinstance(old, FormatError) or old == seen.tensors[name] for name, old in before.tensors.items()
        )
        require(same, "the digest of the content changes the content")
    if isinstance(reference, Refused):
        require(seen.deep, f"only the reference reader refuses it: {reference}")
        # All content that the native reader decodes has its digest by now, so the reference reader has to stumble over
        # the same as the native one, and not over what it takes for the content.
        if not any(isinstance(exc, DigestMismatch) or _is_stricter(exc, seen) for exc in seen.errors()):
            require(not _is_content_digest(reference), f"only the native reader refuses it: {seen.deep}")
        return _refused(seen)
    if seen.deep and all(_is_stricter(exc, seen) for exc in seen.errors()):
        _compare(seen, reference, whole=False)
        return _refused(seen)
    _compare(seen, reference, whole=True)
    original = mutant.original.content
    same = (reference.tensors, reference.assets) == (original.tensors, original.assets)
    return Outcome("same content" if same else "other content, agreed")


def _reference(data: bytes) -> ReferenceFile | Refused:
    try:
        return read(data, ReferenceLimits, BASES)
    except Refused as exc:
        return exc


def _is_stricter(exc: FormatError, seen: Observed) -> bool:
    """Of a codebook of bools, or of vectors of them, the native reader refuses every centroid that is no bool, the reference reader only those
    that an element has."""
    return exc.tensor in seen.shared_bools and exc.message == "a bool is neither 0 nor 1"


def _is_content_digest(reference: Refused) -> bool:
    return reference.section in ("5", "7") and str(reference).endswith("does not have its digest")


def resealed(data: bytes, seen: Observed) -> bytes:
    """The same file with the digests of the content that was decoded from it; chunks and padding stay as they are."""
    offset, length, decoded = struct.unpack_from("<QII", data, len(data) - 64)
    frame = zstandard.ZstdDecompressor()
    tree = unpack(frame.decompress(data[offset : offset + length], max_output_size=decoded))
    before = pack(tree)
    for fields in tree.get("tensors", []):
        got = seen.tensors[fields["name"]]
        if not isinstance(got, FormatError):
            fields["digest"] = blake3(got[2]).digest()
    for fields in tree.get("assets", []):
        if fields["path"] in seen.decoded_assets:
            fields["digest"] = blake3(seen.decoded_assets[fields["path"]]).digest()
    content = pack(tree)
    if content == before:
        return data
    stored = zstandard.ZstdCompressor().compress(content)
    footer = struct.pack("<QII32s", offset, len(stored), len(content), blake3(stored).digest())
    return data[:offset] + stored + footer + data[-16:]

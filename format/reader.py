"""Random access to a .dcz file: footer, manifest, and then only the chunks that are asked for."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from dcz import _native
from dcz.errors import (
    AssetNotFound,
    CorruptStream,
    DigestMismatch,
    FormatError,
    LimitExceeded,
    ManifestError,
    NotADczFile,
    TensorNotFound,
    TruncatedFile,
    UnsupportedVersion,
    UsageError,
)
from dcz.format import layout as spec
from dcz.format.bases import BaseLike, BaseReference, Bases
from dcz.format.coding import decode_stream
from dcz.format.digests import Hasher, check_digest, digest, digest_name
from dcz.format.encodings import (
    STREAMED,
    TensorBatch,
    decode_entries,
    decode_segment,
    parameter_symbols,
    segment_symbols,
    tensor_decoder,
)
from dcz.format.geometry import Geometry, PartPlace, Stream, TensorGeometry
from dcz.format.layout import DEFAULT_LIMITS, Limits
from dcz.format.manifest import decode_manifest
from dcz.format.memory import aligned_bytes
from dcz.format.parallel import run, thread_count
from dcz.format.source import ByteSource, SourceLike, located, open_source
from dcz.format.sparse import CompressedSparse, SparseBuilder

if TYPE_CHECKING:
    from dcz.format.manifest import Manifest

__all__ = ["LazyTensor", "Reader"]

_NO_BYTES: Final = memoryview(b"")
_TAIL: Final = 64 << 10  # read with the footer: most manifests are in it
_CACHED_CHUNKS: Final = 4
_CACHED_BYTES: Final = 1 << 20


def _index(item: Any) -> Any:
    """An integer, a slice or ``...``. Raises UsageError for other kinds of index."""
    if item is Ellipsis or isinstance(item, slice):
        return item
    try:
        if not isinstance(item, bool):
            return operator.index(item)
    except TypeError:
        pass
    raise UsageError(
        "a lazy tensor takes integers, slices and ...", hint="call .numpy() first for other indices"
    )


def _read(source: ByteSource, offset: int, length: int) -> bytearray:
    data = bytearray(length)
    source.read_into(offset, memoryview(data))
    return data


def _open_manifest(source: ByteSource, limits: Limits) -> tuple[Manifest, bytes, Geometry]:
    """Steps 1 to 5 of the verification. Returns the manifest, its digest and the geometry."""
    smallest = spec.HEADER.size + spec.FOOTER.size
    if source.size < smallest:
        if source.size >= len(spec.MAGIC) and bytes(_read(source, 0, len(spec.MAGIC))) != spec.MAGIC:
            raise NotADczFile("not a .dcz file", offset=0)
        raise TruncatedFile(f"{source.size} bytes, a .dcz file has at least {smallest}", offset=source.size)
    tail = _read(source, max(0, source.size - _TAIL), min(_TAIL, source.size))
    tail_start = source.size - len(tail)

    # Step 1: the header.
    header = tail[: spec.HEADER.size] if tail_start == 0 else _read(source, 0, spec.HEADER.size)
    magic, major, minor, zero = spec.HEADER.unpack(header)
    if magic != spec.MAGIC:
        raise NotADczFile("not a .dcz file", offset=0)
    if major != spec.MAJOR:
        raise UnsupportedVersion(
            f"format version {major}.{minor}, this dcz reads version {spec.MAJOR}",
            offset=8,
            hint="a newer dcz reads it" if major > spec.MAJOR else None,
        )
    if zero != 0:
        raise NotADczFile("the reserved field of the header is not zero", offset=12)

    # Step 2: the footer.
    at = source.size - spec.FOOTER.size
    footer = spec.FOOTER.unpack(tail[-spec.FOOTER.size :])
    offset, length, decoded_length, manifest_digest, footer_major, footer_minor, footer_zero, end_magic = (
        footer
    )
    if end_magic != spec.END_MAGIC:
        raise TruncatedFile(
            "the file does not end with a footer: it is cut off or has something behind it", offset=at
        )
    if (footer_major, footer_minor) != (major, minor):
        raise ManifestError("header and footer have different versions", offset=at)
    if footer_zero != 0:
        raise ManifestError("the reserved field of the footer is not zero", offset=at)
    if offset < spec.HEADER.size or offset + length + spec.FOOTER.size != source.size:
        raise TruncatedFile(
            f"a manifest of {length} bytes at {offset} does not fit into a file of {source.size} bytes",
            offset=at,
        )
    if max(length, decoded_length) > limits.manifest_bytes:
        raise LimitExceeded(
            f"a manifest of {length} and {decoded_length} bytes, at most {limits.manifest_bytes} are allowed",
            offset=at,
        )

    # Step 3: the stored manifest.
    stored = bytes(
        tail[offset - tail_start : -spec.FOOTER.size]
        if offset >= tail_start
        else _read(source, offset, length)
    )
    try:
        check_digest(digest(stored), manifest_digest, "the manifest")
        # Steps 4 and 5.
        manifest = decode_manifest(stored, decoded_length, (major, minor), limits)
        geometry = Geometry(manifest, offset, limits)
    except FormatError as exc:
        exc.locate(offset=offset)
        raise
    return manifest, manifest_digest, geometry


class Reader:
    """A .dcz file, opened.

    ``source``: a path, an fsspec URL, bytes, or a seekable binary file object. ``limits`` bounds what is accepted
    before it is allocated. ``threads`` decode in parallel (default: one for each core). ``base``: where tensors that are
    differences find what they are differences to: the artifact itself, as a source or an open Reader, or a function that
    opens it, or several of these; it is asked for when such a tensor is first read.

    Opening does steps 1 to 5 of the verification (docs/format.md, section 8); each chunk that is used goes through
    step 6, and all streams are checked as they are decoded. Only the comparison with the digests of the decoded content
    is left to ``dcz.format.verify(..., deep=True)``.

    Raises FormatError, or one of its kinds, if the file is at fault; OSError if it cannot be read. Whatever reads tensors
    raises BaseNotFound or WrongBase if a base is missing or another one.
    """

    def __init__(
        self,
        source: SourceLike,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int | None = None,
        base: BaseLike | Sequence[BaseLike] | None = None,
    ) -> None:
        self.threads = thread_count(threads)
        self._source = open_source(source)
        self._closed = False
        self._limits = limits
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._decoders: dict[str, _native.SegmentDecoder] = {}
        self._lock = threading.Lock()
        self._buffers = threading.local()
        try:
            with located(self._source):
                self.manifest, self._digest, self.geometry = _open_manifest(self._source, limits)
        except BaseException:
            self._source.close()
            raise
        self._bases = Bases(self.manifest, self.name, base, self._open_base, limits.chain)
        self.aliases: Mapping[str, str] = self.manifest.aliases
        self.metadata: Mapping[str, str] = self.manifest.metadata

    def _open_base(self, given: SourceLike | Reader) -> Reader:
        return given if isinstance(given, Reader) else Reader(given, limits=self._limits, threads=1)

    # -- what is in it

    @property
    def name(self) -> str:
        """The path or URL, as far as it is known."""
        return self._source.name

    @property
    def digest(self) -> str:
        """The identity of the artifact: ``blake3:`` and 64 hexadecimal digits."""
        return digest_name(self._digest)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    @property
    def bases(self) -> tuple[BaseReference, ...]:
        """The artifacts to which tensors of this one are differences."""
        return self._bases.references

    def needed_files(self) -> set[str]:
        """The names of the files that were read until now because tensors of this one are differences to theirs."""
        return self._bases.files()

    def keys(self) -> list[str]:
        """The names of all tensors: the stored ones in the order of the file, then the aliases."""
        return [*self.geometry.tensors, *self.aliases]

    def __contains__(self, name: object) -> bool:
        return name in self.geometry.tensors or name in self.aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.geometry.tensors) + len(self.aliases)

    def stored_name(self, name: str) -> str:
        """The name under which a tensor is stored: another one if ``name`` is an alias. Raises TensorNotFound."""
        stored = self.aliases.get(name, name)
        if stored not in self.geometry.tensors:
            raise TensorNotFound(f"{self.name} has no tensor {name!r}")
        return stored

    def _geometry(self, name: str) -> TensorGeometry:
        return self.geometry.tensors[self.stored_name(name)]

    def dtype(self, name: str) -> str:
        """The element type, such as ``bf16``. Raises TensorNotFound."""
        return self._geometry(name).tensor.dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises TensorNotFound."""
        return self._geometry(name).tensor.shape

    # -- tensors

    def tensor(self, name: str) -> LazyTensor:
        """A tensor of which nothing is read yet. Raises TensorNotFound."""
        return LazyTensor(self, name, self._geometry(name))

    def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """A whole tensor: a new array, or ``out``, of the tensor's type and shape and contiguous.

        Raises TensorNotFound, UsageError if ``out`` does not fit, or FormatError.
        """
        geometry = self._geometry(name)
        if out is None:
            memory = aligned_bytes(geometry.nbytes)
            out = memory.view(geometry.dtype.numpy).reshape(geometry.tensor.shape)
        self.read_into({name: out})
        return out

    def read_into(
        self, outs: Mapping[str, np.ndarray], progress: Callable[[int], None] | None = None
    ) -> None:
        """Many whole tensors, each straight into the memory that it is wanted in, in parallel.

        The arrays have the tensors' types and shapes and are contiguous. ``progress`` is called with the number of
        decoded bytes after each piece. Raises as ``read`` does; then what is in the arrays is undefined.
        """
        targets: dict[str, list[np.ndarray]] = {}
        for name, out in outs.items():
            geometry = self._geometry(name)
            if (
                out.shape != geometry.tensor.shape
                or out.dtype != geometry.dtype.numpy
                or not out.flags.c_contiguous
            ):
                raise UsageError(
                    f"tensor {name!r} needs a contiguous array of shape {geometry.tensor.shape} and type "
                    f"{geometry.tensor.dtype}, not of {out.shape} and {out.dtype}"
                )
            if not out.flags.writeable:
                raise UsageError(f"the array for tensor {name!r} is read-only")
            targets.setdefault(self.stored_name(name), []).append(out.reshape(-1).view(np.uint8))
        batch = TensorBatch(self.geometry)
        others: dict[int, list[tuple[str, int, int]]] = {}  # chunk -> segments in it, and where they start
        for name, outputs in targets.items():
            self.prepare(name)
            geometry = self.geometry.tensors[name]
            if TensorBatch.takes(geometry):
                if geometry.segments:
                    batch.add(name, self._decoders[name], outputs[0])
                continue
            for segment in range(geometry.segments):
                place = self.geometry.segment_place(name, segment)
                others.setdefault(place.chunk, []).append((name, segment, place.start))
        sizes = batch.sizes()

        chunks = sorted(sizes.keys() | others.keys())
        # Who asks for one tensor may ask for its neighbours next, which are in its first chunk or its last. Of many tensors,
        # each chunk is needed once.
        shared = {chunks[0], chunks[-1]} if chunks and len(targets) == 1 else ()

        def decode(chunk: int) -> int:
            done = sizes.get(chunk, 0)
            try:
                data = self._chunk(chunk, cached=chunk in shared)
                if done:
                    batch.decode(chunk, data)
            except FormatError as exc:
                held = self.geometry.held_by(chunk)[0]
                exc.locate(file=self.name, tensor=next((name for name in held if name in targets), None))
                raise
            for name, segment, start in others.get(chunk, ()):
                geometry = self.geometry.tensors[name]
                first = segment * geometry.tensor.segment * geometry.dtype.itemsize
                size = geometry.segment_elements(segment) * geometry.dtype.itemsize
                piece = targets[name][0][first : first + size]
                self._decode_segment(name, segment, data, start, piece, streaming=size >= STREAMED)
                done += size
            return done

        self._run(decode, chunks, progress)
        for copies in targets.values():
            for copy in copies[1:]:
                copy[:] = copies[0]

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """The elements from ``start`` up to ``stop``, counted in C order, decoding only their segments."""
        name = self.stored_name(name)
        geometry = self.geometry.tensors[name]
        if not 0 <= start <= stop <= geometry.elements:
            raise UsageError(f"elements {start} to {stop} of a tensor with {geometry.elements}")
        itemsize, step = geometry.dtype.itemsize, geometry.tensor.segment
        out = np.empty((stop - start) * itemsize, np.uint8)
        if stop > start:
            self.prepare(name)  # while no thread holds a chunk

        def decode(segment: int) -> int:
            first = segment * step
            count = geometry.segment_elements(segment)
            lo, hi = max(first, start), min(first + count, stop)
            target = out[(lo - start) * itemsize : (hi - start) * itemsize]
            piece = target if hi - lo == count else np.empty(count * itemsize, np.uint8)
            place = self.geometry.segment_place(name, segment)
            with located(self._source, name):
                data = self._chunk(place.chunk)
            self._decode_segment(name, segment, data, place.start, piece)
            if piece is not target:
                target[:] = piece[(lo - first) * itemsize : (hi - first) * itemsize]
            return 0

        if stop > start:
            self._run(decode, range(start // step, -(-stop // step)))
        return out.view(geometry.dtype.numpy)

    def prepare(self, name: str, *needed_by: Bases) -> int:
        """Read and find what a tensor needs besides its segments. Gives the number of bases behind each other."""
        name = self.stored_name(name)
        geometry = self.geometry.tensors[name]
        if geometry.segments:
            self._decoder(name)
        if geometry.delta is None:
            return 0
        with located(self._source, name, self.geometry.data_end):
            return self._bases.require(geometry, *needed_by)

    def read_elements(self, name: str, start: int, out: np.ndarray) -> None:
        """The elements of a prepared tensor from ``start`` on that fill ``out`` (uint8), on the calling thread.

        A segment of which only a part was wanted is kept for the next call: whoever walks through a tensor, in pieces of
        any size, decodes each segment once.
        """
        name = self.stored_name(name)
        geometry = self.geometry.tensors[name]
        itemsize, step = geometry.dtype.itemsize, geometry.tensor.segment
        done = 0
        while done < out.size:
            segment, within = divmod(start + done // itemsize, step)
            size = geometry.segment_elements(segment) * itemsize
            count = min(size - within * itemsize, out.size - done)
            if count == size:
                self._read_segment(name, segment, out[done : done + count])
            else:
                piece = self._kept_segment(name, segment, size)
                out[done : done + count] = piece[within * itemsize : within * itemsize + count]
            done += count

    def _kept_segment(self, name: str, segment: int, size: int) -> np.ndarray:
        kept: tuple[str, int, np.ndarray] | None = getattr(self._buffers, "segment", None)
        if kept is None or kept[:2] != (name, segment):
            self._buffers.segment = None  # while it is overwritten it is none
            buffer = kept[2] if kept is not None and kept[2].size >= size else np.empty(size, np.uint8)
            self._read_segment(name, segment, buffer[:size])
            kept = self._buffers.segment = (name, segment, buffer)
        return kept[2][:size]

    def _read_segment(self, name: str, segment: int, out: np.ndarray) -> None:
        place = self.geometry.segment_place(name, segment)
        with located(self._source, name):
            data = self._chunk(place.chunk)
        self._decode_segment(name, segment, data, place.start, out)

    def sparse(self, name: str, axis: int) -> CompressedSparse:
        """A 2-D tensor's stored entries, compressed by rows (axis 0) or columns (axis 1), without densifying it.

        Raises UsageError unless the tensor has two dimensions, and LimitExceeded if the starts of its rows or columns
        take more than a tensor may: a tensor without elements can have any number of them.
        """
        name = self.stored_name(name)
        geometry = self.geometry.tensors[name]
        builder = SparseBuilder(geometry.tensor.shape, geometry.dtype.numpy)
        if builder.index_bytes(axis) > self._limits.tensor_bytes:
            raise LimitExceeded(
                f"{builder.index_bytes(axis)} bytes of an index, at most {self._limits.tensor_bytes} are allowed",
                file=self._source.name,
                tensor=name,
                offset=self.geometry.data_end,
            )
        self.prepare(name)
        for segment in range(geometry.segments):
            place = self.geometry.segment_place(name, segment)
            if geometry.delta is not None:  # stored are the elements that differ, not those that are not zero
                content = np.empty(geometry.segment_elements(segment) * geometry.dtype.itemsize, np.uint8)
                self._read_segment(name, segment, content)
                builder.add(segment * geometry.tensor.segment, None, content.view(geometry.dtype.numpy))
                continue
            with self._located(name, place):
                chunk = self._chunk(place.chunk)
                decoder = self._decoders[name]
                positions, values = decode_entries(geometry, decoder, segment, chunk, place.start)
            builder.add(segment * geometry.tensor.segment, positions, values.view(geometry.dtype.numpy))
        return builder.build(axis)

    def read_symbols(self, name: str, segment: int) -> list[tuple[Stream, memoryview, np.ndarray]]:
        """What is coded of a segment: each stream, its stored bytes, and its symbols (uint8), in the order of the file.

        The stored bytes are valid until the same thread reads something else. No base is needed. Raises TensorNotFound,
        UsageError if the tensor has no such segment, or FormatError.
        """
        name = self.stored_name(name)
        geometry = self.geometry.tensors[name]
        if not 0 <= segment < geometry.segments:
            raise UsageError(f"segment {segment} of a tensor with {geometry.segments}")
        place = self.geometry.segment_place(name, segment)
        with self._located(name, place):
            return segment_symbols(geometry, segment, self._chunk(place.chunk, cached=False), place.start)

    def read_parameters(self, name: str) -> dict[str, np.ndarray]:
        """The symbols (uint8) of each parameter stream of a tensor, by its role (dcz.format.parameters). Raises TensorNotFound
        or FormatError."""
        name = self.stored_name(name)
        geometry = self.geometry.tensors[name]
        if not geometry.parameters:
            return {}
        place = self.geometry.parameter_place(name)
        with self._located(name, place):
            part = self._part(self._chunk(place.chunk, cached=False), place)
            return parameter_symbols(geometry, part)

    # -- assets

    def assets(self) -> list[str]:
        """The paths of the files that travel with the tensors."""
        return [asset.path for asset in self.manifest.assets if asset.role == "file"]

    def read_asset(self, path: str) -> bytes:
        """The content of an asset, compared with its digest. Raises AssetNotFound or FormatError."""
        index = next((i for i, asset in enumerate(self.manifest.assets) if asset.path == path), None)
        if index is None:
            raise AssetNotFound(f"{self.name} has no asset {path!r}")
        asset = self.manifest.assets[index]
        geometry, out = self.geometry.assets[index], np.empty(asset.size, np.uint8)
        for segment in range(geometry.segments):
            place = self.geometry.asset_place(index, segment)
            stream = geometry.stream(segment)
            target = out[segment * spec.ASSET_SEGMENT :][: stream.symbols]
            with self._located(None, place):
                try:
                    decode_stream(self._part(self._chunk(place.chunk), place), stream, target)
                except CorruptStream as exc:
                    raise CorruptStream(f"the asset {path!r}: {exc.message}") from exc
        with located(self._source):
            check_digest(digest(out), asset.digest, f"the asset {path!r}")
        return out.tobytes()

    def read_stored(self, offset: int, length: int) -> bytes:
        """Bytes of the file as they are, not compared with any digest. Raises TruncatedFile."""
        self._check_open()
        with located(self._source, None, offset):
            return bytes(_read(self._source, offset, length))

    # -- verification (the numbered steps of docs/format.md, section 8)

    def check_chunks(self, progress: Callable[[int], None] | None = None) -> None:
        """Step 6 for the whole file: every chunk has its digest, all padding is zero. Raises DigestMismatch."""

        def check(chunk: int) -> int:
            self._chunk(chunk, cached=False)
            return self.geometry.chunk_lengths[chunk]

        self._run(check, range(len(self.geometry.chunk_lengths)), progress)
        for offset, length in self.geometry.padding:
            if any(_read(self._source, offset, length)):
                raise DigestMismatch("padding is not zero", file=self.name, offset=offset)

    def check_content(self, progress: Callable[[int], None] | None = None) -> None:
        """Step 7: all tensors and assets decode, and have the digests of what was published. Raises FormatError."""
        for name, geometry in self.geometry.tensors.items():
            hasher = Hasher()
            window = max(
                geometry.tensor.segment,
                (8 << 20) // geometry.dtype.itemsize // geometry.tensor.segment * geometry.tensor.segment,
            )
            for start in range(0, geometry.elements, window):
                piece = self.read_range(name, start, min(start + window, geometry.elements))
                hasher.update(piece.view(np.uint8))
                if progress:
                    progress(piece.nbytes)
            with located(self._source, name):
                check_digest(hasher.digest(), geometry.tensor.digest, "the decoded content")
        for asset in self.manifest.assets:
            self.read_asset(asset.path)

    # -- inside

    def _located(self, name: str | None, place: PartPlace) -> Any:
        return located(self._source, name, self.geometry.offset_of(place))

    def _run(
        self, job: Callable[[Any], int], items: Iterable[Any], progress: Callable[[int], None] | None = None
    ) -> None:
        run(job, items, self.threads, progress)

    def _chunk(self, chunk: int, *, cached: bool = True) -> memoryview:
        """The verified bytes of a chunk (step 6), valid until the same thread asks for another one."""
        if chunk < 0:
            return memoryview(b"")
        self._check_open()
        if cached:
            with self._lock:
                kept = self._cache.get(chunk)
                if kept is not None:
                    self._cache.move_to_end(chunk)
                    return memoryview(kept)
        length, offset = self.geometry.chunk_lengths[chunk], self.geometry.chunk_offsets[chunk]
        buffer: memoryview = getattr(self._buffers, "bytes", _NO_BYTES)
        if len(buffer) < length:
            # The file is as large as its chunks claim (step 5), so this is bounded by it. Large arrays have large pages.
            buffer = self._buffers.bytes = np.empty(length, np.uint8).data
        view = buffer[:length]
        with located(self._source, None, offset):
            self._source.read_into(offset, view)
            try:
                check_digest(digest(view), self.geometry.chunk_digest(chunk), f"chunk {chunk}")
            except DigestMismatch as exc:
                raise self._damaged(chunk, exc) from None
        if cached and length <= _CACHED_BYTES // _CACHED_CHUNKS:
            with self._lock:
                self._cache[chunk] = bytes(view)
                if len(self._cache) > _CACHED_CHUNKS:
                    self._cache.popitem(last=False)
        return view

    def _damaged(self, chunk: int, exc: DigestMismatch) -> DigestMismatch:
        tensors, assets = self.geometry.held_by(chunk)
        if len(tensors) == 1 and not assets:
            exc.tensor = tensors[0]
        else:
            names = [f"the tensor {name!r}" for name in tensors] + [f"the asset {path!r}" for path in assets]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            exc.message += f"; it holds {names[0]}{more}"
        exc.hint = "the file is damaged: fetch it again, or make it again"
        return exc

    def _part(self, chunk: memoryview, place: PartPlace) -> memoryview:
        return chunk[place.start : place.start + place.length] if place.chunk >= 0 else memoryview(b"")

    def _decoder(self, name: str) -> _native.SegmentDecoder:
        """What decodes the segments of a tensor, which has some. The chunk that a thread holds is invalid afterwards."""
        decoder = self._decoders.get(name)
        if decoder is None:
            geometry, place = self.geometry.tensors[name], self.geometry.parameter_place(name)
            with self._located(name, place):
                part = self._part(self._chunk(place.chunk), place) if geometry.parameters else memoryview(b"")
                decoder = self._decoders[name] = tensor_decoder(geometry, part)
        return decoder

    def _decode_segment(
        self,
        name: str,
        segment: int,
        chunk: memoryview,
        start: int,
        out: np.ndarray,
        *,
        streaming: bool = False,
    ) -> None:
        geometry, decoder = self.geometry.tensors[name], self._decoders[name]
        try:
            # Differences are read again at once.
            streaming = streaming and geometry.delta is None
            decode_segment(geometry, decoder, segment, chunk, start, out, streaming=streaming)
            if geometry.delta is not None:
                self._bases.apply(geometry, segment, out)
        except FormatError as exc:
            offset = self.geometry.offset_of(self.geometry.segment_place(name, segment))
            exc.locate(file=self.name, tensor=name, offset=offset)
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self.name} is closed")

    def close(self) -> None:
        self._closed = True
        self._source.close()
        self._bases.close()
        self._cache.clear()
        self._decoders.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LazyTensor:
    """A tensor in a file. Indexing decodes the segments that are touched, and no others."""

    def __init__(self, reader: Reader, name: str, geometry: TensorGeometry) -> None:
        self._reader = reader
        self._geometry = geometry
        self.name = name
        self.dtype = geometry.tensor.dtype
        self.shape = geometry.tensor.shape
        self.nbytes = geometry.nbytes

    def __repr__(self) -> str:
        return f"LazyTensor({self.name!r}, {self.dtype}, {list(self.shape)})"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    def numpy(self) -> np.ndarray:
        """The whole tensor."""
        return self._reader.read(self.name)

    def csr(self) -> CompressedSparse:
        """Compressed sparse rows of a 2-D tensor, from its stored entries."""
        return self._reader.sparse(self.name, 0)

    def csc(self) -> CompressedSparse:
        """Compressed sparse columns of a 2-D tensor, from its stored entries."""
        return self._reader.sparse(self.name, 1)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Integers, slices and ``...``, as in numpy. Raises IndexError, or UsageError for other kinds of index."""
        items = [_index(item) for item in (index if isinstance(index, tuple) else (index,))]
        if items.count(Ellipsis) > 1:
            raise IndexError("more than one ellipsis")
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items[at : at + 1] = [slice(None)] * (len(self.shape) - len(items) + 1)
        items += [slice(None)] * (len(self.shape) - len(items))
        if len(items) > len(self.shape):
            raise IndexError(f"{len(items)} indices for {len(self.shape)} dimensions")

        # Leading integers narrow the range of elements, and so does the slice behind them; numpy does the rest.
        first, inner, axis = 0, self._geometry.elements, 0
        while axis < len(items) and not isinstance(items[axis], slice):
            size, item = self.shape[axis], items[axis]
            if not -size <= item < size:
                raise IndexError(f"index {item} is out of bounds for axis {axis} with size {size}")
            inner //= size
            first += item % size * inner
            axis += 1
        if axis == len(items):
            return self._reader.read_range(self.name, first, first + 1).reshape(())[()]
        rows = range(self.shape[axis])[items[axis]]
        inner = inner // self.shape[axis] if self.shape[axis] else 0
        low, high = (min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1) if rows else (0, 0)
        block = self._reader.read_range(self.name, first + low * inner, first + high * inner)
        block = block.reshape(high - low, *self.shape[axis + 1 :])
        stop = rows.stop - low if rows.stop - low >= 0 else None
        picked = block[slice(rows.start - low, stop, rows.step) if rows else slice(0, 0)]
        return picked[(slice(None), *items[axis + 1 :])]

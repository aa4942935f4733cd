"""Writing a .dcz file in one pass: data first, then the manifest, then the footer. Nothing appears under the final name
until it is whole and on the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from pydantic import ValidationError

from dcz._version import __version__
from dcz.errors import EncodingError
from dcz.format import layout as spec
from dcz.format.atomic import WriteBehind, atomic_file
from dcz.format.coding import Coded, CodingChoice, encode_stream, encode_zstd
from dcz.format.digests import Hasher, digest, digest_bytes, digest_name
from dcz.format.dtypes import view_of
from dcz.format.effort import effort_of
from dcz.format.encoder import BufferPool, EncodedSegment, LayoutChoice, SplitChoice, TensorEncoder
from dcz.format.manifest import (
    Asset,
    Base,
    Chunks,
    Exact,
    Manifest,
    Provenance,
    Tensor,
    check_asset_paths,
    describe,
    encode_manifest,
    needed_features,
)
from dcz.format.parallel import thread_count

if TYPE_CHECKING:
    from dcz.format.dtypes import Buffer
    from dcz.format.effort import EffortName
    from dcz.format.tensors import TensorBase, TensorData

__all__ = ["Writer"]

_CHUNK: Final = 64 << 10  # a part of this many stored bytes gets a chunk of its own; smaller ones share
_ASSET_ZSTD_LEVEL: Final = 12  # text, and not much of it


class Writer:
    """Writes a .dcz file.

    As a context manager it commits when the block ends well, and leaves nothing behind when it raises. Tensors stand in
    the file in the order in which they are added; each is encoded and written before ``add_tensor`` returns, so memory
    holds one tensor and a few segments.

    ``path``: the file to write. ``metadata``: free text of the model's authors. ``effort``: what size is weighed against
    (dcz.format.effort). ``threads`` encode in parallel (default: one for each core); the bytes do not depend on it.

    Raises EncodingError for what the format cannot hold, UsageError for an unknown effort, and OSError if the disk does
    not take it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        metadata: Mapping[str, str] | None = None,
        provenance: Provenance | None = None,
        effort: EffortName = "balanced",
        threads: int | None = None,
    ) -> None:
        self._effort = effort_of(effort)
        workers = thread_count(threads)
        self._transaction = atomic_file(path)
        self._file = self._transaction.__enter__()
        self._behind = WriteBehind(self._file.fileno())
        self._open = True
        self._whole = True
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dcz")
        self._workers = workers
        self._metadata = dict(metadata or {})
        self._provenance = provenance or Provenance()
        self._tensors: list[Tensor] = []
        self._names: set[str] = set()
        self._aliases: dict[str, str] = {}
        self._bases: list[Base] = []
        self._assets: list[tuple[str, str, Callable[[], Buffer]]] = []
        self._chunk_lengths: list[int] = []
        self._digests: list[bytes] = []
        self._buffers = BufferPool()
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._offset = spec.HEADER.size
        self.digest: str | None = None
        """The identity of the artifact, once it is written."""
        self.size: int | None = None
        """Bytes of the file, once it is written."""
        self._file.write(spec.HEADER.pack(spec.MAGIC, spec.MAJOR, 0, 0))

    # -- what goes in

    def add_tensor(
        self,
        name: str,
        tensor: TensorData,
        *,
        layout: LayoutChoice = "auto",
        split: SplitChoice = "auto",
        coding: CodingChoice = "auto",
        base: TensorBase | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Store a tensor: a numpy array bit for bit, codes and their parameters as they describe themselves.

        ``layout``, ``split`` and ``coding`` are chosen by size unless they are given. ``base``: the tensor of a base that
        was added, to which an array is stored as differences if that is smaller. ``progress`` is called with the number
        of decoded bytes after each segment. Returns the tensor's entry in the manifest.
        """
        if base is not None:
            if not 0 <= base.index < len(self._bases):
                raise EncodingError(f"there is no base {base.index}: {len(self._bases)} were added")
            base = replace(base, name=None if base.name == name else base.name)
        encoder = TensorEncoder(
            tensor,
            layout=layout,
            split=split,
            coding=coding,
            effort=self._effort,
            base=base,
            pool=self._buffers,
        )
        self._claim(name)
        whole, self._whole = self._whole, False
        codings, lengths = bytearray(), list[int]()

        def write(streams: list[Coded]) -> None:
            codings.extend(coding for coding, _ in streams)
            lengths.extend(len(data) for _, data in streams)
            self._write_part([data for _, data in streams])

        parameters = encoder.parameter_streams() if encoder.elements else []
        if parameters:
            write(parameters)
        entries, gaps, hasher = list[int](), list[int](), Hasher()
        for segment in self._in_order(encoder.encode, encoder.segments):
            write(segment.streams)
            hasher.update(segment.content)
            if segment.buffer is not None:
                self._buffers.give(segment.buffer)
            if segment.entries is not None:
                entries.append(segment.entries)
            if segment.gaps is not None:
                gaps.append(segment.gaps)
            if progress:
                progress(segment.content.nbytes)
        try:
            entry = Tensor(
                name=name,
                dtype=encoder.dtype.name,
                shape=encoder.shape,
                digest=hasher.digest(),
                layout=encoder.layout,
                values=encoder.values,
                segment=encoder.segment,
                entries=tuple(entries),
                gaps=tuple(gaps),
                codings=bytes(codings),
                lengths=tuple(lengths),
            )
        except ValidationError as exc:
            raise EncodingError(f"tensor {name!r} cannot be stored: {describe(exc)}") from exc
        self._tensors.append(entry)
        self._whole = whole
        return entry

    def add_base(self, digest: str, hint: str | None = None) -> int:
        """An artifact, by its identity, to which tensors may be stored as differences. Gives its number.

        ``hint`` tells a reader what it was called. A base that no tensor uses in the end is not named in the file.
        """
        try:
            added = Base(digest=digest_bytes(digest), hint=hint)
        except ValueError as exc:
            reason = describe(exc) if isinstance(exc, ValidationError) else str(exc)
            raise EncodingError(f"not a base: {reason}") from exc
        if any(base.digest == added.digest for base in self._bases):
            raise EncodingError(f"the base {digest} was added already")
        if len(self._bases) == spec.MAX_BASES:
            raise EncodingError(f"more than {spec.MAX_BASES} bases")
        self._bases.append(added)
        return len(self._bases) - 1

    def add_alias(self, name: str, target: str) -> None:
        """A further name of a tensor that was added: tied weights."""
        if target not in self._names or target in self._aliases:
            raise EncodingError(f"the alias {name!r} names {target!r}, which is not a stored tensor")
        self._claim(name)
        self._aliases[name] = target

    def add_asset(self, path: str, data: Buffer | Callable[[], Buffer], *, role: str = "file") -> None:
        """A file that travels with the tensors; ``data`` may be a function that is called when its turn comes."""
        try:
            check_asset_paths([path])
        except ValueError as exc:
            raise EncodingError(str(exc)) from exc
        self._assets.append((path, role, data if callable(data) else lambda: data))

    def set_provenance(self, provenance: Provenance) -> None:
        """What is known of the origin, if that is only known at the end."""
        self._provenance = provenance

    def _claim(self, name: str) -> None:
        if name in self._names:
            raise EncodingError(f"the tensor name {name!r} is given twice")
        self._names.add(name)

    # -- how it is written

    def _in_order(self, job: Callable[[int], EncodedSegment], count: int) -> Iterator[EncodedSegment]:
        """Runs the jobs on the threads, a few ahead, and gives their results in order."""
        if count == 1 or self._workers == 1:
            yield from map(job, range(count))
            return
        running: deque[Future[EncodedSegment]] = deque()
        try:
            for index in range(count):
                running.append(self._pool.submit(job, index))
                if len(running) >= 2 * self._workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _write_part(self, streams: Sequence[bytes | np.ndarray]) -> None:
        size = sum(map(len, streams))
        if size >= _CHUNK:
            self._flush()
            self._write_chunk(streams, size)
            return
        self._pending += [bytes(stream) for stream in streams]
        self._pending_size += size
        if self._pending_size >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        """Writes the small parts that wait for each other as one chunk."""
        if self._pending_size > 0:
            self._write_chunk(self._pending, self._pending_size)
            self._pending, self._pending_size = [], 0

    def _write_chunk(self, pieces: Sequence[bytes | np.ndarray], size: int) -> None:
        padding = spec.padding_before(self._offset, size)
        self._file.write(bytes(padding))
        hasher = Hasher()
        for piece in pieces:
            hasher.update(piece)
            self._file.write(view_of(piece))
        self._behind.wrote(self._offset, padding + size)
        self._offset += padding + size
        self._chunk_lengths.append(size)
        self._digests.append(hasher.digest())

    def _write_asset(self, path: str, role: str, data: Buffer) -> Asset:
        content = np.frombuffer(data, np.uint8)
        codings, lengths = bytearray(), list[int]()
        for start in range(0, content.size, spec.ASSET_SEGMENT):
            piece = content[start : start + spec.ASSET_SEGMENT]
            coding, stored = encode_stream(piece, 8)
            zipped = encode_zstd(piece, _ASSET_ZSTD_LEVEL)
            if len(zipped) < len(stored):
                coding, stored = spec.ZSTD, zipped
            codings.append(coding)
            lengths.append(len(stored))
            self._write_part([stored])
        return Asset(
            path=path,
            size=content.size,
            digest=digest(content),
            role=role,  # type: ignore[arg-type]
            codings=bytes(codings),
            lengths=tuple(lengths),
        )

    def _finish(self) -> None:
        if not self._whole:
            raise EncodingError("a tensor was given up half-way: the file cannot be finished")
        try:
            assets = tuple(self._write_asset(path, role, data()) for path, role, data in self._assets)
            self._flush()
            tensors, bases = _only_used(self._tensors, self._bases)
            features = set[str]().union(*(needed_features(tensor.values) for tensor in tensors))
            minor = spec.MINOR if features else 0
            manifest = Manifest(
                version=(spec.MAJOR, minor),
                requires=tuple(sorted(features)),
                producer=f"dcz {__version__}",
                tensors=tuple(tensors),
                aliases=self._aliases,
                assets=assets,
                bases=tuple(bases),
                chunks=Chunks(lengths=tuple(self._chunk_lengths), digests=b"".join(self._digests)),
                metadata=self._metadata,
                provenance=self._provenance,
            )
        except ValidationError as exc:
            raise EncodingError(f"the file cannot be described: {describe(exc)}") from exc
        stored, decoded_length = encode_manifest(manifest)
        identity = digest(stored)
        self._file.write(stored)
        self._file.write(
            spec.FOOTER.pack(
                self._offset, len(stored), decoded_length, identity, spec.MAJOR, minor, 0, spec.END_MAGIC
            )
        )
        if minor:  # as nobody knew when the file was begun
            self._file.seek(0)
            self._file.write(spec.HEADER.pack(spec.MAGIC, spec.MAJOR, minor, 0))
        self.digest = digest_name(identity)
        self.size = self._offset + len(stored) + spec.FOOTER.size

    def close(self) -> None:
        """Write what is left, and let the file appear under its name."""
        self.__exit__(None, None, None)

    def abort(self) -> None:
        """Give up: nothing appears, and what was written is removed."""
        aborted = _Aborted()
        self.__exit__(_Aborted, aborted, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self._open = False
        self._pool.shutdown(wait=True, cancel_futures=True)
        if value is None:
            try:
                self._finish()
            except BaseException as exc:
                self._transaction.__exit__(type(exc), exc, exc.__traceback__)
                raise
        self._transaction.__exit__(kind, value, traceback)


def _only_used(tensors: list[Tensor], bases: list[Base]) -> tuple[list[Tensor], list[Base]]:
    """Without the bases that no tensor uses; the others are numbered anew."""
    deltas = [each.values.delta if isinstance(each.values, Exact) else None for each in tensors]
    kept = sorted({delta.base for delta in deltas if delta is not None})
    renumbered = []
    for tensor, delta in zip(tensors, deltas, strict=True):
        if delta is None:
            renumbered.append(tensor)
            continue
        moved = delta.model_copy(update={"base": kept.index(delta.base)})
        renumbered.append(
            tensor.model_copy(update={"values": tensor.values.model_copy(update={"delta": moved})})
        )
    return renumbered, [bases[number] for number in kept]


class _Aborted(Exception):
    """Makes ``atomic_file`` throw away what was written."""

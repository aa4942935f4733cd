"""The bases of a file whose tensors are differences to another artifact's (docs/format.md, sections 3.2 and 5.5).

A base is looked for when a tensor that needs it is first read: first among what the caller gave, then by the caller's
resolvers. Whatever comes from there must have the identity that the file names. The base of a base is looked for in the
same places. Bases are read on the thread that needs them, a segment at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np

from dcz import _native
from dcz.errors import BaseNotFound, LimitExceeded, ManifestError, WrongBase
from dcz.format.digests import digest_name

if TYPE_CHECKING:
    from dcz.format.dtypes import DType
    from dcz.format.geometry import TensorGeometry
    from dcz.format.manifest import Manifest
    from dcz.format.reader import Reader
    from dcz.format.source import SourceLike

__all__ = ["BaseLike", "BaseReference", "BaseResolver", "Bases", "difference_kind"]

_HINT: Final = "give it with base= (on the command line with --base)"


@dataclass(frozen=True)
class BaseReference:
    """A base that a file names. ``digest``: its identity, ``blake3:`` and 64 hexadecimal digits. ``hint``: what the author
    called it, which decides nothing. ``file``: the file that needs it."""

    digest: str
    hint: str | None
    file: str

    def __str__(self) -> str:
        return self.digest if self.hint is None else f"{self.digest} ({self.hint!r} when it was written)"


BaseResolver: TypeAlias = "Callable[[BaseReference], Reader | None]"
"""Opens the base that is named, or says None. The reader is closed by whom it is given to."""

BaseLike: TypeAlias = "SourceLike | Reader | BaseResolver"
"""A base itself, or a way to find it. A Reader stays its owner's to close."""


def difference_kind(dtype: DType, operation: str) -> str:
    """What the native core calls the operation on elements of this type."""
    if operation == "xor":
        return "bits"
    return "floats" if dtype.is_float else "integers"


class Bases:
    """The bases of one open file. ``open_base`` opens what was given, or gives back what is open."""

    def __init__(
        self,
        manifest: Manifest,
        file: str,
        given: BaseLike | Sequence[BaseLike] | None,
        open_base: Callable[[SourceLike | Reader], Reader],
        longest_chain: int,
    ) -> None:
        self.references = tuple(
            BaseReference(digest_name(base.digest), base.hint, file) for base in manifest.bases
        )
        several = given if isinstance(given, list | tuple) else [] if given is None else [given]
        many = cast("Sequence[BaseLike]", several)
        self._resolvers: list[BaseResolver] = [each for each in many if callable(each)]
        self._given: list[SourceLike | Reader] = [each for each in many if not callable(each)]
        self._open = open_base
        self._longest_chain = longest_chain
        self._candidates: dict[str, Reader] | None = None
        self._owned: list[Reader] = []
        self._found: dict[int, Reader] = {}
        # Of each tensor that was looked at: its base, the tensor there, and how many bases there are behind each other.
        self._ready: dict[str, tuple[Reader, str, int]] = {}
        self._lock = threading.RLock()
        self._scratch = threading.local()

    def require(self, geometry: TensorGeometry, *others: Bases) -> int:
        """Find everything that the tensor needs, and see that it fits; how many bases there are behind each other.

        ``others`` are those of the files that need this one, the nearest first: what they know of is looked at, too.
        Raises BaseNotFound, WrongBase, LimitExceeded, ManifestError, and what opening a base raises.
        """
        delta, name = geometry.delta, geometry.tensor.name
        if delta is None:
            return 0
        with self._lock:
            if name not in self._ready:
                if len(others) >= self._longest_chain:
                    raise self._too_long()
                base = self._find(delta.base, others)
                theirs = delta.tensor if delta.tensor is not None else name
                if theirs not in base:
                    raise ManifestError(f"the base {base.name} has no tensor {theirs!r}", tensor=name)
                if (base.dtype(theirs), base.shape(theirs)) != (geometry.tensor.dtype, geometry.tensor.shape):
                    raise ManifestError(
                        f"in the base {base.name} the tensor {theirs!r} is {base.dtype(theirs)} "
                        f"{list(base.shape(theirs))}, not {geometry.tensor.dtype} {list(geometry.tensor.shape)}",
                        tensor=name,
                    )
                height = 1 + base.prepare(theirs, self, *others)
                self._ready[name] = base, theirs, height
            height = self._ready[name][2]
        if height > self._longest_chain:
            raise self._too_long()
        return height

    def _too_long(self) -> LimitExceeded:
        return LimitExceeded(
            f"more than {self._longest_chain} bases behind each other",
            hint="convert one of them without a base",
        )

    def apply(self, geometry: TensorGeometry, segment: int, out: np.ndarray) -> None:
        """From the differences of a segment, in ``out`` (uint8), to its elements."""
        delta = geometry.delta
        assert delta is not None
        base, theirs, _ = self._ready[geometry.tensor.name]
        first = segment * geometry.tensor.segment
        if geometry.segment_entries(segment) == 0:
            base.read_elements(theirs, first, out)
            return
        scratch: np.ndarray | None = getattr(self._scratch, "bytes", None)
        if scratch is None or scratch.size < out.size:
            scratch = self._scratch.bytes = np.empty(out.size, np.uint8)
        before = scratch[: out.size]
        base.read_elements(theirs, first, before)
        kind = difference_kind(geometry.dtype, delta.operation)
        _native.decode_delta(kind, before, geometry.dtype.itemsize, out)

    # -- where they come from

    def _find(self, index: int, others: tuple[Bases, ...]) -> Reader:
        if index not in self._found:
            wanted = self.references[index]
            found = self._look_up(wanted, others)
            self._found[index] = self._resolve(wanted, others) if found is None else found
        return self._found[index]

    def _look_up(self, wanted: BaseReference, others: tuple[Bases, ...]) -> Reader | None:
        """Among what was given. Who gives bases gives one that is named, or is mistaken."""
        given = self._given_by_identity()
        if given and not others and not given.keys() & {reference.digest for reference in self.references}:
            what = ", ".join(f"{reader.name} is {digest}" for digest, reader in given.items())
            raise WrongBase(f"{wanted.file} needs {wanted}, and {what}", hint="give the base that it names")
        for bases in (self, *others):
            found = bases._given_by_identity().get(wanted.digest)
            if found is not None:
                return found
        return None

    def _given_by_identity(self) -> dict[str, Reader]:
        with self._lock:
            if self._candidates is None:
                opened = {}
                for each in self._given:
                    reader = self._open(each)
                    if reader is not each:
                        self._own(reader)
                    opened[reader.digest] = reader
                self._candidates = opened
            return self._candidates

    def _resolve(self, wanted: BaseReference, others: tuple[Bases, ...]) -> Reader:
        for bases in (self, *others):
            for resolver in bases._resolvers:
                found = resolver(wanted)
                if found is None:
                    continue
                self._own(found)
                if found.digest != wanted.digest:
                    raise WrongBase(f"{wanted.file} needs {wanted}, and {found.name} is {found.digest}")
                return found
        raise BaseNotFound(f"{wanted.file} needs its base {wanted}, which was not found", hint=_HINT)

    def _own(self, reader: Reader) -> Reader:
        self._owned.append(reader)
        return reader

    def files(self) -> set[str]:
        """The names of all files that were needed until now, those of the bases' own bases among them."""
        found = set[str]()
        for reader in self._found.values():
            found |= {reader.name} | reader.needed_files()
        return found

    def close(self) -> None:
        for reader in self._owned:
            reader.close()
        self._owned.clear()

"""The verification of a whole file, in the numbered steps of docs/format.md, section 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcz.format.bases import BaseLike
from dcz.format.layout import DEFAULT_LIMITS, Limits
from dcz.format.reader import Reader
from dcz.format.source import SourceLike

__all__ = ["VerifyReport", "verify", "verify_reader"]


@dataclass(frozen=True)
class VerifyReport:
    """What was verified: ``deep`` says whether the decoded content was compared, too. ``bases``: the identities of the
    artifacts to which tensors of this one are differences."""

    digest: str
    size: int
    tensors: int
    assets: int
    chunks: int
    deep: bool
    bases: tuple[str, ...] = ()


def verify(
    source: SourceLike,
    *,
    deep: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BaseLike | Sequence[BaseLike] | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Steps 1 to 6, and with ``deep`` also step 7: that decoding gives back exactly what was published.

    ``base``: as for Reader; only step 7 needs it. ``progress`` is called with a number of stored bytes (step 6), then of
    decoded bytes (step 7). Raises FormatError, or one of its kinds, at the first fault, and BaseNotFound or WrongBase.
    """
    with Reader(source, limits=limits, threads=threads, base=base) as reader:
        return verify_reader(reader, deep=deep, progress=progress)


def verify_reader(
    reader: Reader, *, deep: bool = False, progress: Callable[[int], None] | None = None
) -> VerifyReport:
    """As ``verify``, for a file that is open already: steps 1 to 5 are done."""
    reader.check_chunks(progress)
    if deep:
        reader.check_content(progress)
    manifest = reader.manifest
    return VerifyReport(
        digest=reader.digest,
        size=reader.size,
        tensors=len(manifest.tensors),
        assets=len(reader.assets()),
        chunks=len(manifest.chunks.lengths),
        deep=deep,
        bases=tuple(base.digest for base in reader.bases),
    )

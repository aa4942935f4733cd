"""verify and decode, for whatever names a .dcz file: as dcz.format.verify and dcz.converters.decode, but for references, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from dcz.converters import decoding
from dcz.format import DEFAULT_LIMITS, Limits, Reader
from dcz.format.verify import VerifyReport, verify_reader
from dcz.runtime.loading import BasesLike, ModelLike, RegistryLike, open_reader

if TYPE_CHECKING:
    from dcz.converters.base import Progress
    from dcz.converters.decoding import Decoded

__all__ = ["decode", "verify"]


def verify(
    source: ModelLike,
    *,
    deep: bool = False,
    registry: RegistryLike = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BasesLike = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Compare every byte of a file with its digests, and with ``deep`` also what it decodes to with what was published.

    ``source`` and ``base``: as for dcz.open. ``progress`` is called with a number of stored bytes, then, if ``deep``, of decoded ones.
    Raises FormatError, or one of its kinds, at the first fault, and what dcz.open raises.
    """
    with open_reader(source, registry=registry, limits=limits, threads=threads, base=base) as reader:
        return verify_reader(reader, deep=deep, progress=progress)


def decode(
    source: ModelLike | Reader,
    destination: str | os.PathLike[str],
    *,
    registry: RegistryLike = None,
    threads: int | None = None,
    base: BasesLike = None,
    progress: Progress | None = None,
) -> Decoded:
    """Write the model in a file as safetensors: one file if ``destination`` ends so, otherwise a folder.

    ``source`` and ``base``: as for dcz.open; or an open Reader, which knows its bases. A folder gets the files that were converted, identical byte for byte if every
    tensor was stored losslessly. Nothing appears at the destination before it is whole; an existing file is replaced, an
    existing folder must be empty. ``progress`` is called with the bytes that are done and those that there are in all.

    Raises UsageError if the folder is not empty, OSError if the disk does not take the files, and what dcz.open raises.
    """
    if isinstance(source, Reader):
        return decoding.decode(source, destination, threads=threads, progress=progress)
    with open_reader(source, registry=registry, threads=threads, base=base) as reader:
        return decoding.decode(reader, destination, progress=progress)

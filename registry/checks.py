"""The checks that everything goes through which leaves a store."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path

from dcz.errors import FormatError, RegistryCorrupt
from dcz.format import BaseLike, VerifyReport
from dcz.format import verify as verify_file
from dcz.registry.artifact import Layer
from dcz.registry.disk import os_errors
from dcz.registry.progress import Progress, steps
from dcz.registry.refs import RegistryReference

__all__ = [
    "about",
    "check_content",
    "check_identity",
    "dcz_errors",
    "verify_layer",
    "verify_with_progress",
]


@contextlib.contextmanager
def about(reference: RegistryReference) -> Generator[None, None, None]:
    """Name the reference in errors about damage."""
    try:
        yield
    except RegistryCorrupt as exc:
        exc.message = f"{reference}: {exc.message}"
        raise


def check_content(layer: Layer, encoded: str, size: int) -> None:
    """Raise RegistryCorrupt unless a blob has this SHA-256 (64 hex digits) and this size."""
    if (f"sha256:{encoded}", size) != (layer.digest, layer.size):
        raise RegistryCorrupt(
            f"the blob {layer.digest} ({layer.title!r}) is damaged: it has the digest sha256:{encoded}",
            hint="pushing the same files again heals it",
        )


@contextlib.contextmanager
def dcz_errors(layer: Layer) -> Generator[None, None, None]:
    """Turn a FormatError inside into a RegistryCorrupt that names the blob."""
    try:
        yield
    except FormatError as exc:
        exc.file = None
        raise RegistryCorrupt(
            f"the blob {layer.digest} ({layer.title!r}) is not a valid .dcz file: {exc}"
        ) from exc


def check_identity(layer: Layer, found: str) -> None:
    """Raise RegistryCorrupt unless a .dcz file is the one that the artifact's manifest names."""
    if found != layer.dcz_digest:
        raise RegistryCorrupt(f"the blob {layer.digest} ({layer.title!r}) is {found}, not {layer.dcz_digest}")


def verify_with_progress(
    path: Path,
    title: str,
    size: int,
    progress: Progress | None,
    *,
    deep: bool = False,
    base: BaseLike | Sequence[BaseLike] | None = None,
) -> VerifyReport:
    """``dcz.format.verify`` of a file of ``size`` bytes. Raises FormatError, OSError."""
    step = steps(progress, f"verify {title}", size)
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if step is not None and done < size:
            step(done)

    report = verify_file(path, deep=deep, base=base, progress=add)
    if step is not None:
        step(size)
    return report


def verify_layer(
    layer: Layer,
    path: Path,
    progress: Progress | None,
    *,
    deep: bool = False,
    base: BaseLike | Sequence[BaseLike] | None = None,
) -> VerifyReport:
    """Verify a .dcz file of an artifact, which lies at ``path``. Raises RegistryCorrupt."""
    with dcz_errors(layer), os_errors("cannot read", path):
        report = verify_with_progress(path, layer.title, layer.size, progress, deep=deep, base=base)
        check_identity(layer, report.digest)
    return report

"""FILE, URL or REF: what the commands take that read one .dcz file or one artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dcz.errors import UsageError
from dcz.registry.hints import file_hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcz.format import BaseLike, Reader
    from dcz.registry import Reference

__all__ = [
    "base_option",
    "bases",
    "file_option",
    "is_remote",
    "locate",
    "open_target",
    "pin_options",
    "pinned",
    "reference_of",
    "registry_option",
    "threads_option",
]

_Function = TypeVar("_Function", bound="Callable[..., Any]")

_REFERENCE_SCHEMES: Final = ("hf", "oci")


def registry_option(function: _Function) -> _Function:
    option = click.option(
        "--registry",
        metavar="DIR",
        type=Path,
        help="The registry's folder.  [default: $DCZ_REGISTRY, or dcz/registry in $XDG_DATA_HOME or ~/.local/share]",
    )
    return option(function)


def file_option(function: _Function) -> _Function:
    option = click.option("--file", metavar="NAME", help="Which .dcz of an artifact that has several.")
    return option(function)


def base_option(function: _Function) -> _Function:
    option = click.option(
        "--base",
        "base",
        metavar="FILE|URL|REF",
        multiple=True,
        help="Of a file of differences, what they are to; may be repeated.  [default: found beside it or in the registry]",
    )
    return option(function)


def pin_options(verb: str) -> Callable[[_Function], _Function]:
    """``verb``: what is done with what is pinned; the options are ``digests`` and ``lock``, for ``pinned``."""
    digest = click.option(
        "--digest",
        "digests",
        metavar="DIGEST",
        multiple=True,
        help="The identity that its .dcz must have (blake3:...); for several, repeat it.",
    )
    lock = click.option(
        "--lock", metavar="FILE", help=f"{verb} what this file, made by dcz lock, says of REF, or nothing."
    )
    return lambda function: digest(lock(function))


def pinned(target: str, digests: tuple[str, ...], lock: str | None) -> tuple[str, tuple[str, ...]]:
    """The reference to take, and the identities that its files must have. Raises UsageError, RegistryError."""
    if lock is None:
        return target, digests
    from dcz.registry import locked

    known = locked(lock, target)
    return str(known.reference), (*digests, *known.files.values())


def threads_option(verb: str) -> Callable[[_Function], _Function]:
    """``verb``: what the threads do."""
    return click.option(
        "--threads",
        metavar="N",
        type=click.IntRange(1, 1024),
        help=f"Threads that {verb}.  [default: one a core, at most 8]",
    )


def bases(base: tuple[str, ...], registry: Path | None) -> list[BaseLike]:
    """Where a Reader finds the bases of its file. Raises InvalidReference, NotInRegistry, RegistryError."""
    from dcz.registry import base_sources

    located = [locate(each, registry) for each in base]
    return base_sources(
        [os.path.abspath(each) if not is_remote(each) else each for each in located], registry=registry
    )


def is_remote(target: str) -> bool:
    """Whether ``target`` is a URL for fsspec."""
    from dcz.format.source import url_scheme

    return url_scheme(target) not in (None, *_REFERENCE_SCHEMES)


def reference_of(target: str) -> Reference | None:
    """The reference that ``target`` says, or None if it is a file or a URL. Raises InvalidReference."""
    if is_remote(target):
        return None
    from dcz.registry import PathReference, parse_reference

    with file_hint(target):
        reference = parse_reference(target)
    return None if isinstance(reference, PathReference) else reference


def _no_file_in_a_file(target: str, file: str | None) -> None:
    if file is not None:
        raise UsageError(
            f"--file {file} chooses among the files of an artifact, and {target} is a file itself",
            hint="leave it out",
        )


def open_target(
    target: str,
    registry: Path | None,
    file: str | None = None,
    *,
    whole: bool = True,
    threads: int | None = None,
    base: list[BaseLike] | None = None,
) -> Reader:
    """A reader of the .dcz file that is meant, where it lies; of the Hub, all of it or, unless ``whole``, by ranges.

    Raises FormatError, OSError, InvalidReference, RegistryError, UsageError.
    """
    reference = reference_of(target)
    if reference is None:
        _no_file_in_a_file(target, file)
        from dcz.format import Reader

        return Reader(locate(target, registry), threads=threads, base=base)
    from dcz.registry import open_reference

    with file_hint(target):
        return open_reference(
            reference, file=file, registry=registry, whole=whole, threads=threads, base=base
        )


def locate(target: str, registry: Path | None, file: str | None = None) -> str:
    """The path or URL of the .dcz file that is meant; what lies in a registry is read in place.

    Raises InvalidReference, NotInRegistry, RegistryError, UsageError.
    """
    reference = reference_of(target)
    if reference is None:
        _no_file_in_a_file(target, file)
        return target if is_remote(target) else os.path.expanduser(target)
    from dcz.registry import locate as locate_in_registry

    with file_hint(target):
        return os.fspath(locate_in_registry(reference, file=file, registry=registry))

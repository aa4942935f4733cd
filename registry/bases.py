"""Where the bases of a file are found (docs/format.md, section 3.2): what a person gave, a file beside it, the registry.

Only the identity decides. A hint says where to look first, and only among what is here already: a file of that name in the
same folder, or a version of that name in the registry. Nothing is fetched because a file says so. What looks into a
registry is imported only by those who need it: most files have no base.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dcz.errors import FormatError, UsageError
from dcz.format import DEFAULT_LIMITS, Limits, Reader
from dcz.format.source import url_scheme
from dcz.registry.refs import HubReference, PathReference, RegistryReference, parse_reference

if TYPE_CHECKING:
    from dcz.format import BaseLike, BaseReference
    from dcz.registry.client import RegistryLike

__all__ = ["base_name", "base_sources"]


def base_sources(
    base: BaseLike | Sequence[BaseLike] | None = None,
    *,
    registry: RegistryLike = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[BaseLike]:
    """What ``Reader(base=...)`` takes: the bases that are given, a reference among them as the file that it stands for;
    then whatever lies beside the file that needs it or in the registry.

    Raises InvalidReference, NotInRegistry, RegistryError for references.
    """
    several = base if isinstance(base, list | tuple) else [] if base is None else [base]
    given = [_located(each, registry) for each in cast("Sequence[BaseLike]", several)]

    def beside(reference: BaseReference) -> Reader | None:
        return _beside(reference, limits)

    def in_registry(reference: BaseReference) -> Reader | None:
        from dcz.registry.client import find_base

        return find_base(reference, registry=registry, limits=limits)

    return [*given, beside, in_registry]


def base_name(base: object) -> str | None:
    """What is written into a file as the hint to ``base``: a reference, or a file's name without its folder; else None."""
    if not isinstance(base, str | os.PathLike):
        return None
    text = os.fspath(cast("str | os.PathLike[str]", base))
    if isinstance(base, str) and (reference := _reference(text)) is not None:
        return str(reference)
    return (text if url_scheme(text) is not None else Path(text).name) or None


def _reference(text: str) -> RegistryReference | None:
    if url_scheme(text) not in (None, "hf", "oci"):
        return None
    reference = parse_reference(text)
    return reference if isinstance(reference, RegistryReference) else None


def _located(base: BaseLike, registry: RegistryLike) -> BaseLike:
    if isinstance(base, str) and url_scheme(base) in (None, "hf", "oci"):
        reference = parse_reference(base)
        if isinstance(reference, PathReference):
            return reference.path
        from dcz.registry.client import locate, locate_file

        if isinstance(reference, HubReference):
            return locate(reference, registry=registry)
        return locate_file(reference, registry=registry).path
    return base


def _beside(reference: BaseReference, limits: Limits) -> Reader | None:
    """The file that the hint names, in the folder of the file that needs it, if it is the base."""
    hint = reference.hint
    if hint is None or os.path.basename(hint) != hint or not hint.lower().endswith(".dcz"):
        return None
    path = Path(reference.file).parent / hint
    if not Path(reference.file).is_file() or not path.is_file():
        return None
    try:
        reader = Reader(path, limits=limits, threads=1)
    except (FormatError, UsageError, OSError):
        return None
    if reader.digest == reference.digest:
        return reader
    reader.close()
    return None

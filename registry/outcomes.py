"""What a push and a pull come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcz.registry.index import Change
    from dcz.registry.refs import HubReference, RegistryReference

__all__ = ["Committed", "Pulled", "Pushed"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """``reference`` is pinned: to a digest, or on the Hub to a commit. ``created`` is False if all was there already.
    ``changes`` are the versions and aliases of a registry that are new or have moved; ``tags`` the new tags on the Hub;
    ``identities`` those of the .dcz files that were pushed, by their names."""

    reference: RegistryReference | HubReference
    created: bool
    changes: tuple[Change, ...] = ()
    tags: tuple[str, ...] = ()
    identities: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit of a repository on the Hub: what pins it, when it was made (RFC 3339), by whom, and what its author calls it.
    All but the first is what the Hub says."""

    reference: HubReference
    time: str
    user: str
    title: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """``files`` are all files of the artifact; ``reused`` those of them that were in the destination already. ``bases``
    are the identities of .dcz files that are not among them and without which they cannot be decoded."""

    reference: RegistryReference | HubReference
    files: tuple[Path, ...]
    reused: tuple[Path, ...]
    bases: tuple[str, ...] = ()

"""Branches and tags of a repository on the Hub: branches move, as aliases do; tags stay, as versions do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcz.errors import RegistryCorrupt
from dcz.registry.hub.connection import Connection
from dcz.registry.hub.snapshot import is_commit
from dcz.registry.refs import HubReference

__all__ = ["Refs", "list_refs"]


@dataclass(frozen=True, slots=True)
class Refs:
    """Names and their commits."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


def list_refs(connection: Connection, reference: HubReference) -> Refs:
    """The branches and tags of a repository. Raises NotInRegistry, AccessDenied, RegistryError."""
    what = f"hf://{reference.org}/{reference.name}"
    tree, _ = connection.get_json(
        connection.own_url(f"api/models/{reference.org}/{reference.name}/refs"), what
    )

    def named(key: str) -> dict[str, str]:
        found: dict[str, str] = {}
        items: Any = tree.get(key, []) if isinstance(tree, dict) else None
        for item in items if isinstance(items, list) else [None]:
            name = item.get("name") if isinstance(item, dict) else None
            commit = item.get("targetCommit") if isinstance(item, dict) else None
            if not isinstance(name, str) or not isinstance(commit, str) or not is_commit(commit):
                raise RegistryCorrupt(
                    f"{what}: {connection.endpoint} has branches or tags without names or commits"
                )
            found[name] = commit
        return found

    return Refs(named("branches"), named("tags"))

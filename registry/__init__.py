"""The registry: references, artifacts, stores, and what one does with them (docs/guides/registry.md).

Importing it imports next to nothing; each name brings what it needs when it is first used. To see whether a text is a
reference or a path takes no more than ``dcz.registry.refs``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dcz.registry.artifact import ArtifactManifest, Layer
    from dcz.registry.bases import base_name, base_sources
    from dcz.registry.client import (
        Listed,
        Located,
        RegistryLike,
        Resolved,
        Tagged,
        Verified,
        collect_garbage,
        commits,
        default_registry,
        fetch_model,
        fetch_shards,
        find_base,
        history,
        list_artifacts,
        locate,
        locate_file,
        open_reference,
        open_registry,
        read_file,
        resolve,
        tag,
        verify,
        version_with,
    )
    from dcz.registry.hints import file_hint
    from dcz.registry.hub.settings import Hub, Patience
    from dcz.registry.index import Change
    from dcz.registry.locking import Locked, lock, locked, write_lock
    from dcz.registry.outcomes import Committed, Pulled, Pushed
    from dcz.registry.pins import check_pinned, read_pins
    from dcz.registry.progress import Progress
    from dcz.registry.refs import (
        HubReference,
        OciReference,
        PathReference,
        Reference,
        RegistryReference,
        parse_reference,
    )
    from dcz.registry.stores.base import Garbage, Store
    from dcz.registry.stores.local import LocalStore
    from dcz.registry.transfer import pull, push

__all__ = [
    "ArtifactManifest",
    "Change",
    "Committed",
    "Garbage",
    "Hub",
    "HubReference",
    "Layer",
    "Listed",
    "LocalStore",
    "Located",
    "Locked",
    "OciReference",
    "PathReference",
    "Patience",
    "Progress",
    "Pulled",
    "Pushed",
    "Reference",
    "RegistryLike",
    "RegistryReference",
    "Resolved",
    "Store",
    "Tagged",
    "Verified",
    "base_name",
    "base_sources",
    "check_pinned",
    "collect_garbage",
    "commits",
    "default_registry",
    "fetch_model",
    "fetch_shards",
    "file_hint",
    "find_base",
    "history",
    "list_artifacts",
    "locate",
    "locate_file",
    "lock",
    "locked",
    "open_reference",
    "open_registry",
    "parse_reference",
    "pull",
    "push",
    "read_file",
    "read_pins",
    "resolve",
    "tag",
    "verify",
    "version_with",
    "write_lock",
]

_MODULES: Final = {
    "ArtifactManifest": "artifact",
    "Change": "index",
    "Committed": "outcomes",
    "Garbage": "stores.base",
    "Hub": "hub.settings",
    "HubReference": "refs",
    "Layer": "artifact",
    "LocalStore": "stores.local",
    "Locked": "locking",
    "OciReference": "refs",
    "PathReference": "refs",
    "Patience": "hub.settings",
    "Progress": "progress",
    "Pulled": "outcomes",
    "Pushed": "outcomes",
    "Reference": "refs",
    "RegistryReference": "refs",
    "Store": "stores.base",
    "base_name": "bases",
    "base_sources": "bases",
    "check_pinned": "pins",
    "file_hint": "hints",
    "lock": "locking",
    "locked": "locking",
    "parse_reference": "refs",
    "pull": "transfer",
    "push": "transfer",
    "read_pins": "pins",
    "write_lock": "locking",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dcz.registry' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dcz.registry.{_MODULES.get(name, 'client')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

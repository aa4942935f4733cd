"""The registry: references, artifacts, stores, and what one does with them (docs/guides/registry.md)."""

from __future__ import annotations

from dcz.registry.artifact import ArtifactManifest, Layer
from dcz.registry.checks import Progress
from dcz.registry.client import (
    Listed,
    Resolved,
    Tagged,
    Verified,
    collect_garbage,
    default_registry,
    history,
    list_artifacts,
    locate,
    open_registry,
    resolve,
    tag,
    verify,
)
from dcz.registry.index import Change
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
from dcz.registry.transfer import Pulled, Pushed, pull, push

__all__ = [
    "ArtifactManifest",
    "Change",
    "Garbage",
    "HubReference",
    "Layer",
    "Listed",
    "LocalStore",
    "OciReference",
    "PathReference",
    "Progress",
    "Pulled",
    "Pushed",
    "Reference",
    "RegistryReference",
    "Resolved",
    "Store",
    "Tagged",
    "Verified",
    "collect_garbage",
    "default_registry",
    "history",
    "list_artifacts",
    "locate",
    "open_registry",
    "parse_reference",
    "pull",
    "push",
    "resolve",
    "tag",
    "verify",
]

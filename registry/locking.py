"""Locks: what references stand for today, written down, so that the same comes tomorrow or nothing does.

    {"version": 1,
     "artifacts": {"hf://me/m@v1": {"reference": "hf://me/m@<commit>",
                                    "files": {"model.dcz": "blake3:<64 hex>"}}}}

The pinned reference is where to look; the identities, computed here, are what must be found there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from dcz.errors import RegistryCorrupt, UsageError
from dcz.format import atomic_file
from dcz.registry.canonical import describe, read_json, to_json
from dcz.registry.client import RegistryLike, hub_of, registry_reference, resolve
from dcz.registry.disk import os_errors, read_bounded
from dcz.registry.models import Model
from dcz.registry.refs import HubReference, Reference, parse_reference

__all__ = ["Locked", "lock", "locked", "write_lock"]

_MAX_LOCK: Final = 16 << 20

Identity = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}\z")]


@dataclass(frozen=True, slots=True)
class Locked:
    """A pinned reference, and the identities of its .dcz files by their names."""

    reference: Reference
    files: Mapping[str, str]


class _Artifact(Model):
    reference: str
    files: Annotated[dict[str, Identity], Field(min_length=1)]


class _Lock(Model):
    version: Literal[1]
    artifacts: dict[str, _Artifact]


def lock(ref: str | Reference, *, registry: RegistryLike = None) -> Locked:
    """What a reference stands for now: of each .dcz only the manifest is read. Raises what ``resolve`` does, UsageError."""
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(reference, HubReference):
        from dcz.registry.hub import pulling

        pinned, found = pulling.identities(reference, hub_of(registry))
        return Locked(pinned, found)
    resolved = resolve(registry_reference(reference), registry=registry)
    files = {
        layer.title: layer.dcz_digest for layer in resolved.manifest.layers if layer.dcz_digest is not None
    }
    return Locked(resolved.reference, files)


def write_lock(
    path: str | os.PathLike[str], refs: Iterable[str], *, registry: RegistryLike = None
) -> dict[str, Locked]:
    """Lock references, and write them to a file, in place of what is there. Raises what ``lock`` does, RegistryError."""
    found = {ref: lock(ref, registry=registry) for ref in refs}
    artifacts = {
        ref: {"reference": str(each.reference), "files": dict(each.files)} for ref, each in found.items()
    }
    with os_errors("cannot write", path), atomic_file(path) as file:
        file.write(to_json({"version": 1, "artifacts": artifacts}) + b"\n")
    return found


def locked(path: str | os.PathLike[str], ref: str) -> Locked:
    """What a lock file says of a reference. Raises UsageError if nothing, RegistryCorrupt if it is no lock file."""
    what = f"the lock {os.fspath(path)}"
    with os_errors("cannot read", path):
        data = read_bounded(Path(path), _MAX_LOCK)
    try:
        tree = _Lock.model_validate(read_json(data, limit=_MAX_LOCK, what=what), by_alias=True, by_name=False)
    except ValidationError as exc:
        raise RegistryCorrupt(f"{what} breaks a rule: {describe(exc)}") from exc
    artifact = tree.artifacts.get(ref)
    if artifact is None:
        names = ", ".join(list(tree.artifacts)[:8])
        raise UsageError(f"{what} says nothing of {ref}", hint=f"it has {names}" if names else None)
    return Locked(parse_reference(artifact.reference), artifact.files)

"""Push and pull: files into a registry and out of it, whole or not at all, and verified on the way.

What a push to the Hub begins with is hashing, while what all the rest needs is still being imported. So nothing is imported
here at the top that takes long.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dcz.errors import UsageError
from dcz.registry.hub.preparing import Preparing
from dcz.registry.outgoing import check_names, files_of_folder, files_to_push
from dcz.registry.refs import HubReference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dcz.registry.client import RegistryLike
    from dcz.registry.outcomes import Pulled, Pushed
    from dcz.registry.progress import Progress
    from dcz.registry.refs import Reference

__all__ = ["pull", "push"]


def push(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    ref: str | Reference,
    *,
    aliases: Iterable[str] = (),
    tags: Iterable[str] = (),
    private: bool = False,
    replaces: Mapping[str, str | None] | None = None,
    registry: RegistryLike = None,
    progress: Progress | None = None,
) -> Pushed:
    """Put files into a registry as one version of an artifact: whole or not at all, whatever dies when.

    ``paths``: at least one .dcz file, and loose files beside it. Each .dcz is verified (every chunk), in the very copy
    that is published. ``ref`` is ``name:version``, or ``name`` alone: then the version gets the next number ``v1``,
    ``v2``, ..., unless one has this content already. A new version, and a push without a version, also moves ``latest``;
    ``aliases`` move too. The same content again is a success that changes nothing, and heals damaged blobs.

    ``ref`` can also be ``hf://org/name[@branch]``: then the files, or all files of a folder and its sub-folders but hidden
    ones, are one commit on that branch, to which the new ``tags`` point; a repository that is not there is made, a ``private`` one if asked for (docs/guides/hub.md). ``replaces``: files of the branch that the push was made from, by their
    paths, and their digests as ``read_file`` gives them, or None if there were none; if they are others by now, the push is
    a Conflict.

    Raises UsageError for paths that are no files or have bad names, FormatError for a broken .dcz, VersionExists if the
    version has other content, InvalidReference, RegistryError if the registry cannot be written.
    """
    aliases, tags = _listed(aliases), _listed(tags)
    parsed = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(parsed, HubReference):
        if aliases:
            raise UsageError(
                "a repository on the Hub has no aliases", hint="it has branches: hf://org/name@branch"
            )
        nested = isinstance(paths, str | os.PathLike) and os.path.isdir(paths)
        if isinstance(paths, str | os.PathLike) and nested:
            names = files_of_folder(Path(paths))
        else:
            names = {path: path.name for path in files_to_push(paths)}
        with Preparing(names, progress) as preparing:
            from dcz.registry.client import hub_of
            from dcz.registry.hub import pushing

            check_names(names.values(), nested=nested)
            return pushing.push(
                preparing.files,
                parsed,
                hub_of(registry),
                progress,
                tags=tags,
                private=private,
                replaces=replaces or {},
            )
    if tags or private or replaces:
        raise UsageError(
            f"tags, privacy and what is replaced are for the Hub, and {parsed} is not on it",
            hint="hf://org/name",
        )
    from dcz.registry import store_transfer
    from dcz.registry.client import open_registry, registry_reference

    reference = registry_reference(parsed)
    files = files_to_push(paths)
    check_names(path.name for path in files)
    return store_transfer.push(files, reference, open_registry(registry), progress, aliases=aliases)


def _listed(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def pull(
    ref: str | Reference,
    destination: str | os.PathLike[str],
    *,
    files: Iterable[str] = (),
    digests: str | Iterable[str] | None = None,
    registry: RegistryLike = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Pulled:
    """Copy the files of an artifact into the folder ``destination``, which is made if need be; or only those named.

    Everything is verified, every byte against SHA-256 and every .dcz in itself, before the first file appears under its
    final name; each then appears at once and whole. Files that are there already and right are kept. Files that are there
    and different stay too, unless ``force``. A pull that was killed goes on with what it had copied, which is compared
    with its digest as if it came from anywhere.

    ``digests``, if given, are the identities (``blake3:...``) that the .dcz files must have, each of them one of these: what
    comes then does not depend on what the registry says.

    Raises what ``resolve`` does, RegistryCorrupt naming blob and reference, UsageError for different files.
    """
    from dcz.format.source import check_local
    from dcz.registry.client import hub_of, open_registry, registry_reference
    from dcz.registry.pins import read_pins

    check_local(destination)
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    pins, folder = read_pins(digests), Path(destination)
    if isinstance(reference, HubReference):
        from dcz.registry.hub import pulling

        return pulling.pull(reference, folder, files, hub_of(registry), progress, force=force, pins=pins)
    from dcz.registry import store_transfer

    reference = registry_reference(reference)
    store = open_registry(registry)
    return store_transfer.pull(reference, folder, files, store, progress, force=force, pins=pins)

"""Push and pull: files into a registry and out of it, whole or not at all, and verified on the way.

The client trusts no store: each manifest and each file that it hands on has been compared with its digest, and each
.dcz has been verified. Nothing appears under its final name before that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from dcz.errors import FormatError, InvalidReference, RegistryError, UsageError
from dcz.format import VerifyReport
from dcz.format.source import check_local
from dcz.registry.arrival import Arrival, bring
from dcz.registry.artifact import (
    DCZ_BASES,
    DCZ_DIGEST,
    DCZ_FILE_TYPE,
    LOOSE_FILE_TYPE,
    TITLE,
    ArtifactManifest,
    Layer,
    decode_artifact,
)
from dcz.registry.canonical import describe
from dcz.registry.checks import Progress, about, check_content, steps, verify_layer, verify_with_progress
from dcz.registry.client import RegistryLike, hub_of, open_registry, registry_reference, resolve_in
from dcz.registry.disk import os_errors
from dcz.registry.index import LATEST, check_alias, check_movable, check_version, find_tag, version_exists
from dcz.registry.outcomes import Pulled, Pushed
from dcz.registry.outgoing import files_of_folder, files_to_push, is_dcz
from dcz.registry.pins import check_pinned, read_pins
from dcz.registry.refs import HubReference, Reference, RegistryReference, parse_reference
from dcz.registry.stores.base import StagedFile, Store, Upload

__all__ = ["pull", "push"]


# -- push


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
        from dcz.registry.hub import pushing

        hub = hub_of(registry)
        if isinstance(paths, str | os.PathLike) and os.path.isdir(paths):
            names = files_of_folder(Path(paths))
            files = {path: path.stat().st_size for path in names}
        else:
            names, files = None, files_to_push(paths)
        return pushing.push(
            files, parsed, hub, progress, tags=tags, private=private, names=names, replaces=replaces
        )
    if tags or private or replaces:
        raise UsageError(
            f"tags, privacy and what is replaced are for the Hub, and {parsed} is not on it",
            hint="hf://org/name",
        )
    reference = registry_reference(parsed)
    if reference.digest is not None:
        raise InvalidReference(
            f"{reference}: the digest comes out of a push, it cannot be given", hint="name[:version]"
        )
    aliases = [check_alias(alias) for alias in aliases]
    files = files_to_push(paths)
    store = open_registry(registry)
    _fail_early(store, reference, aliases, files)
    with store.upload() as upload:
        layers = [_add(upload, path, size, progress) for path, size in sorted(files.items())]
        try:
            manifest = ArtifactManifest.of(layers).to_bytes()
        except ValidationError as exc:
            raise UsageError(f"these files make no artifact: {describe(exc)}") from exc
        done = upload.publish(reference.name, reference.tag, manifest, aliases)
    pinned = RegistryReference(reference.name, done.version.tag, done.version.digest)
    return Pushed(pinned, done.created, done.changes)


def _listed(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _fail_early(
    store: Store, reference: RegistryReference, aliases: Iterable[str], files: dict[Path, int]
) -> None:
    """Say what would be said at the end anyway, before gigabytes are copied."""
    tags = store.tags(reference.name)
    for alias in aliases:
        if (taken := find_tag(tags, alias)) is not None:
            check_movable(taken)
    if reference.tag in (None, LATEST) or (known := find_tag(tags, str(reference.tag))) is None:
        return
    check_version(known)
    try:
        manifest = decode_artifact(store.read_manifest(known.digest, known.size))
    except RegistryError:
        return  # a damaged manifest is for the push to heal
    if {layer.title: layer.size for layer in manifest.layers} != {
        path.name: size for path, size in files.items()
    }:
        raise version_exists(known)


def _add(upload: Upload, path: Path, size: int, progress: Progress | None) -> Layer:
    try:
        staged = upload.add(path, steps(progress, f"copy {path.name}", size))
    except OSError as exc:
        raise UsageError(f"cannot push {str(path)!r}: {exc.strerror}") from exc
    annotations = {TITLE: path.name}
    media_type = LOOSE_FILE_TYPE
    if is_dcz(path):
        media_type = DCZ_FILE_TYPE
        report = _verified(staged, path, progress)
        annotations[DCZ_DIGEST] = report.digest
        if report.bases:
            annotations[DCZ_BASES] = ",".join(report.bases)
    return Layer(media_type=media_type, digest=staged.digest, size=staged.size, annotations=annotations)


def _verified(staged: StagedFile, path: Path, progress: Progress | None) -> VerifyReport:
    try:
        with os_errors("cannot verify", path):
            return verify_with_progress(staged.path, path.name, staged.size, progress)
    except FormatError as exc:
        exc.file = str(path)  # the copy is gone when the message is read
        raise


# -- pull


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
    check_local(destination)
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    pins = read_pins(digests)
    if isinstance(reference, HubReference):
        from dcz.registry.hub import pulling

        hub = hub_of(registry)
        return pulling.pull(reference, Path(destination), files, hub, progress, force=force, pins=pins)
    store = open_registry(registry)
    resolved = resolve_in(store, registry_reference(reference))
    layers = resolved.manifest.layers
    if names := set(files):
        layers = tuple(layer for layer in layers if layer.title in names)
        if missing := names - {layer.title for layer in layers}:
            raise UsageError(f"{resolved.reference} has no file {min(missing)!r}")
    for layer in layers:
        if layer.dcz_digest is not None:
            check_pinned(pins, layer.dcz_digest, f"{resolved.reference}, {layer.title},")
    with about(resolved.reference):
        arrived = bring(
            [_arrival(store, layer) for layer in layers],
            Path(destination),
            progress=progress,
            force=force,
        )
    return Pulled(resolved.reference, arrived.files, arrived.reused, _bases_elsewhere(layers))


def _arrival(store: Store, layer: Layer) -> Arrival:
    def compare(encoded: str, size: int) -> None:
        check_content(layer, encoded, size)

    def check_file(path: Path, progress: Progress | None) -> None:
        if layer.is_dcz:
            verify_layer(layer, path, progress)

    return Arrival(
        title=layer.title,
        size=layer.size,
        digest=layer.digest.removeprefix("sha256:"),
        new_hash=hashlib.sha256,
        open=lambda: store.open_blob(layer.digest, layer.size),
        check_content=compare,
        check_file=check_file,
    )


def _bases_elsewhere(layers: Iterable[Layer]) -> tuple[str, ...]:
    here = {layer.dcz_digest for layer in layers}
    named = (base for layer in layers for base in layer.bases)
    return tuple(dict.fromkeys(base for base in named if base not in here))

"""Push and pull where the artifacts are in a Store. See ``dcz.registry.transfer``.

The client trusts no store: each manifest and each file that it hands on has been compared with its digest, and each
.dcz has been verified. Nothing appears under its final name before that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from dcz.errors import FormatError, InvalidReference, RegistryError, UsageError
from dcz.format import VerifyReport
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
from dcz.registry.checks import about, check_content, verify_layer, verify_with_progress
from dcz.registry.client import resolve_in
from dcz.registry.disk import os_errors
from dcz.registry.index import LATEST, check_alias, check_movable, check_version, find_tag, version_exists
from dcz.registry.outcomes import Pulled, Pushed
from dcz.registry.outgoing import is_dcz
from dcz.registry.pins import check_pinned
from dcz.registry.progress import Progress, steps
from dcz.registry.refs import RegistryReference
from dcz.registry.stores.base import StagedFile, Store, Upload

__all__ = ["pull", "push"]


# -- push


def push(
    files: dict[Path, int],
    reference: RegistryReference,
    store: Store,
    progress: Progress | None,
    *,
    aliases: Sequence[str],
) -> Pushed:
    """``files``: with their sizes."""
    if reference.digest is not None:
        raise InvalidReference(
            f"{reference}: the digest comes out of a push, it cannot be given", hint="name[:version]"
        )
    aliases = [check_alias(alias) for alias in aliases]
    _fail_early(store, reference, aliases, files)
    with store.upload() as upload:
        layers = [_add(upload, path, size, progress) for path, size in sorted(files.items())]
        try:
            manifest = ArtifactManifest.of(layers).to_bytes()
        except ValidationError as exc:
            raise UsageError(f"these files make no artifact: {describe(exc)}") from exc
        done = upload.publish(reference.name, reference.tag, manifest, aliases)
    pinned = RegistryReference(reference.name, done.version.tag, done.version.digest)
    identities = {layer.title: layer.dcz_digest for layer in layers if layer.dcz_digest is not None}
    return Pushed(pinned, done.created, done.changes, identities=identities)


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
    reference: RegistryReference,
    folder: Path,
    files: Iterable[str],
    store: Store,
    progress: Progress | None,
    *,
    force: bool,
    pins: tuple[str, ...],
) -> Pulled:
    resolved = resolve_in(store, reference)
    layers = resolved.manifest.layers
    if names := set(files):
        layers = tuple(layer for layer in layers if layer.title in names)
        if missing := names - {layer.title for layer in layers}:
            raise UsageError(f"{resolved.reference} has no file {min(missing)!r}")
    for layer in layers:
        if layer.dcz_digest is not None:
            check_pinned(pins, layer.dcz_digest, f"{resolved.reference}, {layer.title},")
    with about(resolved.reference):
        arrived = bring([_arrival(store, layer) for layer in layers], folder, progress=progress, force=force)
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

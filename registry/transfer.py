"""Push and pull: files into a registry and out of it, whole or not at all, and verified on the way.

The client trusts no store: each manifest and each file that it hands on has been compared with its digest, and each
.dcz has been verified. Nothing appears under its final name before that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dcz.errors import FormatError, InvalidReference, RegistryError, UsageError
from dcz.format import VerifyReport, sync_folder
from dcz.registry.artifact import (
    DCZ_BASES,
    DCZ_DIGEST,
    DCZ_FILE_TYPE,
    LOOSE_FILE_TYPE,
    OWN_PREFIX,
    TITLE,
    ArtifactManifest,
    Layer,
    check_file_names,
    decode_artifact,
)
from dcz.registry.canonical import describe
from dcz.registry.checks import Progress, about, check_content, steps, verify_layer, verify_with_progress
from dcz.registry.client import RegistryLike, open_registry, registry_reference, resolve_in
from dcz.registry.disk import Staging, finish_copy, hash_stream, open_regular, os_errors
from dcz.registry.index import (
    LATEST,
    Change,
    check_alias,
    check_movable,
    check_version,
    find_tag,
    version_exists,
)
from dcz.registry.refs import Reference, RegistryReference
from dcz.registry.stores.base import StagedFile, Store, Upload

__all__ = ["Pulled", "Pushed", "pull", "push"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """``reference`` is pinned: name, version and digest. ``created`` is False if the version was there already."""

    reference: RegistryReference
    created: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Pulled:
    """``files`` are all files of the artifact; ``reused`` those of them that were in the destination already. ``bases``
    are the identities of .dcz files that are not among them and without which they cannot be decoded."""

    reference: RegistryReference
    files: tuple[Path, ...]
    reused: tuple[Path, ...]
    bases: tuple[str, ...] = ()


# -- push


def push(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    ref: str | Reference,
    *,
    aliases: Iterable[str] = (),
    registry: RegistryLike = None,
    progress: Progress | None = None,
) -> Pushed:
    """Put files into a registry as one version of an artifact: whole or not at all, whatever dies when.

    ``paths``: at least one .dcz file, and loose files beside it. Each .dcz is verified (every chunk), in the very copy
    that is published. ``ref`` is ``name:version``, or ``name`` alone: then the version gets the next number ``v1``,
    ``v2``, ..., unless one has this content already. A new version, and a push without a version, also moves ``latest``;
    ``aliases`` move too. The same content again is a success that changes nothing, and heals damaged blobs.

    Raises UsageError for paths that are no files or have bad names, FormatError for a broken .dcz, VersionExists if the
    version has other content, InvalidReference, RegistryError if the registry cannot be written.
    """
    reference = registry_reference(ref)
    if reference.digest is not None:
        raise InvalidReference(
            f"{reference}: the digest comes out of a push, it cannot be given", hint="name[:version]"
        )
    aliases = [check_alias(alias) for alias in ([aliases] if isinstance(aliases, str) else aliases)]
    files = _files([paths] if isinstance(paths, str | os.PathLike) else paths)
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


def _files(paths: Iterable[str | os.PathLike[str]]) -> dict[Path, int]:
    """The files and their sizes. Raises UsageError for what cannot be pushed."""
    files: dict[Path, int] = {}
    for path in map(Path, paths):
        try:
            info = path.stat()
        except (OSError, ValueError) as exc:
            raise UsageError(f"cannot push {str(path)!r}: {getattr(exc, 'strerror', None) or exc}") from exc
        if not stat.S_ISREG(info.st_mode):
            hint = "give the files in it" if stat.S_ISDIR(info.st_mode) else None
            raise UsageError(f"cannot push {str(path)!r}: it is not a regular file", hint=hint)
        files[path] = info.st_size
    if not any(_is_dcz(path) for path in files):
        raise UsageError("an artifact needs a .dcz file", hint="`dcz convert` makes one")
    try:
        check_file_names(path.name for path in files)
    except ValueError as exc:
        raise UsageError(f"cannot push these files: {exc}") from exc
    return files


def _is_dcz(path: Path) -> bool:
    return path.name.lower().endswith(".dcz")


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
    if _is_dcz(path):
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
    registry: RegistryLike = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Pulled:
    """Copy the files of an artifact into the folder ``destination``, which is made if need be.

    Everything is verified, every byte against SHA-256 and every .dcz in itself, before the first file appears under its
    final name; each then appears at once and whole. Files that are there already and right are kept. Files that are there
    and different stay too, unless ``force``. A pull that was killed goes on with what it had copied, which is compared
    with its digest as if it came from anywhere.

    Raises what ``resolve`` does, RegistryCorrupt naming blob and reference, UsageError for different files.
    """
    store = open_registry(registry)
    resolved = resolve_in(store, registry_reference(ref))
    folder = Path(destination)
    layers = resolved.manifest.layers
    finals = {layer.title: folder / layer.title for layer in layers}
    missing = [layer for layer in layers if not _is_there(finals[layer.title], layer, progress, force=force)]
    reused = {layer.title for layer in layers} - {layer.title for layer in missing}
    with os_errors("cannot write to", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack, about(resolved.reference):
        staged = dict(finals)
        prefix = f"{OWN_PREFIX}pull-"
        if not missing:
            with contextlib.suppress(OSError):  # the destination may be read-only, if it is complete
                Staging.remove_dead(folder, prefix)
        else:
            names = _staged_names(missing)
            staging = stack.enter_context(Staging(folder, prefix, wanted=names.values()))
            for layer in missing:
                staged[layer.title] = staging.path / names[layer.title]
                with os_errors(f"cannot copy {layer.title!r} to", folder):
                    _fetch(store, layer, staged[layer.title], progress)
        for layer in layers:
            if layer.is_dcz:
                verify_layer(layer, staged[layer.title], progress)
        with os_errors("cannot write to", folder):
            for layer in missing:
                final = finals[layer.title]
                while not _give_name(staged[layer.title], final, force=force):
                    if _is_there(final, layer, progress, force=False):  # another pull was quicker
                        reused.add(layer.title)
                        break
            sync_folder(folder)
    return Pulled(
        resolved.reference,
        tuple(finals.values()),
        tuple(final for title, final in finals.items() if title in reused),
        _bases_elsewhere(layers),
    )


def _bases_elsewhere(layers: Iterable[Layer]) -> tuple[str, ...]:
    here = {layer.dcz_digest for layer in layers}
    named = (base for layer in layers for base in layer.bases)
    return tuple(dict.fromkeys(base for base in named if base not in here))


def _is_there(final: Path, layer: Layer, progress: Progress | None, *, force: bool) -> bool:
    """Whether a file is in the destination and right. Raises UsageError if another is in the way."""
    with os_errors("cannot read", final):
        try:
            info = final.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(info.st_mode):
            raise UsageError(f"{str(final)!r} is a folder, where a file is to be") from IsADirectoryError(
                errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(final)
            )
        if stat.S_ISREG(info.st_mode) and info.st_size == layer.size:
            with open_regular(final) as file:
                encoded, _ = hash_stream(file, steps(progress, f"compare {layer.title}", layer.size))
            if f"sha256:{encoded}" == layer.digest:
                return True
    if not force:
        raise UsageError(
            f"{str(final)!r} exists and is different from what was pushed",
            hint="choose another folder, or replace it with --force (in Python force=True)",
        ) from FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(final))
    return False


def _staged_names(layers: Iterable[Layer]) -> dict[str, str]:
    """What the file of each title is called until it is right: by its content, by which a later pull finds it."""
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    for layer in layers:
        names[layer.title] = f"{layer.digest.removeprefix('sha256:')}.{seen[layer.digest]}"
        seen[layer.digest] += 1
    return names


def _fetch(store: Store, layer: Layer, path: Path, progress: Progress | None) -> None:
    with store.open_blob(layer.digest, layer.size) as blob:
        encoded = layer.digest.removeprefix("sha256:")
        result = finish_copy(blob, path, encoded, steps(progress, f"copy {layer.title}", layer.size))
    check_content(layer, *result)


def _give_name(staged: Path, final: Path, *, force: bool) -> bool:
    """Let a file appear under its name; False if there is one of that name already, which stays unless ``force``."""
    if force:
        os.replace(staged, final)
        return True
    try:
        os.link(staged, final)  # the other name goes with the staging folder
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without links has nothing better; whoever comes in between loses a file.
        if os.path.lexists(final):
            return False
        os.rename(staged, final)
    return True

"""What one asks a registry: what a reference stands for, where a file lies, whether it is whole, what there is.

The client trusts no store: what it says of an artifact has been compared with the artifact's digest. Only the caller
knows a terminal: ``progress`` is called with what is being done ("check model.dcz"), the bytes done and those in total.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias, cast

from dcz.errors import InvalidReference, NotInRegistry, RegistryError, UsageError
from dcz.format import DEFAULT_LIMITS, BaseLike, BaseReference, Limits, Reader, VerifyReport
from dcz.registry.artifact import ArtifactManifest, Layer, decode_artifact
from dcz.registry.checks import about, check_content, check_identity, dcz_errors, verify_layer
from dcz.registry.disk import hash_stream, os_errors
from dcz.registry.hub.settings import Hub
from dcz.registry.index import LATEST, Change, Tag, check_alias, find_tag
from dcz.registry.outcomes import Committed
from dcz.registry.progress import Progress, steps
from dcz.registry.refs import (
    HubReference,
    PathReference,
    Reference,
    RegistryReference,
    check_name,
    parse_reference,
)
from dcz.registry.stores.base import Garbage, Store
from dcz.registry.stores.local import LocalStore

__all__ = [
    "Listed",
    "Located",
    "RegistryLike",
    "Resolved",
    "Tagged",
    "Verified",
    "collect_garbage",
    "default_registry",
    "fetch_model",
    "find_base",
    "history",
    "hub_of",
    "list_artifacts",
    "locate",
    "locate_file",
    "open_reference",
    "open_registry",
    "registry_reference",
    "resolve",
    "resolve_in",
    "tag",
    "verify",
    "version_with",
]

RegistryLike: TypeAlias = "Store | Hub | str | os.PathLike[str] | None"

GRACE: Final = 3600.0  # seconds that a blob without a reference is left alone: another tool may be writing


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for. ``reference`` is pinned; ``created`` is an RFC 3339 time, if known."""

    reference: RegistryReference
    manifest: ArtifactManifest
    created: str | None

    @property
    def digest(self) -> str:
        """The digest that ``reference`` is pinned to."""
        assert self.reference.digest is not None
        return self.reference.digest


@dataclass(frozen=True, slots=True)
class Located:
    """A .dcz file in a registry: the pinned reference, where the file lies, and what the artifact's manifest says of it."""

    reference: RegistryReference
    path: Path
    layer: Layer

    @property
    def digest(self) -> str:
        """The identity that the file must have, ``blake3:`` and 64 hexadecimal digits."""
        assert self.layer.dcz_digest is not None
        return self.layer.dcz_digest

    def open(
        self,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int | None = None,
        base: BaseLike | Sequence[BaseLike] | None = None,
    ) -> Reader:
        """A reader of the file, whose identity has been compared. Raises RegistryCorrupt, RegistryError."""
        with about(self.reference), dcz_errors(self.layer), os_errors("cannot read", self.path):
            reader = Reader(self.path, limits=limits, threads=threads, base=base)
            try:
                check_identity(self.layer, reader.digest)
            except BaseException:
                reader.close()
                raise
            return reader


@dataclass(frozen=True, slots=True)
class Tagged:
    """``reference`` is the alias with its digest, or the commit that got a tag; ``previous`` the digest or commit before,
    None if it is new."""

    reference: RegistryReference | HubReference
    previous: str | None

    @property
    def moved(self) -> bool:
        reference = self.reference
        return self.previous != (
            reference.revision if isinstance(reference, HubReference) else reference.digest
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """One version; on the Hub a commit, whose tags and branches are ``aliases``. ``files`` and ``size`` (bytes) are empty and
    None where ``problem`` says why they are not known."""

    reference: RegistryReference | HubReference
    aliases: tuple[str, ...]
    created: str | None
    files: tuple[str, ...]
    size: int | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """``reports`` has one report for each .dcz file, by name."""

    reference: RegistryReference | HubReference
    reports: dict[str, VerifyReport]


# -- where


def default_registry() -> Path:
    """The folder of the default registry.

    ``$DCZ_REGISTRY``, else ``$XDG_DATA_HOME/dcz/registry``, else ``~/.local/share/dcz/registry``. As the XDG Base
    Directory Specification asks, a relative ``$XDG_DATA_HOME`` is ignored. Raises RegistryError if there is no home.
    """
    try:
        if given := os.environ.get("DCZ_REGISTRY"):
            return Path(given).expanduser()
        data = Path(os.environ.get("XDG_DATA_HOME") or ".")
        return (data if data.is_absolute() else Path.home() / ".local" / "share") / "dcz" / "registry"
    except RuntimeError as exc:
        raise RegistryError(f"no place for a registry: {exc}", hint="set DCZ_REGISTRY to a folder") from exc


def open_registry(registry: RegistryLike = None) -> Store:
    """A store as it is, a folder as a LocalStore, None as the default registry. Makes nothing on the disk.

    A Hub only says what ``hf://`` means; for names, it stands for the default registry.
    """
    if registry is None or isinstance(registry, Hub):
        return LocalStore(default_registry())
    return LocalStore(registry) if isinstance(registry, str | os.PathLike) else registry


def hub_of(registry: RegistryLike) -> Hub:
    """The Hub that ``hf://`` means."""
    return registry if isinstance(registry, Hub) else Hub()


def registry_reference(ref: str | Reference) -> RegistryReference:
    """``ref``, if it names something in a registry. Raises InvalidReference, RegistryError for other kinds."""
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(reference, RegistryReference):
        return reference
    if isinstance(reference, PathReference):
        raise InvalidReference(
            f"{reference} is a path, not the name of an artifact", hint="name[:version][@digest]"
        )
    raise RegistryError(f"{reference}: this version of dcz cannot do that with a registry elsewhere")


# -- finding


def _no_such_name(store: Store, name: str) -> NotInRegistry:
    names = sorted({tag.name for tag in store.tags()})
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else None
    return NotInRegistry(f"{name!r} is not in the registry {store.location}", hint=hint)


def _find(store: Store, reference: RegistryReference) -> Tag:
    """The version that a reference stands for, or the tag itself where no version has its digest."""
    name, digest = reference.name, reference.digest
    tags = store.tags(name)
    if not tags:
        raise _no_such_name(store, name)
    found = None
    if reference.tag is not None or digest is None:
        found = find_tag(tags, reference.tag or LATEST)
        if found is None:
            some = ", ".join(tag.tag for tag in tags[-8:])
            raise NotInRegistry(
                f"{name!r} has no {reference.tag or LATEST!r} in the registry {store.location}",
                hint=f"it has {some}",
            )
    if digest is not None:
        if found is not None and found.kind == "version" and found.digest != digest:
            raise NotInRegistry(f"{name}:{found.tag} is {found.digest}, not {digest}")
        # An alias beside a digest says where it once pointed to; it may have moved on, the digest stays.
        if found is None or found.digest != digest:
            found = next((tag for tag in tags if tag.digest == digest), None)
    if found is None:
        raise NotInRegistry(f"{name!r} has no {digest} in the registry {store.location}")
    if found.kind == "alias":
        versions = [tag for tag in tags if tag.kind == "version" and tag.digest == found.digest]
        return versions[-1] if versions else found
    return found


def resolve_in(store: Store, reference: RegistryReference) -> Resolved:
    """``resolve`` in an opened store."""
    with about(reference):
        found = _find(store, reference)
        data = store.read_manifest(found.digest, found.size)
        manifest = decode_artifact(data, what=f"the manifest {found.digest}")
    pinned = RegistryReference(found.name, found.tag, found.digest)
    return Resolved(pinned, manifest, found.created)


def resolve(ref: str | Reference, *, registry: RegistryLike = None) -> Resolved:
    """What ``ref`` stands for: the version, its digest and its manifest, which has been compared with the digest.

    Without a tag, ``latest``. A digest beside a tag pins the content: an alias may have moved on since, but a version
    must have that digest. Raises InvalidReference, NotInRegistry, RegistryCorrupt, RegistryError.
    """
    return resolve_in(open_registry(registry), registry_reference(ref))


def locate(ref: str | Reference, *, file: str | None = None, registry: RegistryLike = None) -> Path:
    """The .dcz file of an artifact where it lies in the registry, to be read in place. It is read-only.

    ``file`` names one of several. Checked here: the manifest against its digest, the file's size, and the file's own
    manifest against the identity that the artifact's manifest names. Since that one holds the digests of all chunks,
    and a reader checks each chunk that it touches, what is read later is what was pushed. The other bytes are checked
    by ``verify`` and by ``pull``. A file on the Hub is fetched into the cache, verified, unless it is there.

    Raises what ``resolve`` does, and UsageError if there are several .dcz files, or none called ``file``.
    """
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(reference, HubReference):
        from dcz.registry.hub import pulling

        return pulling.fetch(reference, file, hub_of(registry))[1]
    located = locate_file(reference, file=file, registry=registry)
    located.open(threads=1).close()
    return located.path


def locate_file(ref: str | Reference, *, file: str | None = None, registry: RegistryLike = None) -> Located:
    """As ``locate``, for those who open the file: its own manifest is not looked at before ``Located.open``, or not at
    all, if they compare the identity of their reader with ``Located.digest`` themselves.
    """
    store = open_registry(registry)
    resolved = resolve_in(store, registry_reference(ref))
    layers = [layer for layer in resolved.manifest.layers if layer.is_dcz and file in (None, layer.title)]
    if len(layers) != 1:
        names = ", ".join(layer.title for layer in resolved.manifest.layers if layer.is_dcz)
        what = f"{len(layers)} .dcz files" if layers else f"no .dcz file {file!r}"
        raise UsageError(f"{resolved.reference} has {what}", hint=f"name one of {names}, or pull them")
    layer = layers[0]
    with about(resolved.reference):
        path = _blob_path(store, layer)
    return Located(resolved.reference, path, layer)


def open_reference(
    ref: str | Reference,
    *,
    file: str | None = None,
    registry: RegistryLike = None,
    whole: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BaseLike | Sequence[BaseLike] | None = None,
) -> Reader:
    """A reader of a .dcz file of an artifact, where it lies; ``file`` names one of several.

    What is on the Hub is fetched into the cache if the ``whole`` of it is to be read, else by ranges. Raises what ``locate``
    does.
    """
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(reference, HubReference):
        from dcz.registry.hub import pulling

        return pulling.open_file(
            reference, file, hub_of(registry), whole=whole, limits=limits, threads=threads, base=base
        )
    located = locate_file(reference, file=file, registry=registry)
    return located.open(limits=limits, threads=threads, base=base)


def fetch_model(
    ref: str | Reference,
    *,
    nested: bool = False,
    registry: RegistryLike = None,
    progress: Progress | None = None,
) -> Path | None:
    """The folder of a Hub repository's weights and what goes with them, fetched and compared; if ``nested``, with the weights
    in its sub-folders; None if all that it has are .dcz files. What the revision stands for is resolved first, and stands in the folder's name.

    Raises InvalidReference for what is not on the Hub, RegistryError, SourceError if it has no weights.
    """
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if not isinstance(reference, HubReference):
        raise InvalidReference(f"{reference} is not on the Hub", hint="hf://org/name[@revision]")
    from dcz.registry.hub import pulling

    return pulling.fetch_model(reference, hub_of(registry), progress, nested=nested)


def fetch_shards(
    ref: HubReference, *, registry: RegistryLike = None, progress: Progress | None = None
) -> Path | None:
    """The index of the .dcz files of a Hub repository, all of them fetched into the cache and verified; None if there is none,
    or if one file is the model. Raises RegistryError."""
    from dcz.registry.hub import pulling

    return pulling.fetch_shards(ref, hub_of(registry), progress)


def read_file(ref: HubReference, path: str, *, registry: RegistryLike = None) -> tuple[bytes, str] | None:
    """A small file of a Hub repository, and its digest, which has been compared; None if the repository, or the branch, has
    none of that path. Raises RegistryError."""
    from dcz.registry.hub import pulling

    return pulling.read_file(ref, path, hub_of(registry))


def _blob_path(store: Store, layer: Layer) -> Path:
    path = store.blob_path(layer.digest, layer.size)
    if path is None:
        raise RegistryError(f"{store.location} is not on this machine", hint="pull it")
    return path


# -- by identity


def find_base(
    reference: BaseReference, *, registry: RegistryLike = None, limits: Limits = DEFAULT_LIMITS
) -> Reader | None:
    """The .dcz file of that identity in a registry, opened: of the version that the hint names, else of any; or None.

    Damaged versions are passed over. Raises RegistryError if the registry cannot be read.
    """
    store = open_registry(registry)
    for found, layer in _with_identity(store, reference.digest, reference.hint):
        path = store.blob_path(layer.digest, layer.size)
        if path is not None:
            return Located(found, path, layer).open(limits=limits, threads=1)
    return None


def version_with(digest: str, *, registry: RegistryLike = None) -> RegistryReference | None:
    """The first version in a registry that holds the .dcz file of that identity. Raises RegistryError."""
    return next((found for found, _ in _with_identity(open_registry(registry), digest, None)), None)


def _with_identity(store: Store, digest: str, hint: str | None) -> Iterator[tuple[RegistryReference, Layer]]:
    for reference, manifest in chain(_hinted(store, hint), _versions(store)):
        for layer in manifest.layers:
            if layer.dcz_digest == digest:
                yield reference, layer


def _hinted(store: Store, hint: str | None) -> list[tuple[RegistryReference, ArtifactManifest]]:
    if hint is None:
        return []
    try:
        reference = parse_reference(hint)
        if not isinstance(reference, RegistryReference):
            return []
        resolved = resolve_in(store, reference)
    except (InvalidReference, RegistryError):
        return []
    return [(resolved.reference, resolved.manifest)]


def _versions(store: Store) -> Iterator[tuple[RegistryReference, ArtifactManifest]]:
    for tag in store.tags():
        if tag.kind != "version":
            continue
        try:
            manifest = decode_artifact(store.read_manifest(tag.digest, tag.size))
        except RegistryError:
            continue
        yield RegistryReference(tag.name, tag.tag, tag.digest), manifest


# -- the rest


def verify(
    ref: str | Reference,
    *,
    deep: bool = False,
    registry: RegistryLike = None,
    base: BaseLike | Sequence[BaseLike] | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Check an artifact where it lies: the manifest, every byte of every file, and every .dcz, ``deep`` if asked for.

    ``base``: as for dcz.format.Reader; only ``deep`` needs it, and what is not given is looked for here. Raises what ``resolve`` does, RegistryCorrupt naming blob
    and reference, BaseNotFound and WrongBase.
    """
    several = cast(
        "Sequence[BaseLike]", base if isinstance(base, list | tuple) else [] if base is None else [base]
    )
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(reference, HubReference):
        from dcz.registry.hub import pulling

        pinned, found = pulling.verify(reference, hub_of(registry), progress, deep=deep, base=several)
        return Verified(pinned, found)
    store = open_registry(registry)
    resolved = resolve_in(store, registry_reference(reference))

    def here(wanted: BaseReference) -> Reader | None:
        return find_base(wanted, registry=store)

    bases = [*several, here]
    reports: dict[str, VerifyReport] = {}
    with about(resolved.reference):
        for layer in resolved.manifest.layers:
            with (
                os_errors(f"cannot read {layer.title!r} in", store.location),
                store.open_blob(layer.digest, layer.size) as blob,
            ):
                check_content(layer, *hash_stream(blob, steps(progress, f"check {layer.title}", layer.size)))
            if layer.is_dcz:
                reports[layer.title] = verify_layer(
                    layer, _blob_path(store, layer), progress, deep=deep, base=bases
                )
    return Verified(resolved.reference, reports)


def tag(ref: str | Reference, alias: str, *, registry: RegistryLike = None) -> Tagged:
    """Point ``alias`` to the version that ``ref`` stands for, and record the move. New aliases are made so, too.

    On the Hub, ``alias`` is a new tag, which stays where it is.

    Raises what ``resolve`` does, VersionExists if ``alias`` is a version of that name, InvalidReference if it cannot be
    an alias, RegistryError if the registry cannot be written.
    """
    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if isinstance(reference, HubReference):
        from dcz.registry.hub import refs

        return Tagged(*refs.tag(reference, alias, hub_of(registry)))
    store = open_registry(registry)
    resolved = resolve_in(store, registry_reference(reference))
    change = store.move_alias(resolved.reference.name, check_alias(alias), resolved.digest)
    moved = replace(resolved.reference, tag=alias)
    return Tagged(moved, resolved.digest if change is None else change.previous)


def _list_commits(name: str, registry: RegistryLike) -> list[Listed]:
    from dcz.registry.hub import refs

    reference = parse_reference(name)
    assert isinstance(reference, HubReference)
    listed: list[Listed] = []
    for snapshot, names in refs.named_commits(reference, hub_of(registry)):
        files = snapshot.wanted()
        size = sum(file.size for file in files)
        listed.append(Listed(snapshot.reference, names, None, tuple(file.path for file in files), size))
    return listed


def list_artifacts(name: str | None = None, *, registry: RegistryLike = None) -> list[Listed]:
    """All versions in a registry, or those of one name, by name and then in the order in which they were made.

    A version whose manifest cannot be read is listed with its problem. Of a repository on the Hub, the commits are listed
    that have tags or branches. Raises NotInRegistry if there is no such name,
    InvalidReference if there cannot be, RegistryError, RegistryCorrupt if the index itself cannot be read.
    """
    if name is not None and name.startswith("hf://"):
        return _list_commits(name, registry)
    store = open_registry(registry)
    tags = store.tags(name if name is None else check_name(name))
    if name is not None and not tags:
        raise _no_such_name(store, name)
    aliases: dict[tuple[str, str], list[str]] = {}
    for alias in tags:
        if alias.kind == "alias":
            aliases.setdefault((alias.name, alias.digest), []).append(alias.tag)
    listed: list[Listed] = []
    for version in sorted((tag for tag in tags if tag.kind == "version"), key=lambda tag: tag.name):
        item = Listed(
            RegistryReference(version.name, version.tag, version.digest),
            tuple(sorted(aliases.get((version.name, version.digest), ()))),
            version.created,
            (),
            None,
        )
        try:
            manifest = decode_artifact(store.read_manifest(version.digest, version.size))
        except RegistryError as exc:
            listed.append(replace(item, problem=exc.message))
        else:
            files = tuple(layer.title for layer in manifest.layers)
            listed.append(replace(item, files=files, size=manifest.size))
    return listed


def history(name: str | None = None, *, registry: RegistryLike = None) -> list[Change]:
    """Every version that was published and every alias that moved, oldest first.

    Raises NotInRegistry if there is no such name; RegistryError; RegistryCorrupt if some of it was lost and nothing has
    changed since.
    """
    store = open_registry(registry)
    changes = store.history(name)
    if name is not None and not changes and not store.tags(check_name(name)):
        raise _no_such_name(store, name)
    return changes


def commits(ref: str | Reference, *, registry: RegistryLike = None) -> list[Committed]:
    """The commits of a repository on the Hub that led to a branch, a tag or a commit, oldest first.

    Raises InvalidReference for what is not on the Hub, NotInRegistry, AccessDenied, RegistryError.
    """
    from dcz.registry.hub import refs

    reference = parse_reference(ref) if isinstance(ref, str) else ref
    if not isinstance(reference, HubReference):
        raise InvalidReference(f"{reference} is not on the Hub, and has no commits", hint="hf://org/name")
    return refs.history(reference, hub_of(registry))


def collect_garbage(*, registry: RegistryLike = None, grace: float = GRACE) -> Garbage:
    """Remove what dead pushes left behind. Versions and aliases stay.

    Blobs that nothing refers to are left alone for ``grace`` seconds, since tools other than dcz write blobs first and
    take no lock. Raises RegistryError; RegistryCorrupt, before anything is removed, if it cannot tell what is needed.
    """
    return open_registry(registry).collect_garbage(grace=grace)

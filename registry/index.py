"""The index of a registry: which name and tag is which artifact, and the rules by which that may change. Pure.

The index is an OCI image index, the file ``index.json`` of an OCI image layout. Each tag is one descriptor in it:

    {"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/vnd.dcz.model.v1",
     "digest": "sha256:...", "size": 512,
     "annotations": {"org.opencontainers.image.ref.name": "minilm:1.0",
                     "org.opencontainers.image.created":  "2026-01-31T12:00:00Z",
                     "vnd.dcz.tag":                       "version"}}

1. A tag is a *version* or an *alias*, as ``vnd.dcz.tag`` says. A descriptor without that annotation was put there by
   another tool and counts as a version, since that is what may never change.
2. A version is written once. An alias moves.
3. ``latest`` is always an alias; ``v1``, ``v2``, ... are always versions.
4. A push without a version gets the next ``v<number>``, or the version that has this content already, and moves
   ``latest`` to it. A push of a new version moves ``latest`` too.
5. Descriptors and properties that dcz does not know are kept as they are.

Every change is a ``Change``: what the history of the registry records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, ValidationError

from dcz.errors import InvalidReference, NotInRegistry, RegistryCorrupt, RegistryError, VersionExists
from dcz.registry.artifact import ARTIFACT_TYPE, MANIFEST_TYPE
from dcz.registry.canonical import describe, read_json, to_json
from dcz.registry.models import Items, Model, Size, at_most
from dcz.registry.refs import MAX_TAG, RegistryReference

__all__ = [
    "Change",
    "Entry",
    "Index",
    "Publication",
    "Tag",
    "TagKind",
    "check_alias",
    "check_movable",
    "check_version",
    "decode_index",
    "find_tag",
    "publish",
    "set_alias",
    "version_exists",
]

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"
CREATED: Final = "org.opencontainers.image.created"
TAG_KIND: Final = "vnd.dcz.tag"
HISTORY_SIZE: Final = "vnd.dcz.history.size"

LATEST: Final = "latest"
MAX_INDEX_BYTES: Final = 16 << 20
MAX_ANNOTATIONS: Final = 1024  # of a descriptor or of the index; other tools keep their own there

_NUMBERED: Final = re.compile(r"v([0-9]+)")
_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)

Annotations = Annotated[dict[str, str], at_most(MAX_ANNOTATIONS)]
TagKind: TypeAlias = Literal["version", "alias"]


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of one name. ``created`` is an RFC 3339 time, if known; ``size`` the bytes of the manifest."""

    name: str
    tag: str
    kind: TagKind
    digest: str
    size: int
    created: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """A version that was published or an alias that moved: when, by whom, from where to where.

    ``time`` is RFC 3339 in UTC; ``previous`` is None where the tag is new. The kind ``gap`` says that changes before it
    were lost, of whatever name; it has no name, tag or digest, and time and user are those of the change that met it.
    """

    time: str
    user: str
    name: str
    tag: str
    kind: Literal["version", "alias", "gap"]
    previous: str | None
    digest: str


class _Model(Model):
    # Other tools may keep more in the same index, and get it back as it was.
    model_config = ConfigDict(extra="allow")


class Entry(_Model):
    """A descriptor of the index."""

    media_type: str
    digest: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\z", max_length=512)]
    size: Size
    annotations: Annotations | None = None

    @cached_property
    def tag(self) -> Tag | None:
        """The tag that the descriptor stands for; None if it is none that dcz could name."""
        annotations = self.annotations or {}
        name, colon, tag = annotations.get(REF_NAME, "").partition(":")
        if not colon or self.media_type != MANIFEST_TYPE:
            return None
        try:
            RegistryReference(name, tag, self.digest)
        except InvalidReference:
            return None
        kind: TagKind = "alias" if annotations.get(TAG_KIND) == "alias" else "version"
        created = annotations.get(CREATED)
        if created is not None and not _RFC3339.fullmatch(created):
            created = None
        return Tag(name, tag, kind, self.digest, self.size, created)


class Index(_Model):
    """The content of index.json."""

    schema_version: Annotated[int, Field(ge=2, le=2)] = 2
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = INDEX_TYPE
    manifests: Items[Entry] = ()
    annotations: Annotations | None = None

    def tags(self, name: str | None = None) -> list[Tag]:
        """All tags, or those of one name, in the order in which they were made."""
        tags = (entry.tag for entry in self.manifests)
        return [tag for tag in tags if tag is not None and (name is None or tag.name == name)]

    @property
    def history_size(self) -> int | None:
        """Bytes of the history that belong to this state of the index; None if another tool made the index."""
        text = (self.annotations or {}).get(HISTORY_SIZE, "")
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None

    def with_history_size(self, size: int) -> Index:
        return self.model_copy(update={"annotations": {**(self.annotations or {}), HISTORY_SIZE: str(size)}})

    def to_bytes(self) -> bytes:
        """The bytes of index.json. Raises RegistryCorrupt if what another tool keeps there cannot be written back."""
        try:
            data = to_json(self.model_dump(by_alias=True, exclude_none=True))
        except (ValueError, RecursionError) as exc:
            raise RegistryCorrupt(f"the index cannot be written back: {exc}") from exc
        if len(data) > MAX_INDEX_BYTES:
            raise RegistryError(
                f"the index would be larger than {MAX_INDEX_BYTES} bytes", hint="start another registry"
            )
        return data


def decode_index(data: bytes, *, what: str) -> Index:
    """The model of a stored index. ``what`` names it in messages. Raises RegistryCorrupt."""
    tree = read_json(data, limit=MAX_INDEX_BYTES, what=what)
    for required in ("schemaVersion", "manifests"):
        if required not in tree:
            raise RegistryCorrupt(f"{what} has no {required}")
    try:
        return Index.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as exc:
        raise RegistryCorrupt(f"{what} breaks a rule: {describe(exc)}") from exc


def find_tag(tags: Iterable[Tag], tag: str) -> Tag | None:
    """``tag`` among the tags of one name. Raises RegistryCorrupt if it is there twice with different content."""
    found = [item for item in tags if item.tag == tag]
    if len({(item.digest, item.kind) for item in found}) > 1:
        raise RegistryCorrupt(
            f"the index holds {found[0].name}:{tag} {len(found)} times, with different content"
        )
    return found[0] if found else None


def check_alias(alias: str) -> str:
    """``alias`` itself, if it may be an alias. Raises InvalidReference."""
    RegistryReference("x", alias)
    if _NUMBERED.fullmatch(alias):
        raise InvalidReference(
            f"{alias!r} cannot be an alias", hint="v1, v2, ... are versions that dcz numbers itself"
        )
    return alias


def _entry(name: str, tag: str, kind: TagKind, digest: str, size: int, time: str) -> Entry:
    annotations = {REF_NAME: f"{name}:{tag}", CREATED: time, TAG_KIND: kind}
    return Entry.model_validate(
        {
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "digest": digest,
            "size": size,
            "annotations": annotations,
        }
    )


@dataclass(frozen=True, slots=True)
class Publication:
    """The outcome of ``publish``: the next index, the version, and whether it is new."""

    index: Index
    version: Tag
    created: bool
    changes: tuple[Change, ...]


def publish(
    index: Index,
    name: str,
    version: str | None,
    *,
    digest: str,
    size: int,
    aliases: Iterable[str] = (),
    time: str,
    user: str,
) -> Publication:
    """Add the manifest ``digest`` of ``size`` bytes as a version of ``name``, and point ``aliases`` to it (rule 4).

    ``version`` None or "latest" asks for a number. Nothing changes where all is as asked for already.
    Raises VersionExists if the version has other content, RegistryError if a version is named as an alias or the other
    way round, InvalidReference for names that break a grammar.
    """
    aliases = [check_alias(alias) for alias in aliases]
    if version == LATEST:
        version = None
    moves_latest = version is None
    if version is None:
        version = _same_content(index, name, digest) or _next_number(index, name)
    if version in aliases:
        raise RegistryError(f"{version!r} cannot be both the version and an alias of it")
    known = find_tag(index.tags(name), version)
    if known is None:
        entry = _entry(name, version, "version", digest, size, time)
        index = index.model_copy(update={"manifests": (*index.manifests, entry)})
        changes = [Change(time, user, name, version, "version", None, digest)]
        moves_latest = True
    else:
        _check_same(known, digest)
        changes = []
    for alias in [LATEST, *aliases] if moves_latest else aliases:
        index, change = set_alias(index, name, alias, digest=digest, time=time, user=user)
        changes += [change] if change is not None else []
    published = find_tag(index.tags(name), version)
    if published is None:
        raise RegistryCorrupt(f"{name}:{version} cannot be written as a tag")
    return Publication(index, published, known is None, tuple(changes))


def _check_same(known: Tag, digest: str) -> None:
    check_version(known)
    if known.digest != digest:
        raise version_exists(known)


def check_version(known: Tag) -> None:
    """Raise RegistryError unless ``known``, which is to be pushed to, is a version."""
    if known.kind != "version":
        raise RegistryError(
            f"{known.name}:{known.tag} is an alias, not a version",
            hint="push a version, or none to have one numbered, and give the alias beside it",
        )


def check_movable(known: Tag) -> None:
    """Raise VersionExists unless ``known``, which is to move, is an alias."""
    if known.kind != "alias":
        raise VersionExists(
            f"{known.name}:{known.tag} is a version and cannot move", hint="choose another name for the alias"
        )


def version_exists(known: Tag) -> VersionExists:
    """The error for other content under the version ``known``."""
    return VersionExists(
        f"{known.name}:{known.tag} exists with other content ({known.digest}) and versions are immutable",
        hint="push a new version",
    )


def _same_content(index: Index, name: str, digest: str) -> str | None:
    same = [tag.tag for tag in index.tags(name) if tag.kind == "version" and tag.digest == digest]
    return same[-1] if same else None


def _next_number(index: Index, name: str) -> str:
    numbers = [int(match[1]) for tag in index.tags(name) if (match := _NUMBERED.fullmatch(tag.tag))]
    version = f"v{max(numbers, default=0) + 1}"
    if len(version) > MAX_TAG:
        raise RegistryError(f"{name} has the last number already, v{max(numbers)}", hint="name the version")
    return version


def set_alias(
    index: Index, name: str, alias: str, *, digest: str, time: str, user: str
) -> tuple[Index, Change | None]:
    """Point ``name:alias`` to the manifest ``digest``, which must be a version's. No change if it is there already.

    Raises NotInRegistry, VersionExists if ``alias`` is a version, InvalidReference if it cannot be an alias.
    """
    check_alias(alias)
    tags = index.tags(name)
    version = next((tag for tag in tags if tag.kind == "version" and tag.digest == digest), None)
    if version is None:
        raise NotInRegistry(f"no version of {name} is {digest}")
    known = find_tag(tags, alias)
    if known is not None:
        check_movable(known)
    if known is not None and known.digest == digest:
        return index, None
    others = tuple(
        entry
        for entry in index.manifests
        if (tag := entry.tag) is None or (tag.name, tag.tag) != (name, alias)
    )
    moved = index.model_copy(
        update={"manifests": (*others, _entry(name, alias, "alias", digest, version.size, time))}
    )
    return moved, Change(
        time, user, name, alias, "alias", known.digest if known is not None else None, digest
    )

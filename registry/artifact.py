"""The artifact: one or more .dcz files and loose files, described by an OCI image manifest.

    {"schemaVersion": 2,
     "mediaType":     "application/vnd.oci.image.manifest.v1+json",
     "artifactType":  "application/vnd.dcz.model.v1",
     "config":        the empty descriptor,
     "layers":        one descriptor a file: media type, digest, size, and as annotations the file's name
                      (org.opencontainers.image.title) and, for a .dcz, its identity (vnd.dcz.digest) and those of its
                      bases, if it has some, with commas between them (vnd.dcz.bases)}

Manifest and annotations follow the OCI Image Specification 1.1 ("Guidelines for Artifact Usage"). There are no times
and no machine in it: the same files under the same names give the same bytes, and the SHA-256 of those bytes is the
artifact's digest. Reading is strict in what dcz needs and deaf to what it does not know, as OCI asks: unknown
properties and annotations are ignored, and the identity always is that of the bytes as they were stored.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from dcz.errors import RegistryCorrupt, RegistryError
from dcz.format.layout import MAX_BASES
from dcz.format.manifest import check_asset_paths
from dcz.registry.canonical import describe, read_json, sha256_digest, to_json
from dcz.registry.models import Items, Model, Size, at_most

__all__ = [
    "ARTIFACT_TYPE",
    "DCZ_FILE_TYPE",
    "LOOSE_FILE_TYPE",
    "MANIFEST_TYPE",
    "ArtifactManifest",
    "Descriptor",
    "Layer",
    "check_file_names",
    "decode_artifact",
]

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.dcz.model.v1"
DCZ_FILE_TYPE: Final = "application/vnd.dcz.file.v1"
LOOSE_FILE_TYPE: Final = "application/octet-stream"

TITLE: Final = "org.opencontainers.image.title"
DCZ_DIGEST: Final = "vnd.dcz.digest"
DCZ_BASES: Final = "vnd.dcz.bases"

EMPTY_JSON: Final = b"{}"

# The OCI Distribution Specification asks registries to take manifests of 4 MiB; larger ones may not travel.
MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_FILES: Final = 4096
MAX_ANNOTATIONS: Final = 64
MAX_TITLE_BYTES: Final = 255  # the longest file name of the usual file systems

MediaType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+/-]{0,254}\z")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^sha256:[a-f0-9]{64}\z")]
Annotations = Annotated[
    dict[Annotated[str, Field(max_length=256)], Annotated[str, Field(max_length=4096)]],
    at_most(MAX_ANNOTATIONS),
]

_BLAKE3: Final = re.compile(r"blake3:[a-f0-9]{64}")
_RESERVED: Final = re.compile(
    r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE | re.DOTALL
)
OWN_PREFIX: Final = ".dcz-"  # of the temporary folders that pull makes beside the files


class Descriptor(Model):
    """A pointer to a blob: its media type, its digest and its size in bytes."""

    media_type: MediaType
    digest: Sha256
    size: Size


class Layer(Descriptor):
    """One file of an artifact."""

    annotations: Annotations

    @property
    def title(self) -> str:
        """The file's name."""
        return self.annotations[TITLE]

    @property
    def is_dcz(self) -> bool:
        return self.media_type == DCZ_FILE_TYPE

    @property
    def dcz_digest(self) -> str | None:
        """The identity of a .dcz file, ``blake3:<64 hex>``; None for a loose file."""
        return self.annotations.get(DCZ_DIGEST) if self.is_dcz else None

    @property
    def bases(self) -> tuple[str, ...]:
        """The identities of the files without which a .dcz file cannot be decoded."""
        named = self.annotations.get(DCZ_BASES) if self.is_dcz else None
        return tuple(named.split(",")) if named is not None else ()

    @model_validator(mode="after")
    def _named(self) -> Self:
        title = self.annotations.get(TITLE)
        if title is None:
            raise ValueError(f"the annotation {TITLE}, the file's name, is missing")
        if self.is_dcz != title.lower().endswith(".dcz"):
            raise ValueError(f"the file {title[:80]!r} has the media type {self.media_type}")
        if self.is_dcz and not _BLAKE3.fullmatch(self.annotations.get(DCZ_DIGEST, "")):
            raise ValueError(
                f"the annotation {DCZ_DIGEST} of {title[:80]!r} is not blake3: and 64 hexadecimal digits"
            )
        if len(self.bases) > MAX_BASES or not all(_BLAKE3.fullmatch(base) for base in self.bases):
            raise ValueError(f"the annotation {DCZ_BASES} of {title[:80]!r} is no list of identities")
        return self


EMPTY: Final = Descriptor(media_type=EMPTY_TYPE, digest=sha256_digest(EMPTY_JSON), size=len(EMPTY_JSON))


class ArtifactManifest(Model):
    """What an artifact consists of. Files are in ascending order of their names."""

    schema_version: Annotated[int, Field(ge=2, le=2)] = 2
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifact_type: Literal["application/vnd.dcz.model.v1"] = ARTIFACT_TYPE
    config: Descriptor = EMPTY
    layers: Annotated[Items[Layer], Field(min_length=1), at_most(MAX_FILES)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.config.media_type, self.config.digest, self.config.size) != (
            EMPTY_TYPE,
            EMPTY.digest,
            EMPTY.size,
        ):
            raise ValueError("the config is not the empty descriptor")
        check_file_names(layer.title for layer in self.layers)
        if not any(layer.is_dcz for layer in self.layers):
            raise ValueError("no layer is a .dcz file")
        return self

    @classmethod
    def of(cls, layers: Iterable[Layer]) -> Self:
        """The manifest of these files, whatever their order. Raises pydantic's ValidationError."""
        return cls(layers=tuple(sorted(layers, key=lambda layer: layer.title)))

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(layer.size for layer in self.layers)

    def to_bytes(self) -> bytes:
        """The canonical bytes, which are what is stored and signed."""
        return to_json(self.model_dump(by_alias=True))


def check_file_names(names: Iterable[str]) -> None:
    """Raise ValueError unless each name is a plain file name, safe on every system, and all differ in every case.

    Refused: empty names, ``.`` and ``..``, separators of any system, control characters, an end in a dot or a space,
    names that are devices on Windows, more than 255 bytes, the prefix of dcz's own temporary folders, and two names
    that differ only by case or Unicode form.
    """
    names = list(names)
    check_asset_paths([unicodedata.normalize("NFC", name) for name in names])
    for name in names:
        if "/" in name:
            raise ValueError(f"the file name {name[:80]!r} has a folder in it")
        if len(name.encode()) > MAX_TITLE_BYTES:
            raise ValueError(f"the file name {name[:80]!r}... has more than {MAX_TITLE_BYTES} bytes")
        if _RESERVED.fullmatch(name) or name.lower().startswith(OWN_PREFIX):
            raise ValueError(f"the file name {name[:80]!r} is reserved")


def decode_artifact(data: bytes, *, what: str = "the manifest") -> ArtifactManifest:
    """The model of a stored manifest. ``what`` names it in messages.

    Raises RegistryCorrupt if it breaks a rule, RegistryError if it describes something that is not for this dcz.
    """
    tree = read_json(data, limit=MAX_MANIFEST_BYTES, what=what)
    found = tree.get("artifactType")
    if isinstance(found, str) and found != ARTIFACT_TYPE:
        hint = "a newer dcz may read it" if found.startswith("application/vnd.dcz.") else None
        raise RegistryError(f"{what} describes {found[:80]!r}, not {ARTIFACT_TYPE!r}", hint=hint)
    for required in ("schemaVersion", "mediaType", "artifactType", "config"):
        if required not in tree:
            raise RegistryCorrupt(f"{what} has no {required}")
    try:
        return ArtifactManifest.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as exc:
        raise RegistryCorrupt(f"{what} breaks a rule: {describe(exc)}") from exc

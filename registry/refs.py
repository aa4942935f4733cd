"""References to artifacts: one parser, one printer, one error. Pure: no file system, no network.

    name[:tag][@digest]                 an artifact in the default registry
    hf://org/name[@revision]            a repository on the Hugging Face Hub
    oci://host/name[:tag][@digest]      an artifact in an OCI registry
    ./path  ../path  /path  ~/path      a file
    anything.dcz                        a file

The rules are read from top to bottom, and what is a path never depends on which files happen to exist:

1. Text that begins with ``.``, ``/`` or ``~`` is a path.
2. Text with ``://`` has a scheme, ``hf`` or ``oci``.
3. Text that ends with ``.dcz``, in any case, is a path. Neither names nor tags may end so.
4. Everything else is a name; ``models/minilm`` is one, ``./models/minilm`` is a path.

Names, tags, hosts and digests follow the grammars of the OCI Distribution Specification 1.1 ("Pulling manifests") and
of the reference format that it shares with Docker; a tag is a version or an alias, which only the registry can tell.
A reference that exists is valid, and ``parse_reference(str(reference)) == reference``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from dcz.errors import InvalidReference

__all__ = [
    "HubReference",
    "OciReference",
    "PathReference",
    "Reference",
    "RegistryReference",
    "check_digest",
    "check_name",
    "check_tag",
    "parse_reference",
]

MAX_REFERENCE: Final = 4096
MAX_NAME: Final = 255
MAX_TAG: Final = 128

_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_DIGEST: Final = re.compile(r"sha256:[a-f0-9]{64}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]{{1,5}})?")
_HUB_PART: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REVISION: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+/-]{0,253}[A-Za-z0-9_+-])?")

_FORMS: Final = (
    "a reference is name[:tag][@digest], hf://org/name[@revision], oci://host/name[:tag][@digest] or a path"
)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")


def check_name(name: str) -> str:
    """``name`` itself, if it is the name of an artifact; else InvalidReference."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        hint = "a name has lower-case letters and digits, separated by '.', '_', '-' and '/'"
        if _NAME.fullmatch(name.lower()):
            hint = f"names are in lower case: {name.lower()}; for a file write ./{name}"
        raise InvalidReference(f"{_shown(name)} is not the name of an artifact", hint=hint)
    return name


def check_tag(tag: str) -> str:
    """``tag`` itself, if it can be a version or an alias; else InvalidReference."""
    if len(tag) > MAX_TAG or not _TAG.fullmatch(tag):
        raise InvalidReference(
            f"{_shown(tag)} is not a version or an alias",
            hint=f"1 to {MAX_TAG} letters, digits, '_', '.' and '-', of which the first is not '.' or '-'",
        )
    return tag


def check_digest(digest: str) -> str:
    """``digest`` itself, if it is the digest of a manifest; else InvalidReference."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidReference(
            f"{_shown(digest)} is not the digest of an artifact",
            hint="a digest is sha256: and 64 lower-case hexadecimal digits",
        )
    return digest


def _refuse_path(part: str | None, what: str) -> None:
    if part is not None and part.lower().endswith(".dcz"):
        raise InvalidReference(f"the {what} {_shown(part)} ends with .dcz, as only files do")


def _suffix(tag: str | None, digest: str | None) -> str:
    return ("" if tag is None else f":{tag}") + ("" if digest is None else f"@{digest}")


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """``name[:tag][@digest]``: an artifact in a registry that is given apart, or in the default one.

    ``tag`` is a version or an alias; None stands for the alias ``latest``. ``digest`` pins the content.
    """

    name: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        _refuse_path(check_name(self.name), "name")
        if self.tag is not None:
            _refuse_path(check_tag(self.tag), "tag")
        if self.digest is not None:
            check_digest(self.digest)

    def __str__(self) -> str:
        return self.name + _suffix(self.tag, self.digest)


@dataclass(frozen=True, slots=True)
class HubReference:
    """``hf://org/name[@revision]``: a repository on the Hub; a revision is a branch, a tag or a commit."""

    org: str
    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        for part in (self.org, self.name):
            if not _HUB_PART.fullmatch(part) or ".." in part or "--" in part or part.endswith(".git"):
                raise InvalidReference(
                    f"{_shown(part)} is not a part of a repository's name on the Hub",
                    hint="hf://org/name[@revision]",
                )
        if len(self.org) + 1 + len(self.name) > 96:
            raise InvalidReference(
                f"the name {_shown(f'{self.org}/{self.name}')} is longer than 96 characters"
            )
        revision = self.revision
        if revision is not None and (
            not _REVISION.fullmatch(revision)
            or ".." in revision
            or "//" in revision
            or revision.endswith(".lock")
        ):
            raise InvalidReference(
                f"{_shown(revision)} is not a revision", hint="a revision is a branch, a tag or a commit"
            )

    @property
    def tag(self) -> None:
        """None: what a tag of an artifact is, is a revision here."""

    @property
    def digest(self) -> None:
        """None: what pins the content is a revision that is a commit."""

    def __str__(self) -> str:
        return f"hf://{self.org}/{self.name}" + ("" if self.revision is None else f"@{self.revision}")


@dataclass(frozen=True, slots=True)
class OciReference:
    """``oci://host/name[:tag][@digest]``: an artifact in an OCI registry; ``host`` may hold a port."""

    host: str
    name: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if len(self.host) > MAX_NAME or not _HOST.fullmatch(self.host):
            raise InvalidReference(
                f"{_shown(self.host)} is not a host", hint="oci://host[:port]/name[:tag][@digest]"
            )
        check_name(self.name)
        if self.tag is not None:
            check_tag(self.tag)
        if self.digest is not None:
            check_digest(self.digest)

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}{_suffix(self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class PathReference:
    """A file, by a text that says of itself that it is a path."""

    text: str

    def __post_init__(self) -> None:
        if not _is_path(self.text):
            raise InvalidReference(
                f"{_shown(self.text)} does not read as a path", hint=f"write ./{self.text}"
            )
        if "\0" in self.text:
            raise InvalidReference("a path cannot hold the character NUL")

    @property
    def path(self) -> Path:
        """The path, with ``~`` replaced by the home folder. Raises InvalidReference if there is no such home."""
        try:
            return Path(self.text).expanduser()
        except RuntimeError as exc:
            raise InvalidReference(f"{_shown(self.text)}: {exc}") from exc

    def __str__(self) -> str:
        return self.text


Reference: TypeAlias = RegistryReference | HubReference | OciReference | PathReference


def _is_path(text: str) -> bool:
    if text[:1] in (".", "/", "~"):
        return True
    return "://" not in text and text.lower().endswith(".dcz")


def _cut(text: str, separator: str) -> tuple[str, str | None]:
    head, found, tail = text.partition(separator)
    return head, tail if found else None


def _name_tag_digest(text: str) -> tuple[str, str | None, str | None]:
    head, digest = _cut(text, "@")
    name, tag = _cut(head, ":")
    return name, tag, digest


def parse_reference(text: str) -> Reference:
    """The reference that ``text`` says.

    Raises InvalidReference, with a hint, for everything else. Does not look at the file system.
    """
    if not text:
        raise InvalidReference("the reference is empty", hint=_FORMS)
    if len(text) > MAX_REFERENCE:
        raise InvalidReference(f"a reference has at most {MAX_REFERENCE} characters, not {len(text)}")
    if _is_path(text):
        return PathReference(text)
    scheme, found, rest = text.partition("://")
    if not found:
        return RegistryReference(*_name_tag_digest(text))
    if scheme == "hf":
        repository, revision = _cut(rest, "@")
        org, name = _cut(repository, "/")
        if name is None:
            raise InvalidReference(
                f"{_shown(text)} does not name an organisation", hint="hf://org/name[@revision]"
            )
        return HubReference(org, name, revision)
    if scheme == "oci":
        host, tail = _cut(rest, "/")
        if tail is None:
            raise InvalidReference(f"{_shown(text)} names no artifact", hint="oci://host/name[:tag][@digest]")
        return OciReference(host, *_name_tag_digest(tail))
    raise InvalidReference(f"the scheme of {_shown(text)} is not known", hint=_FORMS)

"""Pins: the identities of .dcz files that somebody has written down, and takes nothing else for.

A commit on the Hub, or the digest of an artifact, is what a server says. The identity of a .dcz covers every byte of it, and is
computed here (docs/format.md, section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from dcz.errors import InvalidReference, RegistryCorrupt

__all__ = ["check_pinned", "read_pins"]

_IDENTITY: Final = re.compile(r"blake3:[0-9a-f]{64}")


def read_pins(digests: str | Iterable[str] | None) -> tuple[str, ...]:
    """The identities that were given, if any. Raises InvalidReference for what is none."""
    several: Any = () if digests is None else digests
    given: tuple[Any, ...] = (
        tuple(several) if isinstance(several, Iterable) and not isinstance(several, str) else (several,)
    )
    for digest in given:
        if not isinstance(digest, str) or not _IDENTITY.fullmatch(digest):
            raise InvalidReference(
                f"{str(digest)[:100]!r} is not the identity of a .dcz file",
                hint="it is blake3: and 64 lower-case hexadecimal digits, as `dcz inspect` shows it",
            )
    return given


def check_pinned(pins: tuple[str, ...], found: str, what: str) -> None:
    """Raise RegistryCorrupt unless ``found`` is one of the pins, if there are any."""
    if pins and found not in pins:
        raise RegistryCorrupt(
            f"{what} is {found}, and not what was asked for", hint=f"that would be {' or '.join(pins)}"
        )

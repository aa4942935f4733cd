"""Digests: BLAKE3 with 32 bytes of output. The name says the whole algorithm."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from dcz.errors import DigestMismatch
from dcz.format.dtypes import view_of

if TYPE_CHECKING:
    from dcz.format.dtypes import Buffer

__all__ = ["Hasher", "check_digest", "digest", "digest_bytes", "digest_name"]

_NAME: Final = re.compile(r"blake3:([0-9a-f]{64})")


class Hasher:
    """BLAKE3 of data that comes in pieces."""

    def __init__(self) -> None:
        self._state = blake3()

    def update(self, data: Buffer) -> None:
        self._state.update(view_of(data))

    def digest(self) -> bytes:
        return bytes(self._state.digest())


def digest(data: Buffer) -> bytes:
    """BLAKE3 of ``data``: 32 bytes."""
    return bytes(blake3(view_of(data)).digest())


def digest_name(value: bytes) -> str:
    """The text form: ``blake3:`` and 64 hexadecimal digits."""
    return f"blake3:{value.hex()}"


def digest_bytes(name: str) -> bytes:
    """The digest of which ``name`` is the text form. Raises ValueError."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name[:100]!r} is not blake3: and 64 lower-case hexadecimal digits")
    return bytes.fromhex(found[1])


def check_digest(actual: bytes, expected: bytes, what: str) -> None:
    """Raise DigestMismatch unless both are the same."""
    if actual != expected:
        raise DigestMismatch(f"{what} has the digest {digest_name(actual)}, not {digest_name(expected)}")

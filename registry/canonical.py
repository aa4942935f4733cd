"""JSON as the registry writes and reads it: canonical and deterministic out, bounded and strict in.

Out: UTF-8, keys in ascending order, no white space, so that equal content has equal bytes and one digest (the advice of
the OCI Image Specification, "Canonicalization"). In: at most so many bytes, valid UTF-8, no key twice in one object, no
NaN and no infinity (RFC 7493), an object at the top. Whether the content makes sense is for the models.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

from pydantic import ValidationError

from dcz.errors import RegistryCorrupt

__all__ = ["describe", "read_json", "sha256_digest", "to_json"]


def sha256_digest(data: bytes) -> str:
    """The OCI digest of ``data``: ``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def to_json(tree: dict[str, Any]) -> bytes:
    """The canonical bytes of ``tree``."""
    return json.dumps(
        tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return tree


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_json(data: bytes, *, limit: int, what: str) -> dict[str, Any]:
    """The object that ``data`` holds. ``what`` names it in messages.

    Raises RegistryCorrupt if there are more than ``limit`` bytes or it is not the JSON described above.
    """
    if len(data) > limit:
        raise RegistryCorrupt(f"{what} is larger than {limit} bytes")
    try:
        tree = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise RegistryCorrupt(f"{what} is not valid JSON: {exc}") from exc
    if not isinstance(tree, dict):
        raise RegistryCorrupt(f"{what} is not a JSON object")
    return tree


def describe(exc: ValidationError) -> str:
    """The first fault of a model, in a line, and how many more there are."""
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    text = f"{where}: {first['msg'][:300]}{more}" if where else f"{first['msg'][:300]}{more}"
    # The names of keys are the attacker's: no escape sequences for a terminal.
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

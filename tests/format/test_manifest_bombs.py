"""Small manifests that are large when they are read: refused within the limits, and at their first fault."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
import zstandard

from dcz.errors import LimitExceeded, ManifestError
from dcz.format import Limits
from dcz.format.manifest import decode_manifest

MANY = 200_000
BASE = {"producer": "x", "version": [1, 0]}
WRONG: dict[str, dict[str, Any]] = {
    "numbers": {"chunks": {"digests": b"", "lengths": [-1] * MANY}},
    "arrays": {"tensors": [1] * MANY},
    "empty maps": {"tensors": [{}] * MANY},
    "assets": {"assets": [{}] * 60_000},
    "files": {"provenance": {"files": [{}] * MANY}},
    "metadata": {"metadata": {f"{i:07}": 1 for i in range(MANY)}},
    "metrics": {"provenance": {"metrics": {f"{i:07}": 1 for i in range(MANY)}}},
    "aliases": {"aliases": {f"{i:07}": 1 for i in range(MANY)}},
    "unknown fields": {f"z{i:07}": 1 for i in range(MANY)},
    "unknown fields of a tensor": {"tensors": [{f"z{i:07}": 1 for i in range(MANY)}]},
    "recipe": {"provenance": {"recipe": {"a": [b"x"] * MANY}}},
}


def stored(content: dict[str, Any]) -> tuple[bytes, int]:
    plain = msgpack.packb(dict(sorted((BASE | content).items())))
    return zstandard.ZstdCompressor(write_content_size=True).compress(plain), len(plain)


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_that_is_wrong_everywhere_is_given_up_at_once(name: str) -> None:
    data, size = stored(WRONG[name])
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError) as caught:
            decode_manifest(data, size, (1, 0), Limits(manifest_ratio=1 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 500
    # What msgpack makes of it, and little more: an error for each fault would be a kilobyte each.
    assert peak < 8_000_000 + 300 * MANY


@pytest.mark.parametrize(("field", "content"), [("containers", []), ("items", 1)])
def test_what_a_manifest_holds_is_bounded_before_it_is_made(field: str, content: Any) -> None:
    data, size = stored({"provenance": {"recipe": {"a": [content] * MANY}}})
    limits = Limits(**{f"manifest_{field}": 1000})
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="maps and arrays"):
            decode_manifest(data, size, (1, 0), limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * size + 100_000
    assert decode_manifest(data, size, (1, 0)).provenance.recipe == {"a": [content] * MANY}

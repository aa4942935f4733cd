"""Is a folder an OCI image layout? Written from the OCI Image Specification 1.1 alone; knows nothing of dcz."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

# descriptor.md "Digests"; schema/defs-descriptor.json for the media type (RFC 6838, section 4.2); annotations.md.
DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
REF_NAME = re.compile(
    r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*"
)


def _json(path: Path) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(items)) == len(items), f"{path}: a name twice"
        return dict(items)

    return json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=pairs)


def _descriptor(item: Any) -> None:
    assert isinstance(item, dict)
    assert MEDIA_TYPE.fullmatch(item["mediaType"])
    assert DIGEST.fullmatch(item["digest"])
    assert type(item["size"]) is int
    assert 0 <= item["size"] < 2**63
    for key, value in item.get("annotations", {}).items():
        assert isinstance(key, str)
        assert isinstance(value, str)
    if "artifactType" in item:
        assert MEDIA_TYPE.fullmatch(item["artifactType"])


def _blob(root: Path, item: Any) -> Path:
    _descriptor(item)
    algorithm, encoded = item["digest"].split(":")
    path: Path = root / "blobs" / algorithm / encoded
    assert path.stat().st_size == item["size"]
    return path


def check_oci_layout(root: Path) -> dict[str, list[tuple[str, Path]]]:
    """Assert every rule; for each ref name the titles and blobs of its layers."""
    assert _json(root / "oci-layout")["imageLayoutVersion"] == "1.0.0"
    for folder in (root / "blobs").iterdir():
        assert re.fullmatch("[a-z0-9]+", folder.name)
        for blob in folder.iterdir():
            assert hashlib.new(folder.name, blob.read_bytes()).hexdigest() == blob.name
    index = _json(root / "index.json")
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert all(isinstance(value, str) for value in index.get("annotations", {}).values())
    found: dict[str, list[tuple[str, Path]]] = {}
    for item in index["manifests"]:
        name = item["annotations"]["org.opencontainers.image.ref.name"]
        assert REF_NAME.fullmatch(name)
        assert name not in found, "a reference twice"
        assert item["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        manifest = _json(_blob(root, item))
        assert manifest["schemaVersion"] == 2
        assert manifest["mediaType"] == item["mediaType"]
        config = _blob(root, manifest["config"])
        if manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json":
            assert config.read_bytes() == b"{}"
            assert MEDIA_TYPE.fullmatch(manifest["artifactType"])
        assert manifest["layers"], "for portability, layers should have at least one entry"
        found[name] = [
            (layer["annotations"]["org.opencontainers.image.title"], _blob(root, layer))
            for layer in manifest["layers"]
        ]
    return found

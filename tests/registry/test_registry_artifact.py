"""The artifact's manifest: its bytes, and what a hostile one can do (nothing)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcz.errors import RegistryCorrupt, RegistryError
from dcz.registry.artifact import (
    DCZ_DIGEST,
    DCZ_FILE_TYPE,
    LOOSE_FILE_TYPE,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    TITLE,
    ArtifactManifest,
    Layer,
    check_file_names,
    decode_artifact,
)

ZERO = "0" * 64
ONE = "1" * 64

# Written by hand from the OCI Image Specification 1.1 ("Artifact without config"), in canonical form.
GOLDEN = (
    b'{"artifactType":"application/vnd.dcz.model.v1",'
    b'"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
    b'"mediaType":"application/vnd.oci.empty.v1+json","size":2},'
    b'"layers":[{"annotations":{"org.opencontainers.image.title":"README.md"},'
    b'"digest":"sha256:' + ONE.encode() + b'","mediaType":"application/octet-stream","size":7},'
    b'{"annotations":{"org.opencontainers.image.title":"model.dcz","vnd.dcz.digest":"blake3:'
    + ONE.encode()
    + b'"},'
    b'"digest":"sha256:' + ZERO.encode() + b'","mediaType":"application/vnd.dcz.file.v1","size":4711}],'
    b'"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
)


def dcz_layer(title: str = "model.dcz") -> Layer:
    annotations = {TITLE: title, DCZ_DIGEST: f"blake3:{ONE}"}
    return Layer(media_type=DCZ_FILE_TYPE, digest=f"sha256:{ZERO}", size=4711, annotations=annotations)


def loose_layer(title: str = "README.md") -> Layer:
    return Layer(media_type=LOOSE_FILE_TYPE, digest=f"sha256:{ONE}", size=7, annotations={TITLE: title})


def tree() -> Any:
    return json.loads(GOLDEN)


def test_the_manifest_has_exactly_these_bytes_whatever_the_order_of_the_files() -> None:
    assert ArtifactManifest.of([dcz_layer(), loose_layer()]).to_bytes() == GOLDEN
    assert ArtifactManifest.of([loose_layer(), dcz_layer()]).to_bytes() == GOLDEN


def test_the_manifest_is_read_back() -> None:
    manifest = decode_artifact(GOLDEN)
    assert manifest == ArtifactManifest.of([dcz_layer(), loose_layer()])
    assert manifest.size == 4718
    assert [(layer.title, layer.is_dcz) for layer in manifest.layers] == [
        ("README.md", False),
        ("model.dcz", True),
    ]
    assert [layer.dcz_digest for layer in manifest.layers] == [None, f"blake3:{ONE}"]


def test_the_empty_config_is_the_digest_of_two_bytes() -> None:
    assert tree()["config"]["digest"] == "sha256:" + hashlib.sha256(b"{}").hexdigest()


def test_unknown_properties_and_annotations_are_ignored_as_oci_asks() -> None:
    changed = tree()
    changed["annotations"] = {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"}
    changed["subject"] = {"anything": [1, None]}
    changed["layers"][0]["annotations"]["com.example.key"] = ""
    changed["layers"][0]["urls"] = ["https://example.com"]
    assert [layer.title for layer in decode_artifact(json.dumps(changed).encode()).layers] == [
        "README.md",
        "model.dcz",
    ]


BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "../../x.dcz",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
    "a\x1b[2J",
    "a.",
    "a ",
    "nul",
    "CON.txt",
    "com1.json",
    "LPT¹.md",
    ".dcz-pull-1",
    ".DCZ-x",
    "x" * 256,
    "é" * 128,
    "\ud800",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_file_names_that_could_do_harm_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"path|name|surrogates"):
        check_file_names(["model.dcz", name])
    for title in (name, f"{name}.dcz" if "/" in name or "\\" in name else name):
        changed = tree()
        changed["layers"][0]["annotations"][TITLE] = title
        with pytest.raises(RegistryCorrupt):
            decode_artifact(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "names",
    [["a", "a"], ["a", "A"], ["straße", "STRASSE"], ["\u00e9", "e\u0301"]],
    ids=ascii,
)
def test_two_names_for_one_file_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="twice"):
        check_file_names(names)


@pytest.mark.parametrize(
    "name", ["model.dcz", "model-00001-of-00002.dcz", ".gitattributes", "x" * 255, "モデル.json"]
)
def test_ordinary_file_names_are_fine(name: str) -> None:
    check_file_names([name])


def _set(path: str, value: Any) -> Any:
    changed = tree()
    *folders, last = path.split("/")
    node = changed
    for key in folders:
        node = node[int(key) if isinstance(node, list) else key]
    if value is ...:
        del node[int(last) if isinstance(node, list) else last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", 1),
        ("schemaVersion", 2.0),
        ("schemaVersion", "2"),
        ("schemaVersion", True),
        ("schemaVersion", ...),
        ("mediaType", "application/vnd.oci.image.index.v1+json"),
        ("mediaType", ...),
        ("artifactType", ...),
        ("artifactType", None),
        ("config", ...),
        ("config/digest", f"sha256:{ZERO}"),
        ("config/mediaType", "application/vnd.oci.image.config.v1+json"),
        ("config/size", 3),
        ("layers", ...),
        ("layers", []),
        ("layers", {}),
        ("layers", [1]),
        ("layers/1", ...),  # no .dcz is left
        ("layers/0/size", -1),
        ("layers/0/size", 1 << 63),
        ("layers/0/size", 7.0),
        ("layers/0/size", "7"),
        ("layers/0/digest", "sha256:" + "A" * 64),
        ("layers/0/digest", f"sha256:{ZERO}\n"),
        ("layers/0/digest", "sha256:../../../../etc/passwd"),
        ("layers/0/digest", "sha512:" + ZERO * 2),
        ("layers/0/mediaType", "no slash\n"),
        ("layers/0/mediaType", DCZ_FILE_TYPE),
        ("layers/0/annotations", ...),
        ("layers/0/annotations", None),
        ("layers/0/annotations", {}),
        ("layers/0/annotations", {TITLE: 1}),
        ("layers/0/annotations", {TITLE: "a", "x": "y" * 5000}),
        ("layers/0/annotations", {TITLE: "a", **{f"k{n}": "" for n in range(64)}}),
        ("layers/0/annotations/" + TITLE, "model.dcz"),
        ("layers/0/annotations/" + TITLE, "other.dcz"),
        ("layers/1/annotations/" + TITLE, "model.bin"),
        ("layers/1/annotations/" + DCZ_DIGEST, ...),
        ("layers/1/annotations/" + DCZ_DIGEST, f"sha256:{ONE}"),
        ("layers/1/annotations/" + DCZ_DIGEST, f"blake3:{ONE}\n"),
    ],
)
def test_each_rule_of_the_manifest_is_held(path: str, value: Any) -> None:
    with pytest.raises(RegistryCorrupt):
        decode_artifact(json.dumps(_set(path, value)).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe{}",
        GOLDEN[:-1],
        GOLDEN + b"x",
        GOLDEN.replace(b'"schemaVersion":2', b'"schemaVersion":NaN'),
        GOLDEN.replace(b'"schemaVersion":2', b'"schemaVersion":2,"schemaVersion":2'),
        GOLDEN.replace(b":7}", b":" + b"7" * 5000 + b"}"),
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"layers":[' + b",".join([b"{}"] * (MAX_FILES + 1)) + b"]}",
        GOLDEN + b" " * MAX_MANIFEST_BYTES,
    ],
    ids=lambda data: f"{data[:12]!r}..{len(data)}",
)
def test_what_is_not_strict_json_within_the_limits_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryCorrupt):
        decode_artifact(data)


def recorded(exc: RegistryCorrupt) -> int:
    """How many faults pydantic kept a record of, as the message says."""
    more = re.search(r"\(and (\d+) more\)$", exc.message)
    return 1 + int(more[1]) if more else 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layers", [{}] * MAX_FILES),
        ("layers", [{}] * (MAX_FILES + 1)),
        ("layers/0/annotations", {str(number): number for number in range(10_000)}),
    ],
)
def test_a_hostile_manifest_costs_no_record_of_each_fault(path: str, value: Any) -> None:
    with pytest.raises(RegistryCorrupt) as caught:
        decode_artifact(json.dumps(_set(path, value)).encode())
    assert recorded(caught.value) < 10


def test_other_artifacts_are_named() -> None:
    with pytest.raises(RegistryError, match="newer dcz") as caught:
        decode_artifact(json.dumps(_set("artifactType", "application/vnd.dcz.model.v2")).encode())
    assert not isinstance(caught.value, RegistryCorrupt)
    with pytest.raises(RegistryError, match="application/x"):
        decode_artifact(json.dumps(_set("artifactType", "application/x")).encode())


def test_messages_carry_no_control_characters() -> None:
    changed = _set("layers/0/annotations", {TITLE: "a", "\x1b[2J\n": 1})
    with pytest.raises(RegistryCorrupt) as caught:
        decode_artifact(json.dumps(changed).encode())
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    return [prefix] * bool(prefix) + [path for key, value in items for path in _paths(value, (*prefix, key))]


@given(st.data())
def test_a_changed_manifest_is_valid_or_our_error(data: st.DataObject) -> None:
    changed = tree()
    for _ in range(data.draw(st.integers(1, 3))):
        *folders, last = data.draw(st.sampled_from(_paths(changed)))
        node = changed
        for key in folders:
            node = node[key]
        match data.draw(st.sampled_from(["replace", "remove", "add", "copy"])):
            case "replace":
                node[last] = data.draw(JSON)
            case "remove":
                del node[last]
            case "add" if isinstance(node, dict):
                node[data.draw(st.text(max_size=8))] = data.draw(JSON)
            case _ if isinstance(node, list):
                node.append(copy.deepcopy(node[last]))
    try:
        manifest = decode_artifact(json.dumps(changed).encode())
    except RegistryError:
        return
    titles = [layer.title for layer in manifest.layers]
    assert len({title.casefold() for title in titles}) == len(titles)
    assert not any("/" in title or title in ("", ".", "..") for title in titles)
    assert decode_artifact(manifest.to_bytes()) == manifest


@given(st.binary(max_size=200) | st.integers(0, len(GOLDEN)).map(lambda n: GOLDEN[:n]))
def test_any_bytes_are_a_manifest_or_our_error(data: bytes) -> None:
    with contextlib.suppress(RegistryError):
        assert decode_artifact(data).to_bytes() == data


@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_a_changed_byte_is_seen_or_harmless(at: int, flip: int) -> None:
    data = GOLDEN[:at] + bytes([GOLDEN[at] ^ flip]) + GOLDEN[at + 1 :]
    try:
        manifest = decode_artifact(data)
    except RegistryError:
        return
    assert all(layer.is_dcz == layer.title.lower().endswith(".dcz") for layer in manifest.layers)

"""References: parse and print are inverse, and nothing else gets through."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcz.errors import InvalidReference
from dcz.registry import (
    HubReference,
    OciReference,
    PathReference,
    Reference,
    RegistryReference,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

# The grammars of the OCI Distribution Specification 1.1, "Pulling manifests", letter by letter.
SPEC_NAME = re.compile(
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*", flags=re.ASCII
)
SPEC_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", flags=re.ASCII)

CASES: list[tuple[str, Reference]] = [
    ("minilm", RegistryReference("minilm")),
    ("minilm:1.0", RegistryReference("minilm", "1.0")),
    ("minilm:latest", RegistryReference("minilm", "latest")),
    (
        "sentence-transformers/all-minilm-l6-v2:v1",
        RegistryReference("sentence-transformers/all-minilm-l6-v2", "v1"),
    ),
    (f"minilm@{DIGEST}", RegistryReference("minilm", None, DIGEST)),
    (f"a__b/c.d:_1@{DIGEST}", RegistryReference("a__b/c.d", "_1", DIGEST)),
    ("model.dcz2:1.0", RegistryReference("model.dcz2", "1.0")),
    ("models/minilm.safetensors", RegistryReference("models/minilm.safetensors")),
    ("hf://org/name", HubReference("org", "name")),
    ("hf://Org/Name.v2@refs/pr/1", HubReference("Org", "Name.v2", "refs/pr/1")),
    ("oci://ghcr.io/org/name", OciReference("ghcr.io", "org/name")),
    (f"oci://localhost:5000/name:1@{DIGEST}", OciReference("localhost:5000", "name", "1", DIGEST)),
    ("oci://[::1]:5000/name.dcz", OciReference("[::1]:5000", "name.dcz")),
    ("./minilm", PathReference("./minilm")),
    ("../minilm:1.0", PathReference("../minilm:1.0")),
    (".", PathReference(".")),
    ("/models/minilm", PathReference("/models/minilm")),
    ("~/minilm", PathReference("~/minilm")),
    ("model.dcz", PathReference("model.dcz")),
    ("sub folder/Model.DCZ", PathReference("sub folder/Model.DCZ")),
    ("./s3://x", PathReference("./s3://x")),
]
BAD = [
    "",
    "MiniLM",
    "a b",
    "a..b",
    "a//b",
    "a/../b",
    "a/",
    "-a",
    "a-",
    "a:",
    "a:.1",
    "a:-1",
    "a:b:c",
    f"a:{'b' * 129}",
    "a" * 256,
    "a\n",
    "a:1\n",
    "a\0",
    "./a\0b",
    "a@",
    f"a@{DIGEST}0",
    f"a@{DIGEST.upper()}",
    f"a@{DIGEST[:-1]}",
    "a@sha512:" + HEX * 2,
    f"a@{DIGEST}@{DIGEST}",
    "model.dcz:1.0",
    f"model.dcz@{DIGEST}",
    "a٣",
    "hf://name",
    "hf://org/name/more",
    "hf://org/name@",
    "hf://org/name@a..b",
    "hf://org/name@/a",
    "hf://org/name@a.lock",
    "hf://org/na--me",
    "hf://../name",
    "hf://org/..",
    "hf://org/name.git",
    "oci://host",
    "oci:///name",
    "oci://host/",
    "oci://ho st/name",
    "oci://-host/name",
    "oci://host:port/name",
    "oci://user@host/name",
    "oci://host/Name",
    "s3://bucket/model",
    "https://example.com/model.dcz",
    "file:///model.dcz",
    "://",
]


@pytest.mark.parametrize(("text", "reference"), CASES, ids=[text for text, _ in CASES])
def test_each_form_is_read_and_printed(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_hints_say_what_to_write() -> None:
    with pytest.raises(InvalidReference, match=re.escape("./MiniLM")):
        parse_reference("MiniLM")
    with pytest.raises(InvalidReference, match="hf://org/name"):
        parse_reference("s3://bucket/model")


def test_home_is_expanded_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    reference = parse_reference("~/model")
    assert isinstance(reference, PathReference)
    assert str(reference) == "~/model"
    assert str(reference.path) == "/somewhere/model"
    with pytest.raises(InvalidReference):
        _ = PathReference("~nobody-of-this-name/x").path


ALNUM = st.text("abcxyz019", min_size=1, max_size=4)
COMPONENT = st.lists(ALNUM, min_size=1, max_size=3).flatmap(
    lambda parts: st.lists(
        st.sampled_from([".", "_", "__", "-", "--", "---"]), min_size=len(parts) - 1, max_size=len(parts) - 1
    ).map(lambda seps: parts[0] + "".join(sep + part for sep, part in zip(seps, parts[1:], strict=True)))
)
NAME = st.lists(COMPONENT, min_size=1, max_size=3).map("/".join)
TAG = st.builds(str.__add__, st.sampled_from("abzAZ09_"), st.text("abzAZ09._-", max_size=12)).filter(
    lambda tag: not tag.lower().endswith(".dcz")
)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__)
HOST = st.builds(
    str.__add__,
    st.sampled_from(["localhost", "ghcr.io", "a-b.example", "127.0.0.1", "[::1]"]),
    st.sampled_from(["", ":80", ":65535"]),
)
HUB_PART = st.text("aZ09_", min_size=1, max_size=8)
REVISION = st.sampled_from(["main", "v1.0", "refs/pr/12", HEX[:40], "feature/a-b", "1.0+cpu"])
PATH = st.builds(str.__add__, st.sampled_from(["/", "./", "../", "~", "."]), st.text(max_size=20)).filter(
    lambda text: "\0" not in text
) | st.text("aA /:@", max_size=10).filter(lambda text: "://" not in text).map(lambda text: text + ".dcz")


def references() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(
            RegistryReference,
            NAME.filter(lambda n: not n.endswith(".dcz")),
            st.none() | TAG,
            st.none() | DIGESTS,
        ),
        st.builds(HubReference, HUB_PART, HUB_PART, st.none() | REVISION),
        st.builds(OciReference, HOST, NAME, st.none() | TAG, st.none() | DIGESTS),
        st.builds(PathReference, PATH),
    )


@given(references())
def test_parse_is_the_inverse_of_print(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text("ab1AZ.-_/:@~ \n\0é", max_size=24) | st.text(max_size=40) | references().map(str))
def test_any_text_parses_or_is_an_invalid_reference(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert str(reference) == text, "there is one spelling"
    if isinstance(reference, RegistryReference | OciReference):
        assert SPEC_NAME.fullmatch(reference.name)
        assert reference.tag is None or SPEC_TAG.fullmatch(reference.tag)
        assert not {"", ".", ".."} & set(reference.name.split("/"))


@given(st.text(max_size=12), st.none() | st.text(max_size=12), st.none() | st.text(max_size=12))
def test_no_invalid_reference_can_be_made(name: str, tag: str | None, digest: str | None) -> None:
    try:
        reference = RegistryReference(name, tag, digest)
    except InvalidReference:
        return
    assert parse_reference(str(reference)) == reference


def test_matching_takes_linear_time() -> None:
    for text in ("a" + "-" * 4000, "hf://a/" + "a." * 2000 + "!", "oci://" + "a-" * 2000 + "/x", "a_" * 2000):
        with pytest.raises(InvalidReference):
            parse_reference(text)

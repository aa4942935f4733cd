"""The rules for versions and aliases, against a model that is nothing but two dictionaries."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.registry.test_registry_artifact import recorded

from dcz.errors import (
    DczError,
    InvalidReference,
    NotInRegistry,
    RegistryCorrupt,
    RegistryError,
    VersionExists,
)
from dcz.registry.index import (
    Index,
    Publication,
    check_alias,
    decode_index,
    find_tag,
    publish,
    set_alias,
)
from dcz.registry.refs import RegistryReference

DIGESTS = [f"sha256:{digit * 64}" for digit in "abc"]
TIME = "2026-01-31T12:00:00Z"


def put(
    index: Index, version: str | None, digest: str, name: str = "m", aliases: tuple[str, ...] = ()
) -> Publication:
    return publish(index, name, version, digest=digest, size=5, aliases=aliases, time=TIME, user="ada")


def tags(index: Index, name: str = "m") -> dict[str, tuple[str, str]]:
    return {tag.tag: (tag.kind, tag.digest) for tag in index.tags(name)}


def test_a_version_is_written_once() -> None:
    done = put(Index(), "1.0", DIGESTS[0])
    assert done.created
    with pytest.raises(VersionExists, match=r"m:1\.0"):
        put(done.index, "1.0", DIGESTS[1])
    again = put(done.index, "1.0", DIGESTS[0])
    assert not again.created
    assert again.changes == ()
    assert again.index == done.index


def test_a_new_version_moves_latest_and_an_old_one_does_not() -> None:
    index = put(put(Index(), "2.0", DIGESTS[0]).index, "1.1", DIGESTS[1]).index
    assert tags(index)["latest"] == ("alias", DIGESTS[1])
    assert tags(put(index, "2.0", DIGESTS[0]).index)["latest"] == ("alias", DIGESTS[1])


def test_without_a_version_a_number_is_given_and_latest_moves() -> None:
    first = put(Index(), None, DIGESTS[0])
    second = put(first.index, "latest", DIGESTS[1])
    assert (first.version.tag, second.version.tag) == ("v1", "v2")
    back = put(second.index, None, DIGESTS[0])
    assert (back.version.tag, back.created) == ("v1", False)
    assert tags(back.index)["latest"] == ("alias", DIGESTS[0])
    assert put(put(back.index, "v9", DIGESTS[2]).index, None, "sha256:" + "d" * 64).version.tag == "v10"


def test_numbers_go_on_to_the_last_tag_that_there_can_be() -> None:
    index = put(Index(), "v999999999", DIGESTS[0]).index
    assert put(index, None, DIGESTS[1]).version.tag == "v1000000000"
    assert put(put(index, None, DIGESTS[1]).index, None, DIGESTS[2]).version.tag == "v1000000001"
    index = put(index, "v" + "9" * 126, DIGESTS[1]).index
    assert put(index, None, DIGESTS[2]).version.tag == "v1" + "0" * 126
    index = put(index, "v" + "9" * 127, DIGESTS[2]).index
    with pytest.raises(RegistryError, match="last number") as caught:
        put(index, None, "sha256:" + "d" * 64)
    assert caught.value.hint is not None
    with pytest.raises(InvalidReference):
        check_alias("v" + "9" * 127)


def test_aliases_move_with_a_push_in_one_step() -> None:
    done = put(Index(), "1.0", DIGESTS[0], aliases=("champion", "beta"))
    assert [(change.tag, change.kind, change.previous) for change in done.changes] == [
        ("1.0", "version", None),
        ("latest", "alias", None),
        ("champion", "alias", None),
        ("beta", "alias", None),
    ]
    moved = put(done.index, "1.1", DIGESTS[1], aliases=("champion",))
    assert moved.changes[-1].previous == DIGESTS[0]
    assert tags(moved.index)["beta"] == ("alias", DIGESTS[0])


def test_versions_and_aliases_do_not_take_each_others_names() -> None:
    index = put(Index(), "1.0", DIGESTS[0], aliases=("champion",)).index
    with pytest.raises(RegistryError, match="is an alias"):
        put(index, "champion", DIGESTS[0])
    with pytest.raises(VersionExists, match="is a version"):
        put(index, "1.1", DIGESTS[1], aliases=("1.0",))
    with pytest.raises(RegistryError, match="both"):
        put(index, "1.1", DIGESTS[1], aliases=("1.1",))
    for bad in ("v1", "v007", "", "a b", "../x", "x.dcz"):
        with pytest.raises(InvalidReference):
            check_alias(bad)


def test_an_alias_needs_a_version_of_the_same_name() -> None:
    index = put(Index(), "1.0", DIGESTS[0], name="other").index
    with pytest.raises(NotInRegistry):
        set_alias(index, "m", "champion", digest=DIGESTS[0], time=TIME, user="ada")


def test_what_other_tools_keep_is_kept() -> None:
    foreign = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "extra": {"deep": [1, 2, {"x": "y"}]},
        "annotations": {"com.example": "1"},
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": DIGESTS[0],
                "size": 5,
                "platform": {"architecture": "amd64", "os": "linux"},
                "annotations": {"org.opencontainers.image.ref.name": "m:1.0"},
            },
            {"mediaType": "application/xml", "digest": "sha512:" + "a" * 128, "size": 7},
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": DIGESTS[1],
                "size": 5,
                "annotations": {"org.opencontainers.image.ref.name": "Not A Name"},
            },
        ],
    }
    index = decode_index(json.dumps(foreign).encode(), what="index")
    assert tags(index) == {"1.0": ("version", DIGESTS[0])}, "a tag without a kind is a version"
    assert json.loads(index.to_bytes()) == foreign
    written = json.loads(put(index, "1.1", DIGESTS[1]).index.to_bytes())
    assert written["manifests"][:3] == foreign["manifests"]
    assert written["extra"] == foreign["extra"]
    with pytest.raises(VersionExists):
        put(index, "1.0", DIGESTS[1])


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (TIME, True),
        ("2026-01-31t12:00:00z", True),
        ("2026-01-31T12:00:00.123456789+05:30", True),
        ("2026-01-31", False),
        ("2026-01-31T12:00:00", False),
        ("2026-01-31T12:00:00Z\n", False),
        ("2026-01-31T12:00:00Z\x1b[2J", False),
        ("٢٠٢٦-01-31T12:00:00Z", False),
        ("", False),
    ],
    ids=ascii,
)
def test_a_time_is_rfc_3339_or_not_known(text: str, valid: bool) -> None:
    tree = json.loads(put(Index(), "1.0", DIGESTS[0]).index.to_bytes())
    tree["manifests"][0]["annotations"]["org.opencontainers.image.created"] = text
    index = decode_index(json.dumps(tree).encode(), what="index")
    assert index.tags("m")[0].created == (text if valid else None)
    assert json.loads(index.to_bytes()) == tree, "other tools get back what they wrote"


def test_each_tag_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index()
    for number in range(20):
        index = put(index, f"1.{number}", f"sha256:{number:064x}", name=f"m{number % 3}").index
    index = decode_index(index.to_bytes(), what="index")
    read: list[str] = []

    def reference(name: str, tag: str, digest: str | None = None) -> RegistryReference:
        read.append(tag)
        return RegistryReference(name, tag, digest)

    monkeypatch.setattr("dcz.registry.index.RegistryReference", reference)
    moved = put(index, None, "sha256:" + "f" * 64, aliases=("champion", "beta")).index
    assert len(index.tags()) == 23
    assert sorted(tags(moved)) == ["beta", "champion", "latest", "v1"]
    # Those of the index, the new ones (latest, champion, beta, v1), and the check of each alias.
    assert len(read) < 23 + 10


def test_an_ambiguous_tag_is_corrupt() -> None:
    tree = json.loads(put(Index(), "1.0", DIGESTS[0]).index.to_bytes())
    tree["manifests"].append({**tree["manifests"][0], "digest": DIGESTS[1]})
    index = decode_index(json.dumps(tree).encode(), what="index")
    with pytest.raises(RegistryCorrupt, match=r"m:1\.0 2 times"):
        find_tag(index.tags("m"), "1.0")
    assert find_tag(index.tags("m"), "latest") is not None


@pytest.mark.parametrize(
    "hostile",
    [
        {"manifests": [{}] * 10_000},
        {"manifests": [{"annotations": {str(number): number for number in range(10_000)}}]},
        {"annotations": {str(number): number for number in range(10_000)}},
    ],
)
def test_a_hostile_index_costs_no_record_of_each_fault(hostile: dict[str, Any]) -> None:
    with pytest.raises(RegistryCorrupt) as caught:
        decode_index(json.dumps({"schemaVersion": 2, "manifests": [], **hostile}).encode(), what="index")
    assert recorded(caught.value) < 10


NAMES = st.sampled_from(["1.0", "1.1", "v1", "v3", "champion", "latest", "beta"])


class Tags(RuleBasedStateMachine):
    """Any sequence of pushes and moves, through the bytes of index.json each time."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index()
        self.versions: dict[str, str] = {}
        self.aliases: dict[str, str] = {}

    def _keep(self, index: Index) -> None:
        self.index = decode_index(index.to_bytes(), what="index")
        assert self.index == index

    @rule(version=st.none() | NAMES, digest=st.sampled_from(DIGESTS), aliases=st.lists(NAMES, max_size=2))
    def push(self, version: str | None, digest: str, aliases: list[str]) -> None:
        try:
            done = put(self.index, version, digest, aliases=tuple(aliases))
        except (VersionExists, RegistryError, InvalidReference):
            clash = self.versions.get(version or "", digest) != digest or version in self.aliases
            bad_alias = any(a in self.versions or a in ("v1", "v3") or a == version for a in aliases)
            assert clash or bad_alias
            return
        new = done.version.tag
        if version in (None, "latest"):
            assert new in self.versions if digest in self.versions.values() else new.startswith("v")
        else:
            assert new == version
        assert done.created == (new not in self.versions)
        assert self.versions.setdefault(new, digest) == digest
        if done.created or version in (None, "latest"):
            self.aliases["latest"] = digest
        self.aliases.update(dict.fromkeys(aliases, digest))
        self._keep(done.index)

    @rule(alias=NAMES, digest=st.sampled_from(DIGESTS))
    def move(self, alias: str, digest: str) -> None:
        try:
            index, change = set_alias(self.index, "m", alias, digest=digest, time=TIME, user="ada")
        except (VersionExists, NotInRegistry, InvalidReference):
            assert alias in self.versions or digest not in self.versions.values() or alias in ("v1", "v3")
            return
        assert (change is None) == (self.aliases.get(alias) == digest)
        assert change is None or change.previous == self.aliases.get(alias)
        self.aliases[alias] = digest
        self._keep(index)

    @invariant()
    def versions_stay_and_aliases_are_where_they_were_put(self) -> None:
        expected = {tag: ("version", digest) for tag, digest in self.versions.items()}
        expected |= {tag: ("alias", digest) for tag, digest in self.aliases.items()}
        assert tags(self.index) == expected


Tags.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestTags = Tags.TestCase


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["schemaVersion", "mediaType", "manifests", "annotations", "digest", "size"]


@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), JSON, max_size=3),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), JSON, max_size=3),
)
def test_any_index_is_valid_or_our_error(top: dict[str, Any], entry: dict[str, Any]) -> None:
    tree = json.loads(put(Index(), "1.0", DIGESTS[0]).index.to_bytes())
    tree["manifests"][0].update(entry)
    tree.update(top)
    try:
        index = decode_index(json.dumps(tree).encode(), what="index")
        put(index, "1.1", DIGESTS[1]).index.to_bytes()
        assert index.history_size is None or index.history_size >= 0
    except DczError:
        return

"""What every store must do. A test class inherits ``StoreContract`` and gives the fixture ``store``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dcz.errors import NotInRegistry, RegistryCorrupt, VersionExists
from dcz.registry.index import Tag, find_tag
from dcz.registry.stores.base import Store

DATA = bytes(range(256)) * 5000  # more than one buffer of a copy


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def find(store: Store, name: str, tag: str) -> Tag | None:
    return find_tag(store.tags(name), tag)


def put(store: Store, folder: Path, name: str, version: str | None, data: bytes = DATA, *aliases: str) -> str:
    """Publish a manifest, which a store does not look into, with one file; the manifest's digest."""
    source = folder / "source"
    source.write_bytes(data)
    layer = {"mediaType": "application/octet-stream", "digest": digest_of(data), "size": len(data)}
    manifest = json.dumps({"layers": [layer]}).encode()
    with store.upload() as upload:
        staged = upload.add(source)
        assert (staged.digest, staged.size) == (digest_of(data), len(data))
        assert staged.path.read_bytes() == data
        upload.publish(name, version, manifest, aliases)
    return digest_of(manifest)


class StoreContract:
    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.tags() == []
        assert store.tags("m") == []
        assert store.history() == []
        with pytest.raises(RegistryCorrupt):
            store.open_blob(digest_of(DATA), len(DATA))

    def test_what_was_published_is_found_and_read(self, store: Store, tmp_path: Path) -> None:
        digest = put(store, tmp_path, "m", "1.0")
        found = find(store, "m", "1.0")
        assert found is not None
        assert (found.kind, found.digest) == ("version", digest)
        assert digest_of(store.read_manifest(found.digest, found.size)) == digest
        with store.open_blob(digest_of(DATA), len(DATA)) as blob:
            assert blob.read() == DATA
            blob.seek(1000)
            assert blob.read() == DATA[1000:]
        path = store.blob_path(digest_of(DATA), len(DATA))
        assert path is None or path.read_bytes() == DATA

    def test_nothing_is_seen_before_publish(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(DATA)
        with store.upload() as upload:
            upload.add(tmp_path / "source")
            assert store.tags() == []
            with pytest.raises(RegistryCorrupt):
                store.open_blob(digest_of(DATA), len(DATA))
        assert store.tags() == []

    def test_sizes_and_digests_are_checked(self, store: Store, tmp_path: Path) -> None:
        put(store, tmp_path, "m", "1.0")
        found = find(store, "m", "1.0")
        assert found is not None
        with pytest.raises(RegistryCorrupt):
            store.open_blob(digest_of(DATA), len(DATA) + 1)
        with pytest.raises(RegistryCorrupt):
            store.read_manifest(found.digest, found.size - 1)
        with pytest.raises(RegistryCorrupt):
            store.read_manifest(digest_of(DATA), 1 << 60)

    def test_versions_stay_and_aliases_move(self, store: Store, tmp_path: Path) -> None:
        first = put(store, tmp_path, "m", "1.0", b"one", "champion")
        with pytest.raises(VersionExists):
            put(store, tmp_path, "m", "1.0", b"two")
        second = put(store, tmp_path, "m", "1.1", b"two")
        latest, champion = find(store, "m", "latest"), find(store, "m", "champion")
        assert latest is not None
        assert champion is not None
        assert (latest.digest, champion.digest) == (second, first)
        change = store.move_alias("m", "champion", second)
        assert change is not None
        assert (change.previous, change.digest) == (first, second)
        assert store.move_alias("m", "champion", second) is None
        with pytest.raises(NotInRegistry):
            store.move_alias("m", "champion", digest_of(b"nothing"))
        with pytest.raises(VersionExists):
            store.move_alias("m", "1.0", second)

    def test_a_refused_push_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        put(store, tmp_path, "m", "1.0", b"one")
        before, history = store.tags(), store.history()
        with pytest.raises(VersionExists):
            put(store, tmp_path, "m", "1.0", b"two", "champion")
        assert (store.tags(), store.history()) == (before, history)
        with pytest.raises(RegistryCorrupt):
            store.open_blob(digest_of(b"two"), 3)

    def test_names_are_apart(self, store: Store, tmp_path: Path) -> None:
        put(store, tmp_path, "m", "1.0", b"one")
        put(store, tmp_path, "m/n", "1.0", b"two")
        assert [(tag.name, tag.tag) for tag in store.tags("m")] == [("m", "1.0"), ("m", "latest")]
        assert {tag.name for tag in store.tags()} == {"m", "m/n"}

    def test_the_history_has_every_change_once(self, store: Store, tmp_path: Path) -> None:
        first = put(store, tmp_path, "m", None, b"one")
        put(store, tmp_path, "m", "v1", b"one")
        put(store, tmp_path, "n", None, b"two")
        second = put(store, tmp_path, "m", None, b"two")
        store.move_alias("m", "latest", first)
        changes = [(change.tag, change.kind, change.previous, change.digest) for change in store.history("m")]
        assert changes == [
            ("v1", "version", None, first),
            ("latest", "alias", None, first),
            ("v2", "version", None, second),
            ("latest", "alias", first, second),
            ("latest", "alias", second, first),
        ]
        assert len(store.history()) == 7
        assert all(change.user and change.time.endswith("Z") for change in store.history())

    def test_the_same_push_again_heals_and_changes_nothing(self, store: Store, tmp_path: Path) -> None:
        put(store, tmp_path, "m", "1.0")
        before, history = store.tags(), store.history()
        path = store.blob_path(digest_of(DATA), len(DATA))
        if path is not None:
            path.chmod(0o644)
            path.write_bytes(b"x" * len(DATA))
        put(store, tmp_path, "m", "1.0")
        assert (store.tags(), store.history()) == (before, history)
        with store.open_blob(digest_of(DATA), len(DATA)) as blob:
            assert blob.read() == DATA

    def test_cleaning_up_keeps_what_is_needed(self, store: Store, tmp_path: Path) -> None:
        put(store, tmp_path, "m", "1.0", b"one")
        put(store, tmp_path, "m", "1.1", b"two")
        store.collect_garbage(grace=0)
        for data in (b"one", b"two"):
            with store.open_blob(digest_of(data), 3) as blob:
                assert blob.read() == data

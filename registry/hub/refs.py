"""Branches and tags of a repository on the Hub: branches move, as aliases do; tags stay, as versions do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcz.errors import Conflict, InvalidReference, RegistryCorrupt, VersionExists
from dcz.registry.hub.connection import Connection
from dcz.registry.hub.settings import Hub
from dcz.registry.hub.snapshot import Snapshot, find_commit, is_commit, open_snapshot, pages
from dcz.registry.outcomes import Committed
from dcz.registry.refs import HubReference

__all__ = ["Refs", "check_tag", "history", "list_refs", "make_tag", "named_commits", "tag"]


@dataclass(frozen=True, slots=True)
class Refs:
    """Names and their commits."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


def list_refs(connection: Connection, reference: HubReference) -> Refs:
    """The branches and tags of a repository. Raises NotInRegistry, AccessDenied, RegistryError."""
    what = f"hf://{reference.org}/{reference.name}"
    tree, _ = connection.get_json(
        connection.own_url(f"api/models/{reference.org}/{reference.name}/refs"), what
    )

    def named(key: str) -> dict[str, str]:
        found: dict[str, str] = {}
        items: Any = tree.get(key, []) if isinstance(tree, dict) else None
        for item in items if isinstance(items, list) else [None]:
            name = item.get("name") if isinstance(item, dict) else None
            commit = item.get("targetCommit") if isinstance(item, dict) else None
            if not isinstance(name, str) or not isinstance(commit, str) or not is_commit(commit):
                raise RegistryCorrupt(
                    f"{what}: {connection.endpoint} has branches or tags without names or commits"
                )
            found[name] = commit
        return found

    return Refs(named("branches"), named("tags"))


def check_tag(reference: HubReference, tag: str) -> str:
    """``tag`` itself, if it can be a tag of a repository; else InvalidReference."""
    HubReference(reference.org, reference.name, tag)
    if is_commit(tag):
        raise InvalidReference(f"{tag!r} cannot be a tag", hint="it reads as a commit")
    return tag


def make_tag(connection: Connection, pinned: HubReference, tag: str) -> None:
    """Give a commit a new tag. Raises VersionExists if it is another commit's, RegistryError."""

    def once() -> None:
        with connection.api() as api:
            api.create_tag(f"{pinned.org}/{pinned.name}", tag=tag, revision=pinned.revision)

    what = f"tagging {pinned} as {tag}"
    try:
        connection.trying(what, once)
    except Conflict as exc:  # perhaps by ourselves, and only the answer was lost
        known = list_refs(connection, pinned).tags.get(tag)
        if known != pinned.revision:
            raise VersionExists(
                f"{what}: there is such a tag or branch with other content, and tags do not move",
                hint="choose another tag",
            ) from exc


def tag(reference: HubReference, tag: str, hub: Hub) -> tuple[HubReference, str | None]:
    """``dcz.registry.tag`` for the Hub: the pinned reference, and its commit if the tag was there already."""
    check_tag(reference, tag)
    connection = Connection(hub)
    commit, _ = find_commit(connection, reference)
    pinned = HubReference(reference.org, reference.name, commit)
    if list_refs(connection, reference).tags.get(tag) == commit:
        return pinned, commit
    make_tag(connection, pinned, tag)
    return pinned, None


def named_commits(reference: HubReference, hub: Hub) -> list[tuple[Snapshot, tuple[str, ...]]]:
    """The commits that have a name, in the order of their names, which are tags and then branches."""
    connection = Connection(hub)
    refs = list_refs(connection, reference)
    names: dict[str, list[str]] = {}
    for known in (refs.tags, refs.branches):
        for name, commit in sorted(known.items()):
            names.setdefault(commit, []).append(name)
    return [
        (open_snapshot(connection, HubReference(reference.org, reference.name, commit)), tuple(called))
        for commit, called in names.items()
    ]


def history(reference: HubReference, hub: Hub) -> list[Committed]:
    """``dcz.registry.commits``. Raises NotInRegistry, AccessDenied, RegistryError."""
    connection = Connection(hub)
    commit, _ = find_commit(connection, reference)
    pinned = HubReference(reference.org, reference.name, commit)
    url = connection.own_url(f"api/models/{reference.org}/{reference.name}/commits/{commit}")
    found = [_committed(pinned, item) for item in pages(connection, url, pinned, "commits")]
    found.reverse()
    return found


def _committed(pinned: HubReference, item: Any) -> Committed:
    entry: dict[str, Any] = item if isinstance(item, dict) else {}
    commit, time, title = entry.get("id"), entry.get("date"), entry.get("title")
    if not isinstance(commit, str) or not is_commit(commit):
        raise RegistryCorrupt(f"{pinned}: the list of commits is wrong: one of them has no name")
    authors: Any = entry.get("authors")
    users = (
        [author.get("user") for author in authors if isinstance(author, dict)]
        if isinstance(authors, list)
        else []
    )
    return Committed(
        HubReference(pinned.org, pinned.name, commit),
        time if isinstance(time, str) else "",
        ", ".join(user for user in users if isinstance(user, str)),
        title if isinstance(title, str) else "",
    )

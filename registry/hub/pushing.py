"""push: files become one commit on a branch, at once or not at all.

The files are hashed and uploaded, which nobody sees, and the .dcz files verified meanwhile; when all that is done, they are
committed with the parent that was the branch's head when the push began. An answer that is lost says nothing about the
commit: so before anything is tried again, the branch is asked for, and if its files are those that were to be, the push is
done. If they are not, and the head is another than it was, somebody was quicker, and the push ends.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Final

from dcz.errors import (
    Conflict,
    DczError,
    InvalidReference,
    NotInRegistry,
    RegistryCorrupt,
    Unreachable,
    UsageError,
    VersionExists,
)
from dcz.registry.hub.connection import Connection, load_api
from dcz.registry.hub.preparing import Outgoing
from dcz.registry.hub.refs import Refs, check_tag, list_refs, make_tag
from dcz.registry.hub.settings import Hub
from dcz.registry.hub.snapshot import Snapshot, is_commit, open_snapshot
from dcz.registry.hub.uploading import upload, upload_modes
from dcz.registry.outcomes import Pushed
from dcz.registry.progress import Progress, steps
from dcz.registry.refs import HubReference
from dcz.registry.together import Total, together

__all__ = ["push"]

_SHARD: Final = re.compile(r"(?P<stem>.+?)(-[0-9]{5}-of-[0-9]{5})?\.dcz", re.IGNORECASE)


def push(
    outgoing: Sequence[Outgoing],
    reference: HubReference,
    hub: Hub,
    progress: Progress | None,
    *,
    tags: Sequence[str],
    private: bool,
    replaces: Mapping[str, str | None],
) -> Pushed:
    """``dcz.registry.push`` for the Hub. See there. ``outgoing``: files that are being hashed and verified already."""
    for tag in tags:
        check_tag(reference, tag)
    if reference.revision is not None and is_commit(reference.revision):
        raise InvalidReference(f"{reference}: a commit cannot be pushed to", hint="hf://org/name[@branch]")
    connection = Connection(hub)
    if connection.offline:
        raise Unreachable(
            f"{reference}: nothing is pushed offline", hint="HF_HUB_OFFLINE is set; a push needs the Hub"
        )
    refs = _ready(connection, reference, outgoing, private=private)
    branch = reference.revision or "main"
    before = open_snapshot(connection, HubReference(reference.org, reference.name, branch))
    if private and not before.private:
        raise UsageError(f"{reference} is there already, and public", hint="make it private on the Hub first")
    for path, digest in replaces.items():
        known = before.file(path)
        if (None if known is None else known.digest) != digest:
            raise Conflict(
                f"{reference}: somebody else has changed {path} meanwhile", hint="look at it, and push again"
            )
    _check_tags(reference, refs, tags, before, outgoing)
    after, created = _commit(connection, before, branch, outgoing, progress)
    new = [tag for tag in tags if refs.tags.get(tag) != after.commit]
    for tag in new:
        make_tag(connection, after.reference, tag)
    identities = {item.name: item.identity for item in outgoing if item.identity is not None}
    return Pushed(after.reference, created, tags=tuple(new), identities=identities)


# -- before


def _ready(
    connection: Connection, reference: HubReference, outgoing: Sequence[Outgoing], *, private: bool
) -> Refs:
    """The branches and tags of the repository, which is made if need be, and so is the branch: not for broken files."""
    name = f"{reference.org}/{reference.name}"
    try:
        refs = list_refs(connection, reference)
    except NotInRegistry:
        if not connection.token:
            raise
        load_api()  # takes a while, in which the files are being hashed
        for item in outgoing:
            item.check()

        def create() -> None:
            with connection.api() as api:
                api.create_repo(name, private=private or None, exist_ok=True)

        connection.trying(f"making {name}", create)
        refs = list_refs(connection, reference)
    branch = reference.revision
    if branch in refs.tags:
        raise VersionExists(
            f"{reference} is a tag, and tags do not move", hint="push to a branch, or to none for main"
        )
    if branch is not None and branch not in refs.branches:
        for item in outgoing:
            item.check()

        def begin() -> None:
            with connection.api() as api:
                api.create_branch(name, branch=branch, exist_ok=True)

        connection.trying(f"making the branch {branch}", begin)
    return refs


def _check_tags(
    reference: HubReference, refs: Refs, tags: Sequence[str], before: Snapshot, outgoing: Sequence[Outgoing]
) -> None:
    """A tag is a version: it may be there already only if nothing is to change."""
    changes = not all(item.is_in(before) for item in outgoing) or bool(_leftovers(before, outgoing))
    for tag in tags:
        if tag in refs.branches:
            raise VersionExists(
                f"hf://{reference.org}/{reference.name} has a branch {tag!r}, so no tag can be called so"
            )
        known = refs.tags.get(tag)
        if known is not None and (changes or known != before.commit):
            raise VersionExists(
                f"hf://{reference.org}/{reference.name}@{tag} exists with other content ({known}), and tags do not move",
                hint="choose another tag",
            )


def _leftovers(before: Snapshot, outgoing: Sequence[Outgoing]) -> list[str]:
    """Shards in the repository that belong to a set of which another number is pushed now; one alone has no number."""
    new = {item.name for item in outgoing}
    stems = {match["stem"].lower() for name in new if (match := _SHARD.fullmatch(name))}
    return [
        file.path
        for file in before.files
        if file.path not in new and (match := _SHARD.fullmatch(file.path)) and match["stem"].lower() in stems
    ]


# -- the commit


def _commit(
    connection: Connection,
    before: Snapshot,
    branch: str,
    outgoing: Sequence[Outgoing],
    progress: Progress | None,
) -> tuple[Snapshot, bool]:
    """The commit that has the files, and whether it is new."""
    gone = _leftovers(before, outgoing)
    changed = _upload(connection, before, branch, outgoing, progress)
    for item in outgoing:
        item.check()
    if not changed and not gone:
        return before, False

    def is_done(snapshot: Snapshot) -> bool:
        paths = {file.path for file in snapshot.files}
        return all(item.is_in(snapshot) for item in outgoing) and not paths.intersection(gone)

    what = f"pushing to {before.asked}"
    url = connection.own_url(f"api/models/{before.repository}/commit/{urllib.parse.quote(branch, safe='')}")
    body = _commit_body(before.commit, changed, gone)
    attempts = connection.attempts()
    while True:
        try:
            headers = {"Content-Type": "application/x-ndjson"}
            with connection.answer(url, method="POST", headers=headers, content=body) as (response, _):
                connection.small_body(response)
            after = open_snapshot(connection, before.asked)
            if is_done(after):
                return after, True
            raise RegistryCorrupt(
                f"{what}: {connection.endpoint} took the commit, but its files are not those pushed"
            )
        except DczError:
            raise
        except Exception as exc:
            failure = connection.failure(exc, what)
            # Nobody knows whether it was carried out; the branch does.
            after = open_snapshot(connection, before.asked)
            if after.commit != before.commit:
                if is_done(after):
                    return after, True
                raise Conflict(
                    f"{what}: somebody else has pushed {after.commit} meanwhile",
                    hint="look at it, and push again",
                ) from exc
            if isinstance(
                failure.error, Conflict
            ):  # of nobody that could be seen: a server that is behind itself
                raise failure.error from exc
            attempts.wait(failure)


def _upload(
    connection: Connection,
    before: Snapshot,
    branch: str,
    outgoing: Sequence[Outgoing],
    progress: Progress | None,
) -> dict[Outgoing, bool]:
    """Let the Hub have what it has not; the files that are not in the commit before, and whether they are for Git LFS.

    Several files are uploaded at the same time, each as soon as it is hashed.
    """
    files = [(item.path, item.name, item.size) for item in outgoing]
    modes = upload_modes(connection, before.repository, branch, files)
    total = Total(
        progress, "upload", {item.name: item.size for item in outgoing if modes[item.name]}, connection.over
    )
    new: list[Outgoing] = []

    def one(item: Outgoing) -> None:
        if item.is_in(before):
            return
        new.append(item)
        if modes[item.name]:
            step = steps(total.one(), "", item.size)
            upload(connection, before.repository, branch, item.content(), step)

    try:
        together([lambda item=item: one(item) for item in outgoing], connection.over)  # type: ignore[misc]
    except OSError as exc:
        raise UsageError(f"cannot push {exc.filename!r}: {exc.strerror}") from exc
    except DczError:
        for item in outgoing:  # what the storage does not take may be what changed on the way
            item.check_unchanged()
        raise
    return {item: modes[item.name] for item in outgoing if item in new}


def _commit_body(parent: str, changed: Mapping[Outgoing, bool], gone: Sequence[str]) -> bytes:
    names = [item.name for item in changed]
    summary = f"Push {', '.join(names[:3])}" + (" and more" if len(names) > 3 else "")
    if not names:
        summary = "Remove what is left of other shards"
    lines: list[tuple[str, Mapping[str, object]]] = [
        ("header", {"summary": summary, "description": "", "parentCommit": parent})
    ]
    for item, is_lfs in changed.items():
        if is_lfs:
            value: dict[str, object] = {
                "path": item.name,
                "algo": "sha256",
                "oid": item.sha256,
                "size": item.size,
            }
            lines.append(("lfsFile", value))
        else:
            content = base64.b64encode(item.small_content()).decode()
            lines.append(("file", {"content": content, "path": item.name, "encoding": "base64"}))
    lines.extend(("deletedFile", {"path": path}) for path in gone)
    return b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines)

"""dcz history"""

from __future__ import annotations

from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain, show, table
from dcz.cli.targets import registry_option
from dcz.errors import UsageError

__all__ = ["command"]


@click.command("history")
@click.argument("name", required=False)
@registry_option
@json_option
def command(name: str | None, registry: Path | None, as_json: bool) -> None:
    """Show what has changed in a registry, oldest first: versions that were published, and aliases that moved.

    All of it, or that of one NAME; or the commits of hf://org/name[@revision].
    """
    if name is not None and name.startswith("hf://"):
        _commits(name, as_json)
        return
    from dcz.registry import history

    if registry is not None and not registry.is_dir():
        raise UsageError(f"there is no registry {str(registry)!r}", hint="`dcz push` makes one")
    changes = history(name, registry=registry)
    if as_json:
        keys = ("time", "user", "name", "tag", "kind", "previous", "digest")
        emit_json({"changes": [{key: getattr(change, key) for key in keys} for change in changes]})
        return
    if not changes:
        emit("nothing yet; `dcz push` puts something there")
        return
    made = table("time", "user", "what", "digest", "before")
    for change in changes:
        what = "changes before this are lost" if change.kind == "gap" else f"{change.name}:{change.tag}"
        made.add_row(change.time, plain(change.user), what, change.digest[:19], (change.previous or "")[:19])
    show(made)


def _commits(name: str, as_json: bool) -> None:
    from dcz.registry import commits

    found = commits(name)
    if as_json:
        emit_json(
            {
                "commits": [
                    {
                        "reference": str(each.reference),
                        "time": each.time,
                        "user": each.user,
                        "title": each.title,
                    }
                    for each in found
                ]
            }
        )
        return
    made = table("time", "user", "commit", "title")
    for each in found:
        made.add_row(plain(each.time), plain(each.user), str(each.reference.revision), plain(each.title))
    show(made)

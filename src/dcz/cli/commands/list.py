"""dcz list"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import count, emit, emit_json, plain, show, table
from dcz.cli.targets import registry_option
from dcz.errors import UsageError

if TYPE_CHECKING:
    from dcz.registry import Listed

__all__ = ["command"]


@click.command("list")
@click.argument("name", required=False)
@registry_option
@json_option
def command(name: str | None, registry: Path | None, as_json: bool) -> None:
    """List what is in a registry: all versions, or those of one NAME; or the tags and branches of hf://org/name.

    The bytes are those of all files of a version.
    """
    from dcz.registry import list_artifacts

    if registry is not None and not registry.is_dir():
        raise UsageError(f"there is no registry {str(registry)!r}", hint="`dcz push` makes one")
    listed = list_artifacts(name, registry=registry)
    if as_json:
        emit_json(
            {
                "versions": [
                    {
                        "reference": str(item.reference),
                        "name": item.reference.name,
                        "version": item.reference.tag,
                        "digest": item.reference.digest,
                        "aliases": list(item.aliases),
                        "created": item.created,
                        "files": list(item.files),
                        "size": item.size,
                        "problem": item.problem,
                    }
                    for item in listed
                ]
            }
        )
        return
    if not listed:
        emit("nothing yet; `dcz push` puts something there")
        return
    made = table("version", "aliases", ">bytes", ">created", "digest")
    for item in listed:
        made.add_row(
            _version(item),
            ", ".join(item.aliases),
            "damaged" if item.size is None else count(item.size),
            (item.created or "")[:10],
            str(item.reference.digest or "")[:19],
        )
    show(made)
    for item in listed:
        if item.problem is not None:
            emit(f"{_version(item)}: {plain(item.problem)}")


def _version(item: Listed) -> str:
    reference = item.reference
    return str(reference) if reference.tag is None else f"{reference.name}:{reference.tag}"

"""dcz push"""

from __future__ import annotations

from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json
from dcz.cli.progress import bars
from dcz.cli.targets import registry_option

__all__ = ["command"]


@click.command("push")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.argument("ref")
@click.option(
    "--alias", "aliases", metavar="ALIAS", multiple=True, help="Point ALIAS to it, too; may be repeated."
)
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    files: tuple[str, ...],
    ref: str,
    aliases: tuple[str, ...],
    registry: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put files into a registry, as a version of an artifact.

    The files are at least one .dcz, and others beside it. REF is name:version, or a name alone, whose version then gets
    the next number (v1, v2, ...). A version never changes; the alias `latest` moves to each new one.
    """
    from dcz.registry import push

    with bars(quiet=quiet) as update:
        done = push(files, ref, aliases=aliases, registry=registry, progress=update)
    if as_json:
        emit_json(
            {
                "reference": str(done.reference),
                "digest": done.reference.digest,
                "created": done.created,
                "changes": [
                    {"tag": change.tag, "previous": change.previous, "digest": change.digest}
                    for change in done.changes
                ],
            }
        )
    elif not quiet:
        emit(str(done.reference) if done.created else f"{done.reference} was there already")
        for change in done.changes:
            if change.tag != done.reference.tag:
                emit(f"  {change.name}:{change.tag} points to it now")

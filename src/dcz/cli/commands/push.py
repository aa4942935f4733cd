"""dcz push"""

from __future__ import annotations

import os
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
@click.option(
    "--tag",
    "tags",
    metavar="TAG",
    multiple=True,
    help="On the Hub: give it the new tag TAG; may be repeated.",
)
@click.option("--private", is_flag=True, help="On the Hub: if the repository is made, a private one.")
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    files: tuple[str, ...],
    ref: str,
    aliases: tuple[str, ...],
    tags: tuple[str, ...],
    private: bool,
    registry: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put files into a registry, as a version of an artifact.

    The files are at least one .dcz, and others beside it. REF is name:version, or a name alone, whose version then gets
    the next number (v1, v2, ...). A version never changes; the alias `latest` moves to each new one.

    REF can also be a repository on the Hugging Face Hub, hf://org/name[@branch], which is made if it is not there. The
    files become one commit; instead of files, a folder that `dcz convert -o FOLDER/` wrote can be given.
    """
    from dcz.registry import push

    with bars(quiet=quiet) as update:
        done = push(
            files[0] if len(files) == 1 else files,
            ref,
            aliases=aliases,
            tags=tags,
            private=private,
            registry=registry,
            progress=update,
        )
    if as_json:
        emit_json(
            {
                "reference": str(done.reference),
                "digest": done.reference.digest,
                "created": done.created,
                "tags": list(done.tags),
                "files": dict(done.identities),
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
        for tag in done.tags:
            emit(f"  {tag} is a new tag of it")
        if ref.startswith("hf://") and len(files) == 1 and not os.path.isdir(files[0]):
            emit("  a .dcz file alone is for dcz.load and dcz.load_model; transformers wants the folder")
            emit("  that `dcz convert MODEL -o FOLDER/` writes")

"""dcz lock"""

from __future__ import annotations

from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain
from dcz.cli.targets import registry_option

__all__ = ["command"]


@click.command("lock")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="FILE", default="dcz.lock", show_default=True, help="The file to write."
)
@registry_option
@json_option
def command(refs: tuple[str, ...], output: str, registry: Path | None, as_json: bool) -> None:
    """Write down what references stand for today.

    For each REF, the version or commit, and the identities of its .dcz files. `dcz pull REF --lock FILE` then brings exactly
    that, or fails. An existing file is replaced.
    """
    from dcz.registry import write_lock

    found = write_lock(output, refs, registry=registry)
    if as_json:
        emit_json(
            {
                "artifacts": {
                    ref: {"reference": str(each.reference), "files": dict(each.files)}
                    for ref, each in found.items()
                }
            }
        )
        return
    for each in found.values():
        emit(str(each.reference))
        for name, digest in each.files.items():
            emit(f"  {plain(name)}  {digest}")

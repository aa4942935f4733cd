"""dcz tag"""

from __future__ import annotations

from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json
from dcz.cli.targets import registry_option

__all__ = ["command"]


@click.command("tag")
@click.argument("ref")
@click.argument("alias")
@registry_option
@json_option
def command(ref: str, alias: str, registry: Path | None, as_json: bool) -> None:
    """Point an alias to a version, or on the Hub give a commit a new tag.

    ALIAS is a word such as `champion`; with REF's name before it, it becomes a REF of its own: name:champion. Moves are
    recorded.
    """
    from dcz.registry import tag

    done = tag(ref, alias, registry=registry)
    if as_json:
        emit_json(
            {
                "reference": str(done.reference),
                "digest": done.reference.digest,
                "previous": done.previous,
                "moved": done.moved,
            }
        )
        return
    emit(str(done.reference))
    if not done.moved:
        emit("  it pointed there already")
    elif done.previous is not None:
        emit(f"  before, it pointed to {done.previous}")

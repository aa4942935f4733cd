"""dcz pull"""

from __future__ import annotations

import os
from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain
from dcz.cli.progress import bars
from dcz.cli.targets import pin_options, pinned, registry_option
from dcz.registry.hints import file_hint

__all__ = ["command"]


@click.command("pull")
@click.argument("ref")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default=".",
    show_default=True,
    help="The folder for the files; made if need be.",
)
@click.option("--file", "files", metavar="NAME", multiple=True, help="Only this file; may be repeated.")
@pin_options("Bring")
@click.option("--force", is_flag=True, help="Replace files that are there and different.")
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    ref: str,
    output: str,
    files: tuple[str, ...],
    digests: tuple[str, ...],
    lock: str | None,
    force: bool,
    registry: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Copy an artifact out of a registry, or the files of a repository on the Hub, hf://org/name[@revision].

    Everything is verified before the first file appears. Files that are there already and right are kept.
    """
    from dcz.registry import pull

    wanted, digests = pinned(ref, digests, lock)
    with bars(quiet=quiet) as update, file_hint(ref):
        done = pull(
            wanted, output, files=files, digests=digests, registry=registry, progress=update, force=force
        )
    if as_json:
        emit_json(
            {
                "reference": str(done.reference),
                "digest": done.reference.digest,
                "files": [{"path": os.fspath(path), "reused": path in done.reused} for path in done.files],
                "bases": list(done.bases),
            }
        )
    elif not quiet:
        emit(str(done.reference))
        for path in done.files:
            emit(f"  {plain(os.fspath(path))}" + ("  (was there already)" if path in done.reused else ""))
        for base in done.bases:
            emit(f"  needs its base {base}, {_where(base, registry)}")


def _where(base: str, registry: Path | None) -> str:
    from dcz.registry import version_with

    found = version_with(base, registry=registry)
    return "which is not in this registry" if found is None else f"which is {found.name}:{found.tag}"

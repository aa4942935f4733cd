"""dcz hydrate"""

from __future__ import annotations

import os
from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain, plural, size
from dcz.cli.progress import bars
from dcz.cli.targets import (
    base_option,
    file_option,
    locate,
    pin_options,
    pinned,
    registry_option,
    threads_option,
)

__all__ = ["command"]


@click.command("hydrate")
@click.argument("target", metavar="FOLDER|FILE|URL|REF")
@click.option("-o", "--output", metavar="FOLDER", required=True, help="The folder to write.")
@threads_option("decode")
@file_option
@base_option
@pin_options("Take")
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    target: str,
    output: str,
    threads: int | None,
    file: str | None,
    base: tuple[str, ...],
    digests: tuple[str, ...],
    lock: str | None,
    registry: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make an ordinary folder, with safetensors weights, for every other tool.

    FOLDER is one that `dcz convert -o FOLDER/` wrote, or a copy of it; its name begins with a dot, a slash or ~, or ends
    with a slash. REF can be a repository on the Hub with such files. What was stored losslessly is identical to the folder
    that was converted, file by file. The output folder must be new or empty.
    """
    from dcz.runtime.folders import hydrate

    wanted, digests = pinned(target, digests, lock)
    source = locate(wanted, registry, file) if file is not None else os.path.expanduser(wanted)
    with bars(quiet=quiet) as update:
        done = hydrate(
            source,
            output,
            threads=threads,
            base=base or None,
            digests=digests,
            registry=registry,
            progress=update and (lambda now, total: update(f"hydrate {target}", now, total)),
        )
    if as_json:
        emit_json(
            {
                "path": done.path,
                "files": list(done.files),
                "tensors": done.tensors,
                "tensor_bytes": done.tensor_bytes,
                "original": done.original,
                "seconds": done.seconds,
                "notes": list(done.notes),
            }
        )
        return
    if quiet:
        return
    emit(
        f"{plain(done.path)}: {plural(done.tensors, 'tensor')}, {size(done.tensor_bytes)}, in {done.seconds:.2f} s"
    )
    if not done.original:
        emit("  the original safetensors headers are not known; names, types, shapes and values are kept")
    for name in done.files:
        emit(f"  {plain(name)}")
    for note in done.notes:
        emit(f"  note    {plain(note)}")

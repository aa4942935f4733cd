"""dcz report"""

from __future__ import annotations

import os
from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain, size
from dcz.cli.progress import bars
from dcz.cli.targets import file_option, open_target, registry_option

__all__ = ["command"]


@click.command("report")
@click.argument("target", metavar="FILE|URL|REF")
@click.option("-o", "--output", metavar="FILE.html", required=True, help="The page to write.")
@file_option
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    target: str, output: str, file: str | None, registry: Path | None, quiet: bool, as_json: bool
) -> None:
    """Write a page about a .dcz file: bytes by layer and by part, codes, gaps.

    One HTML file that loads nothing: the table of `dcz inspect --layers`, bars of the bytes, histograms of the codes and
    gaps of the largest layers with the lengths of their code words, and quality against size, where the file has it.

    An existing file is replaced, at the moment when the new one is whole.
    """
    from dcz.format import atomic_file
    from dcz.format.page import html_page

    with bars(quiet=quiet) as update, open_target(target, registry, file, threads=1) as reader:
        page = html_page(
            reader,
            file=target,
            tables=os.path.isfile(reader.name),
            progress=update and (lambda now, total: update(f"report {target}", now, total)),
        ).encode("utf-8")
        digest = reader.digest
    with atomic_file(output) as stream:
        stream.write(page)
    if as_json:
        emit_json({"path": output, "bytes": len(page), "digest": digest})
    elif not quiet:
        emit(f"{plain(output)}: {size(len(page))}")

"""dcz report"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain, size
from dcz.cli.progress import bars
from dcz.cli.targets import file_option, open_target, registry_option
from dcz.errors import UsageError

if TYPE_CHECKING:
    from dcz.errors import FormatError

__all__ = ["command"]

_PAGES: Final = (b"<!doctype html", b"<html")


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

    An existing page is replaced, at the moment when the new one is whole; another existing file is not. Where a layer is damaged,
    the page says so, and the command ends with an error once it is written.
    """
    from dcz.format.atomic import atomic_file, naming
    from dcz.format.page import html_page

    _check_is_page(output)
    damage: list[FormatError] = []
    with bars(quiet=quiet) as update, open_target(target, registry, file, threads=1) as reader:
        page = html_page(
            reader,
            file=target,
            tables=os.path.isfile(reader.name),
            progress=update and (lambda now, total: update(f"report {target}", now, total)),
            damaged=damage.append,
        ).encode("utf-8")
        digest = reader.digest
    with naming(output), atomic_file(output) as stream:
        stream.write(page)
    if damage:
        damage[0].locate(file=target)
        damage[0].hint = f"{output} was written, and says so"
        raise damage[0]
    if as_json:
        emit_json({"path": output, "bytes": len(page), "digest": digest})
    elif not quiet:
        emit(f"{plain(output)}: {size(len(page))}")


def _check_is_page(output: str) -> None:
    """Not a model, say the one that the page is about, whose name was typed in place of another."""
    if not os.path.isfile(output):
        return  # writing says what is wrong, if something is
    with open(output, "rb") as file:
        start = file.read(256)
    if start and not start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        raise UsageError(
            f"{output} is not an HTML page, and is not replaced by one", hint="give another name"
        )

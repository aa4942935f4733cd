"""dcz decode"""

from __future__ import annotations

from pathlib import Path

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import emit, emit_json, plain, plural, size
from dcz.cli.progress import bars
from dcz.cli.targets import base_option, bases, file_option, open_target, registry_option, threads_option

__all__ = ["command"]


@click.command("decode")
@click.argument("target", metavar="FILE|URL|REF")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    required=True,
    help="A folder, or a .safetensors or .gguf file.",
)
@threads_option("decode")
@file_option
@base_option
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    target: str,
    output: str,
    threads: int | None,
    file: str | None,
    base: tuple[str, ...],
    registry: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn a .dcz file back into safetensors or GGUF.

    A folder gets the files that were converted: the weights, under their original names, and everything that travelled
    with them. What was stored losslessly is identical byte for byte. The folder must be new or empty; an existing
    file is replaced. Any model can be written as .safetensors, one that came from GGUF as .gguf.
    """
    from dcz.converters.decoding import decode

    found = bases(base, registry)
    with (
        bars(quiet=quiet) as update,
        open_target(target, registry, file, threads=threads, base=found) as reader,
    ):
        done = decode(
            reader,
            output,
            progress=update and (lambda now, total: update(f"decode {target}", now, total)),
        )
    if as_json:
        emit_json(
            {
                "path": done.path,
                "files": list(done.files),
                "tensors": done.tensors,
                "tensor_bytes": done.tensor_bytes,
                "original": done.original,
                "headers": done.headers,
                "seconds": done.seconds,
            }
        )
    elif not quiet:
        emit(
            f"{plain(done.path)}: {plural(done.tensors, 'tensor')}, {size(done.tensor_bytes)}, "
            f"in {done.seconds:.2f} s"
        )
        if not done.original:
            emit(f"  {_why(done.headers)}")
        if Path(output).is_dir():
            for name in done.files:
                emit(f"  {plain(name)}")


def _why(headers: int) -> str:
    """Why the files are not the original ones."""
    if headers == 1:  # of GGUF
        return "some tensors are of another type than in the original file; names, shapes and values are kept"
    known = (
        f"the {headers} original safetensors headers are of several files, this one has a header of its own"
        if headers
        else "the original safetensors headers are not known"
    )
    return f"{known}; names, types, shapes and values are kept"

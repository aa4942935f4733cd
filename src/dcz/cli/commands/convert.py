"""dcz convert"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import count, emit, emit_json, plain, plural, ratio, size
from dcz.cli.progress import bars

if TYPE_CHECKING:
    from dcz.format.effort import EffortName

__all__ = ["command"]


@click.command("convert")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    help="The .dcz file to write.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    default="lossless",
    show_default=True,
    help="lossless, int8, int4, codebook, deep-compression, or a TOML file.",
)
@click.option(
    "--effort",
    type=click.Choice(["fast", "balanced", "small"]),
    default="balanced",
    show_default=True,
    help="Weigh size against the speed of reading, or look for size alone.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Threads that encode.  [default: one a core, at most 8]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    source: str,
    output: str,
    recipe: str,
    effort: EffortName,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a .dcz file from a model.

    SOURCE is a Hugging Face folder, a safetensors file or the index of its shards, a PyTorch checkpoint, or a .dcz file.
    Of a checkpoint, only tensors are read; one that holds code is refused.

    An existing output file is replaced, at the moment when the new one is whole.
    """
    from dcz.converters.conversion import convert

    with bars(quiet=quiet) as update:
        done = convert(
            source,
            output,
            recipe=recipe,
            effort=effort,
            threads=threads,
            progress=update and (lambda now, total: update(f"convert {source}", now, total)),
        )
    if as_json:
        emit_json(
            {
                "file": done.path,
                "digest": done.digest,
                "recipe": done.recipe,
                "effort": done.effort,
                "tensors": done.tensors,
                "aliases": done.aliases,
                "assets": done.assets,
                "tensor_bytes": done.tensor_bytes,
                "file_bytes": done.file_bytes,
                "ratio": done.ratio,
                "seconds": done.seconds,
                "notes": list(done.notes),
            }
        )
        return
    if quiet:
        return
    parts = [plural(done.tensors, "tensor")]
    parts += [plural(done.aliases, "alias")] if done.aliases else []
    parts += [plural(done.assets, "asset")] if done.assets else []
    emit(f"{plain(done.path)}: {plain(done.recipe)}, {', '.join(parts)}")
    emit(f"  in      {size(done.tensor_bytes)}")
    emit(f"  out     {size(done.file_bytes)}")
    speed = f", {count(round(done.tensor_bytes / done.seconds / 1e6))} MB/s" if done.seconds else ""
    emit(f"  ratio   {ratio(done.ratio)}, in {done.seconds:.2f} s{speed}")
    emit(f"  digest  {done.digest}")
    for note in done.notes:
        emit(f"  note    {plain(note)}")

"""dcz convert"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import count, emit, emit_json, plain, plural, ratio, size
from dcz.cli.progress import bars
from dcz.cli.targets import registry_option, threads_option
from dcz.registry.hints import file_hint

if TYPE_CHECKING:
    from dcz.format.effort import EffortName

__all__ = ["command"]


@click.command("convert")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    metavar="FILE|FOLDER/",
    required=True,
    help="The .dcz file to write; with a slash at its end, a folder.",
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
    "--base",
    metavar="FILE|URL|REF",
    help="Store the differences to the tensors of this .dcz, where that is smaller.",
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    help="In a folder, the most bytes of a .dcz file, such as 2GB.  [default: 5GB]",
)
@click.option(
    "--base-model",
    metavar="ORG/NAME",
    help="In a folder, the repository that the model card names.",
)
@registry_option
@threads_option("encode")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    source: str,
    output: str,
    recipe: str,
    effort: EffortName,
    base: str | None,
    max_shard_size: str | None,
    base_model: str | None,
    registry: Path | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a .dcz file from a model.

    SOURCE is a Hugging Face folder or repository (hf://org/name[@revision]), a safetensors file or the index of its shards,
    a GGUF file, a PyTorch checkpoint, or a .dcz file.
    Of a checkpoint, only tensors are read; one that holds code is refused. Weights that are quantized already (GGUF; folders of
    GPTQ, AWQ, compressed-tensors, bitsandbytes) keep their codes, and decode to what their own library decodes them to.

    A file that was made with --base can be decoded only where the base is: it is found beside it under its name, in the
    registry, or by --base.

    An existing output file is replaced, at the moment when the new one is whole.

    A FOLDER/ gets a .dcz file, or several, for each set of weights, and all other files: transformers loads it after
    `import dcz.transformers`, and `dcz hydrate` turns it back. It must be new or empty.
    """
    if output.endswith("/"):
        if base is not None:
            raise click.UsageError("--base is for a single file.")
        _to_folder(
            source,
            output,
            recipe,
            effort,
            max_shard_size,
            base_model,
            registry,
            threads,
            quiet=quiet,
            as_json=as_json,
        )
        return
    for option, value in (("--max-shard-size", max_shard_size), ("--base-model", base_model)):
        if value is not None:
            raise click.UsageError(f"{option} is for a folder: write -o {output}/")
    from dcz.runtime.loading import convert

    with bars(quiet=quiet) as update, contextlib.nullcontext() if base is None else file_hint(base):
        done = convert(
            source,
            output,
            recipe=recipe,
            effort=effort,
            base=base,
            registry=registry,
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
                "differences": done.differences,
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
    if done.differences:
        emit(f"  base    {plural(done.differences, 'tensor')} as differences to {plain(str(base))}")
    emit(f"  digest  {done.digest}")
    for note in done.notes:
        emit(f"  note    {plain(note)}")


def _to_folder(
    source: str,
    output: str,
    recipe: str,
    effort: EffortName,
    max_shard_size: str | None,
    base_model: str | None,
    registry: Path | None,
    threads: int | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from dcz.runtime.folders import save_pretrained

    with bars(quiet=quiet) as update:
        done = save_pretrained(
            source,
            output,
            recipe=recipe,
            effort=effort,
            max_shard_size=max_shard_size or "5GB",
            base_model=base_model,
            registry=registry,
            threads=threads,
            progress=update and (lambda now, total: update(f"convert {source}", now, total)),
        )
    if as_json:
        emit_json(
            {
                "folder": done.path,
                "files": [
                    {"path": file.path, "digest": file.digest, "bytes": file.size} for file in done.dcz_files
                ],
                "other_files": list(done.other_files),
                "recipe": done.recipe,
                "effort": done.effort,
                "tensors": done.tensors,
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
    emit(
        f"{plain(done.path)}: {plain(done.recipe)}, {plural(done.tensors, 'tensor')}, "
        f"{plural(len(done.other_files), 'other file')}"
    )
    emit(f"  in      {size(done.tensor_bytes)}")
    emit(f"  out     {size(done.file_bytes)}")
    emit(f"  ratio   {ratio(done.ratio)}, in {done.seconds:.2f} s")
    for file in done.dcz_files:
        emit(f"  {plain(file.path)}  {file.digest}")
    for note in done.notes:
        emit(f"  note    {plain(note)}")

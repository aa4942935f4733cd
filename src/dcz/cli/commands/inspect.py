"""dcz inspect"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import bits, count, emit, emit_json, fields, plain, plural, ratio, show, size, table
from dcz.cli.targets import file_option, open_target, registry_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from dcz.format.report import Report, TensorReport

__all__ = ["command"]


@click.command("inspect")
@click.argument("target", metavar="FILE|URL|REF")
@click.option("--tensors", is_flag=True, help="Show each tensor, not each kind of them.")
@click.option(
    "--layers",
    is_flag=True,
    help="Show density, bits and rate of each layer, as Deep Compression's tables do.",
)
@click.option(
    "--paper",
    metavar="BITS",
    type=click.IntRange(1, 8),
    help="Show that table as the paper counts, with a relative index of so many bits; all codes are decoded for it.",
)
@file_option
@registry_option
@json_option
def command(
    target: str,
    tensors: bool,
    layers: bool,
    paper: int | None,
    file: str | None,
    registry: Path | None,
    as_json: bool,
) -> None:
    """Show what is in a .dcz file, how each tensor is stored, and where the bytes went.

    Sizes are in bytes and add up to the file. The ratio is stored bytes for each original one, bits are stored bits for
    each element. Only the manifest is read, and of a file on this machine the first bytes of each coded stream.
    """
    from dcz.format.layers import layer_table
    from dcz.format.paper import paper_table
    from dcz.format.report import account

    with open_target(target, registry, file, whole=False, threads=1) as reader:
        # Of an artifact in a registry, what was asked for is shown, not in which blob it lies.
        report = replace(account(reader, tables=os.path.isfile(reader.name)), file=target)
        by_layer = layer_table(reader, report=report) if layers else None
        as_in_paper = None if paper is None else paper_table(reader, paper)
    if as_json:
        found = report.to_dict()
        found |= {} if by_layer is None else {"layer_table": by_layer.to_dict()}
        emit_json(found | ({} if as_in_paper is None else {"paper_table": as_in_paper.to_dict()}))
        return
    parts = [fields(_facts(report))]
    parts += [_bytes(report)] if by_layer is None else []
    parts += [_kinds(report)] if report.tensors and not tensors and by_layer is None else []
    parts += [_assets(report)] if report.assets else []
    show(*parts)
    for made in (by_layer, as_in_paper):
        if made is not None:
            emit("\n" + made.text())
    for text in _tensors(report) if tensors else ():
        emit(text)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    from dcz.format.report import STEP

    provenance, contents = report.provenance, plural(len(report.tensors), "tensor")
    if report.aliases:
        contents += f" and {plural(len(report.aliases), 'alias')}"
    yield "file", plain(report.file)
    yield "digest", report.digest
    yield "size", f"{size(report.size)}" + (f", ratio {ratio(report.ratio)}" if report.ratio else "")
    yield "format", f"{report.version[0]}.{report.version[1]}, written by {plain(report.producer)}"
    for base in report.bases:
        yield "base", base.digest + (f", {plain(base.hint)}" if base.hint is not None else "")
    for feature in report.requires:
        yield "needs", plain(feature)
    if provenance.source is not None:
        revision = f" at {provenance.revision}" if provenance.revision is not None else ""
        yield "source", plain(provenance.source + revision)
    for read in provenance.files:
        yield "from", f"{plain(read.path)}, {size(read.size)}"
    if provenance.recipe:
        yield "recipe", plain(str(provenance.recipe.get("name", "without a name")))
    if provenance.effort is not None:
        yield "effort", plain(provenance.effort)
    for name, value in sorted(provenance.metrics.items()):
        if STEP not in name:  # dcz report draws them
            yield "metric", f"{plain(name)} {value:g}"
    for key, text in sorted(report.metadata.items()):
        shown = plain(text)
        yield "meta", f"{plain(key)}: {shown if len(shown) <= 200 else shown[:200] + '...'}"
    elements = sum(tensor.elements for tensor in report.tensors)
    yield "tensors", f"{contents}, {plural(elements, 'element')}, {size(report.content)} decoded"


def _bytes(report: Report) -> Table:
    made, parts = table("where the bytes went", ">bytes", ">%"), report.bytes
    rows = [
        ("values" if parts.tables is not None else "values, with their code tables", parts.values),
        ("positions", parts.positions),
        ("code tables", parts.tables or 0),
        ("codebooks, scales, zero points", parts.parameters),
        ("assets", parts.assets),
        ("manifest", parts.manifest),
        ("header, padding, footer", parts.header + parts.padding + parts.footer),
    ]
    for name, taken in rows:
        if taken:
            made.add_row(name, count(taken), f"{100 * taken / report.size:.2f}")
    made.add_row("all", count(parts.total), "100.00")
    return made


def _kinds(report: Report) -> Table:
    """One row for all tensors of the same type that are stored in the same way."""
    kinds: dict[tuple[str, str], list[TensorReport]] = {}
    for tensor in report.tensors:
        kinds.setdefault((tensor.dtype, tensor.stored_as), []).append(tensor)
    made = table(">tensors", ">bytes", ">ratio", ">bits", "type", "stored as")
    for (dtype, stored_as), members in sorted(
        kinds.items(), key=lambda kind: -sum(t.stored for t in kind[1])
    ):
        stored, content = sum(t.stored for t in members), sum(t.content for t in members)
        elements = sum(t.elements for t in members)
        made.add_row(
            count(len(members)),
            count(stored),
            ratio(stored / content if content else None),
            bits(8 * stored / elements if elements else None),
            dtype,
            stored_as,
        )
    return made


def _assets(report: Report) -> Table:
    made = table("asset", ">size", ">bytes")
    for asset in report.assets:
        header = " (its header)" if asset.role == "safetensors-header" else ""
        made.add_row(plain(asset.path) + header, count(asset.size), count(asset.stored))
    return made


def _tensors(report: Report) -> Iterator[str]:
    """Two lines for each tensor: names are long, and nothing of them should be cut off."""
    yield f"\n{'bytes':>15}  {'ratio':>7}  {'bits':>8}  stored as"
    for tensor in report.tensors:
        yield f"{plain(tensor.name)}  {tensor.dtype} {list(tensor.shape)}"
        numbers = f"{count(tensor.stored):>15}  {ratio(tensor.ratio):>7}  {bits(tensor.bits_per_element):>8}"
        yield f"{numbers}  {tensor.stored_as}"
    for alias, stored in report.aliases.items():
        yield f"{plain(alias)}\n{'':>15}  {'':>7}  {'':>8}  the same as {plain(stored)}"

"""dcz verify"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import count, emit, emit_json, plain, plural, size
from dcz.cli.progress import Update, bars
from dcz.cli.targets import base_option, bases, locate, reference_of, registry_option
from dcz.registry.hints import file_hint

if TYPE_CHECKING:
    from dcz.format import BaseLike, VerifyReport
    from dcz.registry import Reference

__all__ = ["command"]

# docs/format.md, section 8
_STEPS: Final = (
    "the header is right",
    "the footer is right, and fits the file",
    "the manifest has its digest",
    "the manifest is valid",
    "chunks, streams and shapes fit together, and leave no byte over",
)


@click.command("verify")
@click.argument("target", metavar="FILE|URL|REF")
@click.option("--deep", is_flag=True, help="Decode everything, and compare it with what was published.")
@base_option
@registry_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    target: str, deep: bool, base: tuple[str, ...], registry: Path | None, quiet: bool, as_json: bool
) -> None:
    """Check a .dcz file or an artifact against its digests.

    The numbered steps are those of the format's specification (docs/format.md, section 8). The first fault ends the
    verification with an error that says where it is, and exit code 1.
    """
    reference = reference_of(target)
    found = bases(base, registry)
    with bars(quiet=quiet) as update:
        if reference is None:
            shown, reports = None, {target: _verify_file(locate(target, registry), deep, found, update)}
        else:
            shown, reports = _verify_artifact(target, reference, deep, registry, found, update)
    if as_json:
        files = [_as_dict(name, report) for name, report in reports.items()]
        emit_json({"ok": True, "reference": shown, "files": files})
    elif not quiet:
        if shown is not None:
            emit(f"{shown}: the manifest and every file have their digests")
        for name, report in reports.items():
            _print_steps(name, report)
        if reference is not None and not reports:
            emit("  none of them is a .dcz file")


def _verify_file(source: str, deep: bool, base: list[BaseLike], update: Update | None) -> VerifyReport:
    from dcz.format import verify

    if update is None:
        return verify(source, deep=deep, base=base)
    from dcz.format import Reader

    with Reader(source) as reader:
        total = sum(reader.geometry.chunk_lengths)
        total += sum(tensor.nbytes for tensor in reader.geometry.tensors.values()) if deep else 0
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        update(f"verify {source}", done, total)

    return verify(source, deep=deep, base=base, progress=add)


def _verify_artifact(
    target: str,
    reference: Reference,
    deep: bool,
    registry: Path | None,
    base: list[BaseLike],
    update: Update | None,
) -> tuple[str, dict[str, VerifyReport]]:
    from dcz.registry import verify

    with file_hint(target):
        verified = verify(reference, deep=deep, registry=registry, base=base, progress=update)
    return str(verified.reference), verified.reports


def _as_dict(name: str, report: VerifyReport) -> dict[str, Any]:
    return {
        "file": name,
        "digest": report.digest,
        "size": report.size,
        "tensors": report.tensors,
        "assets": report.assets,
        "chunks": report.chunks,
        "deep": report.deep,
        "bases": list(report.bases),
        "steps": list(range(1, 8 if report.deep else 7)),
    }


def _print_steps(name: str, report: VerifyReport) -> None:
    emit(f"{plain(name)}: ok, {size(report.size)}")
    what = (
        "1 chunk has its digest"
        if report.chunks == 1
        else f"{count(report.chunks)} chunks have their digests"
    )
    steps = [*_STEPS, f"{what}; padding is zero"]
    if report.deep:
        contents = f"{plural(report.tensors, 'tensor')} and {plural(report.assets, 'asset')}"
        steps.append(f"{contents} decode to what was published")
    for number, step in enumerate(steps, 1):
        emit(f"  {number}  {step}")
    if not report.deep:
        emit("  7  not done: --deep decodes everything, too")
    for base in report.bases:
        emit(f"  its base {base}" + (" was read, too" if report.deep else " is needed to decode it"))
    emit(report.digest)

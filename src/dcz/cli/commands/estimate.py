"""dcz estimate"""

from __future__ import annotations

import click

from dcz.cli.boundary import json_option
from dcz.cli.output import bits, count, emit, emit_json, plain, plural, ratio, show, size, table
from dcz.cli.progress import bars

__all__ = ["command"]


@click.command("estimate")
@click.argument("source")
@click.option(
    "--recipe",
    "recipes",
    metavar="NAME|FILE",
    multiple=True,
    help="Only this recipe; may be given several times.  [default: all that are built in]",
)
@json_option
def command(source: str, recipes: tuple[str, ...], as_json: bool) -> None:
    """Say what each recipe would make of a model, before any work.

    SOURCE is what `dcz convert` takes. Samples of the tensors are read and encoded; nothing is written. The sizes are mostly
    within two percent of what convert makes; what a recipe does to the quality of the model is not looked at.
    """
    from dcz.converters.estimate import estimate

    with bars() as update:
        found = estimate(
            source,
            recipes=recipes or None,
            progress=update and (lambda now, total: update(f"estimate {source}", now, total)),
        )
    if as_json:
        emit_json(
            {
                "tensors": found.tensors,
                "elements": found.elements,
                "tensor_bytes": found.tensor_bytes,
                "sampled_bytes": found.sampled_bytes,
                "seconds": found.seconds,
                "estimates": [
                    {
                        "recipe": one.recipe,
                        "effort": one.effort,
                        "file_bytes": None if one.problem else one.file_bytes,
                        "ratio": None if one.problem else one.ratio,
                        "bits_per_weight": None if one.problem else one.bits_per_weight,
                        "problem": one.problem,
                    }
                    for one in found.estimates
                ],
                "hints": list(found.hints),
            }
        )
        return
    share = 100 * found.sampled_bytes / found.tensor_bytes if found.tensor_bytes else 100
    emit(f"{plain(source)}: {plural(found.tensors, 'tensor')}, {size(found.tensor_bytes)}")
    emit(f"  read {share:.3g} % of it, in {found.seconds:.2f} s\n")
    made = table("recipe", "effort", ">about bytes", ">ratio", ">bits")
    for one in found.estimates:
        sizes = (
            ("", "", "")
            if one.problem
            else (count(one.file_bytes), ratio(one.ratio), bits(one.bits_per_weight))
        )
        made.add_row(plain(one.recipe), one.effort, *sizes)
    show(made)
    for hint in found.hints:
        emit(f"  note    {plain(hint)}")
    for one in found.estimates:
        if one.problem:
            emit(f"  note    {plain(one.recipe)} cannot be applied: {plain(one.problem)}")

"""What is wrong with a recipe, in its author's terms: file, line, field, and what is allowed there."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, get_args

from pydantic import BaseModel, ValidationError

from dcz.converters.recipe_actions import MagnitudePruning, Misplaced

__all__ = ["explain"]

_Family: TypeAlias = Mapping[str, type[BaseModel]]

# Lists of tables.
_LISTS: Final = ("rules", "stages")

Path = list[str | int]


@functools.cache
def _families(root: type[BaseModel]) -> Mapping[str, _Family]:
    """The fields whose kind decides which further fields they have, in a model or anywhere below it: the kinds of each."""
    families: dict[str, _Family] = {}
    waiting, seen = [root], {root}
    while waiting:
        for name, field in waiting.pop().model_fields.items():
            members = list(_models(field.annotation))
            kinds = {
                get_args(member.model_fields["kind"].annotation)[0]: member
                for member in members
                if "kind" in member.model_fields
            }
            if len(kinds) > 1:
                families[name] = kinds
            waiting += [member for member in members if member not in seen]
            seen.update(members)
    return families


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def explain(
    error: ValidationError, text: str, file: str, *, root: type[BaseModel], rule: type[BaseModel]
) -> str:
    """One line for each fault, in the order of the file.

    ``text``: the TOML that was validated. ``file``: its name. ``root`` and ``rule``: the models of the whole recipe and
    of an item of its list ``rules``.
    """
    faults = [_fault(fault, text, file, root, rule) for fault in error.errors(include_url=False)]
    return "\n".join(fault for _, fault in sorted(faults, key=lambda fault: fault[0]))


def _fault(fault: Any, text: str, file: str, root: type[BaseModel], rule: type[BaseModel]) -> tuple[int, str]:
    path, model = _field(fault["loc"], root, rule)
    match fault["type"]:
        case "extra_forbidden":
            what = f"unknown field; allowed: {', '.join(model.model_fields)}"
        case "missing":
            what = "is missing"
        case "union_tag_not_found":
            what = f"the field 'kind' is missing; allowed: {_kinds(path, root)}"
        case "union_tag_invalid":
            what = f"unknown kind {fault['ctx']['tag']!r}; allowed: {_kinds(path, root)}"
        case "value_error":
            error = fault["ctx"]["error"]
            what = str(error)
            path += error.place if isinstance(error, Misplaced) else ()
        case "too_short" | "string_too_short":
            least = fault["ctx"]["min_length"]
            unit = "item" if fault["type"] == "too_short" else "character"
            what = f"at least {least} {unit}{'s' if least > 1 else ''} needed, not {_short(fault['input'])}"
        case "tuple_type":
            what = f"a list is expected, not {_short(fault['input'])}"
        case "model_type" | "model_attributes_type":
            what = f"a table is expected, not {_short(fault['input'])}"
        case _:
            what = f"{fault['msg']}, not {_short(fault['input'])}"
    line = _line(text, path)
    return line or 0, f"{file}{f':{line}' if line else ''}: {_dotted(path)}: {what}"


def _field(
    location: Sequence[str | int], root: type[BaseModel], rule: type[BaseModel]
) -> tuple[Path, type[BaseModel]]:
    """The path of a field as it stands in the file, without the kinds that pydantic adds, and the model around it."""
    model = root
    path: Path = []
    kinds: _Family = {}
    for step in location:
        if step in kinds:
            model, kinds = kinds[str(step)], {}  # a field may be called like its kind
            continue
        if step == "pruning":
            model = MagnitudePruning
        elif step == "rules":
            model = rule
        path.append(step)
        kinds = _family(path, root)
    if path and path[-1] in ("pruning", *_LISTS):
        model = root
    return path, model


def _family(path: Path, root: type[BaseModel]) -> _Family:
    """The kinds of what stands at a path; of an item of a list, those of the list."""
    name = path[0] if len(path) == 2 and path[0] in _LISTS else path[-1] if path else None
    return _families(root).get(str(name), {})


def _kinds(path: Path, root: type[BaseModel]) -> str:
    return ", ".join(_family(path, root))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(path: Path) -> str:
    """``rules[1].values.bits``, items of a list counted from 1."""
    text = ""
    for step in path:
        text += f"[{step + 1}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "recipe"


def _line(text: str, path: Path) -> int | None:
    """The line, from 1, where a field stands, or else what it belongs to. tomllib does not tell, so this looks for it:
    in the table of its rule, for one key after the other."""
    lines = text.splitlines()
    start, end = 0, len(lines)
    keys = [step for step in path if isinstance(step, str)]
    found: int | None = None
    if len(path) > 1 and keys[0] in _LISTS:
        header = re.compile(rf"\s*\[\[\s*{keys[0]}\s*\]\]")
        headers = [number for number, line in enumerate(lines) if header.match(line)]
        index = path[1]
        if not isinstance(index, int) or index >= len(headers):
            return None
        found = start = headers[index]
        end = headers[index + 1] if index + 1 < len(headers) else end
        keys = keys[1:]
    for key in keys:
        name = re.escape(key)
        at_start = re.compile(rf"\s*(\[[^\]]*\b{name}\s*\]|([\w-]+\s*\.\s*)*{name}\s*[=.])")
        inside = re.compile(rf"[{{,.]\s*{name}\s*=")
        hits = [n for n in range(start, end) if at_start.match(lines[n])]
        hits = hits or [n for n in range(start, end) if inside.search(lines[n])]
        if not hits:
            break
        found = start = hits[0]
        if "{" in lines[found]:
            end = found + 1
    return None if found is None else found + 1

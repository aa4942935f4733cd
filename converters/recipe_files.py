"""Recipes as TOML: what `load_recipe` reads back as an equal recipe."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dcz.converters.recipes import Recipe

__all__ = ["recipe_text", "save_recipe"]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_LISTS: Final = ("rules", "stages")


def save_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write a recipe to a file, for ``dcz convert --recipe``. Raises OSError."""
    Path(path).write_text(recipe_text(recipe), encoding="utf-8", newline="\n")


def recipe_text(recipe: Recipe) -> str:
    """A recipe as TOML, without what is the default anyway."""
    content = recipe.describe()
    head = {"name": recipe.name, "description": recipe.description}
    blocks = [[f"{key} = {_value(value)}" for key, value in head.items() if value]]
    for part in _LISTS:
        for item in content.get(part, []):
            blocks.append([f"[[{part}]]", *(f"{_key(key)} = {_value(value)}" for key, value in item.items())])
    return "\n".join("\n".join(block) + "\n" for block in blocks)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        fields = ", ".join(
            f"{_key(key)} = {_value(field)}" for key, field in value.items() if field is not None
        )
        return f"{{ {fields} }}" if fields else "{}"
    if isinstance(value, list):
        lines = [_value(item) for item in value]
        return (
            f"[{', '.join(lines)}]"
            if sum(map(len, lines)) < 90
            else "[\n" + "".join(f"    {line},\n" for line in lines) + "]"
        )
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the halves of surrogate pairs, and TOML wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)

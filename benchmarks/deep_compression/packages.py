"""Files that packages carry, without running the packages' code."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def file_of(module: str, *parts: str) -> Path:
    """The path of a file inside an installed package."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise SystemExit(f"{module} is not installed: run `make study` once")
    return Path(found.origin).parent.joinpath(*parts)

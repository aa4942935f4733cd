"""Files that are to be pushed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from dcz.errors import UsageError
from dcz.registry.artifact import check_file_names

__all__ = ["files_to_push", "is_dcz"]


def is_dcz(path: Path) -> bool:
    return path.name.lower().endswith(".dcz")


def files_to_push(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[Path, int]:
    """The files and their sizes. Raises UsageError for what cannot be pushed."""
    files: dict[Path, int] = {}
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        try:
            info = path.stat()
        except (OSError, ValueError) as exc:
            raise UsageError(f"cannot push {str(path)!r}: {getattr(exc, 'strerror', None) or exc}") from exc
        if not stat.S_ISREG(info.st_mode):
            hint = "give the files in it" if stat.S_ISDIR(info.st_mode) else None
            raise UsageError(f"cannot push {str(path)!r}: it is not a regular file", hint=hint)
        files[path] = info.st_size
    if not any(is_dcz(path) for path in files):
        raise UsageError("an artifact needs a .dcz file", hint="`dcz convert` makes one")
    try:
        check_file_names(path.name for path in files)
    except ValueError as exc:
        raise UsageError(f"cannot push these files: {exc}") from exc
    return files

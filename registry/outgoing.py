"""Files that are to be pushed. Imports nothing that is slow to import, unless the names are to be checked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from dcz.errors import UsageError

__all__ = ["check_names", "files_of_folder", "files_to_push", "is_dcz"]


def is_dcz(path: Path) -> bool:
    return path.name.lower().endswith(".dcz")


def files_to_push(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[Path, int]:
    """The files and their sizes; ``check_names`` is still to be asked. Raises UsageError for what cannot be pushed."""
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
    return files


def files_of_folder(folder: Path) -> dict[Path, str]:
    """The files of a folder and its sub-folders, without hidden ones, and their paths in it; ``check_names`` is still to be asked.

    Raises UsageError if one of them cannot be pushed, or none is a .dcz file.
    """
    files: dict[Path, str] = {}
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_dir() or any(part.startswith(".") for part in name.parts):
                continue
            if not path.is_file():
                raise UsageError(f"cannot push {str(path)!r}: it is not a regular file")
            files[path] = name.as_posix()
    except OSError as exc:
        raise UsageError(f"cannot push {str(folder)!r}: {exc.strerror}") from exc
    if not any(is_dcz(path) for path in files):
        raise UsageError(f"{str(folder)!r} has no .dcz file", hint="`dcz convert MODEL -o FOLDER/` makes one")
    return files


def check_names(names: Iterable[str], *, nested: bool = False) -> None:
    """Raise UsageError for names that files cannot have everywhere; only if ``nested`` they may have folders in them."""
    from dcz.format.manifest import check_asset_paths
    from dcz.registry.artifact import check_file_names

    names = list(names)
    for name in names:
        if not name.isascii() and name != name.encode(errors="replace").decode():
            raise UsageError(f"cannot push these files: the name {name!r} is not UTF-8")
    try:
        if nested:
            check_asset_paths(names)
        else:
            check_file_names(names)
    except ValueError as exc:
        raise UsageError(f"cannot push these files: {exc}") from exc

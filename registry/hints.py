"""What to say to those who meant a file, and wrote what reads as a reference."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

from dcz.errors import InvalidReference, NotInRegistry

__all__ = ["file_hint"]


@contextlib.contextmanager
def file_hint(target: object) -> Generator[None]:
    """Improve the hint of an error inside if ``target`` was taken for a reference and a file or folder of that name exists.

    What is a file is decided by the text alone, never by what happens to lie around.
    """
    try:
        yield
    except (InvalidReference, NotInRegistry) as exc:
        if isinstance(target, str) and os.path.exists(target):
            kind = "folder" if os.path.isdir(target) else "file"
            exc.hint = f"for the {kind} of that name write ./{target}"
        raise

"""The vectors of versions that are stable: ``python -m tests.vectors.freeze`` adds those that are not frozen yet.

``frozen.json`` has the SHA-256 of every vector that a stable version of the format came with. They are part of what that
version promises (docs/format.md, section 10.1): nobody changes or removes one. More may be added at any time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.vectors.generate import FOLDER

__all__ = ["FROZEN", "faults", "main", "present"]

FROZEN = FOLDER / "frozen.json"


def present() -> dict[str, str]:
    """The vectors that there are, and what each must give, by their names, with their SHA-256."""
    paths: list[Path] = [*FOLDER.glob("good/*"), *FOLDER.glob("bad/*.dcz")]
    return {
        path.relative_to(FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
    }


def faults(frozen: dict[str, str], found: dict[str, str]) -> list[str]:
    """The frozen vectors that are not as they were."""
    return [
        f"{name} {'was changed' if name in found else 'is missing'}"
        for name in frozen
        if found.get(name) != frozen[name]
    ]


def main() -> None:
    frozen: dict[str, str] = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
    found = present()
    broken = faults(frozen, found)
    if broken:
        raise SystemExit("frozen vectors stay as they are: " + "; ".join(broken))
    FROZEN.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    print(f"{len(found) - len(frozen)} vectors frozen, {len(found)} in all")


if __name__ == "__main__":
    main()

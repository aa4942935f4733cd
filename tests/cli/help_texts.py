"""The help texts in docs/guides/command-line.md: found, compared by a test, and written by

python -m tests.cli.help_texts
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "command-line.md"

_BLOCK = re.compile(r"(?<=^```text\n)\$ (dcz(?: \w+)? --help)\n.*?(?=^```$)", re.MULTILINE | re.DOTALL)


def help_text(command: str) -> str:
    """What ``dcz [command] --help`` prints on a terminal of 80 columns, without colour."""
    words = command.split()[1:]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-m", "dcz", *words], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def commands_in(guide: str) -> list[str]:
    """The commands whose help the guide shows, such as ``dcz inspect --help``."""
    return [match[1] for match in _BLOCK.finditer(guide)]


def with_help_texts(guide: str, help_of: Callable[[str], str] = help_text) -> str:
    """The guide with each help text as it is now."""
    return _BLOCK.sub(lambda match: f"$ {match[1]}\n{help_of(match[1])}", guide)


if __name__ == "__main__":
    GUIDE.write_text(with_help_texts(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")

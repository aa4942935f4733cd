"""The command line: thin, without logic, and the only code that prints or exits (docs/guides/command-line.md).

group.py       the command `dcz`; a subcommand is imported when it is called
boundary.py    errors become a line and an exit code here, and nowhere else
output.py      what goes to standard output: text, tables, JSON
progress.py    what goes to standard error while one waits
targets.py     FILE, URL or REF
commands/      one file for each verb: parse, call, show
"""

from __future__ import annotations

from dcz.cli.group import main

__all__ = ["main"]

"""How long until `dcz --help` and `dcz inspect` have answered? Whole processes; the best of several."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import dcz
from benchmarks.common import Figure, minilm, run_python, seconds

ROUNDS = 7
_IMPORTED = """
import sys
from dcz.cli import main
try: main(sys.argv[1:])
except SystemExit: pass
print("torch" in sys.modules)
"""


def run() -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model.dcz"
        dcz.convert(minilm(), packed)
        for arguments, most in ((["--help"], 0.3), (["inspect", str(packed)], 0.6)):
            command = [sys.executable, "-m", "dcz", *arguments]
            best = min(
                seconds(lambda c=command: subprocess.run(c, check=True, stdout=subprocess.DEVNULL))  # type: ignore[misc]
                for _ in range(ROUNDS)
            )
            torch_free = run_python(_IMPORTED, *arguments).splitlines()[-1] == "False"
            figures.append(
                Figure(
                    f"`dcz {arguments[0]}`, seconds, torch not imported",
                    f"at most {most}",
                    f"{best:.2f}, {'not imported' if torch_free else 'IMPORTED'}",
                    best <= most and torch_free,
                )
            )
    return figures

"""A process that writes a .dcz file where something is in its way:

    python -m tests.format.write_driver full FOLDER SIZE            the disk is FOLDER, and has SIZE bytes
    python -m tests.format.write_driver file-size FOLDER SIZE       no file may have more than SIZE bytes
    python -m tests.format.write_driver killed FOLDER 0             it says "ready" half-way, and waits for its end

For the first two, it prints what was raised. ``NAMED=1`` in the environment does without files that have no name.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from dcz.format import Writer, atomic


def write(path: Path, half_way: bool = False) -> str:
    random = np.random.default_rng(0)
    try:
        with Writer(path, threads=2) as writer:
            for name in ("a", "b", "c"):
                writer.add_tensor(name, random.integers(0, 256, 1 << 20).astype(np.uint8))
                if half_way:
                    print("ready", flush=True)
                    time.sleep(60)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "written"


def main(scenario: str, folder: Path, size: int) -> None:
    if os.environ.get("NAMED"):
        atomic._open_unnamed = lambda folder: None
    if scenario == "full":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    elif scenario == "file-size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    old = folder / "old.dcz"
    if scenario == "full":
        old.write_bytes(b"what was here before")
    results = [write(folder / "new.dcz", scenario == "killed"), write(old)]
    names = sorted(path.name for path in folder.iterdir())
    print(*results, *names, old.read_bytes() == b"what was here before")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

"""dcz as a process of its own, in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

COMMAND = (sys.executable, "-m", "dcz")
_OURS = ("DCZ_REGISTRY", "XDG_DATA_HOME", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTHONPATH")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Home:
    """A temporary home, which is also the working folder."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in _OURS}
        return {**kept, "HOME": str(self.path), "LC_ALL": "C.UTF-8", "TERM": "xterm"}

    @property
    def registry(self) -> Path:
        return self.path / ".local" / "share" / "dcz" / "registry"

    def run(self, *arguments: str | Path, code: int = 0, command: tuple[str, ...] = COMMAND) -> Result:
        """Run ``dcz`` to its end, and insist on the exit code; whatever it is, no traceback is shown."""
        done = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        if code == 0:
            assert done.stderr == ""
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start ``dcz`` and leave it alone."""
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=self.path, env=self.environment, **options
        )

    def names(self, folder: str = ".") -> set[str]:
        """What is in a folder, hidden files too."""
        return {path.name for path in (self.path / folder).iterdir() if path != self.path / ".local"}


def write_model(path: Path, *, elements: int = 40_000, seed: int = 0) -> dict[str, np.ndarray]:
    """A safetensors file as training leaves it: matrices, a bias, integers, a scalar."""
    rng = np.random.default_rng(seed)
    rows = elements // 200
    tensors: dict[str, np.ndarray] = {
        "encoder.layer.0.attention.weight": (rng.standard_normal((rows, 200)) * 0.03).astype(np.float32),
        "encoder.layer.0.attention.bias": rng.standard_normal(rows).astype(np.float32),
        "encoder.layer.0.norm.weight": np.ones(200, np.float16),
        "embeddings.position_ids": np.arange(512, dtype=np.int64).reshape(1, 512),
        "scale": np.array(0.125, np.float64),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors

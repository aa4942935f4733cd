"""The version, in the one place that pyproject.toml, the manifest's `producer` and `dcz --version` read."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"

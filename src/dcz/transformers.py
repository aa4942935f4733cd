"""Importing this lets transformers load models in .dcz files.

    import dcz.transformers
    from transformers import AutoModel

    model = AutoModel.from_pretrained("me/model-dcz")

Raises MissingDependency without torch and a transformers that dcz knows (docs/guides/transformers.md).
"""

from __future__ import annotations

from dcz.errors import MissingDependency

try:
    from dcz.runtime.pretrained import DczConfig, DczQuantizer
except ImportError as exc:
    missing = (exc.name or "").partition(".")[0]
    if missing not in ("torch", "transformers"):
        raise
    package = {"torch": "torch", "transformers": "transformers>=5"}[missing]
    raise MissingDependency(package, needed_for="dcz.transformers", extra="transformers") from exc

__all__ = ["DczConfig", "DczQuantizer"]

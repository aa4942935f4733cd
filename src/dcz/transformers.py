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
    if (exc.name or "").partition(".")[0] not in ("torch", "transformers"):
        raise
    raise MissingDependency("transformers>=5", needed_for="dcz.transformers", extra="transformers") from exc

__all__ = ["DczConfig", "DczQuantizer"]

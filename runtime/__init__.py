"""From .dcz to what runs: tensors (loading.py), a file that is open (files.py), a transformers model (transformers.py)."""

from __future__ import annotations

"""Which Hub, as whom, and with how much patience."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from dcz.errors import UsageError

__all__ = ["Hub", "Patience"]

_GIVE_UP: Final = "DCZ_HUB_PATIENCE"


def _give_up() -> float:
    text = os.environ.get(_GIVE_UP, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{_GIVE_UP} is {text!r}, not a number of seconds")
    return seconds


@dataclass(frozen=True, slots=True)
class Patience:
    """When to wait and when to give up; all in seconds.

    stall      without a byte, after which a connection counts as dead
    give_up    of trying without getting any further; ``$DCZ_HUB_PATIENCE``, else 120
    first      the first pause between two tries; each next one is twice as long
    longest    the longest pause, unless the Hub asks for more
    """

    stall: float = 10.0
    give_up: float = field(default_factory=_give_up)
    first: float = 0.5
    longest: float = 8.0


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hugging Face Hub: what ``registry=`` takes for references that begin with ``hf://``.

    ``endpoint``: its URL; None is that of huggingface_hub (``$HF_ENDPOINT``). ``token``: None is the one that huggingface_hub
    finds (``$HF_TOKEN``, or a login); False is none. ``cache``: the folder for files that are read again; None is that of
    huggingface_hub, or one beside it for another Hub than huggingface.co: the cache knows repositories by name only.
    """

    endpoint: str | None = None
    token: str | Literal[False] | None = None
    cache: Path | None = None
    patience: Patience = field(default_factory=Patience)

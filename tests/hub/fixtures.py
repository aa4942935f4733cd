"""Fixtures for tests that need a Hub. Import them by name in a conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.hub.server import TestHub

from dcz.registry import Hub, Patience

__all__ = ["ada", "as_user", "hub", "hub_environment"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    """A Hub without users or repositories."""
    with TestHub(tmp_path / "hub") as made:
        yield made


@pytest.fixture
def hub_environment(hub: TestHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that is to use that Hub, and nobody's tokens or caches."""
    home = tmp_path / "hf"
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}


@pytest.fixture
def ada(hub: TestHub, tmp_path: Path) -> Hub:
    """That Hub for the user ada, who may write; in little patience, and with a cache of her own."""
    return as_user(hub, hub.add_user("ada"), tmp_path / "cache")


def as_user(hub: TestHub, token: str | Literal[False], cache: Path) -> Hub:
    patience = Patience(stall=0.5, give_up=2.0, first=0.01, longest=0.05)
    return Hub(hub.url, token, cache, patience)

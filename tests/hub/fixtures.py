"""Fixtures for tests that need a Hub. Import them by name in a conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub.server import TestHub

__all__ = ["hub", "hub_environment"]


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

from __future__ import annotations

from pathlib import Path

import pytest
from tests.hub.fixtures import ada, hub, hub_environment
from tests.registry.dcz_files import MakeDcz, write_dcz

__all__ = ["ada", "hub", "hub_environment", "make_dcz"]


@pytest.fixture
def make_dcz(tmp_path: Path) -> MakeDcz:
    """``make_dcz(name, seed)`` writes a .dcz file into a folder of sources."""

    def make(name: str = "model.dcz", seed: int = 0, elements: int = 2000) -> Path:
        return write_dcz(tmp_path / "sources" / name, seed, elements)

    return make

"""A home for each test, with a model in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.process import Home, write_model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and what ``dcz convert`` makes of it."""
    folder = tmp_path_factory.mktemp("converted")
    write_model(folder / "model.safetensors")
    Home(folder).run("convert", "model.safetensors", "-o", "model.dcz", "--quiet")
    return folder


@pytest.fixture
def model(home: Home, converted: Path) -> Home:
    """A home with ``model.safetensors`` and ``model.dcz``."""
    for name in ("model.safetensors", "model.dcz"):
        (home.path / name).write_bytes((converted / name).read_bytes())
    return home

"""Locks: the same comes tomorrow, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.hub.server import TestHub
from tests.registry.dcz_files import MakeDcz

from dcz.errors import RegistryCorrupt, UsageError
from dcz.format import Reader
from dcz.registry import Hub, locked, pull, write_lock


def test_what_a_branch_was_is_what_comes(hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path) -> None:
    first, second = make_dcz(seed=1).read_bytes(), make_dcz("other.dcz", 2)
    with Reader(first) as reader:
        digest = reader.digest
    commit = hub.add_files("ada/m", {"model.dcz": first}, lfs=["model.dcz"])
    write_lock(tmp_path / "dcz.lock", ["hf://ada/m"], registry=ada)
    assert json.loads((tmp_path / "dcz.lock").read_text()) == {
        "version": 1,
        "artifacts": {"hf://ada/m": {"reference": f"hf://ada/m@{commit}", "files": {"model.dcz": digest}}},
    }
    hub.add_files("ada/m", {"model.dcz": second})
    known = locked(tmp_path / "dcz.lock", "hf://ada/m")
    done = pull(known.reference, tmp_path / "here", digests=known.files.values(), registry=ada)
    assert done.files[0].read_bytes() == first
    with pytest.raises(UsageError, match="nothing of hf://ada/n"):
        locked(tmp_path / "dcz.lock", "hf://ada/n")
    hub.add_files("ada/n", {"a.txt": b"a"})
    with pytest.raises(UsageError, match=r"no \.dcz file"):
        write_lock(tmp_path / "dcz.lock", ["hf://ada/n"], registry=ada)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "artifacts": {}}', '{"version": 1, "artifacts": {"m": {"reference": "m", "files": {}}}}',
     '{"version": 1, "artifacts": {"m": {"reference": "m", "files": {"a.dcz": "blake3:0"}}}}'],
)  # fmt: skip
def test_what_is_no_lock(tmp_path: Path, text: str) -> None:
    (tmp_path / "dcz.lock").write_text(text)
    with pytest.raises(RegistryCorrupt):
        locked(tmp_path / "dcz.lock", "m")

"""What a stable version of the format promises: its vectors are as they were."""

from __future__ import annotations

import json

from tests.vectors.freeze import FROZEN, faults, present


def test_frozen_vectors_are_as_they_were() -> None:
    frozen = json.loads(FROZEN.read_text())
    assert frozen
    assert faults(frozen, present()) == []


def test_every_vector_is_frozen() -> None:
    """A new one is frozen by `python -m tests.vectors.freeze`, with the version that it belongs to."""
    assert present().keys() <= json.loads(FROZEN.read_text()).keys()


def test_a_change_is_noticed() -> None:
    frozen = {"good/a.dcz": "1", "good/b.dcz": "2", "good/c.dcz": "3"}
    assert faults(frozen, {"good/a.dcz": "1", "good/b.dcz": "x"}) == [
        "good/b.dcz was changed",
        "good/c.dcz is missing",
    ]

"""dcz list: what it says of names that are not there, and of an index that a stranger wrote."""

from __future__ import annotations

import json

from tests.cli.process import Home


def test_a_name_that_is_not_there(model: Home) -> None:
    assert "nothing yet" in model.run("list").out
    for _ in range(2):  # without a registry, and in one
        error = model.run("list", "minilmm", "--json", code=3).json["error"]
        assert error["code"] == "not-in-registry"
        model.run("push", "model.dcz", "minilm:1")
    assert error["hint"] == "did you mean minilm?"
    assert model.run("list", "minilm:1", "--json", code=2).json["error"]["code"] == "invalid-reference"
    assert len(model.run("list", "minilm", "--json").json["versions"]) == 1


def test_history(model: Home) -> None:
    assert "nothing yet" in model.run("history").out
    model.run("push", "model.dcz", "m:1", "--alias", "best")
    changes = model.run("history", "--json").json["changes"]
    assert {(change["tag"], change["kind"], change["previous"]) for change in changes} == {
        ("1", "version", None),
        ("latest", "alias", None),
        ("best", "alias", None),
    }
    assert len({change["digest"] for change in changes}) == 1
    assert model.run("history", "m", "--json").json["changes"] == changes
    assert "m:best" in model.run("history").out
    assert model.run("history", "mm", "--json", code=3).json["error"]["hint"] == "did you mean m?"


def test_what_is_no_time_is_not_shown(model: Home) -> None:
    model.run("push", "model.dcz", "m:1")
    path = model.registry / "index.json"
    index = json.loads(path.read_bytes())
    for time in ("\x1b[2J\x1b]0;x", "2026-01-31T12:00:00Z\x1b", "yesterday", "2026-01-31T12:00:00.5+02:00"):
        for entry in index["manifests"]:
            entry["annotations"]["org.opencontainers.image.created"] = time
        path.write_text(json.dumps(index))
        text = model.run("list").out
        assert "\x1b" not in text
        assert ("2026-01-31" in text) == time.endswith("+02:00")
        (version,) = model.run("list", "--json").json["versions"]
        assert version["created"] == (time if time.endswith("+02:00") else None)

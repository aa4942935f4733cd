"""dcz lock, and the pins of dcz pull."""

from __future__ import annotations

from tests.cli.process import Home


def test_a_registry_is_locked_too(model: Home) -> None:
    model.run("push", "model.dcz", "m:1")
    printed = model.run("lock", "m", "--json").json["artifacts"]["m"]
    assert printed["reference"].startswith("m:1@sha256:")
    original = (model.path / "model.dcz").read_bytes()
    model.run("convert", "model.safetensors", "-o", "model.dcz", "--recipe", "int8", "-q")
    model.run("push", "model.dcz", "m:2")
    model.run("pull", "m", "--lock", "dcz.lock", "-o", "here")
    assert (model.path / "here" / "model.dcz").read_bytes() == original
    failed = model.run("pull", "m:2", "--digest", printed["files"]["model.dcz"], "-o", "there", code=5)
    assert "not what was asked for" in failed.err

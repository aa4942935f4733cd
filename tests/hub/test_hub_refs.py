"""Tags and branches of a repository, and what the command line makes of the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.hub.faults import Fault
from tests.hub.server import TestHub
from tests.hub.wire import Answer, Request
from tests.registry.dcz_files import MakeDcz

from dcz.errors import InvalidReference, NotInRegistry, RegistryCorrupt, VersionExists
from dcz.registry import Hub, commits, list_artifacts, push, tag


def test_tags_stay(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    first = push(make_dcz(seed=1), "hf://ada/m", registry=ada).reference
    done = tag("hf://ada/m", "v1", registry=ada)
    assert (done.reference, done.previous, done.moved) == (first, None, True)
    assert not tag("hf://ada/m", "v1", registry=ada).moved
    push(make_dcz(seed=2), "hf://ada/m", registry=ada)
    with pytest.raises(VersionExists, match="do not move"):
        tag("hf://ada/m", "v1", registry=ada)
    hub.faults.add(Fault("lost", path="/tag/"))
    assert tag("hf://ada/m", "v2", registry=ada).moved
    tags = {name: f"hf://ada/m@{commit}" for name, commit in hub.repository("ada/m").tags.items()}
    assert tags == {"v1": str(first), "v2": f"hf://ada/m@{hub.head('ada/m')}"}
    for wrong in ("a..b", "0" * 40):
        with pytest.raises(InvalidReference):
            tag("hf://ada/m", wrong, registry=ada)
    with pytest.raises(NotInRegistry):
        tag("hf://ada/m@none", "v3", registry=ada)


def test_what_has_a_name_is_listed(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    first = push(make_dcz(seed=1), "hf://ada/m", registry=ada, tags=["v1"]).reference
    second = push(make_dcz(seed=2), "hf://ada/m@dev", registry=ada).reference
    listed = {item.reference: item for item in list_artifacts("hf://ada/m", registry=ada)}
    assert {reference: item.aliases for reference, item in listed.items()} == {
        first: ("v1", "main"),
        second: ("dev",),
    }
    assert listed[first].files == ("model.dcz",)
    assert listed[first].size == make_dcz(seed=1).stat().st_size


def test_commits_are_the_history(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    first = push(make_dcz(seed=1), "hf://ada/m", registry=ada, tags=["v1"]).reference
    second = push(make_dcz(seed=2), "hf://ada/m", registry=ada).reference
    hub.routes.page = 2
    found = commits("hf://ada/m", registry=ada)
    assert [each.reference for each in found[1:]] == [first, second]
    assert [each.title for each in found] == ["initial commit", "Push model.dcz", "Push model.dcz"]
    assert {each.time for each in found} == {"2026-01-01T00:00:00.000Z"}
    assert found[1].user == "ada"
    assert commits("hf://ada/m@v1", registry=ada) == found[:2]
    with pytest.raises(NotInRegistry):
        commits("hf://ada/none", registry=ada)
    with pytest.raises(InvalidReference, match="not on the Hub"):
        commits("m:v1", registry=ada)


@pytest.mark.parametrize("answer", [{}, [7], [{"id": "x"}], [{"id": 7, "authors": 7}]])
def test_a_history_that_is_none(hub: TestHub, ada: Hub, make_dcz: MakeDcz, answer: Any) -> None:
    push(make_dcz(), "hf://ada/m", registry=ada)
    usual = hub.routes.hub

    def odd(request: Request) -> Answer:
        return Answer.json(answer) if "/commits/" in request.target else usual(request)

    hub.answer_with(odd)
    with pytest.raises(RegistryCorrupt, match="list of commits is wrong"):
        commits("hf://ada/m", registry=ada)


def test_the_command_line(
    hub: TestHub, make_dcz: MakeDcz, tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    model = make_dcz()
    token = hub.add_user("me")

    def run(*arguments: str, code: int = 0, token: str = token) -> str:
        environment = os.environ | hub_environment | {"HF_TOKEN": token, "DCZ_HUB_PATIENCE": "0.5"}
        command = [sys.executable, "-m", "dcz", *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == (1 if code else 0), done.stderr
        return done.stdout

    pushed = json.loads(run("push", str(model), "hf://me/m", "--private", "--tag", "v1", "--json"))
    assert pushed["reference"] == f"hf://me/m@{hub.head('me/m')}"
    assert (pushed["created"], pushed["tags"], pushed["digest"]) == (True, ["v1"], None)
    assert json.loads(run("inspect", "hf://me/m@v1", "--json"))["size"] == model.stat().st_size
    assert "1 tensor" in run("decode", "hf://me/m", "-o", "out.safetensors")
    assert run("pull", "hf://me/m@v1", "-o", "here", "-q") == ""
    assert (tmp_path / "here" / "model.dcz").read_bytes() == model.read_bytes()
    (version,) = json.loads(run("list", "hf://me/m", "--json"))["versions"]
    assert (version["reference"], version["aliases"]) == (pushed["reference"], ["v1", "main"])
    assert "v1, main" in run("list", "hf://me/m").replace("\n", " ")
    assert json.loads(run("tag", "hf://me/m", "v2", "--json"))["moved"] is True

    def error(*arguments: str, code: int, token: str = token) -> str:
        return str(json.loads(run(*arguments, "--json", code=code, token=token))["error"]["code"])

    assert error("pull", "hf://me/none", "-o", "x", code=3) == "not-in-registry"
    assert error("pull", "hf://me/m", "-o", "x", code=3, token="") == "not-in-registry"
    assert error("pull", "hf://me/m", "-o", "x", code=4, token="hf_wrong") == "access-denied"
    hub.faults.add(Fault("flip", path="/object/", after=50, times=9))
    assert error("verify", "hf://me/m", code=5) == "registry-corrupt"
    hub.faults.clear()
    other = make_dcz(seed=5)
    assert error("push", str(other), "hf://me/m", "--tag", "v1", code=6) == "version-exists"
    hub.faults.add(Fault("status", path="/commit/", status=412))
    assert error("push", str(other), "hf://me/m", code=6) == "conflict"
    hub.faults.add(Fault("status", times=99, status=500))
    assert error("inspect", "hf://me/m", code=7) == "unreachable"
    hub.faults.clear()
    hub.faults.add(Fault("status", status=429, headers={"Retry-After": "99"}))
    assert error("inspect", "hf://me/m", code=7) == "rate-limited"

"""pull from the Hub: right or not at all, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.hub.faults import Fault
from tests.hub.fixtures import as_user
from tests.hub.server import TestHub
from tests.hub.wire import Answer, Request
from tests.registry.dcz_files import MakeDcz

import dcz
from dcz.errors import (
    AccessDenied,
    Gated,
    NotInRegistry,
    RateLimited,
    RegistryCorrupt,
    RegistryError,
    Unreachable,
    UsageError,
)
from dcz.format import Reader
from dcz.registry import Hub, HubReference, pull, verify

BIG = 300_000  # elements: more than one buffer of a copy


@pytest.fixture
def model(hub: TestHub, make_dcz: MakeDcz) -> Path:
    """A repository ``ada/m`` with a .dcz of more than a megabyte and a small file; the .dcz."""
    path = make_dcz("model.dcz", 1, BIG)
    hub.add_files("ada/m", {"model.dcz": path, "sub/config.json": b"{}"})
    return path


def pulled(ref: str, folder: Path, hub: Hub) -> str | None:
    """The commit that was pulled."""
    reference = pull(ref, folder, registry=hub).reference
    assert isinstance(reference, HubReference)
    return reference.revision


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")] if folder.exists() else []


def test_everything_comes_whole(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    done = pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert str(done.reference) == f"hf://ada/m@{hub.head('ada/m')}"
    assert [path.relative_to(tmp_path / "here").as_posix() for path in done.files] == [
        "model.dcz",
        "sub/config.json",
    ]
    assert done.files[0].read_bytes() == model.read_bytes()
    assert done.files[1].read_bytes() == b"{}"
    assert left_over(tmp_path / "here") == []
    hub.log.clear()
    again = pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert again.reused == again.files
    assert hub.log.all("/object/|/resolve") == []


def test_the_token_stays_with_the_hub(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    pull("hf://ada/m", tmp_path / "here", registry=ada)
    storage = hub.log.all("/object/")
    assert storage
    assert all("authorization" not in record.headers for record in storage)
    assert all(record.headers["authorization"] for record in hub.log.all("/api/|/resolve/"))
    assert all("dcz/" in record.headers["user-agent"] for record in hub.log.all())


def test_revisions(hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path) -> None:
    first = hub.add_files("ada/m", {"model.dcz": make_dcz("model.dcz", 1)})
    hub.repository("ada/m").tags["v1"] = first
    hub.repository("ada/m").branches["dev/x"] = first
    second = hub.add_files("ada/m", {"model.dcz": make_dcz("model.dcz", 2)})
    found = {
        revision: pulled(f"hf://ada/m{revision}", tmp_path / str(number), ada)
        for number, revision in enumerate(("", "@main", "@v1", "@dev/x", f"@{first}"))
    }
    assert found == {"": second, "@main": second, "@v1": first, "@dev/x": first, f"@{first}": first}
    with pytest.raises(NotInRegistry, match="no such revision"):
        pull("hf://ada/m@v9", tmp_path / "x", registry=ada)


def test_some_files_only(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    done = pull("hf://ada/m", tmp_path, files=["sub/config.json"], registry=ada)
    assert [path.name for path in done.files] == ["config.json"]
    with pytest.raises(UsageError, match=r"no file 'x\.dcz'"):
        pull("hf://ada/m", tmp_path, files=["x.dcz"], registry=ada)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", path="/object/", after=200_000),
        Fault("fin", path="/object/", after=200_000),
        Fault("stall", path="/object/", after=200_000, seconds=3),
        Fault("short", path="/object/", after=200_000),
        Fault("reset", path="/object/", times=3),
        Fault("status", path="/object/", status=503),
        Fault("status", path="/object/", status=403),
        Fault("status", path="/resolve/", status=500, times=3),
        Fault("status", path="/resolve/", status=429, headers={"Retry-After": "0"}),
        Fault("status", path="/api/models", status=429, headers={"RateLimit": '"api";r=0;t=0'}),
        Fault("reset", path="/api/models", times=2),
        Fault("status", path="/tree/", status=502),
        Fault("fin", path="/api/models", after=10),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.path.strip('/')}-{fault.after}",
)
def test_what_goes_wrong_once_is_tried_again(
    hub: TestHub, ada: Hub, model: Path, tmp_path: Path, fault: Fault
) -> None:
    hub.faults.add(fault)
    done = pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert done.files[0].read_bytes() == model.read_bytes()
    # What had come before the connection ended does not come again; a reset takes what was still on the way with it.
    again = {"reset": 200_000, "short": 200_000}.get(fault.kind, 100)
    assert hub.log.sent("/object/") <= model.stat().st_size + again


def test_a_server_without_ranges(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    hub.faults.add(Fault("reset", path="/object/", after=200_000), Fault("no-ranges", path="/object/"))
    done = pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert done.files[0].read_bytes() == model.read_bytes()


@pytest.mark.parametrize("at", [0, 5000, 900_000])
def test_damage_is_never_taken(hub: TestHub, ada: Hub, model: Path, tmp_path: Path, at: int) -> None:
    hub.faults.add(Fault("flip", path="/object/", after=at, times=9))
    with pytest.raises(RegistryCorrupt, match=r"model\.dcz.*damaged"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert not (tmp_path / "here").exists()
    hub.faults.clear()
    pull("hf://ada/m", tmp_path / "here", registry=ada)


def test_a_file_of_git_is_compared_too(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    commit = hub.repository("ada/m").commits[hub.head("ada/m")]
    hub.state.blobs[commit.files["sub/config.json"].oid] = b"[]"
    with pytest.raises(RegistryCorrupt, match=r"config\.json"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert not (tmp_path / "here" / "model.dcz").exists()


def test_what_calls_itself_dcz_must_be_one(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    hub.add_files("ada/m", {"model.dcz": b"no" * 1000}, lfs=["model.dcz"])
    with pytest.raises(RegistryCorrupt, match=r"not a valid \.dcz"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\b", "a//b", "nul\x01"])
def test_names_are_hostile(hub: TestHub, ada: Hub, model: Path, tmp_path: Path, name: str) -> None:
    hub.add_files("ada/m", {name: b"evil"})
    with pytest.raises(RegistryCorrupt, match="plain relative path"):
        pull("hf://ada/m", tmp_path / "here" / "deep", registry=ada)
    assert not (tmp_path / "here").exists()


def test_who_may_not(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    eve = as_user(hub, hub.add_user("eve"), tmp_path / "eve")
    nobody, liar = replace(eve, token=False), replace(eve, token="hf_x")
    hub.repository("ada/m").private = True
    with pytest.raises(NotInRegistry, match="private"):
        pull("hf://ada/m", tmp_path / "x", registry=eve)
    with pytest.raises(NotInRegistry, match="hf auth login"):
        pull("hf://ada/m", tmp_path / "x", registry=nobody)
    with pytest.raises(AccessDenied, match="does not know who you are"):
        pull("hf://ada/m", tmp_path / "x", registry=liar)
    hub.repository("ada/m").private = False
    hub.repository("ada/m").gated = "manual"
    with pytest.raises(Gated, match="terms"):
        pull("hf://ada/m", tmp_path / "x", registry=eve)
    with pytest.raises(Gated, match="hf auth login"):
        pull("hf://ada/m", tmp_path / "x", registry=nobody)
    hub.repository("ada/m").admitted.add("eve")
    pull("hf://ada/m", tmp_path / "x", registry=eve)


def test_it_ends_in_one_error(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    cases: list[tuple[Fault, type[RegistryError], str]] = [
        (Fault("status", status=503, times=999), Unreachable, "has a problem"),
        (Fault("reset", times=999), Unreachable, "cannot be reached"),
        (Fault("status", status=429, headers={"Retry-After": "60"}), RateLimited, "try again in 60 s"),
        (Fault("status", status=403), AccessDenied, "does not allow"),
        (Fault("status", status=418), RegistryError, "refuses"),
        (Fault("stall", path="/object/", after=1000, times=999, seconds=3), Unreachable, "cannot be reached"),
        (Fault("status", path="/object/", status=403, times=999), Unreachable, "sends us to refuses"),
    ]
    patience = replace(ada.patience, give_up=0.3, stall=0.2)
    for fault, kind, words in cases:
        hub.faults.clear()
        hub.faults.add(fault)
        with pytest.raises(kind, match=words) as caught:
            pull("hf://ada/m", tmp_path / "x", registry=replace(ada, patience=patience))
        assert type(caught.value) is kind
    assert not (tmp_path / "x").exists()


def test_nobody_is_there(ada: Hub, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        pull(
            "hf://ada/m",
            tmp_path,
            registry=replace(
                ada, endpoint="http://127.0.0.1:9", patience=replace(ada.patience, give_up=0.05)
            ),
        )


def test_a_killed_pull_goes_on(
    hub: TestHub, make_dcz: MakeDcz, tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    model = make_dcz("model.dcz", 1, 4_000_000)
    hub.add_files("ada/m", {"model.dcz": model})
    size, here = model.stat().st_size, tmp_path / "here"
    hub.limit_rate(20e6)
    command = [sys.executable, "-m", "dcz", "pull", "hf://ada/m", "-o", str(here)]
    process = subprocess.Popen(command, env=os.environ | hub_environment, stdout=subprocess.DEVNULL)
    try:
        while not any(path.stat().st_size > size // 3 for path in here.glob(".dcz-pull-*/*.0")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    while not hub.log.all("/object/"):  # the server has not noticed yet
        time.sleep(0.01)
    assert not (here / "model.dcz").exists()
    kept = sum(path.stat().st_size for path in here.glob(".dcz-pull-*/*.0"))
    hub.limit_rate(None)
    hub.log.clear()
    subprocess.run(command, env=os.environ | hub_environment, check=True, stdout=subprocess.DEVNULL)
    assert (here / "model.dcz").read_bytes() == model.read_bytes()
    assert hub.log.sent("/object/") == size - kept < size * 2 // 3
    assert left_over(here) == []


def test_verify_reads_what_is_there_now(hub: TestHub, ada: Hub, model: Path) -> None:
    done = verify("hf://ada/m", registry=ada, deep=True)
    assert str(done.reference) == f"hf://ada/m@{hub.head('ada/m')}"
    assert list(done.reports) == ["model.dcz"]
    hub.faults.add(Fault("flip", path="/object/", after=70_000, times=9))
    with pytest.raises(RegistryCorrupt):
        verify("hf://ada/m", registry=ada)


def test_a_pin_does_not_depend_on_what_the_hub_says(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    model, other = make_dcz(seed=1), make_dcz("other.dcz", 2)
    with Reader(model) as reader, Reader(other) as another:
        digest, wrong = reader.digest, another.digest
    hub.add_files("ada/m", {"model.dcz": model})
    pull("hf://ada/m", tmp_path / "here", digests=digest, registry=ada)
    dcz.load("hf://ada/m", framework="numpy", digest=digest, registry=ada)
    hub.add_files("ada/m", {"model.dcz": other})
    with pytest.raises(RegistryCorrupt, match="not what was asked for"):
        pull("hf://ada/m", tmp_path / "there", digests=[digest], registry=ada)
    assert not (tmp_path / "there").exists()
    pull("hf://ada/m", tmp_path / "there", digests=[digest, wrong], registry=ada)
    for load in (dcz.load, dcz.open):
        with pytest.raises(RegistryCorrupt, match="not what was asked for"):
            load("hf://ada/m", framework="numpy", digest=digest, registry=ada)
    with pytest.raises(UsageError, match="blake3"):
        pull("hf://ada/m", tmp_path / "there", digests="sha256:0", registry=ada)


def test_answers_of_the_hub_are_hostile(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    right = hub.routes.hub
    answers: dict[str, list[object]] = {
        "/revision/": [
            {"sha": "../../../evil"},
            {"sha": "0" * 41},
            {"sha": 5},
            [],
            None,
        ],
        "/tree/": [
            {},
            [5],
            [{"type": "file", "path": "a", "size": 1, "oid": "../../../../evil"}],
            [{"type": "file", "path": "a", "size": -1, "oid": "0" * 40}],
            [{"type": "file", "path": "a", "size": True, "oid": "0" * 40}],
            [{"type": "file", "path": 7, "size": 1, "oid": "0" * 40}],
            [{"type": "file", "path": "a", "size": 1, "oid": "0" * 40}] * 2,
            [{"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": {"oid": "0" * 63, "size": 1}}],
            [
                {
                    "type": "file",
                    "path": "a",
                    "size": 1,
                    "oid": "0" * 40,
                    "lfs": {"oid": "0" * 64, "size": 1 << 60},
                }
            ],
        ],
    }
    for path, trees in answers.items():
        for tree in trees:

            def wrong(request: Request, path: str = path, tree: object = tree) -> Answer:
                return Answer.json(tree) if path in request.target else right(request)

            hub.answer_with(wrong)
            with pytest.raises(RegistryCorrupt):
                pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert not (tmp_path / "here").exists()


def test_where_the_hub_leads_to_is_hostile(hub: TestHub, ada: Hub, model: Path, tmp_path: Path) -> None:
    right = hub.routes.hub

    def leading(to: str, status: int = 302, **headers: str) -> Callable[[Request], Answer]:
        def answer(request: Request) -> Answer:
            if "/resolve/" in request.target and request.parts[-1] == "model.dcz":
                return Answer(status, b"", {"Location": to, **headers})
            return right(request)

        return answer

    for to in (
        "file:///etc/passwd",
        "http://",
        "http://[",
        "gopher://x/",
        f"{hub.url}/ada/m/resolve/x/model.dcz",
    ):
        hub.answer_with(leading(to))
        with pytest.raises(RegistryCorrupt):
            pull("hf://ada/m", tmp_path / "here", registry=ada)

    def paged(request: Request) -> Answer:
        answer = right(request)
        if "/tree/" in request.target:
            answer.headers["Link"] = f'<http://127.0.0.2:{hub.url.rpartition(":")[2]}/x>; rel="next"'
        return answer

    hub.answer_with(paged)
    with pytest.raises(RegistryCorrupt, match="somewhere else"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert not (tmp_path / "here").exists()


def test_what_the_storage_has_lost(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    hub.add_files("ada/m", {"model.bin": b"\xff" * 100}, lfs=["model.bin"])
    for path in hub.state.objects.iterdir():
        path.unlink()
    with pytest.raises(RegistryCorrupt, match=r"the storage behind .* does not have it"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)


def test_a_redirect_to_nowhere(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    hub.add_files("ada/m", {"a": b"a"})
    hub.answer_with(lambda _: Answer(302, b"", {"Location": ""}))
    with pytest.raises(RegistryCorrupt, match="leads nowhere"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)


def test_a_repository_without_files(hub: TestHub, ada: Hub, tmp_path: Path) -> None:
    hub.add_files("ada/m", {})  # it has a .gitattributes
    with pytest.raises(UsageError, match="has no files, or only hidden ones"):
        pull("hf://ada/m", tmp_path / "here", registry=ada)
    assert not (tmp_path / "here").exists()

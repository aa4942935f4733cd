"""push to the Hub: one commit or none, and never one too many, whatever gets lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.hub.faults import Fault
from tests.hub.fixtures import as_user
from tests.hub.server import TestHub
from tests.hub.wire import Answer, Request
from tests.registry.dcz_files import MakeDcz, write_dcz

import dcz
from dcz.errors import (
    AccessDenied,
    Conflict,
    FormatError,
    InvalidReference,
    NotInRegistry,
    RegistryError,
    Unreachable,
    UsageError,
    VersionExists,
)
from dcz.registry import Hub, HubReference, Pushed, push, read_file


def commits(hub: TestHub, name: str = "ada/m") -> int:
    return len(hub.repository(name).commits)


def commit_of(done: Pushed) -> str | None:
    assert isinstance(done.reference, HubReference)
    return done.reference.revision


def test_a_repository_is_made(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    model = make_dcz()
    config = model.with_name("config.json")
    config.write_bytes(b"{}")
    done = push([model, config], "hf://ada/m", registry=ada, private=True, tags=["v1"])
    assert done.created
    assert commit_of(done) == hub.head("ada/m") == hub.repository("ada/m").tags["v1"]
    assert hub.repository("ada/m").private
    assert hub.content("ada/m", "model.dcz") == model.read_bytes()
    assert hub.content("ada/m", "config.json") == b"{}"
    assert commits(hub) == 2


def test_nothing_is_pushed_twice(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    first = push(make_dcz(), "hf://ada/m", registry=ada, tags=["v1"])
    again = push(make_dcz(), "hf://ada/m", registry=ada, tags=["v1"])
    assert (again.created, again.reference, again.tags) == (False, first.reference, ())
    assert commits(hub) == 2
    assert len(hub.log.all("/upload/")) == 1
    other = push(make_dcz(), "hf://ada/m", registry=ada, tags=["v2"])
    assert (other.created, other.tags) == (False, ("v2",))


def test_branches_and_tags(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    first = push(make_dcz(seed=1), "hf://ada/m", registry=ada, tags="v1")
    second = push(make_dcz(seed=2), "hf://ada/m@dev/x", registry=ada)
    assert hub.head("ada/m") == commit_of(first) != commit_of(second) == hub.head("ada/m", "dev/x")
    with pytest.raises(VersionExists, match="do not move"):
        push(make_dcz(seed=3), "hf://ada/m", registry=ada, tags=["v1"])
    with pytest.raises(VersionExists, match="is a tag"):
        push(make_dcz(seed=3), "hf://ada/m@v1", registry=ada)
    with pytest.raises(VersionExists, match="a branch 'dev/x'"):
        push(make_dcz(seed=3), "hf://ada/m", registry=ada, tags=["dev/x"])
    assert hub.head("ada/m") == commit_of(first)


def test_what_else_is_there_stays(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    hub.add_files("ada/m", {"README.md": b"mine", "old.dcz": make_dcz("old.dcz")})
    push(make_dcz(), "hf://ada/m", registry=ada)
    assert hub.content("ada/m", "README.md") == b"mine"
    assert hub.content("ada/m", "old.dcz")


def test_no_shard_of_another_number_stays(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    def shards(count: int) -> list[Path]:
        return [make_dcz(f"model-{n:05}-of-{count:05}.dcz", n) for n in range(1, count + 1)]

    push(shards(3), "hf://ada/m", registry=ada)
    push([*shards(2), make_dcz("other-00001-of-00001.dcz")], "hf://ada/m", registry=ada)
    assert list(hub.repository("ada/m").commit_of("main").files) == [
        ".gitattributes",
        "model-00001-of-00002.dcz",
        "model-00002-of-00002.dcz",
        "other-00001-of-00001.dcz",
    ]


@pytest.mark.parametrize("part", [None, 3000])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("lost", path="/commit/", method="POST"),
        Fault("status", path="/commit/", status=503),
        Fault("status", path="/commit/", status=429, headers={"Retry-After": "0"}),
        Fault("reset", path="/commit/"),
        Fault("lost", path="/preupload/"),
        Fault("status", path="/api/repos/create", status=503),
        Fault("lost", path="/api/repos/create"),
        Fault("lost", path="/tag/", method="POST"),
        Fault("status", path="/refs", status=500, times=2),
    ],
    ids=lambda fault: (
        f"{fault.kind}-{fault.status}-{fault.path.strip('/')}" if isinstance(fault, Fault) else str(fault)
    ),
)
def test_what_goes_wrong_once_is_tried_again(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, fault: Fault, part: int | None
) -> None:
    hub.routes.part = part
    hub.faults.add(fault)
    done = push(make_dcz(), "hf://ada/m", registry=ada, tags=["v1"])
    assert done.created
    assert commit_of(done) == hub.head("ada/m") == hub.repository("ada/m").tags["v1"]
    assert commits(hub) == 2
    assert hub.content("ada/m", "model.dcz") == make_dcz().read_bytes()


def test_an_upload_that_breaks_off_is_tried_again(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    hub.faults.add(Fault("reset", path="/upload/"))
    push(make_dcz(), "hf://ada/m", registry=ada)
    assert commits(hub) == 2


def while_committing(hub: TestHub, what: Callable[[], object]) -> None:
    """Let something happen between the beginning of a push and its commit."""
    route = hub.routes._preupload

    def late(*arguments: object) -> object:
        setattr(hub.routes, "_preupload", route)  # noqa: B010 - once
        what()
        return route(*arguments)  # type: ignore[arg-type]

    setattr(hub.routes, "_preupload", late)  # noqa: B010


def test_somebody_is_quicker(hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path) -> None:
    hub.add_files("ada/m", {"a.txt": b"a"})
    while_committing(hub, lambda: hub.add_files("ada/m", {"a.txt": b"b"}))
    with pytest.raises(Conflict, match="somebody else"):
        push(make_dcz(), "hf://ada/m", registry=ada)
    assert hub.content("ada/m", "a.txt") == b"b"
    assert "model.dcz" not in hub.repository("ada/m").commit_of("main").files
    same = write_dcz(tmp_path / "model.dcz")
    while_committing(hub, lambda: hub.add_files("ada/m", {"model.dcz": same}))
    push(same, "hf://ada/m", registry=ada)
    assert hub.repository("ada/m").commit_of("main").title == "from the side"


def test_a_file_that_changes_while_it_is_pushed(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path
) -> None:
    hub.add_files("ada/m", {})
    model = make_dcz()
    other = write_dcz(tmp_path / "other.dcz", 7).read_bytes()
    while_committing(hub, lambda: model.write_bytes(other))
    with pytest.raises(UsageError, match="changes while it is read"):
        push(model, "hf://ada/m", registry=ada)
    assert "model.dcz" not in hub.repository("ada/m").commit_of("main").files


def test_a_broken_file_is_not_pushed(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    model = make_dcz()
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    with pytest.raises(FormatError):
        push(model, "hf://ada/m", registry=ada)
    assert hub.state.repositories == {}
    head = hub.add_files("ada/m", {"a.txt": b"a"})
    for ref in ("hf://ada/m", "hf://ada/m@dev"):
        with pytest.raises(FormatError):
            push(model, ref, registry=ada)
    assert hub.repository("ada/m").branches == {"main": head}


def test_who_may_not(hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path) -> None:
    hub.add_files("ada/m", {"a.txt": b"a"})
    eve = as_user(hub, hub.add_user("eve"), tmp_path / "eve")
    with pytest.raises(AccessDenied):
        push(make_dcz(), "hf://ada/m", registry=eve)
    with pytest.raises(AccessDenied):
        push(make_dcz(), "hf://ada/new", registry=eve)
    with pytest.raises(AccessDenied, match="hf auth login"):
        push(make_dcz(), "hf://ada/m", registry=replace(eve, token=False))
    with pytest.raises(NotInRegistry, match="hf auth login"):
        push(make_dcz(), "hf://ada/new", registry=replace(eve, token=False))
    with pytest.raises(AccessDenied):
        push(make_dcz(), "hf://ada/m", registry=replace(ada, token=hub.add_user("ada", role="read")))
    with pytest.raises(UsageError, match="public"):
        push(make_dcz(), "hf://ada/m", registry=ada, private=True)
    assert commits(hub) == 2
    assert list(hub.state.repositories) == ["ada/m"]


def test_what_cannot_be_pushed_to(ada: Hub, make_dcz: MakeDcz) -> None:
    with pytest.raises(InvalidReference, match="commit"):
        push(make_dcz(), f"hf://ada/m@{'0' * 40}", registry=ada)
    with pytest.raises(InvalidReference):
        push(make_dcz(), "hf://ada/m", registry=ada, tags=["a..b"])
    with pytest.raises(UsageError, match="no aliases"):
        push(make_dcz(), "hf://ada/m", registry=ada, aliases=["best"])
    with pytest.raises(UsageError, match="for the Hub"):
        push(make_dcz(), "m:1", tags=["best"])


def test_it_ends_in_one_error(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    hub.add_files("ada/m", {})
    impatient = replace(ada, patience=replace(ada.patience, give_up=0.3))
    hub.faults.add(Fault("status", path="/commit/", status=503, times=99))
    with pytest.raises(Unreachable, match="has a problem"):
        push(make_dcz(), "hf://ada/m", registry=impatient)
    hub.faults.clear()
    hub.faults.add(Fault("status", path="/commit/", status=400))
    with pytest.raises(RegistryError, match="refuses"):
        push(make_dcz(), "hf://ada/m", registry=impatient)
    hub.faults.clear()
    hub.faults.add(Fault("status", path="/commit/", status=412))
    with pytest.raises(Conflict):
        push(make_dcz(), "hf://ada/m", registry=impatient)
    assert commits(hub) == 2


def test_shards_are_uploaded_at_the_same_time(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    shards = [make_dcz(f"model-{n:05}-of-00006.dcz", n) for n in range(1, 7)]
    seen: list[tuple[str, int, int]] = []
    hub.faults.add(Fault("reset", path="/upload/", times=2), Fault("status", path="/upload/", status=403))
    push(shards, "hf://ada/m", registry=ada, progress=lambda *step: seen.append(step))
    for path in shards:
        assert hub.content("ada/m", path.name) == path.read_bytes()
    total = sum(path.stat().st_size for path in shards)
    assert {what: done for what, done, _ in seen} == {
        "hash 6 files": total,
        "verify 6 files": total,
        "upload 6 files": total,
    }
    assert commits(hub) == 2


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"objects": []},
        {"objects": [{"oid": "0" * 64}]},
        {"actions": {"upload": {"href": "file:///etc/passwd"}}},
        {"actions": {"upload": {"href": 5}}},
        {"actions": []},
        {"actions": {"upload": {"href": "http://127.0.0.1:9/x", "header": {"chunk_size": "0"}}}},
        {"actions": {"upload": {"href": "http://127.0.0.1:9/x", "header": {"chunk_size": "1"}}}},
        {"error": {"code": 422, "message": "no"}},
    ],
)
def test_where_uploads_are_to_go_is_hostile(
    hub: TestHub, ada: Hub, make_dcz: MakeDcz, answer: dict[str, object]
) -> None:
    hub.add_files("ada/m", {})
    right = hub.routes.hub

    def wrong(request: Request) -> Answer:
        if not request.target.endswith("/objects/batch"):
            return right(request)
        oid = request.json()["objects"][0]["oid"]
        return Answer.json(
            answer if not answer or "objects" in answer else {"objects": [{"oid": oid, **answer}]}
        )

    hub.answer_with(wrong)
    with pytest.raises(RegistryError):
        push(make_dcz(), "hf://ada/m", registry=ada)
    assert commits(hub) == 2


def test_what_a_push_was_made_from_may_have_changed(hub: TestHub, ada: Hub, make_dcz: MakeDcz) -> None:
    hub.add_files("ada/m", {"README.md": b"mine"})
    known = read_file(HubReference("ada", "m", None), "README.md", registry=ada)
    assert known is not None
    assert known[0] == b"mine"
    assert read_file(HubReference("ada", "m", None), "LICENSE", registry=ada) is None
    assert read_file(HubReference("ada", "n", None), "README.md", registry=ada) is None
    push(make_dcz(), "hf://ada/m", registry=ada, replaces={"README.md": known[1], "LICENSE": None})
    hub.add_files("ada/m", {"README.md": b"edited"})
    with pytest.raises(Conflict, match=r"README\.md"):
        push(make_dcz(seed=2), "hf://ada/m", registry=ada, replaces={"README.md": known[1]})
    while_committing(hub, lambda: hub.add_files("ada/m", {"README.md": b"edited again"}))
    with pytest.raises(Conflict, match="somebody else"):
        push(make_dcz(seed=2), "hf://ada/m", registry=ada)
    assert hub.content("ada/m", "README.md") == b"edited again"


def test_identities_are_told(hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_dcz(folder / "deep" / "a.dcz", 1, 100)
    (folder / "notes.txt").write_text("x")
    done = push(folder, "hf://ada/m", registry=ada)
    assert done.identities == {"deep/a.dcz": dcz.verify(folder / "deep" / "a.dcz").digest}
    local = push(make_dcz(), "m", registry=tmp_path / "registry")
    assert local.identities == {"model.dcz": dcz.verify(make_dcz()).digest}


def test_a_name_that_is_no_text(hub: TestHub, ada: Hub, make_dcz: MakeDcz, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dcz"))
    odd.write_bytes(make_dcz().read_bytes())
    with pytest.raises(UsageError, match="is not UTF-8"):
        push(odd, "hf://ada/m", registry=ada)
    assert "ada/m" not in hub.state.repositories

"""The Hub of the tests, as the unmodified huggingface_hub sees it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.utils
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tests.hub.faults import Fault, Kind
from tests.hub.server import TestHub

WEIGHTS = b"\x00\xff" * 100_000

# huggingface_hub gives files to its HTTP client in a way that this one calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def api(hub: TestHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.add_user("ada", organisations=["lab"]))


@pytest.fixture
def repo(api: HfApi) -> str:
    api.create_repo("ada/model")
    return "ada/model"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def add(path: str, content: bytes) -> CommitOperationAdd:
    # An open file keeps the client from asking for Xet, which the server has not.
    return CommitOperationAdd(path, io.BytesIO(content))


def commit(
    api: HfApi,
    repo: str,
    *operations: CommitOperationAdd | CommitOperationDelete,
    revision: str | None = None,
    parent_commit: str | None = None,
) -> str:
    done = api.create_commit(
        repo, list(operations), commit_message="a commit", revision=revision, parent_commit=parent_commit
    )
    return str(done.oid)


def test_who_am_i(hub: TestHub, api: HfApi) -> None:
    who = api.whoami()
    assert who["name"] == "ada"
    assert [org["name"] for org in who["orgs"]] == ["lab"]
    assert who["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=hub.url, token="hf_nobody").whoami()
    assert caught.value.response.status_code == 401


def test_repositories_come_and_go(hub: TestHub, api: HfApi) -> None:
    assert api.create_repo("ada/model", private=True).repo_id == "ada/model"
    api.create_repo("ada/model", exist_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("ada/model")
    assert api.model_info("ada/model").private
    api.create_repo("lab/model")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("eve/model")
    assert caught.value.response.status_code == 403
    api.delete_repo("ada/model")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ada/model")


@pytest.mark.parametrize("part", [None, 70_000])
def test_files_go_up_and_come_down(
    hub: TestHub, api: HfApi, repo: str, cache: Path, part: int | None
) -> None:
    hub.routes.part = part
    first = hub.head(repo)
    oid = commit(api, repo, add("sub/model.dcz", WEIGHTS), add("config.json", b"{}"), parent_commit=first)
    assert oid == hub.head(repo) != first
    assert hub.content(repo, "sub/model.dcz") == WEIGHTS
    assert len(hub.log.all("/part/" if part else "/upload/", "PUT")) == (3 if part else 1)
    tree: dict[str, Any] = {item.path: item for item in api.list_repo_tree(repo, recursive=True)}
    assert set(tree) == {".gitattributes", "config.json", "sub", "sub/model.dcz"}
    assert tree["sub/model.dcz"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert tree["config.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert {item.path for item in api.list_repo_tree(repo, "sub")} == {"sub/model.dcz"}
    info = api.get_paths_info(repo, ["config.json", "none"])
    assert [item.path for item in info] == ["config.json"]
    for name, content in {"sub/model.dcz": WEIGHTS, "config.json": b"{}"}.items():
        path = api.hf_hub_download(repo, name, cache_dir=cache)
        assert Path(path).read_bytes() == content
    assert "authorization" not in hub.log.all("/object/")[0].headers
    folder = api.snapshot_download(repo, cache_dir=cache)
    assert Path(folder).name == oid
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "none", cache_dir=cache)


def test_the_client_checks_what_is_there(api: HfApi, repo: str, cache: Path) -> None:
    commit(api, repo, add("model.dcz", WEIGHTS), add("config.json", b"{}"))
    api.snapshot_download(repo, cache_dir=cache)
    checked = api.verify_repo_checksums(repo, cache_dir=cache)
    assert (checked.checked_count, checked.mismatches) == (3, [])


def test_the_same_content_is_not_sent_again(hub: TestHub, api: HfApi, repo: str) -> None:
    commit(api, repo, add("model.dcz", WEIGHTS))
    hub.log.clear()
    commit(api, repo, add("other.dcz", WEIGHTS))
    assert hub.log.received("/upload/") == 0


def test_a_stale_parent_is_refused(hub: TestHub, api: HfApi, repo: str) -> None:
    first = hub.head(repo)
    second = commit(api, repo, add("a.txt", b"a"), parent_commit=first)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, repo, add("b.txt", b"b"), parent_commit=first)
    assert caught.value.response.status_code == 412
    assert hub.head(repo) == second
    hub.routes.ignore_parent = True
    commit(api, repo, add("b.txt", b"b"), parent_commit=first)


def test_files_are_deleted(hub: TestHub, api: HfApi, repo: str) -> None:
    commit(api, repo, add("a/b.txt", b"a"), add("a/c.txt", b"c"), add("d.txt", b"d"))
    commit(api, repo, CommitOperationDelete("a/"), CommitOperationDelete("d.txt"))
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_branches_and_tags(hub: TestHub, api: HfApi, repo: str, cache: Path) -> None:
    first = commit(api, repo, add("a.txt", b"1"))
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="dev/x")
    second = commit(api, repo, add("a.txt", b"2"), revision="dev/x")
    refs = api.list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "dev/x": second}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    for revision, content in {"v1": b"1", "dev/x": b"2", second: b"2", first[:7]: b"1"}.items():
        path = api.hf_hub_download(repo, "a.txt", revision=revision, cache_dir=cache)
        assert Path(path).read_bytes() == content
    assert [item.commit_id for item in api.list_repo_commits(repo, revision="dev/x")][:2] == [second, first]
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(repo, tag="v1", revision="dev/x")
    assert caught.value.response.status_code == 409
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="dev/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1")


def test_trees_have_pages(hub: TestHub, api: HfApi, repo: str) -> None:
    hub.add_files(repo, {f"{number}.txt": b"x" for number in range(25)})
    hub.routes.page = 10
    assert len(list(api.list_repo_tree(repo))) == 26
    assert len(hub.log.all("/tree/")) == 3


def test_who_may_read_and_write(hub: TestHub, api: HfApi, cache: Path) -> None:
    hub.add_files("ada/secret", {"a.txt": b"a"}, private=True)
    reader, stranger = hub.add_user("ada", role="read"), hub.add_user("eve")
    for token in (stranger, False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url, token=token).model_info("ada/secret")
    assert HfApi(endpoint=hub.url, token=reader).model_info("ada/secret").id == "ada/secret"
    with pytest.raises(HfHubHTTPError) as caught:
        commit(HfApi(endpoint=hub.url, token=reader), "ada/secret", add("b.txt", b"b"))
    assert caught.value.response.status_code == 403


def test_gated_files_need_admission(hub: TestHub, api: HfApi, cache: Path) -> None:
    hub.add_files("ada/gated", {"a.txt": b"a"})
    api.update_repo_settings("ada/gated", gated="manual")
    eve = HfApi(endpoint=hub.url, token=hub.add_user("eve"))
    assert eve.model_info("ada/gated").gated == "manual"
    with pytest.raises(GatedRepoError):
        eve.hf_hub_download("ada/gated", "a.txt", cache_dir=cache)
    hub.repository("ada/gated").admitted.add("eve")
    assert Path(eve.hf_hub_download("ada/gated", "a.txt", cache_dir=cache)).read_bytes() == b"a"


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    answer = huggingface_hub.utils.get_session().get(url, headers=headers, follow_redirects=True)
    return answer.status_code, answer.content, dict(answer.headers)


@pytest.mark.parametrize("name", ["model.dcz", "config.json"])
def test_ranges(hub: TestHub, name: str) -> None:
    hub.add_files(
        "ada/model", {"model.dcz": bytes(range(200)), "config.json": bytes(range(100))}, lfs=["model.dcz"]
    )
    content = hub.content("ada/model", name)
    url = f"{hub.url}/ada/model/resolve/main/{name}"
    assert get(url)[:2] == (200, content)
    assert get(url, Range="bytes=10-19")[:2] == (206, content[10:20])
    assert get(url, Range="bytes=90-")[:2] == (206, content[90:])
    assert get(url, Range="bytes=-5")[:2] == (206, content[-5:])
    assert get(url, Range="bytes=10-19")[2]["content-range"] == f"bytes 10-19/{len(content)}"
    assert get(url, Range="bytes=900-")[0] == 416
    hub.faults.add(Fault("no-ranges", path="/object/|/resolve-cache/"))
    assert get(url, Range="bytes=10-19")[:2] == (200, content)


def test_signed_urls_expire_and_cannot_be_made_up(hub: TestHub) -> None:
    hub.add_files("ada/model", {"model.dcz": WEIGHTS}, lfs=["model.dcz"])
    session = huggingface_hub.utils.get_session()
    url = f"{hub.url}/ada/model/resolve/main/model.dcz"
    signed = session.head(url, follow_redirects=False).headers["location"]
    assert get(signed)[:2] == (200, WEIGHTS)
    assert get(signed.replace("signature=", "signature=0"))[0] == 403
    hub.routes.expires = -1
    assert get(url)[0] == 403


@pytest.mark.parametrize("kind", ["fin", "stall", "reset", "short", "flip"])
def test_faults_meet_the_body(hub: TestHub, kind: Kind) -> None:
    hub.add_files("ada/model", {"model.dcz": WEIGHTS}, lfs=["model.dcz"])
    hub.faults.add(Fault(kind, path="/object/", after=1000, seconds=0.05))
    url = f"{hub.url}/ada/model/resolve/main/model.dcz"
    if kind in ("short", "flip"):
        found = get(url)[1]
        wrong = [number for number, byte in enumerate(found) if byte != WEIGHTS[number]]
        assert (len(found), wrong) == ((1000, []) if kind == "short" else (len(WEIGHTS), [1000]))
    else:
        with pytest.raises(Exception, match=r"reset|closed|complete"):
            get(url)
        assert hub.log.all("/object/")[-1].sent == 1000
    assert get(url)[1] == WEIGHTS


def test_a_lost_answer_is_of_a_request_that_was_carried_out(hub: TestHub, api: HfApi, repo: str) -> None:
    first = hub.head(repo)
    hub.faults.add(Fault("lost", path="/commit/", method="POST"))
    with pytest.raises(Exception, match="reset"):
        commit(api, repo, add("a.txt", b"a"))
    assert hub.head(repo) != first


def test_a_busy_server_says_when_to_come_again(hub: TestHub, api: HfApi, repo: str) -> None:
    hub.faults.add(Fault("status", status=429, headers={"Retry-After": "0"}, path="/api/models/ada/model"))
    with pytest.raises(HfHubHTTPError) as caught:
        api.model_info(repo)
    assert caught.value.response.status_code == 429
    assert api.model_info(repo).id == repo


def test_the_command_line_of_hugging_face(
    hub: TestHub, tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    """Another process, which finds the Hub and the token as users tell it."""
    (tmp_path / "model.dcz").write_bytes(WEIGHTS)
    environment = os.environ | hub_environment | {"HF_TOKEN": hub.add_user("ada"), "HF_HUB_DISABLE_XET": "1"}
    program = "import sys; from huggingface_hub.cli.hf import main; sys.exit(main())"

    def hf(*arguments: str) -> None:
        command = [sys.executable, "-c", program, *arguments]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)

    hf("upload", "ada/model", "model.dcz", "model.dcz", "--private")
    hf("download", "ada/model", "--local-dir", "here")
    assert (tmp_path / "here" / "model.dcz").read_bytes() == WEIGHTS
    assert hub.repository("ada/model").private


def test_the_line_has_a_rate(hub: TestHub) -> None:
    """No faster than was asked for, whatever the number of connections."""
    hub.add_files("ada/model", {"model.dcz": WEIGHTS}, lfs=["model.dcz"])
    url = f"{hub.url}/ada/model/resolve/main/model.dcz"
    hub.limit_rate(2e6)
    start = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        assert [found[1] for found in pool.map(get, [url] * 3)] == [WEIGHTS] * 3
    assert time.monotonic() - start > 3 * len(WEIGHTS) / 2e6 - 0.05

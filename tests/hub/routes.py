"""The routes of the Hub: what huggingface_hub asks for, and what it is answered (for models; the Hub has more)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.hub.state import Commit, Entry, HubState, Refusal, Repository, Token
from tests.hub.wire import Answer, Part, Request

__all__ = ["HubRoutes"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LARGE: Final = 10 << 20  # bytes from which on every file is for Git LFS
_STALE: Final = "A commit has happened since. Please refresh and try again."


def _is_binary(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError as exc:
        return exc.start < len(sample) - 3  # else a character was cut in two
    return b"\0" in sample


def _matches_attributes(path: str) -> bool:
    return path.endswith((".bin", ".safetensors"))


@dataclass
class _Caller:
    """A request, and who makes it."""

    request: Request
    token: Token | None


class HubRoutes:
    """Answers for two origins: the Hub itself, and the storage whose signed URLs it hands out.

    page             entries of a page of a tree or of a history
    part             bytes of a part of an upload; None for uploads in one piece
    expires          seconds that a signed URL is good for
    ignore_parent    commits are taken whatever their parent, as some servers do
    """

    def __init__(self, state: HubState) -> None:
        self.state = state
        self.hub_url = self.storage_url = ""  # known once they listen
        self.page = 1000
        self.part: int | None = None
        self.expires = 3600.0
        self.ignore_parent = False
        self._key = b"the key of the storage"
        self._parts: dict[str, dict[int, str]] = {}

    # -- the Hub

    def hub(self, request: Request) -> Answer:
        with self.state.lock:
            return self._hub(_Caller(request, self.state.user_of(request.headers.get("Authorization"))))

    def _hub(self, caller: _Caller) -> Answer:
        method, parts = caller.request.method, caller.request.parts
        match parts:
            case ("api", "whoami-v2"):
                return self._whoami(caller)
            case ("api", "validate-yaml"):
                return Answer.json({"errors": [], "warnings": []})
            case ("api", "repos", "create"):
                return self._create(caller)
            case ("api", "repos", "delete"):
                return self._delete(caller)
            case ("api", "complete_multipart", sha256):
                return self._complete(caller, sha256)
            case ("api", "resolve-cache", "models", org, name, commit, *path):
                return self._resolve_cached(caller, f"{org}/{name}", commit, "/".join(path))
            case ("api", "models", org, name, *rest):
                routes: dict[tuple[str, ...], Callable[..., Answer]] = {
                    (): self._info,
                    ("revision",): self._info,
                    ("tree",): self._tree,
                    ("paths-info",): self._paths_info,
                    ("refs",): self._refs,
                    ("commits",): self._commits,
                    ("branch",): self._branch,
                    ("tag",): self._tag,
                    ("settings",): self._settings,
                    ("preupload",): self._preupload,
                    ("commit",): self._commit,
                }
                if (route := routes.get(tuple(rest[:1]))) is not None:
                    return route(caller, f"{org}/{name}", *rest[1:])
            case (org, name, "info", "lfs", "objects", "batch") if name.endswith(".git"):
                return self._batch(caller, f"{org}/{name.removesuffix('.git')}")
            case (org, name, "info", "lfs", "objects", "verify") if name.endswith(".git"):
                return self._verify(caller, f"{org}/{name.removesuffix('.git')}")
            case (org, name, "resolve", revision, *path) if method in ("GET", "HEAD"):
                return self._resolve(caller, f"{org}/{name}", revision, "/".join(path))
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _whoami(self, caller: _Caller) -> Answer:
        if caller.token is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": org} for org, who in self.state.organisations.items() if caller.token.user in who]
        access = {"displayName": "test", "role": caller.token.role}
        auth = {"type": "access_token", "accessToken": access}
        return Answer.json({"type": "user", "name": caller.token.user, "orgs": orgs, "auth": auth})

    def _create(self, caller: _Caller) -> Answer:
        asked = caller.request.json()
        if caller.token is None:
            raise Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or caller.token.user
        self.state.check_owner(caller.token, owner)
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub_url}/{name}"
        if name in self.state.repositories:
            raise Refusal(409, "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.state.create(name, private=private)
        return Answer.json({"url": url, "name": name, "id": name})

    def _delete(self, caller: _Caller) -> Answer:
        asked = caller.request.json()
        owner = asked.get("organization") or (caller.token.user if caller.token else "")
        repository = self.state.writable(caller.token, f"{owner}/{asked['name']}")
        del self.state.repositories[repository.id]
        return Answer()

    def _settings(self, caller: _Caller, name: str) -> Answer:
        repository = self.state.writable(caller.token, name)
        asked = caller.request.json()
        if "gated" in asked:
            repository.gated = asked["gated"]
        if "visibility" in asked or "private" in asked:
            repository.private = asked.get("visibility") == "private" or asked.get("private") is True
        return Answer.json({"private": repository.private, "gated": repository.gated})

    def _info(self, caller: _Caller, name: str, revision: str = "main") -> Answer:
        repository = self.state.readable(caller.token, name)
        commit = repository.commit_of(revision)
        siblings: list[dict[str, object]] = []
        for path, entry in commit.files.items():
            sibling: dict[str, object] = {"rfilename": path}
            if "blobs" in caller.request.query:
                sibling |= {"size": entry.size, "blobId": entry.oid}
                if entry.sha256 is not None:
                    sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
            siblings.append(sibling)
        return Answer.json(
            {
                "_id": hashlib.md5(name.encode()).hexdigest()[:24],
                "id": name,
                "modelId": name,
                "author": repository.owner,
                "sha": commit.id,
                "private": repository.private,
                "gated": repository.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _tree(self, caller: _Caller, name: str, revision: str, *path: str) -> Answer:
        repository = self.state.readable(caller.token, name)
        commit = repository.commit_of(revision)
        prefix = "".join(f"{part}/" for part in path if part)
        recursive = caller.request.query.get("recursive", "").lower() in ("true", "1")
        items: dict[str, dict[str, object]] = {}
        for file, entry in commit.files.items():
            if not file.startswith(prefix):
                continue
            folders = file.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(folders) + 1) if recursive else [1] if folders else []:
                folder = prefix + "/".join(folders[:depth])
                oid = hashlib.sha1(f"tree {folder}".encode()).hexdigest()
                items[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
            if recursive or not folders:
                items[file] = entry.as_json(file)
        if prefix and not items:
            raise Refusal(404, f"{prefix} does not exist", "EntryNotFound")
        return self._paged(caller, list(items.values()))

    def _paged(self, caller: _Caller, items: list[Any]) -> Answer:
        query = dict(caller.request.query)
        start = int(query.get("cursor", "0"))
        answer = Answer.json(items[start : start + self.page])
        if start + self.page < len(items):
            path = caller.request.target.partition("?")[0]
            following = urllib.parse.urlencode({**query, "cursor": start + self.page})
            answer.headers["Link"] = f'<{self.hub_url}{path}?{following}>; rel="next"'
        return answer

    def _paths_info(self, caller: _Caller, name: str, revision: str) -> Answer:
        repository = self.state.readable(caller.token, name)
        commit = repository.commit_of(revision)
        asked = urllib.parse.parse_qs(caller.request.body.read().decode()).get("paths", [])
        found = [commit.files[path].as_json(path) for path in asked if path in commit.files]
        return Answer.json(found)

    def _refs(self, caller: _Caller, name: str) -> Answer:
        repository = self.state.readable(caller.token, name)

        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [
                {"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": commit}
                for ref, commit in refs.items()
            ]

        branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
        return Answer.json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def _commits(self, caller: _Caller, name: str, revision: str) -> Answer:
        repository = self.state.readable(caller.token, name)
        commit: Commit | None = repository.commit_of(revision)
        history: list[dict[str, object]] = []
        while commit is not None:
            history.append(
                {
                    "id": commit.id,
                    "title": commit.title,
                    "message": "",
                    "authors": [{"user": commit.author}],
                    "date": "2026-01-01T00:00:00.000Z",
                }
            )
            commit = repository.commits[commit.parents[0]] if commit.parents else None
        return self._paged(caller, history)

    def _branch(self, caller: _Caller, name: str, branch: str) -> Answer:
        repository = self.state.writable(caller.token, name)
        if caller.request.method == "DELETE":
            if branch == "main" or repository.branches.pop(branch, None) is None:
                raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            return Answer()
        start = repository.commit_of(caller.request.json().get("startingPoint") or "main")
        if branch in repository.branches or branch in repository.tags:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = start.id
        return Answer.json({}, 201)

    def _tag(self, caller: _Caller, name: str, revision: str) -> Answer:
        repository = self.state.writable(caller.token, name)
        if caller.request.method == "DELETE":
            if repository.tags.pop(revision, None) is None:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return Answer()
        tag = caller.request.json()["tag"]
        commit = repository.commit_of(revision)
        if tag in repository.tags or tag in repository.branches:
            raise Refusal(409, "Tag reference exists already")
        repository.tags[tag] = commit.id
        return Answer.json({}, 201)

    # -- uploads

    def _preupload(self, caller: _Caller, name: str, revision: str) -> Answer:
        repository = self.state.writable(caller.token, name)
        files = repository.commit_of(revision).files
        modes: list[dict[str, object]] = []
        for asked in caller.request.json()["files"]:
            path, size = asked["path"], asked["size"]
            large = (
                size > _LARGE or _matches_attributes(path) or _is_binary(base64.b64decode(asked["sample"]))
            )
            mode: dict[str, object] = {"path": path, "uploadMode": "lfs" if large else "regular"}
            mode["shouldIgnore"] = False
            if (known := files.get(path)) is not None:
                mode["oid"] = known.etag
            modes.append(mode)
        return Answer.json({"files": modes})

    def _signed(self, path: str) -> str:
        until = f"{time.time() + self.expires:.3f}"
        signature = hmac.new(self._key, f"{path}?{until}".encode(), "sha256").hexdigest()
        return f"{self.storage_url}{path}?expires={until}&signature={signature}"

    def _batch(self, caller: _Caller, name: str) -> Answer:
        self.state.writable(caller.token, name)
        objects: list[dict[str, object]] = []
        for asked in caller.request.json()["objects"]:
            sha256, size = asked["oid"], asked["size"]
            if _SHA256.fullmatch(sha256) is None:
                raise Refusal(422, "an oid is a SHA-256")
            answer: dict[str, object] = {"oid": sha256, "size": size}
            if not self.state.object(sha256).exists():
                verify = {"href": f"{self.hub_url}/{name}.git/info/lfs/objects/verify"}
                answer["authenticated"] = True
                answer["actions"] = {"upload": self._upload_action(sha256, size), "verify": verify}
            objects.append(answer)
        several = any("chunk_size" in str(item.get("actions")) for item in objects)
        return Answer.json({"transfer": "multipart" if several else "basic", "objects": objects})

    def _upload_action(self, sha256: str, size: int) -> dict[str, object]:
        if self.part is None or size <= self.part:
            return {"href": self._signed(f"/upload/{sha256}")}
        header = {"chunk_size": str(self.part)}
        for number in range(1, -(-size // self.part) + 1):
            header[f"{number:05}"] = self._signed(f"/part/{sha256}/{number}")
        return {"href": f"{self.hub_url}/api/complete_multipart/{sha256}", "header": header}

    def _complete(self, caller: _Caller, sha256: str) -> Answer:
        """Put the parts of an upload together. As on the Hub, its URL comes from the batch, and needs no token."""
        asked = caller.request.json()
        known = self._parts.get(sha256, {})
        numbers = [part["partNumber"] for part in asked["parts"]]
        if asked["oid"] != sha256 or [known.get(number) for number in numbers] != [
            part["etag"] for part in asked["parts"]
        ]:
            raise Refusal(400, "the parts are not those that were uploaded")
        digest = hashlib.sha256()
        whole = self.state.object(f"{sha256}.{self.state.number()}")
        with open(whole, "wb") as file:
            for number in numbers:
                with open(self.state.object(f"{sha256}.part{number}"), "rb") as part:
                    while piece := part.read(1 << 20):
                        digest.update(piece)
                        file.write(piece)
        if digest.hexdigest() != sha256:
            whole.unlink()
            raise Refusal(400, "the object is not what its oid says")
        whole.rename(self.state.object(sha256))
        for number in self._parts.pop(sha256):
            self.state.object(f"{sha256}.part{number}").unlink(missing_ok=True)
        return Answer.json({"success": True})

    def _verify(self, caller: _Caller, name: str) -> Answer:
        self.state.writable(caller.token, name)
        asked = caller.request.json()
        path = self.state.object(asked["oid"])
        if (
            _SHA256.fullmatch(asked["oid"]) is None
            or not path.exists()
            or path.stat().st_size != asked["size"]
        ):
            raise Refusal(404, "the object is not here")
        return Answer.json({})

    def _commit(self, caller: _Caller, name: str, branch: str) -> Answer:
        repository = self.state.writable(caller.token, name)
        token = self.state.check_owner(caller.token, repository.owner)
        if branch not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repository.commits[repository.branches[branch]]
        lines = [json.loads(line) for line in caller.request.body.read().splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit")
        if parent is not None and parent != head.id and not self.ignore_parent:
            raise Refusal(412, _STALE)
        files = dict(head.files)
        for line in lines:
            self._apply(files, line["key"], line["value"])
        commit = self.state.commit(repository, (head.id,), files, header["summary"], token.user)
        repository.branches[branch] = commit.id
        url = f"{self.hub_url}/{name}/commit/{commit.id}"
        return Answer.json({"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})

    def _apply(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        match key:
            case "file":
                data = base64.b64decode(value["content"])
                if len(data) > _LARGE or _is_binary(data[:512]):
                    raise Refusal(400, "Your push was rejected because it contains binary files.")
                files[value["path"]] = self.state.add_blob(data)
            case "lfsFile":
                path = self.state.object(value["oid"])
                if value["algo"] != "sha256" or not path.exists() or path.stat().st_size != value["size"]:
                    raise Refusal(400, "Your push was rejected: an LFS pointer points to no file.")
                files[value["path"]] = Entry.lfs(value["oid"], value["size"])
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, f"{value['path']} does not exist", "EntryNotFound")
            case "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                for name in [name for name in files if name.startswith(folder)]:
                    del files[name]

    # -- downloads

    def _found(
        self, caller: _Caller, name: str, revision: str, path: str
    ) -> tuple[Repository, Commit, Entry]:
        repository = self.state.readable(caller.token, name)
        self.state.check_admitted(caller.token, repository)
        commit = repository.commit_of(revision)
        entry = commit.files.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return repository, commit, entry

    def _resolve(self, caller: _Caller, name: str, revision: str, path: str) -> Answer:
        _, commit, entry = self._found(caller, name, revision, path)
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        if entry.sha256 is None:
            # As on the Hub, whose answer for small files is a page of its own that may be kept.
            quoted = urllib.parse.quote(f"/api/resolve-cache/models/{name}/{commit.id}/{path}")
            return Answer(307, b"", {**headers, "Location": quoted})
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        return Answer(302, b"", {**headers, "Location": self._signed(f"/object/{entry.sha256}")})

    def _resolve_cached(self, caller: _Caller, name: str, commit: str, path: str) -> Answer:
        _, _, entry = self._found(caller, name, commit, path)
        data = self.state.blobs[entry.oid]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        asked = caller.request.range_of(len(data))
        if asked is None:
            return Answer(200, data, headers)
        start, length = asked
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{len(data)}"
        return Answer(206, data[start : start + length], headers)

    # -- the storage

    def storage(self, request: Request) -> Answer:
        """Whoever has a signed URL may use it, until it expires."""
        path = urllib.parse.urlsplit(request.target).path
        until, signature = request.query.get("expires", "0"), request.query.get("signature", "")
        right = hmac.new(self._key, f"{path}?{until}".encode(), "sha256").hexdigest()
        if "Authorization" in request.headers:
            raise Refusal(400, "a token of the Hub has no business here")
        if not hmac.compare_digest(right, signature) or float(until) < time.time():
            raise Refusal(403, "Request has expired")
        match request.method, request.parts:
            case "PUT", ("upload", sha256):
                return self._put(request, sha256)
            case "PUT", ("part", sha256, number):
                return self._put_part(request, sha256, int(number))
            case (("GET" | "HEAD"), ("object", sha256)):
                return self._get(request, sha256)
        raise Refusal(405, "Method Not Allowed")

    def _put(self, request: Request, sha256: str) -> Answer:
        path = self.state.object(f"{sha256}.{self.state.number()}")
        if request.body.save(path) != sha256:
            path.unlink()
            raise Refusal(400, "the object is not what its oid says")
        path.rename(self.state.object(sha256))
        return Answer()

    def _put_part(self, request: Request, sha256: str, number: int) -> Answer:
        etag = f'"{request.body.save(self.state.object(f"{sha256}.part{number}"))}"'
        with self.state.lock:
            self._parts.setdefault(sha256, {})[number] = etag
        return Answer(headers={"ETag": etag})

    def _get(self, request: Request, sha256: str) -> Answer:
        path = self.state.object(sha256)
        if _SHA256.fullmatch(sha256) is None or not path.exists():
            raise Refusal(404, "no such object")
        size, etag = path.stat().st_size, f'"{sha256}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = request.range_of(size) if request.headers.get("If-Range", etag) == etag else None
        if asked is None:
            return Answer(200, Part(path, 0, size), headers)
        start, length = asked
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        return Answer(206, Part(path, start, length), headers)

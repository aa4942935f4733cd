"""What the Hub of the tests knows: users, tokens, repositories, commits, and the objects of Git LFS in a folder."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Commit", "Entry", "HubState", "Refusal", "Repository", "Token", "git_blob_id"]

Role = Literal["read", "write"]
Gated = Literal["auto", "manual", False]

_ATTRIBUTES = (
    b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
)


def git_blob_id(data: bytes) -> str:
    """The name that git gives a blob (40 hexadecimal digits)."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Refusal(Exception):
    """An answer that is an error: the Hub tells its kind in X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True, slots=True)
class Token:
    user: str
    role: Role


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a commit. ``oid`` is git's name of what git holds; ``sha256`` that of an object of Git LFS."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def lfs(cls, sha256: str, size: int) -> Entry:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(git_blob_id(pointer.encode()), size, sha256)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def as_json(self, path: str) -> dict[str, object]:
        tree: dict[str, object] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256 is not None:
            tree["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return tree


@dataclass(frozen=True, slots=True)
class Commit:
    id: str
    parents: tuple[str, ...]
    title: str
    author: str
    files: Mapping[str, Entry]


@dataclass(slots=True)
class Repository:
    id: str
    private: bool = False
    gated: Gated = False
    admitted: set[str] = field(default_factory=set)  # to a gated repository
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def commit_of(self, revision: str) -> Commit:
        """The commit that a branch, a tag or the beginning of a commit's name stands for."""
        found = self.branches.get(revision) or self.tags.get(revision)
        if found is None and len(revision) >= 7:
            found = next((name for name in self.commits if name.startswith(revision)), None)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found]


class HubState:
    """All of it. Whoever reads or writes more than one thing holds ``lock``."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self.objects = folder / "objects"
        self.objects.mkdir(parents=True)
        self.tokens: dict[str, Token] = {}
        self.organisations: dict[str, set[str]] = {}
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self._numbers = itertools.count(1)

    def number(self) -> int:
        with self.lock:
            return next(self._numbers)

    def object(self, sha256: str) -> Path:
        return self.objects / sha256

    def add_blob(self, data: bytes) -> Entry:
        entry = Entry(git_blob_id(data), len(data))
        self.blobs[entry.oid] = data
        return entry

    def create(self, name: str, *, private: bool = False) -> Repository:
        with self.lock:
            if name in self.repositories:
                raise Refusal(
                    409, "You already created this model repo", None, url=f"https://example.com/{name}"
                )
            repository = self.repositories[name] = Repository(name, private)
            files = {".gitattributes": self.add_blob(_ATTRIBUTES)}
            repository.branches["main"] = self.commit(repository, (), files, "initial commit", "hub").id
            return repository

    def commit(
        self,
        repository: Repository,
        parents: tuple[str, ...],
        files: Mapping[str, Entry],
        title: str,
        author: str,
    ) -> Commit:
        """Make a commit, which no branch points to yet."""
        content = repr((repository.id, parents, sorted(files.items()), title, self.number()))
        commit = Commit(
            hashlib.sha1(content.encode()).hexdigest(), parents, title, author, dict(sorted(files.items()))
        )
        repository.commits[commit.id] = commit
        return commit

    # -- who may what

    def user_of(self, authorization: str | None) -> Token | None:
        if authorization is None:
            return None
        token = self.tokens.get(authorization.removeprefix("Bearer "))
        if token is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return token

    def _belongs(self, token: Token | None, owner: str) -> bool:
        return token is not None and (token.user == owner or token.user in self.organisations.get(owner, ()))

    def check_owner(self, token: Token | None, owner: str) -> Token:
        """Whether a token may make, change and remove what belongs to ``owner``."""
        if token is None:
            raise Refusal(401, "Invalid username or password.")
        if not self._belongs(token, owner):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if token.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to do this.")
        return token

    def readable(self, token: Token | None, name: str) -> Repository:
        """The repository, if it is one that this token may know of."""
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not self._belongs(token, repository.owner)):
            # What is private is not told apart from what is not there; strangers have to say who they are first.
            raise Refusal(
                401 if token is None else 404,
                "Invalid username or password." if token is None else "Repository not found",
                "RepoNotFound",
            )
        return repository

    def writable(self, token: Token | None, name: str) -> Repository:
        repository = self.readable(token, name)
        self.check_owner(token, repository.owner)
        return repository

    def check_admitted(self, token: Token | None, repository: Repository) -> None:
        """Files of a gated repository are for its owner and for those whom it has let in."""
        if not repository.gated or self._belongs(token, repository.owner):
            return
        if token is None or token.user not in repository.admitted:
            message = f"Access to model {repository.id} is restricted."
            raise Refusal(401 if token is None else 403, message, "GatedRepo")

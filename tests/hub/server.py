"""A Hugging Face Hub for tests, on the loopback interface, that the unmodified huggingface_hub talks to.

    hub = TestHub(folder)             # two origins: the Hub, and the storage behind its signed URLs
    token = hub.add_user("ada")       # a token that may write
    hub.add_files("ada/model", {"config.json": b"{}", "model.dcz": path})
    hub.faults.add(Fault("reset", path="/object/", after=1000))
    hub.log.sent("/object/")          # bytes
    hub.close()

What is there: users, organisations, tokens that may read or write, private and gated repositories, branches, tags,
commits with a parent that is checked, Git LFS in one piece and in parts, redirects to another origin, ranges, pages, the
headers and error codes of the Hub. What is not: Xet (asking for its tokens is answered 404, as by other servers), data
sets, spaces, pull requests.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.hub.faults import Faults, Log
from tests.hub.routes import HubRoutes
from tests.hub.state import Entry, HubState, Repository, Role, Token
from tests.hub.wire import Answer, Link, Origin, Request

__all__ = ["TestHub"]


class TestHub:
    __test__ = False  # for pytest: this is not a test

    def __init__(self, folder: Path) -> None:
        self.state = HubState(folder)
        self.faults, self.log = Faults(), Log()
        self.routes = HubRoutes(self.state)
        self._link = Link()
        self._hub = Origin("hub", "127.0.0.1", self.routes.hub, self.faults, self.log, self._link)
        # Another host: some clients take another port for the same origin.
        self._storage = Origin("storage", "127.0.0.2", self.routes.storage, self.faults, self.log, self._link)
        self.routes.hub_url, self.routes.storage_url = self._hub.url, self._storage.url
        self._hub.start()
        self._storage.start()

    @property
    def url(self) -> str:
        """The endpoint, for HF_ENDPOINT."""
        return self._hub.url

    def close(self) -> None:
        self._hub.stop()
        self._storage.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def limit_rate(self, rate: float | None) -> None:
        """Bytes a second that all answers together are sent with; None for as fast as it goes."""
        self._link.rate = rate

    def answer_with(self, route: Callable[[Request], Answer]) -> None:
        """Let the Hub answer otherwise than it does; ``routes.hub`` is what it would have answered."""
        self._hub.route = route

    # -- what is there without anybody having pushed it

    def add_user(self, name: str, *, role: Role = "write", organisations: Iterable[str] = ()) -> str:
        """A user, if there is none of that name, and a new token."""
        token = f"hf_{hashlib.sha256(f'{name} {role} {self.state.number()}'.encode()).hexdigest()[:34]}"
        with self.state.lock:
            self.state.tokens[token] = Token(name, role)
            for organisation in organisations:
                self.state.organisations.setdefault(organisation, set()).add(name)
        return token

    def repository(self, name: str) -> Repository:
        return self.state.repositories[name]

    def head(self, name: str, branch: str = "main") -> str:
        """The commit that a branch points to."""
        return self.repository(name).branches[branch]

    def add_files(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        branch: str = "main",
        private: bool = False,
        lfs: Iterable[str] = (),
    ) -> str:
        """Make a commit with these files; a Path, and what ``lfs`` names, is an object of Git LFS. The commit's name."""
        with self.state.lock:
            repository = self.state.repositories.get(name) or self.state.create(name, private=private)
            head = repository.commits[repository.branches[branch]]
            entries = dict(head.files)
            for path, content in files.items():
                if isinstance(content, bytes) and path not in lfs:
                    entries[path] = self.state.add_blob(content)
                else:
                    entries[path] = self._add_object(content)
            commit = self.state.commit(repository, (head.id,), entries, "from the side", "hub")
            repository.branches[branch] = commit.id
            return commit.id

    def _add_object(self, content: bytes | Path) -> Entry:
        if isinstance(content, bytes):
            sha256, size = hashlib.sha256(content).hexdigest(), len(content)
            self.state.object(sha256).write_bytes(content)
        else:
            with open(content, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = content.stat().st_size
            shutil.copyfile(content, self.state.object(sha256))
        return Entry.lfs(sha256, size)

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        """What a file of a revision holds."""
        entry = self.repository(name).commit_of(revision).files[path]
        return (
            self.state.blobs[entry.oid]
            if entry.sha256 is None
            else self.state.object(entry.sha256).read_bytes()
        )

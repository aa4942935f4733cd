"""Bytes into a repository, before any commit knows of them: Git LFS, in one piece or in parts.

    POST api/models/ID/preupload/BRANCH      which files git is to hold itself
    POST ID.git/info/lfs/objects/batch       where an object of Git LFS is to go, or that it is there
    PUT                                      all of it, or each part, to the storage behind the Hub
    POST                                     the parts are one object
    POST ID.git/info/lfs/objects/verify      the object is there

What breaks off is tried again, a part at a time. The storage need not be believed: a commit that names an object which the
Hub does not have is refused.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dcz.errors import RegistryCorrupt, RegistryError, UsageError
from dcz.registry.hub.connection import Connection, Garbled, Refused
from dcz.registry.hub.preparing import GIT_MAX, Content

__all__ = ["upload", "upload_modes"]

_PIECE: Final = 256 << 10  # bytes
_LFS: Final = "application/vnd.git-lfs+json"
_SAMPLE: Final = 512  # bytes from which the Hub guesses what a file is
_ASK_AT_ONCE: Final = 256  # files
_MAX_PARTS: Final = 10_000  # of an object, as in S3
_PROGRESS: Final = 1 << 20  # bytes further than ever before that count as getting further
_HUB: Final = "https://huggingface.co"


def upload_modes(
    connection: Connection, repository: str, branch: str, files: Sequence[tuple[Path, str, int]]
) -> dict[str, bool]:
    """Of files, their names and sizes, the names, and whether they are for Git LFS. Raises RegistryError, UsageError, OSError."""
    url = connection.own_url(f"api/models/{repository}/preupload/{urllib.parse.quote(branch, safe='')}")
    modes: dict[str, bool] = {}
    for start in range(0, len(files), _ASK_AT_ONCE):
        some = files[start : start + _ASK_AT_ONCE]
        asked = [
            {"path": name, "sample": base64.b64encode(_sample(path)).decode(), "size": size}
            for path, name, size in some
        ]
        what = f"pushing to {repository}"
        tree = connection.trying(what, lambda asked=asked: connection.post_json(url, {"files": asked}))  # type: ignore[misc]
        modes |= _modes(tree, {name: size for _, name, size in some}, what)
    return modes


def _sample(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_SAMPLE)


def _modes(tree: Any, sizes: Mapping[str, int], what: str) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for item in _listed(tree, "files"):
        name, mode = str(item.get("path")), item.get("uploadMode")
        if name not in sizes or mode not in ("lfs", "regular"):
            continue
        if item.get("shouldIgnore") is True:
            raise UsageError(
                f"{what}: the .gitignore of the repository leaves out {name!r}",
                hint="change that, or the name",
            )
        # The storage takes no empty objects, and git no large ones.
        found[name] = sizes[name] > 0 and (mode == "lfs" or sizes[name] > GIT_MAX)
    if missing := sizes.keys() - found:
        raise RegistryCorrupt(f"{what}: the Hub does not say how to upload {min(missing)!r}")
    return found


def _listed(tree: Any, key: str) -> list[dict[str, Any]]:
    items = tree.get(key) if isinstance(tree, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


class _Body:
    """Bytes of a file for a request, read anew each time."""

    def __init__(self, path: Path, start: int, length: int, on_bytes: Callable[[int], None]) -> None:
        self._path, self._start, self._length, self._on_bytes = path, start, length, on_bytes

    def __iter__(self) -> Iterator[bytes]:
        with open(self._path, "rb", buffering=0) as file:
            file.seek(self._start)
            left = self._length
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    raise UsageError(f"cannot push {str(self._path)!r}: it becomes shorter while it is read")
                yield piece
                left -= len(piece)
                self._on_bytes(self._start + self._length - left)


def upload(
    connection: Connection, repository: str, branch: str, content: Content, step: Callable[[int], None] | None
) -> None:
    """Let the Hub have an object. ``step`` is told how many bytes are there. Raises RegistryError, UsageError, OSError."""
    _Upload(connection, repository, branch, content, step).run()


class _Upload:
    def __init__(
        self,
        connection: Connection,
        repository: str,
        branch: str,
        content: Content,
        step: Callable[[int], None] | None,
    ) -> None:
        self._connection, self._content, self._step = connection, content, step
        self._repository, self._branch = repository, branch
        self._what = f"pushing {content.name} to {repository}"
        self._attempts = connection.attempts()
        self._furthest = 0

    def run(self) -> None:
        while True:
            try:
                self._once()
                break
            except (Refused, Garbled) as exc:  # with URLs that the Hub signs anew, it may go
                self._attempts.wait(self._connection.failure(exc, self._what))
        if self._step is not None:
            self._step(self._content.size)

    def _once(self) -> None:
        actions = self._asked()
        if actions is None:
            return
        upload, verify = actions.get("upload"), actions.get("verify")
        href, header = self._href(upload), upload.get("header") if isinstance(upload, dict) else None
        header = header if isinstance(header, dict) else {}
        if "chunk_size" in header:
            self._put_parts(href, *self._parts(header))
        else:
            self._put(href, 0, self._content.size)
        if verify is not None:
            place, tree = self._href(verify), {"oid": self._content.sha256, "size": self._content.size}
            self._connection.trying(self._what, lambda: self._connection.post_json(place, tree, kind=_LFS))

    def _asked(self) -> dict[str, Any] | None:
        """What has to be done; None if the object is there."""
        url = self._connection.own_url(f"{self._repository}.git/info/lfs/objects/batch")
        tree = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "objects": [{"oid": self._content.sha256, "size": self._content.size}],
            "ref": {"name": self._branch},
        }
        answer = self._connection.trying(self._what, lambda: self._connection.post_json(url, tree, kind=_LFS))
        for item in _listed(answer, "objects"):
            if item.get("oid") == self._content.sha256:
                if (error := item.get("error")) is not None:
                    said = error.get("message") if isinstance(error, dict) else None
                    raise RegistryError(f"{self._what}: the Hub does not take it ({str(said)[:200]!r})")
                actions = item.get("actions")
                if actions is None or isinstance(actions, dict):
                    return actions
        raise Garbled("it does not say where the object is to go")

    def _href(self, action: Any) -> str:
        href = action.get("href") if isinstance(action, dict) else None
        if not isinstance(href, str):
            raise Garbled("it does not say where the object is to go")
        # A mirror may hand on what the Hub says of itself.
        href = href.replace(_HUB, self._connection.endpoint, 1) if href.startswith(f"{_HUB}/") else href
        self._connection.check_secure(href)
        return href

    def _parts(self, header: Mapping[str, Any]) -> tuple[int, list[str]]:
        """How many bytes each part has, and where they go."""
        size, length = self._content.size, str(header["chunk_size"])
        numbers = sorted((key for key in header if key.isascii() and key.isdigit()), key=int)
        if not (length.isascii() and length.isdigit() and int(length[:19]) > 0):
            raise Garbled("it does not say how long a part is")
        if len(numbers) > _MAX_PARTS or len(numbers) != -(-size // int(length[:19])):
            raise Garbled(f"{len(numbers)} parts of {length[:19]} bytes, for {size}")
        return int(length[:19]), [self._href({"href": header[number]}) for number in numbers]

    def _put_parts(self, href: str, length: int, places: Sequence[str]) -> None:
        parts: list[dict[str, object]] = []
        for number, place in enumerate(places):
            start = number * length
            headers = self._put(place, start, min(length, self._content.size - start))
            if not (etag := headers.get("etag")):
                raise Garbled("a part that was uploaded has no name")
            parts.append({"partNumber": number + 1, "etag": etag})
        tree = {"oid": self._content.sha256, "parts": parts}
        self._connection.trying(self._what, lambda: self._connection.post_json(href, tree, kind=_LFS))

    def _put(self, url: str, start: int, length: int) -> Mapping[str, str]:
        """Send a part; the headers of the answer."""
        body = _Body(self._content.path, start, length, self._sent)
        while True:
            try:
                with self._connection.answer(
                    url, method="PUT", headers={"Content-Length": str(length)}, content=body
                ) as (response, _):
                    self._connection.small_body(response)
                    return response.headers  # type: ignore[no-any-return]
            except Exception as exc:
                failure = self._connection.failure(exc, self._what)
                if isinstance(exc, Refused) and failure.tries is not None:
                    raise  # the URL has expired, perhaps
                self._attempts.wait(failure)

    def _sent(self, done: int) -> None:
        if done - self._furthest >= _PROGRESS:
            self._furthest = done
            self._attempts.progress()
        if self._step is not None:
            self._step(done)

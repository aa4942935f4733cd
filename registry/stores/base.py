"""What a store is: the place where a registry keeps its artifacts, whatever is behind it.

A store knows tags, manifests and blobs, and trusts nobody: what it gives out is checked by the client again. It does not
know what a .dcz file is. The rules for tags are those of ``dcz.registry.index``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from dcz.registry.index import Change, Publication, Tag

__all__ = ["Garbage", "OnBytes", "StagedFile", "Store", "Upload"]

OnBytes: TypeAlias = Callable[[int], None]  # bytes done so far


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file on its way into a store: the very bytes that will be published, still without a name."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a clean-up removed: how many blobs, and their bytes."""

    blobs: int
    size: int


class Upload(Protocol):
    """One push under way. Nothing of it can be seen in the store before ``publish``."""

    def add(self, source: Path, on_bytes: OnBytes | None = None) -> StagedFile:
        """Copy a file towards the store. Raises OSError if ``source`` cannot be read, RegistryError for the rest."""
        ...

    def publish(
        self, name: str, version: str | None, manifest: bytes, aliases: Iterable[str] = ()
    ) -> Publication:
        """Make the added files and their manifest a version of ``name``, at once or not at all.

        Content that is there already is written again, which heals what was damaged.
        Raises what ``dcz.registry.index.publish`` does, and RegistryError if the store cannot be written.
        """
        ...


class Store(Protocol):
    """Tags, manifests and blobs. Every method may be called from any process at any time."""

    @property
    def location(self) -> str:
        """Where the store is, for messages."""
        ...

    def tags(self, name: str | None = None) -> list[Tag]:
        """All tags, or those of one name, in the order in which they were made. Empty if there is no store yet."""
        ...

    def read_manifest(self, digest: str, size: int) -> bytes:
        """The bytes of a manifest, which have this digest and size. Raises RegistryCorrupt if they have not."""
        ...

    def open_blob(self, digest: str, size: int) -> BinaryIO:
        """The stream of a blob of this size, which can be sought in, so that a copy that was cut off can go on.

        The content is *not* compared with the digest: the client does that. Raises RegistryCorrupt if the blob is
        missing or has another size.
        """
        ...

    def blob_path(self, digest: str, size: int) -> Path | None:
        """Where a blob lies on this machine, if it does; checked as by ``open_blob``."""
        ...

    def upload(self) -> AbstractContextManager[Upload]:
        """Begin a push; makes the store if there is none. Raises RegistryError if it cannot be written."""
        ...

    def move_alias(self, name: str, alias: str, digest: str) -> Change | None:
        """Point an alias to a version's manifest; None if it pointed there already.

        Raises what ``dcz.registry.index.set_alias`` does, and RegistryError if the store cannot be written.
        """
        ...

    def history(self, name: str | None = None) -> list[Change]:
        """All versions that were published and all aliases that moved, oldest first.

        Raises RegistryCorrupt if some were lost; from the next change on, there is a ``gap`` where they were.
        """
        ...

    def collect_garbage(self, *, grace: float) -> Garbage:
        """Remove what dead pushes left, and blobs that nothing refers to and that are older than ``grace`` seconds."""
        ...

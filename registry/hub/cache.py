"""Files of the Hub that are kept, in the folders of huggingface_hub's own cache, which its tools list and clean.

    models--org--name/
      refs/<revision>                 the commit that it was, when somebody last asked
      blobs/<digest>                  the files
      snapshots/<commit>/<path>       a link to each
      .dcz/<digest>                   that we have verified the file, when it was last changed, and the identity of the .dcz
      .dcz/<commit>.files             all files of a commit: size, digest, path

huggingface_hub checks nothing but the length of what it keeps. A file without a note of ours, or changed since, is therefore
hashed before it counts; one with a note is known by the identity in it, which a reader compares, with the digest of every
chunk it reads. A file that is found to be damaged is fetched again.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from pathlib import Path
from typing import Final

from dcz.registry.arrival import Arrival, copy_to
from dcz.registry.disk import Staging, hash_stream, open_regular, os_errors, read_bounded, write_synced
from dcz.registry.hub.connection import Connection
from dcz.registry.hub.snapshot import HubFile, Snapshot, is_commit, is_sha256
from dcz.registry.progress import Progress
from dcz.registry.refs import HubReference

__all__ = ["Cache"]

_PREFIX: Final = ".dcz-fetch-"
MAX_LIST: Final = 64 << 20  # bytes
_NOTE: Final = re.compile(r"(blake3:[0-9a-f]{64}) (\d+)")
_LISTED: Final = re.compile(r"(\d{1,16}) ([0-9a-f]{40}|[0-9a-f]{64}) (.+)")


class Cache:
    """What is kept of one repository."""

    def __init__(self, connection: Connection, reference: HubReference) -> None:
        self.folder = _root(connection) / f"models--{reference.org}--{reference.name}"

    def blob(self, file: HubFile) -> Path:
        """Where a file of its digest is, or would be."""
        return self.folder / "blobs" / file.digest

    def _note(self, file: HubFile) -> Path:
        return self.folder / ".dcz" / file.digest

    def find(self, file: HubFile) -> Path | None:
        """The file, if something of its name and length is there. Whether it is right is another question."""
        blob = self.blob(file)
        with contextlib.suppress(OSError):
            if blob.stat().st_size == file.size:
                return blob
        return None

    def identity(self, file: HubFile) -> str | None:
        """The identity that a .dcz of this digest was found to have; None if it has not been verified here, or has been
        changed since."""
        try:
            text = read_bounded(self._note(file), 100).decode(errors="replace").strip()
            changed = self.blob(file).stat().st_mtime_ns
        except OSError:
            return None
        found = _NOTE.fullmatch(text)
        return found[1] if found is not None and int(found[2]) == changed else None

    def drop(self, file: HubFile) -> None:
        """Remove what was found to be damaged, as far as that goes."""
        for path in (self.blob(file), self._note(file)):
            with contextlib.suppress(OSError):
                path.unlink()

    def is_right(self, file: HubFile, path: Path) -> bool:
        """Whether a file has its digest, every byte of it."""
        with os_errors("cannot read", path), open_regular(path) as source:
            return hash_stream(source, None, file.hashing) == (file.digest, file.size)

    def fetch(self, file: HubFile, arrival: Arrival, progress: Progress | None) -> Path:
        """Bring a file into the cache, verified; the path. A fetch that was killed goes on."""
        blob = self.blob(file)
        with os_errors("cannot write to", self.folder):
            blob.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own for each file: fetches of several at the same time take nothing from each other.
            with Staging(blob.parent, f"{_PREFIX}{file.digest[:16]}-", wanted=[file.digest]) as staging:
                staged = staging.path / file.digest
                copy_to(arrival, staged, progress)
                arrival.check_file(staged, progress)
                os.replace(staged, blob)
        return blob

    def keep(self, snapshot: Snapshot, file: HubFile, identity: str) -> None:
        """Note that a .dcz file was verified, and let huggingface_hub find it. What cannot be written is not noted."""
        with contextlib.suppress(OSError):
            note = self._note(file)
            note.parent.mkdir(exist_ok=True)
            self._write(note, f"{identity} {self.blob(file).stat().st_mtime_ns}")
            self.link(snapshot, file)
            self.point(snapshot)

    def snapshot_folder(self, snapshot: Snapshot) -> Path:
        """Where the files of a commit are, by their paths."""
        return self.folder / "snapshots" / snapshot.commit

    def link(self, snapshot: Snapshot, file: HubFile) -> Path:
        """Let a file that is here appear among those of its commit; its path there. Raises OSError."""
        link = self.snapshot_folder(snapshot) / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(self.blob(file), link.parent)
        if not link.is_symlink() or os.readlink(link) != target:
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
            link.symlink_to(target)
        return link

    def point(self, snapshot: Snapshot) -> None:
        """Remember which commit a branch or tag is, and all its files. Raises OSError."""
        if snapshot.whole:
            listed = self.folder / ".dcz" / f"{snapshot.commit}.files"
            listed.parent.mkdir(exist_ok=True)
            lines = (
                f"{file.size} {file.digest} {file.path}\n" for file in snapshot.files if "\n" not in file.path
            )
            self._write(listed, "".join(lines))
        revision = snapshot.asked.revision or "main"
        if not is_commit(revision):
            ref = self.folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            self._write(ref, snapshot.commit)

    def _write(self, path: Path, text: str) -> None:
        new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        os.replace(write_synced(new, text.encode()), path)

    def snapshot(self, asked: HubReference) -> Snapshot | None:
        """What the cache knows of a revision: all its files if we have asked for it, else those that others have fetched."""
        revision = asked.revision or "main"
        commit = revision
        if not is_commit(revision):
            try:
                commit = read_bounded(self.folder / "refs" / revision, 100).decode(errors="replace").strip()
            except OSError:
                return None
        root = self.folder / "snapshots" / commit
        if not is_commit(commit) or not root.is_dir():
            return None
        pinned = HubReference(asked.org, asked.name, commit)
        files = self._listed(commit)
        if files:
            return Snapshot(asked, pinned, False, tuple(files))
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                path = Path(folder, name)
                digest = os.path.basename(os.path.realpath(path))
                with contextlib.suppress(OSError):
                    if is_sha256(digest) or is_commit(digest):
                        files.append(HubFile(path.relative_to(root).as_posix(), path.stat().st_size, digest))
        return Snapshot(asked, pinned, False, tuple(sorted(files, key=lambda file: file.path)), whole=False)

    def _listed(self, commit: str) -> list[HubFile]:
        try:
            text = read_bounded(self.folder / ".dcz" / f"{commit}.files", MAX_LIST).decode()
        except (OSError, ValueError):
            return []
        found = [_LISTED.fullmatch(line) for line in text.split("\n")]
        return [HubFile(match[3], int(match[1]), match[2]) for match in found if match is not None]


def _root(connection: Connection) -> Path:
    if connection.hub.cache is not None:
        return connection.hub.cache
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE)
    if connection.is_default:
        return root
    place = re.sub(r"[^A-Za-z0-9.]+", "-", urllib.parse.urlsplit(connection.endpoint).netloc)
    return root.with_name(f"{root.name}-{place}")

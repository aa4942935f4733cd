"""pull, verify and open: files come from the Hub, and every byte is compared before it counts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

from dcz.converters.huggingface import files_of_folder, files_of_model
from dcz.converters.safetensors import INDEX_SUFFIX, read_weight_map
from dcz.converters.shards import is_shard_index
from dcz.errors import DczError, FormatError, NotInRegistry, RegistryCorrupt, SourceError, UsageError
from dcz.format import DEFAULT_LIMITS, BaseLike, Limits, Reader, VerifyReport
from dcz.registry.arrival import Arrival, bring, copy_to
from dcz.registry.checks import verify_with_progress
from dcz.registry.disk import open_regular, os_errors, read_bounded
from dcz.registry.hub.cache import Cache
from dcz.registry.hub.connection import Connection
from dcz.registry.hub.remote import RangeSource, RemoteFile
from dcz.registry.hub.settings import Hub
from dcz.registry.hub.snapshot import DEFAULT_FILE, HubFile, Snapshot, check_paths, is_dcz, open_snapshot
from dcz.registry.outcomes import Pulled
from dcz.registry.pins import check_pinned
from dcz.registry.progress import Progress
from dcz.registry.refs import HubReference
from dcz.registry.together import AT_ONCE, Total, together

__all__ = [
    "fetch",
    "fetch_model",
    "fetch_shards",
    "identities",
    "open_file",
    "pull",
    "read_file",
    "snapshot_of",
    "verify",
]


MAX_SMALL: Final = 64 << 20  # bytes


def snapshot_of(connection: Connection, reference: HubReference) -> Snapshot:
    """The commit and its files; offline, those files of it that are in the cache. Raises RegistryError."""
    if not connection.offline:
        return open_snapshot(connection, reference)
    known = Cache(connection, reference).snapshot(reference)
    if known is None:
        raise connection.offline_error(str(reference))
    return known


class _Verified:
    """The reports of the .dcz files that were verified, by path."""

    def __init__(self) -> None:
        self.reports: dict[str, VerifyReport] = {}


def _arrival(
    connection: Connection,
    snapshot: Snapshot,
    file: HubFile,
    found: _Verified,
    *,
    cached: Path | None = None,
    deep: bool = False,
    base: Sequence[BaseLike] = (),
    pins: tuple[str, ...] = (),
) -> Arrival:
    def check_content(encoded: str, size: int) -> None:
        if (encoded, size) != (file.digest, file.size):
            raise RegistryCorrupt(
                f"{snapshot.reference}: {file.path!r} is damaged: it has {size} bytes and the digest {encoded}, not "
                f"{file.size} bytes and {file.digest}",
                hint="trying again may help, if it was damaged on the way",
            )

    def check_file(path: Path, progress: Progress | None) -> None:
        if not is_dcz(file.path):
            return
        try:
            with os_errors("cannot read", path):
                report = verify_with_progress(
                    path, file.path, file.size, progress, deep=deep, base=list(base)
                )
        except FormatError as exc:
            exc.file = None
            raise RegistryCorrupt(
                f"{snapshot.reference}: {file.path!r} is not a valid .dcz file: {exc}"
            ) from exc
        check_pinned(pins, report.digest, f"{snapshot.reference}, {file.path},")
        found.reports[file.path] = report

    def opened() -> BinaryIO:
        if cached is not None:
            return open_regular(cached)
        if connection.offline:
            raise connection.offline_error(f"{snapshot.reference}, {file.path}")
        return cast("BinaryIO", RemoteFile(connection, snapshot, file))

    return Arrival(file.path, file.size, file.digest, file.hashing, opened, check_content, check_file)


def pull(
    reference: HubReference,
    folder: Path,
    files: Iterable[str],
    hub: Hub,
    progress: Progress | None,
    *,
    force: bool,
    pins: tuple[str, ...] = (),
) -> Pulled:
    """``dcz.registry.pull`` for the Hub: the files of a commit, without hidden ones, or only those that are named."""
    connection = Connection(hub)
    snapshot = snapshot_of(connection, reference)
    cache = Cache(connection, reference)
    found = _Verified()
    arrivals: list[Arrival] = []
    wanted = snapshot.wanted(files)
    if not wanted:
        raise UsageError(f"{snapshot.reference} has no files, or only hidden ones")
    for file in wanted:
        cached = cache.find(file)
        if cached is not None and not cache.is_right(file, cached):
            cached = None
            if not connection.offline:
                cache.drop(file)
        arrivals.append(_arrival(connection, snapshot, file, found, cached=cached, pins=pins))
    arrived = bring(arrivals, folder, progress=progress, force=force, at_once=AT_ONCE, over=connection.over)
    here = {report.digest for report in found.reports.values()}
    named = (base for report in found.reports.values() for base in report.bases)
    elsewhere = tuple(dict.fromkeys(base for base in named if base not in here))
    return Pulled(snapshot.reference, arrived.files, arrived.reused, elsewhere)


def verify(
    reference: HubReference, hub: Hub, progress: Progress | None, *, deep: bool, base: Sequence[BaseLike]
) -> tuple[HubReference, dict[str, VerifyReport]]:
    """``dcz.registry.verify`` for the Hub: what it has now is read, every byte, and thrown away."""
    connection = Connection(hub)
    snapshot = open_snapshot(connection, reference)
    found = _Verified()
    with tempfile.TemporaryDirectory(prefix="dcz-verify-") as folder:
        for number, file in enumerate(snapshot.wanted()):
            arrival = _arrival(connection, snapshot, file, found, deep=deep, base=base)
            path = Path(folder, str(number))
            with os_errors("cannot write to", folder):
                copy_to(arrival, path, progress)
            arrival.check_file(path, progress)
            path.unlink()
    return snapshot.reference, found.reports


def identities(reference: HubReference, hub: Hub) -> tuple[HubReference, dict[str, str]]:
    """The pinned reference, and the identity of each .dcz file, of which only the manifest is read. Raises RegistryError,
    FormatError, UsageError if there is none."""
    connection = Connection(hub)
    snapshot = open_snapshot(connection, reference)
    found: dict[str, str] = {}
    for file in snapshot.wanted():
        if is_dcz(file.path):
            with Reader(RangeSource(connection, snapshot, file), threads=1) as reader:
                found[file.path] = reader.digest
    if not found:
        raise UsageError(f"{snapshot.reference} has no .dcz file")
    return snapshot.reference, found


def fetch(
    reference: HubReference, file: str | None, hub: Hub, progress: Progress | None = None
) -> tuple[HubReference, Path, str]:
    """A .dcz file of the Hub in the cache: the pinned reference, the path, and the identity that it must have.

    It is verified when it comes; later, a reader compares the identity and each chunk that it reads. Raises RegistryError.
    """
    connection = Connection(hub)
    snapshot = snapshot_of(connection, reference)
    return snapshot.reference, *_fetch(connection, snapshot, snapshot.only_dcz(file), progress)


def _fetch(
    connection: Connection, snapshot: Snapshot, wanted: HubFile, progress: Progress | None = None
) -> tuple[Path, str]:
    cache = Cache(connection, snapshot.reference)
    path, identity = cache.find(wanted), cache.identity(wanted)
    if path is None or identity is None:
        found = _Verified()
        arrival = _arrival(connection, snapshot, wanted, found)
        if path is not None and cache.is_right(
            wanted, path
        ):  # fetched by somebody else, such as transformers
            arrival.check_file(path, progress)
        else:
            path = cache.fetch(wanted, arrival, progress)
        identity = found.reports[wanted.path].digest
    cache.keep(snapshot, wanted, identity)
    return path, identity


def fetch_model(
    reference: HubReference, hub: Hub, progress: Progress | None = None, *, nested: bool = False
) -> Path | None:
    """The folder of a commit in the cache, with the files that a conversion of its weights reads, or if ``nested`` also the
    weights in its sub-folders, each of them compared with its digest; None if it has no weights but .dcz files. Raises RegistryError, SourceError.
    """
    connection = Connection(hub)
    snapshot = snapshot_of(connection, reference)
    cache = Cache(connection, reference)
    found = _Verified()

    def bring_in(path: str) -> Path:
        file = snapshot.file(path)
        if file is None:
            raise RegistryCorrupt(f"{snapshot.reference} has no file {path!r}")
        check_paths(snapshot, [file])
        blob = cache.find(file)
        if blob is None or not cache.is_right(file, blob):
            cache.fetch(file, _arrival(connection, snapshot, file, found), progress)
        return cache.link(snapshot, file)

    sizes = {file.path: file.size for file in snapshot.files}
    names = (files_of_folder if nested else files_of_model)(sizes, bring_in)
    if not names and not any(is_dcz(path) for path in sizes):
        deeper = any(path.endswith(".safetensors") for path in sizes)
        raise SourceError(
            f"{snapshot.reference} has no weights that dcz can convert{' to one file' if deeper else ''}",
            hint=f"those in its sub-folders: `dcz convert {snapshot.asked} -o FOLDER/`" if deeper else None,
        )
    check_paths(snapshot, [file for file in snapshot.files if file.path in names])
    for name in names:
        bring_in(name)
    if names:
        cache.point(snapshot)
    return cache.snapshot_folder(snapshot) if names else None


def read_file(reference: HubReference, path: str, hub: Hub) -> tuple[bytes, str] | None:
    """A small file of the Hub, and its digest; None if it, the repository, or the revision is not there. Raises RegistryError."""
    connection = Connection(hub)
    try:
        snapshot = open_snapshot(connection, reference)
    except NotInRegistry:
        return None
    file = snapshot.file(path)
    if file is None:
        return None
    with tempfile.TemporaryDirectory(prefix="dcz-read-") as folder, os_errors("cannot write to", folder):
        place = Path(folder, "file")
        copy_to(_arrival(connection, snapshot, file, _Verified()), place)
        return read_bounded(place, MAX_SMALL), file.digest


def fetch_shards(reference: HubReference, hub: Hub, progress: Progress | None = None) -> Path | None:
    """The index of the .dcz files of a commit, in the cache with all of them; None if it has none, or only one .dcz file.
    Raises RegistryError, SourceError."""
    connection = Connection(hub)
    snapshot = snapshot_of(connection, reference)
    several = [file for file in snapshot.files if is_dcz(file.path) and "/" not in file.path]
    index = snapshot.file(f"model{INDEX_SUFFIX}")
    if index is None or len(several) < 2 or snapshot.file(DEFAULT_FILE) is not None:
        return None
    cache = Cache(connection, reference)
    check_paths(snapshot, [index, *several])
    if cache.find(index) is None or not cache.is_right(index, cache.blob(index)):
        cache.fetch(index, _arrival(connection, snapshot, index, _Verified()), progress)
    place = cache.link(snapshot, index)
    if not is_shard_index(place):
        return None
    named = set(read_weight_map(place)[1].values())
    wanted = [file for file in several if file.path in named]
    total = Total(progress, "fetch", {file.path: file.size for file in wanted}, connection.over)
    together(
        [lambda file=file: _fetch(connection, snapshot, file, total.one()) for file in wanted],  # type: ignore[misc]
        connection.over,
    )
    return place


def open_file(
    reference: HubReference,
    file: str | None,
    hub: Hub,
    *,
    whole: bool,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    base: BaseLike | Sequence[BaseLike] | None = None,
) -> Reader:
    """A reader of a .dcz file of the Hub. If the ``whole`` will be read, it is fetched into the cache; else only what is
    asked for comes over the wire, unless the cache has the file. Raises RegistryError, FormatError.
    """
    connection = Connection(hub)
    snapshot = snapshot_of(connection, reference)
    wanted = snapshot.only_dcz(file)
    cache = Cache(connection, reference)
    kept = cache.find(wanted) is not None and cache.identity(wanted) is not None
    if not (whole or kept or connection.offline):
        source = RangeSource(connection, snapshot, wanted)
        return Reader(source, limits=limits, threads=threads, base=base)
    path, identity = _fetch(connection, snapshot, wanted)
    try:
        with os_errors("cannot read", path):
            reader = Reader(path, limits=limits, threads=threads, base=base)
        if reader.digest == identity:
            return reader
        reader.close()
        damage: DczError = RegistryCorrupt(f"it is {reader.digest}, not {identity}")
    except FormatError as exc:
        exc.file = None
        damage = exc
    raise RegistryCorrupt(
        f"{snapshot.reference}: the file in the cache, {path}, is damaged: {damage}", hint="remove it"
    )

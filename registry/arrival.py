"""Files that come from a registry into a folder: whole, verified, each at once, and none before all are right.

Where they come from does not matter here. A pull that was killed or interrupted, or that lost its connection, left its files
in a staging folder, under names that say what they are to be; the next pull takes them from there, and compares them as if
they came from anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dcz.errors import DczError, RateLimited, Unreachable, UsageError
from dcz.format import sync_folder
from dcz.registry.artifact import OWN_PREFIX
from dcz.registry.disk import NewHash, Staging, finish_copy, hash_stream, open_regular, os_errors
from dcz.registry.progress import Progress, steps
from dcz.registry.together import Total, together

__all__ = ["Arrival", "Arrived", "bring", "copy_to"]

PREFIX = f"{OWN_PREFIX}pull-"
_WORTH_KEEPING: Final = 1 << 20  # bytes


@dataclass(frozen=True)
class Arrival:
    """A file that is to come: ``title`` is its path in the folder, ``digest`` what ``new_hash`` makes of its ``size`` bytes.

    ``open`` gives its content, which may be wrong. ``check_content`` and ``check_file`` raise for a digest and a length,
    or for a file, that are not right; the latter takes a while, and tells its progress.
    """

    title: str
    size: int
    digest: str
    new_hash: NewHash
    open: Callable[[], BinaryIO]
    check_content: Callable[[str, int], None]
    check_file: Callable[[Path, Progress | None], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """All files, and those of them that were there already and right."""

    files: tuple[Path, ...]
    reused: tuple[Path, ...]


def bring(
    arrivals: Sequence[Arrival],
    folder: Path,
    *,
    progress: Progress | None = None,
    force: bool = False,
    at_once: int = 1,
    over: threading.Event | None = None,
) -> Arrived:
    """Copy files into ``folder``, which is made if need be. Files that are there and different stay, unless ``force``.

    ``at_once``: files that are copied at the same time; ``over`` is set when one of them fails. Raises UsageError for
    different files, RegistryError if the folder cannot be written, and what the arrivals raise.
    """
    finals = {arrival.title: folder / arrival.title for arrival in arrivals}
    missing = [
        arrival
        for arrival in arrivals
        if not _is_there(finals[arrival.title], arrival, progress, force=force)
    ]
    reused = {arrival.title for arrival in arrivals} - {arrival.title for arrival in missing}
    over = over or threading.Event()
    copied = Total(progress, "copy", {arrival.title: arrival.size for arrival in missing}, over)
    containers = {
        arrival.title: arrival.size for arrival in arrivals if arrival.title.lower().endswith(".dcz")
    }
    checked = Total(progress, "verify", containers, over)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_made(folder))
        staged = dict(finals)
        staging: Staging | None = None
        if not missing:
            with contextlib.suppress(OSError):  # the destination may be read-only, if it is complete
                Staging.remove_dead(folder, PREFIX)
        else:
            names = _staged_names(missing)
            staging = stack.enter_context(Staging(folder, PREFIX, wanted=names.values()))
            staged |= {title: staging.path / name for title, name in names.items()}

        def one(arrival: Arrival) -> None:
            if arrival.title not in reused:
                with os_errors(f"cannot copy {arrival.title!r} to", folder):
                    copy_to(arrival, staged[arrival.title], copied.one())
            arrival.check_file(staged[arrival.title], checked.one())

        try:
            together([lambda arrival=arrival: one(arrival) for arrival in arrivals], over, at_once=at_once)  # type: ignore[misc]
        except BaseException as exc:
            if staging is not None and (not isinstance(exc, DczError) or _may_go_on(exc)):
                _keep(staging, exc)
            raise
        with os_errors("cannot write to", folder):
            for arrival in missing:
                final = finals[arrival.title]
                final.parent.mkdir(parents=True, exist_ok=True)
                while not _give_name(staged[arrival.title], final, force=force):
                    if _is_there(final, arrival, progress, force=False):  # another pull was quicker
                        reused.add(arrival.title)
                        break
            for place in {final.parent for final in finals.values()} | {folder}:
                sync_folder(place)
    return Arrived(tuple(finals.values()), tuple(final for title, final in finals.items() if title in reused))


@contextlib.contextmanager
def _made(folder: Path) -> Generator[None]:
    """Make a folder, and those above it; what is empty after an error is removed again."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    with os_errors("cannot write to", folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in new:
                place.rmdir()
        raise


def _may_go_on(exc: BaseException) -> bool:
    return isinstance(exc, Unreachable | RateLimited)


def _keep(staging: Staging, exc: BaseException) -> None:
    kept = 0
    with contextlib.suppress(OSError):
        kept = sum(entry.stat().st_size for entry in os.scandir(staging.path) if entry.name != "lock")
    if kept >= _WORTH_KEEPING:
        staging.keep()
        if isinstance(exc, DczError):
            more = "what has come is kept: the same pull, later, goes on from there"
            exc.hint = more if exc.hint is None else f"{exc.hint}; {more}"


def copy_to(arrival: Arrival, path: Path, progress: Progress | None = None) -> None:
    """Copy a file to ``path``, where its beginning may be already, and compare it with its digest."""
    step = steps(progress, f"copy {arrival.title}", arrival.size)
    with arrival.open() as source:
        result = finish_copy(source, path, arrival.digest, step, arrival.new_hash)
    arrival.check_content(*result)


def _is_there(final: Path, arrival: Arrival, progress: Progress | None, *, force: bool) -> bool:
    """Whether a file is in the destination and right. Raises UsageError if another is in the way."""
    with os_errors("cannot read", final):
        try:
            info = final.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(info.st_mode):
            raise UsageError(f"{str(final)!r} is a folder, where a file is to be") from IsADirectoryError(
                errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(final)
            )
        if stat.S_ISREG(info.st_mode) and info.st_size == arrival.size:
            with open_regular(final) as file:
                step = steps(progress, f"compare {arrival.title}", arrival.size)
                encoded, _ = hash_stream(file, step, arrival.new_hash)
            if encoded == arrival.digest:
                return True
    if not force:
        raise UsageError(
            f"{str(final)!r} exists and is different from what was pushed",
            hint="choose another folder, or replace it with --force (in Python force=True)",
        ) from FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(final))
    return False


def _staged_names(arrivals: Iterable[Arrival]) -> dict[str, str]:
    """What the file of each title is called until it is right: by its content, by which a later pull finds it."""
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    for arrival in arrivals:
        names[arrival.title] = f"{arrival.digest}.{seen[arrival.digest]}"
        seen[arrival.digest] += 1
    return names


def _give_name(staged: Path, final: Path, *, force: bool) -> bool:
    """Let a file appear under its name; False if there is one of that name already, which stays unless ``force``."""
    if force:
        os.replace(staged, final)
        return True
    try:
        os.link(staged, final)  # the other name goes with the staging folder
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without links has nothing better; whoever comes in between loses a file.
        if os.path.lexists(final):
            return False
        os.rename(staged, final)
    return True

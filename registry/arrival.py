"""Files that come from a registry into a folder: whole, verified, each at once, and none before all are right.

Where they come from does not matter here. A pull that was killed left its files in a staging folder, under names that
say what they are to be; the next pull takes them from there, and compares them as if they came from anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dcz.errors import UsageError
from dcz.format import sync_folder
from dcz.registry.artifact import OWN_PREFIX
from dcz.registry.checks import Progress, steps
from dcz.registry.disk import NewHash, Staging, finish_copy, hash_stream, open_regular, os_errors

__all__ = ["Arrival", "Arrived", "bring", "copy_to"]

PREFIX = f"{OWN_PREFIX}pull-"


@dataclass(frozen=True)
class Arrival:
    """A file that is to come: ``title`` is its path in the folder, ``digest`` what ``new_hash`` makes of its ``size`` bytes.

    ``open`` gives its content, which may be wrong. ``check_content`` and ``check_file`` raise for a digest and a length,
    or for a file, that are not right.
    """

    title: str
    size: int
    digest: str
    new_hash: NewHash
    open: Callable[[], BinaryIO]
    check_content: Callable[[str, int], None]
    check_file: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """All files, and those of them that were there already and right."""

    files: tuple[Path, ...]
    reused: tuple[Path, ...]


def bring(
    arrivals: Sequence[Arrival], folder: Path, *, progress: Progress | None = None, force: bool = False
) -> Arrived:
    """Copy files into ``folder``, which is made if need be. Files that are there and different stay, unless ``force``.

    Raises UsageError for different files, RegistryError if the folder cannot be written, and what the arrivals raise.
    """
    finals = {arrival.title: folder / arrival.title for arrival in arrivals}
    missing = [
        arrival
        for arrival in arrivals
        if not _is_there(finals[arrival.title], arrival, progress, force=force)
    ]
    reused = {arrival.title for arrival in arrivals} - {arrival.title for arrival in missing}
    with os_errors("cannot write to", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        staged = dict(finals)
        if not missing:
            with contextlib.suppress(OSError):  # the destination may be read-only, if it is complete
                Staging.remove_dead(folder, PREFIX)
        else:
            names = _staged_names(missing)
            staging = stack.enter_context(Staging(folder, PREFIX, wanted=names.values()))
            for arrival in missing:
                staged[arrival.title] = staging.path / names[arrival.title]
                with os_errors(f"cannot copy {arrival.title!r} to", folder):
                    copy_to(arrival, staged[arrival.title], progress)
        for arrival in arrivals:
            arrival.check_file(staged[arrival.title])
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

"""Pushes and pulls that die, or get an error, at every step of the file system.

A program of its own, because audit hooks cannot be taken back and because a parent that forks should have no threads:

    python -m tests.registry.crash_driver SCENARIO FOLDER [STRIDE]

Each round forks a child that does the work and meets its fate at the n-th operation on a file; n goes up by STRIDE until the work
ends by itself. After each round the parent demands that the registry is in the old or in the new state, that all of it
verifies, and that a second try succeeds. The number of rounds is printed.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.registry.dcz_files import write_dcz
from tests.registry.oci_layout import check_oci_layout

from dcz.errors import DczError, RegistryCorrupt, RegistryError, VersionExists
from dcz.registry import collect_garbage, history, list_artifacts, pull, push, resolve, verify

FILE_EVENTS = {
    "open",
    "os.chmod",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.truncate",
    "fcntl.flock",
    "fcntl.ioctl",
}
Work = Callable[[], object]
STRIDE = int(sys.argv[3]) if len(sys.argv) > 3 else 1


def strike(at: int, under: Path, fate: Callable[[], None]) -> None:
    """Call ``fate`` before the ``at``-th operation on something in ``under``, or on an open file."""
    left = at

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in FILE_EVENTS:
            return
        target = arguments[0]
        if isinstance(target, str | os.PathLike) and not os.fspath(target).startswith(str(under)):
            return
        left -= 1
        if left == 0:
            fate()

    sys.addaudithook(hook)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(28, "No space left on device")


def forked(work: Work) -> int:
    """How a child ends that does ``work``: 0 done, 3 a DczError, 4 another error, -9 killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 4
        try:
            work()
            code = 0
        except DczError:
            code = 3
        finally:
            if code == 4:
                import traceback

                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def succeed(work: Work) -> None:
    assert forked(work) == 0


class Scene:
    """A registry with one version, and what is needed to push a second one."""

    def __init__(self, folder: Path, *, empty: bool = False) -> None:
        self.folder = folder
        self.template = folder / "template"
        self.registry = folder / "registry"
        self.out = folder / "out"
        self.old = write_dcz(folder / "1" / "model.dcz", 1)
        self.new = write_dcz(folder / "2" / "model.dcz", 2)
        self.readme = folder / "README.md"
        self.readme.write_text("hello")
        self.empty = empty
        if empty:
            self.template.mkdir()
        else:
            succeed(lambda: push(self.old, "m:1", registry=self.template))

    def reset(self) -> None:
        shutil.rmtree(self.registry, ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.template, self.registry)

    def push(self) -> None:
        push([self.new, self.readme], "m:2", aliases=["champion"], registry=self.registry)

    def state(self) -> tuple[list[str | None], list[str]]:
        """Versions and history; asserts that everything that can be seen is whole."""
        versions = [item.reference.tag for item in list_artifacts(registry=self.registry)]

        def verify_all() -> None:
            for version in versions:
                verify(f"m:{version}", registry=self.registry, deep=True)

        succeed(verify_all)
        if (self.registry / "oci-layout").exists():
            check_oci_layout(self.registry)
        return versions, [change.tag for change in history(registry=self.registry)]

    @property
    def before(self) -> tuple[list[str | None], list[str]]:
        return ([], []) if self.empty else (["1"], ["1", "latest"])

    @property
    def after(self) -> tuple[list[str | None], list[str]]:
        versions, changes = self.before
        return [*versions, "2"], [*changes, "2", "latest", "champion"]

    def check_second_push(self) -> None:
        succeed(self.push)
        assert os.listdir(self.registry / ".dcz" / "staging") == []
        collect_garbage(registry=self.registry, grace=0)
        assert self.state() == self.after


def push_killed(folder: Path, *, empty: bool = False) -> int:
    scene = Scene(folder, empty=empty)
    seen = set()
    for at in range(1, 1000, STRIDE):
        scene.reset()

        def work(at: int = at) -> None:
            strike(at, scene.registry, die)
            scene.push()

        code = forked(work)
        assert code in (0, -9)
        state = scene.state()
        assert state in (scene.before, scene.after), state
        seen.add(state == scene.after)
        scene.check_second_push()
        if code == 0:
            assert seen == {False, True}
            return at
    raise AssertionError("it never ends")


def first_push_killed(folder: Path) -> int:
    return push_killed(folder, empty=True)


def push_without_space(folder: Path) -> int:
    scene = Scene(folder)
    for at in range(1, 1000, STRIDE):
        scene.reset()
        blobs = set(os.listdir(scene.registry / "blobs" / "sha256"))

        def work(at: int = at) -> None:
            strike(at, scene.registry, no_space)
            scene.push()

        code = forked(work)
        assert code in (0, 3)
        state = scene.state()
        assert state in (scene.before, scene.after), state
        if state == scene.before:
            assert set(os.listdir(scene.registry / "blobs" / "sha256")) == blobs, "space is given back"
        scene.check_second_push()
        if code == 0 and at > 60:
            return at
    raise AssertionError("it never ends")


def pull_killed(folder: Path) -> int:
    scene = Scene(folder)
    scene.reset()
    scene.push()
    names = {"model.dcz": scene.new.read_bytes(), "README.md": b"hello"}
    for fate, allowed in ((die, (0, -9)), (no_space, (0, 3))):
        for at in range(1, 1000, STRIDE):
            shutil.rmtree(scene.out, ignore_errors=True)

            def work(at: int = at, fate: Callable[[], None] = fate) -> None:
                strike(at, scene.out, fate)
                pull("m:2", scene.out, registry=scene.registry)

            code = forked(work)
            assert code in allowed
            for path in scene.out.iterdir() if scene.out.exists() else []:
                assert path.name.startswith(".dcz-pull-") or path.read_bytes() == names[path.name]
            succeed(lambda: pull("m:2", scene.out, registry=scene.registry))
            assert {path.name: path.read_bytes() for path in scene.out.iterdir()} == names
            if code == 0 and at > 40:
                break
    return at


def push_killed_after_a_loss(folder: Path) -> int:
    """A history that is not whole, however much of it is left, is never taken for a whole one."""
    scene = Scene(folder)
    log = Path(".dcz", "history.jsonl")
    lines = (scene.template / log).read_bytes()
    for at in range(1, 1000, STRIDE):
        scene.reset()
        (scene.registry / log).write_bytes(lines[: -1 - 7 * at % len(lines)])

        def work(at: int = at) -> None:
            strike(at, scene.registry, die)
            scene.push()

        code = forked(work)
        assert code in (0, -9)
        try:
            kinds = [change.kind for change in history(registry=scene.registry)]
        except RegistryCorrupt:
            assert code == -9
        else:
            assert "gap" in kinds
        succeed(scene.push)
        changes = history(registry=scene.registry)
        assert [change.tag for change in changes if change.kind != "gap"][-3:] == ["2", "latest", "champion"]
        assert "gap" in [change.kind for change in changes]
        if code == 0:
            return at
    raise AssertionError("it never ends")


def written() -> int:
    """Bytes that this process has written so far, as the kernel counts them."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def pull_goes_on(folder: Path) -> int:
    """A pull that was killed, while it copied or while it verified, is not begun again: bytes are not written twice."""
    scene = Scene(folder)
    scene.reset()
    one = write_dcz(folder / "big" / "one.dcz", 3, 1_500_000)
    two = write_dcz(folder / "big" / "two.dcz", 4, 1_500_000)
    files = {path.name: path for path in (one, two, scene.readme)}
    succeed(lambda: push(files.values(), "m:2", registry=scene.registry))
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    order = [layer.title for layer in resolve("m:2", registry=scene.registry).manifest.layers]
    before = {name: sum(sizes[each] for each in order[: order.index(name)]) for name in order}
    one_end, two_end = (before[name] + sizes[name] for name in ("one.dcz", "two.dcz"))
    moments = [
        (
            "copy 3 files",
            before["one.dcz"] + sizes["one.dcz"] // 2,
            total - before["one.dcz"] - sizes["one.dcz"] // 2,
        ),
        ("verify 2 files", 1, total - one_end),
        ("copy 3 files", before["two.dcz"] + sizes["two.dcz"] // 2, total - before["two.dcz"]),
        ("verify 2 files", sizes["one.dcz"] + 1, total - two_end),
        ("verify 2 files", sizes["one.dcz"] + sizes["two.dcz"], total - two_end),
    ]
    for what, when, left in moments:
        shutil.rmtree(scene.out, ignore_errors=True)

        def progress(doing: str, done: int, _: int, what: str = what, when: int = when) -> None:
            if doing == what and done >= when:
                die()

        def pull_again(left: int = left) -> None:
            begun = written()
            pull("m:2", scene.out, registry=scene.registry)
            assert written() - begun <= left + 10_000

        assert forked(lambda: pull("m:2", scene.out, registry=scene.registry, progress=progress)) == -9
        (staging,) = scene.out.iterdir()
        left_behind = {path.stat().st_ino for path in staging.iterdir() if path.name != "lock"}
        succeed(pull_again)
        assert {path.name: path.read_bytes() for path in scene.out.iterdir()} == {
            name: path.read_bytes() for name, path in files.items()
        }
        assert left_behind <= {path.stat().st_ino for path in scene.out.iterdir()}
    return len(moments)


def killed_while_copying(folder: Path) -> int:
    """In the middle of the bytes: the progress of a file of several buffers is the trigger."""
    scene = Scene(folder)
    big = write_dcz(folder / "3" / "model.dcz", 3, 1_500_000)
    for at in range(1, 7):
        scene.reset()
        calls = iter(range(1, 1000))

        def progress(*_: object, at: int = at) -> None:
            if next(calls) == at:  # noqa: B023
                die()

        assert forked(lambda: push(big, "m:2", registry=scene.registry, progress=progress)) == -9
        assert scene.state() == scene.before
        scene.check_second_push()
    return 6


def killed_at_any_time(folder: Path) -> int:
    scene = Scene(folder)
    chance = random.Random(1)
    for _ in range(12):
        scene.reset()
        child = os.fork()
        if child == 0:
            try:
                scene.push()
            finally:
                os._exit(0)
        time.sleep(chance.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert scene.state() in (scene.before, scene.after)
        scene.check_second_push()
    return 12


def file_size_limit(folder: Path) -> int:
    """The kernel refuses to make files larger than so many bytes: EFBIG, as a quota would EDQUOT."""
    scene = Scene(folder)
    codes = set()
    size = scene.new.stat().st_size
    limits = [0, 1, 4, 5, 100, 400, 600, 800, 1000, 2000, 4000, size - 1, size, 100_000]
    for limit in limits:
        scene.reset()

        def work(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            scene.push()

        code = forked(work)
        codes.add(code)
        assert scene.state() == (scene.after if code == 0 else scene.before)
        scene.check_second_push()
    assert codes == {0, 3}
    return len(limits)


def small_disk(folder: Path) -> int:
    """A disk that is really full: a tmpfs, in a mount namespace of its own (run under ``unshare -rm``)."""
    disk = folder / "disk"
    disk.mkdir()
    codes = set()
    for pages in range(1, 20):
        assert os.system(f"mount -t tmpfs -o size={pages * 4}k none {disk}") == 0
        scene = Scene(folder / f"scene-{pages}")
        scene.registry = disk / "registry"
        code = forked(lambda: push(scene.old, "m:1", registry=scene.registry))  # noqa: B023
        if code == 0:
            code = forked(scene.push)
            assert scene.state() == (scene.after if code == 0 else scene.before)
            assert os.listdir(scene.registry / ".dcz" / "staging") == []
        else:
            assert scene.state() == ([], [])
        codes.add(code)
        assert os.system(f"mount -o remount,size=10m {disk}") == 0
        succeed(lambda: push(scene.old, "m:1", registry=scene.registry))  # noqa: B023
        scene.check_second_push()
        assert os.system(f"umount {disk}") == 0
    assert codes == {0, 3}
    return 19


def pushed_at_once(folder: Path) -> int:
    """Processes push to one name: numbers are given once, and of two contents for one version one wins."""
    registry = folder / "registry"
    processes, rounds = 5, 4
    files = {
        (p, r): write_dcz(folder / f"{p}-{r}" / "model.dcz", 10 * p + r, 500)
        for p in range(processes)
        for r in range(rounds)
    }
    children = []
    for process in range(processes):
        child = os.fork()
        if child == 0:
            code = 0
            try:
                for round_ in range(rounds):
                    push(files[process, round_], "m", registry=registry, aliases=["champion"])
                for round_ in range(rounds):
                    try:
                        if push(files[process, round_], f"n:{round_}", registry=registry).created:
                            code += 1
                    except VersionExists:
                        pass
            except BaseException:
                code = 100
                raise
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sum(codes) == rounds, f"each version has one winner: {codes}"
    versions = [item.reference.tag for item in list_artifacts("m", registry=registry)]
    assert versions == [f"v{number}" for number in range(1, processes * rounds + 1)]
    assert len(list_artifacts("n", registry=registry)) == rounds
    for item in list_artifacts(registry=registry):
        succeed(lambda item=item: verify(item.reference, registry=registry))  # type: ignore[misc]
    check_oci_layout(registry)
    changes = history(registry=registry)
    assert len([change for change in changes if change.kind == "version"]) == (processes + 1) * rounds
    for alias in ("latest", "champion"):
        chain = [change for change in changes if (change.name, change.tag) == ("m", alias)]
        assert len(chain) == processes * rounds
        assert all(one.digest == two.previous for one, two in itertools.pairwise(chain))
    return len(versions)


def read_only(folder: Path) -> int:
    """Nobody may write: reading works, writing is a clear error, and nothing changes."""
    scene = Scene(folder)
    scene.reset()
    # What is imported late, now: another user may not be allowed to read it.
    pull("m:1", folder / "somewhere", registry=scene.template)
    closed = [scene.registry, *(path for path in scene.registry.rglob("*") if path.is_dir())]
    for path in [folder, *closed]:
        path.chmod(0o555)
    (scene.registry / ".dcz" / "lock").chmod(0o444)

    def work() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        assert [item.reference.tag for item in list_artifacts(registry=scene.registry)] == ["1"]
        verify("m:1", registry=scene.registry)
        for action in (
            scene.push,
            lambda: push(scene.old, "m:1", registry=scene.registry),
            lambda: collect_garbage(registry=scene.registry),
            lambda: push(scene.old, "m:1", registry=folder / "another"),
            lambda: pull("m:1", scene.registry, registry=scene.registry),
        ):
            with pytest.raises(RegistryError, match="Permission denied") as caught:
                action()
            assert caught.value.hint is not None

    succeed(work)
    for path in [folder, *closed]:
        path.chmod(0o755)
    (scene.registry / ".dcz" / "lock").chmod(0o644)
    assert scene.state() == scene.before
    return 5


if __name__ == "__main__":
    scenario, where = sys.argv[1:3]
    rounds_done = globals()[scenario](Path(where))
    print(rounds_done)

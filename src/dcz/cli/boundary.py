"""Where errors become a line on standard error and an exit code.

    0    done
    1    the operation failed: a DczError, or the operating system said no
    2    wrong usage (by click), also inside a reference or a digest
    3-7  what a registry refused, by kind: 3 it is not there, 4 access was denied, 5 it is damaged, 6 there is another
         already or somebody was quicker, 7 it cannot be reached
    130  interrupted (SIGINT); 143 and 129 for SIGTERM and SIGHUP: each time, what was half-written is removed first
    141  nobody reads our output any more (SIGPIPE); silent

With ``--json``, the error is also printed on standard output as an object: {"error": {...}}. An exception of any other
kind is a bug, and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import socket
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

import click

from dcz.cli.output import OutputError, emit_json, plain
from dcz.errors import DczError, FormatError, RegistryError, SourceError, Unreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["boundary", "json_option", "silence"]

_Function = TypeVar("_Function", bound="Callable[..., Any]")

_JSON: Final = "dcz.json"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MOMENT: Final = 0.01  # seconds
_AWAY: Final = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FREE: Final = "free some space and try again; nothing was left half-written"

# Errors that say of themselves only where they come from.
_GENERAL: Final = (RegistryError, SourceError, UsageError)

# errno -> stable code, hint
_OS_ERRORS: Final[dict[int, tuple[str, str | None]]] = {
    errno.ENOENT: ("file-not-found", None),
    errno.EACCES: ("permission-denied", None),
    errno.EPERM: ("permission-denied", None),
    errno.EROFS: ("permission-denied", None),
    **dict.fromkeys(_FULL, ("disk-full", _FREE)),
    errno.ETIMEDOUT: (Unreachable.code, "is the host there, and the network?"),
}


def json_option(function: _Function) -> _Function:
    """The option ``--json``, which the boundary has to know of, too."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
        ctx.meta[_JSON] = value
        return value

    option = click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="Print JSON, errors too."
    )
    return option(function)


@contextlib.contextmanager
def boundary(ctx: click.Context) -> Generator[None, None, None]:
    """Everything that a command does happens inside. Raises click's Exit with the code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not have all characters
    signals = _Signals()
    try:
        with signals:
            yield
    except _Stopped as exc:
        if exc.number == signal.SIGINT:
            with contextlib.suppress(OSError):
                click.echo("\ndcz: interrupted" if sys.stderr.isatty() else "dcz: interrupted", err=True)
        ctx.exit(128 + exc.number)
    except BrokenPipeError:
        silence(sys.stdout)
        ctx.exit(128 + signal.SIGPIPE)
    except DczError as exc:
        _fail(ctx, str(exc), _describe(exc), exc.exit_code)
    except OSError as exc:
        code, hint = _OS_ERRORS.get(exc.errno or 0, ("os-error", None))
        if _is_away(exc):
            code, hint = _OS_ERRORS[errno.ETIMEDOUT]
        if isinstance(exc, OutputError):
            hint = None
            silence(sys.stdout)
        message = exc.strerror or str(exc)
        file = None if exc.filename is None else os.fsdecode(exc.filename)
        text = (f"{file}: " if file is not None else "") + message + (f" ({hint})" if hint else "")
        exit_code = Unreachable.exit_code if code == Unreachable.code else 1
        _fail(ctx, text, _error(code, message, file=file, hint=hint), exit_code)
    except MemoryError:
        _fail(ctx, "out of memory", _error("out-of-memory", "out of memory"))


def _is_away(exc: BaseException | None) -> bool:
    """Whether a host that was asked could not be reached: what opens URLs says so in a cause."""
    while exc is not None:
        if isinstance(exc, socket.gaierror | TimeoutError) or getattr(exc, "errno", None) in _AWAY:
            return True
        exc = exc.__cause__
    return False


class _Stopped(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Signals:
    """Inside, signals that end a process raise _Stopped, so that what is half-written is removed on the way out.

    A handler runs wherever the interpreter happens to be, and not every place lets an exception through. Where it is
    thrown away (in a callback of an extension module, or a finalizer), it is raised once more a moment later. Extension
    modules that are just being imported turn it into an ImportError; on leaving, it is _Stopped again.
    """

    def __enter__(self) -> None:
        self._number: int | None = None
        self._leaving = False
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._thrown_away
        self._before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop_again)

    def _stop(self, number: int, frame: object) -> None:
        self._number = number
        if not self._leaving:
            raise _Stopped(number)

    def _stop_again(self, number: int, frame: object) -> None:
        if self._number is not None:
            self._stop(self._number, frame)

    def _thrown_away(self, thrown: sys.UnraisableHookArgs) -> None:
        if isinstance(thrown.exc_value, _Stopped):
            # Not at once: that would be inside this very hook, and thrown away as well.
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)
        else:
            self._hook(thrown)

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
        self._leaving = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook
        if self._number is not None and not isinstance(value, _Stopped):
            raise _Stopped(self._number) from value


def _describe(exc: DczError) -> dict[str, Any]:
    if isinstance(exc, FormatError):
        return _error(exc.code, exc.message, exc.file, exc.tensor, exc.offset, exc.hint)
    code, file = exc.code, None
    if type(exc) in _GENERAL and isinstance(
        exc.__cause__, OSError
    ):  # the operating system's no, in other words
        code = _OS_ERRORS.get(exc.__cause__.errno or 0, (code, None))[0]
        name = exc.__cause__.filename
        file = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else None
    return _error(code, exc.message, file, hint=exc.hint)


def _error(
    code: str,
    message: str,
    file: str | None = None,
    tensor: str | None = None,
    offset: int | None = None,
    hint: str | None = None,
) -> dict[str, Any]:
    return {
        "code": code,
        "message": message,
        "file": file,
        "tensor": tensor,
        "offset": offset,
        "hint": hint,
    }


def _fail(ctx: click.Context, text: str, error: dict[str, Any], exit_code: int = 1) -> NoReturn:
    # What fails here is the output itself; then the exit code has to do.
    with contextlib.suppress(OSError):
        click.echo("dcz: error: " + plain(text, keep="\n"), err=True)
    try:
        if ctx.meta.get(_JSON):
            emit_json({"error": error})
    except OSError:
        silence(sys.stdout)
    ctx.exit(exit_code)


def silence(stream: TextIO) -> None:
    """Keep the interpreter from flushing into a stream that is gone, and complaining, when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

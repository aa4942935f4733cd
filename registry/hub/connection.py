"""The wire to a Hub: one place where requests are made, bounded in time and size, tried again, and their errors told.

huggingface_hub gives the HTTP client with its proxies and certificates, the token and the headers. Its own calls, for
repositories and tags, wait for ever and are not tried again; here they are.
"""

from __future__ import annotations

import contextlib
import email.utils
import importlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from dcz._version import __version__
from dcz.errors import (
    AccessDenied,
    Conflict,
    DczError,
    Gated,
    MissingDependency,
    NotInRegistry,
    RateLimited,
    RegistryCorrupt,
    RegistryError,
    Unreachable,
)
from dcz.registry.hub.settings import Hub, Patience
from dcz.registry.together import Abandoned

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Connection", "Garbled", "Refused", "joined", "load_api"]

_T = TypeVar("_T")

MAX_JSON: Final = 64 << 20
_MAX_HOPS: Final = 10
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_AGAIN: Final = (408, 425, 429, 500, 502, 503, 504)
_SIGNED_TRIES: Final = 4  # of a URL that the Hub signs anew each time
_PORTS: Final = {"http": 80, "https": 443}
_RESET: Final = re.compile(r'"\w+"\s*;\s*r\s*=\s*\d+\s*;\s*t\s*=\s*(\d+)')


class Refused(Exception):
    """An answer of the Hub, or of the storage behind it, that is not what was asked for."""

    def __init__(self, status: int, headers: Mapping[str, str], url: str, *, own: bool) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.headers, self.url, self.own = status, headers, url, own


class Garbled(Exception):
    """An answer that makes no sense; the next one may."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What an exception means: the error to end with, whether to try again, and when, if the Hub says so."""

    error: DczError
    again: bool
    after: float | None = None
    tries: int | None = None


class Attempts:
    """The tries of one thing. Whoever gets further says so, and has all the time again."""

    def __init__(self, patience: Patience, over: threading.Event) -> None:
        """Once ``over`` is set, nobody waits for it any more."""
        self._patience, self._over = patience, over
        self.progress()

    def progress(self) -> None:
        self._until = time.monotonic() + self._patience.give_up
        self._pause = self._patience.first
        self._tries = 0

    def wait(self, failure: Failure) -> None:
        """Wait for the next try. Raises the error if there is none."""
        self._tries += 1
        pause = self._pause if failure.after is None else max(failure.after, 0.01)
        late = time.monotonic() + pause > self._until
        if not failure.again or late or (failure.tries is not None and self._tries >= failure.tries):
            raise failure.error
        if self._over.wait(pause):
            raise Abandoned
        self._pause = min(2 * self._pause, self._patience.longest)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises Garbled for what is no URL of the web."""
    try:
        parts = urllib.parse.urlsplit(url)
        place = (parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0))
    except ValueError as exc:
        raise Garbled(f"not a URL: {exc}") from exc
    if parts.scheme not in _PORTS or not place[1]:
        raise Garbled("not a URL of the web")
    return place


def joined(url: str, location: str) -> str:
    """The URL that ``location`` means where ``url`` was asked for. Raises Garbled for what is none."""
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError as exc:
        raise Garbled(f"not a URL: {exc}") from exc


def load_api() -> type[HfApi]:
    """huggingface_hub's API, whose import takes a while."""
    from huggingface_hub import HfApi

    return HfApi


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:200])


def _after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait for: Retry-After (RFC 9110, 10.2.3), or the Hub's RateLimit."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if text:
        with contextlib.suppress(ValueError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    match = _RESET.search(headers.get("ratelimit", ""))
    return float(match[1][:9]) if match else None


class Connection:
    """One Hub, as one user. Threads may share it."""

    def __init__(self, hub: Hub) -> None:
        """Raises MissingDependency."""
        try:
            from huggingface_hub import constants
            from huggingface_hub.utils import build_hf_headers, get_session, get_token
        except ImportError as exc:
            raise MissingDependency("huggingface_hub", needed_for="hf://", extra="hub") from exc
        self.hub = hub
        self.patience = hub.patience
        self.over = threading.Event()  # set when all that is asked here is in vain
        self.endpoint = (hub.endpoint or constants.ENDPOINT).rstrip("/")
        self.is_default = self.endpoint == "https://huggingface.co"
        self.token: str | bool = (hub.token if hub.token is not None else get_token()) or False
        self._session: Callable[[], Any] = get_session
        try:
            self._origin = origin(self.endpoint)
            self._headers = dict(
                build_hf_headers(token=self.token, library_name="dcz", library_version=__version__)
            )
            if not self._headers.get("authorization", "").isascii():
                raise AccessDenied(
                    "the token for the Hub has characters that no token has", hint="look at HF_TOKEN"
                )
        except (Garbled, ValueError) as exc:
            raise RegistryError(f"the Hub {self.endpoint!r} cannot be used: {exc}") from exc
        self._bare = {key: value for key, value in self._headers.items() if key.lower() == "user-agent"}

    @property
    def offline(self) -> bool:
        """Whether nobody is to be asked (``$HF_HUB_OFFLINE``)."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    # -- trying

    def attempts(self) -> Attempts:
        return Attempts(self.patience, self.over)

    def trying(self, what: str, once: Callable[[], _T]) -> _T:
        """What ``once`` returns, tried again while that may help. Raises RegistryError."""
        attempts = self.attempts()
        while True:
            try:
                return once()
            except Exception as exc:  # noqa: BLE001 - what `failure` does not know, it raises again
                attempts.wait(self.failure(exc, what))

    def failure(self, exc: Exception, what: str) -> Failure:
        """What an exception from inside means. Raises it again if it is of no kind that is known here."""
        if isinstance(exc, Refused):
            return self._refusal(exc.status, exc.headers, what, own=exc.own)
        if isinstance(exc, Garbled):
            error: RegistryError = RegistryCorrupt(
                f"{what}: the answer of {self.endpoint} makes no sense: {exc}"
            )
            return Failure(error, again=True, tries=3)
        http = self._http()
        seen: BaseException | None = exc
        while seen is not None:  # huggingface_hub hides some below a RuntimeError
            answer = getattr(seen, "response", None)
            if answer is not None and hasattr(answer, "status_code"):
                return self._refusal(answer.status_code, answer.headers, what, own=True)
            if type(seen).__name__ == "OfflineModeIsEnabled":
                return Failure(self.offline_error(what), again=False)
            if isinstance(seen, http.TransportError | http.InvalidURL | ConnectionError | TimeoutError):
                reason = (
                    "it does not answer" if isinstance(seen, http.TimeoutException) else _printable(str(seen))
                )
                hint = "is the Hub there, and the network? HF_HUB_OFFLINE=1 takes what is in the cache"
                return Failure(
                    Unreachable(f"{what}: {self.endpoint} cannot be reached: {reason}", hint=hint), again=True
                )
            seen = seen.__cause__ or seen.__context__
        raise exc

    def offline_error(self, what: str) -> Unreachable:
        return Unreachable(
            f"{what}: it is not in the cache, and nobody is asked",
            hint="HF_HUB_OFFLINE is set",
        )

    def _http(self) -> ModuleType:
        """The HTTP library that huggingface_hub uses: httpx2 from 2.0 on, before that httpx."""
        for kind in type(self._session()).__mro__:
            root = kind.__module__.partition(".")[0]
            if root in ("httpx", "httpx2"):
                return importlib.import_module(root)
        raise RegistryError("the HTTP client of huggingface_hub is none that dcz knows")

    def _refusal(self, status: int, headers: Mapping[str, str], what: str, *, own: bool) -> Failure:
        code = headers.get("x-error-code", "")
        said = _printable(headers.get("x-error-message", "")) or f"HTTP {status}"
        error: RegistryError
        login = None if self.token else "log in with `hf auth login`, or set HF_TOKEN"
        if not own and status == 404:
            error = RegistryCorrupt(f"{what}: the storage behind {self.endpoint} does not have it")
            return Failure(error, again=True, tries=_SIGNED_TRIES)
        if not own and status in (401, 403):
            error = Unreachable(f"{what}: the place that {self.endpoint} sends us to refuses ({said})")
            return Failure(error, again=True, tries=_SIGNED_TRIES)
        if code == "GatedRepo":
            hint = login or f"accept them on {self.endpoint}"
            error = Gated(f"{what}: its terms have to be accepted first ({said})", hint=hint)
        elif code in ("RepoNotFound", "RevisionNotFound", "EntryNotFound") or status == 404:
            thing = {"RevisionNotFound": "no such revision", "EntryNotFound": "no such file"}.get(
                code, "no such repository, or a private one"
            )
            error = NotInRegistry(
                f"{what}: {thing} on {self.endpoint}", hint=login if "private" in thing else None
            )
        elif status == 401:
            error = AccessDenied(
                f"{what}: {self.endpoint} does not know who you are ({said})",
                hint=login or "the token may be old or mistyped",
            )
        elif status == 403:
            error = AccessDenied(f"{what}: {self.endpoint} does not allow it ({said})", hint=login)
        elif status in (409, 412):
            error = Conflict(
                f"{what}: somebody was quicker ({said})", hint="look at what is there now, and try again"
            )
        elif status == 429:
            after = _after(headers)
            wait = f"in {after:.0f} s" if after is not None else "later"
            error = RateLimited(f"{what}: {self.endpoint} has been asked too often", hint=f"try again {wait}")
            return Failure(error, again=True, after=after)
        elif status in _AGAIN:
            error = Unreachable(f"{what}: {self.endpoint} has a problem ({said})")
            return Failure(error, again=True, after=_after(headers))
        elif status == 416:
            error = RegistryCorrupt(f"{what}: the file is shorter than {self.endpoint} says")
        else:
            error = RegistryError(f"{what}: {self.endpoint} refuses ({said})")
        return Failure(error, again=False)

    # -- asking

    @contextlib.contextmanager
    def answer(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        content: bytes | Iterable[bytes] | None = None,
    ) -> Generator[tuple[Any, str]]:
        """One try: the answer, whose body is still to be read, and the URL that it came from.

        ``content`` may be read more than once. Redirects are followed, but the token stays with the Hub, and nothing goes
        from https to http. Raises Refused, Garbled, and what the HTTP client raises.
        """
        stall, read = self.patience.stall, self.patience.stall
        if (
            content is not None
        ):  # an upload of many gigabytes, or a commit of many files, may be answered late
            read = max(stall, self.patience.give_up / 2)
        for _ in range(_MAX_HOPS):
            own = origin(url) == self._origin
            sent = {**(self._headers if own else self._bare), **(headers or {})}
            timeout = self._http().Timeout(stall, read=read)
            asked = self._session().stream(
                method, url, headers=sent, content=content, follow_redirects=False, timeout=timeout
            )
            with asked as response:
                status, location = response.status_code, response.headers.get("location")
                if status in _REDIRECTS and not location:
                    raise Garbled("it leads nowhere")
                if status in _REDIRECTS and location:
                    following = joined(url, location)
                    if origin(following)[0] == "http" and origin(url)[0] == "https":
                        raise Garbled("it leads from https to http")
                    url = following
                    continue
                if status >= 300:
                    raise Refused(status, response.headers, url, own=own)
                yield response, url
                return
        raise Garbled("it leads round in circles")

    def pieces(self, response: Any) -> Iterator[bytes]:
        """The bytes of a body as they come. A body that trickles is given up as one that has stopped."""
        begun, seen = time.monotonic(), 0
        for piece in response.iter_raw():
            yield piece
            seen += len(piece)
            now = time.monotonic()
            if now - begun > 3 * self.patience.stall:
                if seen < 1024 * (now - begun):
                    raise TimeoutError("it sends less than 1 KiB a second")
                begun, seen = now, 0

    def get_json(self, url: str, what: str) -> tuple[Any, Mapping[str, str]]:
        """What an API answers, and the headers. Raises RegistryError."""

        def once() -> tuple[Any, Mapping[str, str]]:
            with self.answer(url) as (response, _):
                try:
                    return json.loads(self.small_body(response).decode()), response.headers
                except (ValueError, RecursionError) as exc:
                    raise Garbled("not JSON") from exc

        return self.trying(what, once)

    def post_json(self, url: str, tree: object, *, kind: str = "application/json") -> Any:
        """One try: what an API answers to ``tree``, as JSON of the media type ``kind``. Raises what ``answer`` does."""
        headers = {"Content-Type": kind, "Accept": kind}
        with self.answer(url, method="POST", headers=headers, content=json.dumps(tree).encode()) as (
            response,
            _,
        ):
            try:
                return json.loads(self.small_body(response).decode() or "{}")
            except (ValueError, RecursionError) as exc:
                raise Garbled("not JSON") from exc

    def small_body(self, response: Any) -> bytes:
        """The body of an answer of an API. Raises Garbled, TimeoutError."""
        until = time.monotonic() + max(self.patience.give_up, 3 * self.patience.stall)
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > MAX_JSON:
                raise Garbled(f"more than {MAX_JSON} bytes")
            if time.monotonic() > until:
                raise TimeoutError("it takes too long")
        return bytes(data)

    def own_url(self, path: str) -> str:
        """A URL of the Hub for a path whose parts are quoted."""
        return f"{self.endpoint}/{path}"

    def check_secure(self, url: str) -> None:
        """Raise Garbled if ``url`` is none of the web, or leads from https to http."""
        if origin(url)[0] == "http" and self._origin[0] == "https":
            raise Garbled("it leads from https to http")

    def is_own(self, url: str) -> bool:
        try:
            return origin(url) == self._origin
        except Garbled:
            return False

    # -- huggingface_hub's own calls

    @contextlib.contextmanager
    def api(self) -> Generator[HfApi]:
        """huggingface_hub's API, whose client waits no longer than we do while this is open."""
        client = self._session()
        before = client.timeout
        # A commit of many files, or the last part of an upload, may be answered late.
        client.timeout = self._http().Timeout(max(self.patience.stall, self.patience.give_up / 2))
        try:
            yield load_api()(
                endpoint=self.endpoint,
                token=cast("Any", self.token),
                library_name="dcz",
                library_version=__version__,
            )
        finally:
            client.timeout = before

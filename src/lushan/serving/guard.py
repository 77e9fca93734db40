"""Who may ask: known hosts and origins only, no client more often than it may, and no more than fits.

A page on the internet can have a browser send requests to this machine, under a name that it lets point here (DNS
rebinding). Its requests carry that name in `Host`, or its own in `Origin`; both are refused. Where keys are asked for, any
`Host` is known: such a page has no key, and a proxy passes on the name that its visitors ask for.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lushan.serving.errors import RequestError, error_response
from lushan.serving.serve_settings import LOOPBACK, MOST_UPLOAD_BYTES, ServeSettings

UPLOAD = re.compile(r"/ui/[a-z]+/gradio_api/upload/?")
"""Where the page takes files."""
BYTES_AROUND_A_FILE = 1_000
"""Of a request that brings a file."""
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
"""What proxies tell of those whose requests they pass on."""
MOST_CLIENTS = 10_000
"""Addresses that are remembered for the rate limit; those not seen for longest are forgotten."""


class Guard:
    """Turns requests away before anything reads them."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings
        self._limit: RateLimit | None = None
        if settings.requests_per_minute is not None:
            self._limit = RateLimit(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, self._bounded(receive, self._most_bytes(scope)), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self._settings.asks_for_keys:
            _refuse_others(headers)
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and not self._is_known(origin, host):
            raise RequestError(
                f"Pages of `{origin[:100]}` may not use this server. Start it with `--cors-origin` to allow them.",
                status=403,
                code="origin_not_allowed",
            )
        length = headers.get("content-length", "")
        most = self._most_bytes(scope)
        if length.isdecimal() and int(length[:20]) > most:
            raise RequestError(f"{_too_large(most)}.", status=413, code="body_too_large")
        if self._limit and scope["path"].startswith("/v1/"):
            client = scope.get("client") or ("", 0)
            self._limit.count(client[0])

    def _most_bytes(self, scope: Scope) -> int:
        most = self._settings.max_body_bytes
        is_upload = UPLOAD.fullmatch(scope["path"]) is not None
        return max(most, MOST_UPLOAD_BYTES + BYTES_AROUND_A_FILE) if is_upload else most

    def _bounded(self, receive: Receive, most: int) -> Receive:
        """Stop a body that becomes longer than it may, whatever its length was said to be."""
        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > most:
                # The one error that passes through whatever reads the body.
                raise HTTPException(413, _too_large(most))
            return message

        return receive_bounded

    def _is_known(self, origin: str, host: str) -> bool:
        return origin in self._settings.cors_origins or origin.partition("://")[2] == host


def _refuse_others(headers: Headers) -> None:
    """Let in this machine only, under its own names.

    Raises:
        RequestError: If the request may be another machine's.
    """
    host = headers.get("host", "")
    if _name_of(host) not in LOOPBACK:
        raise RequestError(
            f"This server answers requests to this machine only, not to the host `{host[:100]}`. Use `localhost`; "
            "behind a proxy, start it with `--require-keys`.",
            status=403,
            code="host_not_allowed",
        )
    if passed_on := [name for name in FORWARDED if name in headers]:
        raise RequestError(
            f"A proxy passes requests of others on (`{passed_on[0]}`), but this server asks nobody for a key: it is for this "
            "machine alone. Start it with `--require-keys`.",
            status=403,
            code="proxy_not_allowed",
        )


def _too_large(most: int) -> str:
    return f"The body may have {most:,} bytes at most. Send less at once"


def _name_of(host: str) -> str:
    """Give the host of a `Host` header, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class RateLimit:
    """A bucket of requests for each client: as many as a minute allows, filled up evenly."""

    def __init__(
        self, requests_per_minute: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = requests_per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Client to the requests that are left, and when that was so."""

    def count(self, client: str) -> None:
        """Count a request.

        Raises:
            RequestError: If the client has none left.
        """
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._most), now))
        left = min(self._most, left + (now - then) * self._most / 60)
        self._buckets[client] = (max(left - 1, 0.0) if left >= 1 else left), now
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise RequestError(
                f"More than {self._most} requests in a minute. Wait a little.",
                status=429,
                code="rate_limit_exceeded",
                retry_after_seconds=1 + int((1 - left) * 60 / self._most),
            )

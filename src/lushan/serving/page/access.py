"""Who may see the page where the server asks for keys: a browser has no key in its headers, but asks its user for one."""

import base64
from contextlib import suppress

import anyio.to_thread
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lushan.errors import SettingError
from lushan.serving.app import KeyGate
from lushan.serving.errors import RequestError

ASK = {"WWW-Authenticate": 'Basic realm="Lushan: any name, an API key as the password"'}
"""Makes a browser ask for a name and a password, and send them from then on."""
NEEDED = "admin"
"""What a key must be for: the page starts runs and takes models into the server."""


def check_is_guarded(app: FastAPI) -> None:
    """Check that a server that others can reach asks for keys.

    Raises:
        SettingError: If it does not.
    """
    if app.state.keys is None and not app.state.settings.is_on_loopback:
        raise SettingError(
            f"The page would be open to everybody who reaches `{app.state.settings.host}`. Listen on 127.0.0.1, or ask "
            "for API keys."
        )


class Gate:
    """Stands before all of the page, and lets in who has a key, as a bearer or as the password of HTTP Basic."""

    def __init__(self, page: ASGIApp, *, server: FastAPI) -> None:
        """Stand before `page`.

        Args:
            page: What is behind the gate.
            server: Its `state.keys` checks keys, without counting what a browser asks for; None lets all in.
        """
        self._page = page
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or ask for a key."""
        keys: KeyGate | None = self._server.state.keys
        if scope["type"] == "http" and keys is not None:
            try:
                key = _key_in(Headers(scope=scope))
                # The store may keep it waiting.
                await anyio.to_thread.run_sync(keys.recognise, key, NEEDED)
            except RequestError as error:
                message, status = str(error), error.status
                await PlainTextResponse(message, status, headers=ASK)(scope, receive, send)
                return
        await self._page(scope, receive, send)


def _key_in(headers: Headers) -> str | None:
    """Give the key that came with a request; None where none did."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    match kind.casefold():
        case "bearer":
            return value or None
        case "basic":
            with suppress(ValueError):
                decoded = base64.b64decode(value, validate=True).decode("utf-8")
                return decoded.partition(":")[2] or None
    return None

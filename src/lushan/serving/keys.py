"""Who may ask for what: `Depends(require_key("predict"))` in front of a route.

`app.state.keys` is the `KeyGate` of a server, or None where it asks for no keys, which is for this machine alone.
"""

import logging
import threading
from collections.abc import Callable

from fastapi import Request
from fastapi.security import HTTPBearer

from lushan.errors import StoreError
from lushan.serving.api_key import ApiKey, Scope
from lushan.serving.errors import RequestError
from lushan.serving.guard import RateLimit
from lushan.serving.key_store import KeyStore

logger = logging.getLogger(__name__)
bearer = HTTPBearer(
    auto_error=False, scheme_name="API key", description="Made by `lushan keys create`."
)
"""Tells in the API document that routes need a key; for those of a server that asks for keys."""
NO_KEY = "This server needs an API key: send the header `Authorization: Bearer lushan_...`."
WRONG_KEY = "This is no API key of this server."


class KeyGate:
    """Lets those in who have a key that works, is for this, and is not used too often."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._limits: dict[str, RateLimit] = {}
        self._lock = threading.Lock()

    def admit(self, text: str | None, scope: Scope) -> ApiKey:
        """Give the key of a request, and count the request.

        Args:
            text: The key as it came; None where none came.
            scope: What the request wants to do.

        Raises:
            RequestError: If the key does not open this door: 401, 403 or 429; 503 if the store cannot be read.
        """
        key = self._checked(text, scope)
        self._take(key)
        self._note_use(key)
        return key

    def recognise(self, text: str | None, scope: Scope) -> ApiKey:
        """Give the key of a visitor, whose browser asks dozens of times for one page: none of it is counted.

        Arguments and errors are those of `admit`, but for 429.
        """
        key = self._checked(text, scope)
        self._note_use(key)
        return key

    def _checked(self, text: str | None, scope: Scope) -> ApiKey:
        if text is None:
            raise RequestError(NO_KEY, status=401, code="missing_api_key")
        key = self._find(text)
        if key is None:
            raise RequestError(WRONG_KEY, status=401, code="invalid_api_key")
        if key.state != "active":
            message = f"The API key `{key.name}` is {key.state}. Ask for a new one."
            raise RequestError(message, status=401, code=f"{key.state}_api_key")
        if not key.allows(scope):
            message = f"The API key `{key.name}` is for {', '.join(key.scopes)}, and this needs `{scope}`."
            raise RequestError(message, status=403, code="missing_scope")
        return key

    def _find(self, text: str) -> ApiKey | None:
        try:
            return self._store.find(text)
        except StoreError:
            logger.exception("API keys cannot be read.")
            message = "API keys cannot be checked now. Try again later."
            raise RequestError(message, status=503, code="store_unavailable") from None

    def _take(self, key: ApiKey) -> None:
        if key.requests_per_minute is None:
            return
        with self._lock:
            limit = self._limits.setdefault(key.id, RateLimit(key.requests_per_minute))
            limit.count(key.id)

    def _note_use(self, key: ApiKey) -> None:
        try:
            self._store.note_use(key)
        except StoreError as error:  # a full disk is no reason to refuse who has a key
            logger.warning("The last use of an API key is not kept. %s", error)


def require_key(scope: Scope) -> Callable[[Request], ApiKey | None]:
    """Make a dependency that gives the key of a request; None where the server asks for none.

    Its errors are those of `KeyGate.admit`.
    """

    def check(request: Request) -> ApiKey | None:
        gate: KeyGate | None = request.app.state.keys
        if gate is None:
            return None
        kind, _, text = request.headers.get("Authorization", "").partition(" ")
        return gate.admit(text.strip() if kind.casefold() == "bearer" else None, scope)

    return check

"""What becomes of every request: one line in the log, one count, and no traceback to a client.

A request has an id, which stands in its answer (`x-request-id`) and in the log. The log holds no texts, unless asked.
"""

import asyncio
import json
import logging
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lushan.serving.errors import DeadlineError, RequestError, error_response
from lushan.serving.metrics import Metrics
from lushan.serving.serve_settings import ServeSettings

logger = logging.getLogger("lushan.serving")

_SLACK_SECONDS = 2.0
"""After the deadline, in which a request may still tell that it was missed."""
_NOTES = "lushan.notes"
CLIENT_GONE = 499
"""Status in the log of a request whose client did not wait for the answer."""


class JsonLines(logging.Formatter):
    """Each record of the log as one JSON object; what `extra={"fields": ...}` holds stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def note(scope: Scope, **fields: object) -> None:
    """Add to what the log will say of a request."""
    scope.setdefault(_NOTES, {}).update(fields)


class Observation:
    """Watches every request from the outside."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = secrets.token_hex(8)
        note(scope, request=request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            async with asyncio.timeout(self._most_seconds(scope)):
                await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - what escapes here would reach the client
            is_late = isinstance(error, TimeoutError)
            refused = (
                DeadlineError(self._settings.deadline_seconds) if is_late else hidden(error, scope)
            )
            if status == 0:
                await error_response(refused)(scope, receive, send_with_id)
        finally:
            self._tell(scope, status, time.perf_counter() - started)

    def _most_seconds(self, scope: Scope) -> float | None:
        if not scope["path"].startswith("/v1/"):
            return None
        return self._settings.deadline_seconds + _SLACK_SECONDS

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        status = status or CLIENT_GONE
        self._metrics.count_request(route, status=status, seconds=seconds)
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **scope[_NOTES],
        }
        logger.info("Answered.", extra={"fields": fields})


def hidden(error: Exception, scope: Scope) -> RequestError:
    """Write a failure of ours into the log, and give what the client is told: where to find it there."""
    request_id = scope[_NOTES]["request"]
    logger.error("A request failed.", exc_info=error, extra={"fields": {"request": request_id}})
    return RequestError(
        f"Something went wrong here, not in your request. The log of the server has it under `{request_id}`.",
        status=500,
        code="internal_error",
    )

"""Answers that come in pieces, as server-sent events; when the client goes away, what makes them stops."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lushan.errors import UserError
from lushan.serving.errors import told
from lushan.serving.observation import hidden

ItemT = TypeVar("ItemT")

Chunks = AsyncGenerator[dict[str, Any], None]

HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Nobody between keeps pieces back: nginx holds answers until it has 4 kB of them, unless they say so."""


class EventStream(StreamingResponse):
    """Sends each chunk as one event, and `[DONE]` behind the last. A failure is an event too."""

    def __init__(self, chunks: Chunks, scope: Scope) -> None:
        self._events = _as_events(chunks, scope)
        super().__init__(self._events, media_type="text/event-stream", headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever happens, nothing goes on making them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _as_events(chunks: Chunks, scope: Scope) -> AsyncGenerator[str, None]:
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield _event(chunk)
        except UserError as error:
            yield _event(told(error))
        except Exception as error:  # noqa: BLE001 - nobody else can tell the client
            yield _event(told(hidden(error, scope)))
    yield "data: [DONE]\n\n"


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def begun(items: AsyncGenerator[ItemT, None]) -> AsyncGenerator[ItemT, None]:
    """Wait for the first item, so that what is wrong with a request is told before the answer begins."""
    first = await anext(items)

    async def all_items() -> AsyncGenerator[ItemT, None]:
        async with aclosing(items):
            yield first
            async for item in items:
                yield item

    return all_items()

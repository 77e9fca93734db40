"""Server-sent events: their form, and what happens when the client is slow or gone."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from lushan.serving.errors import DeadlineError
from lushan.serving.event_stream import EventStream, begun

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Source:
    """Makes chunks, and knows when it was told to stop."""

    def __init__(self, *, fails_after: int = -1) -> None:
        self.is_closed = False
        self._fails_after = fails_after

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            for number in range(3):
                if number == self._fails_after:
                    raise DeadlineError(1.0)
                yield {"n": number}
        finally:
            self.is_closed = True


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def sent(source: Source) -> list[str]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(EventStream(source.chunks(), SCOPE)(SCOPE, never, send))
    return b"".join(each.get("body", b"") for each in messages).decode().split("\n\n")


def test_chunks_are_events_and_done_is_the_last() -> None:
    source = Source()
    assert sent(source) == [
        'data: {"n": 0}',
        'data: {"n": 1}',
        'data: {"n": 2}',
        "data: [DONE]",
        "",
    ]
    assert source.is_closed


def test_what_goes_wrong_is_an_event() -> None:
    *_, error, done, _ = sent(Source(fails_after=2))
    assert '"code": "deadline_exceeded"' in error
    assert done == "data: [DONE]"


def test_client_that_goes_away_while_it_reads_nothing_stops_the_source() -> None:
    source = Source()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the client takes nothing

    async def gone() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def leave() -> bool:
        stream = EventStream(source.chunks(), SCOPE)
        await stream(SCOPE, gone, send)
        return source.is_closed  # at once, not when the loop or the stream ends

    assert asyncio.run(leave())


def test_what_is_wrong_at_once_is_told_before_anything_is_sent() -> None:
    source = Source(fails_after=0)
    with pytest.raises(DeadlineError):
        asyncio.run(begun(source.chunks()))


def test_begun_loses_nothing() -> None:
    async def all_items() -> list[dict[str, Any]]:
        return [each async for each in await begun(Source().chunks())]

    assert asyncio.run(all_items()) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_proxies_are_told_to_keep_nothing_back() -> None:
    headers = EventStream(Source().chunks(), SCOPE).headers
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")

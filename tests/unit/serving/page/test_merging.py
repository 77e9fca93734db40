"""Several streams come as one, in the order of their items, and end together."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from lushan.serving.page.merging import merged


class Streams:
    """Makes streams, and notes which were closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def letters(self, text: str, pauses: asyncio.Semaphore) -> AsyncGenerator[str]:
        """Give a letter whenever there is room for it; `!` fails."""
        try:
            for letter in text:
                await pauses.acquire()
                if letter == "!":
                    raise ValueError(text)
                yield letter
        finally:
            self.closed.append(text)


def test_items_come_as_they_are_there_with_the_number_of_their_stream() -> None:
    async def collect() -> list[tuple[int, str]]:
        slow, fast = asyncio.Semaphore(0), asyncio.Semaphore(2)
        streams = Streams()
        both = merged([streams.letters("ab", slow), streams.letters("cd", fast)])
        first = [await anext(both), await anext(both)]
        slow.release()
        slow.release()
        return first + [each async for each in both]

    assert asyncio.run(collect()) == [(1, "c"), (1, "d"), (0, "a"), (0, "b")]


def test_closing_closes_all_streams_also_those_that_wait() -> None:
    streams = Streams()

    async def leave() -> None:
        never, once = asyncio.Semaphore(0), asyncio.Semaphore(1)
        both = merged([streams.letters("ab", never), streams.letters("cd", once)])
        await anext(both)
        await both.aclose()

    asyncio.run(leave())
    assert sorted(streams.closed) == ["ab", "cd"]


def test_failure_of_one_stream_closes_the_others_and_is_raised() -> None:
    streams = Streams()

    async def collect() -> None:
        never, once = asyncio.Semaphore(0), asyncio.Semaphore(1)
        _ = [
            each
            async for each in merged([streams.letters("ab", never), streams.letters("!", once)])
        ]

    with pytest.raises(ValueError, match="!"):
        asyncio.run(collect())
    assert sorted(streams.closed) == ["!", "ab"]

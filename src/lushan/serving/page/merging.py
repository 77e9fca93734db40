"""Several streams as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")


async def merged(streams: Sequence[AsyncGenerator[ItemT]]) -> AsyncGenerator[tuple[int, ItemT]]:
    """Give what several streams give, each item as soon as it is there, with the number of its stream.

    All of them are closed with it, and where one of them fails.
    """
    coming = {_next(stream): number for number, stream in enumerate(streams)}
    try:
        while coming:
            await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            task = next(each for each in coming if each.done())  # of several, the one asked first
            number = coming.pop(task)
            if not isinstance(task.exception(), StopAsyncIteration):
                yield number, task.result()
                coming[_next(streams[number])] = number
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _next(stream: AsyncGenerator[ItemT]) -> asyncio.Task[ItemT]:
    return asyncio.ensure_future(anext(stream))

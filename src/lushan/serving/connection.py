"""Work for a client that may go away: it ends when nobody waits for it any more."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from lushan.serving.errors import RequestError

ResultT = TypeVar("ResultT")


class ClientGoneError(RequestError):
    """The client has closed the connection; the answer reaches nobody."""

    def __init__(self) -> None:
        super().__init__("The client has gone.", status=499, code="client_gone")


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Wait for work, and stop it when the client goes away.

    Args:
        request: Its body must have been read.
        work: What to do.

    Raises:
        ClientGoneError: If nobody waits any more.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

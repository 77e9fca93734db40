"""Work that ends when nobody waits for it."""

import asyncio
from typing import Any

import pytest
from fastapi import Request
from starlette.types import Message

from lushan.serving.connection import ClientGoneError, while_connected


def request(*, seconds_connected: float) -> Request:
    async def receive() -> Message:
        await asyncio.sleep(seconds_connected)
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "headers": [], "method": "POST", "path": "/"}
    return Request(scope, receive)


def test_work_is_stopped_when_the_client_has_gone() -> None:
    was_stopped: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_stopped.append(True)
            raise

    with pytest.raises(ClientGoneError):
        asyncio.run(while_connected(request(seconds_connected=0.01), work()))
    assert was_stopped == [True]


def test_result_and_error_are_those_of_the_work() -> None:
    async def work(value: int) -> int:
        return 7 // value

    assert asyncio.run(while_connected(request(seconds_connected=60), work(1))) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(while_connected(request(seconds_connected=60), work(0)))

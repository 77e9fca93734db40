"""Answers that are being written, for all requests together; lives in the worker's thread."""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import own_adapter
from lushan.errors import UserError
from lushan.inference.draft import TokenEvent
from lushan.inference.engine import Engine
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.serving.backends import LATER_SHARE, MakeEngine, Room, own_engine, room_for
from lushan.serving.hosted import HostedModel

logger = logging.getLogger("lushan.serving")

Told = TokenEvent | Exception | None
"""What a request is told: a token, why it failed, or None behind the last token."""


class Mailbox:
    """Takes what a thread gives, and has it read in the event loop in which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Told] = asyncio.Queue()

    def put(self, told: Told) -> None:
        """Give something, from any thread; nobody reads it once the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, told)

    async def get(self) -> Told:
        """Wait for what comes next."""
        return await self._queue.get()


@dataclass(slots=True)
class Writing:
    """A request for written answers."""

    number: int
    """By which the engine knows it; unlike that of any other request."""
    model: HostedModel
    prompt_ids: Sequence[int]
    settings: GenerationSettings
    constraint: Constraint | None
    num_alternatives: int
    mailbox: Mailbox
    has_started: bool = False


@dataclass(slots=True)
class _Desk:
    """The engine of a backbone, and the requests that it answers."""

    engine: Engine
    room: Room
    requests: dict[int, Writing] = field(default_factory=dict[int, Writing])
    is_needed: bool = True
    """Whether new requests may come."""


class Streams:
    """One engine a backbone, or a base that several share; every step moves each of them on by one token."""

    def __init__(
        self,
        *,
        max_rows: int,
        max_tokens: int | None,
        make_engine: MakeEngine = own_engine,
    ) -> None:
        """Begin without any.

        Args:
            max_rows: Answers that a model writes at once.
            max_tokens: Tokens that it remembers; None looks at the memory that is free.
            make_engine: Makes what writes.
        """
        self._make_engine = make_engine
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._desks: dict[int, _Desk] = {}

    @property
    def is_busy(self) -> bool:
        """Whether any request is not answered yet."""
        return any(desk.requests for desk in self._desks.values())

    def add(self, request: Writing) -> None:
        """Take a request; one that cannot be answered is told so."""
        try:
            desk = self._desk(request.model)
            desk.engine.add(
                request.prompt_ids,
                request.settings,
                index=request.number,
                constraint=request.constraint,
                adapter=own_adapter(request.model.predictor.backbone),
                num_alternatives=request.num_alternatives,
            )
        except UserError as error:
            request.mailbox.put(error)
        except Exception as error:
            logger.exception("A request could not be taken.")
            request.mailbox.put(error)
        else:
            desk.requests[request.number] = request

    def prepare(self, model: HostedModel, *, share: float = LATER_SHARE) -> Room:
        """Make what writes for a model, if it is not there.

        Args:
            model: Who will be asked.
            share: Of the memory that is free, the most that it may remember, where `max_tokens` does not say how much.

        Returns:
            How much it may remember.

        Raises:
            ModelError: If the model cannot write.
        """
        return self._desk(model, share=share).room

    def _desk(self, model: HostedModel, *, share: float = LATER_SHARE) -> _Desk:
        key = id(model.writes_with[0])
        if key not in self._desks:
            room = room_for(model, self._max_tokens, share=share)
            engine = self._make_engine(model, max_rows=self._max_rows, max_tokens=room.num_tokens)
            self._desks[key] = _Desk(engine, room)
        return self._desks[key]

    def cancel(self, number: int) -> None:
        """Forget a request; its rows are free at once. Nothing happens when it is answered already."""
        for desk in self._desks.values():
            if desk.requests.pop(number, None) is not None:
                desk.engine.cancel(number)

    def step(self) -> None:
        """Move every answer on by one token, and tell it."""
        for key, desk in list(self._desks.items()):
            if desk.requests:
                self._step(key, desk)
        self._clear()

    def _step(self, key: int, desk: _Desk) -> None:
        try:
            events = desk.engine.step()
        except Exception as error:
            # The engine may be half way through a step; the next request gets a new one.
            logger.exception("A step of the engine failed.")
            del self._desks[key]
            for request in desk.requests.values():
                request.mailbox.put(error)
            return
        for event in events:
            request = desk.requests[event.prompt_index]
            request.has_started = True
            request.mailbox.put(event)
        for number, error in desk.engine.take_failures().items():
            desk.requests.pop(number).mailbox.put(error)
        for number in desk.requests.keys() - desk.engine.open_indices:
            desk.requests.pop(number).mailbox.put(None)

    def keep_only(self, needed: Collection[Backbone]) -> None:
        """Free what is remembered of all backbones but these; answers that were begun are finished first."""
        kept = {id(each) for each in needed}
        for key, desk in self._desks.items():
            desk.is_needed = key in kept
        self._clear()

    def _clear(self) -> None:
        self._desks = {
            key: desk for key, desk in self._desks.items() if desk.is_needed or desk.requests
        }

    def close(self, reason: Exception) -> None:
        """Tell every request that it will not be answered."""
        for desk in self._desks.values():
            for request in desk.requests.values():
                request.mailbox.put(reason)
        self._desks = {}

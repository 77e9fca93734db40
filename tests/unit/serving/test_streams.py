"""Written answers of all requests together: rows that are freed, and an engine that fails."""

import asyncio
import weakref

import pytest

from lushan.inference.draft import TokenEvent
from lushan.inference.engine import Engine
from lushan.inference.generate import GenerationEngine
from lushan.inference.generation_settings import GenerationSettings
from lushan.serving import backends
from lushan.serving.backends import own_engine, room_for
from lushan.serving.hosted import HostedModel
from lushan.serving.streams import Mailbox, Streams, Told, Writing

SETTINGS = GenerationSettings(max_new_tokens=3)


def writing(number: int, model: HostedModel, mailbox: Mailbox) -> Writing:
    return Writing(number, model, (5, 60, 100), SETTINGS, None, 0, mailbox)


async def all_told(mailbox: Mailbox) -> list[Told]:
    found = [await mailbox.get()]
    while isinstance(found[-1], TokenEvent):
        found.append(await mailbox.get())
    return found


def test_every_token_is_told_and_none_behind_the_last(chatter: HostedModel) -> None:
    async def write() -> list[Told]:
        streams, mailbox = Streams(max_rows=2, max_tokens=1000), Mailbox()
        streams.add(writing(7, chatter, mailbox))
        while streams.is_busy:
            streams.step()
        return await all_told(mailbox)

    *events, end = asyncio.run(write())
    assert [type(each) for each in events] == [TokenEvent] * 3
    assert end is None


def test_cancelled_request_is_told_nothing_more(chatter: HostedModel) -> None:
    async def write() -> list[Told]:
        streams, kept, left = Streams(max_rows=1, max_tokens=1000), Mailbox(), Mailbox()
        streams.add(writing(1, chatter, left))
        streams.add(writing(2, chatter, kept))
        streams.step()
        streams.cancel(1)
        while streams.is_busy:
            streams.step()
        assert left._queue.qsize() == 0  # nothing was taken out of the loop yet
        return await all_told(kept)

    assert len(asyncio.run(write())) == 4


def test_engine_that_fails_is_told_and_replaced(
    chatter: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: GenerationEngine) -> None:
        raise MemoryError("too large")

    async def write() -> tuple[list[Told], list[Told]]:
        streams, failing, later = Streams(max_rows=2, max_tokens=1000), Mailbox(), Mailbox()
        streams.add(writing(1, chatter, failing))
        with monkeypatch.context() as patch:
            patch.setattr(GenerationEngine, "step", fail)
            streams.step()
        streams.add(writing(2, chatter, later))
        while streams.is_busy:
            streams.step()
        return await all_told(failing), await all_told(later)

    failed, answered = asyncio.run(write())
    assert [type(each) for each in failed] == [MemoryError]
    assert len(answered) == 4


def test_engine_of_a_replaced_model_is_freed_when_its_answers_are_finished(
    chatter: HostedModel,
) -> None:
    async def write() -> list[Told]:
        streams, mailbox = Streams(max_rows=2, max_tokens=1000), Mailbox()
        streams.add(writing(1, chatter, mailbox))
        streams.step()
        (desk,) = streams._desks.values()
        engine = weakref.ref(desk.engine)
        streams.keep_only([chatter.writes_with[0]])
        assert streams._desks
        streams.keep_only([])
        del desk
        assert engine() is not None
        while streams.is_busy:
            streams.step()
        assert engine() is None
        return await all_told(mailbox)

    assert len(asyncio.run(write())) == 4


def test_encoder_is_told_that_it_cannot_write(classifier: HostedModel) -> None:
    async def write() -> list[Told]:
        streams, mailbox = Streams(max_rows=2, max_tokens=1000), Mailbox()
        streams.add(writing(1, classifier, mailbox))
        return await all_told(mailbox)

    (error,) = asyncio.run(write())
    assert "without its vocabulary layer" in str(error)


def test_engine_gets_what_its_model_may_remember(
    chatter: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def make(model: HostedModel, *, max_rows: int, max_tokens: int) -> Engine:
        sizes.append(max_tokens)
        return own_engine(model, max_rows=max_rows, max_tokens=max_tokens)

    of_token = room_for(chatter, 1, share=1.0).num_bytes
    monkeypatch.setattr(backends, "free_memory_bytes", lambda: 40_000 * of_token)
    streams = Streams(max_rows=2, max_tokens=None, make_engine=make)
    assert streams.prepare(chatter, share=0.125).num_tokens == 5_000
    assert streams.prepare(chatter).num_tokens == 5_000  # as it is there
    Streams(max_rows=2, max_tokens=None, make_engine=make).prepare(chatter)
    assert sizes == [5_000, 10_000]

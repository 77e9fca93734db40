"""The worker: bounded, fair, and quick to forget who has gone."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import TypeVar

import pytest

from lushan.errors import DataError, SettingError
from lushan.inference.draft import TokenEvent
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor, Prompted
from lushan.records import Example, Prediction
from lushan.serving.errors import DeadlineError, ServerBusyError
from lushan.serving.hosted import HostedModel
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.worker import PROMPTS_AT_ONCE, WEIGHED_AT_ONCE, Worker, _before
from tests.saved import EXAMPLES

ResultT = TypeVar("ResultT")
LONG = GenerationSettings(max_new_tokens=4000, stop_strings=("never that",))
SHORT = GenerationSettings(max_new_tokens=6)
PROMPT = (5, 60, 100)


@contextmanager
def working(*models: HostedModel, **settings: object) -> Iterator[Worker]:
    worker = Worker({each.name: each for each in models}, ServeSettings.model_validate(settings))
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


async def tokens(
    worker: Worker,
    model: HostedModel,
    settings: GenerationSettings = SHORT,
    *,
    prompt: tuple[int, ...] = PROMPT,
) -> list[int]:
    return [each.token_id async for each in worker.generate(model, prompt, settings)]


async def once(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.001)


def test_closing_the_iterator_frees_the_rows_at_once(chatter: HostedModel) -> None:
    async def leave(worker: Worker) -> list[int]:
        events = worker.generate(chatter, PROMPT, LONG)
        await anext(events)
        assert worker.num_running == 1
        await events.aclose()
        assert worker.num_running == 0
        # There is one row, and it is free.
        return await asyncio.wait_for(tokens(worker, chatter), 5)

    with working(chatter, max_rows=1) as worker:
        assert len(asyncio.run(leave(worker))) == 6


def test_request_beyond_the_rows_waits_and_one_beyond_the_queue_is_sent_away(
    chatter: HostedModel,
) -> None:
    async def crowd(worker: Worker) -> list[int]:
        running = worker.generate(chatter, PROMPT, LONG)
        await anext(running)
        waiting = asyncio.create_task(tokens(worker, chatter))
        await once(lambda: worker.num_waiting == 1)
        with pytest.raises(ServerBusyError):
            await tokens(worker, chatter)
        await running.aclose()
        return await waiting

    with working(chatter, max_rows=1, max_waiting=1) as worker:
        assert len(asyncio.run(crowd(worker))) == 6


def test_request_past_its_deadline_is_told_so_and_forgotten(chatter: HostedModel) -> None:
    with working(chatter, deadline_seconds=0.2) as worker:
        with pytest.raises(DeadlineError, match=r"not finished after 0.2 seconds"):
            asyncio.run(tokens(worker, chatter, LONG))
        assert (worker.num_waiting, worker.num_running) == (0, 0)


def test_what_does_not_fit_fails_alone(chatter: HostedModel) -> None:
    async def mixed(worker: Worker) -> list[list[int] | BaseException]:
        too_long = LONG.model_copy(update={"max_new_tokens": 5000})
        asked = (
            tokens(worker, chatter),
            tokens(worker, chatter, too_long),
            tokens(worker, chatter, prompt=()),
        )
        return list(await asyncio.gather(*asked, return_exceptions=True))

    with working(chatter) as worker:
        good, too_long, empty = asyncio.run(mixed(worker))
    assert isinstance(good, list)
    assert [type(each) for each in (too_long, empty)] == [DataError, DataError]


def test_stopped_worker_leaves_nobody_waiting(chatter: HostedModel) -> None:
    async def stop(worker: Worker) -> None:
        events = worker.generate(chatter, PROMPT, LONG)
        await anext(events)
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
        with pytest.raises(ServerBusyError, match="is stopping"):
            async for _ in events:
                pass
        await stopping

    with working(chatter) as worker:
        asyncio.run(stop(worker))


def test_predictions_of_several_requests_share_a_batch(
    classifier: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    predict = Predictor.predict

    def counted(self: Predictor, examples: list[Example]) -> object:
        sizes.append(len(examples))
        return predict(self, examples)

    monkeypatch.setattr(Predictor, "predict", counted)
    held = threading.Event()

    async def ask(worker: Worker) -> list[list[str]]:
        blocking = asyncio.create_task(worker.run(held.wait))
        await once(lambda: worker.num_running == 1)  # else some may be answered before
        parts = [EXAMPLES[:1], EXAMPLES[1:3], EXAMPLES[3:]]
        asked = [asyncio.create_task(worker.predict(classifier, part)) for part in parts]
        await once(lambda: worker.num_waiting + worker.num_running == 4)
        held.set()
        await blocking
        return [[each.id for each in await answers] for answers in asked]

    with working(classifier) as worker:
        found = asyncio.run(ask(worker))
    assert found == [["id0"], ["id1", "id2"], ["id3", "id4"]]
    assert sizes == [5]


def test_what_a_replaced_model_remembers_is_freed(chatter: HostedModel) -> None:
    models = {"chatter": chatter}
    worker = Worker(models, ServeSettings())
    worker.start()
    try:
        asyncio.run(tokens(worker, chatter))
        worker.forget_replaced()
        assert asyncio.run(worker.run(lambda: len(worker._thread._streams._desks))) == 1
        assert chatter.layers is not None
        others = chatter.layers._replace(backbone=copy(chatter.layers.backbone))
        models["chatter"] = replace(chatter, layers=others)
        worker.forget_replaced()
        assert asyncio.run(worker.run(lambda: len(worker._thread._streams._desks))) == 0
    finally:
        worker.stop()


def test_long_request_gives_way_to_a_short_one(classifier: HostedModel) -> None:
    finished: list[str] = []

    async def ask(worker: Worker, name: str, examples: list[Example]) -> None:
        await worker.predict(classifier, examples)
        finished.append(name)

    async def ask_both(worker: Worker) -> None:
        long = asyncio.create_task(ask(worker, "long", EXAMPLES * 40))
        await once(lambda: worker.num_running == 1)
        await asyncio.gather(ask(worker, "short", EXAMPLES[:1]), long)

    with working(classifier) as worker:
        asyncio.run(ask_both(worker))
    assert finished == ["short", "long"]


def test_what_must_end_has_no_deadline(chatter: HostedModel) -> None:
    async def use(worker: Worker) -> str:
        with pytest.raises(DeadlineError):
            await worker.run(lambda: time.sleep(0.2))
        return await worker.run(lambda: time.sleep(0.2) or "done", has_deadline=False)

    with working(chatter, deadline_seconds=0.05) as worker:
        assert asyncio.run(use(worker)) == "done"


def test_other_work_runs_between_steps_and_its_errors_reach_who_asked(chatter: HostedModel) -> None:
    def fail() -> None:
        raise SettingError("no such thing")

    async def use(worker: Worker) -> str:
        async def works() -> str:
            return await worker.run(lambda: threading.current_thread().name)

        events = worker.generate(chatter, PROMPT, LONG)
        await anext(events)
        with pytest.raises(SettingError, match="no such thing"):
            await worker.run(fail)
        name = await works()
        await events.aclose()
        return name

    with working(chatter) as worker:
        assert asyncio.run(use(worker)) == "lushan-compute"


def test_request_that_is_stopped_just_as_a_token_comes_is_stopped() -> None:
    async def stop() -> None:
        token: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(_before(time.monotonic() + 60, token, seconds=60))
        await asyncio.sleep(0)
        token.set_result(7)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stop())


@pytest.mark.parametrize("has_deadline", [True, False])
def test_prompts_of_a_request_have_one_deadline_together_where_it_is_asked_for(
    has_deadline: bool, chatter: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_slowly(*_: object, **__: object) -> AsyncGenerator[TokenEvent]:
        await asyncio.sleep(0.05)
        yield TokenEvent(0, 0, 5, 0.0, "a", "length")

    async def write_all(worker: Worker) -> int:
        asked = [Prompted(PROMPT, SHORT, None)] * (3 * PROMPTS_AT_ONCE)
        events = worker.generate_all(chatter, asked, has_deadline=has_deadline)
        return len([each async for each in events])

    monkeypatch.setattr(Worker, "generate", write_slowly)
    worker = Worker({}, ServeSettings(deadline_seconds=0.1))
    expected = pytest.raises(DeadlineError) if has_deadline else nullcontext()
    with expected:
        assert asyncio.run(write_all(worker)) == 3 * PROMPTS_AT_ONCE


def test_likelihoods_of_no_answer_are_asked_for_a_few_examples_at_a_time(
    writer: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def absences(_: Predictor, examples: Sequence[Example]) -> list[float | None]:
        sizes.append(len(examples))
        return [None] * len(examples)

    monkeypatch.setattr(Predictor, "absences", absences)
    state = replace(writer.predictor.state, no_answer_threshold=0.5)
    model = replace(writer, predictor=replace(writer.predictor, state=state))
    with working(model) as worker:
        found = asyncio.run(worker.predict(model, EXAMPLES * 4))
    assert [each.id for each in found] == [each.id for each in EXAMPLES * 4]
    assert sizes == [WEIGHED_AT_ONCE, len(EXAMPLES) * 4 - WEIGHED_AT_ONCE]


def test_request_that_is_in_is_not_sent_away_half_way(
    chatter: HostedModel, writer: HostedModel
) -> None:
    async def ask(worker: Worker) -> tuple[int, list[Prediction]]:
        asked = [Prompted(PROMPT, SHORT, None)] * (2 * PROMPTS_AT_ONCE)
        events = [each async for each in worker.generate_all(chatter, asked)]
        return len(events), await worker.predict(writer, EXAMPLES * 4)

    with working(chatter, writer, max_rows=1, max_waiting=1) as worker:
        num_events, found = asyncio.run(ask(worker))
        assert (worker.num_waiting, worker.num_running) == (0, 0)
    assert num_events == 2 * PROMPTS_AT_ONCE * 6
    assert len(found) == len(EXAMPLES) * 4


def test_part_of_a_request_is_taken_where_another_request_is_sent_away(
    chatter: HostedModel,
) -> None:
    async def ask(worker: Worker) -> str:
        with worker.admit() as request:
            assert worker.num_waiting == 1
            with pytest.raises(ServerBusyError):
                await worker.run(lambda: "new")
            return await worker.run(lambda: "part", within=request)

    with working(chatter, max_waiting=1) as worker:
        assert asyncio.run(ask(worker)) == "part"


def test_what_is_read_and_written_is_counted_whoever_asks(
    chatter: HostedModel, classifier: HostedModel, writer: HostedModel
) -> None:
    counted: dict[str, list[dict[str, int]]] = {}

    def count(model: str, **counts: int) -> None:
        counted.setdefault(model, []).append(counts)

    async def ask(worker: Worker) -> None:
        await tokens(worker, chatter)
        await worker.predict(classifier, EXAMPLES)
        await worker.predict(writer, EXAMPLES[:2])

    worker = Worker({}, ServeSettings(), count_tokens=count)
    worker.start()
    asyncio.run(ask(worker))
    worker.stop()
    read = sum(len(each.token_ids) for each in classifier.predictor.encode(EXAMPLES))
    asked = [len(each.token_ids) for each in writer.predictor.encode(EXAMPLES[:2])]
    assert counted["chatter"] == [{"num_prompt": 3, "num_completion": 6, "num_reused": 0}]
    assert counted["run"] == [{"num_prompt": read, "num_completion": 0}]
    assert sorted(each["num_prompt"] for each in counted["writer"]) == sorted(asked)
    assert all(each["num_completion"] > 0 for each in counted["writer"])

"""What requests ask of the models: written answers token by token, predictions in small batches, and other work between.

All of it is done in one thread, bounded in number and time; who stops listening is forgotten at once.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from lushan.inference.draft import TokenEvent
from lushan.inference.generate import Generated
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.inference.predict import Predictor, Prompted, weighed, written_from
from lushan.records import Example, Prediction
from lushan.serving.backends import BackendName
from lushan.serving.compute_thread import ComputeThread
from lushan.serving.errors import DeadlineError, ServerBusyError
from lushan.serving.hosted import HostedModel
from lushan.serving.micro_batches import Asked
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.streams import Mailbox, Writing

ResultT = TypeVar("ResultT")

PROMPTS_AT_ONCE = 8
"""Of one request, so that it leaves rows to others."""
WEIGHED_AT_ONCE = 16
"""Examples of which one step asks how likely it is that there is no answer, so that others hardly wait."""


class Worker:
    """Everything that computes with the models goes through it; for one event loop."""

    def __init__(
        self,
        models: Mapping[str, HostedModel],
        settings: ServeSettings,
        backend: BackendName = "lushan",
    ) -> None:
        """Make a worker that does not work yet.

        Args:
            models: By name; may be filled later.
            settings: What bounds it.
            backend: What writes answers.
        """
        self._models = models
        self._settings = settings
        self.backend: BackendName = backend
        self._thread = ComputeThread(settings, backend)
        self._numbers = itertools.count()
        self._open: dict[int, Callable[[], bool]] = {}
        """Every request that is not answered yet, and whether anything of it is computed."""

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step that runs; who still waits is told that the server stops."""
        self._thread.stop()

    def forget_replaced(self) -> None:
        """Free what is remembered for models that are not there any more."""
        hosted = list(self._models.values())
        self._thread.keep_only([each.writes_with[0] for each in hosted])

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return sum(not has_started() for has_started in self._open.values())

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return len(self._open) - self.num_waiting

    async def predict(self, model: HostedModel, examples: Sequence[Example]) -> list[Prediction]:
        """Answer examples, in order, together with those of other requests.

        Raises:
            UserError: If one cannot be asked.
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        predictor = model.predictor
        if predictor.writes:
            return await _predict_by_writing(self, model, examples)
        future: Future[list[Prediction]] = Future()
        asked = Asked(predictor, examples, future, model.layers)
        number = next(self._numbers)
        self._admit(number, lambda: asked.has_started)
        self._thread.predict(asked)
        return await self._result(number, future)

    async def run(self, function: Callable[[], ResultT], *, has_deadline: bool = True) -> ResultT:
        """Call a function in the thread that computes, between two steps, and give its result.

        Also what loads a model runs here, for models share layers that only one thread may use.

        Args:
            function: Nobody else is answered while it runs.
            has_deadline: Whether it may take no longer than a request.

        Raises:
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        future: Future[ResultT] = Future()
        number = next(self._numbers)
        self._admit(number, future.running)
        self._thread.call(function, future)
        return await self._result(number, future, has_deadline=has_deadline)

    async def prepare(self, model: HostedModel) -> None:
        """Make what writes for a model, however long it takes; nobody else is answered meanwhile.

        Raises:
            ModelError: If the model cannot write.
        """
        future: Future[None] = Future()
        self._thread.prepare(model, future)
        await asyncio.wrap_future(future)

    async def generate(
        self,
        model: HostedModel,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        constraint: Constraint | None = None,
        *,
        num_alternatives: int = 0,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Write answers to one prompt, and give each token as it comes.

        Closing the iterator frees the request's rows at once. `prompt_index` of the events means nothing.

        Raises:
            UserError: If the prompt, the settings or the constraint does not fit.
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        request = Writing(
            next(self._numbers),
            model,
            prompt_ids,
            settings,
            constraint,
            num_alternatives,
            Mailbox(),
        )
        self._admit(request.number, lambda: request.has_started)
        seconds = self._settings.deadline_seconds
        deadline = time.monotonic() + seconds
        self._thread.write(request)
        try:
            while (
                told := await _before(deadline, request.mailbox.get(), seconds=seconds)
            ) is not None:
                if isinstance(told, Exception):
                    raise told
                yield told
        finally:
            del self._open[request.number]
            self._thread.stop_writing(request.number)

    async def generate_all(
        self,
        model: HostedModel,
        prompted: Sequence[Prompted],
        *,
        num_alternatives: int = 0,
        has_deadline: bool = False,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Write answers to several prompts, as `generate` does, a few of them at a time; `prompt_index` tells which.

        With `has_deadline` all of them together may take no longer than one.
        """
        seconds = self._settings.deadline_seconds if has_deadline else math.inf
        deadline = time.monotonic() + seconds
        told: asyncio.Queue[TokenEvent | Exception | None] = asyncio.Queue()
        room = asyncio.Semaphore(PROMPTS_AT_ONCE)

        async def write(index: int, asked: Prompted) -> None:
            events = self.generate(model, *asked, num_alternatives=num_alternatives)
            try:
                async with room, aclosing(events):
                    async for event in events:
                        told.put_nowait(replace(event, prompt_index=index))
            except Exception as error:  # noqa: BLE001 - it is raised to the one who listens
                told.put_nowait(error)
            else:
                told.put_nowait(None)

        tasks = [asyncio.create_task(write(*each)) for each in enumerate(prompted)]
        num_open = len(tasks)
        try:
            while num_open:
                item = await _before(deadline, told.get(), seconds=seconds)
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self, number: int, has_started: Callable[[], bool]) -> None:
        """Count a request among the open ones, if there is room for it."""
        if self.num_waiting >= self._settings.max_waiting:
            raise ServerBusyError
        self._open[number] = has_started

    async def _result(
        self, number: int, future: "Future[ResultT]", *, has_deadline: bool = True
    ) -> ResultT:
        seconds = self._settings.deadline_seconds if has_deadline else math.inf
        deadline = time.monotonic() + seconds
        try:
            return await _before(deadline, asyncio.wrap_future(future), seconds=seconds)
        finally:
            del self._open[number]


async def _before(deadline: float, awaitable: Awaitable[ResultT], *, seconds: float) -> ResultT:
    # `asyncio.wait_for` of Python 3.11 forgets that it was cancelled where the result has just come.
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await awaitable
    except TimeoutError:
        raise DeadlineError(seconds) from None


async def _predict_by_writing(
    worker: Worker, model: HostedModel, examples: Sequence[Example]
) -> list[Prediction]:
    predictor = model.predictor
    features = await worker.run(partial(predictor.encode, examples))
    absences = await _absences(worker, predictor, examples)
    answers: list[dict[int, Generated]] = [{} for _ in features]
    events = worker.generate_all(model, predictor.prompted(features, examples))
    async with aclosing(events):
        async for event in events:
            place = event.prompt_index, event.answer_index
            answers[place[0]].setdefault(place[1], Generated(*place)).add(event)
    written = [written_from([found[n] for n in sorted(found)]) for found in answers]
    return predictor.decode(weighed(written, absences), features, examples)


async def _absences(
    worker: Worker, predictor: Predictor, examples: Sequence[Example]
) -> list[float | None]:
    if predictor.state.no_answer_threshold is None:
        return [None] * len(examples)
    found: list[float | None] = []
    for start in range(0, len(examples), WEIGHED_AT_ONCE):
        part = examples[start : start + WEIGHED_AT_ONCE]
        found += await worker.run(partial(predictor.absences, part))
    return found

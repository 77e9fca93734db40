"""What requests ask of the models: written answers token by token, predictions in small batches, and other work between.

All of it is done in one thread, bounded in number and time; who stops listening is forgotten at once.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import TypeVar

from lushan.inference.draft import TokenEvent
from lushan.inference.generate import Generated
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.inference.predict import Predictor, Prompted, written_from
from lushan.records import Example, Prediction, Written
from lushan.serving.compute_thread import ComputeThread
from lushan.serving.errors import DeadlineError, ServerBusyError, UnknownModelError
from lushan.serving.hosted import HostedModel
from lushan.serving.micro_batches import Asked
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.streams import Mailbox, Writing

ResultT = TypeVar("ResultT")

ROWS_WRITTEN_AT_ONCE = 8
"""Of one request for predictions of a model that writes, so that it leaves rows to others."""


class Worker:
    """Everything that computes with the models goes through it; for one event loop."""

    def __init__(self, models: Mapping[str, HostedModel], settings: ServeSettings) -> None:
        """Make a worker that does not work yet.

        Args:
            models: By name; may be filled later.
            settings: What bounds it.
        """
        self._models = models
        self._settings = settings
        self._thread = ComputeThread(max_rows=settings.max_rows)
        self._numbers = itertools.count()
        self._open: dict[int, Callable[[], bool]] = {}
        """Every request that is not answered yet, and whether anything of it is computed."""

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step that runs; who still waits is told that the server stops."""
        self._thread.stop()

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return sum(not has_started() for has_started in self._open.values())

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return len(self._open) - self.num_waiting

    async def predict(self, model_name: str, examples: Sequence[Example]) -> list[Prediction]:
        """Answer examples, in order, together with those of other requests.

        Raises:
            UserError: If one cannot be asked.
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        predictor = self._predictor(model_name)
        if predictor.writes:
            return await self._predict_by_writing(model_name, predictor, examples)
        future: Future[list[Prediction]] = Future()
        asked = Asked(predictor, examples, future)
        number = self._admit(lambda: asked.has_started)
        self._thread.predict(asked)
        return await self._result(number, future)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Call a function in the thread that computes, between two steps, and give its result.

        Raises:
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        future: Future[ResultT] = Future()
        number = self._admit(future.running)
        self._thread.call(function, future)
        return await self._result(number, future)

    async def generate(
        self,
        model_name: str,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        constraint: Constraint | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Write answers to one prompt, and give each token as it comes.

        Closing the iterator frees the request's rows at once. `prompt_index` of the events means nothing.

        Raises:
            UserError: If the prompt, the settings or the constraint does not fit.
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        backbone = self._predictor(model_name).backbone
        number = self._admit(lambda: request.has_started)
        request = Writing(number, backbone, prompt_ids, settings, constraint, Mailbox())
        deadline = self._deadline()
        self._thread.write(request)
        try:
            while (told := await self._before(deadline, request.mailbox.get())) is not None:
                if isinstance(told, Exception):
                    raise told
                yield told
        finally:
            del self._open[number]
            self._thread.stop_writing(number)

    async def _predict_by_writing(
        self, model_name: str, predictor: Predictor, examples: Sequence[Example]
    ) -> list[Prediction]:
        features = await self.run(lambda: predictor.encode(examples))
        room = asyncio.Semaphore(ROWS_WRITTEN_AT_ONCE)

        async def write(prompted: Prompted) -> Written:
            answers: dict[int, Generated] = {}
            async with room, aclosing(self.generate(model_name, *prompted)) as events:
                async for event in events:
                    answer = answers.setdefault(
                        event.answer_index, Generated(0, event.answer_index)
                    )
                    answer.add(event)
            return written_from([answers[index] for index in sorted(answers)])

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(write(each))
                    for each in predictor.prompted(features, examples)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return predictor.decode([each.result() for each in tasks], features, examples)

    def _admit(self, has_started: Callable[[], bool]) -> int:
        """Give a request its number, if there is room for it."""
        if self.num_waiting >= self._settings.max_waiting:
            raise ServerBusyError
        number = next(self._numbers)
        self._open[number] = has_started
        return number

    async def _result(self, number: int, future: "Future[ResultT]") -> ResultT:
        try:
            return await self._before(self._deadline(), asyncio.wrap_future(future))
        finally:
            del self._open[number]

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.deadline_seconds

    async def _before(self, deadline: float, awaitable: Awaitable[ResultT]) -> ResultT:
        try:
            return await asyncio.wait_for(awaitable, deadline - time.monotonic())
        except TimeoutError:
            raise DeadlineError(self._settings.deadline_seconds) from None

    def _predictor(self, model_name: str) -> Predictor:
        if model_name not in self._models:
            raise UnknownModelError(model_name, list(self._models))
        return self._models[model_name].predictor

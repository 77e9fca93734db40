"""What requests ask of the models: written answers token by token, predictions in small batches, and other work between.

All of it is done in one thread, bounded in number and time; who stops listening is forgotten at once.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from lushan.inference.draft import TokenEvent
from lushan.inference.generate import Generated
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.inference.predict import Predictor, Prompted, weighed, written_from
from lushan.records import Example, Prediction
from lushan.serving.admission import Admissions, Admitted
from lushan.serving.backends import LATER_SHARE, BackendName, Room
from lushan.serving.compute_thread import ComputeThread
from lushan.serving.errors import DeadlineError
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
        *,
        count_tokens: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        """Make a worker that does not work yet.

        Args:
            models: By name; may be filled later.
            settings: What bounds it.
            backend: What writes answers.
            count_tokens: Hears how many tokens were read and written, as `Metrics.count_tokens` does.
        """
        self._models = models
        self._settings = settings
        self.backend: BackendName = backend
        self._count_tokens = count_tokens
        self._thread = ComputeThread(settings, backend)
        self._numbers = itertools.count()
        self._admissions = Admissions(settings.max_waiting)

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
        return self._admissions.num_waiting

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return self._admissions.num_running

    def admit(self) -> AbstractContextManager[Admitted]:
        """Let in a request that asks several times, each time `within` what this gives; it is then not refused half-way.

        Raises:
            ServerBusyError: If too many requests wait.
        """
        return self._admissions.admit()

    async def predict(
        self,
        model: HostedModel,
        examples: Sequence[Example],
        *,
        within: Admitted | None = None,
    ) -> list[Prediction]:
        """Answer examples, in order, together with those of other requests.

        Args:
            model: Who is asked.
            examples: What is asked.
            within: The request that they are a part of; None where they are all of it.

        Raises:
            UserError: If one cannot be asked.
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        with self._admissions.admit(within) as request:
            if model.predictor.writes:
                return await _predict_by_writing(self, model, examples, within=request)
            future: Future[list[Prediction]] = Future()
            asked = Asked(model.predictor, examples, future, model.layers)
            with request.part(lambda: asked.has_started):
                self._thread.predict(asked)
                found = await self._result(future)

        def count_read() -> None:
            num_read = sum(len(each.token_ids) for each in model.predictor.encode(examples))
            self._count_tokens(model.name, num_prompt=num_read, num_completion=0)

        # Whoever asked does not wait for it.
        asyncio.get_running_loop().run_in_executor(None, count_read)
        return found

    async def run(
        self,
        function: Callable[[], ResultT],
        *,
        has_deadline: bool = True,
        within: Admitted | None = None,
    ) -> ResultT:
        """Call a function in the thread that computes, between two steps, and give its result.

        Also what loads a model runs here, for models share layers that only one thread may use.

        Args:
            function: Nobody else is answered while it runs.
            has_deadline: Whether it may take no longer than a request.
            within: The request that it is a part of; None where it is all of it.

        Raises:
            ServerBusyError: If too many requests wait.
            DeadlineError: If it takes too long.
        """
        future: Future[ResultT] = Future()
        with self._admissions.admit(within) as request, request.part(future.running):
            self._thread.call(function, future)
            return await self._result(future, has_deadline=has_deadline)

    async def prepare(self, model: HostedModel, *, share: float = LATER_SHARE) -> Room:
        """Make what writes for a model, however long it takes; nobody else is answered meanwhile.

        Args:
            model: Who will be asked.
            share: Of the memory that is free, the most that it may remember, where the settings do not say how much.

        Returns:
            How much it may remember.

        Raises:
            ModelError: If the model cannot write.
        """
        future: Future[Room] = Future()
        self._thread.prepare(model, future, share=share)
        return await asyncio.wrap_future(future)

    async def generate(
        self,
        model: HostedModel,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        constraint: Constraint | None = None,
        *,
        num_alternatives: int = 0,
        within: Admitted | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Write answers to one prompt, and give each token as it comes.

        Closing the iterator frees the request's rows at once. `prompt_index` of the events means nothing.

        Raises:
            UserError: If the prompt, the settings or the constraint does not fit.
            ServerBusyError: If too many requests wait, unless this is `within` one that is in.
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
        seconds = self._settings.deadline_seconds
        deadline = time.monotonic() + seconds
        num_written = num_reused = 0

        def finish() -> None:
            self._thread.stop_writing(request.number)
            if num_written:
                self._count_tokens(
                    model.name,
                    num_prompt=len(prompt_ids),
                    num_completion=num_written,
                    num_reused=num_reused,
                )

        with ExitStack() as stack:
            admitted = stack.enter_context(self._admissions.admit(within))
            stack.enter_context(admitted.part(lambda: request.has_started))
            self._thread.write(request)
            stack.callback(finish)
            while (
                told := await _before(deadline, request.mailbox.get(), seconds=seconds)
            ) is not None:
                if isinstance(told, Exception):
                    raise told
                num_written, num_reused = num_written + 1, told.num_reused_tokens
                yield told

    async def generate_all(
        self,
        model: HostedModel,
        prompted: Sequence[Prompted],
        *,
        num_alternatives: int = 0,
        has_deadline: bool = False,
        within: Admitted | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Write answers to several prompts, as `generate` does, a few of them at a time; `prompt_index` tells which.

        With `has_deadline` all of them together may take no longer than one.
        """
        seconds = self._settings.deadline_seconds if has_deadline else math.inf
        deadline = time.monotonic() + seconds
        told: asyncio.Queue[TokenEvent | Exception | None] = asyncio.Queue()
        room = asyncio.Semaphore(PROMPTS_AT_ONCE)

        async def write(index: int, asked: Prompted, admitted: Admitted) -> None:
            events = self.generate(
                model, *asked, num_alternatives=num_alternatives, within=admitted
            )
            try:
                async with room, aclosing(events):
                    async for event in events:
                        told.put_nowait(replace(event, prompt_index=index))
            except Exception as error:  # noqa: BLE001 - it is raised to the one who listens
                told.put_nowait(error)
            else:
                told.put_nowait(None)

        async with AsyncExitStack() as stack:
            admitted = stack.enter_context(self._admissions.admit(within))
            tasks = [asyncio.create_task(write(*each, admitted)) for each in enumerate(prompted)]
            stack.push_async_callback(_end, tasks)
            num_open = len(tasks)
            while num_open:
                item = await _before(deadline, told.get(), seconds=seconds)
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield item

    async def _result(self, future: "Future[ResultT]", *, has_deadline: bool = True) -> ResultT:
        seconds = self._settings.deadline_seconds if has_deadline else math.inf
        deadline = time.monotonic() + seconds
        return await _before(deadline, asyncio.wrap_future(future), seconds=seconds)


async def _before(deadline: float, awaitable: Awaitable[ResultT], *, seconds: float) -> ResultT:
    # `asyncio.wait_for` of Python 3.11 forgets that it was cancelled where the result has just come.
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await awaitable
    except TimeoutError:
        raise DeadlineError(seconds) from None


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _predict_by_writing(
    worker: Worker, model: HostedModel, examples: Sequence[Example], *, within: Admitted
) -> list[Prediction]:
    predictor = model.predictor
    features = await worker.run(partial(predictor.encode, examples), within=within)
    absences = await _absences(worker, predictor, examples, within=within)
    answers: list[dict[int, Generated]] = [{} for _ in features]
    events = worker.generate_all(model, predictor.prompted(features, examples), within=within)
    async with aclosing(events):
        async for event in events:
            place = event.prompt_index, event.answer_index
            answers[place[0]].setdefault(place[1], Generated(*place)).add(event)
    written = [written_from([found[n] for n in sorted(found)]) for found in answers]
    return predictor.decode(weighed(written, absences), features, examples)


async def _absences(
    worker: Worker, predictor: Predictor, examples: Sequence[Example], *, within: Admitted
) -> list[float | None]:
    if predictor.state.no_answer_threshold is None:
        return [None] * len(examples)
    found: list[float | None] = []
    for start in range(0, len(examples), WEIGHED_AT_ONCE):
        part = examples[start : start + WEIGHED_AT_ONCE]
        found += await worker.run(partial(predictor.absences, part), within=within)
    return found

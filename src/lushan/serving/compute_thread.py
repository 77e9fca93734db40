"""The thread in which models compute: it takes commands, and between them moves on whatever is open, a little at a time."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from lushan.backbones.hardware import give_back_freed_memory
from lushan.backbones.load import Backbone
from lushan.serving.backends import BACKENDS, BackendName, Room
from lushan.serving.errors import ServerBusyError
from lushan.serving.hosted import HostedModel
from lushan.serving.micro_batches import Asked, MicroBatches
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.streams import Streams, Writing

logger = logging.getLogger("lushan.serving")
ResultT = TypeVar("ResultT")
STEPS_BETWEEN_TRIMS = 100
"""Texts of ever other lengths leave holes in freed memory; given back at every step, it would have to be zeroed anew."""
Command = Callable[[], None]


class ComputeThread:
    """One thread; its public methods may be called from any other."""

    def __init__(self, settings: ServeSettings, backend: BackendName = "lushan") -> None:
        self._streams = Streams(
            max_rows=settings.max_rows,
            max_tokens=settings.max_tokens,
            make_engine=BACKENDS[backend],
        )
        self._batches = MicroBatches()
        self._jobs: deque[Command] = deque()
        self._inbox: deque[Command] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._num_steps = 0
        self._thread = threading.Thread(target=self._work, name="lushan-compute", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step that runs; who still waits is told that the server stops."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def write(self, request: Writing) -> None:
        """Take a request for written answers."""
        self._send(partial(self._streams.add, request))

    def prepare(self, model: HostedModel, future: Future[Room], *, share: float) -> None:
        """Make what writes for a model, if it is not there; arguments are those of `Streams.prepare`."""
        self.call(partial(self._streams.prepare, model, share=share), future)

    def stop_writing(self, number: int) -> None:
        """Forget a request for written answers, if it is still open."""
        self._send(partial(self._streams.cancel, number))

    def keep_only(self, backbones: Collection[Backbone]) -> None:
        """Free what is remembered of all others."""
        self._send(partial(self._streams.keep_only, backbones))

    def predict(self, asked: Asked) -> None:
        """Take a request for predictions."""
        self._send(partial(self._batches.add, asked))

    def call(self, function: Callable[[], ResultT], future: "Future[ResultT]") -> None:
        """Call a function between two steps."""
        self._send(partial(self._jobs.append, partial(_finish, future, function)))

    def _send(self, command: Command) -> None:
        with self._changed:
            self._inbox.append(command)
            self._changed.notify()

    @property
    def _is_busy(self) -> bool:
        return bool(self._jobs) or self._streams.is_busy or self._batches.is_busy

    def _work(self) -> None:
        while not self._is_stopping:
            try:
                self._take_commands()
                self._streams.step()
                self._batches.step()
                self._num_steps += 1
                if self._num_steps % STEPS_BETWEEN_TRIMS == 0:
                    give_back_freed_memory()
                if self._jobs:
                    self._jobs.popleft()()
            except Exception as error:
                # Without this thread nobody would be answered again.
                logger.exception(
                    "A step failed that should not; whoever is being answered is told."
                )
                self._streams.close(error)
                self._batches.close(error)
        reason = ServerBusyError("The server is stopping.")
        for command in self._inbox:
            command()
        self._streams.close(reason)
        self._batches.close(reason)
        for job in self._jobs:
            job()

    def _take_commands(self) -> None:
        """Do what was asked since the last step; with nothing to do, wait for it."""
        with self._changed:
            while not (self._inbox or self._is_busy or self._is_stopping):
                self._changed.wait()
        while self._inbox:
            self._inbox.popleft()()


def _finish(future: "Future[ResultT]", function: Callable[[], ResultT]) -> None:
    """Call a function and give a future what it gives, or raises; nothing where nobody waits any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001 - it is told to the one who asked
        future.set_exception(error)

"""Predictions for several requests at once; lives in the worker's thread.

A long request gives way to others after every batch, so that a short one never waits for the whole of it.
"""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from lushan.inference.mixed import Question, SharedLayers, predict_together
from lushan.inference.predict import Predictor
from lushan.records import Example, Prediction

MOST_EXAMPLES = 16
MOST_CHARACTERS = 8_000
"""What is answered in one go: enough to fill a packed batch, few enough that answers that are being written hardly wait."""

logger = logging.getLogger("lushan.serving")


@dataclass(slots=True)
class Asked:
    """A request for predictions."""

    predictor: Predictor
    examples: Sequence[Example]
    future: Future[list[Prediction]]
    layers: SharedLayers | None = None
    """What the model shares with others, whose requests are answered in the same passes."""
    answers: list[Prediction] = field(default_factory=list[Prediction])
    """Of the first examples; the rest is still to be answered."""

    def question(self, examples: Sequence[Example]) -> Question:
        """Ask the model of this request."""
        return Question(self.predictor, self.layers, examples)

    @property
    def has_started(self) -> bool:
        """Whether any of it is answered."""
        return bool(self.answers)

    def next_examples(self, *, most: int, most_characters: int) -> Sequence[Example]:
        """Give the examples that are answered next, at least one."""
        start = end = len(self.answers)
        size = 0
        while end < len(self.examples) and end - start < most:
            size += len(self.examples[end].shown)
            if end > start and size > most_characters:
                break
            end += 1
        return self.examples[start:end]


Taken = tuple[Asked, Sequence[Example]]
"""A request, and those of its examples that are answered next."""


class MicroBatches:
    """Requests in the order in which they are served next."""

    def __init__(self) -> None:
        self._waiting: deque[Asked] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether any request is not answered yet."""
        return bool(self._waiting)

    def add(self, asked: Asked) -> None:
        """Take a request."""
        self._waiting.append(asked)

    def step(self) -> None:
        """Answer one batch of the models whose turn it is."""
        self._waiting = deque(each for each in self._waiting if not each.future.cancelled())
        if not self._waiting:
            return
        taken = self._take(self._waiting[0].question(()).holder)
        try:
            found = predict_together([asked.question(part) for asked, part in taken])
            for (asked, _), answers in zip(taken, found, strict=True):
                asked.answers += answers
        except Exception:  # noqa: BLE001 - what one request did must not become the answer to another
            self._answer_apart(taken)
        for asked, _ in taken:
            self._put_back(asked)

    def _take(self, holder: int) -> list[Taken]:
        """Take requests of one holder from the queue, as long as their next examples fit into one batch."""
        taken: list[Taken] = []
        left: deque[Asked] = deque()
        room, characters = MOST_EXAMPLES, MOST_CHARACTERS
        for asked in self._waiting:
            if asked.question(()).holder != holder or room <= 0 or characters <= 0:
                left.append(asked)
                continue
            part = asked.next_examples(most=room, most_characters=characters)
            room -= len(part)
            characters -= sum(len(example.shown) for example in part)
            taken.append((asked, part))
        self._waiting = left
        return taken

    def _answer_apart(self, taken: Sequence[Taken]) -> None:
        """Answer each request by itself after a batch failed, so that only the faulty one fails."""
        for asked, part in taken:
            try:
                asked.answers += asked.predictor.predict(part)
            except Exception as error:  # noqa: BLE001 - it is told to the one who asked
                if asked.future.set_running_or_notify_cancel():
                    asked.future.set_exception(error)

    def _put_back(self, asked: Asked) -> None:
        if asked.future.done():
            return
        if len(asked.answers) < len(asked.examples):
            self._waiting.append(asked)
        elif asked.future.set_running_or_notify_cancel():
            asked.future.set_result(asked.answers)

    def close(self, reason: Exception) -> None:
        """Tell every request that it will not be answered."""
        for asked in self._waiting:
            if asked.future.set_running_or_notify_cancel():
                asked.future.set_exception(reason)
        self._waiting.clear()

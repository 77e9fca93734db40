"""Writes the corrections of a store as rows that `lushan tune` reads."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lushan.catalog import load_task
from lushan.errors import DataError
from lushan.feedback.store import FeedbackStore
from lushan.feedback.training_rows import training_rows


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what not."""

    task: str
    num_rows: int
    num_replaced: int
    """Corrections that a later one of the same input replaces."""
    num_only_rated: int
    """Feedback without a correction: nobody said what is right."""


def export_rows(
    store: FeedbackStore,
    *,
    write: Callable[[Iterable[str]], None],
    task: str | None = None,
    model: str | None = None,
) -> Exported:
    """Write one JSON line for each corrected input, in bounded memory; what comes meanwhile is left for the next time.

    Args:
        store: Where the feedback is.
        write: Takes the lines, each with its line end, while they are made.
        task: The task of the corrections; None takes the only one there is.
        model: Only feedback about this model; None takes all.

    Raises:
        DataError: If nothing is corrected, or in several tasks and none is chosen; nothing is written then.
        SettingError: If there is no such task.
        StoreError: If the store cannot be read.
    """
    until = store.last_number()
    tallies = store.tally(model=model, until=until)
    corrected = [name for name, tally in tallies.items() if tally.num_corrected]
    if task is None and len(corrected) > 1:
        raise DataError(
            f"There are corrections of several tasks: {', '.join(corrected)}. Choose one with `--task`."
        )
    task = task or next(iter(corrected), None)
    about = "" if model is None else f" about `{model}`"
    if task not in corrected:
        kind = "" if task is None else f" of the task `{task}`"
        raise DataError(
            f"There is no feedback{about} with a correction{kind}. With corrections: {', '.join(corrected) or 'nothing'}."
        )
    columns = load_task(task).columns
    num_rows = 0

    def lines() -> Iterator[str]:
        nonlocal num_rows
        found = store.corrected(task=task, model=model, until=until)
        for row in training_rows(found, columns):
            num_rows += 1
            yield json.dumps(row, ensure_ascii=False) + "\n"

    write(lines())
    tally = tallies[task]
    return Exported(
        task,
        num_rows,
        num_replaced=tally.num_corrected - num_rows,
        num_only_rated=tally.num_rows - tally.num_corrected,
    )

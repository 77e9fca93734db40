"""The table of feedback: add, read as pages or as a stream, find the corrections that count, tally."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session, aliased

from lushan.database.connect import Database
from lushan.database.schema import FeedbackRow
from lushan.errors import ConflictError, DataError
from lushan.feedback.given import Feedback, FeedbackContent, GivenFeedback
from lushan.records import content_id

PAGE_ROWS = 500
"""Rows read together by a stream: its memory, and how long it keeps the store from tidying its log."""
CONTENT = tuple(FeedbackContent.model_fields)


class Added(NamedTuple):
    """What became of feedback that came in."""

    feedback: Feedback
    is_new: bool
    """False where the same feedback was there already under its id."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How much feedback there is."""

    num_rows: int
    num_good: int
    num_bad: int
    num_corrected: int
    """Rows with a correction, also those that a later one replaces."""


class FeedbackStore:
    """The feedback in a store, in the order in which it came."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, given: GivenFeedback, *, task: str, version: str = "") -> Added:
        """Store feedback; when this returns, it survives whatever happens to the process.

        Args:
            given: What came in. With an `id`, sending it again changes nothing.
            task: What the model does.
            version: Of the model that answers now: kept where `given` names none.

        Raises:
            ConflictError: If its `id` stands for other feedback.
            StoreError: If the store cannot be written.
        """
        content = {**{name: getattr(given, name) for name in CONTENT}, "task": task}
        with self._database.writing() as session:
            known = _find(session, given.id) if given.id is not None else None
            if known is not None:
                _check_equal(known, content)
                return Added(_feedback(known), is_new=False)
            row = FeedbackRow(
                **{**content, "model_version": given.model_version or version},
                id=given.id or uuid.uuid4().hex,
                input_digest=_digest(given.input),
                created_at=datetime.now(UTC),
            )
            session.add(row)
            session.flush()
            added = _feedback(row)
        return Added(added, is_new=True)

    def page(
        self, *, after: str | None = None, model: str | None = None, limit: int = PAGE_ROWS
    ) -> list[Feedback]:
        """Give at most `limit` rows, the oldest first, that came after the one with the id `after`.

        Raises:
            DataError: If there is no feedback with that id.
            StoreError: If the store cannot be read.
        """
        with self._database.reading() as session:
            number = 0
            if after is not None:
                if (row := _find(session, after)) is None:
                    raise DataError(f"There is no feedback with the id `{after}`.")
                number = row.number
            rows = _rows_after(session, number, where=_of(model=model), limit=limit)
            return [_feedback(row) for row in rows]

    def stream(self, *, model: str | None = None) -> Iterator[Feedback]:
        """Give all rows, the oldest first, in bounded memory.

        Raises:
            StoreError: If the store cannot be read.
        """
        yield from self._stream(_of(model=model))

    def last_number(self) -> int:
        """Give the number of the row that came last, 0 where there is none; what comes later has a higher one.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._database.reading() as session:
            return session.scalar(select(func.max(FeedbackRow.number))) or 0

    def corrected(
        self, *, task: str, model: str | None = None, until: int | None = None
    ) -> Iterator[Feedback]:
        """Give the rows with a correction; of several for one input, the last. In bounded memory.

        Args:
            task: What was asked.
            model: Only feedback about this model; None takes all.
            until: As if nothing had come behind the row of this number; None takes the last that is there now.

        Raises:
            StoreError: If the store cannot be read.
        """
        until = self.last_number() if until is None else until
        later = aliased(FeedbackRow)
        replaced = exists().where(
            later.input_digest == FeedbackRow.input_digest,
            later.number > FeedbackRow.number,
            later.number <= until,
            later.correction.is_not(None),
            later.task == task,
            *((later.model == model,) if model is not None else ()),
        )
        yield from self._stream([
            *_of(model=model, until=until),
            FeedbackRow.task == task,
            FeedbackRow.correction.is_not(None),
            ~replaced,
        ])

    def tally(self, *, model: str | None = None, until: int | None = None) -> dict[str, Tally]:
        """Count the feedback of each task; with `until`, as if nothing had come behind the row of this number.

        Raises:
            StoreError: If the store cannot be read.
        """
        counted = select(
            FeedbackRow.task,
            func.count(),
            func.count().filter(FeedbackRow.rating == "good"),
            func.count().filter(FeedbackRow.rating == "bad"),
            func.count().filter(FeedbackRow.correction.is_not(None)),
        )
        grouped = counted.where(*_of(model=model, until=until)).group_by(FeedbackRow.task)
        with self._database.reading() as session:
            return {task: Tally(*counts) for task, *counts in session.execute(grouped)}

    def _stream(self, where: list[ColumnElement[bool]]) -> Iterator[Feedback]:
        number = 0
        while True:
            with self._database.reading() as session:
                rows = _rows_after(session, number, where=where, limit=PAGE_ROWS)
            yield from map(_feedback, rows)
            if len(rows) < PAGE_ROWS:
                return
            number = rows[-1].number


def _of(*, model: str | None, until: int | None = None) -> list[ColumnElement[bool]]:
    of_model = [] if model is None else [FeedbackRow.model == model]
    return of_model if until is None else [*of_model, FeedbackRow.number <= until]


def _find(session: Session, id_: str) -> FeedbackRow | None:
    return session.scalar(select(FeedbackRow).where(FeedbackRow.id == id_))


def _rows_after(
    session: Session, number: int, *, where: list[ColumnElement[bool]], limit: int
) -> list[FeedbackRow]:
    wanted = select(FeedbackRow).where(FeedbackRow.number > number, *where)
    return list(session.scalars(wanted.order_by(FeedbackRow.number).limit(limit)))


def _digest(asked: str | dict[str, Any]) -> str:
    """Tell inputs apart; a row with one column is the same as what stands there."""
    values = [asked] if isinstance(asked, str) else list(asked.values())
    return content_id(values[0] if len(values) == 1 else asked)


def _check_equal(known: FeedbackRow, content: dict[str, Any]) -> None:
    other = [
        name
        for name, value in content.items()
        # A version that was not named is that of whoever answered then.
        if getattr(known, name) != value and (value or name != "model_version")
    ]
    if other:
        raise ConflictError(
            f"The id `{known.id}` stands for other feedback already: its `{other[0]}` is not the same. Give new feedback "
            "an id of its own, or none."
        )


def _feedback(row: FeedbackRow) -> Feedback:
    names = (*CONTENT, "id", "task", "created_at")
    return Feedback(**{name: getattr(row, name) for name in names})

"""From corrections to training rows: the input of the model with the right answer in the column of the truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lushan.data.columns import Columns, form_of
from lushan.errors import DataError
from lushan.feedback.given import Feedback, FeedbackContent
from lushan.records import Row

if TYPE_CHECKING:
    from lushan.tasks import Task

RowValues = dict[str, Any]


def check_against_task(given: FeedbackContent, task: Task, *, multi_label: bool | None) -> None:
    """Check that a task can read the input, and the correction as its truth.

    Args:
        given: What came in.
        task: The task of the model.
        multi_label: Whether its texts have lists of labels; None where that is not known.

    Raises:
        DataError: If not; names the column.
    """
    row = training_row(given, task.columns)
    if multi_label is None:
        multi_label = isinstance(given.correction, list)
    task.read(
        Row(row, "feedback", 1),
        multi_label=multi_label and bool(task.columns.lists),
        needs_target=given.correction is not None,
    )


def training_rows(corrected: Iterable[Feedback], columns: Columns) -> Iterator[RowValues]:
    """Give one row for each correction, in order, all in one form of the task's rows.

    Raises:
        DataError: If some inputs have another form than the first, for a file has one form.
    """
    first: Feedback | None = None
    for each in corrected:
        first = first or each
        if _form(each, columns) != _form(first, columns):
            raise DataError(
                f"The corrections do not have one form: feedback `{first.id}` has the columns {_listed(first, columns)}, "
                f"`{each.id}` has {_listed(each, columns)}. A file of rows has one form; choose by `--model`."
            )
        yield training_row(each, columns)


def training_row(given: FeedbackContent, columns: Columns) -> RowValues:
    """Give the row that a correction makes; without a correction, the row that was asked about."""
    row = _input_row(given, columns)
    if given.correction is None:
        return row
    return {**row, truth_column(_form(given, columns)): given.correction}


def truth_column(form: Columns) -> str:
    """Name the column that holds the truth: the one that only a labelled row needs, else the one that holds it all."""
    labelled = [name for name in form.required if name not in form.asked.required]
    return labelled[0] if labelled else form.required[0]


def _form(given: FeedbackContent, columns: Columns) -> Columns:
    return form_of(list(_input_row(given, columns)), mapping={}, wanted=columns)


def _input_row(given: FeedbackContent, columns: Columns) -> RowValues:
    if isinstance(given.input, Mapping):
        return dict(given.input)
    return {columns.required[0]: given.input}


def _listed(given: FeedbackContent, columns: Columns) -> str:
    return ", ".join(f"`{name}`" for name in _input_row(given, columns))

"""From corrections to rows: in every form of every task, the row that its data would hold."""

from typing import Any

import pytest

from lushan.catalog import load_task, names_in
from lushan.data.columns import Columns
from lushan.errors import DataError
from lushan.feedback.given import Feedback
from lushan.feedback.training_rows import (
    check_against_task,
    training_row,
    training_rows,
    truth_column,
)
from tests.stores import given

TRUTHS = {
    "answering": ["answers"],
    "choice": ["answer", "label", "label"],
    "classification": ["label"],
    "code": ["reference"],
    "completion": ["completion", "text"],
    "dialogue": ["messages", "conversations", "output"],
    "relations": ["label"],
    "summarization": ["summary"],
    "tagging": ["entities", "tags"],
    "translation": ["target"],
    "triples": ["triples"],
}
"""Task to the column of the truth, in each form of its rows, as docs/data.md has them."""

TAGGING = Columns(required=("text", "entities"), others=(Columns(required=("tokens", "tags")),))


def stored(number: int, **values: Any) -> Feedback:  # noqa: ANN401 - fields of feedback
    content = given(**values).model_dump(exclude={"id"})
    times = {"created_at": "2026-05-01T00:00:00Z", "id": f"row-{number}", "task": "tagging"}
    return Feedback.model_validate({**content, **times}, strict=False)


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_column_of_the_truth_of_every_task(name: str) -> None:
    assert [truth_column(form) for form in load_task(name).columns.forms] == TRUTHS[name]


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_correction_of_every_task_makes_the_row_that_its_data_hold(name: str) -> None:
    task = load_task(name)
    row = dict(task.sample_rows()[0].values)
    truth = next(column for column in TRUTHS[name] if column in row)
    asked = {
        column: value for column, value in row.items() if column != truth or truth == "messages"
    }
    feedback = given(input=plain(asked), correction=plain(row[truth]))
    check_against_task(feedback, task, multi_label=None)
    assert training_row(feedback, task.columns) == plain(row)


def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def test_text_stands_for_the_first_column() -> None:
    row = training_row(given(input="Ada", correction=[[0, 3, "person"]]), TAGGING)
    assert row == {"text": "Ada", "entities": [[0, 3, "person"]]}


def test_correction_goes_into_the_form_of_the_input() -> None:
    row = training_row(given(input={"tokens": ["Ada"]}, correction=["B-person"]), TAGGING)
    assert row == {"tokens": ["Ada"], "tags": ["B-person"]}


def test_rows_of_two_forms_are_refused() -> None:
    rows = [
        stored(1, input="Ada", correction=[]),
        stored(2, input={"tokens": ["Ada"]}, correction=["O"]),
    ]
    message = "feedback `row-1` has the columns `text`, `row-2` has `tokens`"
    with pytest.raises(DataError, match=message):
        list(training_rows(rows, TAGGING))


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("tagging", {"correction": [[0, 99, "person"]]}, "entities"),
        ("tagging", {"correction": "person"}, "entities"),
        ("classification", {"input": {"txt": "A"}}, "column `text` must hold a text"),
        ("classification", {"correction": ["a", "b"], "multi_label": False}, "holds a list"),
        ("choice", {"input": "Predators eat", "correction": "lions"}, "choices"),
        ("translation", {"input": {"source": "Hello"}, "correction": 7}, "target"),
        ("classification", {"input": " ", "correction": None, "rating": "bad"}, "`text`"),
    ],
    ids=str,
)
def test_correction_that_the_task_could_not_learn_is_refused(
    task: str, values: dict[str, Any], message: str
) -> None:
    multi_label = values.pop("multi_label", None)
    with pytest.raises(DataError, match=message):
        check_against_task(given(**values), load_task(task), multi_label=multi_label)


def test_list_of_labels_is_read_where_a_text_may_have_several() -> None:
    feedback = given(correction=["funny", "short"])
    for multi_label in (True, None):
        check_against_task(feedback, load_task("classification"), multi_label=multi_label)

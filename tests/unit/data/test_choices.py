"""Questions with choices: the forms of a row, and the names that an answer may have."""

from typing import Any

import pytest

from lushan.errors import DataError
from lushan.records import Example, Row
from lushan.tasks.choice import Task

TASK = Task()
QUESTION = "The children ran home, so they"
CHOICES = ["ate soup", "were a brave little fox", "watched 10 films", "add"]


def read(**values: Any) -> Example:  # noqa: ANN401 - whatever a file holds
    row = {"question": QUESTION, "choices": CHOICES, "answer": 0, **values}
    return TASK.read(Row(row, "a.csv", 7))


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ({"answer": "were a brave little fox"}, 1),
        ({"answer": 2}, 2),
        ({"answer": " d "}, 3),
        ({"choices": {"text": CHOICES, "label": ["1", "2", "3", "4"]}, "answer": "4"}, 3),
        ({"choices": [{"text": x, "label": n} for n, x in zip("ABCD", CHOICES, strict=True)], "answer": "C"}, 2),
    ],
)  # fmt: skip
def test_answer_is_a_text_a_number_a_letter_or_a_name(values: dict[str, Any], target: int) -> None:
    assert read(**values).target == CHOICES[target]
    assert read(**values).id == read(answer=target).id


def test_rows_of_piqa_are_read() -> None:
    values = {"goal": "To cut bread", "sol1": "use a spoon", "sol2": "use a knife", "label": "1"}
    example = TASK.read(Row(values, "a", 1))
    assert (example.extra["question"], example.target) == ("To cut bread", "use a knife")
    with pytest.raises(DataError, match="a, row 1: column `sol2` must hold a text"):
        TASK.read(Row({**values, "sol2": None}, "a", 1))


def test_number_that_is_also_the_text_of_another_choice_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 7.*`1` could be several of the 3 choices"):
        read(choices=["1", "2", "3"], answer=1)
    with pytest.raises(DataError, match=r"`AB` is none of the 4 choices"):
        read(answer="AB")
    with pytest.raises(DataError, match="`relation` must be `cause` or `effect`, got 'why'"):
        read(relation="why")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relation": ["cause"]}, r"column `relation` must be .*, got \['cause'\]"),
        ({"relation": {"a": 1}}, r"column `relation` must be .*, got \{'a': 1\}"),
        (
            {"premise": "It rained.", "choice1": "a", "choice2": "b", "question": ["cause"], "label": 0},
            r"column `question` must hold a text, got \['cause'\]",
        ),
        (
            {"premise": "It rained.", "choice1": "a", "choice2": "b", "question": "why", "label": 0},
            "column `question` must be `cause` or `effect`, got 'why'",
        ),
        ({"choices": {"text": ["a", "b"], "label": 3}}, "`choices` has 2 texts, but 1 different labels"),
    ],
)  # fmt: skip
def test_value_of_another_kind_is_refused_by_row_and_column(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.csv, row 7: .*{message}"):
        read(**values)

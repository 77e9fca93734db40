"""Questions with choices, of any form of data: columns of their own, PIQA's, COPA's; and which choice is right.

Choices may have names, as those of ARC and OpenBookQA have. The right one is told by its name, its text, its number from
0, or its letter.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lushan.data.columns import unpacked
from lushan.errors import DataError
from lushan.records import Row

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RELATIONS = ("cause", "effect")


class Question(NamedTuple):
    """What a row asks."""

    text: str
    choices: list[str]
    relation: str | None
    """What the right choice is to the text: its `cause` or its `effect`; None where the text is a question."""
    answer: str | None
    """The right choice; None where nobody told."""


def read_question(row: Row, *, needs_answer: bool) -> Question:
    """Read the columns `question`, `choices`, `answer` and `relation`, or those of PIQA or COPA.

    Raises:
        DataError: If there is no question, or fewer than two choices, or two are the same, or the answer is none of them.
    """
    values = _in_one_form(row)
    text = values["question"]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{row.place}: column `question` must hold a text, got {text!r}.")
    choices, names = _read_choices(row, values["choices"])
    relation = values["relation"]
    if relation is not None and str(relation) not in _RELATIONS:
        name = "relation" if row.values.get("premise") is None else "question"
        raise DataError(
            f"{row.place}: column `{name}` must be `cause` or `effect`, got {relation!r}."
        )
    answer = values["answer"]
    if answer not in (None, ""):
        right = choices[_place_of(row, answer, choices, names)]
        return Question(text.strip(), choices, relation, right)
    if needs_answer:
        raise DataError(f"{row.place}: column `answer` is empty. Give every row an answer.")
    return Question(text.strip(), choices, relation, None)


def _in_one_form(row: Row) -> dict[str, Any]:
    """Give the values of any form as question, choices, answer, relation."""
    values = row.values
    for question, choices, relation in (
        ("goal", ("sol1", "sol2"), None),
        ("premise", ("choice1", "choice2"), "question"),
    ):
        if values.get(question) is None:
            continue
        for name in choices:
            if values.get(name) is None:
                raise DataError(f"{row.place}: column `{name}` must hold a text, got nothing.")
        if relation and not isinstance(values.get(relation), str | None):
            raise DataError(
                f"{row.place}: column `{relation}` must hold a text, got {values[relation]!r}."
            )
        return {
            "question": values[question],
            "choices": [values[name] for name in choices],
            "answer": values.get("label"),
            "relation": None if relation is None else values.get(relation),
        }
    return {name: values.get(name) for name in ("question", "choices", "answer", "relation")}


def _read_choices(row: Row, value: object) -> tuple[list[str], list[str]]:
    """Give the texts of the choices, and their names where the row names them, as ARC and OpenBookQA do."""
    names: list[Any] = []
    value = unpacked(value)
    if isinstance(value, Mapping) and "text" in value:
        value, given = value["text"], value.get("label") or ()
        names = list(given) if isinstance(given, list | tuple) else [given]
    found: list[Any] = list(value) if isinstance(value, list | tuple) else []
    if found and all(isinstance(each, Mapping) and "text" in each for each in found):
        names = [each["label"] for each in found if "label" in each]
        found = [each["text"] for each in found]
    choices = [each.strip() for each in found if isinstance(each, str)]
    if len(found) < 2 or len(choices) < len(found) or not all(choices):
        raise DataError(
            f"{row.place}: column `choices` must hold a list of at least two texts, got {value!r}."
        )
    if repeated := [each for place, each in enumerate(choices) if each in choices[:place]]:
        raise DataError(
            f"{row.place}: column `choices` has {repeated[0]!r} twice, so that no answer could be told from the "
            "other. Take one out."
        )
    if names and len(set(map(str, names))) != len(choices):
        raise DataError(
            f"{row.place}: column `choices` has {len(choices)} texts, but {len(set(map(str, names)))} different labels."
        )
    return choices, [str(each).strip() for each in names]


def _place_of(row: Row, answer: object, choices: list[str], names: list[str]) -> int:
    """Find the answer by its name, its text, its number from 0, or its letter."""
    given = str(answer).strip()
    if given in names:
        return names.index(given)
    found = {place for place, choice in enumerate(choices) if choice == given}
    if given.isdecimal() and int(given) < len(choices):
        found.add(int(given))
    if len(given) == 1 and given.upper() in _LETTERS[: len(choices)]:
        found.add(_LETTERS.index(given.upper()))
    if len(found) == 1:
        return found.pop()
    what = f"could be several of the {len(choices)}" if found else f"is none of the {len(choices)}"
    raise DataError(
        f"{row.place}: column `answer`: `{given}` {what} choices. Give its text, its number from 0, or its letter, "
        "so that only one is meant."
    )

"""Feedback as it comes in: what is stored, and what is refused with its value."""

import pytest

from lushan.errors import DataError
from lushan.feedback.given import GivenFeedback, check_given

USUAL = {"model": "reviews", "input": "A film to see twice.", "rating": "good"}


@pytest.mark.parametrize(
    "values",
    [
        {"rating": "bad"},
        {"rating": None, "correction": "positive"},
        {"rating": None, "correction": []},
        {"input": {"question": "Who?", "choices": ["he", "she"]}, "prediction": {"label": 1}},
        {"comment": "Wei \N{GREEK SMALL LETTER ALPHA}", "id": "form-7", "request_id": "r1"},
    ],
    ids=str,
)
def test_feedback_that_says_something_is_taken_as_it_is(values: dict[str, object]) -> None:
    given = check_given({**USUAL, **values})
    assert {name: getattr(given, name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rating": None}, r"needs a `rating` \(`good` or `bad`\), a `correction`, or both\."),
        ({"rating": "fine"}, r"`rating` is wrong: Input should be 'good' or 'bad'\. Got 'fine'\."),
        ({"inptu": "x"}, r"`inptu` is wrong: Extra inputs are not permitted\. Got 'x'\."),
        ({"input": 3}, r"`input` is wrong: .*\. Got 3\."),
        ({"model": ""}, r"`model` is wrong: String should have at least 1 character\. Got ''\."),
        ({"id": "x" * 201}, r"`id` is wrong: String should have at most 200 .*\. Got 'xxx.*\.\.\."),
        ({"comment": "x" * 10_001}, r"`comment` is wrong: String should have at most 10000"),
        ({"correction": float("nan")}, r"`correction` is wrong: .*finite number\. Got nan\."),
        ({"correction": "half \ud800"}, r"it has half a character \(a lone surrogate\)\."),
        ({"input": {"\ud800": 1}}, r"it has half a character \(a lone surrogate\)\."),
        ({"comment": "\ud800"}, r"`comment` is wrong: Input should be a valid string"),
    ],
    ids=lambda value: str(value).encode("ascii", "replace").decode()[:40],
)
def test_wrong_feedback_is_refused_with_its_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"^Feedback cannot be stored: .*{message}"):
        check_given({**USUAL, **values})


def test_missing_input_is_named() -> None:
    with pytest.raises(DataError, match="`input` is wrong: Field required"):
        check_given({"model": "reviews", "rating": "good"})


def test_deeply_nested_values_are_refused() -> None:
    value: object = 1
    for _ in range(2000):
        value = [value]
    with pytest.raises(DataError, match="`correction` is wrong"):
        check_given({**USUAL, "correction": value})


def test_every_field_is_explained_for_the_api_document() -> None:
    properties = GivenFeedback.model_json_schema()["properties"]
    assert [name for name, field in properties.items() if not field.get("description")] == []

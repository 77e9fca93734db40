"""SQuAD's nested files and both forms of answers are read; what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from lushan.data.columns import Notes
from lushan.data.formats import read_records
from lushan.data.squad import flat_rows, is_squad, read_answers
from lushan.errors import DataError
from lushan.records import Row, Span

QUESTIONS: list[dict[str, Any]] = [
    {"id": "a", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
    {"id": "b", "question": "Why?", "is_impossible": True, "plausible_answers": [], "answers": []},
]
ARTICLE: dict[str, Any] = {"title": "T", "paragraphs": [{"context": "Ada left.", "qas": QUESTIONS}]}
CONTENT: dict[str, Any] = {"version": "v2.0", "data": [ARTICLE, ARTICLE]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("names", [("version", "data"), ("data", "version")])
def test_nested_file_gives_a_row_per_question(
    names: tuple[str, ...], indent: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps({name: CONTENT[name] for name in names}, indent=indent))
    notes = Notes(file.name)
    records = list(read_records(file, notes))
    assert [each.number for each in records] == [1, 2, 3, 4]
    assert [each.values["question"] for each in records] == ["Who?", "Why?"] * 2
    assert {each.values["context"] for each in records} == {"Ada left."}
    assert [each.values["answers"] for each in records[:2]] == [QUESTIONS[0]["answers"], []]
    assert notes.lines() == [
        "train.json: it has the nested form of SQuAD; its rows are its questions, counted from 1."
    ]


def test_lines_of_objects_with_data_are_still_lines(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text('{"data": "a", "label": "x"}\n{"data": "b", "label": "y"}\n')
    assert [each.values["data"] for each in read_records(file, Notes(""))] == ["a", "b"]
    assert not is_squad({"data": []})
    assert is_squad(CONTENT)


def test_broken_nesting_is_named() -> None:
    broken = {"data": [{"paragraphs": [{"context": "a", "qas": ["Who?"]}]}]}
    with pytest.raises(DataError, match="article 1, paragraph 1, question 1: expected an object"):
        list(flat_rows(broken, source="a.json"))


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["left"], "answer_start": [4]},
        [{"text": "left", "answer_start": 4}],
        '[{"text": "left", "answer_start": 4}]',
    ],
)
def test_every_form_of_answers_gives_the_same_spans(answers: object) -> None:
    (span,) = read_answers(Row({"answers": answers}, "a", 1), "Ada left.")
    assert isinstance(span, Span)
    assert (span, span.text) == (Span(4, 8, "answer"), "left")


@pytest.mark.parametrize(
    "answers",
    [
        ["six o'clock ", "at 6"],
        {"text": ["six o'clock", "at 6"]},
        {"text": ["six o'clock", "at 6"], "answer_start": None},
        [{"text": "six o'clock"}, {"text": "at 6", "answer_start": None}],
        '["six o\'clock", "at 6"]',
    ],
)
def test_answers_without_a_place_are_texts_of_their_own(answers: object) -> None:
    assert read_answers(Row({"answers": answers}, "a", 1), "Ada left.") == ["six o'clock", "at 6"]


@pytest.mark.parametrize("answers", [[], "[]", {"text": [], "answer_start": []}])
def test_empty_answers_are_none(answers: object) -> None:
    assert read_answers(Row({"answers": answers}, "a", 1), "Ada left.") == []


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [{"text": "left", "answer_start": 3}],
            "'left' is not at character 3 .* ' lef'. It first .* 4",
        ),
        ([{"text": "Left", "answer_start": 4}], "stands nowhere in it"),
        (
            [{"text": "left", "answer_start": True}],
            "must be a number of characters from 0, got True",
        ),
        ([{"text": " ", "answer_start": 3}], "answer 1: expected a text, got ' '"),
        ({"text": ["a"], "answer_start": []}, r"has 1 text\(s\), but 0 `answer_start`"),
        (
            [{"text": "left", "answer_start": 4}, {"text": "away"}],
            "answer 2: `answer_start` must be a number of characters from 0, got None",
        ),
        (["left", " "], "answer 2: expected a text, got ' '"),
        (["No answer"], "answer 1: 'No answer' is what a model writes where there is none"),
        (["left", 3], r"or a list of texts"),
        ("left", r"must hold \{\"text\""),
        ({"text": "left"}, r"must hold \{\"text\""),
    ],
)
def test_answer_that_does_not_fit_is_refused_by_its_place(answers: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"b\.csv, row 7: column `answers`.*{message}"):
        read_answers(Row({"answers": answers}, "b.csv", 7), "Ada left.")

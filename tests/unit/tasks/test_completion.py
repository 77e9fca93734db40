"""Completion: how control fields are read and told, and that a form is kept."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.errors import DataError
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import Example, Row, TaskState
from lushan.tasks.completion import Task
from tests.conftest import MakeTiny

TASK = Task()
STATE = TaskState()


def read(*, needs_target: bool = True, **values: Any) -> Example:  # noqa: ANN401
    return TASK.read(Row(values, "a.csv", 7), needs_target=needs_target)


def prompt(example: Example, *, with_target: bool = False) -> str:
    (found,) = TASK.render(example, STATE, answer="generate", with_target=with_target)
    return found.text


def test_control_fields_stand_one_a_line_before_the_text() -> None:
    example = read(
        text="A fox ran.", topic="animals", tone="calm", length="3.0", keywords="fox, ran"
    )
    expected = "Topic: animals\nTone: calm\nLength: 3 words\nKeywords: fox, ran\nText:"
    assert prompt(example) == expected
    assert prompt(example, with_target=True) == f"{expected} A fox ran."
    assert prompt(read(prompt="A fox", completion="ran.")) == "Text: A fox"
    assert prompt(read(text="A fox", needs_target=False)) == "Text: A fox"


def test_form_is_not_told_but_held() -> None:
    example = read(prompt="A", completion="b", must=["b"], regex="b+", keywords=[])
    assert prompt(example) == "Text: A"
    assert example.extra["form"] == {"regex": "b+", "must": ["b"]}


def test_texts_of_the_same_topic_are_not_the_same_text() -> None:
    one, other = read(text="A fox.", topic="animals"), read(text="A dog.", topic="animals")
    assert one.text != other.text
    assert one.id != other.id


@pytest.mark.parametrize(
    "given",
    [
        ["fox", "old town"],
        '["fox", "old town"]',
        "fox, old town",
        "fox\uff0cold town",
        "fox\u3001old town",
    ],
)
def test_words_are_a_list_or_its_json_or_have_commas_between_them(given: object) -> None:
    assert read(text="A fox.", keywords=given).extra["keywords"] == ["fox", "old town"]
    assert read(text="A fox.", must=given).extra["form"] == {"must": ["fox", "old town"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": "long"}, "column `length` must hold a number of words"),
        ({"length": 0}, "column `length`"),
        ({"keywords": ["a", 3]}, "column `keywords` must hold a list of words"),
        ({"topic": "a\nText: b"}, "column `topic` must hold a text of one line"),
        ({"regex": "("}, "column `regex` holds no regular expression"),
        ({"regex": "a{9999999999}"}, "column `regex` holds no .*: the repetition number is too"),
        ({"regex": "(" * 9_999 + ")" * 9_999}, r"column `regex` .*: nested too deeply, got '\(\("),
        ({"json_schema": "{"}, "column `json_schema` is no JSON"),
        ({"json_schema": "9" * 5_000}, "column `json_schema` is no JSON: Exceeds the limit"),
        ({"json_schema": "[" * 100_000}, "column `json_schema` is nested too deeply"),
        ({"json_schema": []}, "column `json_schema` must hold an object"),
        ({"json_schema": {}, "must": ["a"]}, "column `json_schema` says the whole form"),
    ],
)
def test_control_field_of_another_kind_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv, row 7: {message}"):
        read(text="A fox.", **values)


@pytest.mark.parametrize(
    ("form", "is_kept"),
    [
        ({"must": ["fox/", "10"]}, lambda text: "fox/" in text.casefold() and "10" in text),
        ({"must_not": ["a", "e", "o"]}, lambda text: not re.search("[aeo]", text.casefold())),
        ({"regex": r"\d\d/[ab]{3}"}, lambda text: re.fullmatch(r"\d\d/[ab]{3}", text)),
        ({"regex": "[a-f]{4,9}", "must": ["cab"]}, lambda text: re.fullmatch("[a-f]{4,9}", text) and "cab" in text),
        ({"json_schema": {"enum": [1, "two"]}}, lambda text: json.loads(text) in (1, "two")),
    ],
)  # fmt: skip
def test_answer_of_a_random_model_keeps_to_its_form(
    form: dict[str, Any], is_kept: Callable[[str], object], tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="language")
    settings = GenerationSettings(max_new_tokens=60, temperature=1.5)
    predictor = Predictor(backbone, TASK, STATE, "generate", LengthLimit(60), generation=settings)
    asked = [read(prompt="The", needs_target=False, **form), read(prompt="A", needs_target=False)]
    held, free = predictor.predict(asked)
    assert is_kept(str(held.answer))
    assert held.answer != free.answer

"""A form asks for what its task reads, and what is filled in is a row that the task takes."""

import pytest

from lushan.catalog import load_task, names_in
from lushan.errors import DataError
from lushan.records import Row
from lushan.serving.page.form import fields_of, values_of


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_example_of_every_form_is_a_row_that_its_task_reads(name: str) -> None:
    task = load_task(name)
    fields = fields_of(task)
    values = values_of(fields, [each.sample for each in fields])
    example = task.read(Row(values, "form", 1), needs_target=False)
    of_samples = task.read(task.sample_rows()[0], needs_target=False)
    assert example.text.splitlines()[-1] == of_samples.text.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classification", [("text", "text")]),
        ("answering", [("context", "text"), ("question", "text")]),
        ("relations", [("text", "text"), ("head", "part"), ("tail", "part")]),
        ("choice", [("question", "text"), ("choices", "list"), ("relation", "text")]),
        ("dialogue", [("messages", "messages"), ("tools", "text")]),
    ],
)
def test_fields_are_those_of_the_task(name: str, expected: list[tuple[str, str]]) -> None:
    assert [(each.column, each.kind) for each in fields_of(load_task(name))] == expected


def test_length_is_asked_for_where_the_model_keeps_to_one() -> None:
    task = load_task("summarization")
    names = {on: [x.column for x in fields_of(task, length_control=on)] for on in (True, False)}
    assert names[True] == ["document", "references", "length"]
    assert names[False] == ["document", "references"]


def test_part_becomes_its_place_in_the_text() -> None:
    fields = fields_of(load_task("relations"))
    values = values_of(fields, ["Ada got a dog", "Ada", " dog "])
    assert values["tail"] == {"start": 10, "end": 13}


def test_part_that_is_not_in_the_text_is_refused() -> None:
    fields = fields_of(load_task("relations"))
    with pytest.raises(DataError, match="'cat' does not stand in the text"):
        values_of(fields, ["Ada got a dog", "Ada", "cat"])


def test_list_has_one_value_a_line_and_empty_fields_are_left_out() -> None:
    fields = fields_of(load_task("choice"))
    values = values_of(fields, ["To cut bread, take", "a spoon\n\n a knife \n", " "])
    assert values == {"question": "To cut bread, take", "choices": ["a spoon", "a knife"]}

"""Reading a JSON list piece by piece, against the json module."""

import json
from typing import Any

import pytest

from lushan.data import json_lists
from lushan.data.json_lists import ListReader

VALUES = [{"a": "x, ]} [", "b": [1, {"c": None}]}, {}, {"text": '日本\n"quoted"\\'}, {"n": -1.5e3}]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_values_equal_those_of_the_json_module(indent: int | None, end: str) -> None:
    text = json.dumps(VALUES, indent=indent, ensure_ascii=False) + end
    reader = ListReader()
    found = [value for line in text.splitlines(keepends=True) for value in reader.feed(line)]
    assert found == VALUES
    assert reader.is_complete


def test_values_come_before_the_list_ends() -> None:
    reader = ListReader()
    assert list(reader.feed('[{"a": 1}, {"b": 2},\n')) == [{"a": 1}, {"b": 2}]
    assert not reader.is_complete


def test_an_empty_list_is_complete() -> None:
    reader = ListReader()
    assert list(reader.feed("[]")) == []
    assert reader.is_complete


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1}', "found `{` where the list needs"),
        ('[{"a": 1} {"b": 2}]', "found `{` where the list needs ,]"),
        ('[{"a": 1}] 2', "found `2` where the list needs its end"),
        ('[{"a": oops}, {"b": 2}]', "Expecting value"),
        ("[" + "[" * 100_000 + "]" * 100_000 + "]", "nested too deeply"),
    ],
)
def test_what_is_no_list_is_refused_at_once(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        list(ListReader().feed(text))


def test_values_come_before_the_list_ends_where_brackets_share_a_line() -> None:
    reader = ListReader()
    found = [list(reader.feed(line)) for line in ("[{\n", '"a": 1\n', "}, {\n", '"a": 2}\n')]
    assert found == [[], [], [{"a": 1}], [{"a": 2}]]


def test_value_of_many_lines_is_not_decoded_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            starts.append(idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(json_lists, "DECODER", Counting())
    values = [{"lines": [f"[{number}] {{}}" for number in range(500)]}]
    reader = ListReader()
    lines = json.dumps(values, indent=1).splitlines(keepends=True)
    assert [value for line in lines for value in reader.feed(line)] == values
    assert len(starts) <= 3


def test_memory_does_not_keep_what_was_read() -> None:
    reader = ListReader()
    list(reader.feed("["))
    for _ in range(100):
        list(reader.feed('{"a": "' + "x" * 1000 + '"},\n'))
    assert len(reader._text) < 2100


def cut_at_commas(text: str) -> list[str]:
    """Give pieces that end with a comma, but for the last."""
    return [f"{piece}," for piece in text.split(",")[:-1]] + [text.rpartition(",")[2]]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_line_may_be_cut_at_any_comma_also_in_a_text(indent: int | None) -> None:
    values = [*VALUES, {"a, b": ", ", "numbers": [1.5e-7, -2, None, True], "c": ['},{"', "\\,"]}]
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    reader = ListReader()
    assert [value for piece in cut_at_commas(text) for value in reader.feed(piece)] == values
    assert reader.is_complete


def test_values_of_a_cut_line_come_as_soon_as_they_are_whole() -> None:
    reader = ListReader()
    pieces = ['[{"a": "x, ', 'y"}, {"a": "', '", "b": 1}, {"a": "z"}, {"a": "x,']
    found = [list(reader.feed(piece)) for piece in pieces]
    assert found == [[], [{"a": "x, y"}], [{"a": "", "b": 1}, {"a": "z"}]]
    assert reader.is_inside_value
    assert reader.num_open_characters == len('{"a": "x,')


@pytest.mark.parametrize("before", ["", "\n\n  "])
def test_column_of_an_error_counts_from_the_start_of_its_line(before: str) -> None:
    text = f'{before}[{{"a": "x,y"}}, {{"a": 1}}, {{"b": oops, "c": 2}}, {{"a": 3}}]'
    reader = ListReader()
    values = (value for piece in cut_at_commas(text) for value in reader.feed(piece))
    with pytest.raises(json.JSONDecodeError) as caught:
        list(values)
    assert caught.value.colno == len(text[: text.index("oops")].rpartition("\n")[2]) + 1

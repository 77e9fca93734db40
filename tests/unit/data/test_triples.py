"""Triples of a row, in every form that they are written in."""

import json
import random
from typing import Any

import pytest

from lushan.data.triples import read_triples
from lushan.errors import DataError
from lushan.records import Mention, Row, Triple
from tests.written import cut, drawn_texts

TEXT = "Adam saw Ada in Ulm"
FOUND = Triple(Mention("Ada", 9, 12), "is in", Mention("Ulm", 16, 19))


def read(triples: object, text: str = TEXT) -> list[Triple]:
    row = Row({"text": text, "triples": triples}, "a.csv", 7)
    return list(read_triples(row, needs_triples=True)[1] or ())


@pytest.mark.parametrize(
    "value",
    [
        {"head": "Ada", "label": "is in", "tail": "Ulm"},
        {"head": " Ada", "label": " is in ", "tail": {"text": "Ulm"}},
        {"subject": "Ada", "predicate": "is in", "object": "Ulm", "subject_type": "person"},
        {"head": {"start": 9, "end": 12}, "relation": "is in", "tail": [16, 19]},
        {"e1": {"text": "Ada", "start": 9, "end": 12}, "type": "is in", "e2": "Ulm"},
        ["Ada", "is in", "Ulm"],
        [[9, 12], "is in", [16, 19]],
    ],
)
def test_triple_is_read_in_every_form(value: object) -> None:
    for triples in ([value], [value, value], json.dumps([value])):
        (found,) = read(triples)
        assert found == FOUND
        assert (found.head.start, found.head.end) == (9, 12)
        assert (found.tail.start, found.tail.end) == (16, 19)


def test_text_that_is_only_a_part_of_words_stands_for_its_first_place() -> None:
    (found,) = read([["da", "is in", "lm"]])
    assert (found.head.start, found.tail.start) == (1, 17)


def test_row_without_triples_has_none_and_one_that_is_asked_needs_none() -> None:
    assert read([]) == read("[]") == []
    row = Row({"text": TEXT}, "a.csv", 7)
    assert read_triples(row, needs_triples=False) == (TEXT, None)


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        (None, r"column `triples` is empty.*`\[\]` where there are none"),
        ("none", r"column `triples` must hold a list, got 'none'"),
        ({"head": "Ada"}, "must hold a list"),
        (["Ada"], "triple 1: expected `head`, `label` and `tail`, got 'Ada'"),
        ([["Ada", "is in", "Ulm"], ["Ada", "Ulm"]], "triple 2: expected `head`"),
        ([{"head": "Ada", "tail": "Ulm"}], "triple 1: expected `head`"),
        ([{"head": "Ada", "subject": "Ada"}], "both `head` and `subject` could be its head"),
        ([["Ada", "", "Ulm"]], "`label` must be the name of a relation, got ''"),
        ([["Ada", "is in", "Rome"]], "`tail`: 'Rome' does not stand in the text"),
        ([["ada", "is in", "Ulm"]], "`head`: 'ada' does not stand in the text"),
        ([["", "is in", "Ulm"]], "`head`: '' does not stand in the text"),
        ([[[9, 99], "is in", "Ulm"]], r"`head`: \[9, 99\) .* is no part of its text of 19 char"),
        ([[[8, 12], "is in", "Ulm"]], r"`head`: \[8, 12\) ' Ada' is no part of its text"),
        ([[[12, 9], "is in", "Ulm"]], r"`head`: \[12, 9\) '' is no part of its text"),
        ([[[True, 9], "is in", "Ulm"]], r"`head`: expected a part of the text"),
        ([[9, "is in", "Ulm"]], r"`head`: expected a part of the text.* got 9"),
        (
            [[{"text": "Ada", "start": 0, "end": 4}, "is in", "Ulm"]],
            r"`head`: its `text` is 'Ada', but \[0, 4\) of the row's text is 'Adam'",
        ),
    ],
)
def test_wrong_triples_are_refused_by_row_and_column(triples: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.csv, row 7: .*{message}"):
        read(triples)


def test_places_hold_what_is_read_also_in_strange_texts() -> None:
    dice = random.Random(3)
    for one in drawn_texts(3, most=150):
        (_, head), (_, tail) = one.name(dice), one.name(dice)
        values: dict[str, Any] = {"head": list(head), "label": "x", "tail": list(tail)}
        (found,) = read([values], one.example.text)
        (again,) = read([[found.head.text, "x", found.tail.text]], one.example.text)
        assert found == again
        for part in (found.head, again.head, found.tail, again.tail):
            assert part.text == cut(one.example, (part.start, part.end))

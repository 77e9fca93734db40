"""Spans of a row in both forms; the tags are compared with seqeval, and what does not fit is named."""

import json
import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from lushan.data.spans import first_words, read_spans, read_tagged, words_in
from lushan.errors import DataError
from lushan.records import Example, Row, Span

TEXT = "Ada saw Paris."


def row(**values: object) -> Row:
    return Row(values, "a.csv", 7)


def spans_of(entities: object) -> list[tuple[int, int, str]]:
    _, spans = read_spans(row(text=TEXT, entities=entities), needs_spans=True)
    return [(each.start, each.end, each.label) for each in spans or ()]


def entities_of(*tags: str) -> list[tuple[str, str]]:
    tokens = [f"t{number}" for number in range(len(tags))]
    _, _, spans = read_tagged(row(tokens=tokens, tags=list(tags)), needs_tags=True)
    return [(each.text, each.label) for each in spans or ()]


@pytest.mark.parametrize(
    "entities",
    [
        [{"start": 8, "end": 13, "label": "city"}, {"start": 0, "end": 3, "label": " name "}],
        [[0, 3, "name"], (8, 13, "city")],
        [
            {"start": 0, "end": 3, "label": "name", "text": "Ada"},
            {"start": 8, "end": 13, "label": "city", "text": ""},
        ],
        '[{"start": 0, "end": 3, "label": "name"}, [8, 13, "city"]]',
    ],
)
def test_entities_are_objects_lists_or_json_and_are_sorted(entities: object) -> None:
    assert spans_of(entities) == [(0, 3, "name"), (8, 13, "city")]


def test_an_empty_list_is_no_entity_and_nothing_is_not_known() -> None:
    assert spans_of([]) == []
    assert read_spans(row(text=TEXT), needs_spans=False) == (TEXT, None)


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([[4, 13, "x"], [0, 7, "y"]], r"\[0, 7\) `y` and \[4, 13\) `x` overlap"),
        ([[0, 15, "x"]], r"entity 1: \[0, 15\) is not inside its text of 14 characters"),
        ([[0, 3, "x"], [5, 5, "x"]], r"entity 2: \[5, 5\) is not inside"),
        ([[-1, 3, "x"]], r"\[-1, 3\) is not inside"),
        ([["0", 3, "x"]], "whole numbers, got '0' and 3"),
        ([[0, True, "x"]], "whole numbers, got 0 and True"),
        ([[0, 3, " "]], "`label` must be a name, got ' '"),
        ([[0, 3, 5]], "`label` must be a name, got 5"),
        ([[0, 4, "x"]], r"\[0, 4\) 'Ada ' begins or ends with a space"),
        (
            [{"start": 0, "end": 2, "label": "x", "text": "Ada"}],
            r"its `text` is 'Ada', but \[0, 2\) of the row's text is 'Ad'.* and `end` is excluded",
        ),
        ([{"start": 7, "end": 12, "label": "x", "text": "Paris"}], "'Paris', but .* is ' Pari'"),
        ([[0, 3]], r"expected `start`, `end` and `label`, got \[0, 3\]"),
        (["Ada"], "expected `start`, `end` and `label`, got 'Ada'"),
        ({"start": 0}, r"must hold a list, got \{'start': 0\}"),
        ("Ada", "must hold a list, got 'Ada'"),
        (None, r"is empty\. Give every row a list"),
    ],
)
def test_wrong_entity_is_refused_by_row_column_and_value(entities: object, message: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 7: column `entities`.*" + message):
        spans_of(entities)


@pytest.mark.parametrize("text", [None, " ", 5])
def test_row_without_a_text_is_refused(text: object) -> None:
    with pytest.raises(DataError, match=r"row 7: column `text` must hold a text"):
        read_spans(row(text=text, entities=[]), needs_spans=True)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (("B-a", "I-a", "O", "B-b"), [("t0 t1", "a"), ("t3", "b")]),
        (("B-a", "B-a"), [("t0", "a"), ("t1", "a")]),
        (("B-a", "E-a", "S-a", "S-b"), [("t0 t1", "a"), ("t2", "a"), ("t3", "b")]),
        (("B-a", "I-a", "L-a", "U-b"), [("t0 t1 t2", "a"), ("t3", "b")]),
        (("B-PER.NOM", "I-PER.NOM"), [("t0 t1", "PER.NOM")]),
        (("B-a-b", "O"), [("t0", "a-b")]),
        (("O", "O"), []),
    ],
)
def test_tags_become_entities(tags: tuple[str, ...], found: list[tuple[str, str]]) -> None:
    assert entities_of(*tags) == found


@pytest.mark.parametrize("seed", range(30))
def test_entities_are_those_of_seqeval(seed: int) -> None:
    dice = random.Random(seed)
    tags = ["O"]
    for _ in range(40):
        goes_on = [f"I-{tags[-1][2:]}"] if tags[-1] != "O" else []
        tags.append(dice.choice(["O", "B-a", "B-b", *goes_on, *goes_on]))
    tokens = [f"t{number}" for number in range(len(tags))]
    expected = [
        (" ".join(tokens[first : last + 1]), label) for label, first, last in get_entities(tags)
    ]
    assert entities_of(*tags) == expected


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O", "I-a"], "tag 2: `I-a` does not follow `B-a` or `I-a`"),
        (["B-a", "I-b"], "tag 2: `I-b` does not follow `B-b`"),
        (["S-a", "E-a"], "tag 2: `E-a` does not follow"),
        (["B-a"], r"has 1 tag\(s\) for 2 token\(s\)"),
        (["B-a", "X"], "tag 2: 'X' is no tag"),
        (["B-", "O"], "tag 1: 'B-' is no tag"),
        (["O", 3], "tag 2: 3 is no tag"),
        (7, "must hold a list of tags, got 7"),
        (None, r"is empty\. Give every token a tag"),
    ],
)
def test_wrong_tags_are_refused_by_row_column_and_value(tags: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv, row 7: column `tags`.*{message}"):
        read_tagged(row(tokens=["a", "b"], tags=tags), needs_tags=True)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], r"must hold a list of tokens, got \[\]"),
        (5, "must hold a list of tokens, got 5"),
        (["a", ""], "token 2: expected a text without spaces around it, got ''"),
        (["a", " b"], "token 2: expected a text"),
        (["a", None], "token 2: expected a text.*None"),
        (["a", "\ud83d"], "token 2 has half a character"),
    ],
)
def test_wrong_tokens_are_refused_by_row_column_and_value(tokens: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv, row 7: column `tokens`.*{message}"):
        read_tagged(row(tokens=tokens, tags=["O", "O"]), needs_tags=True)


@pytest.mark.parametrize(
    ("tokens", "tags"), [("New York is", "B-x I-x O"), ('["New", "York", "is"]', '["B-x","I-x","O"]')]
)  # fmt: skip
def test_texts_are_cut_at_spaces_or_read_as_json(tokens: str, tags: str) -> None:
    text, places, spans = read_tagged(row(tokens=tokens, tags=tags), needs_tags=True)
    assert (text, places) == ("New York is", [(0, 3), (4, 8), (9, 11)])
    assert spans == (Span(0, 8, "x"),)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", "['New', 'York']"), ("tags", "['B-x' 'I-x']"), ("tags", '["B-x" "O"]')],
)
def test_list_that_is_no_json_is_refused_and_not_cut_at_spaces(name: str, value: str) -> None:
    values = {"tokens": "New York", "tags": "B-x I-x", name: value}
    with pytest.raises(DataError, match=rf"row 7: column `{name}` holds a list that is not JSON"):
        read_tagged(row(**values), needs_tags=True)


def test_brackets_among_words_are_tokens() -> None:
    assert read_tagged(row(tokens="[ the end ]"), needs_tags=False)[0] == "[ the end ]"


def test_tokens_alone_can_be_asked() -> None:
    assert read_tagged(row(tokens=["a", "b"]), needs_tags=False)[2] is None


def test_words_are_the_tokens_that_the_row_gave_also_after_json() -> None:
    extra = json.loads(json.dumps({"words": [(0, 6), (7, 9)]}))
    assert words_in(Example("", "U.S.A. is", None, extra=extra)) == [(0, 6), (7, 9)]
    assert words_in(Example("", "U.S. is", None)) == [(0, 1), (1, 2), (2, 3), (3, 4), (5, 7)]


def test_first_words_are_those_that_end_within_the_first_characters() -> None:
    extra = {"words": [[0, 6], [7, 9], [10, 13]], "question": "?"}
    whole = Example("", "U.S.A. is far", (Span(10, 13, "x"),), extra=extra)
    part = first_words(whole, 12)
    assert (part.text, words_in(part)) == ("U.S.A. is", [(0, 6), (7, 9)])
    assert (part.target, part.extra["question"]) == (whole.target, "?")
    lengths = {n: first_words(Example("", "New York", None), n).text for n in (2, 3, 7, 8)}
    assert lengths == {2: "", 3: "New", 7: "New", 8: "New York"}

"""Rows of two spans: what is marked, and what is refused with its row and column."""

from typing import Any

import pytest

from lushan.data.pairs import places_of, read_pair, without_marks
from lushan.errors import DataError
from lushan.records import Row

TEXT = "The \u706b burnt a tree."
HEAD, TAIL = [4, 5], {"start": 14, "end": 18, "text": "tree"}
MARKED = "The <e1>\u706b</e1> burnt a<e2> tre</e2>e."


def row(**change: Any) -> Row:  # noqa: ANN401
    return Row({"text": TEXT, "head": HEAD, "tail": TAIL, **change}, "a.csv", 7)


@pytest.mark.parametrize("head", [HEAD, (4, 5), {"start": 4, "end": 5}, "[4, 5]", '{"start": 4, "end": 5}'])  # fmt: skip
def test_spans_are_marked_in_every_form(head: object) -> None:
    assert read_pair(row(head=head)) == "The <e1>\u706b</e1> burnt a <e2>tree</e2>."


def test_text_without_its_marks_is_as_it_was() -> None:
    assert without_marks(read_pair(row())) == TEXT


def test_tail_may_come_first_and_spans_may_touch() -> None:
    assert read_pair(row(head=[4, 5], tail=[0, 4])) == "<e2>The </e2><e1>\u706b</e1> burnt a tree."


@pytest.mark.parametrize("tail", [[13, 17], [0, 3]])
def test_places_are_those_of_the_spans(tail: list[int]) -> None:
    marked = read_pair(row(tail=tail))
    places = places_of(marked)
    assert places is not None
    assert [marked[start:end] for start, end in places] == ["\u706b", TEXT[tail[0] : tail[1]]]
    assert places_of(TEXT) is None


def test_text_that_has_the_marks_is_taken_as_it_is() -> None:
    assert read_pair(row(text=MARKED, head=None, tail=None)) == MARKED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": " "}, "column `text` must hold a text"),
        ({"head": None}, "column `head` is empty"),
        ({"head": [4, 4]}, r"column `head`: \[4, 4\) is empty of 19 characters"),
        ({"tail": [18, 20]}, r"column `tail`: \[18, 20\) is not inside its text of 19"),
        ({"tail": [-1, 2]}, r"column `tail`: \[-1, 2\) is not inside"),
        ({"tail": [5, 4]}, r"column `tail`: \[5, 4\) is not inside"),
        ({"head": [3, 4]}, r"column `head`: \[3, 4\) holds only spaces"),
        ({"head": [12, 15]}, r"`head` \[12, 15\) and `tail` \[14, 18\) overlap"),
        ({"head": [15, 16]}, r"`head` \[15, 16\) and `tail` \[14, 18\) overlap"),
        ({"tail": {"start": 12, "end": 16, "text": "tree"}}, "its `text` is 'tree', but .* is 'a tr'"),
        ({"head": "fire"}, r'column `head`: expected .* got \'fire\''),
        ({"head": [4, 5, 6]}, "column `head`: expected"),
        ({"head": [4.0, 5.0]}, "column `head`: expected"),
        ({"head": [True, 5]}, "column `head`: expected"),
        ({"head": {"start": 4}}, "column `head`: expected"),
        ({"text": "A <e1> is a mark."}, "has the mark `<e1>`, but `head` and `tail` are given"),
        ({"text": TEXT, "head": None, "tail": None}, "the mark `<e1>` 0 times, and there is no `head`"),
        ({"text": MARKED * 2, "head": None, "tail": None}, "the mark `<e1>` 2 times"),
        ({"text": "<e1>a <e2>b</e1> c</e2>", "head": None, "tail": None}, "in the order <e1> <e2>"),
        ({"text": "<e1>a</e1> <e2> </e2>", "head": None, "tail": None}, "<e2> </e2> is empty"),
    ],
)  # fmt: skip
def test_row_that_does_not_fit_is_refused_by_its_place(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"^a\.csv, row 7: .*{message}"):
        read_pair(row(**change))

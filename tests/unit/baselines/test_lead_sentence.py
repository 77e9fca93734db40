"""The baseline that gives the first sentence."""

import pytest

from lushan.baselines.lead_sentence import answer, first_sentence
from lushan.data.splits import Parts
from lushan.records import Example, TaskState


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It rains. It pours.", "It rains."),
        ("Version 1.2 is out. Get it.", "Version 1.2 is out."),
        ("Tools, e.g. for text. More.", "Tools, e.g. for text."),
        ('He said "no." Then he left.', 'He said "no."'),
        ("no end here", "no end here"),
        ("A title\nThe text.", "A title"),
        (
            "\u4eca\u5929\u4e0b\u96e8\u3002\u660e\u5929\u6674\u3002",
            "\u4eca\u5929\u4e0b\u96e8\u3002",
        ),
        ("  \n Two. Three.", "Two."),
    ],
)
def test_first_sentence_ends_where_a_reader_ends_it(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_every_text_is_answered_with_its_first_sentence() -> None:
    test = [Example("1", "A. B.", "x"), Example("2", "C", "y")]
    found = answer(Parts([], [], test), state=TaskState())
    assert [each.answer for each in found.predictions] == ["A.", "C"]

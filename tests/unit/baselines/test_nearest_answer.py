"""The baseline that looks up the most similar training text."""

import pytest

from lushan.baselines import nearest_answer
from lushan.data.splits import Parts
from lushan.records import Example, TaskState

TRAIN = [
    Example("1", "A dog runs over a field.", "Ein Hund"),
    Example("2", "Two cats sleep on a sofa.", "Zwei Katzen"),
    Example("3", "\u4e00\u53ea\u72d7\u5728\u8dd1", "a dog"),
]


@pytest.mark.parametrize("at_once", [1, 256])
def test_answer_is_that_of_the_closest_text(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_answer, "_ROWS_AT_ONCE", at_once)
    texts = ("Two cats sit on the sofa", "\u72d7\u5728\u8dd1", "The dog runs over the field")
    test = [Example(str(number), text, "?") for number, text in enumerate(texts)]
    found = nearest_answer.answer(Parts(TRAIN, [], test), state=TaskState())
    assert [each.answer for each in found.predictions] == ["Zwei Katzen", "a dog", "Ein Hund"]
    assert "3 training texts" in found.description

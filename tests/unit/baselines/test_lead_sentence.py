"""The first sentence ends where a reader would say, in English and in Chinese."""

import pytest

from lushan.baselines.lead_sentence import answer
from lushan.data.splits import Parts
from lushan.records import Example, TaskState


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("It rose 3.5 percent. Then it fell.", "It rose 3.5 percent."),
        ("Really?! Yes.", "Really?!"),
        ('He said: "I left." She stayed.', 'He said: "I left."'),
        ("Dr. Wu met J. Smith of the U.S. Army. They spoke.", "Dr. Wu met J. Smith of the U.S. Army."),
        ("See lushan.org today. Now.", "See lushan.org today."),
        ("A headline\nThe text. More.", "A headline"),
        ("  \n no end here ", "no end here"),
        ("They live in the U.S.", "They live in the U.S."),
        ("", ""),
        ("\u4ed6\u6765\u4e86\u3002\u5979\u8d70\u4e86\u3002", "\u4ed6\u6765\u4e86\u3002"),
        ("\u201c\u6765\uff01\u201d\u4ed6\u8bf4\u3002\u5979\u8d70\u4e86\u3002", "\u201c\u6765\uff01\u201d"),
        ("\u6da8\u4e863.5%\uff1b\u597d\uff1f\u4e0d\u3002", "\u6da8\u4e863.5%\uff1b\u597d\uff1f"),
    ],
)  # fmt: skip
def test_first_sentence_of_a_text(text: str, sentence: str) -> None:
    parts = Parts([], [], [Example("id", text, "truth")])
    (prediction,) = answer(parts, state=TaskState()).predictions
    assert prediction.answer == sentence

"""The first sentence: writers put first what matters most."""

import re

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.records import Prediction, TaskState

TITLE = "First sentence"

_SENTENCE_END = re.compile(
    r"[.!?][\"')\]]*(?=\s+[^a-z\s])|[\u3002\uff01\uff1f][\u201d\u300d]?|(?=\n)"
)
"""Behind a full stop and before what is no small letter; behind a Chinese full stop; at a line's end."""


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with its first sentence; nothing is learned."""
    del state
    predictions = [Prediction(each.id, first_sentence(each.text)) for each in parts.test]
    return Baseline(predictions, "The first sentence of every text, as it stands there.")


def first_sentence(text: str) -> str:
    """Give the first sentence of a text; the whole text where it does not end before."""
    text = text.strip()
    found = _SENTENCE_END.search(text)
    return text[: found.end()].strip() if found else text

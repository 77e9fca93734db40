"""The first sentence of a text: news puts what matters there, and summaries are hard put to beat it."""

import re

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.records import Prediction, TaskState

TITLE = "First sentence"

_CLOSING = "\"')\\]\u201d\u2019\u300d\u300f\uff09"
# Behind its mark and a space, behind a mark of Chinese and Japanese, or with the line.
_END = re.compile(
    rf"[.!?][{_CLOSING}]*(?=\s|$)|[\u3002\uff01\uff1f][{_CLOSING}]*|\u2026+[{_CLOSING}]*(?=\s|$)|(?=\n)|$"
)
# `Dr. Wu`, `J. Smith`, `U.S. trade`: the full stop belongs to the word.
_SHORTENED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Sen|Rep|Gov|Lt|Col|Sgt|St|Jr|Sr|No|vs|etc|Inc|Ltd|Co)|\b[A-Za-z])\.$"
)


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with its first sentence; nothing is learned."""
    del state
    predictions = [Prediction(each.id, first_sentence(each.text)) for each in parts.test]
    return Baseline(
        predictions,
        "The text up to the end of its first sentence, or of its first line.",
        learns=False,
    )


def first_sentence(text: str) -> str:
    """Give the first sentence of an English or Chinese text, with its mark; the whole text where none ends."""
    text = text.strip()
    for end in _END.finditer(text):
        sentence = text[: end.end()]
        if not _SHORTENED.search(sentence) or end.end() == len(text):
            return sentence.rstrip()
    return text

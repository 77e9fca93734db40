"""The sentence that shares the most words with the question: what a search inside the text would show.

A whole sentence is mostly longer than an answer, so its F1 tells more than its exact match.
"""

import re

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.data.words import words_of
from lushan.records import Example, Prediction, Span, TaskState

TITLE = "Sentence with the most words of the question"

# A sentence ends behind its mark and a space, behind a mark of Chinese and Japanese, or with the line.
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|[\u3002\uff01\uff1f]|(?=\n)|$)", re.MULTILINE)


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every question with one sentence of its text; nothing is learned, and no question is left out."""
    label = state.labels[0]
    return Baseline(
        [Prediction(each.id, (_best_sentence(each, label),)) for each in parts.test],
        "The whole sentence with the most different words of the question, the first of equal ones; "
        "it always answers.",
        learns=False,
    )


def _best_sentence(example: Example, label: str) -> Span:
    asked = _words(str(example.extra["question"]))
    places = [match.span() for match in _SENTENCE.finditer(example.text)]
    start, end = max(
        places, key=lambda place: (len(asked & _words(example.text[slice(*place)])), -place[0])
    )
    return Span(start, end, label, example.text[start:end])


def _words(text: str) -> set[str]:
    words = (text[start:end] for start, end in words_of(text))
    return {word.casefold() for word in words if word[0].isalnum()}

"""The choice whose words are most like the question's, by the cosine of their TF-IDF vectors."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.data.words import words_of
from lushan.records import Prediction, TaskState

TITLE = "TF-IDF similarity to the question"


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every question with the choice that shares most with it, of equal ones the first.

    How rare a word is, is counted in the questions and choices of the training rows; the right answers are not looked at. Where a script puts no spaces, its
    characters are the words.
    """
    del state
    vectorizer = TfidfVectorizer(analyzer=_words, sublinear_tf=True)  # pyright: ignore[reportArgumentType]
    vectorizer.fit([each.text for each in parts.train])
    predictions: list[Prediction] = []
    for each in parts.test:
        choices = each.extra["choices"]
        vectors = vectorizer.transform([each.extra["question"], *choices])
        cosine_C = (vectors[1:] @ vectors[0].T).toarray()[:, 0]
        predictions.append(Prediction(each.id, choices[int(np.argmax(cosine_C))]))
    return Baseline(
        predictions,
        "The choice whose words are most like those of the question, by TF-IDF; right answers are not learned from.",
    )


def _words(text: str) -> list[str]:
    return [text[start:end].casefold() for start, end in words_of(text)]

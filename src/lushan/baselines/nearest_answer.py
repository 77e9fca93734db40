"""The answer to the training text that is most like the one asked about: a translation memory, a table of replies."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.records import Prediction, TaskState

TITLE = "Answer to the most similar training text"

_ROWS_AT_ONCE = 256
_NGRAMS = (1, 3)


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with the target of the training text whose character TF-IDF vector is closest."""
    del state
    nearest = list(
        _nearest([each.text for each in parts.train], [each.text for each in parts.test])
    )
    predictions = [
        Prediction(each.id, str(parts.train[place].target))
        for each, place in zip(parts.test, nearest, strict=True)
    ]
    return Baseline(
        predictions,
        f"The answer to the most similar of {len(parts.train):,} training texts, by TF-IDF of "
        f"{_NGRAMS[0]} to {_NGRAMS[1]} characters.",
    )


def _nearest(known: list[str], asked: list[str]) -> Iterator[int]:
    """Place of the known text that is closest to each that is asked about, by cosine; the first of equals."""
    vectorizer: Any = TfidfVectorizer(analyzer="char", ngram_range=_NGRAMS, sublinear_tf=True)
    known_NV = vectorizer.fit_transform(known)
    for start in range(0, len(asked), _ROWS_AT_ONCE):
        asked_RV = vectorizer.transform(asked[start : start + _ROWS_AT_ONCE])
        alike_RN = (asked_RV @ known_NV.T).toarray()
        yield from np.asarray(alike_RN.argmax(axis=1)).tolist()

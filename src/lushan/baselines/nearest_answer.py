"""The answer to the training text that is most alike, by the cosine of TF-IDF vectors of characters.

Shapes: N training rows of a part, T test rows, C hashed n-grams.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Example, Prediction, TaskState

TITLE = "Answer to the most similar training row"

ROWS_AT_ONCE = 2_000
"""Training rows whose vectors are in memory together."""
_SIMILARITIES_AT_ONCE = 4_000_000
_NUM_COLUMNS = 2**20


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer every text with the target of the most similar training text, of equal ones the first.

    N-grams of one to three characters are hashed to about a million columns, so that no vocabulary is kept; training
    rows are read in parts, twice: to count in how many each n-gram stands, and to compare.

    Raises:
        DataError: If there is no training row, or one has no target; names its place.
    """
    del state
    for each in parts.train:
        _target(each)
    if not parts.train:
        raise DataError("No training row: the most similar one cannot be looked for.")
    nearest_T = _nearest(parts.train, [each.text for each in parts.test])
    predictions = [
        Prediction(each.id, _target(parts.train[place]))
        for each, place in zip(parts.test, nearest_T.tolist(), strict=True)
    ]
    return Baseline(
        predictions,
        f"The answer to the most similar of {len(parts.train):,} training texts, by TF-IDF of 1 to 3 characters.",
    )


def _target(example: Example) -> str:
    if not isinstance(example.target, str):
        raise DataError(f"{example.place}: no answer, but baselines learn from answers.")
    return example.target


def _nearest(train: Sequence[Example], test: Sequence[str]) -> NDArray[np.int64]:
    """Number of the most similar training text for each test text, (T,)."""
    weight_C = _rarity(train)
    best_T = np.full(len(test), -1.0)
    nearest_T = np.zeros(len(test), dtype=np.int64)
    for start, part in _parts(train):
        train_NC = _vectors(part, weight_C)
        rows = max(1, _SIMILARITIES_AT_ONCE // len(part))
        for first in range(0, len(test), rows):
            test_TC = _vectors(test[first : first + rows], weight_C)
            cosine_TN = (test_TC @ train_NC.T).toarray()
            # Equal texts must be equally similar, whatever the last digit says.
            cosine_TN = cosine_TN.round(9)
            here = slice(first, first + rows)
            found_T, place_T = cosine_TN.max(axis=1), cosine_TN.argmax(axis=1)
            is_better_T = found_T > best_T[here]
            nearest_T[here][is_better_T] = start + place_T[is_better_T]
            best_T[here][is_better_T] = found_T[is_better_T]
    return nearest_T


def _parts(examples: Sequence[Example]) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(examples), ROWS_AT_ONCE):
        yield start, [each.text for each in examples[start : start + ROWS_AT_ONCE]]


def _rarity(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Inverse document frequency as scikit-learn smooths it, (C,)."""
    num_with_C = np.zeros(_NUM_COLUMNS)
    for _, part in _parts(examples):
        num_with_C += np.bincount(_counts(part).indices, minlength=_NUM_COLUMNS)
    return np.log((1 + len(examples)) / (1 + num_with_C)) + 1


def _counts(texts: Sequence[str]) -> csr_matrix:
    vectorizer = HashingVectorizer(
        analyzer="char",
        ngram_range=(1, 3),
        n_features=_NUM_COLUMNS,
        alternate_sign=False,
        norm=None,  # pyright: ignore[reportArgumentType]
    )
    return csr_matrix(vectorizer.transform(texts))


def _vectors(texts: Sequence[str], weight_C: NDArray[np.float64]) -> csr_matrix:
    """TF-IDF with logarithmic counts, each row of length 1."""
    counts_NC = _counts(texts)
    counts_NC.data = (1 + np.log(counts_NC.data)) * weight_C[counts_NC.indices]
    return csr_matrix(normalize(counts_NC))

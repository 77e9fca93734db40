"""The most similar training text is scikit-learn's, however many parts the rows are read in."""

import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from lushan.baselines import nearest_answer
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Example, TaskState

WORDS = "where when is the next train bus flight to Ulm Rome \u5e90\u5c71 \u4e5d\u6c5f cheap late please?"


def _examples(num_rows: int, seed: int) -> list[Example]:
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS.split(), k=8)) for _ in range(num_rows)]
    return [Example(f"{seed}-{n}", text, f"reply {n}") for n, text in enumerate(texts)]


def _answers(train: Sequence[Example], test: list[Example]) -> list[object]:
    found = nearest_answer.answer(Parts(train, [], test), state=TaskState())
    assert [each.id for each in found.predictions] == [each.id for each in test]
    return [each.answer for each in found.predictions]


def test_answers_are_those_of_scikit_learns_most_similar_rows() -> None:
    train, test = _examples(300, 0), _examples(100, 1)
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    train_matrix = vectorizer.fit_transform([each.text for each in train])
    test_matrix = vectorizer.transform([each.text for each in test])
    nearest = cosine_similarity(test_matrix, train_matrix).argmax(axis=1)
    assert (
        np.mean([a == train[n].target for a, n in zip(_answers(train, test), nearest, strict=True)])
        > 0.97
    )


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = _examples(300, 0), _examples(100, 1)
    expected = _answers(train, test)
    monkeypatch.setattr(nearest_answer, "ROWS_AT_ONCE", 41)
    monkeypatch.setattr(nearest_answer, "_SIMILARITIES_AT_ONCE", 41 * 7)
    assert _answers(train, test) == expected


def test_a_training_text_finds_itself_and_of_equal_ones_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = _examples(30, 0)
    copies = [replace(each, target="of the copy") for each in train]
    assert _answers([*train, *copies], train) == [each.target for each in train]
    monkeypatch.setattr(nearest_answer, "ROWS_AT_ONCE", 7)
    assert _answers([*train, *copies], train) == [each.target for each in train]


def test_a_text_that_shares_nothing_gets_an_answer_all_the_same() -> None:
    assert _answers(_examples(3, 0), [Example("id", "###", None)]) == ["reply 0"]


def test_training_rows_without_an_answer_are_refused_by_place() -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 2: no answer"):
        _answers([Example("id", "text", None, "a.csv, row 2")], _examples(1, 0))
    with pytest.raises(DataError, match="No training row"):
        _answers([], _examples(1, 0))


class _Text(str):
    """Text whose end can be heard of."""


class _Rows(Sequence[Example]):
    """Rows that are made anew whenever they are asked for, with the number of their texts that were in memory at once."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.num_texts = self.most_texts = 0

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - an example, or some
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        made = self._examples[index]
        return replace(made, text=self._told(made.text), target=self._told(str(made.target)))

    def _told(self, text: str) -> str:
        told = _Text(text)
        self.num_texts += 1
        self.most_texts = max(self.most_texts, self.num_texts)
        weakref.finalize(told, self._forget)
        return told

    def _forget(self) -> None:
        self.num_texts -= 1


def test_texts_of_a_part_of_the_training_rows_are_in_memory_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = _examples(300, 0), _examples(5, 1)
    expected = _answers(train, test)
    monkeypatch.setattr(nearest_answer, "ROWS_AT_ONCE", 20)
    rows = _Rows(train)
    assert _answers(rows, test) == expected
    assert 20 < rows.most_texts < 100

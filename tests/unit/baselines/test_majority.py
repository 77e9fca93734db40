"""The most frequent label, as scikit-learn's own baseline has it."""

import math

import pytest
from sklearn.dummy import DummyClassifier

from lushan.baselines import Baseline
from lushan.baselines.majority import answer
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Example, TaskState
from tests.unit.baselines.topics import TOPICS, examples


def majority(train: list[Example], test: list[Example], *, state: TaskState) -> Baseline:
    return answer(Parts(train, [], test), state=state)


def test_majority_equals_the_dummy_of_scikit_learn() -> None:
    train, test = examples(TOPICS, 40), examples(TOPICS, 9, seed=1)
    baseline = majority(train, test, state=TaskState(labels=tuple(TOPICS)))
    dummy = DummyClassifier(strategy="prior").fit([[0]] * 40, [each.target for each in train])
    expected = dummy.predict_proba([[0]])[0]
    first = baseline.predictions[0]
    assert [each.answer for each in baseline.predictions] == list(dummy.predict([[0]] * 9))
    assert [first.probabilities[name] for name in dummy.classes_] == pytest.approx(list(expected))
    assert math.exp(first.log_likelihood) == pytest.approx(max(expected))
    assert [each.id for each in baseline.predictions] == [each.id for each in test]


def test_majority_breaks_ties_by_class_order() -> None:
    train = [Example("1", "x", "b"), Example("2", "y", "a")]
    baseline = majority(train, train, state=TaskState(labels=("a", "b")))
    assert baseline.predictions[0].answer == "a"


def test_majority_of_multi_label_is_the_most_frequent_set() -> None:
    train = [Example(str(n), "x", target) for n, target in enumerate([("a", "b"), ("a", "b"), ()])]
    state = TaskState(labels=("a", "b"), multi_label=True)
    baseline = majority(train, train[:1], state=state)
    assert baseline.predictions[0].answer == ("a", "b")
    assert baseline.description == "Always `a, b`, as 2 of 3 training rows."


def test_a_row_without_label_is_named() -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 3: no label"):
        majority([Example("1", "x", None, "a.csv, row 3")], [], state=TaskState(labels=("a",)))

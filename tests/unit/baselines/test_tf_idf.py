"""TF-IDF is an honest opponent: it learns what is there, and says how."""

import math

import numpy as np
import pytest

from lushan.baselines import Baseline
from lushan.baselines.tf_idf import answer
from lushan.data.splits import Parts
from lushan.records import Example, TaskState
from tests.unit.baselines.topics import CHINESE, TOPICS, examples, several


def tf_idf(
    train: list[Example], validation: list[Example], test: list[Example], *, state: TaskState
) -> Baseline:
    return answer(Parts(train, validation, test), state=state)


def _right(rows: list[Example], answers: list[object]) -> float:
    return float(np.mean([e.target == a for e, a in zip(rows, answers, strict=True)]))


def test_tf_idf_learns_words_and_says_how() -> None:
    train, test = examples(TOPICS, 90), examples(TOPICS, 40, seed=2)
    state = TaskState(labels=tuple(TOPICS))
    baseline = tf_idf(train, examples(TOPICS, 30, seed=1), test, state=state)
    assert _right(test, [each.answer for each in baseline.predictions]) > 0.95
    assert baseline.description.startswith("TF-IDF of words and word pairs, logistic regression")
    assert "(validation accuracy 1.000)" in baseline.description
    first = baseline.predictions[0]
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert math.exp(first.log_likelihood) == pytest.approx(max(first.probabilities.values()))


def test_tf_idf_counts_characters_of_chinese() -> None:
    train = examples(CHINESE, 60, joiner="")
    test = examples(CHINESE, 30, joiner="", seed=2)
    baseline = tf_idf(train, train, test, state=TaskState(labels=tuple(CHINESE)))
    assert _right(test, [each.answer for each in baseline.predictions]) > 0.95
    assert baseline.description.startswith("TF-IDF of 1 to 3 characters")


def test_tf_idf_of_multi_label_answers_sets_in_class_order() -> None:
    train, test = several(150), several(40, seed=2)
    state = TaskState(labels=tuple(TOPICS), multi_label=True)
    baseline = tf_idf(train, several(40, seed=1), test, state=state)
    assert _right(test, [each.answer for each in baseline.predictions]) > 0.9
    assert "validation micro f1" in baseline.description


def test_tf_idf_bears_labels_that_training_lacks() -> None:
    train, test = examples(TOPICS, 60), examples(TOPICS, 5, seed=2)
    state = TaskState(labels=("absent", *TOPICS))
    baseline = tf_idf(train, train, test, state=state)
    assert baseline.predictions[0].probabilities["absent"] == 0.0
    assert _right(test, [each.answer for each in baseline.predictions]) == 1.0


def test_tf_idf_of_rows_that_all_have_one_label_answers_it() -> None:
    train = [each for each in examples(TOPICS, 60) if each.target == "food"][:8]
    rows = examples(TOPICS, 20, seed=2)
    baseline = tf_idf(train, rows, rows, state=TaskState(labels=tuple(TOPICS)))
    assert {each.answer for each in baseline.predictions} == {"food"}
    assert baseline.predictions[0].probabilities == {"food": 1.0, "sport": 0.0, "work": 0.0}


def test_tf_idf_of_multi_label_bears_labels_that_all_or_no_rows_have() -> None:
    rows = [Example(str(n), text, ("always", *kind)) for n, (text, kind) in
                enumerate([("red", ("warm",)), ("blue", ()), ("pink", ("warm",)), ("teal", ())] * 5)]  # fmt: skip
    state = TaskState(labels=("always", "never", "warm"), multi_label=True)
    baseline = tf_idf(rows, rows, rows, state=state)
    assert baseline.predictions[0].answer == ("always", "warm")
    assert baseline.predictions[1].answer == ("always",)


def test_tf_idf_of_a_single_label_that_a_text_may_have() -> None:
    kinds = [("red coat", ("warm",)), ("blue ice", ())] * 8
    rows = [Example(str(n), text, target) for n, (text, target) in enumerate(kinds)]
    state = TaskState(labels=("warm",), multi_label=True)
    first, second = tf_idf(rows, rows, rows[:2], state=state).predictions
    assert (first.answer, second.answer) == (("warm",), ())
    assert first.probabilities["warm"] > 0.5 > second.probabilities["warm"]
    for always, probability in ((rows[::2], 1.0), (rows[1::2], 0.0)):
        (found, _) = tf_idf(always, [], rows[:2], state=state).predictions
        assert found.probabilities == {"warm": probability}


def test_tf_idf_without_validation_rows_takes_its_default() -> None:
    train = examples(TOPICS, 60)
    baseline = tf_idf(train, [], train[:3], state=TaskState(labels=tuple(TOPICS)))
    assert baseline.description.endswith("logistic regression with C = 10.")


def test_tf_idf_reads_texts_without_any_word() -> None:
    train = [Example("1", ":-)", "good"), Example("2", ":-(", "bad")] * 5
    baseline = tf_idf(train, train, train, state=TaskState(labels=("bad", "good")))
    assert [each.answer for each in baseline.predictions[:2]] == ["good", "bad"]


def test_tf_idf_repeats_itself() -> None:
    train, test = examples(TOPICS, 60), examples(TOPICS, 20, seed=2)
    state = TaskState(labels=tuple(TOPICS))
    assert tf_idf(train, train, test, state=state) == tf_idf(train, train, test, state=state)

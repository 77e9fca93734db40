"""Baselines are honest opponents: they learn what is there, and say how."""

import math
import random

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from lushan.errors import DataError
from lushan.evaluation.baselines import is_unspaced, majority, tf_idf
from lushan.records import Example, TaskState

TOPICS = {
    "food": "apple bread soup cook taste dinner",
    "sport": "match goal team race ball win",
    "work": "office meeting boss mail deadline desk",
}
CHINESE = {"negative": "很差 不好 失望 太慢 难吃", "positive": "很好 喜欢 满意 好吃 推荐"}


def _examples(
    words: dict[str, str], num_rows: int, *, joiner: str = " ", seed: int = 0
) -> list[Example]:
    dice = random.Random(seed)
    rows = []
    for number in range(num_rows):
        label = dice.choice(sorted(words))
        text = joiner.join(dice.choices(words[label].split(), k=3))
        rows.append(Example(f"{seed}-{number}", text, label))
    return rows


def _several(num_rows: int, *, seed: int = 0) -> list[Example]:
    dice = random.Random(seed)
    rows = []
    for number in range(num_rows):
        labels = tuple(label for label in TOPICS if dice.random() < 0.5)
        text = " ".join(word for label in labels for word in dice.sample(TOPICS[label].split(), 3))
        rows.append(Example(f"{seed}-{number}", text or "nothing", labels))
    return rows


def _right(examples: list[Example], answers: list[object]) -> float:
    return float(np.mean([e.target == a for e, a in zip(examples, answers, strict=True)]))


def test_majority_equals_the_dummy_of_scikit_learn() -> None:
    train, test = _examples(TOPICS, 40), _examples(TOPICS, 9, seed=1)
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


def test_tf_idf_learns_words_and_says_how() -> None:
    train, test = _examples(TOPICS, 90), _examples(TOPICS, 40, seed=2)
    state = TaskState(labels=tuple(TOPICS))
    baseline = tf_idf(train, _examples(TOPICS, 30, seed=1), test, state=state)
    assert _right(test, [each.answer for each in baseline.predictions]) > 0.95
    assert baseline.description.startswith("TF-IDF of words and word pairs, logistic regression")
    assert "(validation accuracy 1.000)" in baseline.description
    first = baseline.predictions[0]
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert math.exp(first.log_likelihood) == pytest.approx(max(first.probabilities.values()))


def test_tf_idf_counts_characters_of_chinese() -> None:
    train = _examples(CHINESE, 60, joiner="")
    test = _examples(CHINESE, 30, joiner="", seed=2)
    baseline = tf_idf(train, train, test, state=TaskState(labels=tuple(CHINESE)))
    assert _right(test, [each.answer for each in baseline.predictions]) > 0.95
    assert baseline.description.startswith("TF-IDF of 1 to 3 characters")


def test_tf_idf_of_multi_label_answers_sets_in_class_order() -> None:
    train, test = _several(150), _several(40, seed=2)
    state = TaskState(labels=tuple(TOPICS), multi_label=True)
    baseline = tf_idf(train, _several(40, seed=1), test, state=state, metric="macro_f1")
    assert _right(test, [each.answer for each in baseline.predictions]) > 0.9
    assert "validation macro f1" in baseline.description


def test_tf_idf_bears_labels_that_training_lacks() -> None:
    train, test = _examples(TOPICS, 60), _examples(TOPICS, 5, seed=2)
    state = TaskState(labels=("absent", *TOPICS))
    baseline = tf_idf(train, train, test, state=state)
    assert baseline.predictions[0].probabilities["absent"] == 0.0
    assert _right(test, [each.answer for each in baseline.predictions]) == 1.0


def test_tf_idf_of_multi_label_bears_labels_that_all_or_no_rows_have() -> None:
    examples = [Example(str(n), text, ("always", *kind)) for n, (text, kind) in
                enumerate([("red", ("warm",)), ("blue", ()), ("pink", ("warm",)), ("teal", ())] * 5)]  # fmt: skip
    state = TaskState(labels=("always", "never", "warm"), multi_label=True)
    baseline = tf_idf(examples, examples, examples, state=state)
    assert baseline.predictions[0].answer == ("always", "warm")
    assert baseline.predictions[1].answer == ("always",)


def test_tf_idf_without_validation_rows_takes_its_default() -> None:
    train = _examples(TOPICS, 60)
    baseline = tf_idf(train, [], train[:3], state=TaskState(labels=tuple(TOPICS)))
    assert baseline.description.endswith("logistic regression with C = 10.")


def test_tf_idf_reads_texts_without_any_word() -> None:
    train = [Example("1", ":-)", "good"), Example("2", ":-(", "bad")] * 5
    baseline = tf_idf(train, train, train, state=TaskState(labels=("bad", "good")))
    assert [each.answer for each in baseline.predictions[:2]] == ["good", "bad"]


def test_tf_idf_repeats_itself() -> None:
    train, test = _examples(TOPICS, 60), _examples(TOPICS, 20, seed=2)
    state = TaskState(labels=tuple(TOPICS))
    assert tf_idf(train, train, test, state=state) == tf_idf(train, train, test, state=state)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain English", False), ("这家店很好吃", True), ("iPhone 手机壳很好用", True),
     ("the word 山 means mountain", False), ("とてもおいしい", True), ("한국어 문장입니다", False), ("123 :-)", False)],
)  # fmt: skip
def test_scripts_without_spaces_are_recognised(text: str, *, expected: bool) -> None:
    assert is_unspaced([text]) is expected


def test_a_row_without_label_is_named() -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 3: no label"):
        majority([Example("1", "x", None, "a.csv, row 3")], [], state=TaskState(labels=("a",)))

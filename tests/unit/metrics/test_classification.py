"""Scores equal scikit-learn's; intervals are fast, repeatable and cover."""

import time
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from lushan.errors import DataError
from lushan.metrics.classification import (
    correct_rows,
    intervals,
    positive_label,
    score,
)
from lushan.records import Interval

reference: Any = metrics  # its stubs reject arguments that its documentation allows

LABELS = ["books", "games", "news", "sport"]


def _single(
    num_rows: int, num_labels: int, seed: int = 0
) -> tuple[list[str], list[str], list[str]]:
    generator = np.random.default_rng(seed)
    labels = [f"label {i}" for i in range(num_labels)]
    truth = generator.integers(num_labels, size=num_rows)
    noise = generator.integers(num_labels, size=num_rows)
    answers = np.where(generator.random(num_rows) < 0.7, truth, noise)
    return [labels[i] for i in truth], [labels[i] for i in answers], labels


def _several(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.random((num_rows, len(LABELS))) < 0.3
    return truth, truth ^ (generator.random(truth.shape) < 0.15)


def _names(matrix: np.ndarray) -> list[tuple[str, ...]]:
    return [tuple(LABELS[i] for i in np.flatnonzero(row)) for row in matrix]


@pytest.mark.parametrize(("num_rows", "num_labels"), [(40, 2), (200, 5), (90, 60)])
def test_single_label_scores_equal_scikit_learn(num_rows: int, num_labels: int) -> None:
    truth, answers, labels = _single(num_rows, num_labels)
    scores = score(truth, answers, labels, multi_label=False)
    assert scores.accuracy == pytest.approx(reference.accuracy_score(truth, answers))
    macro = reference.f1_score(truth, answers, average="macro")  # labels that occur
    assert scores.macro_f1 == pytest.approx(macro)
    micro = reference.f1_score(truth, answers, average="micro")
    assert scores.micro_f1 == pytest.approx(micro)
    confusion = reference.confusion_matrix(truth, answers, labels=labels)
    assert scores.confusion == tuple(map(tuple, confusion.tolist()))


def test_per_class_table_equals_scikit_learn() -> None:
    truth, answers, labels = _single(120, 50)
    table = score(truth, answers, labels, multi_label=False).per_class
    expected = reference.precision_recall_fscore_support(
        truth, answers, labels=labels, zero_division=0
    )
    measured = [[each.precision, each.recall, each.f1, each.support] for each in table]
    np.testing.assert_allclose(np.array(measured).T, np.array(expected))
    assert [each.label for each in table] == labels


def test_binary_scores_are_those_of_the_second_label() -> None:
    truth, answers, labels = _single(60, 2, seed=5)
    scores = score(truth, answers, labels, multi_label=False)
    expected = reference.precision_recall_fscore_support(
        truth, answers, average="binary", pos_label=labels[1]
    )
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx(expected[:3])
    assert list(scores.metrics) == [
        "accuracy", "macro_f1", "micro_f1", "f1", "precision", "recall"
    ]  # fmt: skip


def test_binary_scores_are_those_of_the_label_that_was_named() -> None:
    truth, answers, labels = _single(60, 2, seed=5)
    scores = score(truth, answers, labels, multi_label=False, positive=labels[0])
    expected = reference.precision_recall_fscore_support(
        truth, answers, average="binary", pos_label=labels[0]
    )
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx(expected[:3])
    found = intervals(truth, answers, labels, multi_label=False, positive=labels[0])
    assert found["f1"].value == pytest.approx(expected[2])
    assert positive_label(labels, multi_label=False, named=labels[0]) == labels[0]


def test_positive_label_is_the_last_of_two_and_of_others_there_is_none() -> None:
    assert positive_label(["bad", "good"], multi_label=False) == "good"
    assert positive_label(["bad", "good"], multi_label=True) is None
    assert positive_label(LABELS, multi_label=False) is None


def test_scores_of_the_positive_class_do_not_exist_for_three_labels() -> None:
    scores = score(["a", "b"], ["a", "c"], ["a", "b", "c"], multi_label=False)
    assert list(scores.metrics) == ["accuracy", "macro_f1", "micro_f1"]


def test_multi_label_scores_equal_scikit_learn() -> None:
    truth, answers = _several(150)
    scores = score(_names(truth), _names(answers), LABELS, multi_label=True)
    assert scores.accuracy == pytest.approx(reference.accuracy_score(truth, answers))
    assert scores.macro_f1 == pytest.approx(reference.f1_score(truth, answers, average="macro"))
    assert scores.micro_f1 == pytest.approx(reference.f1_score(truth, answers, average="micro"))
    assert scores.confusion == ()


def test_a_label_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    truth, answers = [("books",), (), ("news",)], [("books",), (), ("news", "books")]
    scores = score(truth, answers, LABELS, multi_label=True)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1) / 2)


def test_rows_without_any_label_can_be_right() -> None:
    scores = score([(), ("news",)], [(), ()], LABELS, multi_label=True)
    assert scores.accuracy == 0.5
    assert scores.micro_f1 == 0.0


def test_correct_rows_ignore_the_order_of_labels() -> None:
    assert correct_rows([("a", "b"), ("a",), "c"], [("b", "a"), (), "c"]) == [True, False, True]


def test_unknown_label_is_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"Row 2 .*`nwes`.*4 known labels: books, games"):
        score(["news", "nwes"], ["news", "news"], LABELS, multi_label=False)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="No rows to score"):
        intervals([], [], LABELS, multi_label=False)


def test_interval_agrees_with_drawing_rows_one_by_one() -> None:
    truth, answers, labels = _single(150, 3, seed=2)
    measured = intervals(truth, answers, labels, multi_label=False, seed=1)["macro_f1"]
    generator = np.random.default_rng(0)
    code = {label: i for i, label in enumerate(labels)}
    pairs = np.array([[code[t], code[a]] for t, a in zip(truth, answers, strict=True)])
    drawn = [
        reference.f1_score(*pairs[generator.integers(150, size=150)].T, average="macro")
        for _ in range(600)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (measured.low, measured.high) == pytest.approx((low, high), abs=0.02)


def test_macro_f1_interval_covers_the_truth_about_95_times_in_100() -> None:
    labels, share = ["a", "b", "c"], [[0.45, 0.05, 0.0], [0.06, 0.2, 0.04], [0.02, 0.03, 0.15]]
    joint = np.array(share)
    exact = np.mean(2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1)))
    generator, covered = np.random.default_rng(7), 0
    for seed in range(150):
        cells = generator.choice(9, size=300, p=joint.ravel())
        truth, answers = ([labels[i] for i in part] for part in (cells // 3, cells % 3))
        found = intervals(
            truth, answers, labels, multi_label=False, seed=seed, num_resamples=400
        )["macro_f1"]  # fmt: skip
        covered += found.low <= exact <= found.high
    assert 0.9 <= covered / 150 <= 0.99


def test_intervals_repeat_by_seed_and_do_not_depend_on_row_order() -> None:
    truth, answers, labels = _single(80, 4)
    first = intervals(truth, answers, labels, multi_label=False, seed=3)
    again = intervals(truth[::-1], answers[::-1], labels, multi_label=False, seed=3)
    assert first == again
    assert first != intervals(truth, answers, labels, multi_label=False, seed=4)


def test_intervals_of_5500_rows_and_151_labels_are_fast() -> None:
    truth, answers, labels = _single(5_500, 151)
    began = time.perf_counter()
    intervals(truth, answers, labels, multi_label=False)
    assert time.perf_counter() - began < 3


def test_scores_of_few_positive_rows_are_as_unsure_as_so_few_rows_are() -> None:
    truth = ["yes"] * 5 + ["no"] * 995
    answers = ["yes"] * 8 + ["no"] * 992
    found = intervals(truth, answers, ["no", "yes"], multi_label=False)
    exact = stats.binomtest(5, 5).proportion_ci(0.95, method="exact")
    assert (found["recall"].value, found["recall"].high) == (1.0, 1.0)
    assert found["recall"].low == pytest.approx(exact.low)
    again = intervals(truth, truth, ["no", "yes"], multi_label=False)
    assert again["precision"] == again["recall"] == again["f1"]
    every = stats.binomtest(1000, 1000).proportion_ci(0.95, method="exact")
    for name in ("accuracy", "macro_f1", "micro_f1"):
        assert again[name].low == pytest.approx(every.low)


def test_of_a_label_that_was_never_answered_the_precision_is_not_known() -> None:
    found = intervals(["yes"] * 5 + ["no"] * 95, ["no"] * 100, ["no", "yes"], multi_label=False)
    assert found["precision"] == Interval(0.0, 0.0, 1.0)
    exact = stats.binomtest(0, 5).proportion_ci(0.95, method="exact")
    assert found["recall"].high == found["f1"].high == pytest.approx(exact.high)


def test_rows_without_a_label_do_not_make_f1_of_several_labels_surer() -> None:
    truth = [("news",)] * 4 + [()] * 96
    found = intervals(truth, truth, LABELS, multi_label=True)
    exact = stats.binomtest(4, 4).proportion_ci(0.95, method="exact")
    assert found["micro_f1"].low == found["macro_f1"].low == pytest.approx(exact.low)
    assert found["accuracy"].low > 0.96

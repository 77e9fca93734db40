"""Accuracy of choices, as lm-evaluation-harness counts it."""

import random

import numpy as np
import pytest

from lushan.errors import DataError
from lushan.metrics import choice


def harness_metrics(gold: int, lls: list[float], choices: list[str]) -> tuple[float, float]:
    """`process_results` of lm-evaluation-harness' multiple-choice tasks: acc and acc_norm of one row."""
    completion_len = np.array([float(len(i)) for i in choices])
    pred = np.argmax(lls)
    pred_norm = np.argmax(lls / completion_len)
    return float(pred == gold), float(pred_norm == gold)


def test_acc_and_acc_norm_are_those_of_the_harness() -> None:
    dice = random.Random(3)
    for _ in range(100):
        truth: list[str] = []
        likelihoods: list[dict[str, float]] = []
        expected: list[tuple[float, float]] = []
        for _ in range(12):
            words = dice.sample(
                ["a", "\u5317\u4eac", "a long way", "two", "\u00e9\u00e9", "of all"], 4
            )
            lls = [-float(dice.randint(1, 9)) for _ in words]
            gold = dice.randrange(4)
            truth.append(words[gold])
            likelihoods.append(dict(zip(words, lls, strict=True)))
            expected.append(harness_metrics(gold, lls, words))
        found = choice.intervals(truth, truth, likelihoods)
        values = [found["acc"].value, found["acc_norm"].value]
        assert values == pytest.approx(np.mean(expected, axis=0))


def test_acc_needs_the_log_likelihoods_of_every_row() -> None:
    assert set(choice.intervals(["a"], ["b"])) == {"accuracy"}
    assert set(choice.intervals(["a", "b"], ["a", "b"], [{"a": -1.0}, {}])) == {"accuracy"}


def test_intervals_hold_their_values_and_rows_are_needed() -> None:
    found = choice.intervals(["a", "b", "a"], ["a", "a", "a"])["accuracy"]
    assert found.value == pytest.approx(2 / 3)
    assert found.low <= found.value <= found.high
    with pytest.raises(DataError, match="No rows to score"):
        choice.intervals([], [])
    with pytest.raises(ValueError, match="zip"):
        choice.correct_rows(["a"], [])

"""pass@k against exact fractions, the released code of its paper, and drawing."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from lushan.errors import DataError
from lushan.metrics.code import intervals, pass_at_k


def exactly(n: int, c: int, k: int) -> Fraction:
    """Multiply the chances that each of k draws without replacement misses the correct ones."""
    missed = Fraction(1)
    for drawn in range(k):
        missed *= Fraction(max(0, n - c - drawn), n - drawn)
    return 1 - missed


def human_eval_estimator(n: int, c: int, k: int) -> float:
    """`estimator` of openai/human-eval, evaluation.py."""
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def test_pass_at_k_is_the_formula_in_fractions() -> None:
    for n in range(1, 13):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(n, c, k) == float(exactly(n, c, k))


@pytest.mark.parametrize(("n", "c", "k"), [(200, 3, 100), (1000, 1, 10), (5000, 2500, 100)])
def test_pass_at_k_of_many_samples_is_that_of_the_released_code(n: int, c: int, k: int) -> None:
    assert pass_at_k(n, c, k) == float(exactly(n, c, k))
    assert pass_at_k(n, c, k) == pytest.approx(human_eval_estimator(n, c, k), rel=1e-9)


def test_pass_at_k_is_how_often_k_drawn_samples_hold_a_correct_one() -> None:
    dice = random.Random(5)
    samples = [True] * 3 + [False] * 17
    hits = sum(any(dice.sample(samples, 4)) for _ in range(20_000))
    assert hits / 20_000 == pytest.approx(pass_at_k(20, 3, 4), abs=0.015)


def test_pass_at_k_has_no_bias_where_the_naive_estimate_has() -> None:
    dice = np.random.default_rng(2)
    correct = dice.binomial(10, 0.2, size=20_000)
    truth = 1 - 0.8**5
    ours = np.mean([pass_at_k(10, int(c), 5) for c in correct])
    assert ours == pytest.approx(truth, abs=0.01)
    assert np.mean(1 - (1 - correct / 10) ** 5) < truth - 0.02


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} from {c} correct of {n} samples"):
        pass_at_k(n, c, k)


def test_interval_is_the_bootstrap_over_problems() -> None:
    num_correct = [0, 1, 2, 5, 10, 0, 3, 7, 0, 1] * 5
    found = intervals([10] * 50, num_correct, ks=[1, 5], seed=1)
    assert list(found) == ["pass@1", "pass@5"]
    values = np.array([pass_at_k(10, c, 5) for c in num_correct])
    assert found["pass@1"].value == pytest.approx(np.mean(num_correct) / 10)
    assert found["pass@5"].value == pytest.approx(values.mean())
    means = np.random.default_rng(9).choice(values, size=(5_000, 50)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert [found["pass@5"].low, found["pass@5"].high] == pytest.approx([low, high], abs=0.015)


def test_no_problem_solved_still_leaves_room_above() -> None:
    found = intervals([4] * 20, [0] * 20, ks=[2])["pass@2"]
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_problems_and_enough_samples_are_needed() -> None:
    with pytest.raises(DataError, match="No problems"):
        intervals([], [], ks=[1])
    with pytest.raises(DataError, match="pass@5 needs at least 5 samples of every problem, got 3"):
        intervals([10, 3], [1, 1], ks=[1, 5])
    with pytest.raises(ValueError, match="zip"):
        intervals([10, 10], [1], ks=[1])

"""Intervals cover, tests agree with scipy, and nothing depends on luck."""

import random

import numpy as np
import pytest
from scipy import stats

from lushan.metrics.statistics import (
    accuracy,
    accuracy_difference,
    are_graded,
    holm,
    mcnemar,
    mean_interval,
    paired_test,
    percentile_interval,
    resample,
    sign_flip,
)


def _paired(wins: int, losses: int, both: int = 5) -> tuple[list[bool], list[bool]]:
    first = [False] * wins + [True] * losses + [True] * both
    second = [True] * wins + [False] * losses + [True] * both
    return first, second


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 3), (10, 2), (2, 10), (300, 240)])
def test_mcnemar_equals_the_binomial_test_of_scipy(wins: int, losses: int) -> None:
    measured = mcnemar(*_paired(wins, losses))
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert measured.p_value == pytest.approx(expected, rel=1e-9)
    assert (measured.wins, measured.losses) == (wins, losses)


def test_mcnemar_by_hand() -> None:
    # 1 loss of 6 changed rows: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert mcnemar(*_paired(5, 1)).p_value == pytest.approx(14 / 64)


def test_mcnemar_refuses_rows_that_are_not_paired() -> None:
    with pytest.raises(ValueError, match="2 rows against 3"):
        mcnemar([True, True], [True, True, False])


def test_holm_by_hand_keeps_names_in_order() -> None:
    # sorted 0.01 * 3, 0.03 * 2, 0.04 * 1 -> the last is raised to its predecessor
    adjusted = holm({"c": 0.04, "a": 0.01, "b": 0.03})
    assert list(adjusted) == ["c", "a", "b"]
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_holm_never_exceeds_one() -> None:
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_resample_draws_as_many_rows_and_repeats_by_seed() -> None:
    counts = np.array([3, 0, 17])
    drawn = resample(counts, seed=4, num_resamples=50)
    assert (drawn.sum(axis=1) == 20).all()
    assert (drawn[:, 1] == 0).all()
    assert (drawn == resample(counts, seed=4, num_resamples=50)).all()
    assert (drawn != resample(counts, seed=5, num_resamples=50)).any()


def test_interval_of_an_accuracy_is_close_to_scipys_bootstrap() -> None:
    right = np.array([1.0] * 170 + [0.0] * 30)
    resampled = resample(np.array([30, 170]), seed=0, num_resamples=5_000)[:, 1] / 200
    interval = percentile_interval(0.85, resampled, num_rows=200)
    reference = stats.bootstrap(
        (right,), np.mean, n_resamples=5_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval.low == pytest.approx(reference.low, abs=0.006)
    assert interval.high == pytest.approx(reference.high, abs=0.006)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certainty(value: float) -> None:
    exact = stats.binomtest(round(50 * value), 50).proportion_ci(0.95, method="exact")
    interval = percentile_interval(value, np.full(100, value), num_rows=50)
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))


def test_interval_covers_the_true_accuracy_about_95_times_in_100() -> None:
    truth, covered = 0.8, 0
    for seed, right in enumerate(np.random.default_rng(0).binomial(150, truth, size=400)):
        resampled = resample(np.array([150 - right, right]), seed=seed)[:, 1] / 150
        interval = percentile_interval(right / 150, resampled, num_rows=150)
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_accuracy_difference_is_close_to_the_paired_normal_interval() -> None:
    first, second = _paired(wins=60, losses=20, both=320)
    interval = accuracy_difference(first, second, seed=3)
    change = np.array(second, dtype=float) - np.array(first, dtype=float)
    half = 1.96 * change.std() / np.sqrt(400)
    assert interval.value == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1 - half, abs=0.008)
    assert interval.high == pytest.approx(0.1 + half, abs=0.008)


def test_accuracy_difference_does_not_depend_on_row_order() -> None:
    rows = list(zip(*_paired(9, 4, 30), strict=True))
    before = accuracy_difference(*map(list, zip(*rows, strict=True)), seed=1)
    random.Random(0).shuffle(rows)
    assert accuracy_difference(*map(list, zip(*rows, strict=True)), seed=1) == before


def test_accuracy_difference_refuses_no_rows() -> None:
    with pytest.raises(ValueError, match="0 rows against 0"):
        accuracy_difference([], [], seed=0)


def test_accuracy_is_the_share_of_right_rows_with_an_interval_near_the_normal_one() -> None:
    interval = accuracy([True] * 300 + [False] * 100, seed=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.low == pytest.approx(0.75 - half, abs=0.008)
    assert interval.high == pytest.approx(0.75 + half, abs=0.008)


def test_accuracy_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="No rows"):
        accuracy([], seed=0)


def test_flipped_signs_give_the_p_value_of_scipy() -> None:
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.02, 0.06):
        first = generator.random(60) * 0.5
        second = first + generator.normal(shift, 0.1, size=60)
        expected = stats.permutation_test(
            (second - first,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples",
            n_resamples=20_000, vectorized=True, rng=3,
        ).pvalue  # fmt: skip
        found = sign_flip(first.tolist(), second.tolist(), seed=0)
        assert found.p_value == pytest.approx(expected, abs=0.02)
        assert found.wins == (second > first).sum()
        assert found.wins + found.losses == 60


def test_right_and_wrong_rows_are_tested_exactly_and_graded_ones_by_flips() -> None:
    first, second = _paired(10, 2)
    assert paired_test(first, second, seed=0) == mcnemar(first, second)
    graded = [0.5 * each for each in first]
    assert are_graded(graded)
    assert not are_graded(first, second, [1.0, 0.0])
    assert paired_test(graded, second, seed=0) == sign_flip(graded, second, seed=0)
    assert paired_test(graded, graded, seed=0).p_value == 1.0


def test_mean_of_graded_rows_has_the_interval_of_scipy() -> None:
    values = np.random.default_rng(4).beta(2, 5, size=150)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    found = mean_interval(values.tolist(), seed=0)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert accuracy(values.tolist(), seed=0) == found
    change = accuracy_difference([0.0] * 150, values.tolist(), seed=0)
    assert (change.low, change.high) == pytest.approx((expected.low, expected.high), abs=0.004)

"""Intervals cover, tests agree with scipy, and nothing depends on luck."""

import random

import numpy as np
import pytest
from scipy import stats

from lushan.metrics.statistics import (
    accuracy,
    accuracy_difference,
    holm,
    is_graded,
    mcnemar,
    mean_of_draws,
    paired_tests,
    percentile_interval,
    permutation,
    resample,
    resampled_totals,
)
from lushan.records import Interval


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


def test_of_no_rows_nothing_is_known() -> None:
    assert percentile_interval(0.0, np.array([]), num_rows=0) == Interval(0.0, 0.0, 1.0)


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


@pytest.mark.parametrize("value", [0.25, 0.5])
def test_rows_that_are_all_as_good_are_not_certainty(value: float) -> None:
    alike = stats.binomtest(50, 50).proportion_ci(0.95, method="exact").low
    interval = accuracy([value] * 50, seed=0)
    expected = (value * alike, 1 - (1 - value) * alike)
    assert interval.value == value
    assert (interval.low, interval.high) == pytest.approx(expected)


@pytest.mark.parametrize("change", [-1, 0, 1])
@pytest.mark.parametrize("num_rows", [1, 4, 5, 6, 40])
def test_difference_of_rows_that_differ_alike_is_as_sure_as_mcnemars_test(
    num_rows: int, change: int
) -> None:
    first, second = [change < 0] * num_rows, [change > 0] * num_rows
    interval = accuracy_difference(first, second, seed=0)
    assert -1 <= interval.low <= interval.value == change <= interval.high <= 1
    assert interval.high - interval.low > 0.05
    is_clear = interval.low > 0 or interval.high < 0
    assert is_clear is (mcnemar(first, second).p_value < 0.05)


def test_graded_rows_that_differ_alike_but_for_rounding_are_not_certainty() -> None:
    first = [0.1, 0.2, 0.3, 0.4]
    second = [each + 0.3 for each in first]
    assert len({after - before for before, after in zip(first, second, strict=True)}) > 1
    interval = accuracy_difference(first, second, seed=0)
    assert interval.low < 0 < interval.value < interval.high <= 1


def test_accuracy_is_the_share_of_right_rows_with_an_interval_near_the_normal_one() -> None:
    interval = accuracy([True] * 300 + [False] * 100, seed=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.low == pytest.approx(0.75 - half, abs=0.008)
    assert interval.high == pytest.approx(0.75 + half, abs=0.008)


def test_accuracy_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="No rows"):
        accuracy([], seed=0)


def _graded(num_rows: int, *, gain: float, seed: int = 0) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    first = generator.uniform(0.2, 0.6, size=num_rows)
    second = np.clip(first + generator.normal(gain, 0.1, size=num_rows), 0, 1)
    return first.tolist(), second.tolist()


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.04])
@pytest.mark.parametrize("num_rows", [9, 60])
def test_permutation_agrees_with_scipys(num_rows: int, gain: float) -> None:
    first, second = _graded(num_rows, gain=gain)
    reference = stats.permutation_test(
        (np.array(second), np.array(first)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert permutation(first, second, seed=0).p_value == pytest.approx(reference.pvalue, abs=0.015)


def test_permutation_counts_rows_that_are_better_and_worse_and_is_never_certain() -> None:
    found = permutation([0.1] * 40 + [0.5] * 3, [0.9] * 39 + [0.0] + [0.5] * 3, seed=0)
    assert (found.wins, found.losses, found.name) == (39, 1, "permutation")
    assert found.p_value == 1 / 10_001


def test_permutation_depends_on_no_order_of_rows_or_systems() -> None:
    first, second = _graded(30, gain=0.03)
    expected = permutation(first, second, seed=3).p_value
    assert permutation(first[::-1], second[::-1], seed=3).p_value == expected
    assert permutation(second, first, seed=3).p_value == expected


def test_permutation_of_equal_systems_finds_nothing() -> None:
    assert permutation([0.3, 0.7], [0.3, 0.7], seed=0).p_value == 1.0
    assert permutation([0.3, 0.7], [0.7, 0.3], seed=0).p_value == 1.0


def test_permutation_in_parts_is_as_sure_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _graded(50, gain=0.03)
    at_once = permutation(first, second, seed=0).p_value
    monkeypatch.setattr("lushan.metrics.statistics._CELLS_AT_ONCE", 7_000)
    assert permutation(first, second, seed=0).p_value == pytest.approx(at_once, abs=0.02)


def test_permutation_finds_no_difference_where_there_is_none_about_95_times_in_100() -> None:
    pairs = [_graded(40, gain=0.0, seed=seed) for seed in range(200)]
    found = [permutation(*pair, seed=0).p_value < 0.05 for pair in pairs]
    assert 0.01 <= np.mean(found) <= 0.09


def test_one_graded_row_decides_the_test_for_all_pairs() -> None:
    right, graded = _paired(5, 1), ([0.5, 1.0], [1.0, 0.0])
    assert [each.name for each in paired_tests([right], seed=0)] == ["mcnemar"]
    assert [each.name for each in paired_tests([right, graded], seed=0)] == ["permutation"] * 2
    assert not is_graded([True, 0, 1.0])
    assert is_graded([1, 0.999])


@pytest.mark.parametrize("strange", [1.5, -0.1, float("nan")])
def test_a_score_outside_of_0_to_1_is_refused(strange: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        paired_tests([([0.5], [strange])], seed=0)


def test_graded_difference_is_close_to_the_paired_normal_interval() -> None:
    first, second = _graded(400, gain=0.05)
    interval = accuracy_difference(first, second, seed=3)
    change = np.array(second) - np.array(first)
    half = 1.96 * change.std() / np.sqrt(400)
    assert interval.value == pytest.approx(change.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (change.mean() - half, change.mean() + half), abs=0.002
    )


def test_graded_mean_is_close_to_scipys_bootstrap() -> None:
    scores = np.random.default_rng(0).beta(2, 3, size=150)
    interval = accuracy(scores.tolist(), seed=0)
    reference = stats.bootstrap(
        (scores,), np.mean, n_resamples=5_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval.value == pytest.approx(scores.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (reference.low, reference.high), abs=0.004
    )


def test_totals_of_resamples_are_sums_of_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.array([[n, 2 * n, 1] for n in (1, 5, 5, 9)])
    totals = resampled_totals(table, seed=0)
    assert (totals[:, 2] == 4).all()
    assert (totals[:, 1] == 2 * totals[:, 0]).all()
    assert totals[:, 0].mean() == pytest.approx(20, abs=1)
    monkeypatch.setattr("lushan.metrics.statistics._CELLS_AT_ONCE", 7)
    assert (resampled_totals(table, seed=0) == totals).all()


def test_mean_of_draws_has_the_interval_of_student_where_the_rows_asked_leave_no_doubt() -> None:
    values = [0.5, 0.62, 0.58, 0.71, 0.55]
    found = mean_of_draws([Interval(each, each, each) for each in values])
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_more_draws_do_not_shrink_the_doubt_that_comes_from_the_rows_asked() -> None:
    found = mean_of_draws([Interval(0.5, 0.4, 0.7)] * 50)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.4, 0.7))


def test_interval_over_draws_holds_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_rows, num_held = 200, 0
    for _ in range(400):
        draws = np.clip(0.7 + 0.05 * generator.standard_normal(5), 0, 1)
        hardness = generator.random(num_rows)  # the same rows are asked in every draw
        shares = [(hardness < each).mean() for each in draws]
        half = [1.96 * np.sqrt(x * (1 - x) / num_rows) for x in shares]
        found = mean_of_draws([
            Interval(x, x - h, x + h) for x, h in zip(shares, half, strict=True)
        ])
        num_held += found.low <= 0.7 <= found.high
    assert 0.93 <= num_held / 400 <= 0.995


def test_doubt_of_draws_and_of_rows_add_up_as_variances() -> None:
    draws = [Interval(x, x - 0.03, x + 0.03) for x in (0.4, 0.6)]
    reach = stats.t.ppf(0.975, 1) * stats.sem([0.4, 0.6])
    found = mean_of_draws(draws)
    assert found.high - found.value == pytest.approx(np.hypot(reach, 0.03))
    assert found.value - found.low == pytest.approx(np.hypot(reach, 0.03))

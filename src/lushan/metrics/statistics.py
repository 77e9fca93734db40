"""How sure a measured number is: bootstrap intervals, paired tests, correction for many tests.

Shapes: N rows, P distinct patterns that rows can show, R resamples, F flips,
K sums.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lushan.records import Interval

CONFIDENCE_FRACTION = 0.95
"""Every interval of a report is a 95 % interval."""
NUM_RESAMPLES = 1_000
"""Bootstrap resamples; the ends of an interval then wobble by a few percent of its width."""
NUM_FLIPS = 10_000
"""Random flips of a permutation test: the smallest p-value is about 0.0001."""
_CELLS_AT_ONCE = 4_000_000
_ROUNDING = 1e-9
"""Sums of the same numbers in another order may differ by less."""

TestName = Literal["mcnemar", "permutation"]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two systems on the same rows: who was right, or better, where the other was not."""

    p_value: float
    """Chance of a split or a difference at least this uneven if both were equally good, two-sided."""
    wins: int
    """Rows that only the second system got right, or did better."""
    losses: int
    """Rows that only the first system got right, or did better."""
    name: TestName = "mcnemar"


def is_graded(correct: Sequence[float]) -> bool:
    """Say whether rows are graded, and not all right or wrong."""
    return any(each not in {0, 1} for each in correct)


def paired_tests(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int
) -> list[PairedTest]:
    """Test each pair of systems on the same rows: by McNemar's exact test, or by permutation where a row is graded.

    One graded row of any pair decides for all, so that the p-values of one table mean the same.

    Args:
        pairs: How good each row is, from 0 to 1, of a first and a second system.
        seed: Of the permutations.

    Raises:
        ValueError: If the two of a pair differ in length, or a value is not in [0, 1].
    """
    if any(is_graded(rows) for pair in pairs for rows in pair):
        return [permutation(first, second, seed=seed) for first, second in pairs]
    return [mcnemar(first, second) for first, second in pairs]


def mcnemar(first_correct: Sequence[float], second_correct: Sequence[float]) -> PairedTest:
    """Test whether two systems differ on the same rows, each right or wrong: the exact, binomial form.

    Source: McNemar (1947), in the exact form of Dietterich (1998), "Approximate statistical tests
    for comparing supervised classification learning algorithms". No mid-p, no continuity
    correction: conservative with few rows, never anti-conservative.

    Raises:
        ValueError: If the sequences differ in length.
    """
    from scipy.special import bdtr  # slow to import, and no training needs it

    change_N = _changes(first_correct, second_correct)
    wins, losses = int((change_N > 0).sum()), int((change_N < 0).sum())
    if wins == losses:
        return PairedTest(1.0, wins, losses)
    p_value = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    return PairedTest(p_value, wins, losses)


def permutation(
    first_score: Sequence[float], second_score: Sequence[float], *, seed: int
) -> PairedTest:
    """Test whether two systems differ in their mean score on the same rows, by random flips of who is who.

    Source: Fisher's randomisation of paired differences, as Dror et al. (2018), "The hitchhiker's guide to testing
    statistical significance in NLP", advise for scores without a known distribution. The p-value counts the rows as
    they are among the flips (Phipson and Smyth, 2010), so it is never 0.

    Raises:
        ValueError: If the sequences differ in length, or a score is not in [0, 1].
    """
    change_N = _changes(first_score, second_score)
    wins, losses = int((change_N > 0).sum()), int((change_N < 0).sum())
    # Neither the order of the rows nor that of the systems may decide which flips are drawn.
    size_N = np.sort(np.abs(change_N[change_N != 0]))
    # Sums of the same numbers in another order may differ in their last digit.
    bound = abs(float(change_N.sum())) - 1e-9
    generator = np.random.default_rng(seed)
    flips_at_once = max(1, _CELLS_AT_ONCE // max(len(size_N), 1))
    num_hits = 0
    for start in range(0, NUM_FLIPS, flips_at_once):
        num_flips = min(flips_at_once, NUM_FLIPS - start)
        is_up_FN = generator.integers(0, 2, size=(num_flips, len(size_N)), dtype=np.int8)
        sum_F = 2 * (is_up_FN @ size_N) - size_N.sum()
        num_hits += int((np.abs(sum_F) >= bound).sum())
    return PairedTest((num_hits + 1) / (NUM_FLIPS + 1), wins, losses, "permutation")


def _changes(first: Sequence[float], second: Sequence[float]) -> NDArray[np.float64]:
    """Second minus first, (N,)."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows against {len(second)}: not paired.")
    return _scores(second) - _scores(first)


def _scores(correct: Sequence[float]) -> NDArray[np.float64]:
    score_N = np.asarray(correct, dtype=np.float64)
    if not ((score_N >= 0) & (score_N <= 1)).all():
        raise ValueError("How good a row is must be a number from 0 to 1.")
    return score_N


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for having made several tests; keeps names and their order.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}


def resample(
    count_P: NDArray[np.int64], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> NDArray[np.float64]:
    """Draw rows with replacement, as often as there are rows, and count their patterns.

    Rows that show the same pattern cannot be told apart by any score, so drawing their counts from
    the multinomial distribution is the bootstrap itself, only much faster.

    Args:
        count_P: How many rows show each pattern, (P,).
        seed: The same seed and counts give the same resamples.
        num_resamples: R.

    Returns:
        Pattern counts of every resample, (R, P); each row sums to N.
    """
    num_rows = int(count_P.sum())
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_rows, count_P / num_rows, size=num_resamples).astype(float)


def resampled_totals(
    table_NK: NDArray[np.float64] | NDArray[np.int64], *, seed: int
) -> NDArray[np.float64]:
    """Draw rows with replacement and sum their columns; memory is bounded, however many rows there are.

    Args:
        table_NK: What each row adds to K sums, (N, K).
        seed: Of the bootstrap.

    Returns:
        The sums of every resample, (R, K).
    """
    patterns_PK, count_P = np.unique(table_NK, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // len(count_P))
    totals_RK = np.empty((NUM_RESAMPLES, table_NK.shape[1]))
    for start in range(0, NUM_RESAMPLES, at_once):
        num_resamples = min(at_once, NUM_RESAMPLES - start)
        weight_RP = generator.multinomial(
            len(table_NK), count_P / len(table_NK), size=num_resamples
        )
        totals_RK[start : start + num_resamples] = weight_RP @ patterns_PK
    return totals_RK


def percentile_interval(
    value: float, resampled_R: NDArray[np.float64], *, num_rows: int
) -> Interval:
    """Give the 95 % bootstrap percentile interval of a score in [0, 1].

    Where all rows are alike, such as all right or all wrong, all resamples agree and the bootstrap would claim
    certainty. There the interval is that of so many rows that are alike: 50 of 50 right is 1.00 with an interval from
    0.93, as Clopper and Pearson (1934) have it. Without a row nothing is known.

    Args:
        value: The score of the rows themselves.
        resampled_R: The score of every resample that has a row which the score is about, (R,).
        num_rows: Rows that the score is about: of recall, those that truly have the label.
    """
    if not len(resampled_R):
        return Interval(value, 0.0, 1.0)
    if _are_alike(resampled_R):
        return _interval_of_alike_rows(value, num_rows=num_rows, lowest=0.0)
    return difference_interval(value, resampled_R)


def difference_interval(value: float, resampled_R: NDArray[np.float64]) -> Interval:
    """Give the 95 % bootstrap percentile interval of a difference, which has no natural ends."""
    tail = (1 - CONFIDENCE_FRACTION) / 2
    low, high = np.quantile(resampled_R, [tail, 1 - tail])
    # A skewed score can leave its own percentile interval; the interval must still hold it.
    return Interval(value, min(value, float(low)), max(value, float(high)))


def accuracy_difference(
    first_correct: Sequence[float], second_correct: Sequence[float], *, seed: int
) -> Interval:
    """Give second minus first accuracy (graded: mean score) on the same rows, with its paired bootstrap interval.

    Where all rows differ alike, such as not at all, it is the interval of so many rows that do. It holds zero then
    wherever McNemar's exact test finds no difference.

    Raises:
        ValueError: If the sequences are empty or differ in length, or a value is not in [0, 1].
    """
    if not first_correct:
        raise ValueError(f"0 rows against {len(second_correct)}: not paired.")
    change_N = _changes(first_correct, second_correct)
    value = float(change_N.mean())
    if _are_alike(change_N):
        return _interval_of_alike_rows(value, num_rows=len(change_N), lowest=-1.0)
    return difference_interval(value, _resampled_means(change_N, [-1.0, 0.0, 1.0], seed=seed))


def _are_alike(values: NDArray[np.float64]) -> bool:
    """Whether values differ by no more than rounding."""
    return float(np.ptp(values)) < _ROUNDING


def _interval_of_alike_rows(value: float, *, num_rows: int, lowest: float) -> Interval:
    """Give the 95 % interval of a mean where every row shows the same, and rows can show from `lowest` to 1.

    With so many rows alike, others are too in a share of at least `tail ** (1 / num_rows)`, the exact binomial bound
    (Clopper and Pearson, 1934); what the rest shows is not known.
    """
    tail = (1 - CONFIDENCE_FRACTION) / 2
    unknown_share = 1 - tail ** (1 / num_rows)
    low = value - unknown_share * (value - lowest)
    return Interval(value, low, value + unknown_share * (1.0 - value))


def mean_of_draws(found: Sequence[Interval]) -> Interval:
    """Give the mean of a number over draws of the training rows, with an interval for other draws and other rows asked.

    The rows that are asked are the same in every draw, so their share does not shrink with more draws: it is the mean
    half-width. That of the draws is Student's, of their mean. Both together as variances add up.

    Args:
        found: The number in each draw, with its interval over the rows that are asked; of one draw, nothing is known
            of others, and its interval stays as it is.
    """
    from scipy.special import stdtrit  # slow to import, rarely needed

    value_D, low_D, high_D = np.array([(each.value, each.low, each.high) for each in found]).T
    value = float(value_D.mean())
    reach = 0.0
    if len(found) > 1:
        quantile = stdtrit(len(found) - 1, (1 + CONFIDENCE_FRACTION) / 2)
        reach = quantile * value_D.std(ddof=1) / math.sqrt(len(found))
    low = value - math.hypot((value_D - low_D).mean(), reach)
    high = value + math.hypot((high_D - value_D).mean(), reach)
    return Interval(value, float(low), float(high))


def accuracy(correct: Sequence[float], *, seed: int) -> Interval:
    """Give the share of rows that are right (graded: their mean score), with its 95 % bootstrap interval.

    Raises:
        ValueError: If there are no rows, or a value is not in [0, 1].
    """
    if not correct:
        raise ValueError("No rows to score.")
    score_N = _scores(correct)
    resampled_R = _resampled_means(score_N, [0.0, 1.0], seed=seed)
    return percentile_interval(float(score_N.mean()), resampled_R, num_rows=len(correct))


def _resampled_means(
    value_N: NDArray[np.float64], usual: Sequence[float], *, seed: int
) -> NDArray[np.float64]:
    """Means of every resample, (R,); `usual` values are drawn even if no row has them, so that draws stay alike."""
    value_P = np.union1d(value_N, usual)
    count_P = np.bincount(np.searchsorted(value_P, value_N), minlength=len(value_P))
    if len(value_P) > len(usual):
        return resampled_totals(value_N[:, None], seed=seed)[:, 0] / len(value_N)
    return resample(count_P, seed=seed) @ value_P / len(value_N)

"""How sure a measured number is: bootstrap intervals, paired tests, correction for many tests.

Shapes: N rows, P distinct patterns that rows can show, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from lushan.records import Interval

CONFIDENCE_FRACTION = 0.95
"""Every interval of a report is a 95 % interval."""
NUM_RESAMPLES = 1_000
"""Bootstrap resamples; the ends of an interval then wobble by a few percent of its width."""

NUM_FLIPS = 10_000
"""Random flips of a permutation test: the smallest p-value is one ten-thousandth."""
_FLIPS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two systems on the same rows: who was right, or better, where the other was not."""

    p_value: float
    """Chance of a split, or a difference, at least this uneven if both were equally good, two-sided."""
    wins: int
    """Rows that only the second system got right, or did better."""
    losses: int
    """Rows that only the first system got right, or did better."""


def are_graded(*systems: Sequence[float]) -> bool:
    """Whether rows have scores between right and wrong."""
    return any(not np.isin(np.asarray(rows, dtype=float), (0.0, 1.0)).all() for rows in systems)


def paired_test(first: Sequence[float], second: Sequence[float], *, seed: int) -> PairedTest:
    """Test whether two systems differ on the same rows: McNemar where rows are right or wrong, else by flipping signs.

    Raises:
        ValueError: If the sequences differ in length.
    """
    if not are_graded(first, second):
        return mcnemar(first, second)
    return sign_flip(first, second, seed=seed)


def sign_flip(first: Sequence[float], second: Sequence[float], *, seed: int) -> PairedTest:
    """Test whether the mean score of two systems differs: were they alike, each row's difference could have either sign.

    Source: the paired permutation test of Fisher (1935) with random flips; p counts the observed one as a flip too.

    Raises:
        ValueError: If the sequences differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows against {len(second)}: not paired.")
    change_N = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    wins, losses = int((change_N > 0).sum()), int((change_N < 0).sum())
    change_N = change_N[change_N != 0]
    generator = np.random.default_rng(seed)
    observed = abs(change_N.sum()) - 1e-9  # rounding must not tell equal sums apart
    num_reached = 0
    for _ in range(NUM_FLIPS // _FLIPS_AT_ONCE):
        signs_FN = generator.integers(0, 2, size=(_FLIPS_AT_ONCE, len(change_N)), dtype=np.int8)
        sums_F = (2 * signs_FN - 1) @ change_N
        num_reached += int((abs(sums_F) >= observed).sum())
    return PairedTest((num_reached + 1) / (NUM_FLIPS + 1), wins, losses)


def mcnemar(first_correct: Sequence[float], second_correct: Sequence[float]) -> PairedTest:
    """Test whether two systems differ on the same rows: the exact, binomial form.

    Source: McNemar (1947), in the exact form of Dietterich (1998), "Approximate statistical tests
    for comparing supervised classification learning algorithms". No mid-p, no continuity
    correction: conservative with few rows, never anti-conservative.

    Raises:
        ValueError: If the sequences differ in length.
    """
    if len(first_correct) != len(second_correct):
        raise ValueError(f"{len(first_correct)} rows against {len(second_correct)}: not paired.")
    first = np.asarray(first_correct, dtype=bool)
    second = np.asarray(second_correct, dtype=bool)
    wins, losses = int((second & ~first).sum()), int((first & ~second).sum())
    if wins == losses:
        return PairedTest(1.0, wins, losses)
    p_value = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    return PairedTest(p_value, wins, losses)


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


def percentile_interval(
    value: float, resampled_R: NDArray[np.float64], *, num_rows: int
) -> Interval:
    """Give the 95 % bootstrap percentile interval of a score in [0, 1].

    Where every row is right, or every row is wrong, all resamples agree and the bootstrap would
    claim certainty. There the interval reaches to the exact binomial bound (Clopper and Pearson,
    1934) instead: 50 of 50 right is 1.00 with an interval from 0.93.

    Args:
        value: The score of the rows themselves.
        resampled_R: The score of every resample, (R,).
        num_rows: N.
    """
    tail = (1 - CONFIDENCE_FRACTION) / 2
    if value in {0.0, 1.0} and np.ptp(resampled_R) == 0:
        reach = 1 - tail ** (1 / num_rows)
        return Interval(value, max(0.0, value - reach), min(1.0, value + reach))
    return difference_interval(value, resampled_R)


def difference_interval(value: float, resampled_R: NDArray[np.float64]) -> Interval:
    """Give the 95 % bootstrap percentile interval of a difference, which has no natural ends."""
    tail = (1 - CONFIDENCE_FRACTION) / 2
    low, high = np.quantile(resampled_R, [tail, 1 - tail])
    # A skewed score can leave its own percentile interval; the interval must still hold it.
    return Interval(value, min(value, float(low)), max(value, float(high)))


def resampled_sums(table_NS: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    """Draw rows with replacement, as often as there are rows, and sum their columns; (R, S).

    Args:
        table_NS: What is summed, one line per row.
        seed: The same seed and number of rows give the same draws.
    """
    num_rows = len(table_NS)
    generator = np.random.default_rng(seed)
    sums_RS = np.empty((NUM_RESAMPLES, table_NS.shape[1]))
    for number in range(
        NUM_RESAMPLES
    ):  # one line at a time: all draws of many rows would not fit into memory
        times_N = np.bincount(generator.integers(num_rows, size=num_rows), minlength=num_rows)
        sums_RS[number] = times_N @ table_NS
    return sums_RS


def mean_interval(values: Sequence[float], *, seed: int) -> Interval:
    """Give the mean over rows with its 95 % bootstrap interval.

    Raises:
        ValueError: If there are no rows.
    """
    if not values:
        raise ValueError("No rows to score.")
    table_N1 = np.asarray(values, dtype=float)[:, None]
    means_R = resampled_sums(table_N1, seed=seed)[:, 0] / len(values)
    return difference_interval(float(table_N1.mean()), means_R)


def accuracy_difference(
    first_correct: Sequence[float], second_correct: Sequence[float], *, seed: int
) -> Interval:
    """Give second minus first accuracy, or mean score, on the same rows, with its paired bootstrap interval.

    Raises:
        ValueError: If the sequences are empty or differ in length.
    """
    if len(first_correct) != len(second_correct) or not first_correct:
        raise ValueError(f"{len(first_correct)} rows against {len(second_correct)}: not paired.")
    change_N = np.asarray(second_correct, dtype=float) - np.asarray(first_correct, dtype=float)
    if are_graded(first_correct, second_correct):
        return mean_interval(change_N.tolist(), seed=seed)
    count_P = np.bincount(change_N.astype(np.int64) + 1, minlength=3)
    resampled_RP = resample(count_P, seed=seed)
    resampled_R = (resampled_RP[:, 2] - resampled_RP[:, 0]) / len(change_N)
    return difference_interval(float(change_N.mean()), resampled_R)


def accuracy(correct: Sequence[float], *, seed: int) -> Interval:
    """Give the share of rows that are right, or their mean score, with its 95 % bootstrap interval.

    Raises:
        ValueError: If there are no rows.
    """
    if not correct:
        raise ValueError("No rows to score.")
    if are_graded(correct):
        return mean_interval(correct, seed=seed)
    count_P = np.bincount(np.asarray(correct, dtype=np.int64), minlength=2)
    resampled_R = resample(count_P, seed=seed)[:, 1] / len(correct)
    return percentile_interval(float(count_P[1]) / len(correct), resampled_R, num_rows=len(correct))

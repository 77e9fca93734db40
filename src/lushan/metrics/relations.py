"""Macro F1 of relations, as the official scorer of SemEval-2010 Task 8 takes it, with its interval.

Source: Hendrickx et al. (2010), "SemEval-2010 Task 8", section 4, and the scorer's version 1.2: the (9+1)-way evaluation
that takes directionality into account. `Cause-Effect(e1,e2)` and `Cause-Effect(e2,e1)` are one relation; an answer with
the wrong direction is wrong, and counts as given to its relation. `Other` is no relation. The mean is over the
relations that the truth has.

Where no label ends in `(e1,e2)` or `(e2,e1)` there are no directions, and this is plain macro F1: the mean F1 of all labels
that occur in the truth or the answers.

Shapes: P distinct (truth, answer) pairs, K relations, R resamples.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lushan.errors import DataError
from lushan.metrics.statistics import NUM_RESAMPLES, percentile_interval, resample
from lushan.records import Interval

OTHER = "Other"
_DIRECTION = re.compile(r"\(e[12],e[12]\)$")


def relation_of(label: str) -> str:
    """Give a label without its direction."""
    return _DIRECTION.sub("", label)


def intervals(
    truth: Sequence[str],
    answers: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Interval]:
    """Give `macro_f1` and `accuracy` (of whole labels) with their 95 % bootstrap percentile intervals.

    Args:
        truth: One label a row.
        answers: One label a row.
        labels: All that there are; they say whether there are directions.
        seed: Of the resamples.
        num_resamples: R.

    Raises:
        DataError: If there are no rows.
        ValueError: If there are not as many answers as truths.
    """
    if not truth:
        raise DataError("No rows to score: expected at least one row with a known label.")
    pairs = Counter(zip(truth, answers, strict=True))
    count_P = np.array(list(pairs.values()))
    whole = _values(count_P[None].astype(float), list(pairs), labels)
    weight_RP = resample(count_P, seed=seed, num_resamples=num_resamples)
    resampled = _values(weight_RP, list(pairs), labels)
    is_directed = _has_directions(labels)
    about_P = np.array([not is_directed or relation_of(true) != OTHER for true, _ in pairs], float)
    about = {"macro_f1": about_P, "accuracy": np.ones(len(pairs))}
    return {
        name: percentile_interval(
            float(value_R[0]),
            resampled[name][weight_RP @ about[name] > 0],
            num_rows=int(count_P @ about[name]),
        )
        for name, value_R in whole.items()
    }


def _has_directions(labels: Sequence[str]) -> bool:
    return any(relation_of(label) != label for label in labels)


def _values(
    weight_RP: NDArray[np.float64], pairs: Sequence[tuple[str, str]], labels: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Both metrics, (R,), of R weightings of the pairs."""
    is_directed = _has_directions(labels)
    right_P = np.array([true == given for true, given in pairs], dtype=float)
    relations = sorted({relation_of(label) for pair in pairs for label in pair})
    if is_directed:
        relations = [each for each in relations if each != OTHER]
    truth_PK, given_PK = (
        np.array([[relation_of(pair[side]) == each for each in relations] for pair in pairs], float)
        for side in (0, 1)
    )
    hit_RK = weight_RP @ (truth_PK * right_P[:, None])
    true_RK, both_RK = weight_RP @ truth_PK, weight_RP @ (truth_PK + given_PK)
    f1_RK = _ratio(2 * hit_RK, both_RK)
    is_counted_RK = (true_RK if is_directed else both_RK) > 0
    return {
        "macro_f1": _ratio((f1_RK * is_counted_RK).sum(axis=1), is_counted_RK.sum(axis=1)),
        "accuracy": weight_RP @ right_P / weight_RP.sum(axis=1),
    }


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)

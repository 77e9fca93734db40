"""From which probability on no answer should be given: the threshold that scores best, as SQuAD v2.0's script finds it.

Shapes: N questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_POINTS = 10
"""Rows of the table of thresholds, beside those that are best."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, with the answer that a model would give if it had to."""

    no_answer_probability: float
    has_answer: bool
    f1: float
    """Score of the answer, in [0, 1]; of a question without one, 1 where none was given all the same."""
    exact_match: float
    is_given: bool = True
    """Whether that is one: a model that writes may write that there is none."""


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """What one threshold does; fractions in [0, 1]."""

    threshold: float
    """No answer is given where the probability that there is none is above."""
    answered_fraction: float
    """Share of the questions that an answer is given to."""
    f1: float
    exact_match: float
    has_answer_f1: float
    has_answer_exact_match: float
    no_answer_accuracy: float
    is_best: bool = False
    """Whether F1 is highest here."""
    is_best_exact: bool = False
    """Whether exact match is highest here."""


def best_threshold(questions: Sequence[Asked], *, exact: bool = False) -> float:
    """Give the smallest threshold that scores best: SQuAD's `best_f1_thresh`, or `best_exact_thresh`.

    Answers of the same probability are given or withheld together, as they are when the threshold is used; SQuAD's
    script counts them one by one. 0 where giving no answer at all is best.
    """
    probability_N, answered_N, withheld_N = _columns(questions, exact=exact)
    order = np.argsort(probability_N, kind="stable")
    gain_N = (answered_N - withheld_N)[order]
    total_N = np.cumsum([withheld_N.sum(), *gain_N])
    probability_N = probability_N[order]
    is_end_N = np.append(probability_N[1:] != probability_N[:-1], True)
    reachable_N = np.where(is_end_N, total_N[1:], -np.inf)
    place = int(reachable_N.argmax())
    return float(probability_N[place]) if reachable_N[place] > total_N[0] else 0.0


def threshold_table(questions: Sequence[Asked]) -> list[ThresholdPoint]:
    """Show what thresholds do, from few answers to all: the best ones, and those that withhold each tenth less.

    Args:
        questions: Some with and some without an answer.
    """
    best, best_exact = best_threshold(questions), best_threshold(questions, exact=True)
    probability_N = np.array([each.no_answer_probability for each in questions])
    shares = np.arange(1, NUM_POINTS + 1) / NUM_POINTS
    tenths = np.quantile(probability_N, shares, method="inverted_cdf").tolist()
    return [
        _point(questions, threshold, best=best, best_exact=best_exact)
        for threshold in sorted({*tenths, best, best_exact})
    ]


def _point(
    questions: Sequence[Asked], threshold: float, *, best: float, best_exact: float
) -> ThresholdPoint:
    probability_N, f1_N, withheld_N = _columns(questions, exact=False)
    _, exact_N, _ = _columns(questions, exact=True)
    is_kept_N = probability_N <= threshold
    f1_N = np.where(is_kept_N, f1_N, withheld_N)
    exact_N = np.where(is_kept_N, exact_N, withheld_N)
    has_answer_N = withheld_N == 0
    is_given_N = np.array([each.is_given for each in questions])
    return ThresholdPoint(
        threshold,
        float((is_kept_N & is_given_N).mean()),
        float(f1_N.mean()),
        float(exact_N.mean()),
        float(f1_N[has_answer_N].mean()),
        float(exact_N[has_answer_N].mean()),
        float(exact_N[~has_answer_N].mean()),
        threshold == best,
        threshold == best_exact,
    )


def _columns(
    questions: Sequence[Asked], *, exact: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The probability of each question that it has no answer, and its scores where one is given, and where none is."""
    scores = [each.exact_match if exact else each.f1 for each in questions]
    return (
        np.array([each.no_answer_probability for each in questions]),
        np.array(scores, dtype=np.float64),
        np.array([float(not each.has_answer) for each in questions]),
    )

"""How varied and long replies are, and how likely the right ones; with intervals.

Shapes: N rows, R resamples.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lushan.errors import DataError
from lushan.metrics.pieces import ngrams, pieces
from lushan.metrics.statistics import CONFIDENCE_FRACTION, difference_interval, resampled_totals
from lushan.records import Interval

Part = tuple[str, ...]
"""Words that stand side by side."""
Likelihood = tuple[float, int]
"""Summed natural logarithms of the probabilities of the right reply's tokens, and how many tokens they are."""


def reply_intervals(replies: Sequence[str], *, seed: int) -> dict[str, Interval]:
    """Give `distinct_1`, `distinct_2` and `reply_length` with their 95 % intervals.

    Distinct-n of Li et al. (2016), "A diversity-promoting objective function for neural conversation models": different
    words (or pairs of words) of all replies, divided by all words. `reply_length` is the mean number of words. Where a
    script puts no spaces between words, each character is one.

    Raises:
        DataError: If there are no rows.
    """
    if not replies:
        raise DataError("No rows to score: expected at least one reply.")
    words = [pieces(reply) for reply in replies]
    length_N = np.array([len(each) for each in words], dtype=np.int64)
    mean_R = resampled_totals(length_N[:, None], seed=seed)[:, 0] / len(words)
    return {
        "distinct_1": _distinct([ngrams(each, 1) for each in words], length_N),
        "distinct_2": _distinct([ngrams(each, 2) for each in words], length_N),
        "reply_length": difference_interval(float(length_N.mean()), mean_R),
    }


def likelihood_intervals(likelihoods: Sequence[Likelihood], *, seed: int) -> dict[str, Interval]:
    """Give `perplexity` and `answer_log_likelihood` (natural logarithm, mean per token) of the right replies.

    Each with its 95 % interval, by a bootstrap over rows. Perplexity is the exponential of the negative mean: every token
    counts the same, in whatever row it stands.

    Raises:
        DataError: If there are no rows.
        ValueError: If a row has no tokens, or its log-likelihood is not finite or above 0.
    """
    if not likelihoods:
        raise DataError("No rows to score: expected at least one row with a known reply.")
    _check(likelihoods)
    table_N2 = np.array(likelihoods, dtype=np.float64)
    totals_R2 = resampled_totals(table_N2, seed=seed)
    mean_R = totals_R2[:, 0] / totals_R2[:, 1]
    total, num_tokens = table_N2.sum(axis=0).tolist()
    mean = total / num_tokens
    return {
        "perplexity": difference_interval(math.exp(-mean), np.exp(-mean_R)),
        "answer_log_likelihood": difference_interval(mean, mean_R),
    }


def row_scores(likelihoods: Sequence[Likelihood]) -> list[float]:
    """Give the geometric mean of the probabilities of each right reply's tokens, in [0, 1].

    Raises:
        ValueError: If a row has no tokens, or its log-likelihood is not finite or above 0.
    """
    _check(likelihoods)
    return [math.exp(total / num_tokens) for total, num_tokens in likelihoods]


def _check(likelihoods: Sequence[Likelihood]) -> None:
    for row, (total, num_tokens) in enumerate(likelihoods, start=1):
        if num_tokens < 1 or not -math.inf < total <= 0:
            raise ValueError(
                f"Row {row} of the scored rows: {num_tokens} tokens of log-likelihood {total}; expected at least "
                "one token, and a finite number not above 0."
            )


def _distinct(parts: Sequence[Sequence[Part]], length_N: NDArray[np.int64]) -> Interval:
    """Different parts of all rows, divided by their words.

    A row drawn twice brings nothing new, so the bootstrap would find too little spread. The jackknife of Efron and
    Stein (1981) leaves out each row once, and errs to the side of wide intervals.
    """
    rows_with = Counter(part for row in parts for part in set(row))
    num_words = int(length_N.sum())
    value = len(rows_with) / max(num_words, 1)
    if len(parts) == 1:
        return Interval(value, 0.0, 1.0)
    only_here_N = np.array([sum(rows_with[part] == 1 for part in set(row)) for row in parts])
    without_N = (len(rows_with) - only_here_N) / np.maximum(num_words - length_N, 1)
    variance = (len(parts) - 1) * float(np.var(without_N))
    reach = NormalDist().inv_cdf((1 + CONFIDENCE_FRACTION) / 2) * math.sqrt(variance)
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))

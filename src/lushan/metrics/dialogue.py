"""What can be told of free answers without a judge: how likely the truth was, how varied and how long they are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lushan.metrics.statistics import difference_interval, mean_interval, resampled_sums
from lushan.metrics.words import words
from lushan.records import Interval

Likelihood = tuple[float, int]
"""Log-probability of a truth, and its number of tokens."""


class Spoken(NamedTuple):
    """How good answers in conversations are."""

    metrics: dict[str, Interval]
    row_scores: list[float]
    """Geometric mean of the probabilities of each truth's tokens; empty where they are not known."""


def score(answers: Sequence[str], likelihoods: Sequence[Likelihood] | None, *, seed: int) -> Spoken:
    """Score answers.

    `distinct_1` and `distinct_2` are the different words, or pairs of words, of all answers as a share of all of them (Li
    et al. 2016, "A diversity-promoting objective function for neural conversation models"); `reply_length` is the mean
    number of words, of characters in Chinese and Japanese.

    Args:
        answers: What was written.
        likelihoods: Of the truth of each; None where the model was not asked.
        seed: Of the bootstrap over rows.
    """
    spoken = [words(answer) for answer in answers]
    metrics = likelihood_metrics(likelihoods, seed=seed) if likelihoods else {}
    metrics |= {f"distinct_{size}": _distinct(spoken, size, seed=seed) for size in (1, 2)}
    metrics["reply_length"] = mean_interval([float(len(each)) for each in spoken], seed=seed)
    return Spoken(metrics, [math.exp(total / size) for total, size in likelihoods or ()])


def likelihood_metrics(likelihoods: Sequence[Likelihood], *, seed: int) -> dict[str, Interval]:
    """`answer_log_likelihood`, the mean over all tokens, natural logarithm; and `perplexity`, its exponential, inverted."""
    table_N2 = np.array(likelihoods, dtype=float)
    sums_R2 = resampled_sums(table_N2, seed=seed)
    value = float(table_N2[:, 0].sum() / table_N2[:, 1].sum())
    found = difference_interval(value, sums_R2[:, 0] / sums_R2[:, 1])
    perplexity = Interval(math.exp(-value), math.exp(-found.high), math.exp(-found.low))
    return {"answer_log_likelihood": found, "perplexity": perplexity}


def _distinct(spoken: Sequence[Sequence[str]], size: int, *, seed: int) -> Interval:
    """Give the share of different runs of words, with an interval: the share of each row's runs that no earlier row has."""
    seen: set[tuple[str, ...]] = set()
    counts: list[tuple[int, int]] = []
    for row in spoken:
        runs = [tuple(row[start : start + size]) for start in range(len(row) - size + 1)]
        counts.append((len(set(runs) - seen), len(runs)))
        seen.update(runs)
    table_N2 = np.array(counts, dtype=float)
    sums_R2 = resampled_sums(table_N2, seed=seed)
    value = float(table_N2[:, 0].sum() / max(table_N2[:, 1].sum(), 1))
    return difference_interval(value, sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1))

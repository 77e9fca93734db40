"""Accuracy of chosen answers, and the two accuracies of lm-evaluation-harness.

`acc` takes the choice with the highest summed log-likelihood; `acc_norm` the one with the highest log-likelihood per
character of its text (`completion_len` in the harness counts characters, not bytes). Of equal ones the first counts.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lushan.errors import DataError
from lushan.metrics.statistics import accuracy
from lushan.records import Interval

LogLikelihoods = Mapping[str, float]
"""Choice to the summed log-likelihood of its tokens, in the order of the choices."""


def correct_rows(truth: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Say for every row whether the answer is the true one.

    Raises:
        ValueError: If there are not as many answers as truths.
    """
    return [one == other for one, other in zip(truth, answers, strict=True)]


def likeliest(likelihoods: LogLikelihoods, *, per_character: bool) -> str:
    """Give the choice with the highest log-likelihood, or the highest per character."""
    scores = [
        value / len(choice) if per_character else value for choice, value in likelihoods.items()
    ]
    return list(likelihoods)[int(np.argmax(scores))]


def intervals(
    truth: Sequence[str],
    answers: Sequence[str],
    likelihoods: Sequence[LogLikelihoods] = (),
    *,
    seed: int = 0,
) -> dict[str, Interval]:
    """Give the accuracy of the answers, and `acc` and `acc_norm` of the log-likelihoods, with 95 % bootstrap intervals.

    Args:
        truth: The right choices.
        answers: The given ones.
        likelihoods: One of each row; `acc` and `acc_norm` are left out unless every row has some.
        seed: Of the bootstrap.

    Raises:
        DataError: If there are no rows.
        ValueError: If there are not as many answers as truths.
    """
    if not truth:
        raise DataError("No rows to score: expected at least one row with a known answer.")
    found = {"accuracy": accuracy(correct_rows(truth, answers), seed=seed)}
    if likelihoods and all(likelihoods):
        for name, per_character in (("acc", False), ("acc_norm", True)):
            chosen = [likeliest(each, per_character=per_character) for each in likelihoods]
            found[name] = accuracy(correct_rows(truth, chosen), seed=seed)
    return found

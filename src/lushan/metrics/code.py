"""pass@k of programs: the chance that one of k samples solves a problem, estimated from n samples of which c did."""

from collections.abc import Sequence
from math import comb

from lushan.errors import DataError
from lushan.metrics.statistics import accuracy
from lushan.records import Interval


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate the chance that at least one of k samples is correct, without bias: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. (2021), "Evaluating large language models trained on code", equation 1. They multiply fractions
    to stay within floats; here the counts are exact integers, divided once.

    Args:
        num_samples: n, the programs sampled for one problem.
        num_correct: c, those that passed its tests.
        k: How many one may try; at most n.

    Raises:
        ValueError: If not 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(
            f"pass@{k} from {num_correct} correct of {num_samples} samples: expected 0 <= correct <= samples "
            "and 1 <= k <= samples."
        )
    all_draws = comb(num_samples, k)
    return (all_draws - comb(num_samples - num_correct, k)) / all_draws


def intervals(
    num_samples: Sequence[int], num_correct: Sequence[int], *, ks: Sequence[int], seed: int = 0
) -> dict[str, Interval]:
    """Give the mean pass@k over problems for every k, as `pass@1` and so on, with 95 % bootstrap intervals over problems.

    The intervals say how much depends on which problems were asked, not on which samples were drawn.

    Args:
        num_samples: n of each problem.
        num_correct: c of each problem.
        ks: Each at most the smallest n.
        seed: Of the bootstrap.

    Raises:
        DataError: If there are no problems, or fewer samples of one than k.
        ValueError: If there are not as many counts of correct samples as of samples, or a count is impossible.
    """
    if not num_samples:
        raise DataError("No problems to score: expected at least one with sampled programs.")
    fewest = min(num_samples)
    if max(ks, default=0) > fewest:
        raise DataError(
            f"pass@{max(ks)} needs at least {max(ks)} samples of every problem, got {fewest} of one. "
            "Draw more samples or ask for a smaller k."
        )
    counts = list(zip(num_samples, num_correct, strict=True))
    return {f"pass@{k}": accuracy([pass_at_k(n, c, k) for n, c in counts], seed=seed) for k in ks}

"""Who is better on the same rows, and is it more than luck: the arithmetic of `lushan compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lushan.errors import DataError
from lushan.metrics.statistics import TestName, accuracy_difference, holm, paired_tests
from lushan.records import Interval

_NOT_PER_TOKEN: Mapping[str, Mapping[str, int]] = {}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against another on the same rows."""

    first: str
    second: str
    difference: Interval
    """Accuracy of the second minus that of the first (graded rows: mean scores), with its paired 95 % bootstrap
    interval."""
    test: TestName
    """`mcnemar`, exact, where rows are right or wrong; `permutation`, paired, where they are graded."""
    wins: int
    """Rows that only the second got right, or did better."""
    losses: int
    """Rows that only the first got right, or did better."""
    p_value: float
    """Of the test, two-sided, of this pair alone."""
    p_value_holm: float
    """The same, corrected after Holm for all comparisons made together."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `results.json` and `--json`."""
        return {
            "test": self.test,
            "p_value": self.p_value,
            "p_value_holm": self.p_value_holm,
            "wins": self.wins,
            "losses": self.losses,
            "difference": {
                "value": self.difference.value,
                "low": self.difference.low,
                "high": self.difference.high,
            },
        }


def comparisons(
    after: Sequence[float], others: Mapping[str, Sequence[float]], *, seed: int
) -> dict[str, dict[str, Any]]:
    """Compare the tuned model with `before` and every baseline: a block of `results.json`.

    Args:
        after: Whether the tuned model is right, or how good it is from 0 to 1, per test row.
        others: Name to the same rows of another system; a difference is `after` minus it.
        seed: Of the bootstrap and the permutations.
    """
    pairs = [(name, "after") for name in others]
    made = _compare(pairs, {**others, "after": after}, seed=seed)
    return {each.first: each.as_dict() for each in made}


def compare_runs(
    runs: Mapping[str, Mapping[str, float]],
    *,
    seed: int,
    num_truth_tokens: Mapping[str, Mapping[str, int]] = _NOT_PER_TOKEN,
) -> list[Comparison]:
    """Compare every run with every later one.

    Args:
        runs: Run name to example id to whether it was answered right, or how well from 0 to 1; in the order to
            show. Rows of the same content have one id and count once: they tell nothing new.
        seed: Of the bootstrap and the permutations.
        num_truth_tokens: Run name to example id to the tokens of its truth, of runs whose rows are scored by how likely
            these are on the mean.

    Raises:
        DataError: If fewer than two runs came, they were not tested on the same rows, or means per token are those of
            other tokens.
    """
    if len(runs) < 2:
        raise DataError(f"Comparing needs at least two runs, got {len(runs)}.")
    first_name = next(iter(runs))
    ids = sorted(runs[first_name])
    for name, run in runs.items():
        _check_same_rows((first_name, ids), (name, sorted(run)))
        _check_same_tokens(first_name, name, num_truth_tokens)
    if not ids:
        raise DataError(f"Run `{first_name}` has no test rows to compare.")
    systems = {name: [run[id_] for id_ in ids] for name, run in runs.items()}
    return _compare(list(combinations(runs, 2)), systems, seed=seed)


def _compare(
    pairs: Sequence[tuple[str, str]], systems: Mapping[str, Sequence[float]], *, seed: int
) -> list[Comparison]:
    rows = [(systems[first], systems[second]) for first, second in pairs]
    tests = dict(zip(pairs, paired_tests(rows, seed=seed), strict=True))
    corrected = holm({str(pair): test.p_value for pair, test in tests.items()})
    return [
        Comparison(
            *pair,
            accuracy_difference(systems[pair[0]], systems[pair[1]], seed=seed),
            test=test.name,
            wins=test.wins,
            losses=test.losses,
            p_value=test.p_value,
            p_value_holm=corrected[str(pair)],
        )
        for pair, test in tests.items()
    ]


def _check_same_rows(first: tuple[str, list[str]], other: tuple[str, list[str]]) -> None:
    if first[1] == other[1]:
        return
    num_shared = len(set(first[1]) & set(other[1]))
    raise DataError(
        f"Runs `{first[0]}` and `{other[0]}` were not tested on the same rows: {len(first[1]):,} and "
        f"{len(other[1]):,} rows, {num_shared:,} in common. Ask them about the same rows: "
        "`lushan compare RUN RUN --data DATA`."
    )


def _check_same_tokens(
    first: str, other: str, num_truth_tokens: Mapping[str, Mapping[str, int]]
) -> None:
    """Refuse means per token of other tokens: of few long tokens each is less likely than of many short ones."""
    ours, theirs = (num_truth_tokens.get(name, {}) for name in (first, other))
    unlike = [id_ for id_, number in ours.items() if theirs.get(id_) != number]
    if unlike:
        raise DataError(
            f"Runs `{first}` and `{other}` cannot be compared: their rows are scored by how likely the truth is, on the mean "
            f"of its tokens, and of {len(unlike):,} of {len(ours):,} rows the truth has other tokens (`{unlike[0]}`: "
            f"{ours[unlike[0]]} and {theirs.get(unlike[0])}). Their tokenizers or chat templates differ, or one read more of a "
            "conversation. Compare runs that were tuned from models with one tokenizer, with the same `model.max_length`."
        )

"""Who is better on the same rows, and is it more than luck: the arithmetic of `lushan compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from lushan.errors import DataError
from lushan.metrics.statistics import accuracy_difference, are_graded, holm, paired_test
from lushan.records import Interval

TestName = Literal["mcnemar", "permutation"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against another on the same rows."""

    first: str
    second: str
    difference: Interval
    """Accuracy, or mean score, of the second minus that of the first, with its paired 95 % bootstrap interval."""
    wins: int
    """Rows that only the second got right, or did better."""
    losses: int
    """Rows that only the first got right, or did better."""
    test: TestName
    """Exact McNemar test where rows are right or wrong; else a permutation test."""
    p_value: float
    """Two-sided, of this pair alone."""
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
        after: Whether the tuned model is right, or how good it is, per test row.
        others: Name to the same rows of another system; a difference is `after` minus it.
        seed: Of the bootstrap.
    """
    pairs = [(name, "after") for name in others]
    made = _compare(pairs, {**others, "after": after}, seed=seed)
    return {each.first: each.as_dict() for each in made}


def compare_runs(runs: Mapping[str, Mapping[str, float]], *, seed: int) -> list[Comparison]:
    """Compare every run with every later one.

    Args:
        runs: Run name to example id to whether it was answered right, or how well; in the order to show. Rows
            of the same content have one id and count once: they tell nothing new.
        seed: Of the bootstrap.

    Raises:
        DataError: If fewer than two runs came, or they were not tested on the same rows.
    """
    if len(runs) < 2:
        raise DataError(f"Comparing needs at least two runs, got {len(runs)}.")
    first_name = next(iter(runs))
    ids = sorted(runs[first_name])
    for name, run in runs.items():
        _check_same_rows((first_name, ids), (name, sorted(run)))
    if not ids:
        raise DataError(f"Run `{first_name}` has no test rows to compare.")
    systems = {name: [run[id_] for id_ in ids] for name, run in runs.items()}
    return _compare(list(combinations(runs, 2)), systems, seed=seed)


def _compare(
    pairs: Sequence[tuple[str, str]], systems: Mapping[str, Sequence[float]], *, seed: int
) -> list[Comparison]:
    tests = {pair: paired_test(systems[pair[0]], systems[pair[1]], seed=seed) for pair in pairs}
    name: TestName = "permutation" if are_graded(*systems.values()) else "mcnemar"
    corrected = holm({str(pair): test.p_value for pair, test in tests.items()})
    return [
        Comparison(
            *pair,
            accuracy_difference(systems[pair[0]], systems[pair[1]], seed=seed),
            wins=test.wins,
            losses=test.losses,
            test=name,
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
        f"{len(other[1]):,} rows, {num_shared:,} in common. Evaluate both on one file first: "
        "`lushan evaluate RUN DATA`."
    )

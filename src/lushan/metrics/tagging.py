"""Precision, recall and F1 of entities: an entity counts when its place and its label are both right.

Equal to seqeval and to the CoNLL scorer on tags without mistakes. Triples are counted in the same way: one counts when the
letters of its head, its relation and the letters of its tail are all right, each triple of a row once.

Shapes: N rows, C labels, P distinct patterns of counts, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lushan.errors import DataError
from lushan.metrics.statistics import NUM_RESAMPLES, percentile_interval, resample
from lushan.records import Interval, Span, Triple

Spans = Sequence[Span] | Sequence[Triple]


@dataclass(frozen=True, slots=True)
class TypeScores:
    """How well the entities of one label are found."""

    label: str
    precision: float
    """Share of the answered entities that are right; 0 where none was answered."""
    recall: float
    """Share of the true entities that were found; 0 where there is none."""
    f1: float
    support: int
    """True entities."""


@dataclass(frozen=True, slots=True)
class TaggingScores:
    """Every score of one set of answers; fractions in [0, 1]."""

    f1: float
    """Of all entities together (micro); 0 where there are none."""
    precision: float
    recall: float
    macro_f1: float
    """Mean F1 of the labels that occur in the truth or the answers."""
    exact_match: float
    """Share of rows of which every entity is right, and nothing else was answered."""
    per_class: tuple[TypeScores, ...]
    """One entry per label, in class order."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metric name to value."""
        names = ("f1", "precision", "recall", "macro_f1", "exact_match")
        return {name: getattr(self, name) for name in names}


def correct_rows(truth: Sequence[Spans], answers: Sequence[Spans]) -> list[bool]:
    """Say for every row whether its entities are exactly the true ones.

    Raises:
        ValueError: If there are not as many answers as truths.
    """
    return [set(one) == set(other) for one, other in zip(truth, answers, strict=True)]


def score(truth: Sequence[Spans], answers: Sequence[Spans], labels: Sequence[str]) -> TaggingScores:
    """Compare answers with the truth.

    Raises:
        DataError: If there are no rows, or a label is not one of `labels`.
        ValueError: If there are not as many answers as truths.
    """
    counts_N3C = _counts(truth, answers, labels)
    whole = {name: float(value_R[0]) for name, value_R in _values(counts_N3C.sum(0)[None]).items()}
    hit_C, given_C, true_C = counts_N3C.sum(0).astype(float)
    precision_C, recall_C = _ratio(hit_C, given_C), _ratio(hit_C, true_C)
    f1_C = _ratio(2 * hit_C, given_C + true_C)
    return TaggingScores(
        **whole,
        exact_match=float(np.mean(correct_rows(truth, answers))),
        per_class=tuple(
            TypeScores(
                label, float(precision_C[i]), float(recall_C[i]), float(f1_C[i]), int(true_C[i])
            )
            for i, label in enumerate(labels)
        ),
    )


def intervals(
    truth: Sequence[Spans],
    answers: Sequence[Spans],
    labels: Sequence[str],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Interval]:
    """Give every metric of `score` with its 95 % interval, by a bootstrap over the rows that it is about.

    Raises:
        DataError: If there are no rows, or a label is not one of `labels`.
    """
    counts_N3C = _counts(truth, answers, labels)
    right_N = np.array(correct_rows(truth, answers), dtype=np.int64)
    rows_NK = np.concatenate([right_N[:, None], counts_N3C.reshape(len(truth), -1)], axis=1)
    patterns_PK, count_P = np.unique(rows_NK, axis=0, return_counts=True)
    weight_RP = resample(count_P, seed=seed, num_resamples=num_resamples)
    totals_RK = weight_RP @ patterns_PK
    resampled = _values(totals_RK[:, 1:].reshape(num_resamples, 3, len(labels)))
    resampled["exact_match"] = totals_RK[:, 0] / len(truth)
    about = _rows_about(patterns_PK[:, 1:].reshape(len(count_P), 3, len(labels)))
    return {
        name: percentile_interval(
            value,
            resampled[name][weight_RP @ about[name] > 0],
            num_rows=int(count_P @ about[name]),
        )
        for name, value in score(truth, answers, labels).metrics.items()
    }


def _rows_about(counts_P3C: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Whether each metric is about a pattern, (P,): about those that count in what it is divided by."""
    has_3P: NDArray[np.int64] = np.minimum(counts_P3C.sum(axis=2), 1).T
    given_P, true_P = has_3P[1], has_3P[2]
    either_P = np.maximum(given_P, true_P)
    return {
        "f1": either_P,
        "precision": given_P,
        "recall": true_P,
        "macro_f1": either_P,
        "exact_match": np.ones(len(counts_P3C), dtype=np.int64),
    }


def _values(totals_R3C: NDArray[np.int64] | NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Every metric that follows from counts of hits, answers and truths; (R,) each."""
    hit_RC, given_RC, true_RC = totals_R3C.astype(float).swapaxes(0, 1)
    hit_R, given_R, true_R = hit_RC.sum(1), given_RC.sum(1), true_RC.sum(1)
    f1_RC, num_occurring_R = _ratio(2 * hit_RC, given_RC + true_RC), (given_RC + true_RC > 0).sum(1)
    return {
        "f1": _ratio(2 * hit_R, given_R + true_R),
        "precision": _ratio(hit_R, given_R),
        "recall": _ratio(hit_R, true_R),
        "macro_f1": _ratio(f1_RC.sum(1), num_occurring_R.astype(float)),
    }


def _counts(
    truth: Sequence[Spans], answers: Sequence[Spans], labels: Sequence[str]
) -> NDArray[np.int64]:
    """Hits, answered and true entities of every row and label, (N, 3, C)."""
    if not truth:
        raise DataError("No rows to score: expected at least one row with known entities.")
    columns = {label: column for column, label in enumerate(labels)}
    counts_N3C = np.zeros((len(truth), 3, len(labels)), dtype=np.int64)
    for row, (expected, answered) in enumerate(zip(truth, answers, strict=True)):
        true, given = set(expected), set(answered)
        unknown = [each.label for each in true | given if each.label not in columns]
        if unknown:
            raise DataError(
                f"Row {row + 1} of the scored rows has the label `{min(unknown)}`, which is not one of "
                f"the {len(columns)} known labels: {', '.join(list(columns)[:20])}."
            )
        for place, spans in enumerate((true & given, given, true)):
            np.add.at(counts_N3C[row, place], [columns[each.label] for each in spans], 1)
    return counts_N3C


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)

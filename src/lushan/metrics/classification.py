"""Accuracy, F1 and their intervals, for one label per text or several.

Shapes: N rows, L labels, P distinct (truth, answer) patterns, R resamples. Everything is computed from
patterns and how often they occur, so that a thousand resamples cost one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lushan.errors import DataError
from lushan.metrics.statistics import NUM_RESAMPLES, percentile_interval, resample
from lushan.records import Interval

Answer = str | tuple[str, ...]
"""One label, or the labels of a multi-label text."""


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How well one label is recognised."""

    label: str
    precision: float
    """Share of the texts given this label that have it; 0 where none was given it."""
    recall: float
    """Share of the texts with this label that were given it; 0 where none has it."""
    f1: float
    support: int
    """Texts that truly have this label."""


@dataclass(frozen=True, slots=True)
class ClassificationScores:
    """Every score of one set of answers; fractions in [0, 1]."""

    accuracy: float
    """Share of rows that are right; a multi-label row is right when all its labels are."""
    macro_f1: float
    """Mean F1 of the labels that occur in the truth or the answers."""
    micro_f1: float
    """F1 of all decisions together; equals accuracy when each text has one label."""
    f1: float | None
    """F1 of the positive label; None unless binary."""
    precision: float | None
    """Precision of the positive label; None unless binary."""
    recall: float | None
    """Recall of the positive label; None unless binary."""
    per_class: tuple[ClassScores, ...]
    """One entry per label, in class order."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: truth, columns: answer, in class order; empty for multi-label."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metric name to value, without those that do not apply."""
        names = ("accuracy", "macro_f1", "micro_f1", "f1", "precision", "recall")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Distinct combinations of truth and answer, and how many rows show each."""

    count_P: NDArray[np.int64]
    truth_PL: NDArray[np.float64]
    answer_PL: NDArray[np.float64]


def correct_rows(truth: Sequence[Answer], answers: Sequence[Answer]) -> list[bool]:
    """Say for every row whether it is right; the order of a multi-label row's labels is no matter.

    Raises:
        ValueError: If there are not as many answers as truths.
    """
    return [
        _as_set(expected) == _as_set(answer)
        for expected, answer in zip(truth, answers, strict=True)
    ]


def positive_label(
    labels: Sequence[str], *, multi_label: bool, named: str | None = None
) -> str | None:
    """Give the label that F1, precision and recall are of: that which was named, else the last of two; None unless binary."""
    if len(labels) != 2 or multi_label:
        return None
    return labels[1] if named is None else named


def score(
    truth: Sequence[Answer],
    answers: Sequence[Answer],
    labels: Sequence[str],
    *,
    multi_label: bool,
    positive: str | None = None,
) -> ClassificationScores:
    """Compare answers with the truth; `positive` is the label of `positive_label`.

    Equal to scikit-learn's scores with `zero_division=np.nan` for macro F1 (a label that occurs
    nowhere is left out of the mean) and `zero_division=0` in the per-class table.

    Raises:
        DataError: If there are no rows, or a label is not one of `labels`.
        ValueError: If there are not as many answers as truths.
    """
    patterns = _patterns(truth, answers, labels)
    values = _values(
        patterns.count_P[None].astype(float),
        patterns,
        positive=_column(labels, positive, multi_label=multi_label),
    )
    confusion_LL = (patterns.truth_PL * patterns.count_P[:, None]).T @ patterns.answer_PL
    whole = {name: float(value_R[0]) for name, value_R in values.items()}
    return ClassificationScores(
        accuracy=whole["accuracy"],
        macro_f1=whole["macro_f1"],
        micro_f1=whole["micro_f1"],
        f1=whole.get("f1"),
        precision=whole.get("precision"),
        recall=whole.get("recall"),
        per_class=_per_class(patterns, labels),
        confusion=()
        if multi_label
        else tuple(tuple(int(count) for count in row) for row in confusion_LL),
    )


def intervals(
    truth: Sequence[Answer],
    answers: Sequence[Answer],
    labels: Sequence[str],
    *,
    multi_label: bool,
    positive: str | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Interval]:
    """Give every metric of `score` with its 95 % bootstrap percentile interval, each of the rows that it is about.

    Raises:
        DataError: If there are no rows, or a label is not one of `labels`.
    """
    patterns = _patterns(truth, answers, labels)
    column = _column(labels, positive, multi_label=multi_label)
    whole = _values(patterns.count_P[None].astype(float), patterns, positive=column)
    weight_RP = resample(patterns.count_P, seed=seed, num_resamples=num_resamples)
    resampled = _values(weight_RP, patterns, positive=column)
    about = _rows_about(patterns, positive=column)
    return {
        name: percentile_interval(
            float(value_R[0]),
            resampled[name][weight_RP @ about[name] > 0],
            num_rows=int(patterns.count_P @ about[name]),
        )
        for name, value_R in whole.items()
    }


def _values(
    weight_RP: NDArray[np.float64], patterns: _Patterns, *, positive: int | None
) -> dict[str, NDArray[np.float64]]:
    """Every metric, (R,), of R weightings of the patterns, (R, P); `positive` is the number of a label."""
    truth_PL, answer_PL = patterns.truth_PL, patterns.answer_PL
    right_P = (truth_PL == answer_PL).all(axis=1).astype(float)
    hit_RL = weight_RP @ (truth_PL * answer_PL)
    true_RL, given_RL = weight_RP @ truth_PL, weight_RP @ answer_PL
    either_RL = true_RL + given_RL
    f1_RL = _ratio(2 * hit_RL, either_RL)
    num_occurring_R = (either_RL > 0).sum(axis=1)
    values = {
        "accuracy": weight_RP @ right_P / weight_RP.sum(axis=1),
        "macro_f1": _ratio(f1_RL.sum(axis=1), num_occurring_R),
        "micro_f1": _ratio(2 * hit_RL.sum(axis=1), either_RL.sum(axis=1)),
    }
    if positive is not None:
        values["f1"] = f1_RL[:, positive]
        values["precision"] = _ratio(hit_RL[:, positive], given_RL[:, positive])
        values["recall"] = _ratio(hit_RL[:, positive], true_RL[:, positive])
    return values


def _rows_about(patterns: _Patterns, *, positive: int | None) -> dict[str, NDArray[np.float64]]:
    """Whether each metric is about a pattern, (P,): about those that count in what it is divided by."""
    truth_PL, answer_PL = patterns.truth_PL, patterns.answer_PL
    either_PL = np.maximum(truth_PL, answer_PL)
    has_label_P = either_PL.any(axis=1).astype(float)
    about = {
        "accuracy": np.ones(len(truth_PL)),
        "macro_f1": has_label_P,
        "micro_f1": has_label_P,
    }
    if positive is not None:
        about["f1"] = either_PL[:, positive]
        about["precision"] = answer_PL[:, positive]
        about["recall"] = truth_PL[:, positive]
    return about


def _per_class(patterns: _Patterns, labels: Sequence[str]) -> tuple[ClassScores, ...]:
    truth_PL, answer_PL = patterns.truth_PL, patterns.answer_PL
    hit_L = patterns.count_P @ (truth_PL * answer_PL)
    true_L, given_L = patterns.count_P @ truth_PL, patterns.count_P @ answer_PL
    precision_L, recall_L = _ratio(hit_L, given_L), _ratio(hit_L, true_L)
    f1_L = _ratio(2 * hit_L, true_L + given_L)
    return tuple(
        ClassScores(
            label, float(precision_L[i]), float(recall_L[i]), float(f1_L[i]), int(true_L[i])
        )
        for i, label in enumerate(labels)
    )


def _patterns(
    truth: Sequence[Answer], answers: Sequence[Answer], labels: Sequence[str]
) -> _Patterns:
    if not truth:
        raise DataError("No rows to score: expected at least one row with a known label.")
    if len(answers) != len(truth):
        raise ValueError(f"{len(truth)} truths, but {len(answers)} answers.")
    columns = {label: column for column, label in enumerate(labels)}
    indicator = np.concatenate([_indicator(each, columns) for each in (truth, answers)], axis=1)
    pattern_PK, count_P = np.unique(indicator, axis=0, return_counts=True)
    truth_PL, answer_PL = np.split(pattern_PK.astype(float), 2, axis=1)
    return _Patterns(count_P, truth_PL, answer_PL)


def _indicator(answers: Sequence[Answer], columns: dict[str, int]) -> NDArray[np.bool_]:
    """Whether a row has a label, (N, L)."""
    has_NL = np.zeros((len(answers), len(columns)), dtype=bool)
    for row, answer in enumerate(answers):
        for label in _as_set(answer):
            if label not in columns:
                raise DataError(
                    f"Row {row + 1} of the scored rows has the label `{label}`, which is not one of "
                    f"the {len(columns)} known labels: {', '.join(list(columns)[:20])}."
                )
            has_NL[row, columns[label]] = True
    return has_NL


def _as_set(answer: Answer) -> frozenset[str]:
    return frozenset((answer,) if isinstance(answer, str) else answer)


def _column(labels: Sequence[str], named: str | None, *, multi_label: bool) -> int | None:
    positive = positive_label(labels, multi_label=multi_label, named=named)
    return None if positive is None else list(labels).index(positive)


def _ratio(
    above: NDArray[np.float64], below: NDArray[np.float64] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)

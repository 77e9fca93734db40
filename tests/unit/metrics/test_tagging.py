"""Entity scores are those of seqeval, on many drawn rows; intervals come from a bootstrap over rows."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

from lushan.errors import DataError
from lushan.metrics import tagging
from lushan.records import Interval, Mention, Span, Triple

LABELS = ("a", "b", "c")
Tags = list[list[str]]


def drawn(dice: random.Random, num_rows: int) -> Tags:
    rows: Tags = []
    for _ in range(num_rows):
        tags: list[str] = []
        for _ in range(dice.randint(1, 12)):
            goes_on = [f"I-{tags[-1][2:]}"] if tags and tags[-1] != "O" else []
            tags.append(dice.choice(["O", "O", "B-a", "B-b", "B-c", *goes_on * 3]))
        rows.append(tags)
    return rows


def changed(dice: random.Random, rows: Tags) -> Tags:
    """Answers that are often right."""
    return [tags if dice.random() < 0.6 else drawn(dice, 1)[0][: len(tags)] + ["O"] * 12 for tags in rows]  # fmt: skip


def spans(rows: Tags) -> list[list[Span]]:
    return [[Span(first, last + 1, label) for label, first, last in get_entities(tags)] for tags in rows]  # fmt: skip


def same_length(truth: Tags, answers: Tags) -> Tags:
    return [answer[: len(tags)] + ["O"] * (len(tags) - len(answer)) for tags, answer in zip(truth, answers, strict=True)]  # fmt: skip


@pytest.fixture(params=range(50))
def pair(request: pytest.FixtureRequest) -> tuple[Tags, Tags]:
    dice = random.Random(request.param)
    truth = drawn(dice, 20)
    return truth, same_length(truth, changed(dice, truth))


def test_scores_are_those_of_seqeval(pair: tuple[Tags, Tags]) -> None:
    truth, answers = pair
    found = tagging.score(spans(truth), spans(answers), LABELS)
    strict = {"mode": "strict", "scheme": IOB2}
    assert found.f1 == pytest.approx(f1_score(truth, answers, **strict))
    assert found.precision == pytest.approx(precision_score(truth, answers, **strict))
    assert found.recall == pytest.approx(recall_score(truth, answers, **strict))
    assert found.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro", **strict))


def test_scores_per_type_are_those_of_seqeval(pair: tuple[Tags, Tags]) -> None:
    truth, answers = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of types that are never answered
        report = classification_report(truth, answers, output_dict=True)
    assert isinstance(report, dict)
    for each in tagging.score(spans(truth), spans(answers), LABELS).per_class:
        expected = report[each.label]
        assert each.precision == pytest.approx(expected["precision"])
        assert each.recall == pytest.approx(expected["recall"])
        assert each.f1 == pytest.approx(expected["f1-score"])
        assert each.support == expected["support"]


def test_row_is_right_when_all_its_entities_are() -> None:
    truth = [[Span(0, 1, "a")], [], [Span(0, 1, "a"), Span(2, 3, "b")], []]
    answers = [[Span(0, 1, "a")], [], [Span(0, 1, "a")], [Span(0, 1, "b")]]
    assert tagging.correct_rows(truth, answers) == [True, True, False, False]
    assert tagging.score(truth, answers, LABELS).exact_match == 0.5


def test_place_and_label_must_both_be_right() -> None:
    truth = [[Span(0, 4, "a")]]
    assert tagging.score(truth, [[Span(0, 4, "b")]], LABELS).f1 == 0.0
    assert tagging.score(truth, [[Span(0, 3, "a")]], LABELS).f1 == 0.0
    assert tagging.score(truth, [[Span(0, 4, "a", probability=0.3)]], LABELS).f1 == 1.0


def test_intervals_are_those_of_rows_drawn_one_by_one() -> None:
    dice = random.Random(5)
    rows = drawn(dice, 60)
    truth, answers = spans(rows), spans(same_length(rows, changed(dice, rows)))
    found = tagging.intervals(truth, answers, LABELS, num_resamples=2_000)
    generator = np.random.default_rng(1)
    values: list[float] = []
    for _ in range(2_000):
        drawn_rows = generator.integers(60, size=60)
        again = [[part[index] for index in drawn_rows] for part in (truth, answers)]
        values.append(tagging.score(again[0], again[1], LABELS).f1)
    low, high = np.quantile(values, [0.025, 0.975])
    assert found["f1"].low == pytest.approx(low, abs=0.02)
    assert found["f1"].high == pytest.approx(high, abs=0.02)
    assert found["f1"].value == tagging.score(truth, answers, LABELS).f1


def test_intervals_are_of_every_metric_and_repeat_themselves() -> None:
    truth, answers = [[Span(0, 1, "a")], []], [[], []]
    found = tagging.intervals(truth, answers, LABELS)
    assert found == tagging.intervals(truth, answers, LABELS)
    assert set(found) == set(tagging.score(truth, answers, LABELS).metrics)


def test_each_metric_is_as_unsure_as_the_rows_that_it_is_about() -> None:
    truth = [[Span(0, 1, "a")]] * 4 + [[]] * 196
    whole = tagging.intervals(truth, truth, LABELS)
    for name, num_rows in (("f1", 4), ("precision", 4), ("recall", 4), ("exact_match", 200)):
        assert whole[name].low == pytest.approx(0.025 ** (1 / num_rows))
    nothing = tagging.intervals(truth, [[]] * 200, LABELS)
    assert nothing["precision"] == Interval(0.0, 0.0, 1.0)
    assert nothing["f1"].high == nothing["recall"].high == pytest.approx(1 - 0.025 ** (1 / 4))


def test_strange_label_and_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"Row 2 .* `z`, which is not one of the 3 known"):
        tagging.score([[], [Span(0, 1, "z")]], [[], []], LABELS)
    with pytest.raises(DataError, match="No rows to score"):
        tagging.score([], [], LABELS)


def drawn_triples(dice: random.Random) -> list[Triple]:
    """Up to four triples of three names; the same triple may come again from another place."""

    def mention() -> Mention:
        start = dice.randrange(9)
        return Mention("abc"[start % 3], start, start + 1)

    return [Triple(mention(), dice.choice(LABELS), mention()) for _ in range(dice.randint(0, 4))]


def keys(rows: list[list[Triple]], label: str | None = None) -> set[tuple[int, str, str, str]]:
    """Rows and letters, which is all that counts."""
    return {
        (number, x.head.text, x.label, x.tail.text)
        for number, row in enumerate(rows)
        for x in row
        if label in {None, x.label}
    }


def ratios(true: set[Any], given: set[Any]) -> list[float]:
    """Precision, recall and F1, by their definitions."""
    hits = len(true & given)
    precision, recall = (hits / len(x) if x else 0.0 for x in (given, true))
    return [precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0]


def test_scores_of_1000_drawn_sets_of_triples_are_those_of_set_arithmetic() -> None:
    dice = random.Random(4)
    for _ in range(1_000):
        truth = [drawn_triples(dice) for _ in range(4)]
        answers = [each if dice.random() < 0.4 else drawn_triples(dice) for each in truth]
        found = tagging.score(truth, answers, LABELS)
        whole = ratios(keys(truth), keys(answers))
        assert [found.precision, found.recall, found.f1] == pytest.approx(whole)
        right = [keys([x]) == keys([y]) for x, y in zip(truth, answers, strict=True)]
        assert found.exact_match == pytest.approx(np.mean(right))
        for each in found.per_class:
            true, given = keys(truth, each.label), keys(answers, each.label)
            assert [each.precision, each.recall, each.f1] == pytest.approx(ratios(true, given))
            assert each.support == len(true)

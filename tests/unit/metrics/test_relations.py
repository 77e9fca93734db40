"""Macro F1 is that of SemEval-2010 Task 8's scorer: by its own output, by scikit-learn, and by hand."""

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score

from lushan.errors import DataError
from lushan.metrics.relations import intervals, relation_of

RELATIONS = ("Cause-Effect", "Entity-Origin", "Message-Topic")
LABELS = ("Other", *(f"{each}({way})" for each in RELATIONS for way in ("e1,e2", "e2,e1")))
PRINTED = {0: (60.58, 61.67), 1: (65.51, 61.67), 2: (54.16, 53.33), 3: (61.79, 61.67)}
"""Seed to the macro F1 and the accuracy, in percent, that the scorer (version 1.2) prints for its rows."""


def drawn(seed: int) -> tuple[list[str], list[str]]:
    dice = random.Random(seed)
    truth = [dice.choice(LABELS) for _ in range(60)]
    return truth, [each if dice.random() < 0.6 else dice.choice(LABELS) for each in truth]


def values(truth: list[str], answers: list[str], labels: tuple[str, ...]) -> tuple[float, float]:
    found = intervals(truth, answers, labels, num_resamples=10)
    return found["macro_f1"].value, found["accuracy"].value


@pytest.mark.parametrize("seed", PRINTED)
def test_values_are_those_that_the_official_scorer_prints(seed: int) -> None:
    found = values(*drawn(seed), LABELS)
    assert [round(100 * each, 2) for each in found] == list(PRINTED[seed])


@pytest.mark.parametrize("seed", range(50))
def test_relation_is_the_micro_average_of_its_two_directions(seed: int) -> None:
    truth, answers = drawn(seed)
    each = [
        f1_score(truth, answers, labels=[f"{name}(e1,e2)", f"{name}(e2,e1)"], average="micro")
        for name in RELATIONS
    ]
    expected = (sum(each) / len(each), accuracy_score(truth, answers))
    assert values(truth, answers, LABELS) == pytest.approx(expected)


def test_example_worked_by_hand() -> None:
    truth = ["A(e1,e2)", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    answers = ["A(e1,e2)", "A(e2,e1)", "Other", "B(e1,e2)", "B(e2,e1)", "Other"]
    # A: 1 hit of 2 given and 3 true, 2/5. B: 1 hit of 2 given and 1 true, 2/3. Right rows: 3 of 6.
    assert values(truth, answers, ("A(e1,e2)", "Other")) == pytest.approx(((2 / 5 + 2 / 3) / 2, 0.5))  # fmt: skip


def test_relation_that_the_truth_does_not_have_is_not_counted() -> None:
    assert values(["A(e1,e2)", "Other"], ["A(e1,e2)", "B(e1,e2)"], ("A(e1,e2)",))[0] == 1.0
    assert values(["Other"], ["B(e1,e2)"], ("B(e1,e2)",))[0] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_without_directions_it_is_plain_macro_f1(seed: int) -> None:
    truth, answers = ([relation_of(each) for each in part] for part in drawn(seed))
    labels = tuple(relation_of(each) for each in LABELS)
    expected = (f1_score(truth, answers, average="macro"), accuracy_score(truth, answers))
    assert values(truth, answers, labels) == pytest.approx(expected)


def test_intervals_hold_their_values_and_depend_on_the_seed_alone() -> None:
    first, again = (intervals(*drawn(0), LABELS, seed=3) for _ in range(2))
    assert first == again != intervals(*drawn(0), LABELS, seed=4)
    assert all(0 <= each.low < each.value < each.high <= 1 for each in first.values())


def test_mean_over_few_relations_is_as_unsure_as_their_rows() -> None:
    truth = ["Cause-Effect(e1,e2)"] * 4 + ["Other"] * 196
    found = intervals(truth, truth, LABELS)
    assert found["macro_f1"].low == pytest.approx(0.025 ** (1 / 4))
    assert found["accuracy"].low == pytest.approx(0.025 ** (1 / 200))
    without = intervals(truth, truth, ("Cause-Effect", "Other"))
    assert without["macro_f1"].low == without["accuracy"].low


def test_only_an_ending_is_a_direction() -> None:
    names = ["A(e2,e1)", "A(e1,e2) b", "Other", "A (x)"]
    assert [relation_of(each) for each in names] == ["A", *names[1:]]


def test_no_rows_and_unequal_rows_are_refused() -> None:
    with pytest.raises(DataError, match="No rows to score"):
        intervals([], [], LABELS)
    with pytest.raises(ValueError, match="shorter"):
        intervals(["a"], [], LABELS)

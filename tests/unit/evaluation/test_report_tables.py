"""Tables hold what the results say, in an order that helps."""

from typing import Any

import pytest

from lushan.evaluation import report_tables as tables


def _score(value: float) -> dict[str, Any]:
    return {"accuracy": {"value": value, "low": value - 0.05, "high": value + 0.05}}


def _results(**over: object) -> dict[str, Any]:
    base = {"main_metric": "accuracy", "after": _score(0.9), "before": _score(0.2)}
    return tables.complete({**base, **over})


def test_systems_stand_best_first_below_the_tuned_model() -> None:
    results = _results(baselines={"majority": _score(0.1), "tf_idf": _score(0.95)})
    assert list(tables.systems(results)) == ["after", "tf_idf", "before", "majority"]


def test_a_system_without_the_main_metric_is_left_out() -> None:
    results = _results(baselines={"odd": {"bleu": {"value": 1, "low": 1, "high": 1}}})
    assert list(tables.systems(results)) == ["after", "before"]


def test_a_system_without_the_main_metric_stands_last_in_the_table_of_all_scores() -> None:
    after = {**_score(0.9), "distinct_1": {"value": 0.1}}
    others = {"odd": {"distinct_1": {"value": 0.2}}, "strange": {"bleu": {}}, "good": _score(0.95)}
    found = tables.scores(_results(after=after, baselines=others))
    assert list(found["systems"]) == ["after", "good", "before", "odd"]


def test_the_untouched_model_is_not_shown_twice() -> None:
    both = {"zero_shot": _score(0.2), "majority": _score(0.1)}
    results = _results(baselines=both, comparisons={name: {} for name in both})
    assert list(results["baselines"]) == list(results["comparisons"]) == ["majority"]
    assert "zero_shot" in _results(baselines=both, before={})["baselines"]


def test_dumbbell_starts_at_the_untouched_model() -> None:
    found = tables.standing(_results())
    marks = {row["name"]: row["mark"].at for row in found["rows"]}
    assert found["start"] == marks["before"] < marks["after"]
    assert tables.standing(_results(before={}))["start"] is None


def test_micro_f1_is_shown_only_where_it_differs_from_accuracy() -> None:
    both = {"accuracy": {}, "micro_f1": {}}
    assert tables.scores(_results(after=both, before={}, confusion=[[1]]))["metrics"] == [
        "accuracy"
    ]
    assert tables.scores(_results(after=both, before={}))["metrics"] == ["accuracy", "micro_f1"]


def test_matrix_counts_and_depths() -> None:
    per_class = [{"label": name, "f1": 0.5, "support": 4} for name in "ab"]
    results = _results(labels=["a", "b"], per_class=per_class, confusion=[[3, 1], [0, 0]])
    found = tables.classes(results, {})
    assert found is not None
    top, bottom = found["matrix"]
    assert [(cell.count, cell.depth_percent, cell.is_right) for cell in top] == [
        (3, 75, True), (1, 50, False)
    ]  # fmt: skip
    assert [cell.depth_percent for cell in bottom] == [0, 0]
    assert found["pairs"] == [{"truth": "a", "answer": "b", "count": 1, "share": 0.25}]


def test_many_labels_show_the_weakest_first_and_no_matrix() -> None:
    labels = [f"label {number}" for number in range(40)]
    per_class = [{"label": x, "f1": n / 40, "support": n % 5} for n, x in enumerate(labels)]
    confusion = [[int(i == j) for j in range(40)] for i in range(40)]
    found = tables.classes(
        _results(labels=labels, per_class=per_class, confusion=confusion),
        {"splits": {"train": {"per_class": {"label 1": {"num_examples": 7}}}}},
    )
    assert found is not None
    assert found["matrix"] == []
    assert [each["label"] for each in found["shown"][:2]] == ["label 1", "label 2"]
    assert [each["num_trained"] for each in found["shown"][:2]] == [7, 0]
    assert len(found["all"]) == 40


def test_long_texts_are_cut_and_say_so() -> None:
    found = tables.error({"text": "x" * 1_000})
    assert len(found["text"]) + found["num_hidden_characters"] == 1_000
    assert tables.error({"text": "short"})["num_hidden_characters"] == 0


def test_costs_share_the_whole_time() -> None:
    costs = tables.costs({"check": 1.0, "train": 3.0, "own_phase": 4.0})
    assert [each["share_percent"] for each in costs] == [12.5, 37.5, 50.0]
    assert [each["name"] for each in costs][1:] == ["Training", "Own phase"]


def test_ledger_lists_reasons_below_the_rows_read() -> None:
    splits = {
        "train": {"num_read": 9, "num_dropped": {"empty": 2}, "total": {"num_examples": 7}},
        "test": {"num_read": 3, "num_dropped": {}, "total": {"num_examples": 3}},
    }
    found = tables.ledger({"splits": splits})
    assert found == {
        "splits": ["train", "test"],
        "lines": [("Rows read", [9, 3]), ("Dropped: empty", [2, 0]), ("Examples used", [7, 3])],
    }
    assert tables.ledger({}) is None


def test_facts_bear_a_run_without_times() -> None:
    results = _results(
        task="classification",
        model="m",
        adapter="full",
        answer="head",
        num_examples={"test": 1_000},
    )
    assert tables.facts(results)[-1] == ("Train / validation / test rows", "1,000")


@pytest.mark.parametrize("validation", [[], [{"epoch": 1, "step": 4, "score": 0.5}]])
def test_learning_needs_something_learned(validation: list[dict[str, Any]]) -> None:
    found = tables.learning(_results(validation=validation, best_epoch=1), [])
    assert (found is None) == (validation == [])


def test_systems_of_a_metric_that_should_be_low_stand_lowest_first() -> None:
    scores = {name: {"perplexity": {"value": value}} for name, value in (("a", 30), ("b", 9))}
    results = tables.complete({
        "main_metric": "perplexity",
        "after": scores["a"],
        "baselines": scores,
    })
    assert list(tables.systems(results)) == ["after", "b", "a"]


@pytest.mark.parametrize("num_added", [0, 12])
def test_rows_of_a_model_stand_in_the_ledger_where_there_are_any(num_added: int) -> None:
    total = {"num_examples": 40, "num_tokens": 400}
    split = {"num_read": 40, "num_dropped": {}, "total": total, "num_added": num_added}
    found = tables.ledger({"splits": {"train": split}})
    assert found is not None
    lines = dict(found["lines"])
    expected = [num_added] if num_added else None
    assert lines.get("Of these, written or labelled by a model") == expected


@pytest.mark.parametrize("num_cut_truths", [0, 7])
def test_truth_that_was_cut_off_stands_in_the_ledger_where_there_is_any(
    num_cut_truths: int,
) -> None:
    total = {"num_examples": 40, "num_cut_truths": num_cut_truths}
    found = tables.ledger({"splits": {"train": {"num_dropped": {}, "total": total}}})
    assert found is not None
    expected = [7] if num_cut_truths else None
    title = "Of these, with their truth cut off, all or in part"
    assert dict(found["lines"]).get(title) == expected

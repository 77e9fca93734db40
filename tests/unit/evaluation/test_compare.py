"""Comparisons pair rows by id, correct for their number, and refuse unlike rows."""

import json

import pytest
from scipy import stats

from lushan.errors import DataError
from lushan.evaluation.compare import compare_runs, comparisons

AFTER = [True] * 80 + [False] * 20
BEFORE = [True] * 30 + [False] * 60 + [True] * 10


def _run(right: list[bool], *, backwards: bool = False) -> dict[str, bool]:
    rows = [(f"row {number}", is_right) for number, is_right in enumerate(right)]
    return dict(reversed(rows) if backwards else rows)


def test_comparison_with_before_by_hand() -> None:
    block = comparisons(AFTER, {"before": BEFORE}, seed=0)["before"]
    assert (block["wins"], block["losses"]) == (50, 10)
    assert block["p_value"] == pytest.approx(stats.binomtest(10, 60).pvalue)
    assert block["difference"]["value"] == pytest.approx(0.4)
    assert 0.2 < block["difference"]["low"] < 0.4 < block["difference"]["high"] < 0.6


def test_p_values_are_corrected_for_all_comparisons() -> None:
    others = {"before": BEFORE, "majority": [False] * 100, "tf_idf": AFTER}
    block = comparisons(AFTER, others, seed=0)
    assert list(block) == ["before", "majority", "tf_idf"]
    assert block["before"]["p_value_holm"] == pytest.approx(2 * block["before"]["p_value"])
    assert block["majority"]["p_value_holm"] == pytest.approx(3 * block["majority"]["p_value"])
    assert block["tf_idf"]["p_value_holm"] == 1.0


def test_comparisons_are_plain_values() -> None:
    block = comparisons(AFTER, {"before": BEFORE}, seed=0)
    assert json.loads(json.dumps(block)) == block


def test_runs_are_paired_by_row_id_not_by_order() -> None:
    found = compare_runs({"old": _run(BEFORE), "new": _run(AFTER, backwards=True)}, seed=0)
    assert [(each.first, each.second) for each in found] == [("old", "new")]
    assert (found[0].wins, found[0].losses) == (50, 10)


def test_every_pair_of_three_runs_is_compared() -> None:
    found = compare_runs({name: _run(AFTER) for name in "abc"}, seed=0)
    assert [(each.first, each.second) for each in found] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_runs_on_different_rows_are_refused_with_counts() -> None:
    runs = {"old": _run(BEFORE), "new": _run(AFTER[:90])}
    with pytest.raises(DataError, match=r"`old` and `new`.*100 and 90 rows, 90 in common"):
        compare_runs(runs, seed=0)


def test_one_run_is_not_enough() -> None:
    with pytest.raises(DataError, match="at least two runs, got 1"):
        compare_runs({"old": _run(BEFORE)}, seed=0)


def test_runs_without_rows_are_refused() -> None:
    with pytest.raises(DataError, match="`old` has no test rows"):
        compare_runs({"old": {}, "new": {}}, seed=0)


def test_graded_rows_are_compared_by_permutation_and_say_so() -> None:
    after = [0.5 + n / 400 for n in range(100)]
    found = comparisons(after, {"before": [0.4] * 100, "copied": BEFORE}, seed=0)
    assert [each["test"] for each in found.values()] == ["permutation", "permutation"]
    assert (found["before"]["wins"], found["before"]["losses"]) == (100, 0)
    assert found["before"]["difference"]["value"] == pytest.approx(sum(after) / 100 - 0.4)
    right = comparisons(AFTER, {"before": BEFORE}, seed=0)
    assert right["before"]["test"] == "mcnemar"


def test_means_per_token_of_other_tokens_are_refused_with_a_row() -> None:
    runs = {"old": {"a": 0.5, "b": 0.25}, "new": {"a": 0.6, "b": 0.3}}
    tokens = {"old": {"a": 3, "b": 9}, "new": {"a": 3, "b": 7}}
    told = r"`old` and `new` cannot be compared: .* of 1 of 2 rows .* \(`b`: 9 and 7\)\. .* one tokenizer"
    with pytest.raises(DataError, match=told):
        compare_runs(runs, seed=0, num_truth_tokens=tokens)
    same = {name: {"a": 3, "b": 9} for name in runs}
    assert len(compare_runs(runs, seed=0, num_truth_tokens=same)) == 1

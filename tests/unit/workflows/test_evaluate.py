"""Scores of a run on labelled rows, and runs against each other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import accuracy_score, f1_score

from lushan.catalog import load_task
from lushan.errors import DataError, RunError
from lushan.workflows.evaluate import compare, evaluate
from lushan.workflows.predict import Opened, open_run
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.many_runs import KINDS, save_run

WORDS = {"data": {"columns": {"text": "text"}}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "more.jsonl", good_rows())


def test_scores_are_those_of_scikit_learn_on_the_runs_own_answers(
    tiny_run: Path, data: Path
) -> None:
    found = evaluate(tiny_run, data, settings=WORDS)
    truth = [row["label"] for row in good_rows()]
    answers = [
        each.answer for each in open_run(tiny_run).predict([row["text"] for row in good_rows()])
    ]
    metrics = found.result["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(truth, answers))
    is_sea = ([label == "sea" for label in truth], [label == "sea" for label in answers])
    assert metrics["f1"]["value"] == pytest.approx(f1_score(*is_sea))
    assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]
    assert found.result["num_examples"] == len(truth) == len(found.correct)


def test_rows_that_are_cut_are_told_and_counted(tiny_run: Path, tmp_path: Path) -> None:
    rows = [*good_rows()[:4], {"text": "salt and wind " * 90, "label": "sea"}]
    data = write_lines(tmp_path / "more.jsonl", rows)
    told: list[str] = []
    cut = {"data": {"columns": {"text": "text"}, "over_length": "truncate"}}
    found = evaluate(tiny_run, data, settings=cut, tell=told.append).result
    assert (found["num_examples"], found["num_cut_examples"]) == (5, 1)
    assert any(line.startswith("1 of 5 rows were longer than 128 tokens") for line in told)
    whole = write_lines(tmp_path / "whole.jsonl", rows[:4])
    assert evaluate(tiny_run, whole, settings=cut).result["num_cut_examples"] == 0


def test_of_a_folder_the_test_file_is_scored(tiny_run: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", good_rows())
    write_lines(tmp_path / "test.jsonl", good_rows()[:6])
    found = evaluate(tiny_run, tmp_path, settings=WORDS)
    assert found.result["num_examples"] == 6
    assert found.result["data"] == str(tmp_path / "test.jsonl")


def test_rows_that_the_run_was_tuned_on_are_told_and_marked(tiny_run: Path, data: Path) -> None:
    own, told = tiny_run.parent / "reviews.jsonl", list[str]()
    assert evaluate(tiny_run, own, tell=told.append).result["seen_in_training"] is True
    assert any(f"`{own}` is what this run was tuned on" in line for line in told)
    told.clear()
    found = evaluate(tiny_run, data, settings=WORDS, tell=told.append)
    assert found.result["seen_in_training"] is False
    assert not any("tuned on" in line for line in told)


def test_f1_of_two_labels_says_of_which_it_is(tiny_run: Path, data: Path) -> None:
    result = evaluate(tiny_run, data, settings=WORDS).result
    assert result["positive_label"] == "sea"
    (sea,) = [each for each in result["per_class"] if each["label"] == "sea"]
    assert result["metrics"]["f1"]["value"] == pytest.approx(sea["f1"])


def test_a_label_that_the_model_does_not_know_is_refused_by_its_row(
    tiny_run: Path, tmp_path: Path
) -> None:
    rows = [*good_rows()[:2], {"text": "A desert.", "label": "sand"}]
    data = write_lines(tmp_path / "more.jsonl", rows)
    with pytest.raises(DataError, match=r"more\.jsonl, row 3: the label `sand` is none of the 2"):
        evaluate(tiny_run, data, settings=WORDS)


def test_rows_without_a_label_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "more.jsonl", [{"text": "The boat sailed.", "label": None}])
    with pytest.raises(DataError, match=r"1 row\(s\) have no `label`"):
        evaluate(tiny_run, data, settings=WORDS)


@pytest.fixture
def other(tiny_run: Path, tmp_path: Path) -> Path:
    """Give a copy of the run, which answers the same."""
    return Path(shutil.copytree(tiny_run, tmp_path / "other"))


def test_runs_are_compared_on_the_test_rows_of_their_tuning(tiny_run: Path, other: Path) -> None:
    found = compare([tiny_run, other])
    assert [each["name"] for each in found["runs"]] == ["run", "other"]
    (pair,) = found["comparisons"]
    assert (pair["first"], pair["second"]) == ("run", "other")
    assert (pair["wins"], pair["losses"], pair["p_value"]) == (0, 0, 1.0)
    assert found["num_examples"] == 10


def test_runs_are_compared_on_other_rows(tiny_run: Path, other: Path, data: Path) -> None:
    found = compare([tiny_run, other], data=data, settings=WORDS)
    accuracy = evaluate(tiny_run, data, settings=WORDS).result["metrics"]["accuracy"]["value"]
    assert found["num_examples"] == 48
    assert found["runs"][0]["accuracy"]["value"] == pytest.approx(accuracy)
    assert [each["seen_in_training"] for each in found["runs"]] == [False, False]


def test_runs_that_are_asked_about_their_own_rows_are_marked(tiny_run: Path, other: Path) -> None:
    told: list[str] = []
    found = compare([tiny_run, other], data=tiny_run.parent / "reviews.jsonl", tell=told.append)
    assert [each["seen_in_training"] for each in found["runs"]] == [True, True]
    assert len([line for line in told if "what this run was tuned on" in line]) == 2


def test_runs_of_one_name_are_called_by_their_paths(tiny_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    names = [each["name"] for each in compare([tiny_run, copy])["runs"]]
    assert names == [str(tiny_run), str(copy)]


def test_a_run_named_twice_is_refused(tiny_run: Path) -> None:
    with pytest.raises(DataError, match="A run was named twice"):
        compare([tiny_run, tiny_run])


def test_an_unfinished_run_is_refused(tiny_run: Path, other: Path) -> None:
    (other / "results.json").unlink()
    with pytest.raises(RunError, match=r"other` holds no finished run: `results\.json` is missing"):
        compare([tiny_run, other])


def test_settings_without_data_are_refused(tiny_run: Path, other: Path) -> None:
    with pytest.raises(DataError, match="`data` has no effect without `--data`"):
        compare([tiny_run, other], settings=WORDS)


def test_graded_runs_are_compared_by_their_mean_row_score(tiny_run: Path, other: Path) -> None:
    file = other / "predictions" / "after.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["correct"] = number / 10
    write_lines(file, rows)
    found = compare([tiny_run, other])
    assert found["runs"][1]["mean_row_score"]["value"] == pytest.approx(0.45)
    assert {name for each in found["runs"] for name in each} == {"name", "path", "mean_row_score"}
    assert found["comparisons"][0]["test"] == "permutation"


def _as_if_scored_per_token(run: Path, num_tokens: int) -> None:
    """Change a run into one whose rows are scored by how likely the tokens of their truth are."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    told = json.dumps({**results, "task": "completion"})
    (run / "results.json").write_text(told, encoding="utf-8")
    file = run / "predictions" / "after.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    write_lines(file, [{**row, "num_truth_tokens": num_tokens} for row in rows])


def test_runs_whose_truth_has_other_tokens_are_not_compared_by_the_token(
    tiny_run: Path, other: Path, tmp_path: Path
) -> None:
    third = Path(shutil.copytree(tiny_run, tmp_path / "third"))
    for run, num_tokens in ((other, 5), (third, 4)):
        _as_if_scored_per_token(run, num_tokens)
    with pytest.raises(DataError, match=r"`other` and `third` cannot be compared: .*5 and 4"):
        compare([other, third])
    _as_if_scored_per_token(third, 5)
    assert compare([other, third])["num_examples"] == 10


def test_tokens_of_the_truth_are_told_where_rows_are_scored_by_them(
    tiny_run: Path, data: Path, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "talks", tiny_folder("llama"), KINDS["talks"])
    rows = [dict(row.values) for row in load_task("dialogue").sample_rows()]
    found = evaluate(run, write_lines(tmp_path / "talks.jsonl", rows))
    assert found.num_truth_tokens.keys() == found.correct.keys()
    assert min(found.num_truth_tokens.values()) > 5
    assert evaluate(tiny_run, data, settings=WORDS).num_truth_tokens == {}


@pytest.mark.parametrize("seed", [None, 7])
def test_seed_is_also_that_of_answers_that_are_drawn(
    seed: int | None, *, tiny_run: Path, other: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []

    def opened(run: Path, *args: Any, seed: int | None = None, **options: Any) -> Opened:  # noqa: ANN401
        seen.append(seed)
        return open_run(run, *args, seed=seed, **options)

    monkeypatch.setattr("lushan.workflows.evaluate.open_run", opened)
    evaluate(tiny_run, data, settings=WORDS, seed=seed)
    compare([tiny_run, other], data=data, settings=WORDS, seed=seed)
    assert seen == [seed] * 3

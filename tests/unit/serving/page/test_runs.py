"""The list of runs tells where each stands, and leads nowhere but into the store."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lushan.errors import RunError
from lushan.serving.page.runs import find_run, list_runs, planned_steps, read_report, read_steps
from lushan.serving.page.texts import Texts

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.625}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "reviews"
    folder.mkdir(parents=True)
    recipe = "task: classification\ntraining: {epochs: 3, rows_per_step: 16}\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / ".lock").touch()
    return folder


@pytest.fixture
def lock(run: Path) -> Iterator[None]:
    with (run / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def finish(run: Path, **more: object) -> None:
    after = {"value": 0.9, "low": 0.8, "high": 0.95}
    scores = {"before": {"accuracy": INTERVAL}, "after": {"accuracy": after}}
    results = {"main_metric": "accuracy", **scores, **more}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")


def test_finished_run_shows_its_metric_before_and_after(
    run: Path, tmp_path: Path, english: Texts
) -> None:
    finish(run)
    found = list_runs(tmp_path, english)[0]
    assert (found.name, found.task, found.state) == ("runs/reviews", "classification", "finished")
    assert found.metric == "Accuracy"
    assert found.before == "50.0\u00a0% (95 % interval 40.0 to 62.5)"
    assert found.after == "90.0\u00a0% (95 % interval 80.0 to 95.0)"


def test_baseline_in_the_place_of_a_model_is_not_shown_as_before(
    run: Path, tmp_path: Path, english: Texts
) -> None:
    finish(run, before_is_model=False)
    assert list_runs(tmp_path, english)[0].before == ""


@pytest.mark.usefixtures("lock")
def test_run_that_a_process_writes_to_is_running(tmp_path: Path, english: Texts) -> None:
    assert list_runs(tmp_path, english)[0].state == "running"


@pytest.mark.usefixtures("run")
def test_unfinished_run_that_nobody_writes_to_has_stopped(tmp_path: Path, english: Texts) -> None:
    assert [each.state for each in list_runs(tmp_path, english)] == ["stopped"]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("name", ["..", "../x", "/etc", "", "runs"])
def test_name_that_is_not_in_the_list_leads_nowhere(
    name: str, tmp_path: Path, english: Texts
) -> None:
    with pytest.raises(RunError, match="Known: runs/reviews"):
        find_run(tmp_path, name, english)


def test_line_that_is_half_written_is_left_for_later(run: Path) -> None:
    (run / "steps.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', "utf-8")
    assert [each["step"] for each in read_steps(run)] == [1]


def test_run_without_steps_and_report_has_none(run: Path) -> None:
    assert read_steps(run) == []
    assert read_report(run) is None
    assert planned_steps(run) is None


def test_planned_steps_are_those_of_all_epochs(run: Path) -> None:
    ledger = {"splits": {"train": {"total": {"num_examples": 33}}}}
    (run / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    assert planned_steps(run) == 9

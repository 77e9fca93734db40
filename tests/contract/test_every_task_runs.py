"""Every task goes the whole way, from the command line: tune, evaluate, predict, compare, and a report."""

import json
from pathlib import Path
from typing import Any

import pytest

from lushan.catalog import load_task, names_in
from lushan.cli.main import run
from lushan.errors import DataError
from lushan.model_store import certificate
from lushan.records import AnswerMode
from lushan.tasks import Task
from lushan.workflows.predict import open_run
from tests.bad_inputs import write_splits
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process, read, tune

WAYS: list[tuple[str, AnswerMode]] = [
    (name, answer) for name in names_in("lushan.tasks") for answer in load_task(name).answers
]


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, AnswerMode]:
    return request.param


@pytest.fixture
def data(way: tuple[str, AnswerMode], tmp_path: Path) -> Path:
    task: Task = load_task(way[0])
    rows: list[dict[str, Any]] = [dict(row.values) for row in task.sample_rows()]
    folder = tmp_path / "data"
    folder.mkdir()
    return write_splits(folder, train=rows, validation=rows, test=rows)


@pytest.fixture
def finished(
    way: tuple[str, AnswerMode], data: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    out = data.parent / "run"
    options = ("--task", way[0], "--answer", way[1], "--model", str(tiny_folder("llama")))
    settings = ["--set", "model.precision=fp32", "--epochs", "2", "--overlap", "keep"]
    if "run_code" in load_task(way[0]).settings:
        settings += ["--set", "task_settings.run_code=true"]
    assert tune(data, out, *options, *settings) == 0
    return out


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_task_runs_from_data_to_report_answers_and_comparison(
    way: tuple[str, AnswerMode], finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, task = read(finished / "results.json"), load_task(way[0])
    metric = results["main_metric"]
    assert set(task.baselines) <= set(results["baselines"])
    assert {"before", *task.baselines} <= set(results["comparisons"])
    for page in ("report.html", "README.md"):
        assert task.wording.label in (finished / page).read_text(encoding="utf-8").lower()
    allowed = ["--set", "task_settings.run_code=true"] if "run_code" in task.settings else []
    if allowed:
        assert run(["evaluate", str(finished), str(data)]) == 2
        assert "Allow it with `--set task_settings.run_code=true`" in capsys.readouterr().err
    scored = printed(capsys, "evaluate", str(finished), str(data), *allowed)
    assert scored["metrics"][metric]["value"] == results["after"][metric]["value"]
    assert scored["num_examples"] == len(task.sample_rows())
    out = finished.parent / "answers.jsonl"
    told = printed(capsys, "predict", str(finished), str(data), "--out", str(out))
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    kept = (finished / "predictions" / "after.jsonl").read_text(encoding="utf-8").splitlines()
    assert told["num_examples"] == len(lines)
    assert [line["answer"] for line in lines] == [json.loads(line)["answer"] for line in kept]


@pytest.mark.parametrize("command", ["tune", "check"])
def test_way_of_answering_that_a_task_does_not_have_is_refused(
    command: str, tmp_path: Path, tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(row.values) for row in load_task("translation").sample_rows()]
    data = write_splits(tmp_path, train=rows, validation=rows, test=rows)
    words = [command, str(data), "--task", "translation", "--model", str(tiny_folder("llama"))]
    before = sorted(tmp_path.rglob("*"))
    assert run([*words, "--set", "answer=head"]) == 2
    assert "`--answer head`: the task `translation`" in capsys.readouterr().err
    assert run([*words, "--set", "task_settings.class_weights=balanced"]) == 2
    assert "`task_settings.class_weights` has no effect on the task" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_task_without_a_head_runs_as_it_is_and_answers_rows_in_memory(
    tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    rows = [dict(row.values) for row in load_task("choice").sample_rows()]
    data = write_splits(tmp_path, train=rows, validation=rows, test=rows)
    options = ("--task", "choice", "--model", str(tiny_folder("llama")), "--overlap", "keep")
    assert (
        tune(data, tmp_path / "run", *options, "--epochs", "1", "--set=model.precision=fp32") == 0
    )
    results = read(tmp_path / "run" / "results.json")
    assert results["answer"] == "generate"
    assert {"acc", "acc_norm"} < set(results["before"])
    assert set(results["baselines"]["longest_choice"]) == {"accuracy"}
    assert {"zero_shot", "few_shot"} < set(results["baselines"])
    model = open_run(tmp_path / "run")
    (found,) = model.predict([{"question": "A fire needs", "choices": ["water", "air"]}])
    assert found.answer in ("water", "air")
    with pytest.raises(DataError, match="text, row 1: column `choices`"):
        model.predict(["A fire needs"])


def test_free_answers_are_refused_by_a_head_and_learned_by_writing(
    tmp_path: Path,
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    rows = [dict(row.values) for row in load_task("answering").sample_rows()]
    rows[1]["answers"] = ["a woman named Ada"]
    folder = tmp_path / "data"
    folder.mkdir()
    data = write_splits(folder, train=rows, validation=rows, test=rows)
    options = ["--task", "answering", "--model", str(tiny_folder("llama")), "--overlap", "keep"]
    options += ["--epochs", "1", "--no-baselines", "--set", "model.precision=fp32"]
    for command in (["check", str(data)], ["tune", str(data), "--out", str(tmp_path / "run")]):
        assert run([*command, *options[: 6 if command[0] == "check" else None]]) == 2
        message = capsys.readouterr().err
        assert "row 2: the answer 'a woman named Ada' has no `answer_start`" in message
        assert "Use `--answer generate`" in message
    assert not (tmp_path / "run").exists()
    assert tune(data, tmp_path / "run", *options, "--answer", "generate") == 0
    scored = printed(capsys, "evaluate", str(tmp_path / "run"), str(data))
    assert scored["metrics"].keys() >= {"f1", "exact_match", "has_answer_f1", "no_answer_accuracy"}

"""`lushan check` as a command."""

import json
from pathlib import Path

import pytest

from lushan.cli.main import run
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", good_rows())


def test_good_data_exits_0_with_a_table_and_notes_on_stderr(
    data: Path, tiny_folder: MakeTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_folder("llama"))
    assert run(["check", str(data), "--task", "classification", "--model", model]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "Nothing blocks a run." in output.err
    assert "No test split: 10 of 48 rows" in output.err


def test_missing_model_is_not_said_to_block_nothing(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(data), "--task", "classification"]) == 0
    told = capsys.readouterr().err
    assert "Nothing blocks a run." not in told
    assert "A run needs its model first." in told
    assert "lushan models get SmolLM2-135M-Instruct" in told


def test_json_is_the_last_line_and_has_the_ledger(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(data), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert findings["labels"]["test"] == {"sea": 5, "hill": 5}
    assert findings["overlap"]["policy"] == "remove"
    assert set(findings["ledger"]["splits"]) == {"train", "validation", "test"}


def test_a_column_can_be_named_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"words": row["text"], "label": row["label"]} for row in good_rows()]
    data = write_lines(tmp_path / "data.jsonl", rows)
    assert run(["check", str(data)]) == 2
    assert run(["check", str(data), "--set", "data.columns.text=words"]) == 0
    assert "no column `text`. Found: `words`, `label`" in capsys.readouterr().err


def test_overlap_can_be_forbidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, start in (("train", 0), ("validation", 1), ("test", 2)):
        write_lines(tmp_path / f"{name}.jsonl", good_rows(start=start, step=3))
    write_lines(tmp_path / "validation.jsonl", good_rows(start=1, step=3) + good_rows()[:1])
    assert run(["check", str(tmp_path), "--overlap", "keep"]) == 0
    assert run(["check", str(tmp_path), "--overlap", "error"]) == 2
    assert "1 row(s) of train are also in validation" in capsys.readouterr().err


def test_an_unknown_task_or_policy_exits_2(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(data), "--task", "clasification"]) == 2
    assert run(["check", str(data), "--overlap", "drop"]) == 2
    error = capsys.readouterr().err
    assert "Unknown task `clasification`. Known: answering, choice, classification" in error
    assert "data.overlap" in error

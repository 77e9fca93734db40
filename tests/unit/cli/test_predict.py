"""`lushan predict` as a command."""

import json
from pathlib import Path

import pytest

from lushan.cli.main import run
from tests.bad_inputs import write_lines


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "new.jsonl", [{"words": "The boat."}, {"words": "The peak."}])


def test_without_out_the_answers_are_on_stdout_and_the_rest_on_stderr(
    tiny_run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(tiny_run), str(data)]) == 0
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["row"] for line in lines] == [1, 2]
    assert {line["answer"] for line in lines} <= {"hill", "sea"}
    assert "Answered 2 rows" in output.err


def test_with_out_the_answers_are_in_the_file_and_json_tells_where(
    tiny_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "answers.jsonl"
    assert run(["predict", str(tiny_run), str(data), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_examples"], told["out"]) == (2, str(out))
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(
    tiny_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("mine", encoding="utf-8")
    words = ["predict", str(tiny_run), str(data), "--out", str(out)]
    assert run(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"
    assert run([*words, "--overwrite"]) == 0
    assert out.read_text(encoding="utf-8") != "mine"

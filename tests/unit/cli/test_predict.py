"""`lushan predict` as a command."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lushan.cli.main import run
from lushan.inference.predict import Predictor
from lushan.workflows import predict as module
from tests.bad_inputs import write_lines

KILLED = """
import sys, time
from lushan.cli.main import run
from lushan.inference.predict import Predictor
from lushan.workflows import predict as module
module.CHUNK_ROWS = 5
answer = Predictor.predict
def slow(self, *rows, **options):
    if "advance" in options and slow.calls == 3:
        time.sleep(60)
    slow.calls += "advance" in options
    return answer(self, *rows, **options)
slow.calls = 0
Predictor.predict = slow
run(sys.argv[1:])
"""
"""Answers three chunks and is then too slow to live."""


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


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "many.jsonl", [{"words": f"Boat {n}."} for n in range(23)])


def wait_for(file: Path, num_lines: int) -> None:
    deadline = time.monotonic() + 60
    while not file.is_file() or file.read_bytes().count(b"\n") < num_lines:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_process_is_gone_on_with_to_the_same_file_without_asking_again(
    tiny_run: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 5)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    assert run(["predict", str(tiny_run), str(many), "--out", str(whole)]) == 0
    words = ["predict", str(tiny_run), str(many), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *words], stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "answers.jsonl.part", 15)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    asked: list[int] = []
    answer = Predictor.predict

    def counted(self: Predictor, examples: list[object], **options: object) -> list[object]:
        asked.append(len(examples))
        return answer(self, examples, **options)  # pyright: ignore[reportArgumentType, reportReturnType]

    monkeypatch.setattr(Predictor, "predict", counted)
    assert run([*words, "--resume"]) == 0
    assert asked == [5, 3]
    assert out.read_bytes() == whole.read_bytes()
    assert [each.name for each in tmp_path.glob("answers*")] == ["answers.jsonl"]


def test_interrupted_command_keeps_what_is_answered_and_says_how_to_go_on(
    tiny_run: Path,
    many: Path,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = ["predict", str(tiny_run), str(many), "--out", str(tmp_path / "answers.jsonl")]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stop)
        assert run(words) == 130
    assert "`--resume` goes on" in capsys.readouterr().err
    assert run(words) == 2
    assert "was begun and not finished" in capsys.readouterr().err
    assert run([*words, "--resume"]) == 0


def test_resume_without_a_file_is_refused(
    tiny_run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(tiny_run), str(data), "--resume"]) == 2
    assert "`--resume` has no effect without `--out FILE`" in capsys.readouterr().err


def test_rows_come_from_stdin_and_answers_go_to_stdout_by_a_dash(
    tiny_run: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["predict", str(tiny_run), str(data)]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.read_bytes())))
    assert run(["predict", str(tiny_run), "-", "--out", "-"]) == 0
    assert capsys.readouterr().out == expected

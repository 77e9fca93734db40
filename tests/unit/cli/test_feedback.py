"""`lushan feedback`: stored, listed, exported as rows that `lushan check` reads; mistakes change nothing."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from lushan.cli.main import run
from lushan.feedback.store import FeedbackStore
from tests.stores import given, new_database

ADD = ["feedback", "add", "reviews", "Not bad at all.", "--task", "classification"]


def answer_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_add_stores_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rating", "bad", "--correction", "positive", "--prediction", "negative"]
    assert run([*ADD, *words, "--comment", "irony", "--id", "one", "--json"]) == 0
    told = answer_of(capsys)
    assert told["is_new"] is True
    stored = told["feedback"]
    assert (stored["model"], stored["input"], stored["id"]) == ("reviews", ADD[3], "one")
    assert (stored["rating"], stored["correction"]) == ("bad", "positive")
    assert (stored["prediction"], stored["comment"], stored["source"]) == (
        "negative",
        "irony",
        "command",
    )


def test_added_again_with_its_id_it_is_stored_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run([*ADD, "--rating", "bad", "--id", "one"]) == 0
    assert "Was there already: one" in capsys.readouterr().err
    assert run(["feedback", "list", "--json"]) == 0
    assert len(answer_of(capsys)["feedback"]) == 1
    assert run([*ADD, "--rating", "good", "--id", "one", "--json"]) == 2
    assert "The id `one` stands for other feedback" in answer_of(capsys)["error"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"text": "Ada"}', {"text": "Ada"}),
        ('"[0]"', "[0]"),
        ("[broken", "[broken"),
        ("7", "7"),
        ("true", "true"),
    ],
)
def test_objects_lists_and_quoted_texts_are_json_and_all_else_is_text(
    text: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["feedback", "add", "names", text, "--task", "tagging", "--rating", "good"]
    assert run([*words, "--json"]) == 0
    assert answer_of(capsys)["feedback"]["input"] == value


def test_list_shows_rows_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        run([*ADD, "--rating", "bad", "--id", f"row-{number}"])
    capsys.readouterr()
    assert run(["feedback", "list", "--after", "row-0", "--limit", "1", "--json"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out)
    assert [each["id"] for each in told["feedback"]] == ["row-1"]
    assert told["tally"]["classification"] == {
        "num_rows": 3,
        "num_good": 0,
        "num_bad": 3,
        "num_corrected": 0,
    }
    assert "classification: 3 in all, 0 good, 3 bad, 0 corrected." in output.err
    assert run(["feedback", "list", "--model", "other", "--json"]) == 0
    assert answer_of(capsys) == {"feedback": [], "tally": {}}


def test_export_writes_rows_that_a_run_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with new_database(tmp_path / "store") as database:
        for number in range(40):
            values = given(input=f"Text {number}.", correction=("good", "bad")[number % 2])
            FeedbackStore(database).add(values, task="classification")
    run([*ADD, "--rating", "bad"])
    capsys.readouterr()
    file = tmp_path / "corrected.jsonl"
    assert run(["feedback", "export", "--out", str(file), "--json"]) == 0
    assert answer_of(capsys) == {
        "task": "classification",
        "num_rows": 40,
        "num_replaced": 0,
        "num_only_rated": 1,
        "out": str(file),
    }
    assert run(["check", str(file), "--json"]) == 0


def test_export_without_a_file_writes_rows_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    run([*ADD, "--correction", "positive"])
    capsys.readouterr()
    assert run(["feedback", "export"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": ADD[3], "label": "positive"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (ADD, "it needs a `rating` (`good` or `bad`), a `correction`, or both."),
        ([*ADD, "--rating", "fine"], "`rating` is wrong: Input should be 'good' or 'bad'."),
        ([*ADD[:-1], "telepathy", "--rating", "bad"], "Unknown task `telepathy`. Known: "),
        ([*ADD[:-1], "choice", "--rating", "bad"], "choices"),
        (["feedback", "list"], "There is no store in"),
        (["feedback", "export"], "There is no store in"),
        (["feedback", "export", "--out", "rows.csv"], "`--out rows.csv` must end in `.jsonl`"),
    ],
    ids=str,
)
def test_mistakes_are_told_with_exit_code_2_and_nothing_is_made(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "none"
    assert run([*words, "--store", str(store), "--json"]) == 2
    assert message in answer_of(capsys)["error"]
    assert not store.exists()


def test_export_does_not_replace_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run([*ADD, "--correction", "positive"])
    file = tmp_path / "mine.jsonl"
    file.write_text("mine", encoding="utf-8")
    assert run(["feedback", "export", "--out", str(file), "--json"]) == 2
    assert "is there already" in answer_of(capsys)["error"]
    assert file.read_text(encoding="utf-8") == "mine"
    assert run(["feedback", "export", "--out", str(file), "--overwrite"]) == 0


def test_store_that_is_no_database_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "lushan.sqlite3").write_bytes(b"my notes " * 500)
    assert run([*ADD, "--rating", "bad", "--store", str(tmp_path), "--json"]) == 2
    assert "it is not a SQLite database. Move the file away" in answer_of(capsys)["error"]


def test_store_of_a_newer_lushan_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = ["--store", str(tmp_path)]
    assert run([*ADD, "--rating", "bad", *store]) == 0
    connection = sqlite3.connect(tmp_path / "lushan.sqlite3")
    with connection:
        connection.execute("UPDATE lushan_schema SET version_num = '0999'")
    connection.close()
    capsys.readouterr()
    assert run(["feedback", "list", *store, "--json"]) == 2
    assert "was written by a newer Lushan: its schema is `0999`" in answer_of(capsys)["error"]


def test_lushan_without_the_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alembic", None)
    for words in ([*ADD, "--rating", "bad"], ["feedback", "list"], ["feedback", "export"]):
        assert run([*words, "--json"]) == 2
        expected = (
            "`lushan feedback` needs `alembic`. Install it in the folder of Lushan's source: "
            "`pip install -c constraints.txt '.[serve]'`."
        )
        assert answer_of(capsys) == {"error": expected}

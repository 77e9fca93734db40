"""`lushan explain` as a command."""

import json
from pathlib import Path

import pytest

from lushan.cli.main import run
from tests.bad_inputs import write_lines

TEXT = "The harbour sleeps under a pale moon."


def test_text_gets_a_table_of_its_words(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(tiny_run), TEXT, "--label", "sea"]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    for word in ("sea", "weight", "harbour", "moon", "completeness gap", "Without the strongest"):
        assert word in output.err


def test_json_holds_the_explanation(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(tiny_run), TEXT, "--json", "--baseline", "mean"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["explanation"]["baseline"] == "mean"
    (part,) = told["explanation"]["parts"]
    assert [word["text"] for word in part["words"]][:2] == ["The", "harbour"]
    assert {"completeness_gap", "template_share", "faithfulness", "tokens"} <= part.keys()


def test_rows_of_a_file_become_lines_on_stdout(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"words": "The boat."}, {"words": "The peak."}])
    assert run(["explain", str(tiny_run), str(data)]) == 0
    output = capsys.readouterr()
    assert [json.loads(line)["row"] for line in output.out.splitlines()] == [1, 2]
    assert "Explained 2 rows" in output.err


@pytest.mark.parametrize(
    ("name", "start"), [("why.html", "<!doctype html>"), ("why.jsonl", '{"row": 1')]
)
def test_out_is_a_page_or_lines_by_its_name(
    name: str, start: str, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    words = ["explain", str(tiny_run), TEXT, "--out", str(out)]
    assert run(words) == 0
    assert out.read_text(encoding="utf-8").startswith(start)
    assert run(words) == 2
    assert run([*words, "--overwrite"]) == 0


WRONG = (
    (["--label", "green"], "not one of the 2 there are: 'hill', 'sea'"),
    (["--baseline", "black"], "`baseline`"),
    (["--most-gap", "2"], "`most_gap`"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[0][0])
def test_wrong_option_is_refused_and_nothing_written(
    wrong: tuple[list[str], str],
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, says = wrong
    out = tmp_path / "why.html"
    assert run(["explain", str(tiny_run), TEXT, "--out", str(out), *options]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_missing_file_is_refused_and_not_taken_for_a_text(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", str(tiny_run), "nowhere.csv"]) == 2
    assert "`nowhere.csv` does not exist" in capsys.readouterr().err

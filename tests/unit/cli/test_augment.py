"""`lushan augment` as a command."""

import json
from pathlib import Path
from typing import Any

import pytest

from lushan.cli import augment as command
from lushan.cli.main import run
from lushan.workflows.new_rows import reserved
from tests.bad_inputs import TOPICS, write_lines
from tests.conftest import MakeTiny


@pytest.fixture
def words(tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give a command line on rows so short that a tiny model can be shown some."""
    rows = [{"text": noun, "label": label} for label, nouns in TOPICS.items() for noun in nouns]
    write_lines(tmp_path / "nouns.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    model = str(tiny_folder("llama"))
    settings = ["--set", "training.epochs=1", "--set", "model.precision=fp32"]
    return ["augment", "nouns.jsonl", "--model", model, "--rows", "6", *settings]


def test_every_row_that_was_asked_for_is_accounted_for(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run([*words, "--json"]) == 0
    output = capsys.readouterr()
    found: dict[str, Any] = json.loads(output.out.splitlines()[-1])
    gone = sum(found["refused"].values()) + sum(found["dropped"].values())
    assert found["num_asked"] == 6 == gone + found["num_new_rows"]
    assert found["agreement_asked"]
    assert set(found["seconds"]) >= {"check", "write", "filter", "agreement"}
    assert "Writing 6 rows like" in output.err
    assert found["written"] == Path("augmented", "nouns-1.jsonl").exists()
    assert {each.name for each in tmp_path.glob("*.jsonl")} == {"nouns.jsonl"}


def test_name_of_the_file_is_one_that_is_free(words: list[str]) -> None:
    assert command.next_file(Path("nouns.jsonl")) == Path("augmented/nouns-1.jsonl")
    Path("augmented").mkdir()
    Path("augmented/nouns-1.jsonl").touch()
    assert command.next_file(Path(words[1])) == Path("augmented/nouns-2.jsonl")


def test_name_of_a_file_that_is_being_made_is_not_free(words: list[str]) -> None:
    with reserved(command.next_file(Path(words[1])), overwrite=False):
        assert command.next_file(Path(words[1])) == Path("augmented/nouns-2.jsonl")
    assert command.next_file(Path(words[1])) == Path("augmented/nouns-1.jsonl")


def outcome(*, low: float, is_written: bool) -> dict[str, Any]:
    difference = {"value": 0.02, "low": low, "high": 0.06}
    return {
        "refused": {"unfinished": 1},
        "dropped": {"repeats_train": 3},
        "agreement_asked": False,
        "num_new_rows": 1200,
        "gain": {"difference": difference, "p_value": 0.125, "num_validation_rows": 500},
        "helps": low > 0,
        "written": is_written,
        "out": "new.jsonl",
    }


def test_gain_that_may_be_luck_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    command.show_outcome(outcome(low=-0.02, is_written=False))
    told = capsys.readouterr().err
    assert "They do not clearly help: mean score of 500 validation rows +0.020" in told
    assert "(-0.020 to +0.060), with 1,200 new rows" in told
    assert "seen once more; p = 0.125, exact McNemar test." in " ".join(told.split())
    assert "Nothing was written. `--keep`" in told
    assert "Agreement was not asked" in told


def test_rows_that_help_are_told_with_their_file() -> None:
    told = " ".join(command.verdict(outcome(low=0.01, is_written=True)))
    assert told.startswith("They help: mean score")
    assert "New rows: new.jsonl. They are in no data set" in told


def test_labelled_rows_are_told_with_how_sure_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    threshold = {"probability": 0.9, "num_validation_rows": 120, "error_fraction": 0.05}
    labelled = {"unlabelled": "texts.jsonl", "threshold": threshold, "error_fraction": 0.2}
    command.show_outcome({**outcome(low=0.01, is_written=True), **labelled})
    told = " ".join(capsys.readouterr().err.split())
    assert "Sure enough is a probability of 0.900" in told
    assert "120 validation rows at or above it, 5.0 % are wrong, against 20.0 %" in told
    assert "or against the real rows alone, whichever is better" in told
    assert "`lushan tune --set data.added=new.jsonl` trains on them too" in told
    nothing = command.threshold_line({**labelled, "threshold": None})
    assert "No label is sure enough" in nothing


def test_rows_that_are_there_are_labelled_and_accounted_for(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [{"text": f"a {noun} at home"} for noun in ("whale", "crab", "goat", "eagle")]
    write_lines(Path("texts.jsonl"), texts)
    place = words.index("--rows")
    line = [*words[:place], *words[place + 2 :], "--unlabelled", "texts.jsonl", "--json"]
    assert run([*line, "--set", "data.validation_fraction=0.4"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["num_asked"] == 4 == sum(found["dropped"].values()) + found["num_new_rows"]
    assert set(found["seconds"]) >= {"check", "tune", "label"}
    assert run([*words, "--unlabelled", "texts.jsonl"]) == 2


def test_without_a_row_there_is_nothing_to_tell() -> None:
    assert command.verdict({"gain": None}) == ["No new row is left; nothing was written."]

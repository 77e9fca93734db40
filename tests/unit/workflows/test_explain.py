"""Explaining one text, or the rows of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from lushan.errors import DataError, SettingError
from lushan.explain.settings import ExplainSettings
from lushan.workflows.explain import as_lines, as_page, explain_rows, explain_text, file_of
from lushan.workflows.predict import open_run
from tests.bad_inputs import write_lines

QUICK = ExplainSettings(most_steps=16, num_draws=1)
TEXT = "The harbour sleeps under a pale moon."


def explained(run: Path, data: Path, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    lines: list[str] = []
    explain_rows(run, data, write=lambda each: lines.extend(as_lines(each)), how=QUICK, **options)
    return [json.loads(line) for line in lines]


def test_text_is_explained_like_the_row_of_a_file_and_like_the_list_in_memory(
    tiny_run: Path, tmp_path: Path
) -> None:
    one = explain_text(tiny_run, TEXT, how=QUICK)
    (line,) = explained(tiny_run, write_lines(tmp_path / "new.jsonl", [{"words": TEXT}]))
    assert line == {"row": 1, **json.loads(next(as_lines([(1, one)])))}
    opened = open_run(tiny_run)
    assert opened.explain([TEXT], most_steps=16, num_draws=1) == [one]
    assert opened.explain([{"text": TEXT}], most_steps=16, num_draws=1) == [one]
    assert one.answer == opened.predict([TEXT])[0].answer
    assert one.model_version == opened.version


def test_rows_keep_their_numbers_and_the_label_is_the_one_that_is_named(
    tiny_run: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"words": "a"}, {"words": " "}, {"words": "b"}])
    told: list[str] = []
    lines = explained(tiny_run, data, label="hill", tell=told.append)
    assert [line["row"] for line in lines] == [1, 3]
    assert all(part["target"] == "hill" for line in lines for part in line["parts"])
    assert len([line for line in told if "empty" in line]) == 1


def test_unknown_label_and_long_text_are_refused_before_anything_is_written(
    tiny_run: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"words": "a"}, {"words": "long " * 200}])
    with pytest.raises(DataError, match=r"new\.jsonl, row 2: \d+ tokens, but at most 128"):
        explained(tiny_run, data)
    with pytest.raises(
        DataError, match="The label 'green' is not one of the 2 there are: 'hill', 'sea'"
    ):
        explain_text(tiny_run, TEXT, label="green")
    with pytest.raises(DataError, match="text, row 1: column `text` must hold a text"):
        explain_text(tiny_run, "  ")


def test_wrong_setting_in_memory_is_refused(tiny_run: Path) -> None:
    with pytest.raises(SettingError, match="explain: unknown setting `steps`"):
        open_run(tiny_run).explain([TEXT], steps=3)
    with pytest.raises(DataError, match=r"Write `explain\(\['The"):
        open_run(tiny_run).explain(TEXT)


@pytest.mark.parametrize("name", ["new.csv", "NEW.JSONL.gz"])
def test_what_is_named_like_a_table_is_a_file_also_where_there_is_none(name: str) -> None:
    assert file_of(name) == Path(name)


@pytest.mark.parametrize("text", [TEXT, "see new.csv", "a" * 5000, "\0", "很好看"])
def test_anything_else_is_a_text(text: str) -> None:
    assert file_of(text) is None


def test_what_exists_is_a_file_or_a_folder(tmp_path: Path) -> None:
    assert file_of(str(tmp_path)) == tmp_path


def test_page_shows_every_row(tiny_run: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "new.jsonl", [{"words": "a boat"}, {"words": "b"}])
    pages: list[str] = []
    explain_rows(tiny_run, data, how=QUICK, write=lambda x: pages.extend(as_page(x, run=tiny_run)))
    assert "".join(pages).count("<article>") == 2

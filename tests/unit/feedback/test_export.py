"""Exported corrections: rows that `lushan tune` reads, and counts of what was left out."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lushan.atomic import write_parts
from lushan.catalog import load_task
from lushan.data.readers import read_dataset
from lushan.database.connect import Database
from lushan.errors import DataError, SettingError
from lushan.feedback import store as store_module
from lushan.feedback.export import Exported, export_rows
from lushan.feedback.store import FeedbackStore
from lushan.workflows.prepare import columns_for
from tests.stores import given, new_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with new_database(tmp_path / "store") as opened:
        yield opened


def add(database: Database, *, task: str = "classification", **values: object) -> None:
    FeedbackStore(database).add(given(**values), task=task)


def never(lines: Iterable[str]) -> None:
    raise AssertionError(f"nothing is to be written, got {lines}")


def test_corrections_become_a_file_that_the_task_reads(database: Database, tmp_path: Path) -> None:
    add(database, input="Fine \N{SNOWMAN}", correction="good")
    add(database, input={"text": "Poor", "shop": 3}, correction="good")
    add(database, input={"text": "Poor", "shop": 3}, correction="bad")
    add(database, input="Poor", correction=None, rating="bad")
    file = tmp_path / "rows.jsonl"
    done = export_rows(FeedbackStore(database), write=partial(write_parts, file))
    assert done == Exported("classification", num_rows=2, num_replaced=1, num_only_rated=1)
    task = load_task("classification")
    read = partial(task.read, multi_label=False)
    wanted = columns_for(task, multi_label=False)
    found = read_dataset(file, columns={}, wanted=wanted, read=read).splits["train"]
    assert [(each.text, each.target) for each in found] == [
        ("Fine \N{SNOWMAN}", "good"),
        ("Poor", "bad"),
    ]


def test_rows_of_one_model_and_task_are_chosen(database: Database) -> None:
    add(database, input="a", model="one")
    add(database, input="b", model="two")
    add(database, input="c", model="one", task="translation")
    lines: list[str] = []
    done = export_rows(
        FeedbackStore(database), write=lines.extend, task="classification", model="two"
    )
    assert [json.loads(line) for line in lines] == [{"text": "b", "label": "good"}]
    assert done.num_rows == 1


def test_feedback_that_comes_meanwhile_is_left_for_the_next_export(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 1)
    for text in "ab":
        add(database, input=text, correction="good")
    written: list[str] = []

    def write(lines: Iterable[str]) -> None:
        stream = iter(lines)
        written.append(next(stream))
        add(database, input="a", correction="bad")
        add(database, input="b", correction=None, rating="bad")
        written.extend(stream)

    done = export_rows(FeedbackStore(database), write=write)
    assert [tuple(json.loads(line).values()) for line in written] == [("a", "good"), ("b", "good")]
    assert done == Exported("classification", num_rows=2, num_replaced=0, num_only_rated=0)


def test_several_tasks_need_a_choice(database: Database) -> None:
    add(database)
    add(database, task="translation")
    message = r"several tasks: classification, translation\. Choose one with `--task`"
    with pytest.raises(DataError, match=message):
        export_rows(FeedbackStore(database), write=never)


def test_nothing_to_export_is_told_with_what_there_is(database: Database) -> None:
    add(database, correction=None, rating="bad")
    store = FeedbackStore(database)
    with pytest.raises(DataError, match=r"no feedback with a correction\. With .*: nothing\."):
        export_rows(store, write=never)
    add(database)
    with pytest.raises(DataError, match=r"of the task `code`\. With corrections: classification"):
        export_rows(store, write=never, task="code")
    with pytest.raises(DataError, match=r"no feedback about `other` with a correction"):
        export_rows(store, write=never, model="other")


def test_task_that_this_lushan_does_not_have_is_told(database: Database) -> None:
    add(database, task="telepathy")
    with pytest.raises(SettingError, match="Unknown task `telepathy`"):
        export_rows(FeedbackStore(database), write=never)

"""Rows that a model wrote or labelled, on their way into a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from lushan.catalog import load_task
from lushan.errors import DataError
from lushan.workflows.prepare import Prepared, prepare
from lushan.workflows.recipe import make_recipe
from tests.bad_inputs import good_rows, write_lines

NEW = [
    {"text": "A whale sings near the old quarry road.", "label": "sea", "augmented": True},
    {"text": "A goat climbs behind the empty market hall.", "label": "hill", "augmented": True},
]


def prepared(folder: Path, new: list[dict[str, Any]], **data: object) -> Prepared:
    file = write_lines(folder / "data.jsonl", good_rows())
    added = write_lines(folder / "new.jsonl", new)
    recipe = make_recipe(None, {"data": {"added": str(added), **data}}, [])
    return prepare(file, task=load_task("classification"), recipe=recipe)


def test_added_rows_are_trained_on_and_never_asked_about(tmp_path: Path) -> None:
    found = prepared(tmp_path, NEW)
    texts = {name: {each.text for each in part} for name, part in found.parts.as_dict().items()}
    new = {each["text"] for each in NEW}
    assert new < texts["train"]
    assert not new & (texts["validation"] | texts["test"])
    without = prepare(
        tmp_path / "data.jsonl", task=load_task("classification"), recipe=make_recipe(None, {}, [])
    )
    assert [each.id for each in without.parts.test] == [each.id for each in found.parts.test]
    assert found.fingerprint != without.fingerprint


def test_ledger_counts_them_by_themselves_and_a_note_tells(tmp_path: Path) -> None:
    found = prepared(tmp_path, NEW)
    assert {name: each.num_added for name, each in found.ledger.splits.items()} == {
        "train": 2,
        "validation": 0,
        "test": 0,
    }
    assert any("2 rows of" in note and "a model wrote or labelled" in note for note in found.notes)
    assert not any("not read" in note for note in found.notes)


def test_added_rows_like_a_test_row_are_taken_out(tmp_path: Path) -> None:
    known = prepared(tmp_path, NEW).parts.test[0]
    copy = {"text": known.text.upper(), "label": known.target, "augmented": True}
    found = prepared(tmp_path, [*NEW, copy])
    assert found.ledger.splits["train"].num_added == 2
    assert found.overlap.num_exact_removed["train"] == 1


def test_rows_that_are_drawn_are_counted_again(tmp_path: Path) -> None:
    found = prepared(tmp_path, NEW, max_train_rows=12)
    texts = [each.text for each in found.parts.train]
    expected = sum(each["text"] in texts for each in NEW)
    assert (len(texts), expected) == (12, 1)
    assert found.ledger.splits["train"].num_added == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augmented": False}, r"new.jsonl, row 2: `augmented` is False"),
        ({"augmented": None}, r"new.jsonl, row 2: `augmented` is None"),
        ({"label": "moon"}, "labels that no training row has: moon"),
    ],
)
def test_rows_of_another_kind_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, [NEW[0], {**NEW[1], **change}])


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", good_rows())
    recipe = make_recipe(None, {}, ["data.added=gone.jsonl"])
    with pytest.raises(DataError, match=r"`data.added=gone.jsonl`: there is no such file"):
        prepare(file, task=load_task("classification"), recipe=recipe)


def test_mark_is_what_augment_writes(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("text,label,augmented\nA whale sings.,sea,True\n", encoding="utf-8")
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    recipe = make_recipe(None, {"data": {"added": str(file)}}, [])
    found = prepare(data, task=load_task("classification"), recipe=recipe)
    assert json.loads(json.dumps(found.ledger.as_dict()))["splits"]["train"]["num_added"] == 1

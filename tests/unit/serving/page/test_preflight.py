"""The pre-flight is that of `lushan check`, in few words."""

from pathlib import Path

import pytest

from lushan.errors import DataError
from lushan.serving.page.preflight import preflight_html, summary
from lushan.serving.page.texts import Texts
from tests.bad_inputs import good_rows, write_lines


def test_preflight_shows_rows_and_labels(
    tmp_path: Path, tiny_folder: "object", english: Texts
) -> None:
    rows = good_rows()
    table = write_lines(tmp_path / "reviews.jsonl", rows)
    page = preflight_html(table, "classification", str(tiny_folder("llama")), english)  # pyright: ignore[reportCallIssue]
    for label in {row["label"] for row in rows}:
        assert label in page
    assert "to learn from" in page
    assert "Nothing blocks a run." in page
    bare = preflight_html(table, "classification", None, english)
    assert "Nothing blocks a run." not in bare


def test_table_that_would_block_a_run_is_refused(tmp_path: Path, english: Texts) -> None:
    table = write_lines(tmp_path / "a.jsonl", [{"text": "a", "label": "b"}] * 3)
    with pytest.raises(DataError):
        preflight_html(table, "classification", None, english)


def test_summary_has_warnings_first_and_each_once() -> None:
    split = {"total": {"num_examples": 8, "num_tokens": 90}, "num_dropped": {"empty": 1, "same": 2}}
    found = summary({
        "ledger": {"splits": {"train": split}},
        "labels": {"train": {"a": 2, "b": 6}},
        "warnings": ("few rows",),
        "notes": ["a guess", "few rows"],
    })
    assert found["notes"] == ["few rows", "a guess"]
    assert found["splits"][0]["num_left_out"] == 3
    assert [(label["name"], label["share"]) for label in found["labels"]] == [
        ("b", 1),
        ("a", 1 / 3),
    ]

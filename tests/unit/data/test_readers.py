"""From files to rows: splits, empty rows, gaps, notes, and memory."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lushan.data.columns import Columns, Notes
from lushan.data.readers import Dataset, find_files, read_dataset, read_rows
from lushan.errors import DataError
from lushan.records import Row
from tests.bad_inputs import good_rows, write_lines, write_splits

WANTED = Columns(required=("text", "label"), labels=("label",), guesses={"text": ("review",)})


def rows_of(file: Path, wanted: Columns = WANTED) -> tuple[list[Row], list[str]]:
    notes = Notes(file.name)
    return list(read_rows(file, columns={}, wanted=wanted, notes=notes)), notes.lines()


def read(path: Path) -> Dataset[Row]:
    return read_dataset(path, columns={}, wanted=WANTED, read=lambda row: row)


def test_rows_have_the_columns_of_the_task_and_their_place(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text('review,label,extra\n"two\nlines",good,1\nfine,bad,2\n', encoding="utf-8")
    rows, notes = rows_of(file)
    assert [dict(row.values) for row in rows] == [
        {"text": "two\nlines", "label": "good"},
        {"text": "fine", "label": "bad"},
    ]
    assert [row.place for row in rows] == ["data.csv, row 2", "data.csv, row 4"]
    assert notes == [
        "data.csv: column `review` is read as `text`.",
        "data.csv: column `extra` is not read.",
    ]


def test_rows_without_text_are_left_out_and_counted_even_without_label(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "data.jsonl",
        [{"text": "a", "label": "x"}, {"text": " "}, {"label": "x"}, {"text": "b", "label": "x"}],
    )
    rows, notes = rows_of(file)
    assert [row.number for row in rows] == [1, 4]
    assert notes == ["data.jsonl: empty rows left out: 2 (first in row 2)."]


def test_gaps_are_refused_together_with_their_number_and_first_places(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": None} for number in range(9)]
    file = write_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match=r"9 row\(s\) have no `label`.*: row 1, 2, 3, 4, 5 \.\.\."):
        rows_of(file)


def test_an_optional_label_may_be_missing(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", [{"text": "a"}, {"text": "b", "label": "x"}])
    rows, _ = rows_of(file, Columns(required=("text",), optional=("label",)))
    assert [row.values.get("label") for row in rows] == [None, "x"]


def test_a_column_that_the_first_row_lacks_is_found(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data.jsonl", [{"text": " "}, {"text": "b", "label": "x"}])
    assert rows_of(file)[0][0].values["label"] == "x"


def test_an_optional_column_that_a_late_row_is_the_first_to_have_is_read(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "x"} for number in range(150)]
    rows[110] |= {"review": "no other text", "else": "not read"}
    rows[120]["Remark"] = rows[140]["Remark"] = "odd"
    wanted = replace(WANTED, optional=("note",), guesses={**WANTED.guesses, "note": ("remark",)})
    found, notes = rows_of(write_lines(tmp_path / "data.jsonl", rows), wanted)
    assert [row.number for row in found if row.values.get("note") == "odd"] == [121, 141]
    assert [row.values["text"] for row in found] == [row["text"] for row in rows]
    assert notes == [
        "data.jsonl: column `Remark` is read as `note`.",
        "data.jsonl: columns `review`, `else` are not read.",
    ]


def test_columns_that_nobody_reads_are_named_once_a_file(tmp_path: Path) -> None:
    rows = [{"": 0, "id": n, "text": f"text {n}", "label": "x", "mark": 1} for n in range(150)]
    rows[120]["length"] = "long"
    wanted = replace(WANTED, optional=("length",), lengths=("length",)).without_lengths()
    file = write_lines(tmp_path / "data.jsonl", rows)
    _, (lengths, unread) = rows_of(file, wanted)
    assert lengths.startswith("data.jsonl: column `length` is not read: only a model")
    assert unread == "data.jsonl: columns `id`, `mark` are not read."
    notes = Notes("data.jsonl")
    assert list(read_rows(file, columns={}, wanted=WANTED, notes=notes, known=("mark", "length")))
    assert notes.lines() == ["data.jsonl: column `id` is not read."]


def test_a_folder_gives_its_splits_in_order_whatever_their_format(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", good_rows()[:2])
    (tmp_path / "Train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    (tmp_path / "dev.json").write_text(json.dumps(good_rows()[:3]), encoding="utf-8")
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    dataset = read(tmp_path)
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {
        "train": 1,
        "validation": 3,
        "test": 2,
    }
    assert list(dataset.splits) == ["train", "validation", "test"]
    assert dataset.notes == ["dev.json is read as validation."]


def test_data_files_that_are_no_split_are_named(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write_lines(tmp_path / f"{name}.jsonl", good_rows())
    for name in ("README.md", "LICENSE", ".test.csv", "notes.txt"):
        (tmp_path / name).write_text("words", encoding="utf-8")
    (tmp_path / "folder.csv").mkdir()
    assert read(tmp_path).notes == []
    names = ["eval.csv", "test-00000-of-00001.parquet", "test_set.csv.gz"]
    for name in names:
        (tmp_path / name).write_text("words", encoding="utf-8")
    assert read(tmp_path).notes == [
        "Not read: `eval.csv`, `test-00000-of-00001.parquet`, `test_set.csv.gz`. A split has one file, called `train`, "
        "`validation` or `test`, such as `test.csv`."
    ]
    for number in range(30):
        (tmp_path / f"a{number:02}.json").write_text("{}", encoding="utf-8")
    (note,) = find_files(tmp_path)[1]
    assert note.startswith(
        "Not read: `a00.json`, `a01.json`, `a02.json`, `a03.json`, `a04.json` and 28 more. A split"
    )


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_other_names_of_the_validation_split_are_known(name: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / f"{name}.jsonl", good_rows())
    assert find_files(tmp_path)[0] == {"validation": file}


def test_one_file_is_train(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "test.jsonl", good_rows())
    assert find_files(file) == ({"train": file}, [])


def test_the_fingerprint_changes_with_the_content_and_not_with_the_folder(tmp_path: Path) -> None:
    rows = good_rows()
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    write_splits(tmp_path / "one", train=rows, validation=rows, test=rows)
    write_splits(tmp_path / "two", train=rows, validation=rows, test=rows)
    write_splits(tmp_path / "three", train=rows, validation=rows, test=rows[1:])
    one, two, three = (read(tmp_path / name).fingerprint for name in ("one", "two", "three"))
    assert one == two != three


def lines_of(num_bytes: int) -> Iterator[str]:
    line = json.dumps({"text": "x" * 1000, "label": "a"}) + "\n"
    yield from (line for _ in range(num_bytes // len(line)))


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    file, num_bytes = tmp_path / name, 20_000_000
    with file.open("w", encoding="utf-8") as content:
        content.writelines(lines_of(num_bytes))
    notes = Notes(file.name)
    tracemalloc.start()
    num_rows = sum(1 for _ in read_rows(file, columns={}, wanted=WANTED, notes=notes))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows > 19_000
    assert peak_bytes < 2_000_000

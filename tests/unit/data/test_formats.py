"""Every format, plain and gzipped, against the libraries that wrote the files."""

import csv
import gzip
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lushan.data import formats, json_lists
from lushan.data.columns import Notes
from lushan.data.formats import EMPTY_ROWS, format_of, read_records
from lushan.errors import DataError

ROWS = [
    {"text": 'He said "no", twice.', "label": "a"},
    {"text": "two\nlines", "label": "b"},
    {"text": "日本語 and café", "label": "a"},
    {"text": "x" * 300_000, "label": "b"},
]


def write(file: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write with the standard library, or with pyarrow."""
    name = file.name.removesuffix(".gz")
    plain = file.with_name(name)
    if name.endswith((".csv", ".tsv")):
        with plain.open("w", encoding="utf-8", newline="") as content:
            writer = csv.DictWriter(
                content, ["text", "label"], delimiter="\t" if name.endswith("tsv") else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(list(rows)), plain)
    elif name.endswith(".jsonl"):
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        plain.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    if file != plain:
        file.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return file


def read(file: Path) -> list[dict[str, object]]:
    return [dict(record.values) for record in read_records(file, Notes(file.name))]


def numbers(file: Path) -> list[int]:
    return [record.number for record in read_records(file, Notes(file.name))]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_what_was_written_is_read(extension: str, ending: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / f"data{extension}{ending}", ROWS)) == ROWS


def test_numbers_are_lines_in_text_and_rows_in_parquet(tmp_path: Path) -> None:
    assert numbers(write(tmp_path / "data.csv", ROWS)) == [2, 3, 5, 6]
    assert numbers(write(tmp_path / "data.jsonl", ROWS)) == [1, 2, 3, 4]
    assert numbers(write(tmp_path / "data.parquet", ROWS)) == [1, 2, 3, 4]


def test_numbers_are_places_in_a_list_however_it_is_printed(tmp_path: Path) -> None:
    assert numbers(write(tmp_path / "printed.json", ROWS)) == [1, 2, 3, 4]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(ROWS), encoding="utf-8")
    assert numbers(file) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a": 2}, "x"]', "data.json, row 3: expected an object .* found str"),
        ('[\n"x",\n"y"\n]', "data.json, row 1: expected an object .* found str"),
        ('[{"a": 1}, {"a": oops}]', "data.json, row 2: not JSON: .* at line 1, column 18"),
        (
            '[\n {"a": 1},\n {\n  "a": oops\n }\n]',
            "data.json, row 2: not JSON: Expecting value at line 4, column 8",
        ),
        ('[{"a": 1}\n{"a": 2}]', "data.json, row 2: not JSON: found `{` where the list needs ,]"),
        ('[{"a": 1},\n{"a": 2', "data.json: the list is cut off at row 2: `]` is missing"),
        ("[\n", "data.json: the list is cut off at row 1: `]` is missing"),
    ],
)
def test_place_in_a_broken_list_is_told(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"^{message}"):
        read(file)


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_on_one_line_is_read_in_pieces_of_any_size(
    num_bytes: int, ending: str, mark: str, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_PIECE_BYTES", num_bytes)
    rows = [*ROWS[:3], {"text": "\u5e90\u5c71\uff0c\U0001f600, x" * 9, "label": 'a]}, {"'}]
    file = tmp_path / f"data.json{ending}"
    content = (mark + json.dumps(rows, ensure_ascii=False)).encode()
    file.write_bytes(gzip.compress(content) if ending else content)
    assert read(file) == rows
    assert numbers(file) == [1, 2, 3, 4]


@pytest.mark.parametrize("num_bytes", [5, 2**20])
def test_place_in_a_broken_line_of_many_pieces_is_told(
    num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_PIECE_BYTES", num_bytes)
    file = tmp_path / "data.json"
    text = '[\n{"a": "x, y", "b": [1, 2]}, {"a": "z, z"}, {"a": oops, "b": "more, of it"}]'
    file.write_text(text, encoding="utf-8")
    column = text.index("oops") - 1
    message = f"row 3: not JSON: Expecting value at line 2, column {column}"
    with pytest.raises(DataError, match=message):
        read(file)
    file.write_text('[{"a": "x, y"}, {"a": "never, ended}]', encoding="utf-8")
    with pytest.raises(DataError, match="list is cut off at row 2: `]` is missing"):
        read(file)
    file.write_bytes(b'[{"a": "x, y"},\n {"a": "\xff, z"}]')
    with pytest.raises(DataError, match=r"data\.json, line 2: not UTF-8: byte 0xff at byte 24\."):
        read(file)


def test_a_list_on_one_line_is_not_in_memory_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_PIECE_BYTES", 2**16)
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"text": "x, " * 100}] * 20_000), encoding="utf-8")
    tracemalloc.start()
    num_rows = sum(1 for _ in read_records(file, Notes(file.name)))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == 20_000
    assert most_bytes < 2**21 < file.stat().st_size / 2


def test_a_long_value_is_decoded_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            lengths.append(len(s) - idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(json_lists, "DECODER", Counting())
    monkeypatch.setattr(formats, "_PIECE_BYTES", 100)
    file = tmp_path / "data.json"
    rows = [{"pairs": [[number, {}] for number in range(3000)]}]
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert read(file) == rows
    assert sum(lengths) < 4 * file.stat().st_size


@pytest.mark.parametrize("header", ["text,label, label", "text , text,label"])
def test_columns_with_one_name_but_for_spaces_are_refused(header: str, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text(f"{header}\nfine,good,bad\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.csv: two columns are called `(text|label)`"):
        read(file)


@pytest.mark.parametrize(
    "content",
    ['text\tlabel\n"wet day\tbad\nfine"\tgood\n', 'label\ttext\nbad\t"wet day\r\ngood\tfine"\r\n'],
)
def test_stray_quote_that_takes_in_another_row_of_a_tsv_is_refused(
    content: str, tmp_path: Path
) -> None:
    file = tmp_path / "data.tsv"
    file.write_bytes(content.encode())
    with pytest.raises(
        DataError, match=r"data\.tsv, row 2: a field that starts with a quote goes on"
    ):
        read(file)
    file = tmp_path / "data.csv"
    file.write_bytes(b'text,label\n"wet\tday\nfine","good"\n')
    assert read(file) == [{"text": "wet\tday\nfine", "label": "good"}]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_mark_and_line_ends_do_not_matter(
    mark: str, line_end: str, tmp_path: Path
) -> None:
    file = tmp_path / "data.csv"
    content = mark + line_end.join(["text,label", "fine,good", "", ",", "wet,bad"])
    file.write_bytes(content.encode())
    notes = Notes(file.name)
    found = [dict(record.values) for record in read_records(file, notes)]
    assert found == [{"text": "fine", "label": "good"}, {"text": "wet", "label": "bad"}]
    assert notes.lines() == [f"data.csv: {EMPTY_ROWS}: 2 (first in row 3)."]


def test_empty_lines_of_json_lines_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('\n{"text": "a"}\n  \n{"text": "b"}', encoding="utf-8")
    notes = Notes(file.name)
    assert [record.number for record in read_records(file, notes)] == [2, 4]
    assert notes.times(EMPTY_ROWS) == 2


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read(file) == [{"text": "a\u2028b\x85c"}]


def test_json_lines_in_a_json_file_are_read_and_told(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    notes = Notes(file.name)
    assert [record.values for record in read_records(file, notes)] == [{"text": "a"}, {"text": "b"}]
    assert "read as JSON Lines" in notes.lines()[0]


def test_the_place_of_a_wrong_byte_counts_the_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: .* 0xff at byte 19"):
        read(file)


def test_rows_before_a_broken_one_are_streamed(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "a"}\nbroken\n', encoding="utf-8")
    records = read_records(file, Notes(file.name))
    assert next(records).values == {"text": "a"}
    with pytest.raises(DataError, match=r"row 2: not JSON: Expecting value at column 1"):
        next(records)


def test_lines_that_end_with_a_lone_carriage_return_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(b"text,label\rfine,good\r")
    with pytest.raises(DataError, match=r"lines end with \\n"):
        read(file)


@pytest.mark.parametrize("damage", [b"\xff" * 40, b""])
def test_a_parquet_file_with_a_damaged_middle_is_refused(damage: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "data.parquet", ROWS[:3])
    content = file.read_bytes()
    file.write_bytes(content[:20] + damage + content[60:])
    with pytest.raises(DataError, match=r"data\.parquet: not a Parquet file, or broken: \S.*\.$"):
        read(file)


def test_a_value_of_parquet_that_python_cannot_hold_is_refused_by_its_column(
    tmp_path: Path,
) -> None:
    days = pa.array([0, 10_000_000], pa.int32()).cast(pa.date32())  # in the year 29,349
    parquet.write_table(pa.table({"text": ["a", "b"], "day": days}), tmp_path / "data.parquet")
    with pytest.raises(
        DataError, match=r"data\.parquet: column `day` has a value that cannot be read: \S"
    ):
        read(tmp_path / "data.parquet")


def test_a_number_too_long_for_python_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": ' + "9" * 5000 + "}", encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.jsonl, row 1: not JSON: Exceeds the limit"):
        read(file)


@pytest.mark.parametrize(
    ("name", "extension"),
    [("a.csv", ".csv"), ("A.JSONL.GZ", ".jsonl"), ("a.b.parquet", ".parquet"), ("csv", None)],
)
def test_the_name_tells_the_format(name: str, extension: str | None) -> None:
    assert format_of(Path(name)) == extension

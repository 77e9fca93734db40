"""What visitors bring gets a harmless name, and stays in the store."""

from pathlib import Path

import pytest

from lushan.serving.page.uploads import free_place, keep_upload, safe_name


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("reviews.csv", "reviews.csv"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\evil.csv", "evil.csv"),
        ("/abs/olute.csv", "olute.csv"),
        ("-rf --out.csv", "rf-out.csv"),
        (".hidden", "hidden"),
        ("a b;c|d$(e).csv", "a-b-c-d-e-.csv"),
        ("\u8bc4\u8bba.csv", "\u8bc4\u8bba.csv"),
        ("x" * 300 + ".csv", "x" * 56 + ".csv"),
        ("..", "table.csv"),
        ("", "table.csv"),
        ("a\0b.csv", "a-b.csv"),
    ],
)
def test_safe_name_is_one_plain_part_of_a_path(given: str, kept: str) -> None:
    assert safe_name(given, otherwise="table.csv") == kept


def test_upload_is_kept_below_the_store_whatever_it_is_called(tmp_path: Path) -> None:
    upload = tmp_path / "-a b.csv"
    upload.write_text("text,label\n", encoding="utf-8")
    kept = keep_upload(upload, tmp_path / "store")
    assert kept == tmp_path / "store" / "uploads" / "a-b.csv"
    assert kept.read_text(encoding="utf-8") == "text,label\n"


def test_second_upload_of_a_name_does_not_replace_the_first(tmp_path: Path) -> None:
    upload = tmp_path / "a.csv.gz"
    upload.write_bytes(b"1")
    kept = [keep_upload(upload, tmp_path / "store").name for _ in range(3)]
    assert kept == ["a.csv.gz", "a-2.csv.gz", "a-3.csv.gz"]


def test_free_place_of_a_folder_without_the_name_is_the_name(tmp_path: Path) -> None:
    assert free_place(tmp_path, "run") == tmp_path / "run"


def test_free_place_has_no_name_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run-2").mkdir()
    assert free_place(tmp_path, "run", taken={"run"}) == tmp_path / "run-3"

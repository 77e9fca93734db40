"""Rows that a run was tuned on are found out by their file and by its content."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from lushan.data.readers import digests_of, find_files, fingerprint_of
from lushan.workflows.seen_rows import is_tuned_on
from tests.bad_inputs import good_rows, write_lines, write_splits


def run_on(data: Path, folder: Path) -> Path:
    """Give a run folder that knows its data, and nothing else."""
    (folder / "model").mkdir(parents=True)
    fingerprint = fingerprint_of(digests_of(find_files(data)[0]))
    told = {"data": str(data.resolve()), "fingerprint": fingerprint}
    (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "reviews.jsonl", good_rows())


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    return run_on(data, tmp_path / "run")


def test_file_of_the_run_is_known_by_any_path_and_after_a_change(
    run: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.jsonl").symlink_to(data)
    assert is_tuned_on(run, data)
    assert is_tuned_on(run / "model", tmp_path / "link.jsonl")
    write_lines(data, good_rows()[:30])
    assert is_tuned_on(run, data)


def test_copy_is_known_by_its_content_also_when_the_file_is_gone(
    run: Path, data: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(data, tmp_path / "copy.jsonl"))
    assert is_tuned_on(run, copy)
    data.unlink()
    assert is_tuned_on(run, copy)


def test_copy_is_known_though_rows_were_added_for_the_run(
    run: Path, data: Path, tmp_path: Path
) -> None:
    told = {"data": str(data), "fingerprint": "that of both"}
    (run / "run.json").write_text(json.dumps(told), encoding="utf-8")
    assert is_tuned_on(run, Path(shutil.copy(data, tmp_path / "copy.jsonl")))


def test_each_file_is_known_by_its_content_wherever_it_is(run: Path, data: Path) -> None:
    files = {
        name: write_lines(data.parent / f"{name}.jsonl", good_rows(start=start, step=4))
        for start, name in enumerate(("train", "validation", "test", "added"))
    }
    digests = {name: sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    data.unlink()
    for noted, known in ((digests, {"train", "validation", "added"}), ({}, set[str]())):
        told = {"data": str(data), "fingerprint": "that of all", "digests": noted}
        (run / "run.json").write_text(json.dumps(told), encoding="utf-8")
        assert {name for name, file in files.items() if is_tuned_on(run, file)} == known


def test_other_rows_are_not_taken_for_those_of_the_run(run: Path, tmp_path: Path) -> None:
    rows = good_rows()
    same_size = [{**rows[0], "text": rows[0]["text"][::-1]}, *rows[1:]]
    assert not is_tuned_on(run, write_lines(tmp_path / "other.jsonl", same_size))
    assert not is_tuned_on(run, write_lines(tmp_path / "more.jsonl", rows[:9]))


def test_test_file_of_a_folder_is_not_what_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parts = {"train": good_rows()[:20], "validation": good_rows()[20:30]}
    data = write_splits(tmp_path / "data", **parts, test=good_rows()[30:])
    run = run_on(data, tmp_path / "run")
    known = {each.stem: is_tuned_on(run, each) for each in data.iterdir()}
    assert known == {"train": True, "validation": True, "test": False}


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        '{"fingerprint": "x"}',
        '{"data": null}',
        '{"data": "", "fingerprint": "", "digests": 3}',
    ],
)
def test_run_that_tells_nothing_of_its_data_knows_no_file(
    content: str | None, run: Path, data: Path
) -> None:
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_text(content, encoding="utf-8")
    assert not is_tuned_on(run, data)

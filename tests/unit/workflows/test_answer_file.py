"""A file of answers: whole or not there, and gone on with where a process stopped."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lushan.errors import DataError, FullDiskError, RunError, SettingError
from lushan.workflows.answer_file import AnswerFile

FACTS: dict[str, Any] = {
    "model_version": "ab12",
    "rows": "of SHA-256 cd34",
    "num_examples": 7,
    "chunk_rows": 3,
    "length_limit": {"max_tokens": 128, "policy": "window"},
}
LINES = [f'{{"row": {number}, "model_version": "ab12"}}\n' for number in range(1, 8)]


def begun(path: Path, content: str) -> AnswerFile:
    """Give a file that a killed process left, about to be gone on with."""
    path.with_name(f"{path.name}.part").write_text(content, encoding="utf-8")
    path.with_name(f"{path.name}.part.json").write_text(json.dumps(FACTS), encoding="utf-8")
    return AnswerFile(path, resume=True, overwrite=False)


def test_file_appears_with_its_last_line_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    file = AnswerFile(path, resume=False, overwrite=False)
    assert not path.parent.exists()
    assert file.begin(FACTS) == 0

    def lines() -> Iterator[str]:
        yield from LINES
        assert not path.exists()
        assert (tmp_path / "new" / "answers.jsonl.part").read_text("utf-8") == "".join(LINES)

    file.write(lines())
    assert path.read_text(encoding="utf-8") == "".join(LINES)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("num_lines", "torn", "num_kept"),
    [(0, "", 0), (2, "", 0), (3, "", 3), (5, '{"row": 6, "mo', 3), (6, "{", 6), (7, "", 7)],
)
def test_whole_chunks_are_kept_and_the_rest_is_made_again(
    num_lines: int, torn: str, num_kept: int, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    file = begun(path, "".join(LINES[:num_lines]) + torn)
    assert file.begin(FACTS) == num_kept
    file.write(LINES[num_kept:])
    assert path.read_text(encoding="utf-8") == "".join(LINES)
    assert list(tmp_path.iterdir()) == [path]


def test_last_line_without_its_end_is_torn(tmp_path: Path) -> None:
    assert begun(tmp_path / "a", "".join(LINES).removesuffix("\n")).begin(FACTS) == 6


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model_version", "ef", "was begun with `model_version` ab12, now it is ef"),
        ("rows", "of SHA-256 99", "`rows` of SHA-256 cd34, now it is of SHA-256 99"),
        ("chunk_rows", 4, "was begun with `chunk_rows` 3, now it is 4"),
        ("length_limit", {"max_tokens": 9}, r"`length_limit` \{'max_tokens': 128, .* is \{'max"),
    ],
)
def test_other_model_rows_or_settings_are_refused(
    name: str, value: object, told: str, tmp_path: Path
) -> None:
    file = begun(tmp_path / "a", "".join(LINES[:3]))
    with pytest.raises(SettingError, match=told):
        file.begin({**FACTS, name: value})
    assert (tmp_path / "a.part").read_text(encoding="utf-8") == "".join(LINES[:3])


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("no JSON\n", r"a\.part` is broken: Expecting value"),
        ('{"model_version": "zz"}\n', r"a\.part` is broken: its last line is of model version zz"),
    ],
)
def test_last_line_that_is_no_answer_of_this_model_is_refused(
    last: str, told: str, tmp_path: Path
) -> None:
    file = begun(tmp_path / "a", "".join(LINES[:2]) + last)
    with pytest.raises(RunError, match=told):
        file.begin(FACTS)


def test_broken_facts_are_refused(tmp_path: Path) -> None:
    file = begun(tmp_path / "a", "")
    (tmp_path / "a.part.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"a\.part\.json` is broken.*--overwrite"):
        file.begin(FACTS)


def test_what_was_begun_is_not_thrown_away_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(RunError, match="nothing was begun that could go on"):
        AnswerFile(path, resume=True, overwrite=False)
    begun(path, LINES[0])
    with pytest.raises(RunError, match=r"answers\.jsonl\.part` was begun and not finished"):
        AnswerFile(path, resume=False, overwrite=False)
    again = AnswerFile(path, resume=False, overwrite=True)
    assert again.begin(FACTS) == 0
    again.write(LINES)
    assert path.read_text(encoding="utf-8") == "".join(LINES)


def test_second_process_is_refused(tmp_path: Path) -> None:
    first = AnswerFile(tmp_path / "a", resume=False, overwrite=False)
    first.begin(FACTS)
    second = AnswerFile(tmp_path / "a", resume=True, overwrite=False)
    with pytest.raises(RunError, match=r"Another process is writing to .*a\.part"):
        second.begin(FACTS)
    first.write(LINES)


@pytest.mark.parametrize(
    ("resume", "told"),
    [
        (True, r"a\.part` is gone: another process has just finished it"),
        (False, "is there already"),
    ],
)
def test_file_that_another_process_has_just_finished_stays_whole(
    resume: bool, told: str, tmp_path: Path
) -> None:
    first = AnswerFile(tmp_path / "a", resume=False, overwrite=False)
    early = AnswerFile(tmp_path / "a", resume=False, overwrite=False)
    first.begin(FACTS)
    second = AnswerFile(tmp_path / "a", resume=True, overwrite=False) if resume else early
    first.write(LINES)
    with pytest.raises(RunError, match=told):
        second.begin(FACTS)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "".join(LINES)


def test_file_that_is_finished_while_another_process_opens_it_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = AnswerFile(tmp_path / "a", resume=False, overwrite=False)
    first.begin(FACTS)
    second = AnswerFile(tmp_path / "a", resume=False, overwrite=True)
    lock = fcntl.flock

    def finish_first(descriptor: int, how: int) -> None:
        first.write(LINES)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(RunError, match=r"a\.part` is gone"):
        second.begin(FACTS)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "".join(LINES)


def test_mistake_of_the_user_leaves_nothing_and_any_other_end_leaves_what_was_answered(
    tmp_path: Path,
) -> None:
    def lines(error: BaseException) -> Iterator[str]:
        yield from LINES[:4]
        raise error

    def write(error: BaseException) -> None:
        file = AnswerFile(tmp_path / "a", resume=False, overwrite=True)
        file.begin(FACTS)
        file.write(lines(error))

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert (tmp_path / "a.part").read_text(encoding="utf-8") == "".join(LINES[:4])
    with pytest.raises(DataError, match="row 5"):
        write(DataError("row 5"))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_what_was_answered_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AnswerFile(tmp_path / "a", resume=False, overwrite=False)
    file.begin(FACTS)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    told = rf"^`a\.part` cannot be written to `{tmp_path}`: No space .*, then go on with `--res"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(FullDiskError, match=told):
            file.write(LINES[:4])
    again = AnswerFile(tmp_path / "a", resume=True, overwrite=False)
    assert again.begin(FACTS) == 3
    again.write(LINES[3:])
    assert (tmp_path / "a").read_text(encoding="utf-8") == "".join(LINES)

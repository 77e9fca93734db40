"""Files that are either the old or the new."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lushan.atomic import (
    is_abandoned,
    is_locked,
    kept_folder,
    lock_file,
    naming_full_disk,
    new_folder,
    write_json,
    write_parts,
    write_text,
)
from lushan.errors import FullDiskError


def test_written_text_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "\u5e90\u5c71\n")
    write_text(tmp_path / "a.txt", "new\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    told = rf"^`a\.txt` cannot be written to `{tmp_path}`: No space left on device\. .* `--resume`\. Noth"
    with pytest.raises(FullDiskError, match=told) as found:
        write_text(tmp_path / "a.txt", "new")
    assert isinstance(found.value, OSError)  # for caches, which do without
    assert found.value.errno == 28
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    with pytest.raises(FullDiskError, match=r"^`model` cannot be"), new_folder(tmp_path / "model"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_cannot_be_written_leaves_the_old_file_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_number_that_json_does_not_have_leaves_the_old_file_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "loss": 1.0\n}\n'


def test_reader_never_sees_half_a_file_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from lushan.atomic import write_text\n"
        "import itertools\n"
        "for n in itertools.count(): write_text(Path('a.txt'), str(n % 10) * 1_000_000)"
    )
    for wait_seconds in (0.4, 0.45, 0.5):
        with pytest.raises(subprocess.TimeoutExpired):  # which kills the writer
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=wait_seconds)
        text = (tmp_path / "a.txt").read_text("utf-8") if (tmp_path / "a.txt").exists() else "0"
        assert len(set(text)) == 1
        assert len(text) in {1, 1_000_000}


def test_parts_that_fail_half_way_leave_the_old_file_whole(tmp_path: Path) -> None:
    write_parts(tmp_path / "a.txt", ["old ", "and whole"])

    def parts() -> Iterator[str]:
        yield "new "
        raise KeyError

    with pytest.raises(KeyError):
        write_parts(tmp_path / "a.txt", parts())
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old and whole"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    wanted = f"^The rows cannot be written to `{tmp_path}`: No space left on device. Make room there, or pray."
    with (
        pytest.raises(FullDiskError, match=wanted),
        naming_full_disk(tmp_path, what="The rows", remedy="or pray"),
        Path("/dev/full").open("w", encoding="utf-8") as full,
    ):
        full.write("a")


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        naming_full_disk(tmp_path, what="The rows"),
    ):
        (tmp_path / "missing").read_bytes()


def test_file_is_kept_until_it_is_given_back_or_the_process_ends(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    assert not is_locked(file)
    kept = lock_file(file)
    assert kept is not None
    assert lock_file(file) is None
    assert is_locked(file)
    os.close(kept)
    assert not is_locked(file)
    code = "from pathlib import Path; from lushan.atomic import lock_file\nlock_file(Path('.lock'))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not is_locked(file)


def test_folder_of_a_process_is_abandoned_once_that_is_gone_and_something_is_in_it(
    tmp_path: Path,
) -> None:
    with kept_folder(tmp_path, name="a.b") as one, kept_folder(tmp_path, name="a.b") as other:
        assert one != other
        assert (one.name[:5], one.suffix) == (".a.b.", ".part")
        (one / "model").mkdir()
        assert not is_abandoned(one)
    assert list(tmp_path.iterdir()) == []
    one.mkdir()
    (one / ".lock").touch()
    assert not is_abandoned(one)  # another process may just have made it
    (one / "model").mkdir()
    assert is_abandoned(one)
    assert not is_abandoned(one / ".lock")
    assert not is_abandoned(tmp_path / "gone")

"""An open store: what is committed stays, what fails is told, several processes write at once."""

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from lushan.database import connect
from lushan.database.connect import Database, open_database
from lushan.database.schema import FeedbackRow
from lushan.errors import StoreError
from lushan.feedback.store import FeedbackStore
from tests.stores import fill, forbid_growth, forbid_writing, given, new_database, start_python

WRITE = """
import sys
from lushan.feedback.store import FeedbackStore
from tests.stores import given, new_database
folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = FeedbackStore(new_database(folder))
for number in range(first, last):
    store.add(given(id=f"row-{number}"), task="classification")
    print(f"row-{number}", flush=True)
"""
"""Opens a store, which may have to be made and migrated, and tells each row when it is stored."""

LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))  # no file may be larger\n"
WRITE_UNTIL_ERROR = """
import sys
from lushan.errors import StoreError
from lushan.feedback.store import FeedbackStore
from tests.stores import given, new_database
store = FeedbackStore(new_database(sys.argv[1]))
try:
    for number in range(1000):
        store.add(given(id=f"row-{number}", comment="x" * 9000), task="classification")
        print(f"row-{number}", flush=True)
except StoreError as error:
    print(error)
"""


def ids_in(folder: Path) -> set[str]:
    with sqlite3.connect(folder / "lushan.sqlite3") as connection:
        ids = {row[0] for row in connection.execute("SELECT id FROM feedback")}
    connection.close()
    return ids


def num_rows(database: Database) -> int | None:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(FeedbackRow))


def test_killed_process_loses_no_row_that_it_acknowledged(tmp_path: Path) -> None:
    stored: set[str] = set()
    for first, num_read in ((0, 1), (1000, 7), (2000, 30)):
        process = start_python(WRITE, [str(tmp_path), str(first), str(first + 1000)])
        assert process.stdout is not None
        stored |= {process.stdout.readline().strip() for _ in range(num_read)}
        process.kill()
        rest, _ = process.communicate()
        stored |= set(rest.split("\n")[:-1])
    assert len(stored) >= 38
    assert stored <= ids_in(tmp_path)
    assert len(ids_in(tmp_path) - stored) <= 3  # stored, and killed before it was told


def test_processes_make_migrate_and_write_one_store_at_once(tmp_path: Path) -> None:
    spans = [(str(first), str(first + 40)) for first in (0, 100, 200)]
    processes = [start_python(WRITE, [str(tmp_path), *span]) for span in spans]
    told = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [len(each) for each in told] == [40, 40, 40]
    assert ids_in(tmp_path) == {name for each in told for name in each}


def test_threads_write_one_store_at_once(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        store = FeedbackStore(database)
        threads = [
            threading.Thread(target=store.add, args=[given(input=f"{n}")], kwargs={"task": "code"})
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert num_rows(database) == 20


def test_store_waits_for_the_disk_and_keeps_a_log_beside(tmp_path: Path) -> None:
    with new_database(tmp_path) as database, database.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert session.scalar(text("PRAGMA busy_timeout")) == 10_000


def test_reader_is_not_kept_waiting_by_a_writer(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
        with database.writing() as session:
            session.execute(text("DELETE FROM feedback"))
            assert num_rows(database) == 1
        assert num_rows(database) == 0


def _delete_and_fail(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("DELETE FROM feedback"))
        raise RuntimeError("enough")


def test_error_in_a_session_that_writes_undoes_all_of_it(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
        with pytest.raises(RuntimeError, match="enough"):
            _delete_and_fail(database)
        assert num_rows(database) == 1


def test_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=3)
        forbid_growth(database)
        with pytest.raises(StoreError, match=r"lushan\.sqlite3`: the disk is full\. Free some"):
            FeedbackStore(database).add(given(comment="x" * 9000), task="classification")
        assert num_rows(database) == 3


def test_write_that_the_system_refuses_is_told(tmp_path: Path) -> None:
    process = start_python(f"import resource\n{LIMIT}{WRITE_UNTIL_ERROR}", [str(tmp_path)])
    told = process.communicate()[0].splitlines()
    assert told[-1].endswith(
        "lushan.sqlite3`: the disk could not read or write. Check the disk and its free room."
    )
    assert ids_in(tmp_path) == set(told[:-1]) != set()


def test_disk_that_may_only_be_read_is_told(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
        forbid_writing(database)
        with pytest.raises(StoreError, match=r"lushan\.sqlite3`: it may only be read\. Give your"):
            fill(database, num_rows=2)
        assert num_rows(database) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_only_be_read_is_told(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=1)
    for path in (tmp_path / "lushan.sqlite3", tmp_path):
        path.chmod(0o500)
    with pytest.raises(StoreError, match=r"may only be read|cannot be opened"):
        fill(new_database(tmp_path), num_rows=2)
    tmp_path.chmod(0o700)


def test_writer_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "BUSY_SECONDS", 0.05)
    with new_database(tmp_path) as mine, new_database(tmp_path) as other, mine.writing() as session:
        session.execute(text("DELETE FROM feedback"))
        with pytest.raises(StoreError, match="another process has been writing"):
            fill(other, num_rows=1)


def test_thread_that_does_not_end_its_turn_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_database(tmp_path) as mine:
        monkeypatch.setattr(connect, "BUSY_SECONDS", 0.05)
        with (
            mine.writing(),
            pytest.raises(StoreError, match="has been writing"),
            mine.writing(),
        ):
            pass
        fill(mine, num_rows=1)


def test_file_that_is_no_database_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "lushan.sqlite3"
    file.write_text("These are my notes. " * 100, encoding="utf-8")
    with pytest.raises(StoreError, match=r"it is not a SQLite database\. Move the file away"):
        new_database(tmp_path)
    assert file.read_text(encoding="utf-8") == "These are my notes. " * 100


def test_damaged_database_is_told(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=200)
    file = tmp_path / "lushan.sqlite3"
    content = file.read_bytes()
    file.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with (
        new_database(tmp_path) as database,
        pytest.raises(StoreError, match=r"it is damaged\. Put a backup"),
    ):
        list(FeedbackStore(database).stream())


def test_store_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store in `.*none`: no file `lushan\.sqlite3`\. Name"):
        open_database(str(tmp_path / "none"), create=False)
    assert list(tmp_path.iterdir()) == []


def test_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match=r"a part of that path is a file\. Name another"):
        new_database(tmp_path / "notes.txt" / "store")


def test_new_store_can_be_read_by_its_user_alone(tmp_path: Path) -> None:
    new_database(tmp_path / "store").close()
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "store" / "lushan.sqlite3").stat().st_mode) == 0o600


def test_store_can_be_named_by_a_url(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/mine.db", create=True).close()
    assert (tmp_path / "mine.db").is_file()


def test_error_of_ours_stays_what_it_is(tmp_path: Path) -> None:
    with (
        new_database(tmp_path) as database,
        pytest.raises(IntegrityError, match="NOT NULL"),
        database.writing() as session,
    ):
        session.add(FeedbackRow(id="1"))

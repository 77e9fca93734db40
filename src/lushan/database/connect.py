"""Opens the store: a SQLite file with the newest schema, in which a committed write survives `kill -9` and a power cut."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from lushan.database.location import database_file
from lushan.database.migrate import migrate
from lushan.errors import StoreError

BUSY_SECONDS = 10.0
"""How long a write waits for that of another process."""
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL")
"""WAL: readers and a writer do not wait for each other. FULL: a commit returns when the disk has it."""
BEGIN = "lushan_begin"
"""Name of the execution option that says how a transaction begins."""

_ELSEWHERE = "name another folder with `--store`"
REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full. Free some room and do it again",
    sqlite3.SQLITE_READONLY: f"it may only be read. Give your user the right to write, or {_ELSEWHERE}",
    sqlite3.SQLITE_PERM: f"it may not be read. Give your user the right to, or {_ELSEWHERE}",
    sqlite3.SQLITE_CANTOPEN: f"it cannot be opened. Give your user the right to, or {_ELSEWHERE}",
    sqlite3.SQLITE_BUSY: f"another process has been writing for {BUSY_SECONDS:.0f} s. Do it again when that is done",
    sqlite3.SQLITE_NOTADB: f"it is not a SQLite database. Move the file away, or {_ELSEWHERE}",
    sqlite3.SQLITE_CORRUPT: f"it is damaged. Put a backup in its place, or {_ELSEWHERE}",
    sqlite3.SQLITE_IOERR: "the disk could not read or write. Check the disk and its free room",
}
"""Primary result code of SQLite to what is wrong and what to do."""


class Database:
    """An open store, for any number of threads."""

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self._reader = create_engine(
            URL.create("sqlite", database=str(file.resolve())),
            connect_args={"timeout": BUSY_SECONDS},
        )
        self._writer = self._reader.execution_options(**{BEGIN: "BEGIN IMMEDIATE"})
        # Threads take turns here: waiting for SQLite is asking again and again, and some ask for seconds.
        self._turn = threading.Lock()
        event.listen(self._reader, "connect", _prepare)
        event.listen(self._reader, "begin", _begin)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session whose reads all see the same state.

        Raises:
            StoreError: If the store cannot be read.
        """
        with self._explained(), Session(self._reader) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Give a session that alone writes; leaving it commits, and an error in it undoes all of it.

        Raises:
            StoreError: If the store cannot be written.
        """
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise StoreError(f"The store `{self.name}`: {REASONS[sqlite3.SQLITE_BUSY]}.")
        try:
            with self._explained(), Session(self._writer) as session, session.begin():
                yield session
        finally:
            self._turn.release()

    def migrate(self) -> None:
        """Upgrade to the newest schema.

        Raises:
            StoreError: If that cannot be done.
        """
        with self._explained():
            migrate(self._reader, self._writer, name=self.name)

    def close(self) -> None:
        """Give back files and memory."""
        self._reader.dispose()

    def __enter__(self) -> Self:
        """Use the store in a `with` block, so that it is closed whatever happens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            # The lowest byte is the primary code; what is above says where it happened.
            reason = REASONS.get(getattr(error.orig, "sqlite_errorcode", 0) & 0xFF)
            if reason is None:
                raise
            raise StoreError(f"The store `{self.name}`: {reason}.") from error


def open_database(place: str, *, create: bool) -> Database:
    """Open the store and bring it to the newest schema.

    Args:
        place: A folder or a URL, see `location.store_place`.
        create: Whether to make it where there is none.

    Raises:
        StoreError: If there is none, or it cannot be opened, is no database, or is of a newer Lushan.
    """
    file = database_file(place)
    if not file.is_file():
        if not create:
            raise StoreError(
                f"There is no store in `{file.parent}`: no file `{file.name}`. Name its folder with `--store`."
            )
        _make(file)
    database = Database(file)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


def _make(file: Path) -> None:
    """Make the file so that only its user can read it: it will hold texts of people."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StoreError(
            f"The store cannot be made in `{file.parent}`: a part of that path is a file. Name another folder."
        ) from None
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, mode=0o600))


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(BEGIN, "BEGIN"))

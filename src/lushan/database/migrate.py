"""Brings a database to the newest schema, or says why it cannot."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, column, inspect, select, table

from lushan.errors import StoreError

VERSION_TABLE = "lushan_schema"
"""Holds the revision of the schema; named so that no other program's database is taken for ours."""
MIGRATIONS = Path(__file__).parent / "migrations"
"""Each file of its folder `versions` is named after its revision, which is a number."""


def migrate(reader: Engine, writer: Engine, *, name: str) -> None:
    """Upgrade to the newest schema in one transaction; a second process waits for it and then has nothing to do.

    Args:
        reader: Its transactions take no lock.
        writer: Its transactions hold the lock for writing from their beginning.
        name: The database, as messages call it.

    Raises:
        StoreError: If the schema is newer than this Lushan, or the tables are not Lushan's.
    """
    known = sorted(file.name.split("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*.py"))
    with reader.connect() as connection:
        if revision_of(connection) == known[-1]:
            return
    from alembic import command  # slow to import, and most stores have the newest schema
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with writer.begin() as connection:
        _check_upgradable(connection, known, name=name)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision_of(connection: Connection) -> str | None:
    """Give the revision of a database's schema; None where it has none of Lushan's."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))


def _check_upgradable(connection: Connection, known: Sequence[str], *, name: str) -> None:
    revision = revision_of(connection)
    if revision is None and (tables := inspect(connection).get_table_names()):
        raise StoreError(
            f"`{name}` is the database of another program: it holds the table `{tables[0]}`, and no schema of Lushan. "
            "Name another folder with `--store`."
        )
    if revision is not None and revision not in known:
        raise StoreError(
            f"`{name}` was written by a newer Lushan: its schema is `{revision}`, this version knows schemas up to "
            f"`{known[-1]}`. Update Lushan, or name another folder with `--store`."
        )

"""Brings a database to the newest schema, or says why it cannot."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from lushan.errors import StoreError

VERSION_TABLE = "lushan_schema"
"""Holds the revision of the schema; named so that no other program's database is taken for ours."""
MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(reader: Engine, writer: Engine, *, name: str) -> None:
    """Upgrade to the newest schema in one transaction; a second process waits for it and then has nothing to do.

    Args:
        reader: Its transactions take no lock.
        writer: Its transactions hold the lock for writing from their beginning.
        name: The database, as messages call it.

    Raises:
        StoreError: If the schema is newer than this Lushan, or the tables are not Lushan's.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with reader.connect() as connection:
        if revision_of(connection) == scripts.get_current_head():
            return
    with writer.begin() as connection:
        _check_upgradable(connection, scripts, name=name)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision_of(connection: Connection) -> str | None:
    """Give the revision of a database's schema; None where it has none of Lushan's."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _check_upgradable(connection: Connection, scripts: ScriptDirectory, *, name: str) -> None:
    revision = revision_of(connection)
    known = [script.revision for script in scripts.walk_revisions()]
    if revision is None and (tables := inspect(connection).get_table_names()):
        raise StoreError(
            f"`{name}` is the database of another program: it holds the table `{tables[0]}`, and no schema of Lushan. "
            "Name another folder with `--store`."
        )
    if revision is not None and revision not in known:
        raise StoreError(
            f"`{name}` was written by a newer Lushan: its schema is `{revision}`, this version knows schemas up to "
            f"`{known[0]}`. Update Lushan, or name another folder with `--store`."
        )

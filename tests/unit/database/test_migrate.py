"""Migrating: from nothing to the schema of the models, whole or not at all, and never a database that is not ours."""

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from lushan.database import migrate
from lushan.database.connect import Database, open_database
from lushan.database.schema import Base
from lushan.errors import StoreError
from tests.stores import fill, new_database

HOW = "Write a migration in src/lushan/database/migrations/versions for what the models say now."
OBJECTS = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%lushan_schema%'"


def objects_in(file: Path) -> set[tuple[str, str, str]]:
    """Give tables and indexes as SQLite was told to make them."""
    connection = sqlite3.connect(file)
    found = {
        (kind, name, " ".join((sql or "").split()))
        for kind, name, sql in connection.execute(OBJECTS)
    }
    connection.close()
    return found


def test_migrated_schema_is_that_of_the_models(tmp_path: Path) -> None:
    with new_database(tmp_path):
        engine = create_engine(f"sqlite:///{tmp_path}/lushan.sqlite3")
        with engine.connect() as connection:
            options = {"version_table": migrate.VERSION_TABLE, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, Base.metadata) == [], HOW
        engine.dispose()


def test_migrated_database_has_the_same_sql_as_one_made_from_the_models(tmp_path: Path) -> None:
    new_database(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path}/made.db")
    Base.metadata.create_all(engine)
    engine.dispose()
    assert objects_in(tmp_path / "lushan.sqlite3") == objects_in(tmp_path / "made.db"), HOW


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    with new_database(tmp_path) as database:
        fill(database, num_rows=2)
    before = objects_in(tmp_path / "lushan.sqlite3")
    with new_database(tmp_path) as database:
        fill(database, num_rows=2)
    assert objects_in(tmp_path / "lushan.sqlite3") == before


def test_each_migration_is_named_after_its_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    found = list(ScriptDirectory.from_config(config).walk_revisions())
    files = sorted(migrate.MIGRATIONS.glob("versions/[0-9]*.py"), reverse=True)
    assert [each.path for each in found] == [str(file) for file in files]
    assert all(Path(each.path).name.startswith(f"{each.revision}_") for each in found)


def test_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "versions").mkdir()
    source = Path(migrate.MIGRATIONS)
    (tmp_path / "env.py").write_text((source / "env.py").read_text("utf-8"), "utf-8")
    first = next(source.glob("versions/0001_*.py")).read_text("utf-8")
    (tmp_path / "versions" / "0001_first.py").write_text(first, "utf-8")
    (tmp_path / "versions" / "0002_broken.py").write_text(
        "revision, down_revision = '0002', '0001'\n\n\ndef upgrade():\n    raise OSError('power cut')\n",
        "utf-8",
    )
    monkeypatch.setattr(migrate, "MIGRATIONS", tmp_path)
    with pytest.raises(OSError, match="power cut"):
        open_database(str(tmp_path), create=True)
    assert objects_in(tmp_path / "lushan.sqlite3") == set()


def test_newer_schema_is_refused_and_stays(tmp_path: Path) -> None:
    new_database(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "lushan.sqlite3")
    with connection:
        connection.execute("UPDATE lushan_schema SET version_num = '0999'")
    connection.close()
    message = (
        "written by a newer Lushan: its schema is `0999`, this version knows .* `0001`. Update"
    )
    with pytest.raises(StoreError, match=message):
        new_database(tmp_path)


def test_database_of_another_program_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "lushan.sqlite3"
    connection = sqlite3.connect(file)
    with connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="of another program: it holds the table `bookmarks`"):
        new_database(tmp_path)
    assert {name for _, name, _ in objects_in(file)} == {"bookmarks"}


def test_folder_with_a_percent_sign_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "100%(here)s"
    place.symlink_to(migrate.MIGRATIONS)
    monkeypatch.setattr(migrate, "MIGRATIONS", place)
    with new_database(tmp_path / "50%") as database:
        assert isinstance(database, Database)
        fill(database, num_rows=1)

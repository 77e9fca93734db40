"""The environment of the migrations: it keeps to the transaction that it is given, and to Lushan's table of versions."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text

from lushan.database.migrate import MIGRATIONS


def test_whoever_began_the_transaction_ends_it(tmp_path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{tmp_path}/new.db")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE before (x INTEGER)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert connection.in_transaction()
        names = set(inspect(connection).get_table_names())
        assert {"feedback", "api_keys", "lushan_schema"} < names
        assert "alembic_version" not in names
    engine.dispose()

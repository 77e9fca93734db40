"""The first migration: both tables, with what the code looks for quickly."""

from pathlib import Path

from sqlalchemy import inspect

from tests.stores import new_database


def test_empty_database_gets_both_tables_and_their_indexes(tmp_path: Path) -> None:
    with new_database(tmp_path) as database, database.reading() as session:
        found = inspect(session.connection())
        assert set(found.get_table_names()) == {"feedback", "api_keys", "lushan_schema"}
        assert found.get_unique_constraints("feedback")[0]["column_names"] == ["id"]
        columns = {
            tuple(index["column_names"])
            for table in ("feedback", "api_keys")
            for index in found.get_indexes(table)
        }
        assert columns == {("model", "number"), ("input_digest", "number"), ("name",)}

"""Runs the migrations in the transaction that `lushan.database.migrate` has begun; alembic loads this file by its path."""

from alembic import context

from lushan.database.migrate import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()

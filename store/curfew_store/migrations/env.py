"""Alembic's environment: hands the connection of `curfew_store.migrate` to the revisions.

Every statement commits by itself (the connection is in autocommit), since ``CREATE INDEX CONCURRENTLY``
cannot run in a transaction; each revision is therefore written to be repeated from any point.
"""

from __future__ import annotations

from alembic import context

from curfew_store.schema import VERSION_TABLE

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema=attributes["schema"],
    transactional_ddl=False,
    curfew_schema=attributes["schema"],
    curfew_tell=attributes["tell"],
)
with context.begin_transaction():
    context.run_migrations()

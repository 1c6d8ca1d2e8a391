"""Roles of the server for tests about rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool

from tests.conftest import Database


@contextmanager
def new_role(database: Database, suffix: str, attributes: str = "") -> Iterator[str]:
    """A role that may do nothing in particular; its name is as unique as the database's."""
    name = f"{database.name}_{suffix}"
    with psycopg.connect(database.conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} {attributes}".encode())
        try:
            yield name
        finally:
            admin.execute(f"DROP OWNED BY {name}".encode())
            admin.execute(f"DROP ROLE {name}".encode())


def engine_as(role: str, database: Database, options: str = "") -> Engine:
    """An engine whose sessions act as *role*; *options* are settings as libpq takes them."""
    engine = create_engine(database.url, poolclass=NullPool, connect_args={"options": options} if options else {})

    def act_as(conn: Any, _record: Any) -> None:
        conn.execute(f"SET ROLE {role}")
        conn.commit()

    event.listen(engine, "connect", act_as)
    return engine

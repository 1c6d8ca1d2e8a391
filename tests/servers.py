"""A PostgreSQL server of a test's own, with the current schema, for tests that stop it or reach it over a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine

from curfew_store.embedded import EmbeddedPostgres
from curfew_store.migrate import upgrade

__all__ = ["migrated_server"]


@contextmanager
def migrated_server(*, tcp: bool = False, password: str | None = None) -> Iterator[EmbeddedPostgres]:
    """It runs inside; *tcp* and *password* are those of `EmbeddedPostgres.start`."""
    with EmbeddedPostgres.start(tcp=tcp, password=password) as server:
        engine = create_engine(server.sqlalchemy_url())
        upgrade(engine)
        engine.dispose()
        yield server

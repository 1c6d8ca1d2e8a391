"""What tests of this folder ask for, where their module makes nothing else of the same name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, NullPool, create_engine

from curfew_store.embedded import EmbeddedPostgres
from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.servers import migrated_server


@pytest.fixture(scope="module")
def tcp() -> Iterator[EmbeddedPostgres]:
    """A migrated server that is reached over TCP."""
    with migrated_server(tcp=True) as server:
        yield server


@pytest.fixture
def rows(database: Database) -> Iterator[Rows]:
    """The tables of the test's database, without the store."""
    seen = Rows(database.url)
    yield seen
    seen.close()


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    """A connection as the daemon's: autocommit, no pool."""
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()

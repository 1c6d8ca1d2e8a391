"""The project's own fixtures, on top of those that `curfew_store.testing` gives to everyone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, create_engine

from curfew_store.testing import DatabaseTemplate, Server

pytest_plugins = ["tests.skip_policy", "pytester"]

# What the developer's shell says about databases is about others. The one variable that is meant for tests
# has to outlive this line: it becomes an option in `pytest_configure`.
_TEST_DATABASE_URL = os.environ.get("CURFEW_TEST_DATABASE_URL")
for _name in [name for name in os.environ if name.startswith(("CURFEW_", "PG"))]:
    del os.environ[_name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that lets the tests marked ``system`` run."""
    parser.addoption("--system", action="store_true", help="also run what needs root or Debian's packages")


def pytest_configure(config: pytest.Config) -> None:
    """Carry the address of the test server over from the environment."""
    if _TEST_DATABASE_URL and not config.option.curfew_database_url:
        config.option.curfew_database_url = _TEST_DATABASE_URL


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests marked ``system`` unless they are asked for."""
    if config.getoption("--system"):
        return
    chosen = [item for item in items if not item.get_closest_marker("system")]
    left_out = [item for item in items if item.get_closest_marker("system")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen


@dataclass(frozen=True)
class Database:
    """A test's own database. ``url`` is for SQLAlchemy, ``conninfo`` the same for libpq and psycopg."""

    name: str
    url: str
    conninfo: str
    engine: Engine


@pytest.fixture(scope="session")
def server(curfew_server: Server) -> Server:
    """The PostgreSQL server of this session: the embedded one, or that of ``--curfew-database-url``."""
    return curfew_server


def _made(template: DatabaseTemplate, *, empty: bool) -> Iterator[Database]:
    name = template.create(empty=empty)
    url = template.server.sqlalchemy_url(name)
    engine = create_engine(url)
    yield Database(name, url, template.server.url(name), engine)
    engine.dispose()
    template.drop(name)


@pytest.fixture
def database(curfew_database: DatabaseTemplate) -> Iterator[Database]:
    """A fresh database with the current schema."""
    yield from _made(curfew_database, empty=False)


@pytest.fixture
def empty_database(curfew_database: DatabaseTemplate) -> Iterator[Database]:
    """A fresh database with nothing in it."""
    yield from _made(curfew_database, empty=True)

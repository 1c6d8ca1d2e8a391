"""Fixtures for pytest with which a trigger service tests against a real store, with no set-up.

Installing ``curfewd[embedded]`` makes them available: ``curfew_store`` and ``async_curfew_store`` are stores
on a migrated database that is the test's own, ``curfew_url`` is its address for SQLAlchemy. The databases are
copies of one template, made once per session on an embedded server, or on your own:
``--curfew-database-url=URL``, the ini option ``curfew_database_url`` or the variable
``CURFEW_TEST_DATABASE_URL``, in this order. The role in that URL needs CREATEDB. Databases are called
``curfew_test_…`` and dropped at the end; no other is touched.

pytest imports this module in every run in whose environment the package is installed, so it imports nothing
but pytest before a fixture is asked for.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from curfew_store import AsyncFlowRunControlStore, FlowRunControlStore

_OPTION = "curfew_database_url"


class Server(Protocol):
    """Where databases are made: an `curfew_store.embedded.EmbeddedPostgres` or a server of the user's own."""

    def url(self, database: str = ...) -> str:
        """The URL of a database for libpq and psycopg."""

    def sqlalchemy_url(self, database: str = ...) -> str:
        """The URL of a database for SQLAlchemy."""


class GivenServer:
    """A server that runs already, known by the URL of one of its databases."""

    def __init__(self, url: str) -> None:
        from sqlalchemy import make_url  # noqa: PLC0415
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

        try:
            # "postgres://" is libpq's other spelling; SQLAlchemy does not know it.
            given = make_url(url.replace("postgres://", "postgresql://", 1))
        except ArgumentError as error:
            raise pytest.UsageError("the database URL for curfew's fixtures is not a URL") from error
        if given.get_backend_name() != "postgresql":
            raise pytest.UsageError(
                f"the database URL for curfew's fixtures is one of {given.get_backend_name()}, not of PostgreSQL"
            )
        self._url = given
        self._database = given.database or "postgres"

    def url(self, database: str | None = None) -> str:
        """The URL of a database, by default the given one, for libpq and psycopg."""
        return self._render("postgresql", database)

    def sqlalchemy_url(self, database: str | None = None) -> str:
        """The URL of a database, by default the given one, for SQLAlchemy."""
        return self._render("postgresql+psycopg", database)

    def _render(self, scheme: str, database: str | None) -> str:
        url = self._url.set(drivername=scheme, database=database or self._database)
        return url.render_as_string(hide_password=False)


class DatabaseTemplate:
    """Makes databases on a server: copies of a migrated template, or empty ones. Names never collide."""

    def __init__(self, server: Server) -> None:
        from sqlalchemy import create_engine  # noqa: PLC0415
        from sqlalchemy.pool import NullPool  # noqa: PLC0415

        self.server = server
        self._prefix = f"curfew_test_{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)
        self._template: str | None = None
        self._admin: Engine = create_engine(server.sqlalchemy_url(), isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def create(self, *, empty: bool = False) -> str:
        """Make a database, migrated unless ``empty``; returns its name."""
        name = f"{self._prefix}_{next(self._numbers)}"
        template = "template1" if empty else self._migrated_template()
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}{self._strategy}")
        return name

    @functools.cached_property
    def _strategy(self) -> str:
        """Copying files takes 0.01 s, the default since PostgreSQL 15 (block by block, through WAL) 0.3 s."""
        with self._admin.connect() as connection:
            version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
        return " STRATEGY FILE_COPY" if version >= 150_000 else ""

    def drop(self, name: str) -> None:
        """Drop a database of ours, disconnecting whoever still uses it; nothing if it has gone."""
        if not name.startswith(self._prefix):
            raise ValueError(f"{name} is not one of the databases made here")
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        """Drop the template."""
        if self._template is not None:
            self.drop(self._template)
            self._template = None

    def _migrated_template(self) -> str:
        # Made when first asked for: a run that needs only empty databases need not have Alembic.
        if self._template is None:
            from sqlalchemy import create_engine  # noqa: PLC0415

            from curfew_store.migrate import upgrade  # noqa: PLC0415

            self._template = f"{self._prefix}_template"
            self._execute(f"CREATE DATABASE {self._template}")
            engine = create_engine(self.server.sqlalchemy_url(self._template))
            try:
                upgrade(engine)
            finally:
                engine.dispose()
        return self._template

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, and the ini option that stands in for it."""
    described = "URL of a PostgreSQL server on which databases for tests may be made (default: an embedded one)"
    group = parser.getgroup("curfew")
    group.addoption("--curfew-database-url", dest=_OPTION, metavar="URL", default=None, help=described)
    parser.addini(_OPTION, f"{described}; also CURFEW_TEST_DATABASE_URL", default="")


@pytest.fixture(scope="session")
def curfew_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """The PostgreSQL server of this session (under xdist: of this worker)."""
    given = (
        pytestconfig.getoption(_OPTION) or pytestconfig.getini(_OPTION) or os.environ.get("CURFEW_TEST_DATABASE_URL")
    )
    if given:
        yield GivenServer(given)
        return
    from curfew_store.embedded import EmbeddedPostgres  # noqa: PLC0415

    with EmbeddedPostgres.start() as server:
        yield server


@pytest.fixture(scope="session")
def curfew_database(curfew_server: Server) -> Iterator[DatabaseTemplate]:
    """The maker of the tests' databases: ``create()``, ``drop(name)`` and the ``server`` they are on."""
    template = DatabaseTemplate(curfew_server)
    yield template
    template.close()


@pytest.fixture
def curfew_url(curfew_database: DatabaseTemplate) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, migrated database, which is dropped after the test."""
    name = curfew_database.create()
    yield curfew_database.server.sqlalchemy_url(name)
    curfew_database.drop(name)


@pytest.fixture
def curfew_store(curfew_url: str) -> Iterator[FlowRunControlStore]:
    """A store on a database of the test's own."""
    from sqlalchemy import create_engine  # noqa: PLC0415

    from curfew_store import FlowRunControlStore  # noqa: PLC0415

    engine = create_engine(curfew_url)
    yield FlowRunControlStore(engine)
    engine.dispose()


@pytest.fixture
def async_curfew_store(curfew_url: str) -> AsyncFlowRunControlStore:
    """An asynchronous store on a database of the test's own; on the same one as ``curfew_store``."""
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    from curfew_store import AsyncFlowRunControlStore  # noqa: PLC0415

    # No pool: a pooled connection would belong to the event loop that opened it, and be left to it to close.
    return AsyncFlowRunControlStore(create_async_engine(curfew_url, poolclass=NullPool))

"""Fixtures of the contract suite: `facade` and `store` come in both kinds, `rows` looks at the tables itself.

One database per module: making one costs more than most of the tests here. Every test uses run ids of its
own, and a test that looks at whole tables stands in a module where that is safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from curfew_store import FlowRunControlStore
from curfew_store.testing import DatabaseTemplate
from tests.integration.contract.facade import AsyncFacade, Facade, Loop, OpenFacade, SyncFacade
from tests.integration.contract.rows import Rows


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """The event loop of the asynchronous stores."""
    running = Loop()
    yield running
    running.close()


@pytest.fixture(scope="module")
def url(curfew_database: DatabaseTemplate) -> Iterator[str]:
    """The SQLAlchemy URL of a migrated database that the module has for itself."""
    name = curfew_database.create()
    yield curfew_database.server.sqlalchemy_url(name)
    curfew_database.drop(name)


@pytest.fixture(scope="module")
def rows(url: str) -> Iterator[Rows]:
    """The tables of the module's database, without the store."""
    seen = Rows(url)
    yield seen
    seen.close()


@pytest.fixture(scope="module", params=["sync", "async"])
def open_facade(request: pytest.FixtureRequest, loop: Loop, url: str) -> Iterator[OpenFacade]:
    """Makes façades of one kind: on the module's database unless told otherwise, with options for the engine."""
    opened: list[Facade] = []

    def open_one(schema: str = "public", **options: Any) -> Facade:
        # A call that waits for a lock which the test itself holds shall fail and not hang.
        options.setdefault("connect_args", {"options": "-c lock_timeout=10s"})
        made: Facade = (
            SyncFacade(url, schema, **options) if request.param == "sync" else AsyncFacade(loop, url, schema, **options)
        )
        opened.append(made)
        return made

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def facade(open_facade: OpenFacade) -> Facade:
    """The store under test with its surroundings."""
    return open_facade()


@pytest.fixture
def store(facade: Facade) -> FlowRunControlStore:
    """The store under test."""
    return facade.store

"""What a call without ``connection=`` finds on a connection of the caller's pool, and how it leaves it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import IsolationLevel
from sqlalchemy import NullPool, SingletonThreadPool, StaticPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from curfew_store import FlowRunControlStore, InvalidValue, RunTimedOut
from curfew_store.errors import sqlstate_of
from tests.integration.contract.facade import Facade, OpenFacade
from tests.integration.contract.rows import FLOW, Rows
from tests.integration.wire import Wire

HOUR = timedelta(hours=1)
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)

Settings = tuple[Any, ...]


def settings(facade: Facade) -> Settings:
    """The driver's settings of the pooled connection, which its next user gets."""
    with facade.begin() as caller:
        inner = getattr(caller.handle, "sync_connection", caller.handle)
        driver = inner.connection.driver_connection
        return driver.autocommit, driver.isolation_level, driver.read_only


def serializable(dbapi_connection: Any, _record: Any) -> None:
    """As a listener for ``connect`` sets it, behind SQLAlchemy's back."""
    dbapi_connection.set_isolation_level(IsolationLevel.SERIALIZABLE)


def in_autocommit(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.set_autocommit(True)


def opened(facade: Facade, *listeners: Callable[[Any, Any], None]) -> Facade:
    for listener in listeners:
        event.listen(facade.engine, "connect", listener)
    return facade


@pytest.mark.contract("X-8")
@pytest.mark.parametrize("listeners", [(), (serializable,), (in_autocommit,), (serializable, in_autocommit)])
@pytest.mark.parametrize("options", [{}, {"isolation_level": "REPEATABLE READ"}, {"isolation_level": "AUTOCOMMIT"}])
def test_the_settings_of_a_pooled_connection_stay(
    open_facade: OpenFacade, rows: Rows, listeners: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Whoever set them, a connection has its own isolation level and autocommit again after each kind of call."""
    facade = opened(open_facade(pool_size=1, max_overflow=0, **options), *listeners)
    before = settings(facade)
    overdue = rows.insert("overdue")
    facade.store.configure_run(uuid4(), FLOW, "t", timeout=HOUR)
    assert settings(facade) == before
    facade.store.purge(LONG_AGO, limit=1)
    assert settings(facade) == before
    with pytest.raises(RunTimedOut):
        facade.store.ensure_may_run(overdue)
    assert settings(facade) == before
    facade.close()


@pytest.mark.contract("X-8")
def test_autocommit_by_the_arguments_of_the_driver_stays(open_facade: OpenFacade) -> None:
    """``connect_args={"autocommit": True}`` holds for whoever uses the connection after a call."""
    facade = open_facade(pool_size=1, max_overflow=0, connect_args={"autocommit": True})
    facade.store.configure_run(uuid4(), FLOW, "t", timeout=HOUR)
    assert settings(facade) == (True, None, None)
    facade.close()


@pytest.mark.contract("X-8", "Z-3")
@pytest.mark.parametrize("listening", [False, True])
def test_settings_stay_after_an_error(open_facade: OpenFacade, rows: Rows, listening: bool) -> None:
    """A call that the server refuses leaves the connection with its settings, in autocommit and in a transaction."""
    options = "-c default_transaction_read_only=on"
    facade = opened(open_facade(pool_size=1, max_overflow=0, connect_args={"options": options}), serializable)
    if listening:
        event.listen(facade.engine, "begin", lambda conn: None)
    before = settings(facade)
    for _ in range(2):
        with pytest.raises(DBAPIError) as raised:
            facade.store.configure_run(uuid4(), FLOW, "t", timeout=HOUR)
        assert sqlstate_of(raised.value) == "25006"
        assert settings(facade) == before
    facade.close()


@pytest.mark.contract("X-8", "Z-4")
def test_a_connection_that_breaks_in_a_call_is_given_up(open_facade: OpenFacade, rows: Rows) -> None:
    """The error arrives as the driver made it, and the pool opens another connection."""
    facade = opened(open_facade(pool_size=1, max_overflow=0), in_autocommit)
    before = settings(facade)
    with facade.begin() as caller:
        pid = caller.sql("SELECT pg_backend_pid()")[0][0]
    rows.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
    with pytest.raises(DBAPIError) as raised:
        facade.store.configure_run(uuid4(), FLOW, "t", timeout=HOUR)
    assert raised.value.connection_invalidated
    assert settings(facade) == before
    facade.close()


@pytest.mark.contract("X-3")
@pytest.mark.parametrize("readonly", [True, False])
def test_the_drivers_read_only_is_heeded(open_facade: OpenFacade, rows: Rows, readonly: bool) -> None:
    """``postgresql_readonly`` of the engine governs a call as it governs a transaction, against what the role has."""
    against = "off" if readonly else "on"
    facade = open_facade(
        execution_options={"postgresql_readonly": readonly},
        connect_args={"options": f"-c default_transaction_read_only={against}"},
    )
    run_id = rows.insert("active")
    if readonly:
        with pytest.raises(DBAPIError) as raised:
            facade.store.complete_run(run_id)
        assert sqlstate_of(raised.value) == "25006"
    else:
        assert facade.store.complete_run(run_id) is True
    facade.close()


def leaves_a_transaction(statements: list[str]) -> Callable[..., None]:
    """A listener that executes the last of the statements and does not commit."""

    def listener(dbapi_connection: Any, *_: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(statements[-1])
        cursor.close()

    return listener


@pytest.mark.contract("X-3")
@pytest.mark.parametrize("name", ["connect", "checkout"])
@pytest.mark.parametrize("statement", ["SELECT 1", "SET LOCAL lock_timeout = '7s'"])
def test_a_transaction_that_a_listener_left_open_is_joined(
    open_facade: OpenFacade, rows: Rows, name: str, statement: str
) -> None:
    """A call runs in it and commits it, as ``engine.begin()`` does, also where it makes several statements."""
    facade, run_id = open_facade(pool_size=1, max_overflow=0, poolclass=None), rows.insert("active")
    event.listen(facade.engine, name, leaves_a_transaction([statement]))
    assert facade.store.request_cancel(run_id) is True
    assert (rows.row(run_id) or {})["cancel_requested"]
    assert facade.store.purge(LONG_AGO, limit=1) == 0
    started = facade.store.start_run(FLOW, "t", f"key-{run_id}")
    assert facade.store.start_run(FLOW, "t", f"key-{run_id}").run_id == started.run_id
    with pytest.raises(InvalidValue):
        facade.store.request_cancel(run_id, "\0")
    facade.close()


@pytest.mark.contract("X-3")
def test_what_a_listener_wrote_is_committed_with_the_call(open_facade: OpenFacade, rows: Rows) -> None:
    """Nothing that a listener began is lost, and nothing of it stands if the call fails."""
    facade, mine, run_id = open_facade(poolclass=NullPool), rows.insert("active"), rows.insert("active")
    before = rows.row(mine), rows.row(run_id)
    write = [f"UPDATE flow_run_controls SET trigger_key = 'listener' WHERE run_id = '{mine}'"]
    event.listen(facade.engine, "connect", leaves_a_transaction(write))
    facade.store.complete_run(run_id)
    assert rows.changed(before[0], mine) == {"trigger_key"}
    write.append("SET LOCAL transaction_read_only = on")
    again = rows.row(mine), rows.row(run_id)
    with pytest.raises(DBAPIError, match="read-only transaction"):
        facade.store.reopen_run(run_id)
    assert (rows.row(mine), rows.row(run_id)) == again
    facade.close()


@pytest.mark.contract("X-3")
def test_an_open_transaction_of_a_higher_level(open_facade: OpenFacade, rows: Rows) -> None:
    """One that has seen nothing becomes READ COMMITTED; one that has cannot, which the server says."""
    facade, run_id = opened(open_facade(poolclass=NullPool), serializable), rows.insert("active")
    statement = ["SET LOCAL lock_timeout = '7s'"]
    event.listen(facade.engine, "connect", leaves_a_transaction(statement))
    assert facade.store.request_cancel(run_id) is True
    statement.append("SELECT 1")
    with pytest.raises(DBAPIError) as raised:
        facade.store.complete_run(run_id)
    assert sqlstate_of(raised.value) == "25001"
    facade.close()


@pytest.mark.contract("X-3")
@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}])
def test_a_listener_that_executes_on_each_connection(
    open_facade: OpenFacade, rows: Rows, options: dict[str, Any]
) -> None:
    """A listener for ``engine_connect`` that has begun SQLAlchemy's transaction is in nobody's way."""
    facade, run_id = open_facade(**options), rows.insert("active")
    event.listen(facade.engine, "engine_connect", lambda conn: conn.scalar(text("SELECT 1")))
    assert facade.store.request_cancel(run_id) is True
    assert facade.store.purge(LONG_AGO, limit=1) == 0
    assert (rows.row(run_id) or {})["cancel_requested"]
    facade.close()


@pytest.mark.contract("X-1", "X-3")
@pytest.mark.parametrize("pool", [StaticPool, SingletonThreadPool])
def test_the_only_connection_of_a_pool_is_in_use(url: str, rows: Rows, pool: Any) -> None:
    """Where a pool gives one connection to several, a call commits nothing of another's: it has to be given it."""
    engine = create_engine(url, poolclass=pool)
    store, mine, run_id = FlowRunControlStore(engine), rows.insert("active"), rows.insert("active")
    before = rows.row(mine), rows.row(run_id)
    assert store.heartbeat(rows.insert("active"), timeout=HOUR) is True
    with engine.connect() as conn:
        conn.execute(text("UPDATE flow_run_controls SET trigger_key = 'mine' WHERE run_id = :r"), {"r": mine})
        with pytest.raises(InvalidValue, match="connection: must be given"):
            store.complete_run(run_id)
        assert (rows.row(mine), rows.row(run_id)) == before
    engine.dispose()


@pytest.mark.contract("X-8")
def test_putting_the_settings_back_sends_nothing(open_facade: OpenFacade, rows: Rows) -> None:
    """A connection with settings of its own costs no round trip more."""
    facade = opened(open_facade(pool_size=1, max_overflow=0), serializable)
    wire = Wire(facade.engine)
    run_id = rows.insert("active")
    for _ in range(7):
        facade.store.heartbeat(run_id, timeout=HOUR)
    assert wire.round_trips(lambda: facade.store.heartbeat(run_id, timeout=HOUR)) == 1
    facade.close()
